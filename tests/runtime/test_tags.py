import struct

import numpy as np
import pytest
import soundfile

from dvpd.runtime import audio

RATE = 16000


def tone():
    return (0.1 * np.sin(np.arange(RATE + 1) / 7)).astype(np.float32)


def chunk(name, data):
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) & 1)


BEXT = chunk(b"bext", b"an interview".ljust(602, b"\0") + b"A=PCM,F=16000\r\n")
CUE = chunk(b"cue ", struct.pack("<IIIII4sIII", 1, 1, 8000, 0, 0, b"data", 0, 0, 8000)[:28])
INFO = chunk(b"LIST", b"INFO" + chunk(b"INAM", b"Title\0") + chunk(b"IART", b"Somebody"))
ADTL = chunk(b"LIST", b"adtl" + chunk(b"labl", b"\1\0\0\0here\0"))
XML = chunk(b"iXML", b"<BWFXML/>")


def chunks(data):
    """(id, bytes) of a WAV file's chunks."""
    place, found = 12, []
    while place < len(data):
        size = struct.unpack("<I", data[place + 4 : place + 8])[0]
        found.append((data[place : place + 4], data[place + 8 : place + 8 + size]))
        place += 8 + size + (size & 1)
    assert place == len(data)
    return found


@pytest.fixture
def tagged(tmp_path):
    """A broadcast WAV with chunks before and after its samples."""
    path = tmp_path / "in.wav"
    soundfile.write(path, tone(), RATE, "PCM_24")
    data = path.read_bytes()
    at = data.index(b"data")
    body = data[12:at] + BEXT + XML + data[at:] + b"\0" * (len(data) & 1) + CUE + INFO + ADTL
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body)
    return path


def test_every_chunk_of_a_wav_file_is_carried_over(enhancer, tagged, tmp_path):
    out = tmp_path / "out.wav"
    done = enhancer.enhance_file(tagged, out, steps=0)
    data = out.read_bytes()
    assert struct.unpack("<I", data[4:8])[0] == len(data) - 8
    found = chunks(data)
    for name, content in chunks(tagged.read_bytes()):
        if name not in (b"data", b"fmt ", b"PEAK"):
            assert (name, content) in found
    assert done.left == ()
    info = audio.probe(out)
    assert info.n_samples == RATE + 1
    assert soundfile.SoundFile(out).copy_metadata()["title"] == "Title"


def test_what_cannot_be_carried_is_named(enhancer, tagged, tmp_path, capsys):
    done = enhancer.enhance_file(tagged, tmp_path / "out.flac", steps=0)
    assert set(done.left) == {"broadcast data (bext)", "cue points", "iXML", "lists"}
    with soundfile.SoundFile(tmp_path / "out.flac") as file:
        assert file.title == "Title"
        assert file.artist == "Somebody"


def picture(path):
    """Add a picture and a rare comment to a FLAC file, as tools do."""
    data = path.read_bytes()
    image = struct.pack(">II", 3, 9) + b"image/png" + bytes(20) + struct.pack(">I", 4) + b"\x89PNG"
    comments = struct.pack("<I", 1) + b"x" + struct.pack("<II", 1, 10) + b"MOOD=quiet"
    blocks = b"\x06" + len(image).to_bytes(3, "big") + image
    blocks += b"\x04" + len(comments).to_bytes(3, "big") + comments
    rest = data[42:]
    while rest[0] & 0x7F == 4:  # its own comments go
        size = int.from_bytes(rest[1:4], "big")
        last, rest = rest[0] & 0x80, rest[4 + size :]
        if last:
            blocks = blocks[: -4 - len(comments)] + b"\x84" + blocks[-3 - len(comments) :]
            break
    path.write_bytes(data[:42] + blocks + rest)


def test_flac_blocks_are_carried_over(enhancer, tmp_path):
    soundfile.write(tmp_path / "in.flac", tone(), RATE)
    picture(tmp_path / "in.flac")
    assert audio.probe(tmp_path / "in.flac").n_samples == RATE + 1
    done = enhancer.enhance_file(tmp_path / "in.flac", tmp_path / "out.flac", steps=0)
    data = (tmp_path / "out.flac").read_bytes()
    assert b"MOOD=quiet" in data
    assert b"\x89PNG" in data
    assert done.left == ()
    assert audio.probe(tmp_path / "out.flac").n_samples == RATE + 1
    other = enhancer.enhance_file(tmp_path / "in.flac", tmp_path / "out.wav", steps=0)
    assert other.left == ("pictures",)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.flac", "out.flac", "out.wav"]


@pytest.mark.parametrize(("suffix", "target"), [("ogg", "ogg"), ("ogg", "flac"), ("mp3", "wav")])
def test_texts_go_from_one_format_to_another(enhancer, tmp_path, suffix, target):
    source = tmp_path / f"in.{suffix}"
    with soundfile.SoundFile(source, "w", RATE, 1) as file:
        file.title, file.artist = "Grüße", "Somebody"
        file.write(tone())
    enhancer.enhance_file(source, tmp_path / f"out.{target}", steps=0)
    with soundfile.SoundFile(tmp_path / f"out.{target}") as file:
        assert (file.title, file.artist) == ("Grüße", "Somebody")
