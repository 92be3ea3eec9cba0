"""The universal chain: every link acts, in its order, alone and together; targets stay aligned."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from dvpd.config.data import LINKS, DataConfig
from dvpd.data.chain import draw_links
from dvpd.data.degrade import rms
from dvpd.data.mix import Mixer, make_rng
from dvpd.runtime.errors import InputError

OFF = {f"{name}_p": 0.0 for name in LINKS}


def config(**changes) -> DataConfig:
    plain = {"crop_samples": 16384, "universal_p": 1.0, "limit_target_p": 0.0, "silent_p": 0.0}
    return DataConfig(**{**plain, **changes})


def only(*links: str, **changes) -> DataConfig:
    """A chain that takes just these links, always."""
    return config(**{**OFF, **{f"{n}_p": 1.0 for n in links}, "single_p": 0.0, **changes})


def test_links_come_by_their_probabilities():
    c = config(single_p=0.0)
    rng = make_rng(0, 0, 0)
    n = 4000
    seen = Counter(name for _ in range(n) for name in draw_links(rng, c))
    for name in LINKS:
        p = getattr(c, f"{name}_p")
        # four standard deviations of a binomial draw
        assert seen[name] / n == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / n) + 1e-9)


def test_single_links_come_by_their_weights():
    c = config(single_p=1.0, single_weights={"lowpass": 3.0, "gsm": 1.0}, single_noise_p=0.25)
    rng = make_rng(0, 0, 0)
    seen = Counter(tuple(sorted(draw_links(rng, c))) for _ in range(4000))
    assert seen[("lowpass",)] / 4000 == pytest.approx(0.75 * 0.75, abs=0.03)
    assert seen[("lowpass", "noise")] / 4000 == pytest.approx(0.75 * 0.25, abs=0.03)
    assert set(seen) == {("lowpass",), ("lowpass", "noise"), ("gsm",), ("gsm", "noise")}


def test_default_set_is_balanced():
    rng = make_rng(0, 0, 0)
    n = 4000
    seen = [draw_links(rng, DataConfig()) for _ in range(n)]

    def share(test):
        return sum(map(test, seen)) / n

    assert share(lambda s: s == {"lowpass"}) > 0.02
    assert share(lambda s: s == {"clip", "noise"}) > 0.02
    assert share(lambda s: s == {"reverb", "noise"}) > 0.02
    assert share(lambda s: s == {"resample", "noise"}) > 0.02
    assert share(lambda s: len(s) >= 4) > 0.2
    assert 0.2 < share(lambda s: not s & {"noise", "white"}) < 0.5


@pytest.mark.parametrize("link", LINKS)
def test_each_link_acts_and_stays_aligned(lab, pools, link):
    changes = {}
    if link == "expand":
        changes = {"expand_threshold_db": (-20.0, -20.0)}
    elif link in ("noise", "white"):
        changes = {"snr_db": (5.0, 5.0), "clean_p": 0.0}
    mixer = Mixer(only(link, **changes), *pools)
    gains = {"speaker_gain", "gain", "clip_gain"}
    for index in range(3):
        rng = make_rng(0, 0, index)
        clean = lab.voice(1.5, index)
        noisy, target, drawn = mixer.degrade(rng, clean)
        assert noisy.shape == target.shape == clean.shape
        assert noisy.dtype == target.dtype == np.float32
        assert lab.lag(target, noisy) == 0
        assert drawn
        # the target is the clean speech at some level
        level = rms(target) / rms(clean)
        np.testing.assert_allclose(target, clean * level, atol=1e-5)
        if link in gains:
            np.testing.assert_allclose(noisy, target, atol=1e-6)
            assert abs(20 * np.log10(rms(noisy)) + 27.0) > 0.1
        elif link != "bits":
            assert rms(noisy - target) > 1e-4 * rms(target)
        if link in ("noise", "white"):
            assert 20 * np.log10(rms(target) / rms(noisy - target)) == pytest.approx(5.0, abs=0.01)


@pytest.mark.parametrize(
    ("link", "changes", "edge_hz"),
    [
        ("lowpass", {"lowpass_hz": (3000.0, 3000.0), "lowpass_orders": (12,)}, 3000),
        ("bandpass", {"bandpass_high_hz": (3000.0, 3000.0), "bandpass_order": 12}, 3000),
        ("resample", {"resample_hz": (6000,), "resample_any_p": 0.0}, 3000),
        ("gsm", {}, 4000),
    ],
)
def test_a_limited_target_ends_where_its_source_does(lab, pools, link, changes, edge_hz):
    clean = lab.voice(1.5, 1)
    limited = Mixer(only(link, **changes, limit_target_p=1.0), *pools)
    _, target, drawn = limited.degrade(make_rng(0, 0, 0), clean)
    assert drawn["target_limited"]
    above, below = (
        lab.power_db(target, *band) - lab.power_db(clean, *band)
        for band in ((1.3 * edge_hz, 7500), (500, 0.8 * edge_hz))
    )
    assert above < below - 30.0
    assert lab.lag(clean, target) == 0
    _, whole, _ = Mixer(only(link, **changes), *pools).degrade(make_rng(0, 0, 0), clean)
    assert lab.power_db(whole, 1.3 * edge_hz, 7500) > lab.power_db(target, 1.3 * edge_hz, 7500) + 30


def test_chain_starts_at_its_level(lab, pools):
    noisy, _, _ = Mixer(only("noise"), *pools).degrade(make_rng(0, 0, 0), lab.voice(1.5, 1))
    assert 20 * np.log10(rms(noisy)) == pytest.approx(-27.0, abs=0.01)


def test_nothing_drawn_is_a_copy(lab, pools):
    noisy, target, drawn = Mixer(only(), *pools).degrade(make_rng(0, 0, 0), lab.voice(1.5, 1))
    np.testing.assert_array_equal(noisy, target)
    assert drawn == {}


def test_expander_keeps_the_level(lab, pools):
    c = only("expand", expand_ratio=(2.0, 2.0), expand_threshold_db=(-10.0, -10.0))
    mixer = Mixer(c, *pools)
    wav = np.concatenate([lab.voice(1, 1), 0.1 * lab.voice(1, 2)])
    noisy, target, _ = mixer.degrade(make_rng(0, 0, 0), wav)
    assert rms(noisy) == pytest.approx(rms(target), rel=1e-4)
    # what was 20 dB down is 40 dB down, some 300 ms later
    before, after = (20 * np.log10(rms(w[:16000]) / rms(w[24000:])) for w in (target, noisy))
    assert before == pytest.approx(20.0, abs=0.5)
    assert 35.0 < after < 42.0


def test_full_scale_clipping_needs_a_high_level(lab, pools):
    quiet = only("clip", clip_full_scale_p=1.0, clip_db=-6.0)
    loud = only("clip", "gain", clip_full_scale_p=1.0, clip_db=-6.0, gain_db=(26.0, 26.0))
    wav = lab.voice(1.5, 1)
    noisy, target, _ = Mixer(quiet, *pools).degrade(make_rng(0, 0, 0), wav)
    np.testing.assert_array_equal(noisy, target)
    noisy, target, _ = Mixer(loud, *pools).degrade(make_rng(0, 0, 0), wav)
    assert np.abs(noisy).max() == pytest.approx(10 ** (-6 / 20), rel=1e-6)
    assert np.abs(target).max() > 1.0


def test_codec_takes_the_place_of_resampling(lab, pools):
    _, _, drawn = Mixer(only("gsm", "resample"), *pools).degrade(make_rng(0, 0, 0), lab.voice(1, 1))
    assert drawn == {"gsm": True}


def test_noise_is_in_the_room_or_behind_it(lab, pools):
    """Noise of one click: only in the room does it have an echo."""
    wav = lab.voice(1, 1)
    click = np.zeros(16000, np.float32)
    click[4000] = 1.0
    echoes = []
    for share in (0.0, 1.0):
        c = only("noise", "reverb", noise_in_room_p=share, measured_rir_p=1.0, image_rir_p=0.0,
                 freeverb_p=0.0, snr_db=(-40.0, -40.0), clean_p=0.0)  # fmt: skip
        mixer = Mixer(c, *pools)
        mixer.draw_noise = lambda rng, count: click
        noisy, _, drawn = mixer.degrade(make_rng(0, 0, 0), wav)
        assert drawn["noise_in_room"] == bool(share)
        assert np.argmax(np.abs(noisy)) == 4000
        echoes.append(abs(noisy[4600] / noisy[4000]))
    assert echoes[0] < 0.02
    assert echoes[1] == pytest.approx(0.3 / 0.8, abs=0.02)


def test_all_together_is_finite_and_aligned(lab, pools):
    mixer = Mixer(config(**{f"{n}_p": 1.0 for n in LINKS}, single_p=0.0), *pools)
    for index in range(20):
        noisy, clean = mixer.pair(0, 0, index)
        assert np.isfinite(noisy).all()
        assert np.isfinite(clean).all()
        assert np.abs(noisy).max() <= 1.0 + 1e-5


def test_linear_links_stay_aligned_in_pairs(lab, pools):
    chain = only("reverb", "lowpass", "resample", "microphone", "highpass", "noise",
                 measured_rir_p=1.0, image_rir_p=0.0, freeverb_p=0.0, clean_p=1.0)  # fmt: skip
    for index in range(8):
        noisy, clean = Mixer(chain, *pools).pair(0, 0, index)
        assert lab.lag(clean, noisy) == 0


@pytest.mark.parametrize(
    "bad",
    [
        {"universal_p": 1.5},
        {"gsm_p": -0.1},
        {"snr_db": (5.0, -5.0)},
        {"recorded_p": 0.9},
        {"crop_samples": 100},
        {"speech_weights": {"a": -1.0}},
        {"clip_quantile": (0.0, 0.5)},
        {"measured_rir_p": 0.9},
        {"single_weights": {"lowpas": 1.0}},
        {"single_weights": {"lowpass": 0.0}},
        {"bits": (0, 8)},
        {"expand_ratio": (0.5, 2.0)},
        {"highpass_hz": (0.0, 10.0)},
        {"lowpass_orders": ()},
        {"resample_hz": (0,)},
        {"room_bank": -1},
        {"phaser_hz": (0.0, 1.0)},
        {"clip_db": float("nan")},
        {"early_ms": -1.0},
    ],
)
def test_bad_config_is_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        DataConfig(**bad)
