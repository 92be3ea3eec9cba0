"""rtf.py --stream: what is counted as late, what the delay is, and that the report fits its schema."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from dvpd.benchmarks import rtf, streaming
from dvpd.benchmarks.common import report, stream_timing
from dvpd.runtime.errors import InputError

RATE, BLOCK, MODEL_BLOCK = 16000, 160, 512


class Clock:
    """Time that passes only where the test lets it; ``wait`` is its sleep."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds


class Late:
    """A stream whose networks run for ``costs`` seconds, in turn, whenever 512 samples are there."""

    latency_samples, latency_ms = 896, 56.0

    def __init__(self, clock, costs, late=896, gain=0.5):
        self._clock, self._costs, self._gain = clock, costs, gain
        self._samples = self.blocks = 0
        self._waiting = np.zeros((late, 1), np.float32)

    @property
    def stats(self):
        return SimpleNamespace(
            blocks=self.blocks, seconds=self.blocks * MODEL_BLOCK / RATE, steps_now=1
        )

    def process(self, block):
        self._samples += len(block)
        while (self.blocks + 1) * MODEL_BLOCK <= self._samples:
            self._clock.now += self._costs[self.blocks % len(self._costs)]
            self.blocks += 1
        waiting = np.concatenate([self._waiting, self._gain * block])
        self._waiting = waiting[len(block) :]
        return waiting[: len(block)]

    def flush(self):
        return self._waiting


def timed(costs, seconds=3.2, block=BLOCK, real_time=False, memory=lambda: 100.0):
    clock = Clock()
    wav = np.ones(5000, np.float32)
    found = stream_timing.time_stream(
        Late(clock, costs), wav, RATE, block, seconds, real_time=real_time,
        clock=clock, sleep=clock.wait, cpu_clock=lambda: 2 * clock.now, memory=memory,
    )  # fmt: skip
    return found, clock.now


@pytest.mark.parametrize("real_time", [False, True])
def test_only_blocks_in_which_the_networks_ran_count(real_time):
    found, now = timed([0.008], real_time=real_time)
    row = stream_timing.summarise(found, 56.0)
    assert row["blocks"] == 100  # 3.2 s in blocks of 32 ms, although 320 calls of 10 ms were made
    assert row["latency_ms"]["p50"] == pytest.approx(8.0)
    assert row["latency_ms"]["max"] == pytest.approx(8.0)
    assert row["rtf"] == pytest.approx(0.25)
    assert row["cpu_s_per_audio_s"] == pytest.approx(2 * now / 3.2)  # two threads
    assert (row["missed"], row["jitter_ms"]) == (0, pytest.approx(0.0, abs=1e-9))
    assert row["deadline_ms"] == pytest.approx(32.0)
    assert row["delay_ms"] == pytest.approx(64.0)
    assert now == pytest.approx(3.208 if real_time else 0.8)


@pytest.mark.parametrize("real_time", [False, True])
def test_a_slow_block_makes_those_after_it_wait(real_time):
    """One block in 50 takes 70 ms: it is late, and the next call waits, as at a microphone."""
    found, _ = timed([0.07] + [0.008] * 49, real_time=real_time)
    row = stream_timing.summarise(found, 56.0)
    assert row["latency_ms"]["max"] == pytest.approx(70.0)
    # 32 ms later, 38 ms are still to be waited for: 46 ms; then 22 ms, which is in time.
    assert sorted(found.latency_s)[-4:-2] == pytest.approx([0.046, 0.046], abs=0.006)
    assert row["missed"] == 4
    assert row["jitter_ms"] > 30
    assert row["rtf"] == pytest.approx((2 * 0.07 + 98 * 0.008) / 3.2)


def test_who_is_too_slow_falls_behind_without_end():
    row = stream_timing.summarise(timed([0.04])[0], 56.0)
    assert row["rtf"] == pytest.approx(1.25)
    assert row["missed"] == row["blocks"] == 100
    assert row["latency_ms"]["max"] > 700


def test_long_blocks_have_as_long_as_they_last():
    row = stream_timing.summarise(timed([0.008], block=1600)[0], 56.0)
    assert row["deadline_ms"] == pytest.approx(100.0)
    assert row["latency_ms"]["max"] == pytest.approx(32.0)  # four blocks of the model in a call
    assert row["missed"] == 0


def test_too_little_audio_for_one_block_is_said():
    with pytest.raises(InputError, match=r"0\.02 s of audio hold no whole block of the model"):
        stream_timing.summarise(timed([0.008], seconds=0.02)[0], 56.0)


def test_memory_that_grows_is_seen():
    values = iter([100.0, 130.0, 140.0])  # the first tenth may allocate
    assert timed([0.008], memory=lambda: next(values))[0].growth_mib == 10.0
    assert timed([0.008], memory=lambda: None)[0].growth_mib is None


@pytest.mark.parametrize("late", [896, 900])
def test_the_delay_is_measured_and_not_taken_from_what_is_said(late):
    enhancer = SimpleNamespace(stream=lambda *a, **k: Late(Clock(), [0.0], late))
    row = stream_timing.measure_delay(enhancer, RATE, 1)
    assert row == {"sample_rate": RATE, "reported": 896, "speech": late, "click": late}
    assert stream_timing.same([row]) == (late == 896)


def test_a_click_of_which_nothing_is_left_has_no_place():
    class Deaf(Late):
        def process(self, block):
            return super().process(np.clip(block, -0.05, 0.05))

    enhancer = SimpleNamespace(stream=lambda *a, **k: Deaf(Clock(), [0.0]))
    row = stream_timing.measure_delay(enhancer, RATE, 1)
    assert row["click"] is None
    assert row["speech"] == 896
    assert stream_timing.same([row])


# ------------------------------------------------------------------------------------------------
# The command

QUICK = [
    "--stream",
    "--backend",
    "ort",
    "--device",
    "cpu",
    "--threads",
    "1",
    "--audio-seconds",
    "0.6",
]


@pytest.fixture(scope="module")
def measured(causal_engine, tmp_path_factory):
    """One report of a small causal engine and of a folder that is none, by the command."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("stream")
    files = [folder / f"r.{kind}" for kind in ("json", "md")]
    code = rtf.main([
        str(causal_engine), str(folder), *QUICK, "--block-ms", "10,100", "--steps", "1,0",
        "--delay-rates", "16000,44100", "--json", str(files[0]), "--markdown", str(files[1]), "--note", "a test",
    ])  # fmt: skip
    assert code == 0
    return report.read(files[0], streaming.SCHEMA, streaming.SCHEMA_FILE), files


def test_the_report_has_every_case_and_fits_its_schema(measured):
    pytest.importorskip("jsonschema")
    result, _ = measured
    good = [row for row in result["rows"] if row["status"] == "ok"]
    cases = [(row["window_s"], row["steps"]) for row in good]
    assert cases == [(0.01, 1), (0.01, 0), (0.1, 1)]
    for row in good:
        # the first block needs 640 samples, each later one 512
        assert row["blocks"] == (18 if row["window_s"] == 0.01 else 6)
        assert row["latency_samples"] == 896
        assert row["latency_ms"]["p50"] <= row["latency_ms"]["p99"] <= row["latency_ms"]["max"]
        assert row["delay_ms"] == pytest.approx(56.0 + row["latency_ms"]["p99"])
        assert row["rtf"] > 0
    failed = [row for row in result["rows"] if row["status"] == "failed"]
    assert len(failed) == 3
    assert "manifest.json" in failed[0]["error"]
    assert result["protocol"]["note"] == "a test"


def test_the_delay_of_an_engine_is_what_the_api_says_at_every_rate(measured):
    delays = measured[0]["delays"]
    assert [row["sample_rate"] for row in delays] == [16000, 44100]
    assert stream_timing.same(delays)
    assert all(row["click"] is not None for row in delays)


def test_tables_are_written_and_rendered_again(measured, tmp_path, capsys):
    result, (data, text) = measured
    assert "| causal ort | 1 | 10 | 1 |" in text.read_text()
    again = tmp_path / "again.md"
    assert rtf.main(["--stream", "--from-json", str(data), "--markdown", str(again)]) == 0
    assert again.read_text() == text.read_text()
    assert streaming.to_markdown(result) == text.read_text()


def test_conditions_are_checked(measured, capsys):
    _, (data, _) = measured
    render = ["--stream", "--from-json", str(data), "--assert"]
    assert rtf.main([*render, "max_ms<100000 @ engine=causal"]) == 0
    assert rtf.main([*render, "rtf<0 @ engine=causal steps=0"]) == 1
    assert "rtf<0 @ engine=causal steps=0: causal ort, 0.01 s" in capsys.readouterr().err


def test_energy_is_of_a_second_of_audio():
    class Meter:
        name = "meter"

        def __init__(self):
            self.read = iter([10.0, 16.0])

        def joules(self):
            return next(self.read)

    row = {}
    with streaming._energy([Meter()], row):
        row["audio_s"] = 3.0
    assert row["energy"]["meter"]["joules_per_audio_s"] == 2.0


def test_what_belongs_to_the_other_mode_is_refused(measured, tmp_path):
    _, (data, _) = measured
    with pytest.raises(InputError, match="schema is 'dvpd-stream-1'"):
        report.read(data)
    args = rtf.build_parser().parse_args(["--stream", "--html", str(tmp_path / "x.html")])
    with pytest.raises(InputError, match="--html does not go with --stream"):
        streaming.main(args)
