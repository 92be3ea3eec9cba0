"""Where others' frameworks take a noise filter: ``livekit``, ``pipecat``; they import no PyTorch.

Each needs a ``StreamWorker``, which holds one engine for all rooms of a process.
"""

from ..runtime.stream_worker import StreamWorker

__all__ = ["StreamWorker"]
