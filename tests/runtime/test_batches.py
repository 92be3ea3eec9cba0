import itertools
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dvpd.runtime import BackendError, Enhancer, InputError
from dvpd.runtime.batches import Batches
from dvpd.runtime.spec import padded_frames
from dvpd.runtime.windows import WindowPlan

ALONE_TOLERANCE = 2e-6  # of full scale: rounding may depend on the size of a batch
PLAN = WindowPlan(
    window_samples=95 * 128,
    context_samples=8 * 128,
    fade_samples=4 * 128,
    least_samples=20 * 128,
    reminder_samples=32 * 128,
)
FULL = 96  # frames of a window of PLAN


class Watched:
    """An engine that notes the batches that it is given."""

    def __init__(self, engine):
        self.engine, self.name, self.device = engine, engine.name, engine.device
        self.sizes: list[tuple[int, int]] = []
        self.spoilt = None  # a bin that it refuses

    def predict(self, noisy):
        self.sizes.append((noisy.shape[0], noisy.shape[2]))
        if self.spoilt is not None and (noisy[:, 0, 5, 7] == self.spoilt).any():
            raise BackendError("the spoilt window")
        return self.engine.predict(noisy)

    def score(self, *given):
        return self.engine.score(*given)

    def close(self):
        pass


@pytest.fixture
def watched(enhancer):
    return Watched(enhancer.backend)


def windows(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 1, 3, FULL, 257), np.float32) * 0.1


def enhance_all(manifest, engine, wavs, size, n_threads, order, together=1):
    """Enhance recordings in threads that share the engine, begun in a given order."""
    begun = threading.Barrier(together)
    full = padded_frames(manifest.signal.n_frames(PLAN.window_samples))
    assert full == FULL
    batches = Batches(engine, size, full, patience_s=60.0)

    def one(index):
        with batches.lane() as lane:
            begun.wait()
            return Enhancer(manifest, lane, PLAN).enhance(wavs[index], 16000, steps=2, seed=3).wav

    with ThreadPoolExecutor(n_threads) as threads:
        done = dict(zip(order, threads.map(one, order), strict=True))
    return [done[index] for index in range(len(wavs))]


@pytest.fixture
def wavs(speech):
    # windows of full length, ends of several lengths, one that is a single short window, silence
    lengths = (49875, 30000, 41237, 49875, 5000, 12160)
    return [*(speech[-n:] * np.float32(0.3 + 0.1 * i) for i, n in enumerate(lengths)), speech * 0]


def test_neither_order_nor_company_change_a_sample(enhancer, watched, wavs):
    """Exactly: rows of a batch of one size do not meet, and that size is always the same."""
    order = list(range(len(wavs)))
    first = enhance_all(enhancer.manifest, watched, wavs, 3, 6, order)
    assert {size for size, frames in watched.sizes if frames == FULL} == {3}
    assert {size for size, frames in watched.sizes if frames != FULL} == {1}
    for n_threads, seed in ((1, 1), (4, 2), (6, 3)):
        random.Random(seed).shuffle(order)
        again = enhance_all(enhancer.manifest, watched, wavs, 3, n_threads, order)
        for wav, same in zip(first, again, strict=True):
            np.testing.assert_array_equal(wav, same)
    for wav, done in zip(wavs, first, strict=True):
        alone = Enhancer(enhancer.manifest, enhancer.backend, PLAN)
        expected = alone.enhance(wav, 16000, steps=2, seed=3).wav
        np.testing.assert_allclose(done, expected, atol=ALONE_TOLERANCE)


def test_batches_are_filled(enhancer, watched, speech):
    """Eight recordings of three full windows and an end, four at a time."""
    wavs = [speech[:30000] * np.float32(0.1 * i + 0.2) for i in range(8)]
    enhance_all(enhancer.manifest, watched, wavs, 4, 8, range(8), together=8)
    full = [size for size, frames in watched.sizes if frames == FULL]
    alone = [size for size, frames in watched.sizes if frames != FULL]
    fewest = 8 * len(PLAN.seams(30000)) // 4
    assert set(full) == {4}
    assert fewest <= len(full) <= fewest + 3  # the last to end have fewer beside them
    assert alone == [1] * 8


def ask(lane, window, alpha=0.5):
    from dvpd.runtime.schedule import SdeSpec, initial_state, sampler_steps
    from dvpd.runtime.spec import TlbFactors

    sde = SdeSpec()
    noise = np.zeros((1, *window[:, :1].shape), np.float32)
    start, steps = initial_state(sde, 0.12), sampler_steps(sde, 0.12, 1, "euler")
    how = {"start": start, "steps": steps, "alpha": alpha, "tlb": TlbFactors()}
    return lane.run_sampler(window, noise, **how)


def test_windows_with_other_settings_go_apart(watched):
    batches = Batches(watched, 2, FULL)
    lanes = [batches.lane() for _ in range(4)]
    window = windows(1)[0]
    alphas = [0.2, 0.9, 0.2, 0.9]
    with ThreadPoolExecutor(4) as threads:
        got = list(threads.map(ask, lanes, itertools.repeat(window), alphas))
    assert watched.sizes == [(2, FULL)] * 2
    np.testing.assert_array_equal(got[0], got[2])
    assert np.abs(got[0] - got[1]).max() > 1e-4


def test_a_window_that_fails_does_not_spoil_the_others(watched):
    batches = Batches(watched, 3, FULL)
    lanes = [batches.lane() for _ in range(3)]
    given = windows(3)
    with ThreadPoolExecutor(3) as threads:
        right = list(threads.map(ask, lanes, given))
        watched.spoilt = given[1][0, 0, 5, 7]
        futures = [threads.submit(ask, *pair) for pair in zip(lanes, given, strict=True)]
        with pytest.raises(BackendError, match="spoilt"):
            futures[1].result()
        for index in (0, 2):
            np.testing.assert_array_equal(futures[index].result(), right[index])


def test_a_recording_that_ends_or_stays_away_is_not_waited_for(watched):
    batches = Batches(watched, 2, FULL, patience_s=60.0)
    lane, other = batches.lane(), batches.lane()
    done = []
    thread = threading.Thread(target=lambda: done.append(ask(lane, windows(1)[0])))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()  # the other may still come
    other.close()
    thread.join(30.0)
    assert len(done) == 1
    hasty = Batches(watched, 2, FULL, patience_s=0.01)
    lanes = [hasty.lane() for _ in range(2)]
    np.testing.assert_array_equal(ask(lanes[0], windows(1)[0]), done[0])


def test_what_does_not_fit_is_refused_before_it_waits(watched):
    batches = Batches(watched, 2, FULL)
    batches.lane()
    with pytest.raises(InputError, match="float64"):
        ask(batches.lane(), windows(1)[0].astype(np.float64))
    with pytest.raises(InputError, match="size is 0"):
        Batches(watched, 0, FULL)
