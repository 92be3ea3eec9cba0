"""Waveform in, enhanced waveform out."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from . import display
from .arrays import FloatArray
from .audio import (
    MAX_CHANNELS,
    OUTPUT_FORMATS,
    AudioInfo,
    AudioWriter,
    Resampler,
    check_finite,
    check_paths,
    check_rate,
    check_suffix,
    collect_extras,
    output_format,
    probe,
    read_blocks,
)
from .backends.base import Backend, StreamBackend
from .backends.choose import open_backend
from .containers import Raw
from .engines import find_engine, warn_unverified
from .errors import BackendError, InputError
from .manifest import Manifest
from .noise import check_seed, frame_noise
from .pipes import PIPE, PipeWriter
from .schedule import SamplerStep, initial_state, sampler_steps
from .spec import TlbFactors
from .stft import compress, decompress, istft, stft
from .stream import MAX_BIN, BlockSampler, CausalStream
from .window import denoise, pad
from .windows import LoudestStretch, Reminder, WindowedStream, WindowPlan

Tlb = str | Mapping[str, Any] | TlbFactors | None
Progress = Callable[[float], None]

MAX_STEPS = 1000
MAX_AMPLITUDE = 1e30  # with MAX_BIN it stays below float32's largest number
_ARRAY_BLOCK = 1 << 18  # samples pushed at a time
OFFSET_SHARE = 0.02  # of the peak: a mean above it is an offset ...
OFFSET_FROM_S = 1.0  # ... in a recording that is not too short to tell

# Integer dtype -> (zero, full scale).
_INTEGERS = {"uint8": (128, 128.0), "int16": (0, 32768.0), "int32": (0, 2147483648.0)}


@dataclass(frozen=True, repr=False, eq=False)
class Enhanced:
    """An enhanced waveform; in a notebook it shows itself: players and spectrograms.

    Attributes:
        wav: float32, the input's shape.
        sample_rate: The input's rate (Hz).
        nfe: Network calls for each window of audio: 1 + steps.
        seconds: Wall-clock time of the enhancement (s).
        noisy: The input as it was given (not a copy), for comparisons; None if it is not known.
    """

    wav: FloatArray
    sample_rate: int
    nfe: int
    seconds: float
    noisy: NDArray[Any] | None = None

    @property
    def duration_s(self) -> float:
        """Length of the waveform (s)."""
        return len(self.wav) / self.sample_rate

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of work for a second of audio (all channels)."""
        return self.seconds / self.duration_s

    def save(self, path: str | Path) -> Path:
        """Write the waveform; the file appears whole or not at all, and replaces an older one.

        Args:
            path: .wav (32-bit float: nothing is lost), .flac (24 bits), .ogg or .opus.

        Returns:
            The path.

        Raises:
            InputError: Unknown suffix, no such folder, a full disk, or a rate or number of channels
                that the format does not hold.
        """
        return display.save(self.wav, self.sample_rate, path)

    def __repr__(self) -> str:
        """One line without the samples."""
        channels = self.wav.shape[1] if self.wav.ndim == 2 else 1
        return (
            f"Enhanced({self.duration_s:.2f} s, {self.sample_rate} Hz, {channels} channel"
            f"{'s' * (channels > 1)}, {self.nfe} network call{'s' * (self.nfe > 1)}, "
            f"rtf {self.rtf:.3f})"
        )

    def _repr_html_(self) -> str:
        wavs: dict[str, FloatArray] = {}
        if self.noisy is not None:
            wavs["noisy"] = _to_float(self.noisy[: display.SHOWN_S * self.sample_rate])
        return display.page(repr(self), wavs | {"enhanced": self.wav}, self.sample_rate)


@dataclass(frozen=True)
class EnhancedFile:
    """What happened to a file.

    Attributes:
        path: The file written.
        sample_rate: Its rate (Hz), that of the input.
        n_channels: Its channels, those of the input.
        n_samples: Its samples in each channel, those of the input.
        container: Its container, such as "WAV".
        subtype: Its encoding, such as "PCM_16".
        n_clipped: Values limited to full scale, as the encoding holds no more.
        nfe: Network calls for each window of audio: 1 + steps.
        seconds: Wall-clock time, reading and writing included (s).
        gaps: What is missing of a damaged recording that was salvaged, in words.
        left: What the output cannot carry of the input's tags and marks, in words.
    """

    path: Path
    sample_rate: int
    n_channels: int
    n_samples: int
    container: str
    subtype: str
    n_clipped: int
    nfe: int
    seconds: float
    gaps: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float:
        """Length of the recording (s)."""
        return self.n_samples / self.sample_rate

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of work for a second of audio (all channels)."""
        return self.seconds / self.duration_s


@dataclass(frozen=True)
class _Settings:
    seed: int
    steps: tuple[SamplerStep, ...]
    alpha: float
    tlb: TlbFactors
    noise: FloatArray | None
    noisy_share: float  # of the recording itself in the output


@dataclass(frozen=True)
class _Levels:
    """What the first pass finds of each channel.

    Attributes:
        offsets: Constant to be taken away, [n_channels]; 0 where there is none to speak of.
        peaks: Largest magnitude at the model's rate without it, [n_channels].
        reminders: What stands beside the windows, [n_channels]; None where one window holds all.
    """

    offsets: FloatArray
    peaks: FloatArray
    reminders: tuple[Reminder | None, ...]


class _Chain:
    """Rate in -> model rate -> windows -> rate in, for all channels of one recording."""

    def __init__(self, enhancer: Enhancer, settings: _Settings, rate: int, levels: _Levels):
        signal = enhancer.manifest.signal
        n_channels = len(levels.peaks)
        self._offsets = levels.offsets
        self._rates = (rate, signal.sample_rate)
        self._down = Resampler(rate, signal.sample_rate, n_channels)
        self._up = Resampler(signal.sample_rate, rate, n_channels)
        self._streams = [
            enhancer._channel_stream(settings, float(peak), reminder)
            for peak, reminder in zip(levels.peaks, levels.reminders, strict=True)
        ]
        self._n_in = 0

    def push(self, block: FloatArray) -> Iterator[FloatArray]:
        self._n_in += len(block)
        # Before resampling, which rings where an offset begins and ends.
        yield from self._windows(self._down.push(block - self._offsets))

    def finish(self) -> Iterator[FloatArray]:
        yield from self._windows(self._down.finish(_n_model(self._n_in, *self._rates)))
        for pieces in zip(*(stream.finish() for stream in self._streams), strict=True):
            yield self._up.push(np.stack(pieces, axis=1))
        yield self._up.finish(self._n_in)

    def _windows(self, block: FloatArray) -> Iterator[FloatArray]:
        if not len(block):
            return
        pushed = (s.push(block[:, c].copy()) for c, s in enumerate(self._streams))
        for pieces in zip(*pushed, strict=True):
            yield self._up.push(np.stack(pieces, axis=1))


def _n_model(n_in: int, rate_in: int, rate_model: int) -> int:
    """Samples at the model's rate that cover n_in samples; at least one."""
    return -(-n_in * rate_model // rate_in)


class Enhancer:
    """A loaded model.

    Use as a context manager, or call ``close``. Threads that share one take turns, window by
    window; another process opens its own.

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
            window_plan: How long recordings are cut; None for windows of 8.2 s, of which 1 s is the
                recording's loudest.

        Raises:
            InputError: The windows do not start on frames.
        """
        plan = window_plan or WindowPlan()
        plan.check_grid(manifest.signal)
        self.manifest = manifest
        self.backend = backend
        self.window_plan = plan
        self._lock = threading.Lock()
        self._process_id = os.getpid()

    def __reduce__(self) -> str:
        """Refuse to be pickled or copied.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "an Enhancer holds a loaded engine, which can neither be copied nor sent to another "
            "process: open one in each process (Enhancer.open)"
        )

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
    ) -> Enhancer:
        """Load an engine folder.

        Args:
            folder: Folder with manifest.json and the two graphs; or a model's name, such as
                "dvpd-tiny" (the wheel carries it); or None for $DVPD_ENGINE, else dvpd-base where
                it is there, else dvpd-tiny.
            backend: "ort", "openvino", "tensorrt", "tensorrt-rtx", "torch" or "auto".
            device: "cpu", "cuda", "cuda:N" (not openvino), "tensorrt", "tensorrt:N" (ort: its
                TensorRT provider), "gpu", "npu" (openvino) or "auto".
            threads: CPU threads; None for a sensible number.
            window_plan: How long recordings are cut; None for windows of 8.2 s, of which 1 s is the
                recording's loudest.
            tf32: Whether a GPU may round float32 products to TF32; see ``open_backend``.

        Raises:
            InputError: An option is out of range.
            ManifestError: The folder is incomplete, damaged, or of another version.
            BackendError: The engine or the device is not there.
        """
        folder = find_engine(folder)
        manifest = Manifest.load(folder)
        opened = open_backend(folder, manifest, backend, device, threads, tf32=tf32)
        warn_unverified(folder, manifest)
        return cls(manifest, opened, window_plan)

    def close(self) -> None:
        """Release the engine."""
        with self._lock:
            self.backend.close()

    def __repr__(self) -> str:
        """Model, backend and device."""
        m, b = self.manifest, self.backend
        return f"Enhancer({m.name} {m.version} {m.precision}, {b.name} on {b.device})"

    def __enter__(self) -> Enhancer:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release the engine."""
        self.close()

    def enhance(
        self,
        wav: NDArray[Any],
        sample_rate: int,
        *,
        seed: int = 0,
        steps: int | None = None,
        alpha: float | None = None,
        tlb: Tlb = None,
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
                manifest's default (3). The start time stays t_rs, so dt = t_rs / steps.
            alpha: Weight of the predictive magnitude in [0, 1]; None for the manifest's.
            tlb: Preset name, {"skip": [[..], [..]], "backbone": [[..], [..]]} or TlbFactors; None
                for all ones.
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
        columns = _as_columns(wav)
        settings = self._settings(seed, steps, alpha, tlb, noise, mix, attenuation_limit_db)
        if noise is not None:
            self._check_noise(noise, settings, _n_model(len(columns), rate, self._rate))

        def blocks() -> Iterator[FloatArray]:
            for first in range(0, len(columns), _ARRAY_BLOCK):
                yield _to_float(columns[first : first + _ARRAY_BLOCK])

        levels = self._levels(blocks(), rate, columns.shape[1], "wav")
        out = np.empty(columns.shape, np.float32)
        done = 0
        enhanced = self._run(blocks(), rate, levels, settings, len(columns), progress)
        for block in _mixed(enhanced, blocks(), settings.noisy_share):
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
        target: str | Path,
        *,
        seed: int = 0,
        steps: int | None = None,
        alpha: float | None = None,
        tlb: Tlb = None,
        mix: float = 1.0,
        attenuation_limit_db: float | None = None,
        overwrite: bool = False,
        salvage: bool = False,
        raw: Raw | None = None,
        progress: Progress | None = None,
    ) -> EnhancedFile:
        """Enhance a recording on disk; memory does not grow with its length.

        Rate, channels, length, alignment and, where the container has it, the encoding and the tags
        come back as they were. The output appears whole or not at all.

        Args:
            source: WAV, FLAC, OGG or anything else that libsndfile reads; with PyAV also m4a,
                webm, aac and more.
            target: .wav, .flac, .ogg or .opus; not the source, whose folder exists. "-": standard
                output, as WAV, or without a header if ``raw`` is given.
            seed: See ``enhance``.
            steps: See ``enhance``.
            alpha: See ``enhance``.
            tlb: See ``enhance``.
            mix: See ``enhance``.
            attenuation_limit_db: See ``enhance``.
            overwrite: Whether a file that is there may be replaced.
            salvage: Whether a damaged recording is read as far as it goes; see ``gaps``.
            raw: How the source's samples are coded if it has no header (``pipes.parse_raw``).
            progress: Called with the fraction done, 0 to 1.

        Raises:
            InputError: A file or an option cannot be used; the message says why.
            BackendError: The engine failed or returned non-finite values; nothing is written.
        """
        started = time.perf_counter()
        settings = self._settings(seed, steps, alpha, tlb, None, mix, attenuation_limit_db)
        info = probe(source, raw=raw, salvage=salvage)
        rate, n_channels, n_samples = info.sample_rate, info.n_channels, info.n_samples
        writer, left = _open_output(info, target, raw, overwrite)
        with writer:
            levels = self._levels(read_blocks(info), rate, n_channels, str(info.path))
            blocks = read_blocks(info)
            enhanced = self._run(blocks, rate, levels, settings, n_samples, progress)
            for block in _mixed(enhanced, read_blocks(info), settings.noisy_share):
                writer.write(block)
            writer.commit()
        return EnhancedFile(
            path=Path(target),
            sample_rate=rate,
            n_channels=n_channels,
            n_samples=n_samples,
            container=writer.container,
            subtype=writer.subtype,
            n_clipped=writer.n_clipped,
            nfe=1 + len(settings.steps),
            seconds=time.perf_counter() - started,
            gaps=info.gaps,
            left=left,
        )

    @property
    def _rate(self) -> int:
        return self.manifest.signal.sample_rate

    def _settings(
        self,
        seed: int,
        steps: int | None,
        alpha: float | None,
        tlb: Tlb,
        noise: FloatArray | None,
        mix: float,
        attenuation_limit_db: float | None,
    ) -> _Settings:
        sampler = self.manifest.sampler
        count = sampler.n_steps if steps is None else steps
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)):
            raise InputError(f"steps is {count!r}; expected a whole number >= 0")
        if not 0 <= count <= MAX_STEPS:
            raise InputError(f"steps is {count}; expected 0 (predictive alone) to {MAX_STEPS}")
        weight = sampler.alpha if alpha is None else alpha
        if isinstance(weight, bool) or not isinstance(weight, (int, float, np.number)):
            raise InputError(f"alpha is {weight!r}; expected a number in [0, 1]")
        if not 0.0 <= float(weight) <= 1.0:
            raise InputError(f"alpha is {weight}; expected 0 (diffusion) to 1 (predictive)")
        return _Settings(
            seed=check_seed(seed),
            steps=sampler_steps(self.manifest.sde, sampler.t_rs, count) if count else (),
            alpha=float(weight),
            tlb=resolve_tlb(tlb, self.manifest.tlb_presets),
            noise=noise,
            noisy_share=noisy_share(mix, attenuation_limit_db),
        )

    def _check_noise(self, noise: object, settings: _Settings, n_samples: int) -> None:
        n_frames = self.manifest.signal.n_frames(n_samples)
        wanted = f"float32 [{len(settings.steps)}, {n_frames} or more, 257]"
        if not isinstance(noise, np.ndarray) or noise.dtype != np.float32:
            got = noise.dtype if isinstance(noise, np.ndarray) else type(noise).__name__
            raise InputError(f"noise is {got}; expected {wanted}")
        n_freqs = self.manifest.signal.n_freqs
        if (
            noise.ndim != 3
            or noise.shape[0] < len(settings.steps)
            or noise.shape[1] < n_frames
            or noise.shape[2] != n_freqs
        ):
            raise InputError(f"noise has shape {list(noise.shape)}; expected {wanted}")
        if not np.isfinite(noise).all():
            raise InputError("noise holds NaN or infinity; expected finite values")

    def _levels(
        self, blocks: Iterable[FloatArray], rate: int, n_channels: int, source: str
    ) -> _Levels:
        """First pass: offset, largest magnitude and loudest stretch at the model's rate."""
        plan, hop = self.window_plan, self.manifest.signal.hop_length
        resampler = Resampler(rate, self._rate, n_channels)
        n_remind = plan.reminder_samples
        loudest = [LoudestStretch(n_remind, hop) for _ in range(n_channels if n_remind else 0)]
        low, high = np.zeros((2, n_channels), np.float32)
        total, done = np.zeros(n_channels), 0

        def add(part: FloatArray) -> None:
            nonlocal low, high
            if len(part):
                low, high = np.minimum(low, part.min(axis=0)), np.maximum(high, part.max(axis=0))
                for channel, stretch in enumerate(loudest):
                    stretch.push(part[:, channel])

        for block in blocks:
            check_finite(block, done, source)
            done += len(block)
            total += block.sum(axis=0, dtype=np.float64)
            add(resampler.push(block))
        n_samples = _n_model(done, rate, self._rate)
        add(resampler.finish(n_samples))
        peak = np.maximum(high, -low)
        if peak.max() > MAX_AMPLITUDE:
            raise InputError(
                f"{source}: amplitude {peak.max():.3g}; expected at most {MAX_AMPLITUDE:g}: scale "
                "the recording down"
            )
        mean = (total / max(done, 1)).astype(np.float32)
        if self.manifest.causal is not None:  # it knows neither the offset nor the peak beforehand
            return _Levels(np.zeros_like(peak), peak, (None,) * n_channels)
        is_offset = (np.abs(mean) > OFFSET_SHARE * peak) & (done >= OFFSET_FROM_S * rate)
        offsets = np.where(is_offset, mean, np.float32(0.0))
        reminders: list[Reminder | None] = [None] * n_channels
        if n_samples > plan.window_samples:
            for channel, stretch in enumerate(loudest):
                if stretch.found:
                    kept = stretch.found
                    reminders[channel] = replace(kept, wav=kept.wav - offsets[channel])
        return _Levels(offsets, np.maximum(high - offsets, offsets - low), tuple(reminders))

    def _run(
        self,
        blocks: Iterable[FloatArray],
        rate: int,
        levels: _Levels,
        settings: _Settings,
        n_samples: int,
        progress: Progress | None,
    ) -> Iterator[FloatArray]:
        """Second pass: yield enhanced blocks, n_samples in all."""
        chain = _Chain(self, settings, rate, levels)
        done = 0

        def parts() -> Iterator[FloatArray]:
            for block in blocks:
                yield from chain.push(block)
            yield from chain.finish()

        for part in parts():
            # Resampling may end a sample late; the next push or the end evens it out.
            part = part[: n_samples - done]
            done += len(part)
            yield part
            if progress is not None:
                progress(done / n_samples)

    def _channel_stream(
        self, settings: _Settings, peak: float, reminder: Reminder | None
    ) -> WindowedStream | CausalStream:
        """One channel's way through the model: in windows, or for a causal one as it comes."""
        signal, causal = self.manifest.signal, self.manifest.causal
        if causal is None:
            process = self._channel_process(settings, peak, reminder)
            return WindowedStream(process, self.window_plan, signal.hop_length)
        self._check_process()

        def draw(index: int, first: int, n_frames: int) -> FloatArray:
            return self._noise(settings, index, first, n_frames)

        sampler = BlockSampler(
            cast(StreamBackend, self.backend),
            start=initial_state(self.manifest.sde, self.manifest.sampler.t_rs),
            steps=settings.steps,
            alpha=settings.alpha,
            tlb=settings.tlb,
            lookahead_frames=causal.lookahead_frames,
            lock=self._lock,
        )
        return CausalStream(sampler, draw, signal)

    def _check_process(self) -> None:
        if os.getpid() != self._process_id:
            raise BackendError(
                "this Enhancer was opened by another process, and its engine does not survive "
                "a fork: open one in each process"
            )

    def _noise(self, settings: _Settings, index: int, first: int, n_rows: int) -> FloatArray:
        """Noise of a draw by absolute frame, [n_rows, F]; zeros beyond the end of a given one."""
        if settings.noise is None:
            return frame_noise(settings.seed, index, first, n_rows)
        given = np.zeros((n_rows, self.manifest.signal.n_freqs), np.float32)
        found = settings.noise[index, first : first + n_rows]
        given[: len(found)] = found
        return given

    def _channel_process(
        self, settings: _Settings, peak: float, reminder: Reminder | None
    ) -> Callable[[FloatArray, int], FloatArray]:
        def scaled(wav: FloatArray) -> FloatArray:
            # float64: 1 / peak overflows float32 for the faintest recordings.
            return (wav.astype(np.float64) / peak).astype(np.float32)

        before = None if reminder is None else replace(reminder, wav=scaled(reminder.wav))

        def process(wav: FloatArray, first_frame: int) -> FloatArray:
            self._check_process()
            with self._lock:  # engines hold one request, and features between their two graphs
                out = self._enhance_window(scaled(wav), first_frame, settings, before)
            return (out.astype(np.float64) * peak).astype(np.float32)

        return process

    def _enhance_window(
        self, wav: FloatArray, first_frame: int, settings: _Settings, reminder: Reminder | None
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
            return np.concatenate([self._noise(settings, index, *place) for place in places])

        clean_ri = denoise(
            self.backend,
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
        return istft(spec, wav.size, signal)


def noisy_share(mix: float, attenuation_limit_db: float | None) -> float:
    """Share of the input in the output, 0 to 1.

    What the network removes altogether keeps this share of its amplitude, so that
    -20 log10(share) dB is the most by which it is lowered; what the network keeps is lowered by less.

    Args:
        mix: Share of the enhanced waveform that is asked for, 0 to 1.
        attenuation_limit_db: Limit (dB), >= 0; None for none.

    Raises:
        InputError: A value is out of range.
    """
    for name, value in (("mix", mix), ("attenuation_limit_db", attenuation_limit_db)):
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number, type(None))):
            raise InputError(f"{name} is {value!r}; expected a number")
    if mix is None or not 0.0 <= mix <= 1.0:
        raise InputError(f"mix is {mix}; expected 0 (the input) to 1 (enhanced)")
    if attenuation_limit_db is None:
        return 1.0 - float(mix)
    if not attenuation_limit_db >= 0.0:
        raise InputError(f"attenuation_limit_db is {attenuation_limit_db}; expected dB, >= 0")
    return float(max(1.0 - mix, 10.0 ** (-attenuation_limit_db / 20.0)))


def _mixed(
    enhanced: Iterable[FloatArray], noisy: Iterable[FloatArray], share: float
) -> Iterator[FloatArray]:
    """Mix two equally long streams of blocks [n, n_channels]; their blocks may be cut anywhere."""
    if share == 0.0:
        yield from enhanced
        return
    source, rest = iter(noisy), np.zeros((0, 0), np.float32)
    for block in enhanced:
        pieces, missing = [], len(block)
        while missing:
            if not len(rest):
                rest = next(source)
            pieces.append(rest[:missing])
            missing -= len(pieces[-1])
            rest = rest[len(pieces[-1]) :]
        if not pieces:
            continue
        dry = np.concatenate(pieces)
        yield dry if share == 1.0 else block * np.float32(1.0 - share) + dry * np.float32(share)


def _open_output(
    info: AudioInfo, target: str | Path, raw: Raw | None, overwrite: bool
) -> tuple[AudioWriter | PipeWriter, tuple[str, ...]]:
    """The output of a recording, and what of its extras it cannot carry."""
    if str(target) == PIPE:
        return PipeWriter(info, raw), ()
    check_suffix(Path(target))
    real = check_paths(info.path, Path(target), overwrite=overwrite)
    extras = collect_extras(info, OUTPUT_FORMATS[real.suffix.lower()][0])
    container, subtype = output_format(info, real, extras.n_bytes)
    writer = AudioWriter(
        real,
        info.sample_rate,
        info.n_channels,
        container,
        subtype,
        extras=extras,
        overwrite=overwrite,
    )
    return writer, extras.left


def resolve_tlb(tlb: Tlb, presets: Mapping[str, TlbFactors]) -> TlbFactors:
    """Turn a preset name, JSON text, mapping or TlbFactors into TlbFactors.

    Args:
        tlb: What the user gave; None for all ones.
        presets: Known names.

    Raises:
        InputError: Unknown name, or not 2 x 2 finite numbers under "skip" and "backbone".
    """
    if tlb is None:
        return TlbFactors()
    if isinstance(tlb, TlbFactors):
        return tlb
    if isinstance(tlb, str):
        if tlb in presets:
            return presets[tlb]
        if not tlb.lstrip().startswith("{"):
            raise InputError(
                f"tlb is {tlb!r}; expected one of {', '.join(presets)}, or JSON "
                '{"skip": [[1, 1], [1, 1]], "backbone": [[1, 1], [1, 1]]}'
            )
        try:
            tlb = json.loads(tlb)
        except (ValueError, RecursionError) as error:
            raise InputError(f"tlb is not valid JSON ({error})") from None
    return TlbFactors.from_mapping(tlb)  # type: ignore[arg-type]  # refuses what is no mapping


def _as_columns(wav: object) -> NDArray[Any]:
    """Check a waveform's type and shape; [L, n_channels], integers still as they are."""
    if not isinstance(wav, np.ndarray):
        raise InputError(
            f"wav is {type(wav).__name__}; expected a NumPy array [L] or [L, channels]"
        )
    if wav.ndim not in (1, 2):
        raise InputError(f"wav has shape {list(wav.shape)}; expected [L] or [L, channels]")
    columns: NDArray[Any] = wav.reshape(len(wav), -1) if wav.size else wav
    if not wav.size:
        raise InputError(f"wav is empty, shape {list(wav.shape)}; expected at least one sample")
    if columns.shape[1] > MAX_CHANNELS:
        raise InputError(
            f"wav has shape {list(wav.shape)}: {columns.shape[1]} channels; expected [L, channels] "
            f"with at most {MAX_CHANNELS}: transpose it if channels come first"
        )
    if wav.dtype.kind != "f" and wav.dtype.name not in _INTEGERS:
        raise InputError(
            f"wav has dtype {wav.dtype}; expected a float type, or {', '.join(_INTEGERS)}"
        )
    return columns


def _to_float(block: NDArray[Any]) -> FloatArray:
    """Float32 in [-1, 1] for integers; floats beyond float32 become infinite and are refused."""
    if block.dtype.name in _INTEGERS:
        zero, full_scale = _INTEGERS[block.dtype.name]
        return ((block.astype(np.float64) - zero) / full_scale).astype(np.float32)
    with np.errstate(over="ignore"):
        return block.astype(np.float32)
