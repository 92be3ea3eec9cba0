"""Live streams on TensorRT against the recording stand-in: states on the device, a block a graph."""

import gc
import logging
from dataclasses import replace

import numpy as np
import pytest
from fake_cuda import cudaError
from tiny_graphs import CAUSAL, make_manifest, write_engine
from trt_rig import Rig

from dvpd.runtime.backends.base import Row
from dvpd.runtime.backends.cuda import DeviceLostError, DeviceMemoryError
from dvpd.runtime.backends.trt_stream import SPARE
from dvpd.runtime.enhancer import Enhancer
from dvpd.runtime.errors import BackendError, InputError, NonFiniteError
from dvpd.runtime.schedule import initial_state, sampler_steps
from dvpd.runtime.spec import TLB_PRESETS

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(params=[0, 1], ids=["no look-ahead", "one block ahead"])
def rig(request, tmp_path):
    causal = replace(CAUSAL, lookahead_blocks=request.param)
    return Rig(write_engine(tmp_path / "e", manifest=make_manifest(causal=causal))).build()


@pytest.fixture
def plain(tmp_path):
    return Rig(write_engine(tmp_path / "e", manifest=make_manifest(causal=CAUSAL))).build()


def signal(seed=0, n=4096):
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(n) * np.sin(np.arange(n) * 3e-4)).astype(np.float32)


def heard(stream, wav, size=512):
    blocks = [stream.process(wav[i : i + size]) for i in range(0, len(wav), size)]
    return np.concatenate([*blocks, stream.flush()])


def on_cpu(rig, work):
    with Enhancer.open(rig.folder, "ort", "cpu", 1) as enhancer:
        return work(enhancer)


def arguments(batch, n_frames=4, n_steps=1, seed=0):
    rng = np.random.default_rng(seed)
    noisy = rng.standard_normal((batch, 3, n_frames, 257)).astype(np.float32)
    noise = rng.standard_normal((n_steps, batch, 1, n_frames, 257)).astype(np.float32)
    manifest = make_manifest()
    settings = {
        "start": initial_state(manifest.sde, 0.12),
        "steps": sampler_steps(manifest.sde, 0.12, n_steps) if n_steps else (),
        "alpha": 0.4,
        "tlb": TLB_PRESETS["none"],
    }
    return noisy, noise, settings


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_stream_equals_the_cpu_and_a_block_is_one_graph(rig, steps):
    wav = signal()
    enhancer = Enhancer(rig.manifest, rig.open())
    got = heard(enhancer.stream(16000, steps=steps, adapt=False, tlb="severe"), wav)
    want = on_cpu(
        rig, lambda e: heard(e.stream(16000, steps=steps, adapt=False, tlb="severe"), wav)
    )
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    n_blocks = len(wav) // 512 + 1 + rig.manifest.causal.lookahead_blocks
    assert rig.gpu.calls.count("cudaStreamBeginCapture") == 1
    # The first calls of the warm-up and of the stream run call by call, or are captured.
    assert rig.gpu.calls.count("cudaGraphLaunch") >= n_blocks
    enhancer.close()
    left = (rig.gpu.pinned, rig.gpu.streams, rig.gpu.execs, rig.gpu.graphs)
    assert not any(left)
    gc.collect()
    assert not rig.gpu.memory


def test_a_half_precision_engine_keeps_its_states_in_float32_on_the_device(tmp_path):
    manifest = make_manifest("fp16", causal=CAUSAL)
    rig = Rig(write_engine(tmp_path / "e", "fp16", manifest)).build()
    wav = signal(n=24 * 512)
    backend = rig.open()
    got = heard(Enhancer(rig.manifest, backend).stream(16000, steps=1, adapt=False), wav)
    want = on_cpu(rig, lambda e: heard(e.stream(16000, steps=1, adapt=False), wav))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    assert rig.gpu.calls.count("cudaStreamBeginCapture") == 1
    assert set(backend._memory._spare) == set(CAUSAL.state_size.values())  # floats of a state
    sizes = {n for kind, n in rig.gpu.copies if kind == "D2D"}
    assert sizes == {4 * n for n in CAUSAL.state_size.values()}
    noisy = np.random.default_rng(0).standard_normal((2, 3, 8, 257)).astype(np.float32)
    xt, t = np.ascontiguousarray(noisy[:, 2:]), np.full(2, 0.1, np.float32)
    ones = np.ones((2, 2), np.float32)

    def call(backend):
        clean_ri, feats, _ = backend.predict_next(noisy, None)
        return clean_ri, backend.score_next(xt, t, feats, ones, ones, None)[0]

    wanted = on_cpu(rig, lambda e: call(e.backend))
    for one, other in zip(call(rig.open()), wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_states_never_leave_the_device_and_nothing_is_allocated_in_a_block(plain):
    enhancer = Enhancer(plain.manifest, plain.open())
    stream = enhancer.stream(16000, steps=1, adapt=False)
    wav = signal(n=40 * 512)
    stream.process(wav[: 8 * 512])
    plain.gpu.copies.clear()
    plain.gpu.calls.clear()
    for first in range(8 * 512, len(wav), 512):
        stream.process(wav[first : first + 512])
    assert "cudaMalloc" not in plain.gpu.calls
    assert "cudaFree" not in plain.gpu.calls
    kinds = [kind for kind, _ in plain.gpu.copies]
    n_blocks = kinds.count("D2H")  # what comes back is one copy, what goes there one
    assert n_blocks == kinds.count("H2D") == plain.gpu.calls.count("cudaGraphLaunch") == 32
    assert kinds.count("D2D") == 4 * n_blocks  # each of two states, in and out
    (size,) = {n for kind, n in plain.gpu.copies if kind == "D2H"}
    assert size == 2 * 4 * 257 * 4


def test_streams_of_a_pool_come_and_go_on_the_device(plain):
    wavs = [signal(seed=i) for i in range(5)]
    enhancer = Enhancer(plain.manifest, plain.open())

    def pooled(enhancer):
        pool = enhancer.stream_pool(steps=1, adapt=False)
        streams = [pool.open(16000, seed=i) for i in range(5)]
        outs = [[] for _ in wavs]
        for turn in range(8):
            for i, (stream, out) in enumerate(zip(streams, outs, strict=True)):
                if (turn + i) % 3:  # 3 or 4 of the 5 have a block
                    out.append(wavs[i][sum(map(len, out)) :][:512])
                    stream.push(out[-1])
            pool.run()
        return [np.concatenate([s.pull(), s.flush()]) for s in streams]

    got = pooled(enhancer)
    want = on_cpu(plain, pooled)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    batches = {batch for batch, _, _ in enhancer.backend._slots}
    assert batches <= {1, 2, 4, 8}  # three streams take four places: no shape of their own


def test_steps_that_return_come_in_as_on_the_cpu(rig, monkeypatch):
    wav = signal(n=12 * 512)

    def governed(enhancer):
        stream = enhancer.stream(16000, steps=3)
        governor, out = stream._pool._governor, []
        for level, first in zip(
            (0, 1, 1, 0, 0, 0, 2, 2, 1, 1, 0, 0), range(0, 6144, 512), strict=True
        ):
            governor._level = level
            out.append(stream.process(wav[first : first + 512]))
        return np.concatenate(out)

    monkeypatch.setattr("dvpd.runtime.governor.Governor._choose", lambda self, late: None)
    got = governed(Enhancer(rig.manifest, rig.open()))
    want = on_cpu(rig, governed)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_calls_one_by_one_equal_the_cpu(plain):
    rng = np.random.default_rng(0)
    noisy = rng.standard_normal((2, 3, 8, 257)).astype(np.float32)
    xt, t = np.ascontiguousarray(noisy[:, 2:]), np.full(2, 0.1, np.float32)
    tlb = TLB_PRESETS["severe"].arrays()

    def calls(backend):
        heard = diffused = None
        found = []
        for _ in range(2):
            clean_ri, feats, heard = backend.predict_next(noisy, heard)
            sigma_z, diffused = backend.score_next(xt, t, feats, *tlb, diffused)
            found += [clean_ri, sigma_z]
        return found

    want = on_cpu(plain, lambda e: calls(e.backend))
    for one, other in zip(calls(plain.open()), want, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_a_file_is_enhanced_as_on_the_cpu(rig):
    wav = signal(n=40_000)  # more than a call of 256 frames
    got = Enhancer(rig.manifest, rig.open()).enhance(wav, 16000, steps=1).wav
    want = on_cpu(rig, lambda e: e.enhance(wav, 16000, steps=1).wav)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_a_call_that_fails_leaves_the_states_as_they_were(plain):
    backend = plain.open()
    noisy, noise, settings = arguments(2)
    first = backend.run_block(noisy, noisy, noise, [None, None], **settings)
    with np.errstate(invalid="ignore"), pytest.raises(NonFiniteError):
        backend.run_block(noisy, noisy, noise * np.inf, first.states, **settings)
    plain.trt.refuse, plain.trt.said = {"sigma_z"}, "cask"
    backend.capture = False
    backend._slots.clear()
    with pytest.raises(BackendError, match="cask"):
        backend.run_block(noisy, noisy, noise, first.states, **settings)
    plain.trt.refuse = set()
    plain.gpu.streams[backend._stream].clear()
    got = backend.run_block(noisy, noisy, noise, first.states, **settings).fused
    other = plain.open()
    again = other.run_block(noisy, noisy, noise, [None, None], **settings)
    want = other.run_block(noisy, noisy, noise, again.states, **settings).fused
    np.testing.assert_array_equal(got, want)


def test_what_lay_in_a_place_before_is_not_heard(plain):
    backend = plain.open()
    noisy, noise, settings = arguments(4)
    backend.run_block(1e3 * noisy, noisy, noise, [None, None], **settings)
    three, more, _ = arguments(3, seed=1)  # in the same places
    got = backend.run_block(three, three, more, [None, None], **settings).fused
    want = plain.open().run_block(three, three, more, [None, None], **settings).fused
    np.testing.assert_array_equal(got, want)


def test_memory_of_states_is_used_again_and_what_is_too_much_is_freed(plain):
    backend = plain.open()
    noisy, noise, settings = arguments(1)
    held = [backend.run_block(noisy, noisy, noise, [None, None], **settings) for _ in range(12)]
    many = plain.gpu.used()
    del held
    gc.collect()
    assert plain.gpu.used() == many  # nothing is freed outside a call
    result = backend.run_block(noisy, noisy, noise, [None, None], **settings)
    few = plain.gpu.used()
    assert few < many
    for _ in range(5):
        result = backend.run_block(noisy, noisy, noise, result.states, **settings)
    assert plain.gpu.used() == few
    assert all(len(spare) <= SPARE for spare in backend._memory._spare.values())
    backend.close()
    assert plain.gpu.used() > 0  # what somebody holds
    del result
    gc.collect()
    assert plain.gpu.used() == 0


def test_full_memory_halves_the_batch_of_streams(plain, caplog):
    backend = plain.open()
    noisy, noise, settings = arguments(8)
    want = backend.run_block(noisy, noisy, noise, [None, None], **settings)
    want = backend.run_block(noisy, noisy, noise, want.states, **settings).fused
    backend.close()
    # Room for the states of 8, but not for the tensors of their calls.
    sizes = sum(CAUSAL.state_size.values()) * 4
    backend = plain.open()
    before = plain.gpu.used()
    backend.run_block(*(x[:4] for x in (noisy, noisy)), noise[:, :4], [None, None], **settings)
    needed = plain.gpu.used() - before
    for key in list(backend._slots):
        backend._drop(key)
    plain.gpu.capacity = before + needed + 4 * 8 * sizes
    with caplog.at_level(logging.WARNING, "dvpd"):
        first = backend.run_block(noisy, noisy, noise, [None, None], **settings)
        got = backend.run_block(noisy, noisy, noise, first.states, **settings).fused
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
    assert [r.getMessage().endswith("batches of 4") for r in caplog.records] == [True]
    plain.gpu.capacity = 0
    for key in list(backend._slots):
        backend._drop(key)
    with pytest.raises(DeviceMemoryError):
        backend.run_block(noisy, noisy, noise, first.states, **settings)


def test_what_does_not_fit_is_refused(plain):
    backend = plain.open()
    noisy, noise, settings = arguments(2)
    states = backend.run_block(noisy, noisy, noise, [None, None], **settings).states
    with pytest.raises(InputError, match="returned here for 1 streams"):
        backend.run_block(noisy[:1], noisy[:1], noise[:, :1], states, **settings)
    with pytest.raises(InputError, match="not what a call of the predictive graph"):
        backend.predict_next(noisy, np.zeros((2, 514), np.float32))
    with pytest.raises(InputError, match="expected"):
        backend.run_block(noisy, noisy[:, :, :0], noise, states, **settings)
    with pytest.raises(InputError, match="hold 4 to 256"):
        backend.predict_next(np.zeros((1, 3, 260, 257), np.float32), None)
    for call in (backend.predict, lambda x: backend.run_sampler(x, noise, **settings)):
        with pytest.raises(InputError, match="use predict_next and score_next"):
            call(np.zeros((2, 3, 32, 257), np.float32))
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.run_block(noisy, noisy, noise, states, **settings)


def test_rows_are_joined_on_the_device(plain):
    backend = plain.open()
    noisy, _, _ = arguments(3)
    _, _, three = backend.predict_next(noisy, None)
    plain.gpu.copies.clear()
    joined = backend.join_states([Row(three, 2, 3), None, Row(three, 0, 3)])
    assert {kind for kind, _ in plain.gpu.copies} == {"D2D"}
    swapped = noisy[[2, 1, 0]]
    got, _, _ = backend.predict_next(swapped, joined)
    want, _, _ = backend.predict_next(noisy, three)
    begun, _, _ = backend.predict_next(noisy, None)
    np.testing.assert_array_equal(got, [want[2], begun[1], want[0]])


def test_a_lost_device_ends_the_stream_and_says_so(plain):
    enhancer = Enhancer(plain.manifest, plain.open())
    stream = enhancer.stream(16000, steps=1, adapt=False)
    stream.process(signal(n=2048))
    plain.gpu.fail["cudaStreamSynchronize"] = cudaError.cudaErrorLaunchFailure
    with pytest.raises(DeviceLostError, match="start a new process"):
        stream.process(signal(n=2048))
    with pytest.raises(DeviceLostError):
        stream.process(signal(n=2048))
    enhancer.close()
