"""The level in training equals the one in a stream."""

import numpy as np
import torch

from dvpd.level import frame_peaks, levels, spectral_gain
from dvpd.runtime.level import LEAST, LevelTracker
from dvpd.runtime.spec import SignalSpec
from dvpd.runtime.stream import SpectralStream
from dvpd.spectral import compressed_noisy

SIGNAL = SignalSpec()


def crop() -> np.ndarray:
    rng = np.random.default_rng(0)
    gains = np.repeat([0.001, 1.0, 0.0, 0.05], 4000)
    return (0.3 * rng.standard_normal(16000) * gains).astype(np.float32)


def test_training_and_stream_hear_the_same():
    wav = crop()
    stream, tracker = SpectralStream(SIGNAL), LevelTracker(SIGNAL)
    stream.push(wav)
    total = stream.close()
    noisy, peaks = stream.take(total)
    batch = torch.from_numpy(wav)[None]
    level = levels(batch, total)
    np.testing.assert_allclose(peaks, frame_peaks(batch, total)[0], rtol=1e-6)
    np.testing.assert_allclose(tracker.push(peaks), level[0], rtol=1e-6)
    heard = compressed_noisy(batch) * spectral_gain(level)
    streamed = noisy * (level[0].numpy() ** -0.3)[:, None]
    np.testing.assert_allclose(streamed, heard[0], atol=2e-5)  # float32 FFTs


def test_a_gain_moves_the_cap_alone():
    wav = torch.from_numpy(crop())[None]
    n_frames, gain = 126, torch.tensor([0.01])
    assert torch.allclose(gain * levels(wav, n_frames, gain), levels(wav * gain, n_frames))
    assert float((gain * levels(wav, n_frames, gain)).min()) >= LEAST * (1 - 1e-6)


def test_what_comes_later_changes_no_level_before():
    wav = torch.from_numpy(crop())[None]
    changed = wav.clone()
    changed[:, 8000:] = 5.0
    moved = (levels(wav, 126) != levels(changed, 126))[0].nonzero()[0].item()
    assert moved == -(-(8000 - 256 + 1) // 128)  # the first window that holds sample 8000
