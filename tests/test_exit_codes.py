"""Which exit code a command has: 2 for words that cannot be meant, 1 for work that failed."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TINY = str(ROOT / "engines" / "dvpd-tiny")
CONFIG = str(ROOT / "dvpd" / "configs" / "tiny.toml")
CHECKPOINT = str(next((ROOT / "engines" / "dvpd-tiny").glob("*.safetensors")))


@pytest.fixture
def exit_code(monkeypatch, tmp_path):
    """``exit_code(command)`` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVPD_TOKEN", raising=False)

    def run(line: str) -> int:
        name, *words = line.split()
        try:
            module = importlib.import_module(f"dvpd.{name}")
        except ModuleNotFoundError as error:
            pytest.skip(f"{error.name} is not installed")
        return module.main(words)

    return run


@pytest.mark.parametrize(
    "line",
    [
        "runtime.cli enhance a.wav",
        "runtime.cli enhance a.wav b.wav --steps -1",
        "runtime.cli enhance a.wav b.wav --raw mono",
        "runtime.cli enhance a.wav b.wav --tlb odd",
        "runtime.cli enhance a.wav - --json",
        "runtime.cli enhance a.wav b.wav --model hf:owner",
        "runtime.cli stream --rate 16000 --format mp3",
        "runtime.cli stream --rate 4000",
        "runtime.cli live --rate 4000",
        "runtime.cli serve --host 0.0.0.0",
        "runtime.cli demo --host 0.0.0.0",
        f"runtime.cli build {TINY} --frames 4,4,4",
        "runtime.cli build hf:owner/name",
        f"export.verify {TINY} --backends odd",
        f"export.verify {TINY} --seconds 0",
        f"export.hub_folder --model {TINY} --repository name -o out",
        f"train {CONFIG} --data . --out out --set train.lr",
        f"train {CONFIG} --data . --out out --set odd.lr=1",
        f"grow {CHECKPOINT} {CONFIG} -o {CHECKPOINT}",
        f"tlb_search {TINY} --set . --out out --minutes -1",
        f"tlb_search {TINY} --set . --out out --seed -1",
        f"benchmarks.rtf {TINY} --report a.json --from-json b.json",
        f"benchmarks.rtf {TINY} --assert speed",
        f"benchmarks.rtf {TINY} --stream --html a.html",
        f"benchmarks.peers --set . --weights odd={CHECKPOINT}",
        f"benchmarks.profile_graphs {TINY} --frames 30",
    ],
)
def test_wrong_usage_is_two(exit_code, line, capsys):
    assert exit_code(line) == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "runtime.cli enhance missing.wav b.wav",
        "runtime.cli enhance a.wav b.wav --model no-such-model",
        "runtime.cli build missing/folder",
        "export.verify missing/folder",
        "export.to_onnx missing.safetensors",
        "train missing.toml --data . --out out",
        f"grow missing.safetensors {CONFIG} -o out.safetensors",
        f"evaluate {TINY} --set missing",
        "benchmarks.rtf missing/folder",
    ],
)
def test_work_that_fails_is_one(exit_code, line, capsys):
    assert exit_code(line) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("dvpd: ")
