"""Compile caches that travel from one lease to the next."""

from __future__ import annotations

import gzip
import shutil

import pytest
import torch

from dvpd.lease.compiled import SUFFIX, count_hits, keep_compiled, load_compiled
from dvpd.runtime.errors import InputError


class Product(torch.nn.Module):
    """A product alone: nothing for the C++ compiler to do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_second_machine_finds_what_the_first_compiled(tmp_path, monkeypatch):
    from torch.compiler._cache import CacheArtifactManager

    counts, cold, files = [], count_hits(), tmp_path / "files"
    files.mkdir()
    x = torch.ones(8, 8)
    for machine in ("first", "second"):
        cache = tmp_path / machine
        cache.mkdir()
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
        torch._dynamo.reset()
        with CacheArtifactManager.with_fresh_cache():
            assert load_compiled(files, cache) == (machine == "second")
            module = Product()
            module.compile(dynamic=False)
            module(x).sum().backward()
            assert keep_compiled(files / f"one{SUFFIX}", 1 << 20) > 0
        counts.append(count_hits())
        assert load_compiled(files, cache) == (machine == "first")  # once
    assert counts[0]["hits"] == cold["hits"]
    assert counts[1]["hits"] > cold["hits"]
    assert counts[1]["misses"] == counts[0]["misses"] > cold["misses"]


def test_files_together_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (bytes(1000), None))
    assert keep_compiled(tmp_path / f"one{SUFFIX}", 100) < 100
    assert keep_compiled(tmp_path / f"one{SUFFIX}", 100) < 100  # itself does not count twice
    (tmp_path / f"two{SUFFIX}").write_bytes(bytes(90))
    with pytest.raises(InputError, match=r"one.compiled.gz has .* it stays here"):
        keep_compiled(tmp_path / f"one{SUFFIX}", 100)
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: None)
    assert keep_compiled(tmp_path / f"three{SUFFIX}", 100) == 0
    assert not (tmp_path / f"three{SUFFIX}").exists()


def test_damaged_files_are_left_out(tmp_path, capsys):
    cache = tmp_path / "cache"
    cache.mkdir()
    (tmp_path / f"torn{SUFFIX}").write_bytes(gzip.compress(bytes(1000))[:20])
    (tmp_path / f"other{SUFFIX}").write_bytes(gzip.compress(b"no artifacts"))
    assert load_compiled(tmp_path, cache) == 0
    assert "torn.compiled.gz is not used" in capsys.readouterr().err
