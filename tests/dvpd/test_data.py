"""Pools, pairs and their order: the physics of each step, and determinism."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import soundfile as sf
import torch

from dvpd.data import mix
from dvpd.data.loader import batches
from dvpd.data.mix import Mixer, make_rng
from dvpd.data.pool import Pool, load_pool
from dvpd.runtime.errors import InputError
from dvpd.train_config import DataConfig

RATE = 16000
# int16 rounding of the written files
INT16_STEP = 1.0 / 32768.0


def voice(seconds: float, seed: int) -> np.ndarray:
    """Syllables of band-limited noise: pauses, onsets and a spectrum up to 8 kHz."""
    rng = np.random.default_rng(seed)
    wav = rng.standard_normal(int(seconds * RATE)).astype(np.float32)
    syllables = np.abs(np.sin(np.arange(len(wav)) * 2 * np.pi * 3 / RATE)) ** 2
    return (0.1 * wav * syllables).astype(np.float32)


@pytest.fixture(scope="module")
def pools():
    speech = Pool.from_arrays(
        [("long", voice(5, 1)), ("long", voice(4, 2))]
        + [("short", voice(0.5, i)) for i in range(9)]
    )
    rng = np.random.default_rng(5)
    noise = Pool.from_arrays(
        [("n", 0.05 * rng.standard_normal(RATE * 3)), ("m", 0.05 * rng.standard_normal(RATE))]
    )
    response = np.zeros(8000)
    response[300] = -0.8  # arrives late and inverted
    response[900] = 0.3
    return speech, noise, Pool.from_arrays([("rooms", response)])


def config(**changes) -> DataConfig:
    return DataConfig(**{"crop_samples": 16384, **changes})


def power_db(wav: np.ndarray, low_hz: float, high_hz: float) -> float:
    freqs, power = scipy.signal.welch(wav, RATE, nperseg=1024)
    return 10 * np.log10(power[(freqs >= low_hz) & (freqs < high_hz)].mean() + 1e-20)


def lag(a: np.ndarray, b: np.ndarray) -> int:
    """Samples by which ``b`` is late."""
    return int(np.argmax(scipy.signal.correlate(b, a, method="fft"))) - (len(a) - 1)


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 17.5])
def test_noise_gain_reaches_the_ratio(snr_db):
    speech, noise = voice(2, 1), voice(2, 2)
    scaled = noise * mix.noise_gain(speech, noise, snr_db)
    reached = 20 * np.log10(mix.rms(speech) / mix.rms(scaled))
    assert reached == pytest.approx(snr_db, abs=1e-4)


def test_silent_noise_adds_nothing():
    assert mix.noise_gain(voice(1, 1), np.zeros(RATE, np.float32), 0.0) == 0.0


@pytest.mark.parametrize(("cutoff_hz", "order"), [(2000.0, 4), (4000.0, 12), (7000.0, 8)])
def test_lowpass_cuts_where_it_should(cutoff_hz, order):
    freqs = np.array([0.0, cutoff_hz, 2 * cutoff_hz], np.float32)
    gain = mix.lowpass_gain(freqs, cutoff_hz, order)
    assert gain[0] == pytest.approx(1.0)
    assert 20 * np.log10(gain[1]) == pytest.approx(-3.01, abs=0.01)
    assert 20 * np.log10(gain[2]) == pytest.approx(-6.02 * order, abs=0.6)
    wav = voice(3, 1)
    out = mix.lowpass(wav, cutoff_hz, order)
    assert power_db(out, 100, cutoff_hz * 0.7) == pytest.approx(
        power_db(wav, 100, cutoff_hz * 0.7), abs=0.5
    )
    assert lag(wav, out) == 0


def test_bandpass_keeps_the_middle_only():
    wav = voice(3, 1)
    out = mix.bandpass(wav, 300.0, 3400.0)
    assert power_db(out, 800, 2000) == pytest.approx(power_db(wav, 800, 2000), abs=0.5)
    assert power_db(out, 0, 100) < power_db(wav, 0, 100) - 15
    assert power_db(out, 6000, 8000) < power_db(wav, 6000, 8000) - 15
    assert lag(wav, out) == 0


@pytest.mark.parametrize("rate_hz", [6000, 8000, 11025, 12000])
def test_resampling_keeps_length_and_alignment(rate_hz):
    wav = voice(2, 3)
    out = mix.through_rate(wav, rate_hz)
    assert out.shape == wav.shape
    assert lag(wav, out) == 0
    assert power_db(out, rate_hz / 2 + 200, 8000) < power_db(wav, 4000, 8000) - 40
    # below the cut-off nothing has moved, not even by a fraction of a sample
    low = mix.lowpass(wav, 2000, 12)
    error = low - mix.lowpass(out, 2000, 12)
    assert 20 * np.log10(mix.rms(low) / mix.rms(error)) > 45


def test_clipping_reaches_the_quantile():
    wav = voice(2, 4)
    out = mix.clip_at_quantile(wav, 0.9)
    limit = np.abs(out).max()
    assert np.mean(np.abs(wav) >= limit) == pytest.approx(0.1, abs=0.01)
    inside = np.abs(wav) < limit
    np.testing.assert_array_equal(out[inside], wav[inside])


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_coloured_noise_has_its_slope(exponent):
    wav = mix.coloured_noise(make_rng(0, 0, 0), RATE * 8, exponent)
    assert mix.rms(wav) == pytest.approx(1.0, abs=1e-3)
    octave = power_db(wav, 1000, 1100) - power_db(wav, 2000, 2200)
    assert octave == pytest.approx(3.01 * exponent, abs=0.8)


def test_hum_sits_on_its_harmonics():
    wav = mix.hum(make_rng(1, 0, 0), RATE * 2)
    assert mix.rms(wav) == pytest.approx(1.0, abs=1e-3)
    assert power_db(wav, 40, 1500) > power_db(wav, 3000, 8000) + 40


@pytest.mark.parametrize("t60_s", [0.3, 0.6])
def test_simulated_room_decays_as_asked(t60_s):
    slopes = []
    for i in range(5):
        room = mix.simulate_room(make_rng(2, 0, i), t60_s)
        assert room.response[room.peak] == 1.0
        decay = np.cumsum(room.response[::-1].astype(np.float64) ** 2)[::-1]
        level = 10 * np.log10(decay / decay[0])
        start = int(0.06 * RATE)
        rows = np.arange(start, start + int(0.25 * t60_s * RATE))
        slopes.append(-60 / (np.polyfit(rows / RATE, level[rows], 1)[0]))
    # the two-part tail starts a little faster than its late decay
    assert np.mean(slopes) == pytest.approx(t60_s, rel=0.35)


def test_room_is_aligned_to_its_direct_path(pools):
    room = mix.as_room(pools[2].read(0))
    wav = voice(2, 1)
    wet, target = mix.reverberate(wav, room)
    np.testing.assert_array_equal(target, wav)
    assert lag(wav, wet) == 0
    # direct path positive and of unit energy: what is left is the echo alone
    echo = wet - wav
    assert mix.rms(echo[:590]) < 1e-3 * mix.rms(wav)
    assert 20 * np.log10(mix.rms(echo) / mix.rms(wav)) == pytest.approx(-8.5, abs=0.3)


def test_early_reflections_can_stay_in_the_target(pools):
    room = mix.as_room(pools[2].read(0))
    wet, target = mix.reverberate(voice(2, 1), room, early_ms=50.0)
    np.testing.assert_allclose(target, wet, atol=1e-5)


def test_silent_room_is_refused():
    with pytest.raises(InputError, match="silent"):
        mix.as_room(np.zeros(100, np.float32))


def test_pair_is_a_function_of_its_numbers(pools):
    mixer = Mixer(config(universal_p=1.0), *pools)
    first = mixer.pair(3, 1, 7)
    for again in (mixer.pair(3, 1, 7), Mixer(config(universal_p=1.0), *pools).pair(3, 1, 7)):
        np.testing.assert_array_equal(first[0], again[0])
        np.testing.assert_array_equal(first[1], again[1])
    for other in ((4, 1, 7), (3, 2, 7), (3, 1, 8)):
        assert not np.array_equal(first[0], mixer.pair(*other)[0])


def test_pairs_are_finite_scaled_and_alive(pools):
    mixer = Mixer(config(level_p=0.0, universal_p=0.5), *pools)
    for index in range(60):
        noisy, clean = mixer.pair(0, 0, index)
        assert noisy.shape == clean.shape == (16384,)
        assert noisy.dtype == clean.dtype == np.float32
        assert np.isfinite(noisy).all()
        assert np.isfinite(clean).all()
        assert np.abs(noisy).max() == pytest.approx(1.0, abs=1e-5)
        assert mix.rms(clean) > 1e-3


def test_pair_reaches_the_snr(pools):
    plain = config(universal_p=0.0, clean_p=0.0, snr_db=(5.0, 5.0), speech_eq_p=0.0)
    for index in range(5):
        noisy, clean = Mixer(plain, *pools).pair(0, 0, index)
        reached = 20 * np.log10(mix.rms(clean) / mix.rms(noisy - clean))
        assert reached == pytest.approx(5.0, abs=0.01)


def test_universal_pairs_stay_aligned(pools):
    chain = config(
        universal_p=1.0, reverb_p=1.0, measured_rir_p=1.0, lowpass_p=1.0, resample_p=1.0,
        clip_p=0.0, bandpass_p=0.0, clean_p=1.0,
    )  # fmt: skip
    for index in range(8):
        noisy, clean = Mixer(chain, *pools).pair(0, 0, index)
        assert lag(clean, noisy) == 0


def test_level_stays_in_its_range(pools):
    mixer = Mixer(config(level_p=1.0, level_db=(-30.0, -10.0)), *pools)
    peaks = [20 * np.log10(np.abs(mixer.pair(0, 0, i)[0]).max()) for i in range(40)]
    assert min(peaks) >= -30.01
    assert max(peaks) <= -9.99


def test_works_without_noise_and_rooms(pools):
    noisy, clean = Mixer(config(universal_p=1.0), pools[0]).pair(0, 0, 0)
    assert np.isfinite(noisy).all()
    assert not np.array_equal(noisy, clean)


def test_source_weights_decide(pools):
    rng = make_rng(0, 0, 0)
    mixer = Mixer(config(speech_weights={"short": 0.0}), *pools)
    np.testing.assert_allclose(mixer._speech_p, [1.0, 0.0])
    assert mixer._speech(rng).shape == (16384,)
    with pytest.raises(InputError, match="weight 0"):
        Mixer(config(speech_weights={"short": 0.0, "long": 0.0}), *pools)


@pytest.mark.parametrize("workers", [1, 2])
def test_order_does_not_depend_on_workers(pools, workers):
    mixer = Mixer(config(), *pools)
    options = {"seed": 1, "batch_size": 3, "epoch_crops": 4}
    alone = batches(mixer, **options, workers=0)
    shared = batches(mixer, **options, workers=workers)
    for _ in range(4):
        for mine, theirs in zip(next(alone), next(shared), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_batches_start_anywhere(pools):
    mixer = Mixer(config(), *pools)
    options = {"seed": 1, "batch_size": 2, "epoch_crops": 5, "workers": 0}
    stream = batches(mixer, **options)
    third = [next(stream) for _ in range(3)][-1]
    later = next(batches(mixer, **options, first_crop=4))
    assert torch.equal(third[0], later[0])


def write(path, wav, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, wav, rate)


def test_pool_decodes_once_and_maps(tmp_path):
    write(tmp_path / "speech" / "a" / "1.flac", voice(0.5, 1))
    write(tmp_path / "speech" / "b" / "2.wav", voice(0.25, 2), 8000)
    write(tmp_path / "speech" / "b" / "3.wav", np.stack([voice(0.5, 3)] * 2, axis=1))
    seen = []
    pool = load_pool(tmp_path / "speech", tmp_path / "cache", lambda *n: seen.append(n))
    assert seen[-1] == (3, 3)
    assert pool.sources == ("a", "b")
    assert [pool.length(i) for i in range(3)] == [8000, 8000, 8000]  # 8 kHz became 16 kHz
    np.testing.assert_allclose(pool.read(0), voice(0.5, 1), atol=INT16_STEP)
    np.testing.assert_allclose(pool.read(2), voice(0.5, 3), atol=INT16_STEP)
    np.testing.assert_array_equal(pool.read(0, 100, 50), pool.read(0)[100:150])
    again = load_pool(tmp_path / "speech", tmp_path / "cache", lambda *n: pytest.fail("decoded"))
    np.testing.assert_array_equal(again.samples, pool.samples)
    in_memory = load_pool(tmp_path / "speech")
    np.testing.assert_array_equal(in_memory.samples, pool.samples)
    assert not list((tmp_path / "cache").glob("*.tmp"))
    write(tmp_path / "speech" / "a" / "4.flac", voice(0.5, 4))
    assert len(load_pool(tmp_path / "speech", tmp_path / "cache")) == 4


@pytest.mark.parametrize("cached", [False, True])
def test_pool_leaves_out_a_bad_file_but_not_many(tmp_path, cached):
    cache = tmp_path / "cache" if cached else None
    for i in range(3):
        write(tmp_path / "speech" / "a" / f"{i}.wav", voice(0.2, i))
    (tmp_path / "speech" / "a" / "x.wav").write_bytes(b"not audio")
    assert len(load_pool(tmp_path / "speech", cache)) == 3
    (tmp_path / "speech" / "a" / "y.wav").write_bytes(b"")
    with pytest.raises(InputError, match="2 of 5 files"):
        load_pool(tmp_path / "speech", cache)
    assert not cached or not list(cache.glob("*.tmp"))


def test_pool_without_audio_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a folder"):
        load_pool(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no"):
        load_pool(tmp_path)


@pytest.mark.parametrize(
    "bad",
    [
        {"universal_p": 1.5},
        {"snr_db": (5.0, -5.0)},
        {"recorded_p": 0.9},
        {"crop_samples": 100},
        {"speech_weights": {"a": -1.0}},
        {"clip_quantile": (0.0, 0.5)},
    ],
)
def test_bad_config_is_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        DataConfig(**bad)
