"""Timing of windows: engines opened on backends, cases timed interleaved, energy under the meters."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from dvpd.benchmarks.common import machine, meters
from dvpd.runtime import Enhancer
from dvpd.runtime.arrays import FloatArray
from dvpd.runtime.backends.base import Backend, EstimateBackend, SamplerBackend
from dvpd.runtime.backends.choose import open_backend
from dvpd.runtime.errors import InputError, one_line
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.noise import frame_noise
from dvpd.runtime.spec import FRAME_MULTIPLE, MIN_FRAMES
from dvpd.runtime.tensorrt.gpus import cuda_device_count
from dvpd.runtime.window import decode, denoise, encode

SETTLE_S = 0.05  # idle threads of the engine before spin for a while and would share the cores
WARM_UP_ROUNDS = 2
ENERGY_S = 1.0  # a case runs at least so long under the meters


@dataclass(frozen=True)
class Case:
    """What is timed as one row.

    Attributes:
        engine: Name of the engine folder or checkpoint.
        backend: Backend name; "torch" for a checkpoint.
        device: Device asked for.
        frames: T.
        batch: Windows in one call.
        steps: Calls of the score network.
    """

    engine: str
    backend: str
    device: str
    frames: int
    batch: int
    steps: int


@dataclass
class Loaded:
    """An open backend, or why it is not."""

    path: Path
    backend_name: str
    device: str
    backend: Backend | None = None
    manifest: Manifest | None = None
    error: str | None = None

    @property
    def name(self) -> str:
        """Name in the report."""
        return self.path.name if self.path.is_dir() else self.path.stem

    @property
    def key(self) -> tuple[str, str, str]:
        """Engine, backend and device."""
        return self.name, self.backend_name, self.device


class StageClock:
    """A backend that notes how long each call took (s).

    One that runs the whole sampler on its device (one CUDA graph) is let do so.
    """

    def __init__(self, inner: Backend) -> None:
        """Wrap ``inner``."""
        self.inner = inner
        self.name, self.device = inner.name, inner.device
        self.predictive_s = 0.0
        self.score_s: list[float] = []
        self.sampler_s: float | None = None
        if hasattr(inner, "run_sampler"):
            self.run_sampler = self._run_sampler
        if hasattr(inner, "estimate"):
            self.estimate = self._estimate

    def _run_sampler(self, *arrays: Any, **settings: Any) -> FloatArray:
        start = time.perf_counter()
        inner = cast(SamplerBackend, self.inner)  # __init__ looked whether it is one
        result = inner.run_sampler(*arrays, **settings)
        self.sampler_s = time.perf_counter() - start
        return result

    def _estimate(self, noisy: FloatArray) -> FloatArray:
        start = time.perf_counter()
        result = cast(EstimateBackend, self.inner).estimate(noisy)  # likewise
        self.predictive_s += time.perf_counter() - start
        return result

    def predict(self, noisy: FloatArray) -> tuple[FloatArray, Sequence[Any]]:
        """See ``Backend.predict``."""
        start = time.perf_counter()
        result = self.inner.predict(noisy)
        self.predictive_s += time.perf_counter() - start
        return result

    def score(self, *arrays: Any) -> FloatArray:
        """See ``Backend.score``."""
        start = time.perf_counter()
        result = self.inner.score(*arrays)
        self.score_s.append(time.perf_counter() - start)
        return result

    def close(self) -> None:
        """Left to the owner of the inner backend."""


@dataclass
class Timing:
    """Seconds of one run: in all and by stage.

    Where the device ran the whole sampler at once, ``sampler`` is its time and the calls have none.
    """

    total: float
    stft: float
    predictive: float
    score: list[float]
    sampler: float | None
    fusion: float
    istft: float


def enhance_windows(
    backend: Backend, manifest: Manifest, wavs: FloatArray, steps: int, seed: int = 0
) -> tuple[FloatArray, Timing]:
    """Enhance a batch of windows as ``Enhancer`` does each of them, and time the stages.

    Args:
        backend: The two networks.
        manifest: Front end and sampler.
        wavs: float32 [B, L] at the model's rate, none silent.
        steps: Calls of the score network.
        seed: Seed of the noise, shared by the batch.

    Returns:
        float32 [B, L], and the seconds that it took.

    Raises:
        BackendError: A network failed.
    """
    signal = manifest.signal
    clock = StageClock(backend)
    begin = time.perf_counter()
    peaks = np.abs(wavs).max(axis=1)
    scaled = (wavs.astype(np.float64) / peaks[:, None]).astype(np.float32)
    noisy, n_frames = encode(scaled, signal)
    n_padded = noisy.shape[2]
    ready = time.perf_counter()
    schedule = manifest.sampler.steps(manifest.sde, steps)
    clean_ri = denoise(
        clock,
        manifest,
        noisy,
        lambda index: frame_noise(seed, index, 0, n_padded),
        steps=schedule,
    )
    sampled = time.perf_counter()
    rounds = manifest.sampler.phase_rounds
    decoded = decode(clean_ri, n_frames, wavs.shape[1], signal, rounds)
    out = (decoded.astype(np.float64) * peaks[:, None]).astype(np.float32)
    end = time.perf_counter()
    networks = clock.predictive_s + sum(clock.score_s) + (clock.sampler_s or 0.0)
    return out, Timing(
        total=end - begin,
        stft=ready - begin,
        predictive=clock.predictive_s,
        score=clock.score_s,
        sampler=clock.sampler_s,
        fusion=sampled - ready - networks,
        istft=end - sampled,
    )


def frames_of(window_s: float, manifest: Manifest) -> int:
    """Frames of a window of about ``window_s`` seconds that need no padding.

    Raises:
        InputError: It is shorter than the shortest window or longer than a minute.
    """
    frames = round(window_s * manifest.signal.frame_rate_hz / FRAME_MULTIPLE) * FRAME_MULTIPLE
    if not (window_s <= 60 and frames >= MIN_FRAMES):
        raise InputError(
            f"window is {window_s} s; expected {MIN_FRAMES / manifest.signal.frame_rate_hz:.3f} "
            "to 60 s"
        )
    return frames


def make_audio(manifest: Manifest, frames: int, batch: int) -> FloatArray:
    """Noise with the syllable rate of speech, [B, L]; speed does not depend on the content."""
    signal = manifest.signal
    n_samples = (frames - 1) * signal.hop_length
    rng = np.random.default_rng(0)
    t = np.arange(n_samples) / signal.sample_rate
    wavs = 0.1 * rng.standard_normal((batch, n_samples)) * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t))
    return wavs.astype(np.float32)


def variants(name: str, only_device: str | None) -> list[tuple[str, str]]:
    """Backend and device pairs to measure for a backend's name."""
    if only_device is not None:
        return [(name, only_device)]
    if name == "ort":
        if cuda_device_count() == 0:
            return [("ort", "cpu")]
        tensorrt = "TensorrtExecutionProvider" in _ort_providers()
        return [("ort", "cpu"), ("ort", "cuda")] + [("ort", "tensorrt")] * tensorrt
    return [(name, "cpu" if name == "openvino" else "auto")]


def _ort_providers() -> list[str]:
    try:
        import onnxruntime
    except ImportError:
        return []
    return list(onnxruntime.get_available_providers())


def load(path: Path, backend: str, device: str, threads: int) -> Loaded:
    """Open one engine on one backend; a failure is kept as its text."""
    loaded = Loaded(path, backend, device)
    try:
        if backend == "torch":
            loaded.manifest, loaded.backend = _open_torch(path, device, threads)
        else:
            loaded.manifest = Manifest.load(path)
            if loaded.manifest.causal is not None:
                raise InputError(
                    "a causal model, whose graphs hand on a state: benchmarks/rtf.py --stream measures it"
                )
            loaded.backend = open_backend(path, loaded.manifest, backend, device, threads)
    except Exception as error:  # engines raise types of their own: a row, never a crash
        loaded.error = one_line(error)
    return loaded


def _open_torch(path: Path, device: str, threads: int) -> tuple[Manifest, Backend]:
    from dvpd.quality.models import SharedBackend, open_model

    enhancer = open_model(path, device=device, threads=threads)
    shared = enhancer.backend
    # the wrapper remembers predictions, which would leave the predictive call out of the time
    return enhancer.manifest, shared.inner if isinstance(shared, SharedBackend) else shared


@dataclass
class Row:
    """A case and what was measured of it."""

    case: Case
    loaded: Loaded
    timings: list[Timing] = field(default_factory=list)
    error: str | None = None
    energy: dict[str, Any] | None = None


def time_interleaved(
    rows: Sequence[Row],
    *,
    min_runs: int,
    min_seconds: float,
    budget_s: float = math.inf,
    watch: machine.CpuWatch | None = None,
    progress: Callable[[int, int], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Time all rows in turn, in a new order every round, until each has enough.

    Where the budget does not suffice there are fewer rounds, never fewer rows: one round to warm up
    and one that is timed are always run.

    Args:
        rows: What to time; timings and failures are written into them.
        min_runs: Runs of each row after the warm-up.
        min_seconds: Seconds of each row after the warm-up.
        budget_s: No round is begun that would, at the pace of the last, end after so many seconds.
        watch: Looks at the clocks every round.
        progress: Called with (rows finished, rows in all) after every round.
        clock: Seconds; a test's own.
    """
    begin = clock()
    inputs: dict[tuple[int, int], FloatArray] = {}
    order = random.Random(0)
    active = [row for row in rows if row.error is None]
    warm_up, last_key = WARM_UP_ROUNDS, None
    while active:
        round_begin = clock()
        order.shuffle(active)
        for row in active:
            if row.loaded.key != last_key:
                time.sleep(SETTLE_S)
                last_key = row.loaded.key
            assert row.loaded.backend is not None
            assert row.loaded.manifest is not None
            size = (row.case.frames, row.case.batch)
            if size not in inputs:
                inputs[size] = make_audio(row.loaded.manifest, *size)
            try:
                _, timing = enhance_windows(
                    row.loaded.backend, row.loaded.manifest, inputs[size], row.case.steps
                )
            except Exception as error:  # as in `load`: the others go on
                row.error = one_line(error)
                continue
            if not warm_up:
                row.timings.append(timing)
        timed = not warm_up
        took, spent = clock() - round_begin, clock() - begin
        warm_up = max(0, warm_up - 1)
        if warm_up and spent + 2 * took > budget_s:
            warm_up = 0  # what time there is goes to a round that counts
        active = [
            row
            for row in active
            if row.error is None
            and (
                len(row.timings) < min_runs
                or sum(timing.total for timing in row.timings) < min_seconds
            )
        ]
        if watch is not None:
            watch.look()
        if progress is not None:
            progress(len(rows) - len(active), len(rows))
        if timed and spent + took > budget_s:
            break


def time_files(
    path: Path, backend: str, threads: int, seconds: float, steps: Sequence[int], runs: int
) -> dict[int, list[float]]:
    """Times of whole recordings (s) by number of steps, interleaved: of causal models, too.

    Their graphs hand on a state, so no window of theirs stands for itself.

    Args:
        path: Engine folder.
        backend: Of the runtime's.
        threads: CPU threads.
        seconds: Length of the recording, which is noise (s).
        steps: Numbers of steps.
        runs: How often each is timed.

    Raises:
        DvpdError: The engine does not load, or fails.
    """
    times: dict[int, list[float]] = {n: [] for n in steps}
    with Enhancer.open(path, backend, "cpu", threads) as enhancer:
        rate = enhancer.manifest.signal.sample_rate
        rng = np.random.default_rng(0)
        noise = (0.1 * rng.standard_normal(round(seconds * rate))).astype(np.float32)
        for i in range(runs + 1):
            for n in steps:
                took = enhancer.enhance(noise, rate, steps=n).seconds
                times[n] += [took] if i else []  # the first one warms up
    return times


def measure_energy(rows: Sequence[Row], found: Sequence[meters.Meter]) -> dict[str, float]:
    """Energy of each row, one after the other; returns the power of the idle machine (W)."""
    idle = {}
    for meter in found:
        with meters.measuring(meter) as reading:
            time.sleep(ENERGY_S)
        idle[meter.name] = reading.joules / reading.seconds
    for row in rows:
        if row.error is not None or not found:
            continue
        assert row.loaded.backend is not None
        assert row.loaded.manifest is not None
        wavs = make_audio(row.loaded.manifest, row.case.frames, row.case.batch)
        per_run = statistics.median(t.total for t in row.timings)
        runs = max(1, round(ENERGY_S / per_run))
        starts = [meter.joules() for meter in found]
        begin = time.perf_counter()
        for _ in range(runs):
            enhance_windows(row.loaded.backend, row.loaded.manifest, wavs, row.case.steps)
        seconds = time.perf_counter() - begin
        audio_s = runs * audio_s_of(row)
        row.energy = {
            meter.name: {
                "joules_per_audio_s": (meter.joules() - start) / audio_s,
                "watts": (meter.joules() - start) / seconds,
            }
            for meter, start in zip(found, starts, strict=True)
        }
    return idle


def audio_s_of(row: Row) -> float:
    """Seconds of audio in one run of a row, the batch in all."""
    assert row.loaded.manifest is not None
    signal = row.loaded.manifest.signal
    return row.case.batch * (row.case.frames - 1) * signal.hop_length / signal.sample_rate
