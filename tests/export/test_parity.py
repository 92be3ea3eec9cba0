"""The exported graphs compute what the PyTorch model computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dvpd import sde as torch_sde
from dvpd import spectral
from dvpd.export import parity
from dvpd.runtime import sampler as runtime_sampler
from dvpd.runtime import schedule, stft
from dvpd.runtime.backends.base import LoadOptions
from dvpd.runtime.backends.ort import OrtBackend
from dvpd.runtime.spec import TLB_PRESETS, TlbFactors, padded_frames

SIZES = [(1, 32), (3, 32), (2, 100), (1, 252), (1, 512)]
TOLERANCE = {"fp32": 2e-5, "fp16": 5e-3}  # of the range; float32 rounding, three digits of half
SAME = 1e-6  # one graph, the same arithmetic in another batch
NONE, SEVERE = TLB_PRESETS["none"], TLB_PRESETS["severe"]


def _options(engine):
    paths = engine.manifest.verify_graphs(engine.folder)
    return LoadOptions(paths["predictive"], paths["score"], engine.manifest, "cpu", 1)


@pytest.fixture(scope="module")
def ort(fp32):
    backend = OrtBackend(_options(fp32))
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def ort_half(fp16):
    backend = OrtBackend(_options(fp16))
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def openvino(fp32):
    pytest.importorskip("openvino", reason="openvino is not installed: dvpd[openvino]")
    from dvpd.runtime.backends.openvino import OpenVinoBackend

    backend = OpenVinoBackend(_options(fp32))
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def speech(fp32):
    wav, source = parity.speech(fp32.config)
    assert source != "synthetic"
    return wav


def _case(speech, config, batch, n_frames, tlb=SEVERE):
    rng = np.random.default_rng(n_frames)
    noisy = stft.compress(stft.stft(speech, config.signal), config.signal)[None]
    first = rng.integers(0, noisy.shape[2] - n_frames, batch)
    x = np.concatenate([noisy[:, :, f : f + n_frames] for f in first])
    xt = x[:, 2:3] + 0.2 * rng.standard_normal((batch, 1, *x.shape[2:]), np.float32)
    t = np.linspace(0.12, 0.04, batch, dtype=np.float32)
    return x, xt, t, *tlb.arrays()


def _torch(model, x, xt, t, skip=None, backbone=None):
    tensors = [None if a is None else torch.from_numpy(a) for a in (x, xt, t, skip, backbone)]
    with torch.no_grad():
        clean, feats = model.predictive(tensors[0])
        sigma_z = model.score(tensors[1], tensors[2], feats, *tensors[3:])
    return clean.numpy(), sigma_z.numpy(), [f.numpy() for f in feats]


def _assert_parity(engine, backend, speech, batch, n_frames, precision="fp32"):
    case = _case(speech, engine.config, batch, n_frames)
    clean, sigma_z, feats = _torch(engine.model, *case)
    x, *rest = case
    got_clean, got_feats = backend.predict(x)
    got_sigma = backend.score(*rest[:2], got_feats, *rest[2:])
    tolerance = TOLERANCE[precision]
    assert parity.error_of_range(clean, got_clean) <= tolerance
    assert parity.error_of_range(sigma_z, got_sigma) <= tolerance
    for want, got in zip(feats, got_feats, strict=True):
        assert parity.error_of_range(want, np.asarray(got)) <= tolerance


@pytest.mark.parametrize(("batch", "n_frames"), SIZES)
def test_onnx_runtime_equals_torch(fp32, ort, speech, batch, n_frames):
    _assert_parity(fp32, ort, speech, batch, n_frames)


@pytest.mark.parametrize(("batch", "n_frames"), SIZES)
def test_openvino_equals_torch(fp32, openvino, speech, batch, n_frames):
    _assert_parity(fp32, openvino, speech, batch, n_frames)


@pytest.mark.parametrize(("batch", "n_frames"), [(2, 32), (1, 100)])
def test_half_is_near_torch(fp16, ort_half, speech, batch, n_frames):
    _assert_parity(fp16, ort_half, speech, batch, n_frames, "fp16")


def _waveforms(engine, backend, wav, tlb=NONE):
    """Torch sampler and runtime sampler on the same noise, as waveforms."""
    config = engine.config
    n_frames = padded_frames(config.signal.n_frames(len(wav)))
    rng = np.random.default_rng(5)
    spec = config.sampler
    noise = [
        rng.standard_normal((1, 1, n_frames, config.signal.n_freqs), np.float32)
        for _ in range(spec.n_steps)
    ]
    y = spectral.compressed_noisy(torch.from_numpy(wav)[None], config.signal)
    y = torch.nn.functional.pad(y, (0, 0, 0, n_frames - y.shape[2]))
    factors = {
        k: torch.from_numpy(v)
        for k, v in zip(("tlb_skip", "tlb_backbone"), tlb.arrays(), strict=True)
    }
    draws = [torch.from_numpy(z) for z in noise]
    ri, _ = torch_sde.sample(engine.model, y, draws, sde=config.sde, sampler=spec, **factors)
    want = spectral.istft_from_compressed(ri, len(wav), config.signal)[0].numpy()
    ri = runtime_sampler.sample(
        backend,
        y.numpy(),
        start=schedule.initial_state(config.sde, spec.t_rs),
        steps=schedule.sampler_steps(config.sde, spec.t_rs, spec.n_steps),
        alpha=spec.alpha,
        tlb=tlb,
        draw=lambda i: noise[i],
    )
    got = stft.istft(stft.decompress(ri[0], config.signal), len(wav), config.signal)
    return want, got


@pytest.mark.parametrize("preset", ["none", "severe"])
def test_samplers_agree(fp32, ort, speech, preset):
    want, got = _waveforms(fp32, ort, speech[:20000], TLB_PRESETS[preset])
    assert parity.snr_db(want, got) >= parity.MIN_SNR_DB["fp32"]


def test_samplers_agree_on_openvino(fp32, openvino, speech):
    want, got = _waveforms(fp32, openvino, speech[:20000])
    assert parity.snr_db(want, got) >= parity.MIN_SNR_DB["fp32"]


def test_samplers_agree_in_half(fp16, ort_half, speech):
    want, got = _waveforms(fp16, ort_half, speech[:20000])
    assert parity.snr_db(want, got) >= parity.MIN_SNR_DB["fp16"]


def test_tlb_of_ones_is_no_tlb(fp32, ort, speech):
    x, xt, t, *ones = _case(speech, fp32.config, 1, 64, NONE)
    _, without, _ = _torch(fp32.model, x, xt, t)
    _, feats = ort.predict(x)
    got = ort.score(xt, t, feats, *ones)
    assert parity.error_of_range(without, got) <= TOLERANCE["fp32"]


@pytest.mark.parametrize("index", range(8))
def test_every_tlb_factor_reaches_the_output(fp32, ort, speech, index):
    x, xt, t, *_ = _case(speech, fp32.config, 1, 32)
    _, feats = ort.predict(x)
    values = [1.0] * 8
    values[index] = 1.7
    factors = TlbFactors.from_mapping(
        {
            "skip": [values[0:2], values[2:4]],
            "backbone": [values[4:6], values[6:8]],
        }
    )
    before = ort.score(xt, t, feats, *NONE.arrays())
    after = ort.score(xt, t, feats, *factors.arrays())
    assert np.abs(after - before).max() > 1e-5


def test_batch_of_two_is_two_runs(fp32, ort, speech):
    x, xt, t, *tlb = _case(speech, fp32.config, 2, 100)
    clean, feats = ort.predict(x)
    sigma_z = ort.score(xt, t, feats, *tlb)
    for i in range(2):
        one = slice(i, i + 1)
        clean_one, feats_one = ort.predict(np.ascontiguousarray(x[one]))
        sigma_one = ort.score(xt[one], t[one], feats_one, *tlb)
        assert parity.error_of_range(clean[one], clean_one) <= SAME
        assert parity.error_of_range(sigma_z[one], sigma_one) <= SAME
