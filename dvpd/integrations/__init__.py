"""Where others' frameworks take a noise filter: ``livekit``, ``pipecat``; they import no PyTorch.

Each needs a ``StreamWorker``, which holds one engine for all rooms of a process, or
``StreamWorkers``, which hold one for each core.
"""

from ..runtime.stream_worker import StreamWorker
from ..runtime.stream_workers import StreamWorkers

__all__ = ["StreamWorker", "StreamWorkers"]
