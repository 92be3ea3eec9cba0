"""Rows of the short GPU check for causal engines: live streams against the CPU's, and a block's time."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dvpd.benchmarks.common import gpu_work, reference
from dvpd.benchmarks.common.gpu_work import heard_warnings
from dvpd.export.figures import snr_db
from dvpd.runtime.arrays import FloatArray
from dvpd.runtime.errors import BackendError
from dvpd.runtime.manifest import Manifest
from dvpd.torch_backend import TorchBackend, prepare

if TYPE_CHECKING:
    from dvpd.benchmarks.gpu_quick import Check
    from dvpd.runtime.live import Stream

N_STREAMS = (1, 8, 64)
PARITY_BLOCKS = 32  # about a second
BLOCK_S = 1.0  # of one measurement


def is_causal(folder: Path) -> bool:
    """Whether an engine folder holds a causal model; False where its manifest cannot be read."""
    try:
        return Manifest.load(folder).causal is not None
    except Exception:  # the row that loads it says why
        return False


class LiveSubject:
    """A causal engine folder on one backend.

    Attributes:
        backend: Once there.
        about: What names it in a row.
    """

    def __init__(self, folder: Path, name: str, device: str) -> None:
        """Read the manifest; ``parity`` loads the rest.

        Args:
            folder: The engine folder.
            name: Backend.
            device: Such as "cuda".
        """
        self.folder, self.name, self.device = folder, name, device
        self.manifest = Manifest.load(folder)
        self.backend: Any = None
        self.about: dict[str, Any] = {
            "engine": folder.name,
            "precision": self.manifest.precision,
            "backend": name,
        }
        wav = reference.clip_window(self.manifest)
        causal = self.manifest.causal
        assert causal is not None  # see is_causal
        self._block = causal.block_frames * self.manifest.signal.hop_length
        self._blocks = wav[: len(wav) // self._block * self._block].reshape(-1, self._block)
        self.block_s = self._block / self.manifest.signal.sample_rate

    def streamed(self, backend: Any, n_blocks: int) -> FloatArray:
        """What one stream gives for the first blocks of the clip, float32 [n]."""
        from dvpd.runtime.enhancer import Enhancer  # needs soundfile, which such a machine may lack

        stream = Enhancer(self.manifest, backend).stream(
            self.manifest.signal.sample_rate, adapt=False
        )
        return np.concatenate([stream.process(block) for block in self._blocks[:n_blocks]])

    def parity(self, limit: float) -> dict[str, Any]:
        """Distance of a stream from that of the CPU in float32."""
        model, n_blocks = gpu_work.read_model(self.folder)[1], PARITY_BLOCKS
        if self.name == "torch":
            self.backend = TorchBackend(prepare(model, self.manifest.precision), self.device)
        else:
            from dvpd.runtime.backends.choose import open_backend

            self.backend = open_backend(self.folder, self.manifest, self.name, self.device)
        cpu = TorchBackend(prepare(model), "cpu")
        wanted = self.streamed(cpu, n_blocks)
        cpu.close()
        snr = snr_db(wanted, self.streamed(self.backend, n_blocks))
        return {"snr_db": snr, "limit_db": limit, "met": snr >= limit, "blocks": n_blocks}

    def block(self, check: Check, mode: str, n_streams: int) -> dict[str, Any]:
        """Time from the blocks of all streams to what they give (ms), computed as one batch.

        Raises:
            BackendError: The blocks could not be captured.
        """
        from dvpd.runtime.enhancer import Enhancer

        self.backend.capture = mode == "captured"
        pool = Enhancer(self.manifest, self.backend).stream_pool(adapt=False)
        streams = [pool.open(self.manifest.signal.sample_rate, seed=i) for i in range(n_streams)]
        places = itertools.cycle(range(len(self._blocks)))

        def work() -> None:
            block = self._blocks[next(places)]
            given: dict[Stream, FloatArray] = dict.fromkeys(streams, block)
            for found in pool.process(given).values():
                if isinstance(found, Exception):
                    raise found

        with heard_warnings() as said:
            row = check.repeat(work, BLOCK_S)
        pool.close()
        if failed := [text for text in said if "cannot be captured" in text]:
            raise BackendError(failed[0])
        return row | {"block_ms": 1e3 * self.block_s, "rtf": row["p50_ms"] / 1e3 / self.block_s}


def measure(
    check: Check, found: dict[str, Any], folders: list[Path], names: list[str], device: str,
    limits: dict[str, float],
) -> None:  # fmt: skip
    """The rows of all causal engines.

    Args:
        check: Where they go.
        found: Into it goes what the limits are compared with.
        folders: Engine folders.
        names: Backends.
        device: Such as "cuda".
        limits: Least SNR by precision (dB).
    """
    for folder in folders:
        for name in names:
            subject = LiveSubject(folder, name, device)
            limit = limits[subject.manifest.precision]
            row = check.row("parity", subject.about, partial(subject.parity, limit))
            found[f"parity {folder.name} {name}"] = row
            found[f"precision {folder.name} {name}"] = subject.manifest.precision
            if subject.backend is None:
                continue
            for mode in ("eager", "captured") if device != "cpu" else ("eager",):
                for n in N_STREAMS if mode == "captured" else N_STREAMS[:1]:
                    check.row(
                        "block", subject.about | {"mode": mode, "streams": n},
                        partial(subject.block, check, mode, n),
                    )  # fmt: skip
