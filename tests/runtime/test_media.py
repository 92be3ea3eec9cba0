import importlib.util
import shutil

import numpy as np
import pytest
import soundfile

from dvpd.runtime import InputError, audio, media

av = pytest.importorskip("av", reason="PyAV is not installed: dvpd[media]")
RATE = 48000
CODECS = {"m4a": "aac", "mp4": "aac", "aac": "aac", "webm": "libopus", "mkv": "libopus"}


def tone(seconds=2.0):
    return (0.3 * np.sin(np.arange(int(RATE * seconds)) * (2 * np.pi * 440 / RATE))).astype("f4")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Suffix -> a recording of 2 s."""
    folder = tmp_path_factory.mktemp("media")
    for suffix, codec in CODECS.items():
        kind = {"m4a": "ipod", "aac": "adts", "mkv": "matroska"}.get(suffix, suffix)
        with av.open(str(folder / f"in.{suffix}"), "w", format=kind) as out:
            stream = out.add_stream(codec, rate=RATE)
            stream.layout = "mono"
            out.metadata["title"] = "Title"
            ints = (tone() * 32767).astype("<i2")[None]
            frame = av.AudioFrame.from_ndarray(ints, format="s16", layout="mono")
            frame.sample_rate = RATE
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                out.mux(packet)
    return folder


@pytest.mark.parametrize("suffix", CODECS)
def test_what_libsndfile_does_not_read(enhancer, made, tmp_path, suffix):
    done = enhancer.enhance_file(made / f"in.{suffix}", tmp_path / "out.wav", steps=0)
    assert (done.sample_rate, done.n_channels) == (RATE, 1)
    assert abs(done.n_samples - 2 * RATE) < 2600  # encoders pad
    info = soundfile.info(tmp_path / "out.wav")
    assert info.frames == done.n_samples
    wav = audio.read_whole(made / f"in.{suffix}")[0][:, 0]
    spectrum = np.abs(np.fft.rfft(wav))
    assert abs(np.argmax(spectrum) * RATE / len(wav) - 440) < 2


@pytest.mark.parametrize("suffix", ["m4a", "webm", "mkv", "aac"])
def test_a_cut_file_is_an_error(made, tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    data = (made / f"in.{suffix}").read_bytes()
    path.write_bytes(data[: len(data) // 2])
    if suffix == "aac":  # promises nothing; its last frame is cut
        info = audio.probe(path, salvage=True)
        assert RATE / 2 < info.n_samples < 1.5 * RATE
        return
    with pytest.raises(InputError) as error:
        audio.probe(path)
    assert "\n" not in str(error.value)


def test_without_pyav_the_ffmpeg_command_is_named(made, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        media.importlib.util, "find_spec", lambda name: None if name == "av" else real(name)
    )
    with pytest.raises(InputError, match=r"pip install 'dvpd\[media\]', or ffmpeg -i .*in.m4a"):
        audio.probe(made / "in.m4a")


def test_a_film_without_sound(tmp_path):
    with av.open(str(tmp_path / "x.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    with pytest.raises(InputError, match="holds no sound"):
        audio.probe(tmp_path / "x.mp4")


def test_tags_of_media_files(enhancer, made, tmp_path):
    shutil.copy(made / "in.m4a", tmp_path / "in.m4a")
    enhancer.enhance_file(tmp_path / "in.m4a", tmp_path / "out.flac", steps=0)
    with soundfile.SoundFile(tmp_path / "out.flac") as file:
        assert file.title == "Title"
