"""Where nobody speaks the shipped engines are quiet, for minutes; where somebody does, speech stays.

The floors hold for what the networks put out: nothing else mutes a pause.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dvpd.benchmarks.common.recordings import FADE, continuous_noise, read_clip
from dvpd.benchmarks.common.scenes import at_level
from dvpd.benchmarks.probes import chords
from dvpd.quality.pauses import GUARD, seam_steps
from dvpd.runtime.enhancer import Enhancer
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.windows import WindowPlan

ROOT = Path(__file__).resolve().parent.parent
RATE = 16000
BLOCK = RATE // 2
LOWERED_DB = 30.0  # by this much at least where nobody speaks
WORST_DB = 25.0  # and by this much in the worst twentieth of half seconds
CROWD_DB = 10.0  # voices that nobody wants: far less (see benchmarks/probes.py)
JUMP_DB = 3.0  # how far the residual's level may step where two windows meet
SHIPPED = ("dvpd-tiny", "dvpd-base")


@pytest.fixture(scope="module", params=SHIPPED)
def enhancer(request):
    with Enhancer.open(ROOT / "engines" / request.param, backend="ort", threads=1) as opened:
        yield opened


def clean_clip(number: int) -> np.ndarray:
    return read_clip(number)[1]


def noise_of(number: int, count: int, period: int | None = None) -> np.ndarray:
    """The recorded noise of a clip, again and again, every ``period`` samples."""
    noisy, clean = read_clip(number)
    noise = noisy - clean
    return continuous_noise(noise if period is None else noise[: period + FADE], count)


def levels_db(wav: np.ndarray, block: int = BLOCK) -> np.ndarray:
    whole = wav[: len(wav) // block * block].reshape(-1, block).astype(np.float64)
    return 10.0 * np.log10(np.mean(whole**2, axis=1) + 1e-15)


def around(
    speech: np.ndarray, seconds: float, number: int, period: int | None = None
) -> tuple[np.ndarray, int, int]:
    """Speech, a pause, the speech again, in the noise of a clip; and where the pause is."""
    first = len(speech)
    last = first + int(seconds * RATE)
    clean = np.zeros(last + first, np.float32)
    clean[:first], clean[last:] = speech, speech
    return clean + noise_of(number, len(clean), period), first, last


def seam_jumps_db(out: np.ndarray, first: int, last: int, plan: WindowPlan) -> np.ndarray:
    """Step of the level (dB) at each seam within [first, last)."""
    around = [(0, first - GUARD), (last + GUARD, len(out))]  # pauses begin so far from speech
    return seam_steps(out, plan.seams(len(out)), [(a, b) for a, b in around if a < b])


def check_pause(noisy: np.ndarray, out: np.ndarray, first: int, last: int) -> None:
    """Quiet from half a second after the speech on, without a step where windows meet."""
    inner = slice(first + RATE // 2, last - RATE // 2)
    before, after = levels_db(noisy[inner]), levels_db(out[inner])
    assert np.median(before - after) > LOWERED_DB
    assert np.percentile(before - after, 5) > WORST_DB
    jumps = seam_jumps_db(out, inner.start, inner.stop, WindowPlan())
    assert len(jumps) >= (last - first) // WindowPlan().step_samples - 1
    assert jumps.max() <= JUMP_DB


def test_a_step_at_a_seam_is_found_and_one_elsewhere_is_not():
    plan, rng = WindowPlan(), np.random.default_rng(0)
    out = 1e-3 * rng.standard_normal(40 * RATE).astype(np.float32)  # -60 dB
    assert seam_jumps_db(out, 0, len(out), plan).max() < 0.5
    seam = 2 * plan.step_samples + plan.context_samples
    for at, found in ((seam, 6.02), (seam + 3 * RATE, 0.0)):
        stepped = out.copy()
        stepped[at:] *= 2.0
        assert seam_jumps_db(stepped, 0, len(out), plan).max() == pytest.approx(found, abs=0.5)
        faint = np.float32(0.01) * stepped
        assert seam_jumps_db(faint, 0, len(out), plan).max() == 0.0


def test_a_minute_without_speech_stays_quiet(enhancer):
    noisy, first, last = around(clean_clip(0), 60.0, 1)
    out = enhancer.enhance(noisy, RATE, steps=0).wav
    check_pause(noisy, out, first, last)


# 14 s hold a window without any speech; what three steps do in one, one step does.
@pytest.mark.parametrize(("steps", "seconds"), [(1, 14.0), (3, 7.0)])
def test_a_step_brings_no_noise_back(enhancer, steps, seconds):
    noisy, first, last = around(clean_clip(0), seconds, 1)
    out = enhancer.enhance(noisy, RATE, steps=steps).wav
    check_pause(noisy, out, first, last)


def remembered(estimate):
    """``estimate`` for windows that come again: each is computed once; and the call that counts them."""
    known: dict[bytes, np.ndarray] = {}
    calls = []

    def answer(noisy: np.ndarray) -> np.ndarray:
        key = noisy.tobytes()
        if key not in known:
            known[key] = estimate(noisy)
        calls.append(key)
        return known[key].copy()

    return answer, lambda: (len(calls), len(known))


@pytest.mark.slow
def test_ten_minutes_without_speech_stay_quiet(monkeypatch):
    # Ten seconds of noise, of which 13 windows hold 8: the same ones come six times.
    period = 13 * WindowPlan().step_samples // 8
    noisy, first, last = around(clean_clip(1), 600.0, 2, period)
    with Enhancer.open(ROOT / "engines" / "dvpd-tiny", backend="ort", threads=1) as opened:
        estimate, counts = remembered(opened.backend.estimate)
        monkeypatch.setattr(opened.backend, "estimate", estimate)
        out = opened.enhance(noisy, RATE, steps=0).wav
    check_pause(noisy, out, first, last)
    asked, computed = counts()
    assert asked > 75
    assert computed < 20


class Forgetful:
    """A network that judges noise by what else its window holds, as the trained ones did.

    Frames 20 dB below the loudest one of the window are lowered by 40 dB, the others kept.
    """

    name, device = "stand-in", "cpu"

    def predict(self, noisy: np.ndarray) -> tuple[np.ndarray, tuple[()]]:
        level = noisy[:, 2].mean(axis=2)[:, None, :, None]  # compressed to the power of 0.3
        soft = level < 0.1**0.3 * level.max()
        return noisy[:, :2] * np.where(soft, 0.01**0.3, 1.0).astype(np.float32), ()

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("reminder", "seconds", "steady"), [(WindowPlan().reminder_samples, 600, True), (0, 60, False)]
)
def test_windows_of_a_long_pause_do_not_forget_the_speech(reminder, seconds, steady):
    """Ten minutes of pause through the whole runtime but for the networks."""
    speech = clean_clip(1)
    first, last = len(speech), len(speech) + seconds * RATE
    noisy = 1e-3 * np.random.default_rng(0).standard_normal(last + first).astype(np.float32)
    noisy[:first] += speech
    noisy[last:] += speech
    plan = WindowPlan(reminder_samples=reminder)
    manifest = Manifest.load(ROOT / "engines" / "dvpd-tiny")
    out = Enhancer(manifest, Forgetful(), plan).enhance(noisy, RATE, steps=0).wav
    jumps = seam_jumps_db(out, first + RATE, last - RATE, plan)
    assert len(jumps) > seconds / 8
    inner = slice(first + BLOCK, last - BLOCK)
    lowered = levels_db(noisy[inner]) - levels_db(out[inner])
    if steady:
        assert jumps.max() <= JUMP_DB
        assert lowered.min() > LOWERED_DB
    else:  # the test would notice
        assert lowered.min() < 1.0


# Clips 0 and 3 have a crowd's voices in them: see the next test.
@pytest.mark.parametrize("number", [1, 2])
def test_noise_alone_is_lowered_and_does_not_ring(enhancer, number):
    noise = noise_of(number, 6 * RATE)
    out = enhancer.enhance(noise, RATE).wav
    assert levels_db(noise).mean() - levels_db(out).mean() > LOWERED_DB
    # No tone sticks out of what is left: its largest bin is far below the noise's.
    largest = [
        np.abs(np.fft.rfft(np.lib.stride_tricks.sliding_window_view(w, 512)[::128], axis=1)).max()
        for w in (noise, out)
    ]
    assert 20.0 * np.log10(largest[0] / largest[1]) > LOWERED_DB - 10.0


@pytest.mark.parametrize("number", [0, 3])
def test_a_crowd_alone_is_lowered(enhancer, number):
    noise = noise_of(number, 4 * RATE)
    out = enhancer.enhance(noise, RATE, steps=0).wav
    assert levels_db(noise).mean() - levels_db(out).mean() > CROWD_DB


def test_music_alone_counts_as_noise(enhancer):
    """What the model cards say becomes of it."""
    music = at_level(chords(np.random.default_rng(0), 4.0), -25.0)
    out = enhancer.enhance(music, RATE, steps=0).wav
    assert 5.0 < levels_db(music).mean() - levels_db(out).mean()


def test_a_click_in_silence_makes_no_noise_elsewhere(enhancer):
    wav = np.zeros(4 * RATE, np.float32)
    wav[2 * RATE : 2 * RATE + 8] = 0.5
    out = enhancer.enhance(wav, RATE).wav
    assert np.isfinite(out).all()
    assert np.abs(out).max() <= 0.55
    away = np.concatenate([out[: RATE + RATE // 2], out[2 * RATE + RATE // 2 :]])
    assert 10.0 * np.log10(np.mean(away.astype(np.float64) ** 2) + 1e-15) < -80.0


def test_clean_speech_from_the_first_to_the_last_sample_keeps_its_level(enhancer):
    speech = clean_clip(2)
    active = np.flatnonzero(np.abs(speech) > 0.1 * np.abs(speech).max())
    speech = speech[active[0] : active[-1]]
    out = enhancer.enhance(speech, RATE).wav
    change = 10.0 * np.log10(np.sum(out**2) / np.sum(speech**2))
    assert abs(change) < 0.5
    for edge in (slice(0, RATE // 10), slice(-RATE // 10, None)):
        kept = 10.0 * np.log10(np.sum(out[edge] ** 2) / np.sum(speech[edge] ** 2))
        assert abs(kept) < 3.0


def test_speech_that_falls_by_20_db_keeps_its_quiet_part(enhancer):
    speech = clean_clip(3)
    quiet = speech.copy()
    half = len(speech) // 2
    quiet[half:] *= 0.1
    out = enhancer.enhance(quiet, RATE).wav
    kept = 10.0 * np.log10(np.sum(out[half:] ** 2) / np.sum(quiet[half:] ** 2))
    assert abs(kept) < 3.0


def loudest(number: int, seconds: float = 3.0) -> np.ndarray:
    """The part of a clip with the most energy, at -25 dB of full scale."""
    wav, count = clean_clip(number), int(seconds * RATE)
    energy = np.concatenate([[0.0], np.cumsum(wav.astype(np.float64) ** 2)])
    first = int(np.argmax(energy[count:] - energy[:-count])) if len(wav) > count else 0
    return at_level(wav[first : first + count], -25.0)


@pytest.mark.parametrize(
    ("name", "below_db", "within_db", "kept"),
    [
        ("dvpd-tiny", 6.0, 4.0, 6),
        ("dvpd-tiny", 0.0, 4.0, 5),  # one pair of the six is still taken for babble
        ("dvpd-base", 6.0, 5.0, 6),
        ("dvpd-base", 0.0, 8.0, 6),  # it was 20 dB
    ],
)
def test_two_talkers_at_once_are_both_kept(name, below_db, within_db, kept):
    talkers = [loudest(number) for number in range(4)]
    lost = []
    with Enhancer.open(ROOT / "engines" / name, backend="ort", threads=1) as enhancer:
        for i, one in enumerate(talkers):
            for other in talkers[i + 1 :]:
                count = min(len(one), len(other))
                both = one[:count] + other[:count] * np.float32(10.0 ** (-below_db / 20.0))
                out = enhancer.enhance(both, RATE).wav
                lost.append(float(levels_db(both, count)[0] - levels_db(out, count)[0]))
    assert sum(loss < within_db for loss in lost) >= kept, lost
