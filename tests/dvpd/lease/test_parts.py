"""Packing: parts fit a call, are whole and balanced; damage is named."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from lease_parts import packed, write_plan

from dvpd.lease.parts import INDEX_NAME, deal, pack, receive, unpack
from dvpd.runtime.errors import InputError, ManifestError

MIB = 1 << 20


def members(call: Path) -> list[str]:
    with tarfile.open(next(call.glob("part-*.tar"))) as tar:
        return tar.getnames()


def test_calls_are_small_whole_and_of_all_sources(lease_data, tmp_path):
    calls = packed(tmp_path, lease_data)
    assert len(calls) > 2
    for call in calls:
        data = [p for p in call.iterdir() if p.suffix == ".tar"]
        assert sum(p.stat().st_size for p in data) <= 0.2 * MIB
    everything = sorted(p.relative_to(lease_data).as_posix() for p in lease_data.rglob("*.flac"))
    assert sorted(name for call in calls for name in members(call)) == everything
    for call in calls:  # no part is of one source alone
        sources = {Path(name).parent.as_posix() for name in members(call)}
        assert {"speech/a", "speech/b", "noise/c"} <= sources
    work = tmp_path / "there"
    for call in calls[:-1]:
        receive(call, work / "inbox")
    assert len(unpack(work / "inbox", work / "data")) == len(calls) - 1
    assert not list((work / "inbox").iterdir())  # the disk may be small
    _, parts = receive(calls[-1], work / "inbox")
    assert unpack(work / "inbox", work / "data") == parts
    for name in everything:
        assert (work / "data" / name).read_bytes() == (lease_data / name).read_bytes()


def test_the_first_call_brings_plan_config_weights_wheels_and_cache(lease_data, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    for folder, name in (("wheels", "x.whl"), ("wheels", "y.txt"), ("cache", "one.compiled.gz")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_bytes(b"z")
    text = (
        'data = "data"\nwheels = "wheels"\ncache = "cache"\n[[models]]\nname = "one"\n'
        'config = "micro.toml"\ninit = "a.safetensors"\n'
    )
    calls = packed(tmp_path, lease_data, text)
    assert len(calls) == 1  # all fits
    with tarfile.open(calls[0] / "setup.tar") as tar:
        assert set(tar.getnames()) == {
            "plan.json", "models/one/config.toml", "models/one/init.safetensors",
            "wheels/x.whl", "cache/one.compiled.gz",
        }  # fmt: skip


def test_dealing_by_hand():
    sizes = [(Path(f"{i}"), 1000) for i in range(6)]
    whole = 10240 + 2 * (1024 + 512)
    names = [[p.name for p in part] for part in deal(sizes, whole)]
    assert names == [["0", "3"], ["1", "4"], ["2", "5"]]
    names = [[p.name for p in part] for part in deal(sizes, whole, first=0)]
    assert names == [[], ["0", "3"], ["1", "4"], ["2", "5"]]  # the first call is full
    with pytest.raises(InputError, match="raise part_mib"):
        deal([(Path("big"), 100_000)], 50_000)


def test_damage_is_named(lease_data, tmp_path):
    calls = packed(tmp_path, lease_data)
    part = calls[1] / "part-001.tar"
    whole = part.read_bytes()
    part.write_bytes(whole[:-600] + b"x" * 600)
    with pytest.raises(ManifestError, match=r"part-001\.tar is damaged .* carry it again"):
        receive(calls[1], tmp_path / "inbox")
    part.unlink()
    with pytest.raises(ManifestError, match="is not there"):
        receive(calls[1], tmp_path / "inbox")
    (calls[1] / INDEX_NAME).write_text("{}")
    with pytest.raises(ManifestError, match="not an index"):
        receive(calls[1], tmp_path / "inbox")


def test_wrong_folders(lease_data, tmp_path):
    with pytest.raises(InputError, match="has no files; expected DATA with speech/"):
        packed(tmp_path, tmp_path)
    plan = write_plan(tmp_path, lease_data)
    with pytest.raises(InputError, match="is there already"):
        pack(plan, tmp_path)
    (tmp_path / "big").write_bytes(bytes(MIB))
    text = (
        'data = "data"\npart_mib = 0.3\n[[models]]\nname = "one"\nconfig = "micro.toml"\n'
        'init = "big"\n'
    )
    with pytest.raises(InputError, match=r"a call carries 0\.3"):
        pack(write_plan(tmp_path, lease_data, text), tmp_path / "calls")


def test_a_failed_pack_leaves_nothing(lease_data, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    plan = write_plan(tmp_path, lease_data)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(tarfile.TarFile, "add", full)
    with pytest.raises(OSError, match="No space"):
        pack(plan, tmp_path / "calls")
    assert sorted(tmp_path.iterdir()) == before
