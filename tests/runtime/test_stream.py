"""A causal model on a signal in pieces, with networks that stand for themselves."""

import numpy as np
import pytest

from dvpd.runtime.block_sampler import BlockSampler
from dvpd.runtime.noise import frame_noise
from dvpd.runtime.schedule import SdeSpec, initial_state, sampler_steps
from dvpd.runtime.spec import SignalSpec, TlbFactors
from dvpd.runtime.stft import compress, istft, stft
from dvpd.runtime.stream import CausalStream, SpectralStream

SIGNAL = SignalSpec()


class Echo:
    """Returns its input, late by the look-ahead, and counts frames in its state."""

    name, device = "echo", "cpu"

    def __init__(self, late: int = 0) -> None:
        self.late = late

    def predict_next(self, noisy, state):
        past = np.zeros((1, 2, self.late, 257), np.float32) if state is None else state
        both = np.concatenate([past, noisy[:, :2]], axis=2)
        n = noisy.shape[2]
        return both[:, :, :n], [None] * 6, both[:, :, n:]

    def score_next(self, xt, t, feats, tlb_skip, tlb_backbone, state):
        return 0.1 * xt, (0 if state is None else state) + xt.shape[2]


def speech(n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (0.1 * rng.standard_normal(n) * np.sin(np.arange(n) * 3e-4)).astype(np.float32)


def stream(late: int = 0, steps: int = 0, group: int = 4) -> CausalStream:
    sde = SdeSpec()
    sampler = BlockSampler(
        Echo(late),
        start=initial_state(sde, 0.12),
        steps=sampler_steps(sde, 0.12, steps) if steps else (),
        alpha=0.7,
        tlb=TlbFactors(),
        lookahead_frames=late,
    )
    draw = lambda index, first, n: frame_noise(3, index, first, n)  # noqa: E731  # one line
    return CausalStream(sampler, draw, SIGNAL, group)


def run(made: CausalStream, wav: np.ndarray, cuts: list[int]) -> np.ndarray:
    pieces = [x for part in np.split(wav, cuts) for x in made.push(part)]
    return np.concatenate([*pieces, *made.finish()])


@pytest.mark.parametrize("n", [1, 255, 256, 257, 512, 5000, 16000])
def test_frames_and_samples_are_those_of_the_whole_signal(n):
    wav, frames = speech(n), SpectralStream(SIGNAL)
    whole = stft(wav, SIGNAL)
    spectra, out = [], []
    for part in np.split(wav, [100, 700, 701, 4000]):
        frames.push(part)
        spectra.append(frames.take(frames.available)[0])
    spectra.append(frames.take(frames.close() - frames.n_frames)[0])
    np.testing.assert_allclose(np.concatenate(spectra, axis=1), compress(whole, SIGNAL), atol=1e-6)
    for part in np.split(whole, [1, 4, 40]):
        out.append(frames.give(part))
    out.append(frames.rest())
    np.testing.assert_allclose(np.concatenate(out)[:n], istft(whole, n, SIGNAL), atol=1e-6)


@pytest.mark.parametrize("late", [0, 4, 12])
@pytest.mark.parametrize("n", [1, 300, 12_345])
def test_an_echo_comes_back_whole_and_in_place(n, late):
    wav = speech(n)
    out = run(stream(late), wav, [n // 3, n // 2])
    assert out.shape == wav.shape
    np.testing.assert_allclose(out, wav, atol=1e-5)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_pieces_change_nothing(steps):
    wav = speech(20_000)
    whole = run(stream(4, steps), wav, [])
    for cuts in ([1, 2, 3], list(range(160, 20_000, 160)), [19_999]):
        assert np.array_equal(run(stream(4, steps), wav, cuts), whole)


def test_silence_stays_silence():
    wav = np.zeros(8000, np.float32)
    assert not run(stream(4, 1), wav, [4000]).any()


def test_the_output_is_late_by_what_is_said():
    made, given, latest = stream(), 0, 0
    for i, part in enumerate(np.split(speech(16_000), range(16, 16_000, 16))):
        given += sum(piece.size for piece in made.push(part))
        latest = max(latest, 16 * (i + 1) - given)
    assert 896 - 16 <= latest <= 896
