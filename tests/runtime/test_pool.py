"""Many streams, one engine."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from test_live import Networks, opened, run, speech

from dvpd.runtime import BackendError, InputError
from dvpd.runtime.enhancer import Enhancer
from dvpd.runtime.errors import NonFiniteError
from dvpd.runtime.pool import StreamPool
from dvpd.runtime.windows import WindowPlan

KINDS = [(16000, 1), (48000, 2), (44100, 1), (16000, 1)]


def alone(wav: np.ndarray, rate: int, channels: int, seed: int, steps: int = 2) -> np.ndarray:
    enhancer, _ = opened()
    return run(enhancer.stream(rate, channels, steps=steps, seed=seed, adapt=False), wav)


def made(steps: int = 2, **options) -> tuple[StreamPool, Networks]:
    enhancer, networks = opened()
    return enhancer.stream_pool(steps=steps, adapt=False, **options), networks


def parts(wavs, n: int = 10):
    """The next tenth of each recording, ten times."""
    return zip(*(np.array_split(wav, n) for wav in wavs), strict=True)


@pytest.mark.parametrize("max_batch", [64, 2])
def test_streams_give_what_they_give_alone(max_batch):
    pool, networks = made(max_batch=max_batch)
    streams = [pool.open(*kind, seed=i) for i, kind in enumerate(KINDS)]
    wavs = [speech(rate // 2, channels, i) for i, (rate, channels) in enumerate(KINDS)]
    outs: list[list[np.ndarray]] = [[] for _ in KINDS]
    for blocks in parts(wavs):
        results = pool.process(dict(zip(streams, blocks, strict=True)))
        for out, stream, block in zip(outs, streams, blocks, strict=True):
            assert results[stream].shape == block.shape
            out.append(results[stream])
    for i, (stream, wav, kind) in enumerate(zip(streams, wavs, KINDS, strict=True)):
        out = np.concatenate([*outs[i], stream.flush()])
        np.testing.assert_allclose(out, alone(wav, *kind, i), atol=1e-5)
    assert max(networks.batches) == min(5, max_batch)


def test_what_is_ready_is_one_batch_and_states_stay_together():
    pool, networks = made()
    streams = [pool.open(16000, seed=i) for i in range(8)]
    networks.batches.clear()
    wavs = [speech(8192, seed=i) for i in range(8)]
    for blocks in parts(wavs, 16):
        pool.process(dict(zip(streams, blocks, strict=True)))
    assert set(networks.batches) == {8}
    rows = [stream._core.lanes[0].predictive for stream in streams]
    assert all(row.stack is rows[0].stack for row in rows)


def test_streams_come_and_go():
    pool, networks = made()
    wavs = [speech(8192, seed=i) for i in range(3)]
    a, b = pool.open(16000, seed=0), pool.open(16000, seed=1)
    outs = {a: [], b: []}
    c = None
    for i, blocks in enumerate(parts(wavs, 16)):
        if i == 4:
            c = pool.open(16000, seed=2)
            outs[c] = []
        if i == 8:
            b.close()
        now = {a: blocks[0]} | ({b: blocks[1]} if i < 8 else {}) | ({c: blocks[2]} if c else {})
        for stream, out in pool.process(now).items():
            outs[stream].append(out)
    assert pool.streams == (a, c)
    assert {1, 2, 3} == set(networks.batches)
    for stream, wav, seed in ((a, wavs[0], 0), (b, wavs[1][:4096], 1), (c, wavs[2][2048:], 2)):
        out = np.concatenate(outs[stream])
        np.testing.assert_allclose(out, alone(wav, 16000, 1, seed)[: len(out)], atol=1e-5)
    # Nobody holds the states of those that left.
    assert {row.count for s in (a, c) for row in s._core.lanes[0].rows} == {2}
    a.process(speech(512))
    assert {row.count for s in (a, c) for row in s._core.lanes[0].rows} == {1}


@pytest.mark.parametrize("error", [NonFiniteError, BackendError, RuntimeError])
def test_a_stream_that_fails_harms_no_other(error, caplog):
    pool, networks = made()
    wavs = [speech(8192, seed=i) for i in range(3)]
    streams = [pool.open(16000, seed=i) for i in range(3)]
    wavs[1] = 0.2 * np.sin(np.arange(8192) * 2.0).astype(np.float32)
    networks.raised = lambda noisy: fail_on(noisy, error)
    outs = [[], [], []]
    for blocks in parts(wavs, 16):
        results = pool.process(dict(zip(streams, blocks, strict=True)))
        for out, stream in zip(outs, streams, strict=True):
            out.append(results[stream])
    assert networks.batches[-1] == (1 if error is NonFiniteError else 2)
    for i in (0, 2):
        out = np.concatenate(outs[i])
        np.testing.assert_allclose(out, alone(wavs[i], 16000, 1, i)[: len(out)], atol=1e-5)
    if error is NonFiniteError:
        assert streams[1].stats.passed > 10
        out = np.concatenate(outs[1])
        np.testing.assert_allclose(out[896:], wavs[1][:-896], atol=1e-4)
    else:
        assert isinstance(outs[1][-1], BackendError)
        assert "it is the tone" in str(outs[1][-1])
        with pytest.raises(BackendError, match="it is the tone"):
            streams[1].process(wavs[1])
        assert pool.streams == (streams[0], streams[2])


def fail_on(noisy: np.ndarray, error: type[Exception]) -> None:
    """Refuse a high tone."""
    power = np.square(noisy[:, :2]).sum(axis=(1, 2))
    if (power[:, 100:].sum(axis=1) > 0.5 * power.sum(axis=1)).any():
        raise error("it is the tone")


def test_bad_blocks_are_answered_with_their_error():
    pool, _ = made()
    wavs = [speech(4096, seed=i) for i in range(2)]
    good, bad = pool.open(16000, seed=0), pool.open(16000, seed=1)
    outs = []
    for i, blocks in enumerate(parts(wavs, 8)):
        broken = np.full(512, np.nan, np.float32) if i == 3 else np.zeros((512, 2), np.float32)
        results = pool.process({good: blocks[0], bad: broken})
        outs.append(results[good])
        assert isinstance(results[bad], np.ndarray if i == 3 else InputError)
    assert bad.stats.non_finite == 0  # not yet a whole block
    bad.process(wavs[1])
    assert bad.stats.non_finite == 1
    out = np.concatenate(outs)
    np.testing.assert_allclose(out, alone(wavs[0], 16000, 1, 0)[: len(out)], atol=1e-5)


def test_push_run_and_pull_may_be_apart():
    pool, networks = made()
    wav = speech(4096)
    streams = [pool.open(16000, seed=0) for _ in range(4)]
    networks.batches.clear()
    for stream in streams:
        stream.push(wav)
        assert len(stream.pull()) == 896  # the zeros before it
    assert pool.run() == 4 * 7
    assert networks.batches == [4] * 7
    for stream in streams:
        out = np.concatenate([np.zeros(896, np.float32), stream.pull(), stream.flush()])
        np.testing.assert_allclose(out, alone(wav, 16000, 1, 0), atol=1e-5)


def test_threads_take_turns():
    pool, _ = made()
    wavs = [speech(8192, seed=i) for i in range(4)]
    streams = [pool.open(16000, seed=i) for i in range(4)]
    outs: list[np.ndarray] = [np.zeros(0)] * 4

    def work(i: int) -> None:
        outs[i] = run(streams[i], wavs[i], range(256, 8192, 256))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, out in enumerate(outs):
        np.testing.assert_allclose(out, alone(wavs[i], 16000, 1, i), atol=1e-5)


def test_the_streams_of_a_pool_slow_down_together():
    enhancer, networks = opened()
    pool = enhancer.stream_pool(steps=3, clock=networks.clock)
    streams = [pool.open(16000) for _ in range(3)]
    networks.seconds = 0.02
    wav = speech(512 * 20)
    for block in np.array_split(wav, 20):
        pool.process(dict.fromkeys(streams, block))
    assert [stream.stats.steps_now for stream in streams] == [0] * 3
    for stream in streams:
        assert set(stream.stats.steps_used) == {3, 1, 0}
        assert stream.stats.compute_s == pytest.approx(networks.now / 3, rel=0.5)


def test_a_closed_pool_says_so():
    pool, _ = made()
    with pool:
        stream = pool.open(16000)
    with pytest.raises(InputError, match="this pool is closed"):
        pool.open(16000)
    with pytest.raises(InputError, match="closed"):
        stream.process(speech(10))
    with pytest.raises(InputError, match="max_batch"):
        made(max_batch=0)


def test_a_model_without_state_serves_a_pool_one_by_one():
    from tiny_graphs import make_manifest

    networks = Networks()
    plan = WindowPlan(8192, 1024, 512, 4096, 0)
    pool = Enhancer(make_manifest(), networks, plan).stream_pool(steps=0)
    streams = [pool.open(16000), pool.open(16000)]
    wav = speech(2000)
    results = pool.process({streams[0]: wav, streams[1]: wav})
    for stream in streams:
        out = np.concatenate([results[stream], stream.flush()])
        np.testing.assert_allclose(out[stream.latency_samples :], wav, atol=1e-5)
    streams = [pool.open(16000) for _ in range(3)]
    networks.raised = lambda noisy: fail_on(noisy, BackendError)
    tone = (0.2 * np.sin(np.arange(20_000) * 2.0)).astype(np.float32)
    results = pool.process({streams[0]: tone, streams[1]: speech(20_000), streams[2]: tone[:5000]})
    assert isinstance(results[streams[0]], BackendError)
    assert results[streams[1]].shape == (20_000,)
    with pytest.raises(BackendError, match="it is the tone"):
        streams[2].flush()  # a window shorter than others, at the end
    assert streams[0] not in pool.streams
    assert streams[2] not in pool.streams


def test_the_last_window_of_a_stream_is_timed_and_its_audio_counted():
    """A short stream is all last window: its factor was 0 (it was computed before the clock)."""
    from tiny_graphs import make_manifest

    networks = Networks()
    enhancer = Enhancer(make_manifest(), networks, WindowPlan(8192, 1024, 512, 4096, 0))
    pool = enhancer.stream_pool(steps=0, adapt=False, clock=networks.clock)

    def takes_half_a_second(_):
        networks.now += 0.5

    networks.raised = takes_half_a_second
    for n in (4000, 20_000):
        stream, begin = pool.open(16000), networks.now
        stream.process(speech(n))
        stream.flush()
        assert networks.now > begin
        assert stream.stats.compute_s == pytest.approx(networks.now - begin)
        assert stream.stats.seconds == pytest.approx(n / 16000)
