import threading
from pathlib import Path

import numpy as np
import pytest
from tiny_graphs import write_engine

from dvpd.runtime import BackendError, Enhancer
from dvpd.runtime.backends.choose import open_backend, physical_cores, share_threads
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.windows import WindowedStream, WindowPlan
from dvpd.runtime.workers import Workers

pytest.importorskip("onnxruntime")
SHORT = WindowPlan(
    window_samples=95 * 128,
    context_samples=8 * 128,
    fade_samples=4 * 128,
    reminder_samples=32 * 128,
)
WAIT_S = 30.0
TINY = Path(__file__).resolve().parents[2] / "engines" / "dvpd-tiny"


def opened(folder, threads, backend="ort"):
    return Enhancer.open(folder, backend, "cpu", threads, window_plan=SHORT)


class TwoAtATime:
    """Stands for a backend that two threads may call."""

    name, device = "two", "cpu"

    def for_workers(self):
        return self, 2


@pytest.fixture
def workers():
    with Workers(TwoAtATime()) as running:
        yield running


@pytest.fixture
def stereo(speech):
    return np.stack([speech, 0.5 * speech[::-1]], axis=1)


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_output_does_not_depend_on_the_number_of_workers(engine_shared, stereo, backend):
    pytest.importorskip({"ort": "onnxruntime"}.get(backend, backend))
    outputs, seen = [], []
    for threads in (1, 2, 3):
        with opened(engine_shared, threads, backend) as enhancer:
            seen.clear()
            done = enhancer.enhance(stereo, 16000, steps=1, progress=seen.append)
        outputs.append(done.wav)
        assert seen == sorted(seen)
        assert len(seen) > 3
        assert seen[-1] == 1.0
    assert np.abs(outputs[0]).max() > 0.01
    np.testing.assert_array_equal(outputs[1], outputs[0])
    np.testing.assert_array_equal(outputs[2], outputs[0])


class PredictAlone:
    """A backend without ``estimate``, as others write them."""

    name, device = "alone", "cpu"

    def __init__(self, inner):
        self.predict, self.score, self.close = inner.predict, inner.score, inner.close


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_without_steps_no_thread_computes_what_only_steps_need(speech, backend):
    pytest.importorskip({"ort": "onnxruntime"}.get(backend, backend))
    manifest = Manifest.load(TINY)
    assert not manifest.sampler.n_steps
    whole = open_backend(TINY, manifest, backend, "cpu", 1)
    with Enhancer(manifest, PredictAlone(whole), SHORT) as enhancer:
        expected = enhancer.enhance(speech, 16000).wav
    for threads in (1, 2, 3):
        with opened(TINY, threads, backend) as enhancer:
            got = enhancer.enhance(speech, 16000).wav
            backends = {enhancer.backend, enhancer.backend.for_workers()[0]}
            assert len(backends) == 1 + (threads > 1)
            for one in backends:
                loaded = one._sessions if backend == "ort" else one._requests
                assert list(loaded) == ["estimate"]
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def come_and_go(enhancer, wav):
    """Enhance with another number of threads after each piece; the result, and all threads then."""
    shares, seen = [1, 3, 2, 1, 4, 1], []
    enhancer._workers.share = lambda: shares[min(len(seen), 5)]

    def progress(share):
        seen.append(threading.active_count())

    return enhancer.enhance(wav, 16000, steps=1, progress=progress).wav, seen


@pytest.mark.parametrize("backend", ["ort", "openvino"])
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_that_come_and_go_change_no_sample(engine_shared, stereo, backend, threads):
    """As the last file of a folder gets the cores of processes that have nothing to do."""
    pytest.importorskip({"ort": "onnxruntime"}.get(backend, backend))
    with opened(engine_shared, threads, backend) as enhancer:
        expected = enhancer.enhance(stereo, 16000, steps=1).wav
        made, seen = come_and_go(enhancer, stereo)
        np.testing.assert_array_equal(made, expected)
        assert max(seen) > seen[0] or (backend, threads) != ("ort", 1)


def test_a_file_comes_out_the_same(engine_shared, stereo, tmp_path):
    import soundfile

    soundfile.write(tmp_path / "in.wav", stereo, 44100)  # goes through both resamplers
    for threads in (1, 2):
        with opened(engine_shared, threads) as enhancer:
            enhancer.enhance_file(tmp_path / "in.wav", tmp_path / f"{threads}.wav", steps=1)
    assert (tmp_path / "1.wav").read_bytes() == (tmp_path / "2.wav").read_bytes()


def test_several_windows_have_a_thread_each_and_one_has_them_all(engine_shared, speech):
    with opened(engine_shared, 2) as enhancer:
        alone, (shared, count) = [], enhancer.backend.for_workers()
        assert count == 2
        assert enhancer.backend.for_workers()[0] is shared
        beside, both = [], threading.Barrier(2)

        def watch(backend, calls):
            predict = backend.predict

            def watched(noisy):
                if calls is beside and len(calls) < 2:
                    calls.append(threading.current_thread())
                    both.wait(WAIT_S)  # breaks unless another window is computed meanwhile
                calls.append(threading.current_thread())
                return predict(noisy)

            backend.predict = watched

        watch(enhancer.backend, alone)
        watch(shared, beside)
        enhancer.enhance(speech, 16000, steps=0)
        assert not alone
        assert len(set(beside)) == 2
        assert threading.main_thread() not in beside
        n_before = len(beside)
        enhancer.enhance(speech[: SHORT.window_samples], 16000, steps=0)
        assert (alone, len(beside)) == ([threading.current_thread()], n_before)


def test_pieces_are_in_order_whatever_is_ready_first(workers):
    second = threading.Event()

    def process(wav, first_frame):
        if first_frame == 0:
            assert second.wait(WAIT_S)
        second.set()
        return wav

    work = workers.work(3, threading.Lock())
    stream = WindowedStream(work.begin(process), SHORT, 128)
    wav = np.random.default_rng(0).standard_normal(3 * SHORT.step_samples).astype(np.float32)
    pieces = [*stream.push(wav), *stream.finish()]
    assert len(pieces) > 2
    np.testing.assert_allclose(np.concatenate([p() for p in pieces]), wav, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
def test_few_windows_are_begun_before_the_oldest_is_returned(engine_shared, speech, threads):
    """Progress is told after a piece: by then hardly more has been computed than was returned."""
    with opened(engine_shared, threads) as enhancer:
        backend, count = enhancer.backend.for_workers()
        begun, ahead, predict = [], [], backend.predict
        backend.predict = lambda noisy: begun.append(1) or predict(noisy)
        pieces = []

        def progress(share):
            pieces.append(share)
            ahead.append(len(begun) - len(pieces))

        enhancer.enhance(np.tile(speech, 4), 16000, steps=0, progress=progress)
    assert len(begun) > 20
    assert max(ahead) <= count * (threads > 1)


def test_an_error_in_a_worker_is_the_recordings(tmp_path, speech):
    import onnx
    from tiny_graphs import predictive_model

    graph = predictive_model("fp32", onnx, clean_ri_gain=1e15)  # finite, but not after x^(1/0.3)
    with opened(write_engine(tmp_path / "e", predictive=graph), 2) as loud:
        for _ in range(2):  # and the next one's, too: the threads live on
            with pytest.raises(BackendError, match="beyond any signal near second"):
                loud.enhance(speech, 16000, steps=0)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_ends_a_recording_leaves_no_windows_behind(engine_shared, speech, error):
    wav = np.tile(speech, 8)
    with opened(engine_shared, 2) as enhancer:
        shared, _ = enhancer.backend.for_workers()
        calls, predict = [], shared.predict
        shared.predict = lambda noisy: calls.append(1) or predict(noisy)
        expected = enhancer.enhance(speech, 16000, steps=1).wav
        calls.clear()

        def progress(share):
            raise error

        with pytest.raises(error):
            enhancer.enhance(wav, 16000, steps=1, progress=progress)
        assert len(calls) <= 5  # of fifty
        again = enhancer.enhance(speech, 16000, steps=1).wav
        np.testing.assert_array_equal(again, expected)


def test_a_window_that_nobody_waits_for_stops_between_two_calls(workers):
    work = workers.work(2, threading.Lock())
    work.check()
    begun, stopped = threading.Event(), threading.Event()

    def process(wav, first_frame):
        begun.set()
        assert stopped.wait(WAIT_S)
        work.check()
        return wav

    piece = work.begin(process)(np.ones(4, np.float32), 0)
    assert begun.wait(WAIT_S)
    work.stop()
    stopped.set()
    with pytest.raises(BackendError, match="given up"):
        piece()


def test_closed_while_it_is_at_work(engine_shared, speech):
    enhancer = opened(engine_shared, 2)

    def progress(share):
        enhancer.close()

    with pytest.raises(BackendError, match="closed"):
        enhancer.enhance(np.tile(speech, 4), 16000, steps=1, progress=progress)
    with pytest.raises(BackendError, match="closed"):
        enhancer.enhance(speech, 16000, steps=1)


def test_live_models_keep_their_threads(engine_causal):
    with Enhancer.open(engine_causal, "ort", "cpu", 2) as enhancer:
        assert enhancer.backend.for_workers() == (enhancer.backend, 1)


def test_in_low_memory_no_window_is_begun_beside_another(engine_shared, speech):
    with opened(engine_shared, 2) as enhancer:
        beside = enhancer.enhance(speech, 16000, steps=1).wav
    options = {"window_plan": SHORT, "low_memory": True}
    with Enhancer.open(engine_shared, "ort", "cpu", 2, **options) as enhancer:
        assert enhancer.backend.for_workers() == (enhancer.backend, 1)
        work = enhancer._workers.work(3, enhancer._lock)
        assert (work.backend, work.ahead) == (enhancer.backend, 0)
        in_turn = enhancer.enhance(speech, 16000, steps=1).wav
        assert enhancer._workers._pool is None
    np.testing.assert_array_equal(in_turn, beside)


@pytest.mark.parametrize(
    ("threads", "shares"), [(1, (1, 1)), (2, (2, 1)), (4, (4, 1)), (7, (4, 1)), (16, (4, 4))]
)
def test_no_more_threads_than_were_asked_for(threads, shares):
    assert share_threads(threads) == shares


def test_physical_cores():
    assert 1 <= physical_cores() <= 4096
