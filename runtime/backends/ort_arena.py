"""The memory that ONNX Runtime's sessions on a CPU share."""

from __future__ import annotations

import logging
from functools import lru_cache

logger = logging.getLogger("dvpd")

# Of the arena on a CPU. With ONNX Runtime's own settings (1 MiB, then twice as much each time; splits only
# what would waste 128 MiB) a window without steps takes 40 MiB more. What is not touched costs nothing.
FIRST_REGION_BYTES, SPLIT_BYTES = 128 << 20, 1 << 20


@lru_cache(maxsize=1)
def share_arena() -> bool:
    """Let the process's sessions take their memory from one arena; whether there is one.

    Else each session keeps what its own largest call took: the two graphs of an engine, which never
    run at the same time for one window, hold twice as much. The process keeps the arena; the next
    engine that is opened uses it again.
    """
    import onnxruntime

    try:
        kind, memory = onnxruntime.OrtAllocatorType, onnxruntime.OrtMemType
        info = onnxruntime.OrtMemoryInfo("Cpu", kind.ORT_ARENA_ALLOCATOR, 0, memory.DEFAULT)
        onnxruntime.create_and_register_allocator(
            info, onnxruntime.OrtArenaCfg(0, -1, FIRST_REGION_BYTES, SPLIT_BYTES)
        )
    except Exception as error:  # a version without it, or somebody has registered theirs
        logger.debug("no arena for all sessions: %s", error)
        return False
    return True
