"""Each degradation does what its name and its numbers say, and stays aligned."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import scipy.signal

from dvpd.data import degrade
from dvpd.runtime.errors import InputError

# filters are read off a 1 s tone
FILTER_DB = 0.05

EVERYTHING = {
    "change_gain": lambda w: degrade.change_gain(w, 4000, 20000, -12.0),
    "expand": lambda w: degrade.expand(w, 2.0, -10.0),
    "clip": lambda w: degrade.clip(w, 0.05),
    "tanh": lambda w: degrade.tanh_drive(w, 20.0),
    "bits": lambda w: degrade.reduce_bits(w, 8),
    "lowpass": lambda w: degrade.lowpass(w, 4000.0, 12),
    "highpass": lambda w: degrade.highpass(w, 100.0, 1),
    "bandpass": lambda w: degrade.bandpass(w, 300.0, 3400.0),
    "microphone": lambda w: degrade.spectral_gain(
        w,
        partial(
            degrade.microphone_gain,
            low_shelf=(300.0, -12.0), high_shelf=(5000.0, 12.0), peaks=[(1000.0, 6.0)],
        ),
    ),
    **{
        f"resample {method} {rate}": partial(degrade.through_rate, rate_hz=rate, method=method)
        for method in degrade.RESAMPLERS
        for rate in (3000.0, 8000.0, 11025.0, 17321.7, 32000.0)
    },
    "phaser": lambda w: degrade.phaser(w, 2.0),
    "gsm": degrade.gsm,
}  # fmt: skip


@pytest.mark.parametrize("name", EVERYTHING)
def test_length_kind_and_alignment_stay(lab, name):
    # no whole number of codec frames; more low than high, as speech
    wav = degrade.lowpass(lab.voice(2.0371, 3), 1000.0, 1)
    before = wav.copy()
    out = EVERYTHING[name](wav)
    assert out.shape == wav.shape
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    assert lab.lag(wav, out) == 0
    np.testing.assert_array_equal(wav, before)
    np.testing.assert_array_equal(EVERYTHING[name](wav), out)
    # at a higher rate, the old samples may all be there to be picked out again
    assert not np.array_equal(out, wav) or name.endswith(("32000.0", "17321.7"))


@pytest.mark.parametrize("name", EVERYTHING)
def test_silence_stays_silent(name):
    out = EVERYTHING[name](np.zeros(16000, np.float32))
    # the codec has a noise floor of its own
    assert np.abs(out).max() < (1e-3 if name == "gsm" else 1e-9)


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 17.5])
def test_noise_reaches_the_ratio(lab, snr_db):
    speech, noise = lab.voice(2, 1), lab.voice(2, 2)
    added = degrade.add_noise(speech, noise, snr_db) - speech
    reached = 20 * np.log10(degrade.rms(speech) / degrade.rms(added))
    assert reached == pytest.approx(snr_db, abs=1e-3)


def test_silent_noise_adds_nothing(lab):
    assert degrade.noise_gain(lab.voice(1, 1), np.zeros(16000, np.float32), 0.0) == 0.0


def test_gain_changes_where_asked(lab):
    wav = lab.voice(2, 1)
    out = degrade.change_gain(wav, 8000, 16000, -12.0)
    np.testing.assert_array_equal(out[:7840], wav[:7840])
    np.testing.assert_array_equal(out[16160:], wav[16160:])
    np.testing.assert_allclose(out[8000:16000], wav[8000:16000] * 10 ** (-12 / 20), rtol=1e-5)


@pytest.mark.parametrize("ratio", [1.4, 2.1])
@pytest.mark.parametrize("below_db", [5.0, 20.0])
def test_expander_has_its_ratio(lab, ratio, below_db):
    wav = lab.tone(1000.0, -20.0 - below_db)  # threshold -20 dB
    out = degrade.expand(wav, ratio, -20.0)
    lowered = 20 * np.log10(degrade.rms(wav) / degrade.rms(out))
    assert lowered == pytest.approx((ratio - 1) * below_db, abs=0.05)


def test_expander_leaves_what_is_loud_and_lets_go_slowly(lab):
    loud = lab.tone(1000.0, -10.0)
    np.testing.assert_array_equal(degrade.expand(loud, 2.0, -20.0), loud)
    wav = np.concatenate([loud, lab.tone(1000.0, -60.0)])
    out = degrade.expand(wav, 2.0, -20.0)
    late = (np.abs(wav) > 1e-4) & (np.arange(len(wav)) >= 16000)
    gain_db = 20 * np.log10(np.abs(out[late] / wav[late]))
    # 86.9 dB a second from -10 dB: at the threshold after 115 ms, at -60 dB after 575 ms
    assert gain_db[: int(0.09 * len(gain_db))].min() > -0.5
    assert gain_db[-1] == pytest.approx(-40.0, abs=0.1)


def test_clipping_stops_at_its_level(lab):
    wav = lab.voice(2, 4)
    limit = degrade.quantile_level(wav, 0.9)
    out = degrade.clip(wav, limit)
    assert np.abs(out).max() == np.float32(limit)
    assert np.mean(np.abs(wav) >= limit) == pytest.approx(0.1, abs=0.01)
    inside = np.abs(wav) < limit
    np.testing.assert_array_equal(out[inside], wav[inside])


@pytest.mark.parametrize("drive_db", [2.0, 10.0, 20.0])
def test_saturation_passes_the_small_and_bounds_the_large(lab, drive_db):
    gain = 10 ** (drive_db / 20)
    assert lab.gain_at(lambda w: degrade.tanh_drive(w, drive_db), 1000.0, -60.0) == pytest.approx(
        0.0, abs=0.01
    )
    assert np.abs(degrade.tanh_drive(lab.tone(1000.0, 20.0), drive_db)).max() <= 1 / gain + 1e-6
    # a sine gets odd harmonics alone
    out = degrade.tanh_drive(lab.tone(1000.0, -3.0), drive_db)
    spec = 20 * np.log10(np.abs(np.fft.rfft(out)) + 1e-9)
    assert spec[3000] > spec[1000] - 45
    assert spec[2000] < spec[3000] - 60


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_bits_that_are_left(bits):
    wav = np.random.default_rng(0).uniform(-1.2, 1.2, 50_000).astype(np.float32)
    out = degrade.reduce_bits(wav, bits)
    step = 2.0 ** (1 - bits)
    np.testing.assert_array_equal(out / step, np.rint(out / step))
    assert out.min() == -1.0
    assert out.max() == 1.0 - step
    assert len(np.unique(out)) == min(2**bits, len(np.unique(out)))
    inside = np.abs(wav) < 0.99
    assert degrade.rms(out[inside] - wav[inside]) == pytest.approx(step / 12**0.5, rel=0.02)


def test_24_bits_are_nearly_exact(lab):
    wav = lab.voice(1, 1)
    assert np.abs(degrade.reduce_bits(wav, 24) - wav).max() <= 2.0**-24


@pytest.mark.parametrize(("cutoff_hz", "order"), [(2000.0, 4), (4000.0, 12), (7000.0, 1)])
def test_lowpass_cuts_where_it_should(lab, cutoff_hz, order):
    process = partial(degrade.lowpass, cutoff_hz=cutoff_hz, order=order)
    assert lab.gain_at(process, cutoff_hz) == pytest.approx(-3.01, abs=FILTER_DB)
    assert lab.gain_at(process, 200.0) == pytest.approx(0.0, abs=FILTER_DB)
    if order < 12:
        ideal = -10 * np.log10(1 + (7900.0 / cutoff_hz) ** (2 * order))
        assert lab.gain_at(process, 7900.0) == pytest.approx(ideal, abs=0.1)
    else:
        assert lab.gain_at(process, 7900.0) < -60


def test_lowpass_is_the_butterworth_of_scipy():
    freqs = np.linspace(100.0, 7900.0, 100).astype(np.float32)
    b, a = scipy.signal.butter(6, 2 * np.pi * 4000.0, analog=True)
    _, response = scipy.signal.freqs(b, a, 2 * np.pi * freqs)
    np.testing.assert_allclose(degrade.lowpass_gain(freqs, 4000.0, 6), np.abs(response), rtol=1e-4)


@pytest.mark.parametrize("cutoff_hz", [20.0, 100.0])
def test_highpass_cuts_where_it_should(lab, cutoff_hz):
    process = partial(degrade.highpass, cutoff_hz=cutoff_hz)
    assert lab.gain_at(process, cutoff_hz) == pytest.approx(-3.01, abs=FILTER_DB)
    assert lab.gain_at(process, 2000.0) == pytest.approx(0.0, abs=FILTER_DB)
    assert lab.gain_at(process, 10.0) == pytest.approx(
        -10 * np.log10(1 + (cutoff_hz / 10.0) ** 2), abs=0.2
    )


def test_bandpass_cuts_at_both_ends(lab):
    process = partial(degrade.bandpass, low_hz=300.0, high_hz=3400.0, order=7)
    assert lab.gain_at(process, 300.0) == pytest.approx(-3.01, abs=FILTER_DB)
    assert lab.gain_at(process, 3400.0) == pytest.approx(-3.01, abs=FILTER_DB)
    assert lab.gain_at(process, 1000.0) == pytest.approx(0.0, abs=FILTER_DB)
    assert lab.gain_at(process, 150.0) == pytest.approx(-42.1, abs=0.3)


def test_shelves_and_peaks_have_their_gains():
    def db(gain, freq_hz):
        return 20 * np.log10(gain(np.array([freq_hz], np.float32))[0])

    def low(f):
        return degrade.low_shelf_gain(f, 500.0, 12.0)

    def high(f):
        return degrade.high_shelf_gain(f, 5000.0, -12.0)

    def peak(f):
        return degrade.peak_gain(f, 2000.0, 6.0)

    assert db(low, 10.0) == pytest.approx(12.0, abs=FILTER_DB)
    assert db(low, 500.0) == pytest.approx(6.0, abs=FILTER_DB)
    assert db(low, 8000.0) == pytest.approx(0.0, abs=FILTER_DB)
    assert db(high, 10.0) == pytest.approx(0.0, abs=FILTER_DB)
    assert db(high, 5000.0) == pytest.approx(-6.0, abs=FILTER_DB)
    assert db(high, 50_000.0) == pytest.approx(-12.0, abs=FILTER_DB)
    assert db(peak, 2000.0) == pytest.approx(6.0, abs=FILTER_DB)
    assert db(peak, 500.0) == pytest.approx(0.0, abs=0.1)
    # Q 5: half of the gain (dB) half a bandwidth of 400 Hz away
    assert db(peak, 2000.0 * (np.sqrt(1.01) + 0.1)) == pytest.approx(3.0, abs=FILTER_DB)

    def both(f):
        return degrade.microphone_gain(f, (500.0, 12.0), (5000.0, -12.0), [(2000.0, 6.0)])

    assert db(both, 2000.0) == pytest.approx(
        db(low, 2000.0) + db(high, 2000.0) + db(peak, 2000.0), abs=FILTER_DB
    )


@pytest.mark.parametrize("rate_hz", [3000.0, 6000.0, 8000.0, 11025.0, 12345.6])
def test_good_resampler_ends_at_half_its_rate(lab, rate_hz):
    wav = lab.voice(2, 3)
    out = degrade.through_rate(wav, rate_hz)
    assert lab.power_db(out, rate_hz / 2 + 200, 8000) < lab.power_db(wav, 4000, 8000) - 40
    # below the cut-off nothing has moved, not even by a fraction of a sample
    cutoff = 0.25 * rate_hz
    low = degrade.lowpass(wav, cutoff, 12)
    error = low - degrade.lowpass(out, cutoff, 12)
    assert 20 * np.log10(degrade.rms(low) / degrade.rms(error)) > 45


def test_cheap_resamplers_let_images_through(lab):
    wav = degrade.lowpass(lab.voice(2, 3), 2000.0)
    images = {
        method: lab.power_db(degrade.through_rate(wav, 6000.0, method), 3500, 8000)
        for method in degrade.RESAMPLERS
    }
    assert images["sinc"] + 20 < images["cubic"] < images["linear"] < images["hold"]
    with pytest.raises(InputError, match="expected one of"):
        degrade.through_rate(wav, 6000.0, "magic")


@pytest.mark.parametrize("method", ["cubic", "linear"])
def test_interpolation_of_a_line_is_exact(method):
    line = np.linspace(-0.5, 0.5, 8000, dtype=np.float32)
    out = degrade.through_rate(line, 12345.6, method)
    np.testing.assert_allclose(out[16:-16], line[16:-16], atol=1e-6)


def test_codec_is_narrow_band_and_keeps_the_speech(lab):
    wav = sum(lab.tone(140.0 * n, -20.0 - 3 * n) for n in range(1, 20))
    out = degrade.gsm(wav)
    assert lab.power_db(out, 4300, 8000) < lab.power_db(out, 500, 3000) - 50
    snr_db = 20 * np.log10(degrade.rms(wav) / degrade.rms(out - wav))
    assert 8 < snr_db < 30  # it is a codec of 13 kb/s
    assert lab.gain_at(degrade.gsm, 6000.0) < -50


def test_codec_clips_at_full_scale(lab):
    out = degrade.gsm(lab.tone(1000.0, 10.0))
    assert np.abs(out).max() < 1.6


def test_phaser_has_its_notches(lab):
    still = partial(degrade.phaser, rate_hz=0.0, depth_octaves=0.0, centre_hz=1300.0)
    turn = np.tan(np.pi * 1300.0 / lab.rate)
    for factor in (np.tan(np.pi / 12), 1.0, np.tan(5 * np.pi / 12)):
        notch = np.arctan(factor * turn) * lab.rate / np.pi
        assert lab.gain_at(still, round(notch)) < -25
    for free in (20.0, 730.0, 7900.0):
        assert lab.gain_at(still, free) > -3


def test_phaser_moves_its_notches():
    wav = np.random.default_rng(0).standard_normal(64000).astype(np.float32)
    out = degrade.phaser(wav, 0.25, depth_octaves=1.0)  # up for 2 s, then down for 2 s

    def notch(at_s, low_hz, high_hz):
        part = slice(int(at_s * 16000) - 2000, int(at_s * 16000) + 2000)
        freqs, before = scipy.signal.welch(wav[part], 16000, nperseg=512)
        _, after = scipy.signal.welch(out[part], 16000, nperseg=512)
        inside = (freqs > low_hz) & (freqs < high_hz)
        return freqs[inside][np.argmin((after / before)[inside])]

    assert notch(1.0, 1000, 4500) == pytest.approx(2600.0, rel=0.1)
    assert notch(3.0, 300, 1500) == pytest.approx(650.0, rel=0.15)
