"""Live mode timed block by block: when each block would be ready, what it costs, and the true delay."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dvpd.benchmarks.common import machine
from dvpd.benchmarks.common.reference import CLIP
from dvpd.runtime.arrays import DoubleArray, FloatArray
from dvpd.runtime.audio import Resampler
from dvpd.runtime.enhancer import Enhancer
from dvpd.runtime.errors import InputError
from dvpd.runtime.live import Stream

WARM_UP_S = 1.0  # of audio, on a stream of its own
SETTLED = 0.1  # share of the audio after which memory must not grow any more
CLICK = 0.02  # of full scale: beside speech, it changes little but itself
SEARCH_S = 0.2  # to each side of the reported delay
HEARD = 1e-3  # of the click: with less left of it there is no place to be measured
PERCENTILES = (50, 90, 95, 99)


def speech(sample_rate: int) -> FloatArray:
    """A noisy recording of several seconds that travels with the benchmarks, float32 [L]."""
    with np.load(CLIP) as clip:
        wav: FloatArray = clip["noisy"].astype(np.float32)[:, None] / np.float32(32768)
    change = Resampler(16000, sample_rate, 1)
    n_samples = len(wav) * sample_rate // 16000
    parts = [change.push(wav), change.finish(n_samples)]
    at_rate: FloatArray = np.concatenate(parts)[:n_samples, 0]
    return at_rate


@dataclass
class Timed:
    """What a run of one stream took.

    Attributes:
        latency_s: From the moment at which a block's last sample was there to the moment at which its
            output was, of the calls in which the networks ran.
        deadline_s: What they had: the call's block or the model's, whichever is longer.
        compute_s: Of all calls.
        cpu_s: Of all threads of the process in them: what other programs take away is not in it.
        audio_s: Carried.
        rss_mib: Resident memory at the end, None where the system does not tell.
        growth_mib: Of it after the first tenth.
    """

    latency_s: DoubleArray
    deadline_s: float
    compute_s: float
    cpu_s: float
    audio_s: float
    rss_mib: float | None
    growth_mib: float | None


def time_stream(
    stream: Stream,
    wav: FloatArray,
    sample_rate: int,
    block: int,
    audio_s: float,
    *,
    real_time: bool,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
    cpu_clock: Callable[[], float] = time.process_time,
    memory: Callable[[], float | None] = machine.rss_mib,
) -> Timed:
    """Feed a stream block by block, and note when each output was there.

    Blocks come at the pace of the sound. In real time they are waited for; else the waiting is left
    out, and the moments are computed from the measured seconds as if it had taken place: a call
    begins when its block is complete and the call before has ended.

    Args:
        stream: From ``Enhancer.stream``.
        wav: float32 [L], played over and over.
        sample_rate: Its rate (Hz).
        block: Samples of a call.
        audio_s: Seconds of audio in all.
        real_time: Whether the blocks are waited for.
        clock: Seconds; a test's own.
        sleep: Waits so many seconds; a test's own.
        cpu_clock: Seconds that the process has computed; a test's own.
        memory: Resident memory now (MiB).
    """
    n_calls = max(1, math.ceil(audio_s * sample_rate / block))
    period = block / sample_rate
    sound = np.resize(wav, len(wav) + block)[:, None]
    latency = np.zeros(n_calls)  # of all calls; memory is set aside before it is watched
    ran = np.zeros(n_calls, bool)
    settled = memory()
    begin, ended, compute_s, place = clock(), 0.0, 0.0, 0
    cpu_begin = cpu_clock()
    for call in range(n_calls):
        due = (call + 1) * period
        if real_time and (wait := begin + due - clock()) > 0:
            sleep(wait)
        blocks = stream.stats.blocks
        start = clock()
        stream.process(sound[place : place + block])
        end = clock()
        compute_s += end - start
        ended = end - begin if real_time else max(due, ended) + end - start
        latency[call] = ended - due
        ran[call] = stream.stats.blocks != blocks
        place = (place + block) % len(wav)
        if call == int(SETTLED * n_calls):
            settled = memory()
    cpu_s = cpu_clock() - cpu_begin
    now, stats = memory(), stream.stats
    model_block_s = stats.seconds / stats.blocks if stats.blocks else 0.0
    return Timed(
        latency_s=latency[ran],
        deadline_s=max(period, model_block_s),
        compute_s=compute_s,
        cpu_s=cpu_s,
        audio_s=n_calls * period,
        rss_mib=now,
        growth_mib=None if now is None or settled is None else now - settled,
    )


def summarise(timed: Timed, latency_ms: float) -> dict[str, Any]:
    """The figures of a row as JSON.

    Args:
        timed: What was measured.
        latency_ms: The stream's own delay.

    Raises:
        InputError: The networks never ran.
    """
    ms = timed.latency_s * 1e3
    if not len(ms):
        raise InputError(
            f"{timed.audio_s:.3g} s of audio hold no whole block of the model; expected more "
            "(--audio-seconds)"
        )
    found = {f"p{p}": float(np.percentile(ms, p)) for p in PERCENTILES}
    return {
        "rtf": timed.compute_s / timed.audio_s,
        "cpu_s_per_audio_s": timed.cpu_s / timed.audio_s,
        "audio_s_per_s": timed.audio_s / max(timed.compute_s, 1e-12),
        "audio_s": timed.audio_s,
        "blocks": len(ms),
        "latency_ms": {**found, "max": float(ms.max()), "mean": float(ms.mean())},
        "jitter_ms": found["p99"] - found["p50"],
        "deadline_ms": timed.deadline_s * 1e3,
        "missed": int(np.count_nonzero(timed.latency_s > timed.deadline_s)),
        "delay_ms": latency_ms + found["p99"],
        "rss_mib": timed.rss_mib,
        "growth_mib": timed.growth_mib,
    }


def _through(enhancer: Enhancer, sample_rate: int, wav: FloatArray, **options: Any) -> FloatArray:
    """What leaves a new stream, in blocks of an odd length."""
    # Two runs are compared: what is computed must not depend on the machine's other work.
    stream = enhancer.stream(sample_rate, 1, adapt=False, **options)
    block = sample_rate // 97
    pieces = [
        stream.process(wav[first : first + block, None]) for first in range(0, len(wav), block)
    ]
    whole: FloatArray = np.concatenate([*pieces, stream.flush()])[:, 0]
    return whole


def correlation_delay(before: FloatArray, after: FloatArray, low: int, high: int) -> int:
    """By how many samples ``after`` fits ``before`` best, within [low, high] (cross-correlation)."""
    size = 1 << (len(before) + len(after)).bit_length()
    spectrum = np.fft.rfft(after, size) * np.fft.rfft(before, size).conj()
    product = np.fft.irfft(spectrum, size)
    lags = np.arange(low, high + 1)
    return int(lags[np.argmax(product[lags % size])])


def measure_delay(enhancer: Enhancer, sample_rate: int, steps: int | None) -> dict[str, Any]:
    """The delay of a stream from end to end, from speech and from a click, beside what it reports.

    The click is added to the speech, and what it changes in the output is looked at: alone, a network
    that removes noise would remove it.

    Args:
        enhancer: The model.
        sample_rate: Of the stream (Hz).
        steps: Calls of the score network.

    Returns:
        "reported", "speech" and "click" in samples; a click of which nothing is left is None.
    """
    wav = speech(sample_rate)
    reported = enhancer.stream(sample_rate, 1, steps=steps).latency_samples
    out = _through(enhancer, sample_rate, wav, steps=steps)
    reach = round(SEARCH_S * sample_rate)
    low, high = max(0, reported - reach), reported + reach
    place = int(np.argmax(np.abs(wav[: len(wav) * 3 // 4])))  # where the network lets most through
    clicked = wav.copy()
    clicked[place] += np.float32(math.copysign(CLICK, wav[place]))
    change = np.abs(_through(enhancer, sample_rate, clicked, steps=steps) - out)
    near = change[place + low : place + high + 1]
    heard = len(near) and near.max() > HEARD * CLICK
    return {
        "sample_rate": sample_rate,
        "reported": reported,
        "speech": correlation_delay(wav, out, low, high),
        "click": low + int(np.argmax(near)) if heard else None,
    }


def warm_up(enhancer: Enhancer, sample_rate: int, block: int, steps: int | None) -> None:
    """Run a stream that is thrown away: engines allocate at first."""
    stream = enhancer.stream(sample_rate, 1, steps=steps, adapt=False)
    wav = speech(sample_rate)[: round(WARM_UP_S * sample_rate)]
    for first in range(0, len(wav), block):
        stream.process(wav[first : first + block, None])


def same(delays: Sequence[dict[str, Any]]) -> bool:
    """Whether every measured delay is the reported one."""
    return all(row[k] in (row["reported"], None) for row in delays for k in ("speech", "click"))
