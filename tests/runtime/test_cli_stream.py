"""dvpd stream: samples through descriptors, as they come."""

import io
import json
import os
import sys
import threading
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from dvpd.runtime import cli, cli_stream, pipes
from dvpd.runtime.containers import Raw
from dvpd.runtime.enhancer import Enhancer

from fake_stream import GAIN, LATE, FakeStream, fake_enhancer  # isort: skip  # beside this file

RATE = 16000


@pytest.fixture(autouse=True)
def named_model(monkeypatch):
    """A model that was chosen is not measured, and those that stand in for one cannot be."""
    monkeypatch.setenv("DVPD_ENGINE", "chosen")


@pytest.fixture
def opened(monkeypatch):
    """Streams that the command opened, in the place of a model's."""
    streams = []
    monkeypatch.setattr(Enhancer, "open", lambda *a, **k: fake_enhancer(streams))
    return streams


def run(monkeypatch, data: bytes, *args, reader=lambda file: file.read()):
    """Exit code of the command between two pipes, and what ``reader`` made of its output."""
    (source, feed), (drain, target) = os.pipe(), os.pipe()
    answer = []

    def give():
        with os.fdopen(feed, "wb") as file:
            try:
                file.write(data)
                file.flush()
            except BrokenPipeError:
                pass

    def take():
        with os.fdopen(drain, "rb") as file:
            answer.append(reader(file))

    threads = [threading.Thread(target=f) for f in (give, take)]
    for thread in threads:
        thread.start()
    with monkeypatch.context() as patch:
        with os.fdopen(source) as stdin, os.fdopen(target, "w") as stdout:
            patch.setattr(sys, "stdin", stdin)
            patch.setattr(sys, "stdout", stdout)
            code = cli.main(["stream", "--rate", str(RATE), *args])
    for thread in threads:
        thread.join()
    return code, answer[0]


def ramp(n, channels=1):
    return (np.arange(n * channels) % 20_000 - 10_000).astype("<i2").reshape(n, channels)


def test_what_goes_in_comes_out_late_by_what_is_said(opened, monkeypatch, capfd):
    wav = ramp(5000, 2)
    code, out = run(monkeypatch, wav.tobytes(), "--channels", "2", "--json")
    assert code == 0
    out = np.frombuffer(out, "<i2").reshape(-1, 2)
    assert len(out) == len(wav) + LATE
    assert not out[:LATE].any()
    np.testing.assert_allclose(out[LATE:], wav * GAIN, atol=1)
    said, table = capfd.readouterr().err.splitlines()
    assert "0.31 s of audio, real-time factor 0.250, 40 samples (2.5 ms) late" in said
    table = json.loads(table)
    assert (table["samples"], table["samples_out"], table["latency_samples"]) == (5000, 5040, 40)
    assert table["stats"]["steps_used"] == {"1": table["stats"]["blocks"]}
    assert max(opened[0].blocks) <= RATE // 100  # never more than a block of 10 ms


@pytest.mark.parametrize("n", [1, LATE - 1, LATE, 3000])
def test_compensated_it_is_as_long_as_the_input_and_in_step(opened, monkeypatch, n):
    wav = ramp(n)
    code, out = run(monkeypatch, wav.tobytes(), "--compensate")
    assert code == 0
    np.testing.assert_allclose(np.frombuffer(out, "<i2")[:, None], wav * GAIN, atol=1)


@pytest.mark.parametrize(
    "name", ["u8", "s8", "s16be", "s24", "s32", "f32", "f64be", "ulaw", "alaw"]
)
def test_every_format_goes_out_as_it_came_in(opened, monkeypatch, name):
    subtype, endian = pipes.parse_format(name)
    wav = np.linspace(-0.5, 0.5, 1000, dtype=np.float32)
    data = io.BytesIO()
    soundfile.write(data, wav, RATE, subtype, endian=endian, format="RAW")
    code, out = run(monkeypatch, data.getvalue(), "--format", name, "--compensate")
    assert code == 0
    back, _ = soundfile.read(
        io.BytesIO(out), samplerate=RATE, channels=1, format="RAW", subtype=subtype, endian=endian
    )
    np.testing.assert_allclose(back, wav * GAIN, atol=0.02)


def test_options_reach_the_stream(opened, monkeypatch):
    run(monkeypatch, b"", "--steps", "0", "--max-attenuation", "12", "--fixed-steps")
    assert opened[0].options == {
        "sample_rate": RATE, "channels": 1, "steps": 0, "quality": None, "attenuation_limit_db": 12.0,
        "adapt": False,
    }  # fmt: skip


def test_a_last_frame_that_is_cut_is_said(opened, monkeypatch, capfd):
    code, out = run(monkeypatch, ramp(100, 2).tobytes() + b"abc", "--channels", "2", "--compensate")
    assert (code, len(out)) == (0, 400)
    assert "its last 3 bytes are no whole frame of 4; left out" in capfd.readouterr().err


def test_a_recording_with_a_header_is_refused(opened, monkeypatch, capfd):
    data = io.BytesIO()
    soundfile.write(data, ramp(100), RATE, format="WAV")
    code, out = run(monkeypatch, data.getvalue())
    assert (code, out) == (1, b"")
    assert "with a header (WAV); expected samples alone: put `ffmpeg" in capfd.readouterr().err


def test_values_beyond_full_scale_are_limited_and_counted(monkeypatch, capfd):
    class Loud(FakeStream):
        def process(self, block):
            return 4.0 * super().process(block)

    monkeypatch.setattr(Enhancer, "open", lambda *a, **k: fake_enhancer([], Loud))
    code, out = run(monkeypatch, np.full(200, 30_000, "<i2").tobytes())
    assert code == 0
    assert np.frombuffer(out, "<i2")[LATE] == 32767
    assert "160 values limited" in capfd.readouterr().err


def test_a_reader_that_goes_away_ends_it(opened, monkeypatch, capfd):
    code, _ = run(monkeypatch, ramp(10**6).tobytes(), reader=lambda file: file.read(10))
    assert code == 141
    said = capfd.readouterr().err.splitlines()
    assert said[0] == "dvpd: standard output: nobody reads it any more"
    assert "s of audio" in said[1]
    assert len(said) == 2


def test_a_reader_or_a_writer_that_stalls_is_said_and_waited_for(opened, monkeypatch, capfd):
    monkeypatch.setattr(cli_stream, "STALL_S", 0.02)
    gate = threading.Event()
    say = cli_stream.say

    def said(text):
        say(text)
        gate.set()  # the reader goes on as soon as it has been noticed

    monkeypatch.setattr(cli_stream, "say", said)

    def late(file):
        gate.wait(10)
        return file.read()

    data = ramp(100_000)  # more than the pipes hold
    code, out = run(monkeypatch, data.tobytes(), "--block-ms", "100", reader=late)
    assert (code, len(out)) == (0, 2 * (len(data) + LATE))
    assert "standard output: nobody reads for 0.02 s; waiting" in capfd.readouterr().err
    source, feed = os.pipe()
    gate.clear()
    waited = {"input": 0.0}
    threading.Thread(target=lambda: (gate.wait(10), os.write(feed, b"x"))).start()
    assert cli_stream.Pipe(source, "input", waited).read(5) == b"x"
    assert waited["input"] >= 0.02
    assert "standard input: nothing comes for 0.02 s; waiting" in capfd.readouterr().err
    os.close(source)
    os.close(feed)


def test_a_pipe_that_does_not_block_is_waited_for():
    source, feed = os.pipe()
    os.set_blocking(source, False)
    threading.Timer(0.02, os.write, (feed, b"ab")).start()
    assert cli_stream.Pipe(source, "input", {"input": 0.0}).read(5) == b"ab"
    os.set_blocking(feed, False)
    taken, data = [], bytes(200_000)

    def take():
        while sum(map(len, taken)) < len(data):
            taken.append(os.read(source, 1 << 16))

    os.set_blocking(source, True)
    thread = threading.Thread(target=take)
    thread.start()
    cli_stream.Pipe(feed, "output", {"output": 0.0}).write(memoryview(data))
    thread.join()
    assert b"".join(taken) == data
    os.close(source)
    os.close(feed)


def test_bytes_are_handed_on_as_they_come_and_read_no_further_than_a_block():
    """What is asked of the source, and what has left before it is asked again."""
    stream, raw, report, asked, given = FakeStream(RATE, 2), Raw(RATE, 2, "PCM_16"), [], [], []
    counts = cli_stream.Report()
    pieces = iter([5, 3, 400, 1, 1, 6])

    def read(count):
        asked.append(count)
        report.append(counts.samples_out)
        return bytes(min(next(pieces, 0), count))

    cli_stream.pump(
        stream, raw, read, lambda data: given.append(len(data)), counts, block=100,
        compensate=False,
    )  # fmt: skip
    assert asked == [400, 399, 400, 400, 399, 398, 400]
    assert report == [0, 1, 2, 102, 102, 102, 104]
    assert stream.blocks == [1, 1, 100, 2]
    assert sum(given) == 4 * (104 + LATE)


@pytest.mark.parametrize("side", ["input", "output"])
def test_a_terminal_in_the_place_of_a_pipe_is_one_line(opened, monkeypatch, capfd, side):
    terminal = SimpleNamespace(isatty=lambda: True, closed=False, flush=lambda: None)
    pipe = SimpleNamespace(isatty=lambda: False, closed=False, flush=lambda: None)
    monkeypatch.setattr(sys, "stdin", terminal if side == "input" else pipe)
    monkeypatch.setattr(sys, "stdout", terminal if side == "output" else pipe)
    assert cli.main(["stream", "--rate", "16000"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert f"standard {side}: is a terminal; expected a pipe" in line


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--rate"),
        (["--rate", "0"], "not a whole number"),
        (["--rate", "16000", "--block-ms", "0"], "not a number of ms in [1, 1000]"),
        (["--rate", "16000", "--format", "mp3"], "format is 'mp3'; expected one of u8, s8"),
    ],
)
def test_options_are_checked(args, message, capsys):
    assert cli.main(["stream", *args]) == 2
    assert message in capsys.readouterr().err


def test_what_libraries_print_stays_out_of_the_samples(monkeypatch, capfd):
    class Noisy(FakeStream):
        def process(self, block):
            os.write(sys.stdout.fileno(), b"a library speaks\n")
            return super().process(block)

    monkeypatch.setattr(Enhancer, "open", lambda *a, **k: fake_enhancer([], Noisy))
    code, out = run(monkeypatch, ramp(100).tobytes(), "--compensate")
    assert (code, len(out)) == (0, 200)
    assert "a library speaks" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("rate", "channels", "precision"), [(16000, 1, "fp32"), (44100, 2, "fp32"), (16000, 1, "fp16")]
)
def test_a_model_gives_what_its_stream_gives(
    engine_causal, engine_causal_fp16, monkeypatch, capfd, speech, rate, channels, precision
):
    pytest.importorskip("onnxruntime")
    folder = engine_causal if precision == "fp32" else engine_causal_fp16
    wav = np.stack([speech[:20_000]] * channels, 1)
    with Enhancer.open(folder, "ort", "cpu", 1) as enhancer:
        stream = enhancer.stream(rate, channels, steps=1, attenuation_limit_db=20.0, adapt=False)
        expected = np.concatenate([stream.process(wav), stream.flush()])[stream.latency_samples :]
        late = stream.latency_samples
    code, out = run(
        monkeypatch, wav.tobytes(), "--rate", str(rate), "--channels", str(channels),
        "--format", "f32", "--compensate", "--steps", "1", "--max-attenuation", "20",
        "--model", str(folder), "--backend", "ort", "--threads", "1", "--fixed-steps",
    )  # fmt: skip
    assert code == 0
    out = np.frombuffer(out, "<f4").reshape(-1, channels)
    np.testing.assert_array_equal(out, expected.reshape(-1, channels))
    assert len(out) == len(wav)
    assert f"{late} samples" in capfd.readouterr().err


def test_nan_in_the_input_is_said_and_what_follows_is_not_lost(
    engine_causal, monkeypatch, capfd, speech
):
    pytest.importorskip("onnxruntime")
    wav = speech[:8000].copy()
    wav[3000:3010] = np.nan
    code, out = run(
        monkeypatch, wav.tobytes(), "--format", "f32", "--steps", "0", "--compensate", "--json",
        "--model", str(engine_causal), "--backend", "ort", "--threads", "1",
    )  # fmt: skip
    assert code == 0
    out = np.frombuffer(out, "<f4")
    assert np.isfinite(out).all()
    assert np.abs(out[5000:]).max() > 1e-3
    said = capfd.readouterr().err.splitlines()
    assert json.loads(said[-1])["stats"]["non_finite"] == 1
    assert "1 blocks with NaN or infinity" in said[-2]


def test_a_model_in_windows_says_how_late_it_is(engine_shared, monkeypatch, capfd, speech):
    pytest.importorskip("onnxruntime")
    code, out = run(
        monkeypatch, speech[:8000].tobytes(), "--format", "f32", "--steps", "0", "--compensate",
        "--model", str(engine_shared), "--backend", "ort", "--threads", "1",
    )  # fmt: skip
    assert (code, len(out)) == (0, 32_000)
    assert "hears windows of a recording: the output is 8." in capfd.readouterr().err


def test_memory_does_not_grow_with_what_passes():
    raw, peaks = Raw(RATE, 2, "PCM_16"), []
    for n_blocks in (50, 1000):
        left = [n_blocks]

        def read(count, left=left):
            left[0] -= 1
            return bytes(count if left[0] >= 0 else 0)

        tracemalloc.start()
        try:
            cli_stream.pump(
                FakeStream(RATE, 2), raw, read, lambda data: None, cli_stream.Report(), block=1600,
                compensate=True,
            )  # fmt: skip
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + 200_000  # the fake notes lengths; 6 MB passed
