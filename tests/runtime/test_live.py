"""Streams: blocks of any size in and out, late by exactly what is said."""

from __future__ import annotations

import dataclasses
import logging
from collections import deque

import numpy as np
import pytest
from tiny_graphs import CAUSAL, make_manifest, write_engine

from dvpd.runtime import Enhancer, InputError
from dvpd.runtime.block_sampler import FADE_FRAMES
from dvpd.runtime.errors import BackendError, NonFiniteError
from dvpd.runtime.live import Stream
from dvpd.runtime.polyphase import Polyphase
from dvpd.runtime.pool import StreamPool
from dvpd.runtime.spec import CausalSpec, SignalSpec, stream_latency
from dvpd.runtime.windows import WindowPlan

RATES = [8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000, 192000]


class Networks:
    """Networks with a short memory: what they return also has some of the frame before.

    Attributes:
        batches: Channels of each call.
        seconds: What a call takes by ``clock``.
        raised: Called with each batch, may raise.
        gain: Of the next estimate.
    """

    name, device = "fake", "cpu"

    def __init__(self, late: int = 0, echo: float = 0.3) -> None:
        self.late, self.echo = late, echo
        self.batches: list[int] = []
        self.now = self.seconds = 0.0
        self.raised = lambda noisy: None
        self.gain = 1.0

    def clock(self) -> float:
        return self.now

    def _next(self, x, state):
        self.now += self.seconds
        past = np.zeros((len(x), x.shape[1], self.late + 1, 257), np.float32)
        if state is not None:
            past = state.reshape(past.shape)
        both = np.concatenate([past, x], axis=2)
        n = x.shape[2]
        out = both[:, :, 1 : n + 1] + self.echo * both[:, :, :n]
        return out, both[:, :, n:].reshape(len(x), -1)

    def predict_next(self, noisy, state):
        self.batches.append(len(noisy))
        self.raised(noisy)
        out, after = self._next(noisy[:, :2], state)
        gain, self.gain = np.float32(self.gain), 1.0
        return gain * out, [None] * 6, after

    def score_next(self, xt, t, feats, tlb_skip, tlb_backbone, state):
        past = None if state is None else state
        late, self.late = self.late, 0
        out, after = self._next(xt, past)
        self.late = late
        return np.float32(0.3) * out, after

    def predict(self, noisy):
        self.raised(noisy)
        return noisy[:, :2], [None] * 6

    def score(self, xt, t, feats, tlb_skip, tlb_backbone):
        return np.float32(0.3) * xt

    def close(self):
        pass


def causal(blocks: int = 0) -> CausalSpec:
    return CausalSpec(blocks, CAUSAL.state_size, stream_latency(SignalSpec(), blocks))


def opened(blocks: int = 0, echo: float = 0.3, **changes) -> tuple[Enhancer, Networks]:
    networks = Networks(4 * blocks, echo)
    manifest = dataclasses.replace(make_manifest(causal=causal(blocks)), **changes)
    return Enhancer(manifest, networks), networks


def begun(enhancer: Enhancer, rate: int, channels: int = 1, **options) -> Stream:
    """A stream that takes all its steps, however slow the machine."""
    return enhancer.stream(rate, channels, adapt=False, **options)


def speech(n: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    # Slow enough for every rate.
    smooth = np.convolve(rng.standard_normal(n * channels + 59), np.hanning(60), "valid")
    wav = smooth.reshape(channels, n).T * np.sin(np.arange(n) * 3e-4)[:, None]
    wav = (0.02 * wav).astype(np.float32)
    return wav[:, 0] if channels == 1 else wav


def run(stream: Stream, wav: np.ndarray, cuts=()) -> np.ndarray:
    pieces = []
    for part in np.split(wav, cuts):
        pieces.append(stream.process(part))
        assert pieces[-1].shape == part.shape
        assert pieces[-1].dtype == np.float32
    pieces.append(stream.flush())
    out = np.concatenate(pieces)
    assert len(out) == len(wav) + stream.latency_samples
    return out


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("engines") / "causal"
    with Enhancer.open(write_engine(folder, manifest=make_manifest(causal=CAUSAL))) as enhancer:
        yield enhancer


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16000, 2), (44100, 1), (48000, 2)])
def test_a_stream_gives_what_a_file_does(engine, rate, channels):
    wav = speech(rate, channels)
    whole = engine.enhance(wav, rate, steps=3, attenuation_limit_db=30).wav
    stream = begun(engine, rate, channels, steps=3, attenuation_limit_db=30)
    out = run(stream, wav, range(100, len(wav), 777))[stream.latency_samples :]
    assert np.sqrt(np.mean((out - whole) ** 2)) < 1e-4 * np.sqrt(np.mean(whole**2))
    assert np.abs(out - wav).max() > 0.1 * np.abs(wav).max()


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_the_size_of_the_blocks_changes_nothing(rate):
    enhancer, _ = opened(1)
    wav = speech(rate // 2)
    whole = run(begun(enhancer, rate, steps=1), wav)
    cuts = [1, 2, 2, 2, 5, 600, 5000]
    rng = np.random.default_rng(1)
    for cut in (cuts, range(160, len(wav), 160), np.sort(rng.integers(0, len(wav), 60))):
        assert np.array_equal(run(begun(enhancer, rate, steps=1), wav, cut), whole)


@pytest.mark.parametrize("blocks", [0, 1, 3])
@pytest.mark.parametrize("rate", RATES)
def test_output_is_late_by_exactly_what_is_said(rate, blocks):
    enhancer, _ = opened(blocks, echo=0.0)
    stream = begun(enhancer, rate, steps=0)
    own = 56.0 + 32.0 * blocks
    assert own <= stream.latency_ms <= own + (0.0 if rate == 16000 else 8.0)
    wav, place = speech(rate // 4), rate // 5
    impulse = np.zeros_like(wav)
    impulse[place] = 0.5
    out = run(stream, impulse, range(64, len(wav), 333))
    assert np.abs(out).argmax() == place + stream.latency_samples
    assert not out[: stream.latency_samples].any()
    stream.reset()
    out = run(stream, wav, range(64, len(wav), 333))
    lags = np.fft.irfft(np.fft.rfft(out, 2 * len(out)) * np.conj(np.fft.rfft(wav, 2 * len(out))))
    assert lags.argmax() == stream.latency_samples


def test_windows_of_another_model_are_late_by_what_is_said():
    plan = WindowPlan(8192, 1024, 512, 4096, 2048)
    enhancer = Enhancer(make_manifest(), Networks(), plan)
    wav = speech(48000, 2)
    stream = begun(enhancer, 16000, 2, steps=0)
    assert stream.latency_samples == 8192 + 512
    whole = run(stream, wav)
    assert np.array_equal(
        run(begun(enhancer, 16000, 2, steps=0), wav, range(70, 48000, 700)), whole
    )
    np.testing.assert_allclose(whole[stream.latency_samples :], wav, atol=1e-5)
    assert stream.stats.blocks == 1 + -(-(48000 - plan.cut_samples) // plan.step_samples)
    with begun(enhancer, 48000, steps=1) as fast:
        assert len(run(fast, speech(30000), range(480, 30000, 480))) == 30000 + fast.latency_samples


def held(thing) -> int:
    """Bytes of all arrays that an object of this project reaches."""
    if isinstance(thing, np.ndarray):
        return thing.nbytes
    if isinstance(thing, (list, tuple, deque)):
        return sum(held(part) for part in thing)
    known = type(thing).__module__.startswith("dvpd.runtime") and hasattr(thing, "__dict__")
    if not known or isinstance(thing, StreamPool):
        return 0
    return sum(held(part) for part in vars(thing).values())


def test_memory_does_not_grow():
    enhancer, _ = opened(1)
    stream = begun(enhancer, 48000, 2, steps=1, attenuation_limit_db=20)
    block = speech(1440, 2)
    sizes = []
    for _ in range(3):
        for _ in range(16):  # so many are whole blocks of the model's
            stream.process(block)
        sizes.append(held(stream))
    assert sizes[0] > 10_000
    assert sizes == [sizes[0]] * 3


@pytest.mark.parametrize(("rate_in", "rate_out"), [(44100, 16000), (16000, 44100), (48000, 16000)])
def test_a_day_later_resamplers_give_the_same(rate_in, rate_out):
    wav = speech(3000)[:, None]
    fresh, old = (Polyphase(rate_in, rate_out, 1) for _ in range(2))
    seconds = 86_400  # whole ones lie on both grids
    old._n_in += seconds * rate_in
    old._first += seconds * rate_in
    old._n_out += seconds * rate_out
    for part in np.array_split(wav, 7):
        np.testing.assert_array_equal(old.push(part), fresh.push(part))


def test_a_day_of_blocks_by_a_mocked_clock_leaves_nothing_behind():
    """What a block adds is a count: a day's are added at once, and what follows is as before."""
    outs, sizes = [], []
    for day in (0, 86_400 * 125):  # frames
        enhancer, networks = opened()
        networks.seconds = 0.001
        pool = enhancer.stream_pool(steps=3, clock=networks.clock)
        stream = pool.open(16000)
        networks.now += day / 125
        stream.stats.blocks += day // 4
        stream.stats.seconds += day / 125
        for lane in stream._core.lanes:
            lane.draw = lambda index, first, n: np.ones((n, 257), np.float32)
            lane.first_frame += day
        outs.append(stream.process(speech(64 * 512)))
        sizes.append((len(pool._governor._round), len(stream._inbox._parts), stream.stats.late))
        assert stream.stats.seconds == pytest.approx(day / 125 + 63 * 0.032, abs=1e-6)
    np.testing.assert_array_equal(outs[0], outs[1])
    assert sizes[0] == sizes[1]


def test_the_input_is_given_back_by_a_mix_of_nothing():
    enhancer, _ = opened()
    wav = speech(20_000, 2)
    stream = begun(enhancer, 44100, 2, mix=0.0)
    out = run(stream, wav, range(1000, 20_000, 1000))
    assert np.array_equal(out[stream.latency_samples :], wav)


def test_integers_and_doubles_are_read_as_by_enhance():
    enhancer, _ = opened()
    wav = (speech(5000) * 32768).astype(np.int16)
    wanted = run(begun(enhancer, 16000), wav.astype(np.float32) / 32768)
    assert np.array_equal(begun(enhancer, 16000).process(wav), wanted[:5000])
    assert np.array_equal(begun(enhancer, 16000).process(wav / 32768.0), wanted[:5000])


# Deadlines


def slowed(enhancer: Enhancer, networks: Networks, slow: slice, n: int = 16_000):
    """Output, steps after each block and statistics of a stream whose engine is slow for a while."""
    stream = enhancer.stream(16000, steps=3, clock=networks.clock)
    wav, pieces, steps = speech(n), [], []
    for i in range(0, n, 512):
        inside = slow.start <= i // 512 < slow.stop
        networks.seconds = 0.02 if inside else 0.001
        pieces.append(stream.process(wav[i : i + 512]))
        assert len(pieces[-1]) == len(wav[i : i + 512])
        steps.append(stream.stats.steps_now)
    return np.concatenate([*pieces, stream.flush()]), steps, stream.stats


def test_fewer_steps_are_taken_while_computing_falls_behind_and_all_again_after():
    n = 512 * 120
    calm, _, none = slowed(*opened(), slice(0, 0), n)
    busy, steps, stats = slowed(*opened(), slice(10, 16), n)
    assert none.steps_used == {3: none.blocks}
    assert none.late == 0
    assert sorted(set(steps), reverse=True) == [3, 1, 0]
    assert steps[-1] == 3
    assert steps.index(1) < steps.index(0) < len(steps) - 1 - steps[::-1].index(0)
    assert sum(stats.steps_used.values()) == stats.blocks
    assert stats.late >= 2
    assert stats.rtf > none.rtf > 0
    assert np.isfinite(busy).all()
    assert busy.shape == calm.shape
    # Long before and long after, nothing tells that it was slow.
    assert np.array_equal(busy[:4096], calm[:4096])
    back = 512 * (len(steps) - 1 - steps[::-1].index(1))
    np.testing.assert_allclose(busy[back + 512 * 8 :], calm[back + 512 * 8 :], atol=1e-5)


def test_steps_that_return_come_in_over_four_blocks():
    enhancer, _ = opened()
    rng = np.random.default_rng(0)
    noisy = rng.standard_normal((1, 3, 4, 257)).astype(np.float32)
    outs = {}
    for plan in ((1,) * 8, (0,) * 8, (1, 1, 0, 1, 1, 1, 1, 1)):
        pool = enhancer.stream_pool(steps=1)
        lanes = pool.open(16000)._core.lanes
        outs[plan] = [pool._sampler.push(lanes, noisy, steps)[0, 0] for steps in plan]
    all_on, all_off, mixed = outs.values()
    for index in range(3, 7):
        low, high = all_off[index], all_on[index]
        share = (np.arange(4) + 0.5 + 4 * (index - 3)) / FADE_FRAMES
        # The state begins with zeros: its first frame differs, the others have the same before.
        wanted = low + (high - low) * share[:, None].astype(np.float32)
        np.testing.assert_allclose(mixed[index][1:], wanted[1:], atol=1e-5)
    np.testing.assert_allclose(mixed[7], all_on[7], atol=1e-6)


def test_the_number_of_steps_stays_where_it_is_not_to_adapt():
    enhancer, networks = opened()
    networks.seconds = 1.0
    stream = enhancer.stream(16000, steps=2, adapt=False, clock=networks.clock)
    stream.process(speech(8000))
    assert set(stream.stats.steps_used) == {2}
    assert stream.stats.late == stream.stats.blocks


# Bad input


def test_what_is_not_finite_counts_as_silence_and_the_state_survives(caplog):
    enhancer, _ = opened()
    wav = speech(16000, 2)
    broken = wav.copy()
    broken[5000:5100, 0] = np.nan
    broken[9000, 1] = np.inf
    broken[9001, 1] = 3e38
    quiet = np.where(np.isfinite(broken) & (np.abs(broken) < 1e30), broken, np.float32(0.0))
    stream = begun(enhancer, 16000, 2, attenuation_limit_db=20)
    with caplog.at_level(logging.WARNING, "dvpd"):
        out = run(stream, broken, range(160, 16000, 160))
    assert np.array_equal(out, run(begun(enhancer, 16000, 2, attenuation_limit_db=20), quiet))
    assert stream.stats.non_finite == 2
    assert [record.message for record in caplog.records] == [
        "NaN or infinity near second 0.30 counts as silence; said once, stats go on counting"
    ]


@pytest.mark.parametrize("beyond", [False, True])
def test_a_block_on_which_the_networks_fail_comes_back_as_it_was(caplog, beyond):
    enhancer, networks = opened(1, echo=0.0)
    wav = speech(512 * 30)

    def fail(noisy):
        if len(networks.batches) in (10, 20, 21):
            if not beyond:
                raise NonFiniteError("the predictive graph returned non-finite values")
            networks.gain = 1e30

    networks.raised = fail
    stream = begun(enhancer, 16000, steps=0)
    with caplog.at_level(logging.WARNING, "dvpd"):
        out = run(stream, wav, range(512, len(wav), 512))
    # The look-ahead of one block passes one more, whose estimate nobody looks at.
    assert stream.stats.passed == (4 if beyond else 5)
    np.testing.assert_allclose(out[1408:], wav, atol=5e-5)
    assert len(caplog.records) == 1
    assert "comes back as it was" in caplog.text


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (np.zeros(160, np.float32), r"block has shape \[160\]; expected \[n, 2\]"),
        (np.zeros((160, 3), np.float32), r"expected \[n, 2\]: the stream has 2 channels"),
        (np.zeros((2, 2, 2), np.float32), "block has shape"),
        (np.zeros((160, 2), np.int64), "block has dtype int64; expected a float type"),
        (np.zeros((160, 2), np.complex64), "block has dtype complex64"),
        ([[0.0, 0.0]], "block is list; expected a NumPy array"),
    ],
)
def test_a_block_of_another_kind_is_refused_and_the_stream_goes_on(block, message):
    enhancer, _ = opened()
    wav = speech(4000, 2)
    stream = begun(enhancer, 16000, 2)
    first = stream.process(wav[:2000])
    with pytest.raises(InputError, match=message):
        stream.process(block)
    out = np.concatenate([first, run(stream, wav[2000:])[: 2000 + stream.latency_samples]])
    assert np.array_equal(out[: len(wav)], run(begun(enhancer, 16000, 2), wav)[: len(wav)])


def test_another_rate_is_refused():
    enhancer, _ = opened()
    stream = begun(enhancer, 16000)
    stream.process(speech(100), 16000)
    with pytest.raises(InputError, match="a block at 48000 Hz in a stream at 16000 Hz"):
        stream.process(speech(100), 48000)
    for rate in (7999, 192001, "16000"):
        with pytest.raises(InputError, match="sample_rate"):
            begun(enhancer, rate)
    for channels in (0, 65, 1.5, None):
        with pytest.raises(InputError, match="channels"):
            begun(enhancer, 16000, channels)
    with pytest.raises(InputError, match="attenuation_limit_db"):
        begun(enhancer, 16000, attenuation_limit_db=-1)


@pytest.mark.parametrize("empty", [np.zeros(0), np.zeros((0, 2), np.float32), np.zeros((5, 0))])
def test_nothing_in_nothing_out(empty):
    enhancer, _ = opened()
    stream = begun(enhancer, 48000, 2)
    assert not stream.process(empty).size
    wav = speech(3000, 2)
    stream.process(wav)
    assert not stream.process(empty).size
    assert stream.stats.blocks == 1


@pytest.mark.parametrize("n", [0, 1, 300, 5000])
def test_a_signal_of_any_length_ends_whole(n):
    enhancer, _ = opened(1, echo=0.0)
    for rate in (16000, 44100):
        wav = speech(n + 1)[:n]
        out = run(begun(enhancer, rate, steps=0), wav)
        if rate == 16000:
            np.testing.assert_allclose(out[-n:] if n else out[:0], wav, atol=1e-5)


def test_after_the_end_comes_nothing_and_reset_begins_anew():
    enhancer, _ = opened()
    wav = speech(6000)
    stream = begun(enhancer, 22050)
    out = run(stream, wav)
    assert stream.flush().shape == (0,)
    with pytest.raises(InputError, match="ended with flush; expected reset"):
        stream.process(wav)
    blocks = stream.stats.blocks
    stream.reset()
    assert np.array_equal(run(stream, wav), out)
    assert stream.stats.blocks == 2 * blocks


def test_a_closed_stream_says_so():
    enhancer, _ = opened()
    with begun(enhancer, 16000) as stream:
        stream.process(speech(1000))
    for call in (lambda: stream.process(speech(10)), stream.flush, stream.reset, stream.pull):
        with pytest.raises(InputError, match="closed; open another one"):
            call()
    stream.close()


def test_a_closed_engine_is_an_error_of_its_streams(engine, tmp_path):
    folder = write_engine(tmp_path / "causal", manifest=make_manifest(causal=CAUSAL))
    with Enhancer.open(folder, "ort", "cpu", 1) as enhancer:
        stream = begun(enhancer, 16000)
        stream.process(speech(500))
    for _ in range(2):
        with pytest.raises(BackendError, match="closed"):
            stream.process(speech(500))
    assert isinstance(stream.error, BackendError)
