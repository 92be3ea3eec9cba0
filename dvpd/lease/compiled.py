"""What torch.compile made, kept for the next lease on the same kind of machine.

A process that compiled keeps one file; all of them come back as the stream "cache", the next packing
carries them, and a process there loads them before it compiles. Another version of torch or another
GPU finds nothing in them, and compiles. They are pickles: load only those of a lease of your own.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import torch

from ..runtime.command import say
from ..runtime.errors import InputError
from ..runtime.files import write_whole

SUFFIX = ".compiled.gz"
LOADED_NAME = "loaded"


def load_compiled(folder: Path, cache: Path) -> int:
    """Put the files of ``folder`` into torch's caches on this machine, once; returns how many.

    Args:
        folder: With files of `keep_compiled`; a damaged one is left out, with a word in the log.
        cache: Where torch keeps its caches; remembers that this was done.
    """
    count = 0
    paths = [] if (cache / LOADED_NAME).exists() else sorted(folder.glob(f"*{SUFFIX}"))
    for path in paths:
        try:
            found = torch.compiler.load_cache_artifacts(gzip.decompress(path.read_bytes()))
            count += found is not None
        except Exception as error:  # what is in a pickle may raise anything
            say(f"{path.name} is not used: {type(error).__name__}: {error}")
    if paths:
        (cache / LOADED_NAME).touch()
    return count


def keep_compiled(path: Path, limit: int) -> int:
    """Write what this process compiled or found compiled; returns the file's size (bytes).

    Args:
        path: File to write, its name ending in ``SUFFIX``; 0 and no file if nothing was compiled.
        limit: Of all such files in its folder together (bytes).

    Raises:
        InputError: They would be larger.
        OSError: It cannot be written.
    """
    kept = torch.compiler.save_cache_artifacts()
    if kept is None:
        return 0
    data = gzip.compress(kept[0], compresslevel=1)
    others = sum(p.stat().st_size for p in path.parent.glob(f"*{SUFFIX}") if p != path)
    if others + len(data) > limit:
        raise InputError(
            f"{path.name} has {len(data) / 1e6:.1f} MB, others {others / 1e6:.1f}; "
            f"{limit / 1e6:.1f} come back: it stays here"
        )
    write_whole(path, data)
    return len(data)


def count_hits() -> dict[str, int]:
    """Compiled graphs that this process found in the caches, and those that it had to compile."""
    from torch._dynamo.utils import counters  # takes seconds to come

    inductor = counters["inductor"]
    return {"hits": inductor["fxgraph_cache_hit"], "misses": inductor["fxgraph_cache_miss"]}
