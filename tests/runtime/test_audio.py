import errno
import os
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dvpd.runtime import BackendError, InputError, audio, audio_out

pytest.importorskip("onnxruntime")
ROOT = Path(__file__).resolve().parents[2]
PREDICTIVE_GAIN = 0.5 ** (1 / 0.3)


def tone(rate, seconds=0.5, channels=1, level=0.5):
    t = np.arange(int(rate * seconds) + 7) / rate
    columns = [np.sin(2 * np.pi * (300 + 100 * c) * t) for c in range(channels)]
    return (level * np.stack(columns, axis=1)).astype(np.float32)


def leftovers(folder):
    return [p.name for p in folder.iterdir() if p.name.endswith(".tmp")]


LOSSLESS = [
    ("wav", "WAV", s)
    for s in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")
] + [("flac", "FLAC", s) for s in ("PCM_S8", "PCM_16", "PCM_24")]
RESOLUTION = {"PCM_U8": 1 / 128, "PCM_S8": 1 / 128, "ULAW": 0.02, "ALAW": 0.02}


@pytest.mark.parametrize(("suffix", "container", "subtype"), LOSSLESS)
def test_encodings_come_back(enhancer, tmp_path, suffix, container, subtype):
    source, target = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    wav = tone(16000, channels=2)
    soundfile.write(source, wav, 16000, subtype, format=container)
    done = enhancer.enhance_file(source, target, steps=0)
    info = soundfile.info(target)
    assert (info.samplerate, info.channels, info.frames) == (16000, 2, len(wav))
    assert (info.format, info.subtype) == (container, subtype)
    assert (done.container, done.subtype, done.n_samples) == (container, subtype, len(wav))
    read = soundfile.read(source, dtype="float32")[0]
    out = soundfile.read(target, dtype="float32")[0]
    np.testing.assert_allclose(out, read * PREDICTIVE_GAIN, atol=RESOLUTION.get(subtype, 1e-4))
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg(enhancer, tmp_path, subtype):
    source, target = tmp_path / "in.ogg", tmp_path / "out.ogg"
    soundfile.write(source, tone(48000, 1.0, 2), 48000, subtype, format="OGG")
    enhancer.enhance_file(source, target, steps=0)
    a, b = soundfile.info(source), soundfile.info(target)
    assert (b.samplerate, b.channels, b.frames) == (a.samplerate, a.channels, a.frames)
    assert (b.format, b.subtype) == ("OGG", subtype)
    read, out = (soundfile.read(p, dtype="float32")[0] for p in (source, target))
    correlation = np.corrcoef(read[:, 0], out[:, 0])[0, 1]
    assert correlation > 0.99


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_rates_and_channels(enhancer, tmp_path, rate, channels):
    source, target = tmp_path / "in.wav", tmp_path / "out.wav"
    wav = tone(rate, channels=channels)
    soundfile.write(source, wav, rate, "FLOAT")
    enhancer.enhance_file(source, target, seed=1)
    info = soundfile.info(target)
    assert (info.samplerate, info.channels, info.frames) == (rate, channels, len(wav))
    # Block by block through files, or at once from memory: the same.
    expected = enhancer.enhance(wav, rate, seed=1).wav
    out = soundfile.read(target, dtype="float32", always_2d=True)[0]
    np.testing.assert_allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("source_format", "suffix", "expected"),
    [
        (("WAV", "DOUBLE"), "flac", ("FLAC", "PCM_24")),
        (("WAV", "FLOAT"), "flac", ("FLAC", "PCM_24")),
        (("WAV", "PCM_U8"), "flac", ("FLAC", "PCM_S8")),
        (("FLAC", "PCM_16"), "wav", ("WAV", "PCM_16")),
        (("FLAC", "PCM_24"), "ogg", ("OGG", "VORBIS")),
        (("OGG", "VORBIS"), "wav", ("WAV", "PCM_16")),
        (("WAV", "IMA_ADPCM"), "wav", ("WAV", "PCM_16")),
        (("WAV", "PCM_16"), "opus", ("OGG", "OPUS")),
        (("RF64", "PCM_24"), "wav", ("RF64", "PCM_24")),
        (("AIFF", "PCM_16"), "wav", ("WAV", "PCM_16")),
    ],
)
def test_other_containers(enhancer, tmp_path, source_format, suffix, expected):
    source, target = tmp_path / "in.bin", tmp_path / f"out.{suffix}"
    soundfile.write(source, tone(16000), 16000, source_format[1], format=source_format[0])
    enhancer.enhance_file(source, target, steps=0)
    info = soundfile.info(target)
    assert (info.format, info.subtype) == expected
    assert info.frames == soundfile.info(source).frames


def test_wav_beyond_4_gib_becomes_rf64():
    info = audio.AudioInfo(Path("x.wav"), 48000, 8, 10**9, "WAV", "PCM_16")
    assert audio.output_format(info, Path("y.wav")) == ("RF64", "PCM_16")


def test_opus_rates_and_flac_channels():
    info = audio.AudioInfo(Path("x.wav"), 44100, 12, 100, "WAV", "PCM_16")
    with pytest.raises(InputError, match="Opus"):
        audio.output_format(info, Path("y.opus"))
    with pytest.raises(InputError, match="8 channels"):
        audio.output_format(info, Path("y.flac"))


def test_values_beyond_full_scale(tmp_path):
    wav = np.array([[0.5], [1.5], [-2.0], [1.0]], np.float32)
    for subtype, clipped in (("PCM_16", 2), ("PCM_32", 2), ("FLOAT", 0), ("DOUBLE", 0)):
        target = tmp_path / f"{subtype}.wav"
        with audio.AudioWriter(target, 16000, 1, "WAV", subtype) as writer:
            writer.write(wav)
            writer.commit()
        assert writer.n_clipped == clipped
        out = soundfile.read(target, dtype="float64")[0]
        limit = np.inf if not clipped else 1.0
        np.testing.assert_allclose(out, np.clip(wav[:, 0], -limit, limit), atol=1e-4)


def test_whole_silence_file(enhancer, tmp_path):
    soundfile.write(tmp_path / "in.wav", np.zeros((44100, 2)), 44100, "PCM_16")
    enhancer.enhance_file(tmp_path / "in.wav", tmp_path / "out.wav")
    assert not soundfile.read(tmp_path / "out.wav")[0].any()


@pytest.mark.parametrize("frames", [1, 2, 100])
def test_tiny_files(enhancer, tmp_path, frames):
    soundfile.write(tmp_path / "in.wav", np.full(frames, 0.1), 44100)
    enhancer.enhance_file(tmp_path / "in.wav", tmp_path / "out.wav")
    assert soundfile.info(tmp_path / "out.wav").frames == frames


def header(channels=1, rate=16000, bits=16, size=64, kind=1):
    block = min(channels * bits // 8, 0xFFFF)
    fmt = struct.pack("<HHIIHH", kind, channels & 0xFFFF, rate, rate * 2 & 0xFFFFFFFF, block, bits)
    body = b"WAVEfmt " + struct.pack("<I", 16) + fmt + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", len(body) + size) + body + b"\0" * size


CAF_ABSURD = (  # big-endian CAF header that claims 2^31 channels
    b"caff"
    + struct.pack(">HH", 1, 0)
    + b"desc"
    + struct.pack(">q", 32)
    + struct.pack(">d4sIIIII", 16000.0, b"lpcm", 0, 2, 1, 1 << 31, 16)
    + b"data"
    + struct.pack(">qI", 68, 0)
    + b"\0" * 64
)
AU_ABSURD = b".snd" + struct.pack(">IIIII", 24, 64, 3, 16000, 1 << 31) + b"\0" * 64


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (b"\0", "not a readable"),
        (b"hello, this is no recording at all" * 10, "not a readable"),
        (b"RIFF", "not a readable"),
        (header()[:30], "not a readable|no samples"),
        (header(size=0), "no samples"),
        (header(channels=0), "not a readable"),
        (header(channels=65535), "channels|not a readable"),
        (header(channels=100, size=400), "100 channels"),
        (header(rate=1), "1 Hz"),
        (header(rate=0), "Hz|not a readable"),
        (header(rate=0x7FFFFFFF), "Hz|not a readable"),
        (CAF_ABSURD, "channels|not a readable"),
        (AU_ABSURD, "channels|not a readable"),
        (b"fLaC" + b"\0" * 100, "not a readable"),
        (b"OggS" + b"\0" * 100, "not a readable"),
    ],
)
def test_bad_files(enhancer, tmp_path, data, message):
    source = tmp_path / "in.wav"
    source.write_bytes(data)
    with pytest.raises(InputError, match=message) as error:
        enhancer.enhance_file(source, tmp_path / "out.wav")
    assert "\n" not in str(error.value)
    assert str(source) in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["in.wav"]


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_truncated_flac(enhancer, tmp_path, keep):
    source = tmp_path / "in.flac"
    data = (ROOT / "tests/assets/clip0_noisy.flac").read_bytes()
    source.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InputError, match=r"damaged|truncated"):
        enhancer.enhance_file(source, tmp_path / "out.flac")
    assert [p.name for p in tmp_path.iterdir()] == ["in.flac"]


def test_non_finite_file(enhancer, tmp_path):
    wav = tone(16000)
    wav[5000] = np.nan
    soundfile.write(tmp_path / "in.wav", wav, 16000, "FLOAT")
    with pytest.raises(InputError, match=r"in.wav: sample 5000 of channel 0 is nan"):
        enhancer.enhance_file(tmp_path / "in.wav", tmp_path / "out.wav")
    assert not (tmp_path / "out.wav").exists()


def test_missing_and_special_paths(enhancer, tmp_path):
    out = tmp_path / "out.wav"
    with pytest.raises(InputError, match="No such file"):
        enhancer.enhance_file(tmp_path / "none.wav", out)
    with pytest.raises(InputError, match="is a directory"):
        enhancer.enhance_file(tmp_path, out)
    with pytest.raises(InputError, match="not a regular file"):
        enhancer.enhance_file("/dev/null", out)
    with pytest.raises(InputError, match="not a file name"):
        enhancer.enhance_file("a\0b.wav", out)
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(InputError, match="not a regular file"):
        enhancer.enhance_file(tmp_path / "pipe.wav", out)


def test_bad_outputs(enhancer, tmp_path):
    source = tmp_path / "in.wav"
    soundfile.write(source, tone(16000), 16000)
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "link.wav").symlink_to(source)
    os.link(source, tmp_path / "hard.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    before = source.read_bytes()
    for name, message in (
        ("in.wav", "same file"),
        ("link.wav", "same file"),
        ("hard.wav", "same file"),
        ("./../" + tmp_path.name + "/in.wav", "same file"),
        ("folder.wav", "is a directory"),
        ("pipe.wav", "not a regular file"),
        ("none/out.wav", "does not exist"),
        ("out.mp3", "unknown suffix"),
        ("out", "unknown suffix"),
    ):
        with pytest.raises(InputError, match=message):
            enhancer.enhance_file(source, tmp_path / name)
    assert source.read_bytes() == before
    assert leftovers(tmp_path) == []


def test_output_link_keeps_pointing(enhancer, tmp_path):
    soundfile.write(tmp_path / "in.wav", tone(16000), 16000)
    (tmp_path / "deep").mkdir()
    (tmp_path / "out.wav").symlink_to(tmp_path / "deep" / "real.wav")
    enhancer.enhance_file(tmp_path / "in.wav", tmp_path / "out.wav", steps=0)
    assert (tmp_path / "out.wav").is_symlink()
    assert soundfile.info(tmp_path / "deep" / "real.wav").frames == 8007


def test_overwriting_keeps_permissions(enhancer, tmp_path):
    soundfile.write(tmp_path / "in.wav", tone(16000), 16000)
    (tmp_path / "out.wav").write_bytes(b"old")
    (tmp_path / "out.wav").chmod(0o640)
    enhancer.enhance_file(tmp_path / "in.wav", tmp_path / "out.wav", steps=0, overwrite=True)
    assert (tmp_path / "out.wav").stat().st_mode & 0o777 == 0o640
    mask = os.umask(0)
    os.umask(mask)
    enhancer.enhance_file(tmp_path / "in.wav", tmp_path / "new.wav", steps=0)
    assert (tmp_path / "new.wav").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_no_permission(enhancer, tmp_path):
    soundfile.write(tmp_path / "in.wav", tone(16000), 16000)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(InputError, match="Permission denied"):
        enhancer.enhance_file(tmp_path / "in.wav", locked / "out.wav")
    (tmp_path / "in.wav").chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        enhancer.enhance_file(tmp_path / "in.wav", tmp_path / "out.wav")


def test_no_permission_as_root(enhancer, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "in.wav", tone(16000), 16000)

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(audio_out.os, "open", refuse)
        with pytest.raises(InputError, match=r"out.wav: cannot write here \(Permission denied\)"):
            enhancer.enhance_file(tmp_path / "in.wav", tmp_path / "out.wav")
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        with pytest.raises(InputError, match=r"in.wav: Permission denied"):
            enhancer.enhance_file(tmp_path / "in.wav", tmp_path / "out.wav")
    assert [p.name for p in tmp_path.iterdir()] == ["in.wav"]


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("limit", [0, 20, 3000, 20000])
def test_disk_full(enhancer, tmp_path, monkeypatch, suffix, limit):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (96000, 2))  # hard to pack
    soundfile.write(tmp_path / "in.wav", noise, 48000)
    target = tmp_path / f"out.{suffix}"
    target.write_bytes(b"previous")
    written = 0
    real = audio_out._RecordingFile.write

    class Full:
        def __init__(self, stream):
            self._stream = stream

        def __getattr__(self, name):
            return getattr(self._stream, name)

        def write(self, data):
            nonlocal written
            written += len(data)
            if written > limit:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self._stream.write(data)

    def write(self, data):
        if not isinstance(self._stream, Full):
            self._stream = Full(self._stream)
        return real(self, data)

    monkeypatch.setattr(audio_out._RecordingFile, "write", write)
    with pytest.raises(InputError, match="No space left on device") as error:
        enhancer.enhance_file(tmp_path / "in.wav", target, steps=0, overwrite=True)
    assert "\n" not in str(error.value)
    assert target.read_bytes() == b"previous"
    assert leftovers(tmp_path) == []


def test_file_size_limit_of_the_system(enhancer, tmp_path):
    soundfile.write(tmp_path / "in.wav", tone(16000, 5.0), 16000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        with pytest.raises(InputError, match="File too large"):
            enhancer.enhance_file(tmp_path / "in.wav", tmp_path / "out.wav", steps=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.name for p in tmp_path.iterdir()] == ["in.wav"]


def test_failed_rename(enhancer, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "in.wav", tone(16000), 16000)

    def refuse(*args):
        raise OSError(errno.EIO, "Input/output error")

    calls = ((audio_out.os, "link", False), (Path, "replace", True), (audio_out.os, "fsync", False))
    for owner, name, overwrite in calls:  # Path: that of 3.10 keeps its own os.replace
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, refuse)
            if name == "link":  # a file system without links: a rename does it
                patch.setattr(audio_out.os, "replace", refuse)
            with pytest.raises(InputError, match="Input/output error"):
                enhancer.enhance_file(
                    tmp_path / "in.wav", tmp_path / "out.wav", steps=0, overwrite=overwrite
                )
    assert [p.name for p in tmp_path.iterdir()] == ["in.wav"]


def test_failing_network_leaves_nothing(enhancer, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "in.wav", tone(16000, 20.0), 16000)

    def fail(*args):
        raise BackendError("non-finite values")

    monkeypatch.setattr(enhancer.backend, "predict", fail)
    with pytest.raises(BackendError):
        enhancer.enhance_file(tmp_path / "in.wav", tmp_path / "out.wav")
    assert [p.name for p in tmp_path.iterdir()] == ["in.wav"]


LONG = """
import re, sys, soundfile
from pathlib import Path
from dvpd.runtime import Enhancer
with Enhancer.open(sys.argv[1], "ort", "cpu", 1) as e:
    e.enhance_file(sys.argv[2], sys.argv[3], steps=0, overwrite=True)
# not ru_maxrss: across an exec it keeps the peak of the process that forked
peak_kib = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
print(peak_kib // 1024, soundfile.info(sys.argv[3]).frames)
"""
LONG_LIMIT_MIB = 400  # an hour of 48 kHz stereo float32 alone is 1320 MiB


def write_long(path, seconds, rate, channels):
    block = tone(rate, 10.0, channels)
    with soundfile.SoundFile(path, "w", rate, channels, "PCM_16") as file:
        for _ in range(seconds // 10):
            file.write(block[: rate * 10])


def enhance_long(engine, tmp_path, seconds, rate, channels):
    write_long(tmp_path / "in.wav", seconds, rate, channels)
    done = subprocess.run(
        [sys.executable, "-c", LONG, str(engine), tmp_path / "in.wav", tmp_path / "out.wav"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    peak_mib, frames = map(int, done.stdout.split())
    assert frames == seconds * rate
    return peak_mib


def test_memory_does_not_grow_with_length(engine_shared, tmp_path):
    peaks = [enhance_long(engine_shared, tmp_path, seconds, 8000, 1) for seconds in (30, 180)]
    assert max(peaks) < LONG_LIMIT_MIB
    assert peaks[1] - peaks[0] < 30


@pytest.mark.slow
def test_as_many_samples_as_an_hour(engine_shared, tmp_path):
    # of 48 kHz: 660 MiB in float32. A quarter of the time at four times the rate costs half
    assert enhance_long(engine_shared, tmp_path, 900, 192000, 1) < LONG_LIMIT_MIB
