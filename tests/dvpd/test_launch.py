"""Packing for a lent machine: parts are whole and balanced, runs go on, damage is named."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from train_parts import MICRO_TOML, log_of

from dvpd.launch import INDEX_NAME, candidates, deal, main, pack, unpack
from dvpd.runtime.errors import InputError, ManifestError


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for source, count in (("speech/a", 6), ("speech/b", 6), ("noise/c", 6), ("rir/d", 2)):
        (root / source).mkdir(parents=True)
        for i in range(count):
            wav = 0.1 * rng.standard_normal(16000)
            soundfile.write(root / source / f"{i}.flac", wav, 16000)
    return root


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "micro.toml"
    path.write_text(
        MICRO_TOML + "universal_p=0.0\n[train]\nbatch_size=2\nworkers=0\nwarmup_steps=0\nsteps=4\n"
        "log_steps=1\nschedule='constant'\n"
    )
    return path


def test_parts_are_small_whole_and_of_all_sources(data, tmp_path):
    parts = pack(data, tmp_path / "parts", 0.2)
    assert len(parts) > 2
    assert all(p.stat().st_size <= 0.2 * 2**20 for p in parts)
    per_part = []
    for path in parts:
        with tarfile.open(path) as tar:
            per_part.append(tar.getnames())
    everything = sorted(p.relative_to(data).as_posix() for p in data.rglob("*.flac"))
    assert sorted(name for names in per_part for name in names) == everything
    for names in per_part:  # dealt in turn: no part is of one source alone
        assert {"speech/a", "speech/b", "noise/c"} <= set(
            Counter(Path(n).parent.as_posix() for n in names)
        )
    out = tmp_path / "out"
    parts[0].rename(tmp_path / "later.tar")
    assert unpack(tmp_path / "parts", out) == (len(parts) - 1, len(parts))
    assert len(list(out.rglob("*.flac"))) == len(everything) - len(per_part[0])
    (tmp_path / "later.tar").rename(parts[0])
    assert unpack(tmp_path / "parts", out) == (len(parts), len(parts))
    for name in everything:
        assert (out / name).read_bytes() == (data / name).read_bytes()


def test_dealing_by_hand():
    sizes = [(Path(f"{i}"), 1000) for i in range(6)]
    parts = deal(sizes, 10240 + 2 * (1024 + 2048))
    assert [[p.name for p in part] for part in parts] == [["0", "3"], ["1", "4"], ["2", "5"]]
    with pytest.raises(InputError, match="raise --part-mib"):
        deal([(Path("big"), 100_000)], 50_000)


def test_a_run_chooses_trains_and_goes_on(data, config, tmp_path, capsys):
    pack(data, tmp_path / "parts", 0.2)
    words = ["run", str(tmp_path / "parts"), "--config", str(config), "--out", str(tmp_path / "out"),
             "--minutes", "5", "--device", "cpu", "--probe-steps", "1"]  # fmt: skip
    threads = torch.get_num_threads()
    assert main([*words, "--set", "train.steps=2"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["steps"] == 2
    assert not first["resumed"]
    assert 0.0 < first["share_training"] < 1.0
    choice = json.loads((tmp_path / "out" / "launch.json").read_text())
    assert len(choice["tried"]) == 2  # with and without channels_last
    assert choice["chosen"]["crops_per_s"] == max(t["crops_per_s"] for t in choice["tried"])
    assert main(words) == 0
    second = json.loads(capsys.readouterr().out)
    torch.set_num_threads(threads)
    assert second["resumed"]
    assert second["steps"] == 2
    assert second["choice"] == first["choice"]
    assert [r["step"] for r in log_of(tmp_path / "out")] == [1, 2, 3, 4]


def test_settings_that_are_tried():
    assert len(list(candidates("cpu", compiled=False))) == 2
    on_gpu = list(candidates("cuda:0", compiled=True))
    assert len(on_gpu) == 8
    assert {"precision": "bf16", "channels_last": True, "compile": True} in on_gpu


def test_damage_is_named(data, tmp_path):
    parts = pack(data, tmp_path / "parts", 0.2)
    parts[1].write_bytes(parts[1].read_bytes()[:-600] + b"x" * 600)
    with pytest.raises(ManifestError, match=r"part-001\.tar is damaged"):
        unpack(tmp_path / "parts", tmp_path / "out")
    for path in parts:
        path.unlink()
    with pytest.raises(InputError, match="none of the"):
        unpack(tmp_path / "parts", tmp_path / "out")
    (tmp_path / "parts" / INDEX_NAME).write_text("{}")
    with pytest.raises(ManifestError, match="not an index"):
        unpack(tmp_path / "parts", tmp_path / "out")


def test_wrong_usage(data, config, tmp_path, capsys):
    assert main(["pack", str(tmp_path), str(tmp_path / "p")]) == 1
    assert "has no files; expected DATA with speech/" in capsys.readouterr().err
    assert main(["pack", str(data), str(tmp_path)]) == 1
    assert "is there already" in capsys.readouterr().err
    pack(data, tmp_path / "parts", 1.0)
    words = ["run", str(tmp_path / "parts"), "--config", str(config), "--out", str(tmp_path / "o")]
    assert main([*words, "--minutes", "0.1"]) == 1
    assert "--minutes is 0.1; expected more than" in capsys.readouterr().err
    assert main([*words, "--minutes", "1", "--probe-steps", "0"]) == 1
    assert "--probe-steps is 0" in capsys.readouterr().err


def test_a_failed_pack_leaves_nothing(data, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "add", full)
    assert main(["pack", str(data), str(tmp_path / "parts")]) == 1
    assert list(tmp_path.iterdir()) == []
