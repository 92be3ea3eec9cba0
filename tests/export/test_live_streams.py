"""A causal model's graphs as streams: what a file gives, on every backend, alone and in a pool."""

from __future__ import annotations

import numpy as np
import pytest

from dvpd.quality.models import open_model
from dvpd.runtime import Enhancer


def speech(seed: int = 0, n: int = 8_000) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(n) * np.sin(np.arange(n) * 3e-4)).astype(np.float32)


def run(stream, wav: np.ndarray, size: int) -> np.ndarray:
    pieces = [stream.process(wav[i : i + size]) for i in range(0, len(wav), size)]
    return np.concatenate([*pieces, stream.flush()])[stream.latency_samples :]


def below_db(out: np.ndarray, wanted: np.ndarray) -> float:
    return float(10 * np.log10(np.mean((out - wanted) ** 2) / np.mean(wanted**2)))


@pytest.mark.parametrize(("backend", "rate"), [("ort", 16000), ("ort", 48000), ("openvino", 44100)])
def test_a_stream_is_within_80_db_of_a_file(live, backend, rate):
    pytest.importorskip({"ort": "onnxruntime"}.get(backend, backend))
    wav = speech()
    with Enhancer.open(live, backend, "cpu", 1) as enhancer:
        wanted = enhancer.enhance(wav, rate, steps=2).wav
        out = run(enhancer.stream(rate, steps=2, adapt=False), wav, 480)
    assert below_db(out, wanted) < -80
    assert below_db(out, wav) > -60


@pytest.mark.parametrize("backend", ["ort", "torch"])
def test_streams_of_a_pool_give_what_they_give_alone(live, backend):
    pytest.importorskip({"ort": "onnxruntime"}.get(backend, backend))
    folder = live if backend == "ort" else live.parent / "live.safetensors"
    wavs = [speech(i) for i in range(3)]
    opened = Enhancer.open(folder, "ort", "cpu", 1) if backend == "ort" else open_model(folder)
    with opened as enhancer:
        alone = [
            run(enhancer.stream(16000, seed=i, steps=1, adapt=False), wav, 512)
            for i, wav in enumerate(wavs)
        ]
        pool = enhancer.stream_pool(steps=1, adapt=False)
        streams = [pool.open(16000, seed=i) for i in range(2)]
        outs: list[list[np.ndarray]] = [[], [], []]
        for first in range(0, 8_000, 800):
            if first == 2400:  # joins while the others have a state
                streams.append(pool.open(16000, seed=2))
            blocks = {s: wavs[i][first : first + 800] for i, s in enumerate(streams)}
            if len(streams) == 3:
                blocks[streams[2]] = wavs[2][first - 2400 : first - 1600]
            for out, piece in zip(outs, pool.process(blocks).values(), strict=False):
                out.append(piece)
    for out, wanted in zip(outs, alone, strict=True):
        joined = np.concatenate(out)[896 + 512 :]
        assert np.abs(joined - wanted[: len(joined)]).max() < 1e-5
