"""Rooms: measured, image-source (pyroomacoustics), Freeverb-like and statistical responses.

Every response knows the place of its direct path, so that reverberant speech stays where the dry
speech is.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import math
import multiprocessing
import os
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import scipy.fft
from numpy.random import Generator
from numpy.typing import NDArray

from ..runtime.errors import InputError
from ..runtime.files import WholeFile
from ..runtime.spec import SAMPLE_RATE
from .degrade import Wav, db_to_gain

BANK_FORMAT = 1
SPEED_OF_SOUND = 343.0  # m/s, pyroomacoustics' own

_RIR_MAX = SAMPLE_RATE  # a second of a room is enough for a crop of two
_DIRECT = 40  # samples around the strongest one that count as the direct path (2.5 ms)
_ONSET_DB = -10.0  # the direct path is the first arrival this close to the strongest
_ONSET_SPAN = 16  # its own strongest sample lies within a millisecond of its rise
_IMAGE_ORDER = 20  # reflections that are traced one by one; a diffuse tail follows
_FRACTION = 40  # pyroomacoustics puts everything this many samples later
_WALL_M = 0.5  # nobody stands closer to a wall
_CHUNK = 16  # rooms in a file of the bank

logger = logging.getLogger("dvpd")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Room:
    """A room impulse response with its direct path found.

    Attributes:
        response: float32 [L], scaled so that the direct path has unit energy.
        peak: Index of the direct path.
    """

    response: Wav
    peak: int


def find_direct(response: NDArray[np.floating]) -> int:
    """Index of the direct path: the first strong arrival, which need not be the strongest.

    Args:
        response: [L].

    Raises:
        InputError: The response is silent.
    """
    size = np.abs(response)
    strongest = float(size.max(initial=0.0))
    if not strongest > 0.0:
        raise InputError("a room response is silent")
    rise = int(np.argmax(size >= strongest * db_to_gain(_ONSET_DB)))
    return rise + int(np.argmax(size[rise : rise + _ONSET_SPAN]))


def as_room(response: NDArray[np.floating]) -> Room:
    """Find the direct path, cut to a second, scale, make it positive.

    Args:
        response: [L] at 16 kHz.

    Raises:
        InputError: The response is silent.
    """
    peak = find_direct(response)
    start = max(peak - _DIRECT, 0)
    cut = response[start : start + _RIR_MAX]
    peak -= start
    direct = cut[max(peak - _DIRECT, 0) : peak + _DIRECT]
    scale = np.sign(cut[peak]) / np.sqrt(np.sum(direct**2))
    return Room((cut * scale).astype(np.float32), peak)


def measure_t60(response: NDArray[np.floating], low_db: float = -25.0) -> float:
    """Reverberation time (s) from Schroeder's backward integration, fitted from -5 dB down.

    Args:
        response: [L] at 16 kHz.
        low_db: Where the fit ends.

    Raises:
        InputError: The decay does not get that far within the response.
    """
    energy = np.cumsum(response[::-1].astype(np.float64) ** 2)[::-1]
    level = 10.0 * np.log10(np.maximum(energy / max(energy[0], 1e-30), 1e-30))
    first, last = (int(np.argmax(level <= db)) for db in (-5.0, low_db))
    if last <= first + 2:
        raise InputError(f"a room response has no decay from -5 to {low_db:g} dB")
    slope = np.polyfit(np.arange(first, last) / SAMPLE_RATE, level[first:last], 1)[0]
    return float(-60.0 / slope)


def _decay(t60_s: float, count: int) -> Wav:
    """Amplitude that falls by 60 dB in ``t60_s``."""
    rate = np.float32(-math.log(1000.0) / (t60_s * SAMPLE_RATE))
    out: Wav = np.exp(rate * np.arange(count, dtype=np.float32))
    return out


def statistical_room(rng: Generator, t60_s: float, drr_db: float) -> Room:
    """A simple synthetic room: direct path, a dozen early reflections, a decaying diffuse tail.

    The tail starts at the mixing time and decays by 60 dB in ``t60_s``, faster at high
    frequencies.

    Args:
        rng: Source of randomness.
        t60_s: Reverberation time (s).
        drr_db: Ratio of the direct path's energy to that of all the rest (dB).
    """
    count = int(np.clip(0.8 * t60_s * SAMPLE_RATE, 1600, _RIR_MAX))
    envelope = _decay(t60_s, count)
    tail = rng.standard_normal(count, dtype=np.float32) * envelope
    # Air and walls take the highs first: a second, duller part decays slower.
    dull = tail.copy()
    dull[1:] += tail[:-1]
    tail = np.float32(0.35) * tail * np.sqrt(envelope) + np.float32(0.65) * dull
    mixing = int(rng.uniform(0.008, 0.03) * SAMPLE_RATE)
    tail[:mixing] *= np.linspace(0.0, 1.0, mixing, dtype=np.float32) ** 2
    n_early = int(rng.integers(6, 16))
    places = rng.integers(16, max(mixing * 2, 64), n_early)
    places = np.minimum(places, count - 1)
    heights = rng.uniform(0.1, 0.7, n_early) * rng.choice((-1.0, 1.0), n_early)
    early = np.zeros(count, np.float32)
    np.add.at(early, places, (heights / np.sqrt(places / 32.0 + 1.0)).astype(np.float32))
    reverberant = tail + early * np.float32(np.sqrt(np.sum(tail**2) / (np.sum(early**2) + 1e-9)))
    return _direct_and(reverberant, drr_db)


def _direct_and(reverberant: Wav, drr_db: float) -> Room:
    level = np.float32(db_to_gain(-drr_db) / np.sqrt(np.sum(reverberant[1:] ** 2)))
    response = reverberant * level
    response[0] = 1.0
    return Room(response, 0)


# Delays of Freeverb's combs and all-passes (samples at 44.1 kHz); Schroeder and Logan 1961 is the
# structure, Moorer 1979 the low-pass in the combs.
_COMBS = (1116, 1188, 1277, 1356, 1422, 1491, 1557, 1617)
_ALLPASSES = (556, 441, 341, 225)
_ALLPASS_GAIN = 0.5


def freeverb_room(t60_s: float, drr_db: float, damping: float = 0.2) -> Room:
    """Artificial reverberation: eight parallel damped combs, then four all-passes.

    Args:
        t60_s: Reverberation time at low frequencies (s).
        drr_db: Ratio of the direct path's energy to that of all the rest (dB).
        damping: Pole of the low-pass in each comb, 0 to below 1: highs decay faster.
    """
    count = int(np.clip(t60_s * SAMPLE_RATE, 3200, _RIR_MAX))
    size = scipy.fft.next_fast_len(2 * count, real=True)
    circle = np.exp(-2j * np.pi * np.arange(size) / size)
    index = np.arange(size // 2 + 1)

    def late(delay: int) -> NDArray[np.complex128]:
        turned: NDArray[np.complex128] = circle[index * delay % size]
        return turned

    total = np.zeros(len(index), complex)
    damped = (1.0 - damping) / (1.0 - damping * late(1))
    for delay_44k in _COMBS:
        delay = round(delay_44k * SAMPLE_RATE / 44100)
        feedback = 10.0 ** (-3.0 * delay / (t60_s * SAMPLE_RATE))
        line = late(delay)
        total += line / (1.0 - feedback * damped * line)
    for delay_44k in _ALLPASSES:
        line = late(round(delay_44k * SAMPLE_RATE / 44100))
        total *= (line - _ALLPASS_GAIN) / (1.0 - _ALLPASS_GAIN * line)
    return _direct_and(scipy.fft.irfft(total, size)[:count].astype(np.float32), drr_db)


# --- image sources --------------------------------------------------------------------------------


def has_image_sources() -> bool:
    """Whether pyroomacoustics is installed."""
    return importlib.util.find_spec("pyroomacoustics") is not None


def image_room(
    rng: Generator,
    size_m: tuple[float, float, float],
    t60_s: float,
    distance_m: tuple[float, float],
) -> Room:
    """A shoebox room: reflections up to order 20 from image sources, then a diffuse tail.

    Source and microphone are drawn; their distance is a whole number of samples. The tail takes
    over where the images are no longer complete, with their level and spectrum. The absorption
    follows Eyring's formula; flat rooms decay slower than it says, so the decay is at last
    multiplied by the exponential that makes it ``t60_s``.

    Args:
        rng: Source of randomness.
        size_m: Length, width and height (m).
        t60_s: Reverberation time (s).
        distance_m: Range of the distance between source and microphone, limited by the room (m).

    Raises:
        InputError: pyroomacoustics is missing (``pip install dvpd[train]``).
    """
    try:
        import pyroomacoustics
    except ImportError as error:
        raise InputError(
            "image-source rooms need pyroomacoustics: pip install pyroomacoustics"
        ) from error
    size = np.asarray(size_m)
    source, microphone, delay = _place(rng, size, distance_m)
    surface = 2.0 * (size[0] * size[1] + size[1] * size[2] + size[0] * size[2])
    absorption = 1.0 - math.exp(-0.161 * float(size.prod()) / (surface * t60_s))
    room = pyroomacoustics.ShoeBox(
        size,
        fs=SAMPLE_RATE,
        materials=pyroomacoustics.Material(absorption),
        max_order=_IMAGE_ORDER,
        air_absorption=True,
    )
    room.add_source(source)
    room.add_microphone(microphone)
    room.compute_rir()
    traced = np.asarray(room.rir[0][0], np.float64)[delay:]  # the direct path is at _FRACTION
    # Images of up to this order are complete within this distance.
    complete = _IMAGE_ORDER / math.sqrt(float(np.sum(1.0 / size**2))) / SPEED_OF_SOUND
    whole = min(int(complete * SAMPLE_RATE) + _FRACTION - delay, len(traced))
    count = int(np.clip(t60_s * SAMPLE_RATE, whole, _RIR_MAX))
    response = _with_tail(rng, traced[: min(whole, count)], count, t60_s)
    response = _set_decay(response, t60_s)
    return Room((response / response[_FRACTION]).astype(np.float32), _FRACTION)


def _place(
    rng: Generator, size: NDArray[np.float64], distance_m: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Source, microphone and their distance in whole samples."""
    low, high = np.full(3, _WALL_M), size - _WALL_M
    longest = 0.6 * float(np.linalg.norm(high - low))
    step = SPEED_OF_SOUND / SAMPLE_RATE
    nearest, farthest = (min(d, longest) for d in distance_m)
    while True:
        source = rng.uniform(low, high)
        direction = rng.standard_normal(3)
        delay = max(round(rng.uniform(nearest, farthest) / step), 1)
        microphone = source + direction / np.linalg.norm(direction) * delay * step
        if (microphone >= low).all() and (microphone <= high).all():
            return source, microphone, delay


def _with_tail(
    rng: Generator, traced: NDArray[np.float64], count: int, t60_s: float
) -> NDArray[np.float64]:
    """Go on from the last part of ``traced``: noise of its spectrum and level, decaying."""
    more = count - len(traced)
    if more <= 0:
        return traced
    last = traced[-min(640, len(traced) // 2) :]
    fade = _decay(t60_s, len(last) + more).astype(np.float64)
    spectrum = np.convolve(np.abs(scipy.fft.rfft(last, 1024)), np.ones(9) / 9.0, "same")
    size = scipy.fft.next_fast_len(len(fade), real=True)
    spec = scipy.fft.rfft(rng.standard_normal(size))
    places = np.linspace(0.0, 1.0, len(spec))
    spec *= np.interp(places, np.linspace(0.0, 1.0, len(spectrum)), spectrum)
    noise = scipy.fft.irfft(spec, size)[: len(fade)] * fade
    noise *= math.sqrt(float(np.sum(last**2) / np.sum(noise[: len(last)] ** 2)))
    return np.concatenate([traced, noise[len(last) :]])


def _set_decay(response: NDArray[np.float64], t60_s: float) -> NDArray[np.float64]:
    """Multiply by an exponential so that what follows the direct path decays in ``t60_s``."""
    late = _FRACTION + _DIRECT
    time = np.maximum(np.arange(len(response)) - _FRACTION, 0) / SAMPLE_RATE
    for _ in range(4):
        try:
            measured_s = measure_t60(response[late:])
        except InputError:  # too dead to have a decay: nothing to correct
            break
        change = np.clip(1.0 / t60_s - 1.0 / measured_s, -0.5 / t60_s, 2.0 / t60_s)
        response = response * np.exp(-math.log(1000.0) * change * time)
    return response


@dataclass(frozen=True)
class RoomRanges:
    """What the rooms of a bank are drawn from; all uniform.

    Attributes:
        side_m: Length and width (m).
        height_m: Height (m).
        t60_s: Reverberation time (s).
        distance_m: Distance between source and microphone (m).
    """

    side_m: tuple[float, float] = (2.5, 12.0)
    height_m: tuple[float, float] = (2.2, 5.0)
    t60_s: tuple[float, float] = (0.15, 1.0)
    distance_m: tuple[float, float] = (0.3, 4.0)


def draw_image_room(rng: Generator, ranges: RoomRanges) -> tuple[Room, dict[str, float]]:
    """A drawn room, and what was drawn: sides (m) and reverberation time (s)."""
    size = (rng.uniform(*ranges.side_m), rng.uniform(*ranges.side_m), rng.uniform(*ranges.height_m))
    t60_s = rng.uniform(*ranges.t60_s)
    room = image_room(rng, size, t60_s, ranges.distance_m)
    return room, {"length_m": size[0], "width_m": size[1], "height_m": size[2], "t60_s": t60_s}


def bank_rooms(
    ranges: RoomRanges,
    count: int,
    seed: int,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> list[Room]:
    """A bank of image-source rooms: room i depends on ``ranges``, ``seed`` and i alone.

    With a cache folder, rooms are built once, by several processes, in files of sixteen that are
    whole or not there: an interrupted build goes on where it was.

    Args:
        ranges: What the rooms are drawn from.
        count: Number of rooms.
        seed: Seed of the draws.
        cache: Folder for the rooms; None builds them here and now.
        progress: Called with (rooms done, rooms in all).
        workers: Processes; None takes one for each core.

    Raises:
        InputError: pyroomacoustics is missing, or the bank is damaged.
    """
    chunks = range(-(-count // _CHUNK))
    if cache is None:
        rooms: list[Room] = []
        for chunk in chunks:
            rooms += _build_chunk(ranges, seed, chunk)
            if progress:
                progress(min(len(rooms), count), count)
        return rooms[:count]
    folder = _bank_folder(ranges, seed, cache)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{chunk:05d}.npz" for chunk in chunks]
    missing = [chunk for chunk in chunks if not paths[chunk].is_file()]
    done = len(paths) - len(missing)
    for _ in _in_processes(ranges, seed, missing, paths, workers):
        done += 1
        if progress:
            progress(min(done * _CHUNK, count), count)
    return [room for path in paths for room in _load_chunk(path)][:count]


def _bank_folder(ranges: RoomRanges, seed: int, cache: str | Path) -> Path:
    key = json.dumps([BANK_FORMAT, seed, asdict(ranges)])
    return Path(cache) / f"rooms-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def count_built(ranges: RoomRanges, seed: int, cache: str | Path) -> int:
    """How large a bank `bank_rooms` would load from a cache folder without building any room."""
    folder, chunks = _bank_folder(ranges, seed, cache), 0
    while (folder / f"{chunks:05d}.npz").is_file():
        chunks += 1
    return chunks * _CHUNK


def _build_chunk(ranges: RoomRanges, seed: int, chunk: int) -> list[Room]:
    rooms = []
    for index in range(chunk * _CHUNK, (chunk + 1) * _CHUNK):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, index))))
        rooms.append(draw_image_room(rng, ranges)[0])
    return rooms


def _save_chunk(ranges: RoomRanges, seed: int, chunk: int, path: Path) -> None:
    rooms = _build_chunk(ranges, seed, chunk)
    with WholeFile(path) as whole:
        with whole.open() as file:
            np.savez(
                file,
                samples=np.concatenate([r.response for r in rooms]),
                lengths=np.array([len(r.response) for r in rooms]),
                peaks=np.array([r.peak for r in rooms]),
            )
        whole.commit()


def _load_chunk(path: Path) -> list[Room]:
    try:
        with path.open("rb") as file, np.load(file) as data:
            samples, lengths, peaks = data["samples"], data["lengths"], data["peaks"]
        pieces = np.split(samples, np.cumsum(lengths)[:-1])
        return [Room(p, int(peak)) for p, peak in zip(pieces, peaks, strict=True)]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged: {error}; delete it, it is built anew") from error


def _in_processes(
    ranges: RoomRanges, seed: int, missing: list[int], paths: list[Path], workers: int | None
) -> Iterator[None]:
    """Build the missing chunks, yielding after each."""
    workers = min(workers or os.cpu_count() or 1, len(missing))
    if workers <= 1:
        for chunk in missing:
            _save_chunk(ranges, seed, chunk, paths[chunk])
            yield
        return
    # Not forked: the caller may have threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as executor:
        jobs = [executor.submit(_save_chunk, ranges, seed, c, paths[c]) for c in missing]
        try:
            for job in as_completed(jobs):
                job.result()
                yield
        finally:
            for job in jobs:
                job.cancel()


def reverberate(speech: Wav, room: Room, early_ms: float = 0.0) -> tuple[Wav, Wav]:
    """Speech in a room, and its target.

    Args:
        speech: Dry speech [L].
        room: The room.
        early_ms: Reflections up to here stay in the target (ms); 0 leaves it dry.

    Returns:
        Reverberant speech and target, both [L], the direct path at the dry speech's place.
    """
    count = len(speech)
    size = scipy.fft.next_fast_len(count + len(room.response), real=True)
    spec = scipy.fft.rfft(speech, size)
    shift = slice(room.peak, room.peak + count)
    wet = scipy.fft.irfft(spec * scipy.fft.rfft(room.response, size), size)[shift]
    if early_ms <= 0.0:
        return wet, speech
    early = room.response.copy()
    early[room.peak + int(early_ms * SAMPLE_RATE / 1000.0) :] = 0.0
    return wet, scipy.fft.irfft(spec * scipy.fft.rfft(early, size), size)[shift]
