import copy
import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_graphs import write_engine

from dvpd.runtime import BackendError, Enhancer, InputError, ManifestError, TlbFactors, engines
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.noise import frame_noise
from dvpd.runtime.stft import compress, stft
from dvpd.runtime.windows import LoudestStretch, WindowPlan

pytest.importorskip("onnxruntime")
# The tiny predictive graph halves the compressed spectrum: x 0.5^(1/0.3) in amplitude.
PREDICTIVE_GAIN = 0.5 ** (1 / 0.3)
FLOAT32_TOLERANCE = 2e-6
SHORT = WindowPlan(
    window_samples=95 * 128,
    context_samples=8 * 128,
    fade_samples=4 * 128,
    reminder_samples=32 * 128,
)


def snr_db(reference, other):
    reference = reference.astype(np.float64)
    return 10 * np.log10(np.sum(reference**2) / max(np.sum((reference - other) ** 2), 1e-300))


def test_predictive_alone_is_exact(enhancer, speech):
    done = enhancer.enhance(speech, 16000, steps=0)
    np.testing.assert_allclose(done.wav, speech * PREDICTIVE_GAIN, atol=FLOAT32_TOLERANCE)
    assert (done.sample_rate, done.nfe) == (16000, 1)
    assert done.seconds > 0
    assert done.wav.dtype == np.float32


def test_defaults_come_from_the_manifest(enhancer, speech):
    done = enhancer.enhance(speech, 16000)
    assert done.nfe == 4
    same = enhancer.enhance(speech, 16000, seed=0, steps=3, alpha=0.4, tlb="none")
    np.testing.assert_array_equal(done.wav, same.wav)


def test_a_model_without_steps_by_default_takes_those_that_are_asked_for(enhancer, speech):
    wav, plain = speech[:16000], enhancer.manifest
    manifest = replace(plain, sampler=replace(plain.sampler, n_steps=0))
    quick = Enhancer(manifest, enhancer.backend)
    done = quick.enhance(wav, 16000)
    assert done.nfe == 1
    np.testing.assert_array_equal(done.wav, enhancer.enhance(wav, 16000, steps=0).wav)
    for options, steps in (
        ({"steps": 1}, 1),
        ({"quality": "balanced"}, 1),
        ({"quality": "best", "alpha": 0.2, "tlb": "severe"}, 3),
    ):
        done = quick.enhance(wav, 16000, **options)
        assert done.nfe == 1 + steps
        np.testing.assert_array_equal(done.wav, enhancer.enhance(wav, 16000, **options).wav)
    for options, name in (({"alpha": 0.2}, "alpha 0.2"), ({"tlb": "severe"}, "tlb")):
        with pytest.raises(
            InputError, match=f"{name} is given without steps, and tiny-test takes 0"
        ):
            quick.enhance(wav, 16000, **options)
        quick.enhance(wav, 16000, steps=0, **options)  # who says so knows
    quick.enhance(wav, 16000, tlb="none")
    pool = quick.stream_pool()
    assert (pool.ladder, pool.steps_now) == ((0,), 0)
    assert quick.stream_pool(quality="best").ladder == (3, 1, 0)


def test_every_option_changes_the_result(enhancer, speech):
    wav = speech[:16000]
    base = enhancer.enhance(wav, 16000).wav
    for options in (
        {"seed": 1},
        {"steps": 2},
        {"alpha": 0.9},
        {"phase_rounds": 2},
        {"tlb": "severe"},
        {"tlb": {"skip": [[1, 1], [1, 2]], "backbone": [[1, 1], [1, 1]]}},
        {"tlb": TlbFactors(backbone=((1, 1), (1, 2)))},
    ):
        other = enhancer.enhance(wav, 16000, **options).wav
        assert np.abs(other - base).max() > 1e-4, options
        np.testing.assert_array_equal(other, enhancer.enhance(wav, 16000, **options).wav)


def test_phase_rounds_come_from_the_manifest_unless_asked_for(enhancer, speech, tmp_path):
    wav, plain = speech[:16000], enhancer.manifest
    often = replace(plain, sampler=replace(plain.sampler, phase_rounds=2))
    path = tmp_path / "in.wav"
    soundfile.write(path, wav, 16000, subtype="FLOAT")
    asked = enhancer.enhance(wav, 16000, phase_rounds=2).wav
    enhancer.enhance_file(path, tmp_path / "asked.wav", phase_rounds=2)
    usual = Enhancer(often, enhancer.backend)
    np.testing.assert_array_equal(usual.enhance(wav, 16000).wav, asked)
    np.testing.assert_allclose(soundfile.read(tmp_path / "asked.wav")[0], asked, atol=1e-6)
    np.testing.assert_array_equal(
        usual.enhance(wav, 16000, phase_rounds=0).wav, enhancer.enhance(wav, 16000).wav
    )
    for bad in (-1, 101, 1.5, True):
        with pytest.raises(InputError, match="phase_rounds is"):
            enhancer.enhance(wav, 16000, phase_rounds=bad)


def test_a_causal_model_takes_no_phase_rounds(speech):
    with Enhancer.open("dvpd-live-tiny", "ort") as live:
        with pytest.raises(InputError, match=r"phase_rounds is 2; expected 0: .* is causal"):
            live.enhance(speech[:8000], 16000, phase_rounds=2)
        same = live.enhance(speech[:8000], 16000, phase_rounds=0).wav
        np.testing.assert_array_equal(same, live.enhance(speech[:8000], 16000).wav)


def test_quality_is_a_name_for_steps(enhancer, speech, tmp_path):
    wav = speech[:16000]
    for quality, steps in (("fast", 0), ("balanced", 1), ("best", 3)):
        done = enhancer.enhance(wav, 16000, quality=quality)
        assert done.nfe == 1 + steps
        np.testing.assert_array_equal(done.wav, enhancer.enhance(wav, 16000, steps=steps).wav)
    path = tmp_path / "in.wav"
    soundfile.write(path, wav, 16000)
    assert enhancer.enhance_file(path, tmp_path / "out.wav", quality="balanced").nfe == 2
    for call in (
        lambda: enhancer.enhance(wav, 16000, steps=1, quality="best"),
        lambda: enhancer.enhance_file(path, tmp_path / "no.wav", steps=1, quality="best"),
        lambda: enhancer.stream(16000, steps=1, quality="best"),
        lambda: enhancer.stream_pool(steps=1, quality="best"),
    ):
        with pytest.raises(InputError, match="give one of the two"):
            call()


def test_given_noise_equals_the_seeds_noise(enhancer, speech):
    wav = speech[:16000]  # 126 frames, padded to 128
    noise = np.stack([frame_noise(3, i, 0, 128) for i in range(3)])
    expected = enhancer.enhance(wav, 16000, seed=3).wav
    np.testing.assert_array_equal(enhancer.enhance(wav, 16000, noise=noise).wav, expected)
    shorter = enhancer.enhance(wav, 16000, noise=noise[:, :126].copy()).wav
    np.testing.assert_allclose(shorter, expected, atol=1e-6)


def test_without_noise_in_the_states_every_seed_gives_the_same(enhancer, speech):
    wav, plain = speech[:16000], enhancer.manifest
    zeros = np.zeros((3, 128, 257), np.float32)
    expected = enhancer.enhance(wav, 16000, noise=zeros).wav
    manifest = replace(plain, sampler=replace(plain.sampler, noise=0.0))
    quiet = Enhancer(manifest, enhancer.backend)
    for options in ({}, {"seed": 7}, {"noise": zeros + 1}):
        np.testing.assert_array_equal(quiet.enhance(wav, 16000, **options).wav, expected)
    assert np.abs(expected - enhancer.enhance(wav, 16000).wav).max() > 1e-4


@pytest.mark.parametrize(
    "noise",
    [
        np.zeros((2, 128, 257), np.float32),
        np.zeros((3, 125, 257), np.float32),
        np.zeros((3, 128, 256), np.float32),
        np.zeros((3, 128, 257)),
        [0.0],
        np.full((3, 128, 257), np.nan, np.float32),
        np.zeros((3, 128), np.float32),
    ],
)
def test_bad_noise(enhancer, speech, noise):
    with pytest.raises(InputError, match="noise"):
        enhancer.enhance(speech[:16000], 16000, noise=noise)


def test_openvino_agrees(engine_shared, enhancer, speech):
    pytest.importorskip("openvino")
    with Enhancer.open(engine_shared, backend="openvino", device="cpu", threads=1) as other:
        a = enhancer.enhance(speech, 16000).wav
        assert snr_db(a, other.enhance(speech, 16000).wav) > 100


def test_windows_equal_one_piece(engine_shared, speech):
    # The tiny networks work on each bin alone, so cutting must change nothing but rounding.
    with Enhancer.open(engine_shared, "ort", "cpu", 1) as whole:
        expected = whole.enhance(speech, 16000).wav
    with Enhancer.open(engine_shared, "ort", "cpu", 1, window_plan=SHORT) as cut:
        assert snr_db(expected, cut.enhance(speech, 16000).wav) > 90


def test_bad_window_plan(engine_shared):
    with pytest.raises(InputError, match="hop"):
        Enhancer.open(
            engine_shared, "ort", window_plan=WindowPlan(10000, 1000, 100, reminder_samples=0)
        )


def test_the_loudest_stretch_stands_beside_every_window_of_several(engine_shared, speech):
    """That it does not come out, and has the noise of its own frames, is held by the test above."""
    wav = np.concatenate([speech, 0.5 * speech])
    loudest = LoudestStretch(SHORT.reminder_samples, 128)
    loudest.push(wav)
    signal = Manifest.load(engine_shared).signal
    alone = wav[: SHORT.window_samples]
    whole, expected = (compress(stft(x / np.abs(x).max(), signal), signal) for x in (wav, alone))
    first = loudest.found.first_frame
    with Enhancer.open(engine_shared, "ort", "cpu", 1, window_plan=SHORT) as cut:
        seen, predict = [], cut.backend.predict
        cut.backend.predict = lambda noisy: seen.append(noisy) or predict(noisy)
        cut.enhance(wav, 16000, steps=0)
        windows, seen[:] = seen[:], []
        cut.enhance(alone, 16000, steps=0)
    assert len(windows) > 8
    assert max(noisy.shape[2] for noisy in windows) == 96
    for i, noisy in enumerate(windows):  # but for frames that reach beyond its ends
        at = 0 if i else 64  # after the first window, which ends where nothing is kept
        kept = noisy[0, :, at + 2 : at + 30]
        np.testing.assert_allclose(kept, whole[:, first + 2 : first + 30], atol=1e-5)
    np.testing.assert_allclose(seen[0][0], expected, atol=1e-5)  # one window holds all


@pytest.mark.parametrize("length", [1, 2, 100, 255, 256, 257, 512, 4096, 131000, 131073])
@pytest.mark.parametrize("steps", [0, 3])
def test_any_length(enhancer, length, steps):
    wav = np.random.default_rng(length).uniform(-1, 1, length).astype(np.float32)
    out = enhancer.enhance(wav, 16000, steps=steps).wav
    assert out.shape == (length,)
    assert np.isfinite(out).all()
    if not steps:
        np.testing.assert_allclose(out, wav * PREDICTIVE_GAIN, atol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000])
def test_any_rate_keeps_length_and_alignment(enhancer, rate):
    n = rate * 2 + 13
    t = np.arange(n) / rate
    # A chirp inside the band of every rate, faded so that filter edges do not count.
    wav = (np.sin(2 * np.pi * (200 * t + 600 * t**2)) * np.hanning(n)).astype(np.float32)
    out = enhancer.enhance(wav, rate, steps=0).wav
    assert out.shape == wav.shape
    lag = np.argmax(np.correlate(out[: n // 2], wav[20 : n // 2 - 20], "valid")) - 20
    assert lag == 0
    assert snr_db(wav * PREDICTIVE_GAIN, out) > 60


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_impulse_stays_where_it_was(enhancer, rate):
    wav = np.zeros(rate, np.float32)
    wav[rate // 3] = 1.0
    out = enhancer.enhance(wav, rate, steps=0).wav
    assert np.argmax(np.abs(out)) == rate // 3


@pytest.mark.parametrize("length", [1, 2, 5, 47])
def test_few_samples_at_other_rates(enhancer, length):
    for rate in (8000, 44100, 192000):
        out = enhancer.enhance(np.full(length, 0.5, np.float32), rate).wav
        assert out.shape == (length,)
        assert np.isfinite(out).all()


def test_channels(enhancer, speech):
    wav = np.stack([speech[:20000], speech[20000:40000], np.zeros(20000, np.float32)], axis=1)
    out = enhancer.enhance(wav, 16000, seed=4).wav
    assert out.shape == wav.shape
    for c in range(2):
        alone = enhancer.enhance(np.ascontiguousarray(wav[:, c]), 16000, seed=4).wav
        np.testing.assert_allclose(out[:, c], alone, atol=1e-6)
    assert not out[:, 2].any()
    same = enhancer.enhance(np.stack([speech, speech], axis=1), 16000).wav
    np.testing.assert_array_equal(same[:, 0], same[:, 1])
    assert enhancer.enhance(wav[:, :1], 16000).wav.shape == (20000, 1)


@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_silence_stays_exact_silence(enhancer, rate):
    for wav in (np.zeros(rate, np.float32), np.zeros((rate, 2)), np.zeros(1, np.int16)):
        out = enhancer.enhance(wav, rate).wav
        assert out.shape == wav.shape
        assert not out.any()


def test_scale_does_not_matter(enhancer, speech):
    wav = speech[:16000].astype(np.float64)
    base = enhancer.enhance(wav, 16000).wav
    for scale in (1e-30, 1e-6, 1e3, 1e29):
        out = enhancer.enhance(wav * scale, 16000).wav.astype(np.float64) / scale
        np.testing.assert_allclose(out, base, atol=2e-5)
    faintest = enhancer.enhance(wav * 1e-39, 16000).wav  # subnormal in float32
    assert np.isfinite(faintest).all()


def test_clipped_and_offset_recordings(enhancer, speech):
    for wav in (np.clip(speech * 50, -1, 1), np.ones(5000, np.float32)):
        out = enhancer.enhance(wav.astype(np.float32), 16000, steps=0).wav
        np.testing.assert_allclose(out, wav * PREDICTIVE_GAIN, atol=1e-5)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_an_offset_is_taken_away(enhancer, speech, rate):
    """A model takes 0.1 of offset for sound: PESQ of clean speech fell from 4.4 to 3.7."""
    wav = speech - speech.mean()
    out = enhancer.enhance(np.stack([wav, wav + 0.1], axis=1), rate, steps=3).wav
    # at other rates the first pass hears the edges of the offset ring: another scale, a little
    assert snr_db(out[:, 0], out[:, 1]) > (90 if rate == 16000 else 50)
    assert not enhancer.enhance(np.full(20000, 0.25, np.float32), 16000).wav.any()


@pytest.mark.parametrize(
    ("dtype", "scale", "zero"),
    [(np.int16, 32768, 0), (np.int32, 2**31, 0), (np.uint8, 128, 128)],
)
def test_integers_are_scaled(enhancer, speech, dtype, scale, zero):
    info = np.iinfo(dtype)
    ints = np.clip(speech[:8000] * scale + zero, info.min, info.max).astype(dtype)
    floats = ((ints.astype(np.float64) - zero) / scale).astype(np.float32)
    out = enhancer.enhance(ints, 16000)
    assert out.wav.dtype == np.float32
    np.testing.assert_array_equal(out.wav, enhancer.enhance(floats, 16000).wav)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_other_floats(enhancer, speech, dtype):
    wav = speech[:4000].astype(dtype)
    out = enhancer.enhance(wav, 16000, steps=0).wav
    np.testing.assert_allclose(out, wav.astype(np.float32) * PREDICTIVE_GAIN, atol=1e-5)


def test_non_contiguous_input_is_not_changed(enhancer, speech):
    wav = np.stack([speech, speech], axis=1)[::2, 0]
    before = wav.copy()
    enhancer.enhance(wav, 16000, steps=1)
    np.testing.assert_array_equal(wav, before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_input_names_its_place(enhancer, value):
    wav = np.zeros((300000, 2), np.float32)
    wav[290001, 1] = value
    with pytest.raises(InputError, match=r"sample 290001 of channel 1 is"):
        enhancer.enhance(wav, 16000)
    with pytest.raises(InputError, match="sample 3 of channel 0"):
        enhancer.enhance(np.array([0, 0, 0, value]), 48000)


@pytest.mark.parametrize(
    ("wav", "message"),
    [
        (np.zeros(0, np.float32), "empty"),
        (np.zeros((10, 0), np.float32), "empty"),
        (np.zeros((0, 2), np.float32), "empty"),
        (np.float32(1), "float32"),
        (np.zeros((2, 2, 2), np.float32), "shape"),
        (np.zeros((2, 16000), np.float32), "transpose"),
        (np.zeros(10, np.complex64), "dtype"),
        (np.zeros(10, np.int64), "dtype"),
        (np.zeros(10, bool), "dtype"),
        (np.array(["a"]), "dtype"),
        ([0.0, 1.0], "list"),
        (None, "NoneType"),
        (np.full(10, 1e300), "inf"),
        (np.full(10, 1e31), "scale"),
    ],
)
def test_bad_waveform(enhancer, wav, message):
    with pytest.raises(InputError, match=message) as error:
        enhancer.enhance(wav, 16000)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rate", [0, -1, 999, 10**6, 16000.0, "16000", None, True])
def test_bad_rate(enhancer, speech, rate):
    with pytest.raises(InputError, match="sample_rate"):
        enhancer.enhance(speech, rate)


@pytest.mark.parametrize(
    "options",
    [
        {"seed": -1},
        {"seed": 1.5},
        {"steps": -1},
        {"steps": 2.5},
        {"steps": 1001},
        {"steps": True},
        {"quality": "good"},
        {"alpha": -0.1},
        {"alpha": 1.1},
        {"alpha": float("nan")},
        {"alpha": "x"},
        {"tlb": "loud"},
        {"tlb": "{bad"},
        {"tlb": '{"skip": 1}'},
        {"tlb": {"skip": [[1, 1], [1, 1]]}},
        {"tlb": 3},
        {"tlb": {"skip": [[1, 1], [1, float("nan")]], "backbone": [[1, 1], [1, 1]]}},
    ],
)
def test_bad_options(enhancer, speech, options):
    with pytest.raises(InputError) as error:
        enhancer.enhance(speech, 16000, **options)
    assert "\n" not in str(error.value)


def test_tlb_json_text(enhancer, speech):
    text = json.dumps({"skip": [[4.1, 0.5], [2.0, 0.8]], "backbone": [[1.5, 1.0], [2.5, 1.0]]})
    np.testing.assert_array_equal(
        enhancer.enhance(speech[:5000], 16000, tlb=text).wav,
        enhancer.enhance(speech[:5000], 16000, tlb="severe").wav,
    )


def test_progress_reaches_one(enhancer, speech):
    seen = []
    enhancer.enhance(np.tile(speech, 6), 44100, steps=0, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) > 1


def test_overflowing_output_is_refused(tmp_path, speech):
    import onnx
    from tiny_graphs import predictive_model

    graph = predictive_model("fp32", onnx, clean_ri_gain=1e15)  # finite, but not after x^(1/0.3)
    with Enhancer.open(write_engine(tmp_path / "e", predictive=graph), "ort", "cpu") as loud:
        with pytest.raises(BackendError, match="beyond any signal"):
            loud.enhance(speech, 16000, steps=0)


def test_damaged_folder(engine):
    (engine / "score.onnx").write_bytes((engine / "score.onnx").read_bytes()[:100])
    with pytest.raises(ManifestError, match="SHA-256"):
        Enhancer.open(engine)


def test_closed(engine_shared, speech):
    with Enhancer.open(engine_shared, "ort", "cpu", 1) as opened:
        pass
    with pytest.raises(BackendError, match="closed"):
        opened.enhance(speech, 16000)


def test_open_takes_a_name_a_folder_or_nothing(engine_shared, tmp_path, monkeypatch):
    root = tmp_path / "engines"
    root.mkdir()
    monkeypatch.setattr(engines, "engine_roots", lambda: [root])
    monkeypatch.delenv("DVPD_ENGINE", raising=False)
    monkeypatch.chdir(tmp_path)
    (root / "dvpd-tiny").symlink_to(engine_shared)
    for model in ("dvpd-tiny", root / "dvpd-tiny", None):
        assert engines.find_engine(model) == root / "dvpd-tiny"
    with Enhancer.open("dvpd-tiny", "ort", "cpu", 1) as opened:
        assert opened.manifest.name == "tiny-test"
    with pytest.raises(ManifestError, match="no engine is called 'dvpd-huge'; here are: dvpd-tiny"):
        Enhancer.open("dvpd-huge")
    with pytest.raises(ManifestError, match="not an engine folder"):
        Enhancer.open(tmp_path / "dvpd-huge")


def test_a_name_without_its_size_is_the_best_that_is_there(tmp_path, monkeypatch):
    root = tmp_path / "engines"
    monkeypatch.setattr(engines, "engine_roots", lambda: [root])
    monkeypatch.chdir(tmp_path)
    found = []
    for name in ("live-tiny", "live", "other-tiny", "other-base"):
        (root / name).mkdir(parents=True)
        (root / name / "manifest.json").touch()
        found.append(engines.find_engine(name.partition("-")[0]).name)
    assert found == ["live-tiny", "live", "other-tiny", "other-base"]


def test_a_folder_here_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "engine_roots", lambda: [tmp_path / "engines"])
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / "mine", tmp_path / "engines" / "mine"):
        folder.mkdir(parents=True)
        (folder / "manifest.json").touch()
    assert engines.find_engine("mine") == Path("mine")


def levels_db(wav, size=800):
    frames = wav[: len(wav) // size * size].reshape(-1, size).astype(np.float64)
    return 10 * np.log10((frames**2).mean(axis=1) + 1e-20)


def test_mix_is_exact_at_both_ends_and_aligned_between(engine_shared, speech):
    with Enhancer.open(engine_shared, "ort", "cpu", 1, window_plan=SHORT) as cut:
        for rate, wav in ((16000, speech), (44100, np.stack([speech, 0.5 * speech[::-1]], 1))):
            enhanced = cut.enhance(wav, rate, steps=0).wav
            np.testing.assert_array_equal(cut.enhance(wav, rate, steps=0, mix=1.0).wav, enhanced)
            np.testing.assert_array_equal(cut.enhance(wav, rate, steps=0, mix=0.0).wav, wav)
            half = cut.enhance(wav, rate, steps=0, mix=0.5).wav
            np.testing.assert_allclose(half, 0.5 * wav + 0.5 * enhanced, atol=1e-7)


@pytest.mark.parametrize("limit_db", [3.0, 6.0, 12.0])
def test_nothing_is_lowered_by_more_than_the_limit(engine_shared, speech, limit_db):
    with Enhancer.open(engine_shared, "ort", "cpu", 1) as opened:
        free = opened.enhance(speech, 16000, steps=0).wav
        held = opened.enhance(speech, 16000, steps=0, attenuation_limit_db=limit_db).wav
    loss = levels_db(speech) - levels_db(held)
    assert (levels_db(speech) - levels_db(free)).min() > 19  # the tiny network: 20 dB everywhere
    assert loss.max() <= limit_db
    assert loss.min() > 0


def test_the_ends_of_the_limit(enhancer, speech):
    enhanced = enhancer.enhance(speech, 16000, steps=0).wav
    for limit, expected in ((0, speech), (np.inf, enhanced), (None, enhanced)):
        out = enhancer.enhance(speech, 16000, steps=0, attenuation_limit_db=limit).wav
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"mix": -0.1}, {"mix": 1.1}, {"mix": np.nan}, {"mix": "x"}, {"mix": None}, {"mix": True},
        {"attenuation_limit_db": -1}, {"attenuation_limit_db": np.nan},
        {"attenuation_limit_db": "6"},
    ],
)  # fmt: skip
def test_bad_strength(enhancer, speech, options):
    with pytest.raises(InputError, match=r"mix|attenuation_limit_db"):
        enhancer.enhance(speech, 16000, **options)


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_threads_may_share_one(engine_shared, speech, backend):
    pytest.importorskip({"ort": "onnxruntime"}.get(backend, backend))
    with Enhancer.open(engine_shared, backend, "cpu", 1, window_plan=SHORT) as shared:
        wavs = [np.roll(speech, 997 * i) for i in range(4)]
        expected = [shared.enhance(wav, 16000, steps=1).wav for wav in wavs]
        with ThreadPoolExecutor(4) as pool:
            got = list(pool.map(lambda wav: shared.enhance(wav, 16000, steps=1).wav, wavs))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_process_is_told_to_open_its_own(enhancer, speech, monkeypatch):
    for use in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="open one in each process"):
            use(enhancer)
    monkeypatch.setattr(os, "getpid", lambda: -1)  # after a fork
    with pytest.raises(BackendError, match="open one in each process"):
        enhancer.enhance(speech, 16000, steps=0)


def test_an_interrupt_while_an_engine_loads_stops(engine_shared, monkeypatch):
    from dvpd.runtime.backends import choose

    def load(options):
        try:
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt as interrupt:
                raise ImportError("numpy failed to import") from interrupt
        except ImportError:
            raise BackendError("onnxruntime does not import") from None

    table = {name: (*row[:2], load) for name, row in choose.BACKENDS.items()}
    monkeypatch.setattr(choose, "BACKENDS", table)
    with pytest.raises(KeyboardInterrupt):
        Enhancer.open(engine_shared, "auto", "cpu")
