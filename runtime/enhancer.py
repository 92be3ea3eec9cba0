"""Waveform in, enhanced waveform out."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import FloatArray
from .audio import check_rate, probe
from .backends.base import Backend
from .backends.choose import open_backend
from .chain import (
    Chain,
    Levels,
    Settings,
    check_noise,
    find_levels,
    make_settings,
    mixed,
    n_model,
)
from .closing import Closing
from .containers import Raw
from .cut import cut
from .engines import find_engine, warn_unverified
from .errors import BackendError
from .hub import fetch
from .live import Stream
from .manifest import Manifest
from .noise import frame_noise
from .options import Tlb, as_columns, chosen_steps, noisy_share, resolve_tlb, to_float
from .phase import to_waveform
from .pipes import Sink
from .pool import Clock, StreamPool
from .recording import enhance_recording
from .results import Enhanced, EnhancedFile
from .stft import compress, decompress, stft
from .stream import MAX_BIN
from .window import denoise, pad
from .windows import Reminder, WindowPlan
from .workers import Work, Workers

__all__ = ["Enhanced", "EnhancedFile", "Enhancer", "Progress", "Tlb", "noisy_share", "resolve_tlb"]

Progress = Callable[[float], None]

_ARRAY_BLOCK = 1 << 18  # samples pushed at a time


class Enhancer(Closing):
    """A loaded model.

    Use as a context manager, or call ``close``. On a CPU windows and channels are computed side by
    side, a thread each; a recording of one window gets all threads. There, and on GPUs, callers wait.

    Attributes:
        manifest: What the engine folder says.
        backend: The engine in use.
        window_plan: How long recordings are cut.
    """

    def __init__(
        self, manifest: Manifest, backend: Backend, window_plan: WindowPlan | None = None
    ) -> None:
        """Wrap an open backend; ``Enhancer.open`` is the usual way.

        Args:
            manifest: The engine's manifest.
            backend: Its graphs, loaded.
            window_plan: How long recordings are cut; None for the defaults of ``WindowPlan``.

        Raises:
            InputError: The windows do not start on frames.
        """
        plan = window_plan or WindowPlan()
        plan.check_grid(manifest.signal)
        self.manifest, self.backend, self.window_plan = manifest, backend, plan
        self._lock, self._workers = threading.Lock(), Workers(backend)
        self._process_id = os.getpid()

    def __reduce__(self) -> str:
        """Refuse to be pickled or copied.

        Raises:
            TypeError: Always.
        """
        raise TypeError("an Enhancer holds an engine: open one in each process (Enhancer.open)")

    @classmethod
    def open(
        cls,
        folder: str | Path | None = None,
        backend: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        *,
        window_plan: WindowPlan | None = None,
        tf32: bool = False,
        low_memory: bool = False,
        with_steps: bool = False,
    ) -> Enhancer:
        """Load an engine folder.

        Args:
            folder: Folder with manifest.json and the two graphs; or a model's name, such as
                "dvpd-tiny" (the wheel carries it); or None for $DVPD_ENGINE, else dvpd-base where
                it is there, else dvpd-tiny.
            backend: A name of ``open_backend``, such as "ort" or "openvino"; or "auto".
            device: "cpu", "cuda", "cuda:N" (not openvino), "tensorrt", "tensorrt:N", "rtx", "rtx:N"
                (ort: its TensorRT and RTX providers), "gpu", "npu" (openvino) or "auto".
            threads: CPU threads; None for a sensible number, which is 1 for a causal model.
            window_plan: How long recordings are cut; None for the defaults of ``WindowPlan``.
            tf32: Whether a GPU may round float32 products to TF32; see ``open_backend``.
            low_memory: Whether a CPU computes one window at a time, on all threads.
            with_steps: Whether calls will ask for steps of a model that takes none by default: a CPU then
                loads both graphs at once, and none for calls without steps.

        Raises:
            InputError: An option is out of range.
            ManifestError: The folder is incomplete, damaged, or of another version.
            BackendError: The engine or the device is not there.
        """
        folder = find_engine(folder)
        manifest = Manifest.load(folder)
        opened = open_backend(
            folder, manifest, backend, device, threads, tf32=tf32, low_memory=low_memory,
            with_steps=with_steps,
        )  # fmt: skip
        warn_unverified(folder, manifest)
        return cls(manifest, opened, window_plan)

    @classmethod
    def from_pretrained(cls, name: str, revision: str | None = None, **options: Any) -> Enhancer:
        """Fetch an engine from the Hugging Face Hub, unless it is in the cache, and load it.

        Args:
            name: "owner/name".
            revision: Branch, tag or commit; None for "main". Only a commit stays what it is.
            **options: As of ``open``.

        Raises:
            DvpdError: See ``hub.fetch`` and ``open``.
        """
        return cls.open(fetch(name, revision), **options)

    def close(self) -> None:
        """Release the engine."""
        with self._lock:
            self.backend.close()
        self._workers.close()

    def __repr__(self) -> str:
        """Model, backend and device."""
        m, b = self.manifest, self.backend
        return f"Enhancer({m.name} {m.version} {m.precision}, {b.name} on {b.device})"

    def enhance(
        self,
        wav: NDArray[Any],
        sample_rate: int,
        *,
        seed: int = 0,
        steps: int | None = None,
        quality: str | None = None,
        alpha: float | None = None,
        tlb: Tlb = None,
        phase_rounds: int | None = None,
        noise: FloatArray | None = None,
        mix: float = 1.0,
        attenuation_limit_db: float | None = None,
        progress: Progress | None = None,
    ) -> Enhanced:
        """Enhance a waveform.

        Each channel is freed of a constant offset (if it lasts a second or more), scaled by its
        own maximum, enhanced at the model's rate and brought back; content above half that rate
        (8 kHz) is not restored. Silent channels stay exactly silent. The same seed gives the
        same waveform on the same backend. Channels share the noise, so equal channels stay equal.

        Args:
            wav: [L] or [L, n_channels]. Floats of any scale; uint8, int16 and int32 are read as
                full-scale integers and returned as floats in [-1, 1].
            sample_rate: Samples a second (Hz), 1000 to 768000.
            seed: Whole number in [0, 2^64).
            steps: Calls of the score network; 0 is the predictive branch alone, None the
                manifest's (0 in the shipped models for recordings, 1 in those for live sound). The
                start time stays t_rs, so dt = t_rs / steps.
            quality: "fast", "balanced" or "best", in place of ``steps``: 0, 1 or 3.
            alpha: Weight of the predictive magnitude in [0, 1]; None for the manifest's. Without steps
                it has no effect: where the manifest takes none, give ``steps`` as well.
            tlb: Preset name, {"skip": [[..], [..]], "backbone": [[..], [..]]} or TlbFactors; None
                for all ones. As ``alpha``, it is for steps.
            phase_rounds: See ``phase.to_waveform``; None for the manifest's. Causal models: 0.
            noise: float32 [steps, n_frames or more, 257], instead of the seed's noise, for
                comparisons; frames are absolute, at the model's rate.
            mix: Share of the enhanced waveform in the output, 0 (the input, exactly) to 1.
            attenuation_limit_db: Nothing is lowered by more than this (dB, >= 0): so much of the
                input is mixed in, sample by sample. None, or infinity, sets no limit.
            progress: Called with the fraction done, 0 to 1.

        Raises:
            InputError: The waveform or an option cannot be used; the message says why.
            BackendError: The engine failed or returned non-finite values.
        """
        started = time.perf_counter()
        rate = check_rate(sample_rate)
        columns = as_columns(wav)
        steps = chosen_steps(steps, quality)
        share = noisy_share(mix, attenuation_limit_db)
        settings = make_settings(self.manifest, seed, steps, alpha, tlb, noise, share, phase_rounds)
        if noise is not None:
            signal = self.manifest.signal
            check_noise(noise, settings, signal, n_model(len(columns), rate, self._rate))

        def blocks() -> Iterator[FloatArray]:
            for first in range(0, len(columns), _ARRAY_BLOCK):
                yield to_float(columns[first : first + _ARRAY_BLOCK])

        levels = find_levels(self, blocks(), rate, columns.shape[1], "wav")
        out, done = np.empty(columns.shape, np.float32), 0
        enhanced = self._run(blocks(), rate, levels, settings, len(columns), progress)
        for block in mixed(enhanced, blocks(), settings.noisy_share):
            out[done : done + len(block)] = block
            done += len(block)
        return Enhanced(
            wav=out.reshape(wav.shape),
            sample_rate=rate,
            nfe=1 + len(settings.steps),
            seconds=time.perf_counter() - started,
            noisy=wav,
        )

    def enhance_file(
        self,
        source: str | Path,
        target: str | Path | Sink,
        *,
        seed: int = 0,
        steps: int | None = None,
        quality: str | None = None,
        alpha: float | None = None,
        tlb: Tlb = None,
        phase_rounds: int | None = None,
        mix: float = 1.0,
        attenuation_limit_db: float | None = None,
        overwrite: bool = False,
        salvage: bool = False,
        raw: Raw | None = None,
        part: tuple[float, float | None] | None = None,
        progress: Progress | None = None,
    ) -> EnhancedFile:
        """Enhance a recording on disk; memory does not grow with its length.

        Rate, channels, length, alignment and, where the container has it, the encoding and the tags
        come back as they were. The output appears whole or not at all.

        Args:
            source: WAV, FLAC, OGG or anything else that libsndfile reads; with PyAV also m4a,
                webm, aac and more.
            target: .wav, .flac, .ogg or .opus; not the source, whose folder exists. "-": standard
                output, as WAV, or without a header if ``raw`` is given; so, too, anything with a
                ``write`` that takes bytes and returns how many, while they are computed.
            seed: See ``enhance``.
            steps: See ``enhance``.
            quality: See ``enhance``.
            alpha: See ``enhance``.
            tlb: See ``enhance``.
            phase_rounds: See ``enhance``.
            mix: See ``enhance``.
            attenuation_limit_db: See ``enhance``.
            overwrite: Whether a file that is there may be replaced.
            salvage: Whether a damaged recording is read as far as it goes; see ``gaps``.
            raw: How the source's samples are coded if it has no header (``pipes.parse_raw``).
            part: Where to begin and how much to take (s; None: to its end); None for all of it.
            progress: Called with the fraction done, 0 to 1.

        Raises:
            InputError: A file or an option cannot be used; the message says why.
            BackendError: The engine failed or returned non-finite values; nothing is written.
        """
        started = time.perf_counter()
        steps = chosen_steps(steps, quality)
        share = noisy_share(mix, attenuation_limit_db)
        settings = make_settings(self.manifest, seed, steps, alpha, tlb, None, share, phase_rounds)
        info = cut(probe(source, raw=raw, salvage=salvage), part)
        return enhance_recording(
            self,
            info,
            target,
            settings,
            started=started,
            raw=raw,
            overwrite=overwrite,
            progress=progress,
        )

    def stream(
        self,
        sample_rate: int,
        channels: int = 1,
        *,
        seed: int = 0,
        steps: int | None = None,
        quality: str | None = None,
        alpha: float | None = None,
        tlb: Tlb = None,
        mix: float = 1.0,
        attenuation_limit_db: float | None = None,
        adapt: bool = True,
        clock: Clock = time.perf_counter,
    ) -> Stream:
        """Begin a signal that comes in blocks of any size.

        What comes back is late by exactly ``latency_samples``: with a causal model 56 ms, 32 ms for
        each block of look-ahead and up to 8 ms for another rate than the model's; with the others a
        window (``window_plan``), 8.2 s. Levels are absolute: full scale is 1.

        Args:
            sample_rate: Samples a second (Hz), 8000 to 192000.
            channels: 1 to 64; they share the noise.
            seed: See ``enhance``.
            steps: Calls of the score network for a block, at most; see ``enhance``.
            quality: See ``enhance``.
            alpha: See ``enhance``.
            tlb: See ``enhance``.
            mix: See ``enhance``.
            attenuation_limit_db: See ``enhance``.
            adapt: Whether fewer steps are taken while computing falls behind: one, then none.
            clock: Seconds, by which that is judged.

        Raises:
            InputError: An option is out of range.
        """
        steps = chosen_steps(steps, quality)
        pool = self.stream_pool(steps=steps, alpha=alpha, tlb=tlb, adapt=adapt, clock=clock)
        return pool.open(
            sample_rate, channels, seed=seed, mix=mix, attenuation_limit_db=attenuation_limit_db
        )

    def stream_pool(
        self,
        *,
        steps: int | None = None,
        quality: str | None = None,
        alpha: float | None = None,
        tlb: Tlb = None,
        adapt: bool = True,
        max_batch: int = 64,
        clock: Clock = time.perf_counter,
    ) -> StreamPool:
        """Make a pool of streams whose blocks are computed together; ``open`` adds one.

        Args:
            steps: See ``stream``.
            quality: See ``enhance``.
            alpha: See ``enhance``.
            tlb: See ``enhance``.
            adapt: See ``stream``; the streams of a pool take as many steps.
            max_batch: Channels computed at a time, at most.
            clock: See ``stream``.

        Raises:
            InputError: An option is out of range.
        """
        steps = chosen_steps(steps, quality)
        settings = make_settings(self.manifest, 0, steps, alpha, tlb)
        return StreamPool(self, settings, adapt=adapt, max_batch=max_batch, clock=clock)

    @property
    def _rate(self) -> int:
        return self.manifest.signal.sample_rate

    def _run(
        self,
        blocks: Iterable[FloatArray],
        rate: int,
        levels: Levels,
        settings: Settings,
        n_samples: int,
        progress: Progress | None,
    ) -> Iterator[FloatArray]:
        """Second pass: yield enhanced blocks, n_samples in all."""
        done = 0

        def parts(chain: Chain) -> Iterator[FloatArray]:
            for block in blocks:
                yield from chain.push(block)
            yield from chain.finish()

        with Chain(self, settings, rate, levels) as chain:
            for part in parts(chain):
                # Resampling may end a sample late; the next push or the end evens it out.
                part = part[: n_samples - done]
                done += len(part)
                yield part
                if progress is not None:
                    progress(done / n_samples)

    def _check_process(self) -> None:
        if os.getpid() != self._process_id:
            raise BackendError(
                "this Enhancer was opened by another process, and its engine does not survive "
                "a fork: open one in each process"
            )

    def _noise(self, settings: Settings, index: int, first: int, n_rows: int) -> FloatArray:
        """Noise of a draw by absolute frame, [n_rows, F]; zeros beyond the end of a given one."""
        if settings.noise is None and self.manifest.sampler.noise == 0.0:  # nothing uses it
            return np.zeros((n_rows, self.manifest.signal.n_freqs), np.float32)
        if settings.noise is None:
            return frame_noise(settings.seed, index, first, n_rows)
        given = np.zeros((n_rows, self.manifest.signal.n_freqs), np.float32)
        found = settings.noise[index, first : first + n_rows]
        given[: len(found)] = found
        return given

    def _channel_process(
        self, settings: Settings, peak: float, reminder: Reminder | None, work: Work
    ) -> Callable[[FloatArray, int], FloatArray]:
        def scaled(wav: FloatArray) -> FloatArray:
            # float64: 1 / peak overflows float32 for the faintest recordings.
            return (wav.astype(np.float64) / peak).astype(np.float32)

        before = None
        if reminder is not None and peak:  # a silent channel has nothing to be reminded of
            before = replace(reminder, wav=scaled(reminder.wav))

        def process(wav: FloatArray, first_frame: int) -> FloatArray:
            # Most engines hold one request, and features between their two graphs.
            with work.turns or nullcontext():
                out = self._enhance_window(scaled(wav), first_frame, settings, before, work)
            return (out.astype(np.float64) * peak).astype(np.float32)

        return process

    def _enhance_window(
        self,
        wav: FloatArray,
        first_frame: int,
        settings: Settings,
        reminder: Reminder | None,
        work: Work | None = None,
    ) -> FloatArray:
        """Enhance one window, [L] scaled to at most 1, whose first frame is ``first_frame``.

        The networks are given the reminder's frames beside those of the window, so that no frame
        holds some of both: before it, or after the recording's first, where what is nearest to the
        reminder is thrown away.
        """
        signal = self.manifest.signal
        features = compress(stft(wav, signal), signal)  # [3, T, F]
        n_frames, own = features.shape[1], 0
        parts, places = [features], [(first_frame, n_frames)]
        if reminder is not None:
            count = reminder.wav.size // signal.hop_length
            where, own = (0, count) if first_frame else (1, 0)
            parts.insert(where, compress(stft(reminder.wav, signal)[:count], signal))
            places.insert(where, (reminder.first_frame, count))
        shown = np.concatenate(parts, axis=1)[None]
        noisy = pad(shown)
        first, count = places.pop()
        places.append((first, count + noisy.shape[2] - shown.shape[2]))

        def draw(index: int) -> FloatArray:
            if work is not None:
                work.check()
            return np.concatenate([self._noise(settings, index, *place) for place in places])

        clean_ri = denoise(
            self.backend if work is None else work.backend,
            self.manifest,
            noisy,
            draw,
            steps=settings.steps,
            alpha=settings.alpha,
            tlb=settings.tlb,
        )
        spec = decompress(clean_ri[0, :, own : own + n_frames], signal)
        # Finite before the power 1 / p, yet beyond it: no speech scaled to 1 comes near.
        if not np.abs(spec).max() <= MAX_BIN:
            raise BackendError(
                f"backend {self.backend.name} returned values beyond any signal near second "
                f"{first_frame / signal.frame_rate_hz:.1f}; nothing was written: try another "
                "backend or the fp32 engine, and report the recording"
            )
        return to_waveform(spec, wav.size, signal, settings.phase_rounds)
