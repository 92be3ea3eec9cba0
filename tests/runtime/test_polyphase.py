"""Change of rate with a short delay."""

import numpy as np
import pytest

from dvpd.runtime.polyphase import REACH_S, Polyphase, reach

PAIRS = [(48000, 16000), (16000, 48000), (44100, 16000), (16000, 44100), (8000, 16000)]
PAIRS += [(16000, 8000), (192000, 16000), (16000, 192000), (44101, 16000), (16000, 44101)]


def tone(rate: int, hz: float, n: int) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(n) / rate).astype(np.float32)[:, None]


def run(rate_in: int, rate_out: int, wav: np.ndarray, cuts=()) -> np.ndarray:
    made = Polyphase(rate_in, rate_out, wav.shape[1])
    pieces = [made.push(part) for part in np.split(wav, cuts)]
    return np.concatenate([*pieces, made.finish(len(wav) * rate_out // rate_in)])


def level_db(wav: np.ndarray) -> float:
    return 10 * np.log10(2 * np.mean(np.square(wav[len(wav) // 8 : -len(wav) // 8])) + 1e-30)


@pytest.mark.parametrize(("rate_in", "rate_out"), PAIRS)
def test_tones_come_back_in_place_and_what_is_above_the_band_does_not(rate_in, rate_out):
    n = rate_in // 8
    edge = min(rate_in, rate_out) / 2
    for hz in (edge / 8, edge - 560):
        out = run(rate_in, rate_out, tone(rate_in, hz, n))
        assert len(out) == n * rate_out // rate_in
        assert level_db(out - tone(rate_out, hz, len(out))) < -68
    if rate_in > rate_out:
        assert level_db(run(rate_in, rate_out, tone(rate_in, edge + 20, n))) < -68


@pytest.mark.parametrize(("rate_in", "rate_out"), [*PAIRS, (16000, 16000)])
def test_the_pieces_change_nothing(rate_in, rate_out):
    wav = np.random.default_rng(0).standard_normal((rate_in // 16, 2)).astype(np.float32)
    whole = run(rate_in, rate_out, wav)
    for cuts in ([1, 2, 3], range(100, len(wav), 100)):
        np.testing.assert_allclose(run(rate_in, rate_out, wav, cuts), whole, atol=1e-6)


@pytest.mark.parametrize(("rate_in", "rate_out"), [*PAIRS, (16000, 16000)])
def test_it_waits_for_as_much_as_it_says_and_at_most_4_ms(rate_in, rate_out):
    assert reach(rate_in, rate_out) <= REACH_S * rate_in
    made, n_in, n_out = Polyphase(rate_in, rate_out, 1), 0, 0
    wav = np.ones((1, 1), np.float32)
    for _ in range(2 * reach(rate_in, rate_out) + 10):
        ready = n_in + 1 >= made.needed(n_out + 1)
        n_in, got = n_in + 1, len(made.push(wav))
        assert (got > 0) == ready
        n_out += got


def test_a_constant_stays_one():
    out = run(44100, 16000, np.ones((8000, 1), np.float32))
    np.testing.assert_allclose(out[200:-200], 1.0, atol=2e-4)
