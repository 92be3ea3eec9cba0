import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dvpd.runtime import InputError, audio, cli, pipes
from dvpd.runtime.containers import Raw

pytest.importorskip("onnxruntime")
ROOT = Path(__file__).resolve().parents[2]
RATE = 16000


def command(engine, *args):
    return [sys.executable, "-m", "dvpd", "enhance", *args, "--model", str(engine),
            "--steps", "0", "--backend", "ort", "--threads", "1"]  # fmt: skip


def pipe(engine, data, *args, **options):
    return subprocess.run(
        command(engine, *args), input=data, cwd=ROOT, capture_output=True, **options
    )


def streamed_wav(wav, subtype="PCM_16"):
    """A WAV file of unknown length, as it comes through a pipe."""
    data = io.BytesIO()
    soundfile.write(data, wav, RATE, subtype, format="WAV")
    head = bytearray(data.getvalue())
    place = head.index(b"data") + 4
    head[4:8] = head[place : place + 4] = b"\xff" * 4
    return bytes(head)


@pytest.mark.parametrize(
    ("text", "raw"),
    [
        ("48000,1,s16", Raw(48000, 1, "PCM_16")),
        ("8000, 2, S24BE", Raw(8000, 2, "PCM_24", "BIG")),
        ("16000,1,f32le", Raw(16000, 1, "FLOAT")),
        ("8000,1,ulaw", Raw(8000, 1, "ULAW")),
    ],
)
def test_descriptions_of_raw_samples(text, raw):
    assert pipes.parse_raw(text) == raw


@pytest.mark.parametrize(
    "text", ["", "48000", "48000,1", "48000,1,mp3", "x,1,s16", "1,1,s16", "48000,0,s16", "1,2,3,4"]
)
def test_bad_descriptions_of_raw_samples(text):
    with pytest.raises(InputError, match=r"48000,1,s16|expected 1000 to"):
        pipes.parse_raw(text)


def test_a_pipe_gives_what_a_file_gives(engine_shared, enhancer, tmp_path, speech):
    source = tmp_path / "in.wav"
    soundfile.write(source, speech, RATE, "PCM_24")
    enhancer.enhance_file(source, tmp_path / "out.wav", steps=0)
    done = pipe(engine_shared, streamed_wav(speech, "PCM_24"), "-", "-")
    assert done.returncode == 0, done.stderr
    wav, rate = soundfile.read(io.BytesIO(done.stdout), dtype="int32")
    np.testing.assert_array_equal(wav, soundfile.read(tmp_path / "out.wav", dtype="int32")[0])
    assert rate == RATE
    assert soundfile.info(io.BytesIO(done.stdout)).subtype == "PCM_24"
    assert b"-: 3.12 s of audio" in done.stderr


def test_raw_samples_in_and_out(engine_shared, enhancer, speech):
    ints = np.stack([speech, speech[::-1]], 1)
    data = (ints * 32767).astype(">i2").tobytes()
    done = pipe(engine_shared, data + b"x", "-", "-", "--raw", f"{RATE},2,s16be")
    assert done.returncode == 0, done.stderr
    assert b"dvpd: standard input: its last 1 bytes are no whole frame of 4" in done.stderr
    out = np.frombuffer(done.stdout, ">i2").reshape(-1, 2)
    given = np.frombuffer(data, ">i2").astype(np.int16).reshape(-1, 2)
    expected = enhancer.enhance(given, RATE, steps=0).wav
    np.testing.assert_allclose(out / 32768, expected, atol=2e-5)


def test_errors_of_pipes_are_one_line(engine_shared, tmp_path, speech, monkeypatch, capsys):
    for data, args, message in (
        (b"", ["-", "o.wav"], "standard input: is an empty file"),
        (b"no recording" * 99, ["-", "o.wav"], "standard input: not a readable audio file"),
        (streamed_wav(speech)[:40], ["-", "o.wav"], "standard input: "),
        (b"x", ["-", "o.wav", "--raw", "48000"], "RATE,CHANNELS,FORMAT"),
        (b"x", ["-", "-", "--json"], "both need standard output"),
        (b"x", ["-", "a.wav", "."], "standard input needs a file"),
    ):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert cli.main(command(engine_shared, *args)[3:]) in (1, 2)
        lines = [x for x in capsys.readouterr().err.splitlines() if "auto chose" not in x]
        assert len(lines) == 1
        assert message in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_goes_away_ends_it(engine_shared, speech):
    done = subprocess.run(
        ["sh", "-c", '"$@" | head -c 10 >/dev/null; true', "sh", *command(engine_shared, "-", "-")],
        input=streamed_wav(np.tile(speech, 20)), cwd=ROOT, capture_output=True,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr
    assert b"standard output: Broken pipe" in done.stderr


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "FLOAT", "DOUBLE", "ALAW"])
@pytest.mark.parametrize("channels", [1, 3])
def test_headers_that_are_written_at_once(subtype, channels):
    info = audio.AudioInfo(Path("x.wav"), RATE, channels, 500, "WAV", subtype)
    out = io.BytesIO()
    wav = np.linspace(-0.5, 0.5, 500 * channels, dtype=np.float32).reshape(500, channels)
    with pipes.PipeWriter(info, None, out) as writer:
        writer.write(wav)
        writer.commit()
    back, _ = soundfile.read(io.BytesIO(out.getvalue()), always_2d=True)
    np.testing.assert_allclose(back, wav, atol=0.02)
    assert soundfile.info(io.BytesIO(out.getvalue())).subtype == subtype


def test_beyond_4_gib_the_header_is_that_of_rf64():
    info = audio.AudioInfo(Path("x.wav"), 48000, 2, 2**31, "WAV", "PCM_16")
    out = io.BytesIO()
    pipes.PipeWriter(info, None, out)
    head = out.getvalue()
    assert head[:4] == b"RF64"
    assert int.from_bytes(head[28:36], "little") == 2**33


MEMORY = """
import re, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from dvpd.runtime import cli
code = cli.main(sys.argv[1:])
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
print(peak // 1024, file=sys.stderr)
raise SystemExit(code)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_pipe(engine_shared):
    peaks = []
    for seconds in (20, 120):
        data = (np.random.default_rng(0).standard_normal(8000 * seconds) * 3000).astype("<i2")
        args = ["-c", MEMORY.format(root=str(ROOT)), *command(engine_shared, "-", "-")[3:]]
        done = subprocess.run(
            [sys.executable, *args, "--raw", "8000,1,s16"],
            input=data.tobytes(),
            capture_output=True,
        )
        assert len(done.stdout) == 2 * len(data)
        peaks.append(int(done.stderr.split()[-1]))
    assert peaks[1] - peaks[0] < 30


@pytest.mark.parametrize("tool", ["ffmpeg", "sox"])
def test_between_the_tools_of_the_trade(engine_shared, tmp_path, speech, tool):
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    soundfile.write(tmp_path / "in.wav", speech, RATE)
    before, after = {
        "ffmpeg": ("ffmpeg -v error -i in.wav -f wav -", "ffmpeg -v error -f wav -i - out.flac"),
        "sox": ("sox in.wav -t wav -", "sox -t wav - out.flac"),
    }[tool]
    inner = " ".join(f"'{word}'" for word in command(engine_shared, "-", "-"))
    done = subprocess.run(
        ["sh", "-c", f"{before} | PYTHONPATH='{ROOT}' {inner} | {after}"],
        cwd=tmp_path,
        capture_output=True,
    )
    assert soundfile.info(tmp_path / "out.flac").frames == len(speech), done.stderr
