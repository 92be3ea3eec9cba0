"""What a file promises against what is in it, for every family of formats."""

import io
import logging
import struct
from importlib.util import find_spec

import numpy as np
import pytest
import soundfile

from dvpd.runtime import InputError, audio
from dvpd.runtime.containers import View, flac, ogg

RATE = 16000
FORMATS = {
    "a.wav": ("WAV", "PCM_16"), "f.wav": ("WAV", "FLOAT"), "u.wav": ("WAV", "ULAW"),
    "d.wav": ("WAV", "IMA_ADPCM"), "x.wav": ("WAVEX", "PCM_24"), "r.wav": ("RF64", "PCM_16"),
    "a.w64": ("W64", "PCM_16"), "a.aiff": ("AIFF", "PCM_16"), "f.aifc": ("AIFF", "FLOAT"),
    "a.au": ("AU", "PCM_16"), "a.caf": ("CAF", "PCM_24"), "a.flac": ("FLAC", "PCM_16"),
    "v.ogg": ("OGG", "VORBIS"), "o.opus": ("OGG", "OPUS"), "a.mp3": ("MP3", "MPEG_LAYER_III"),
    "s.iff": ("SVX", "PCM_16"), "n.sph": ("NIST", "PCM_16"), "v.voc": ("VOC", "PCM_16"),
    "a.avr": ("AVR", "PCM_16"), "w.wve": ("WVE", "ALAW"),
}  # fmt: skip
# Formats whose length libsndfile itself rounds to whole blocks.
ROUNDED = ("d.wav",)


def sound(seconds=2.0, seed=0):
    noise = np.random.default_rng(seed).standard_normal(int(RATE * seconds))
    return (0.05 * noise).astype(np.float32)


@pytest.fixture(scope="module")
def made():
    """Name -> bytes of a recording of 2 s in every format."""
    table = {}
    for name, (container, subtype) in FORMATS.items():
        rate = 8000 if container == "WVE" else RATE
        data = io.BytesIO()
        soundfile.write(data, sound(), rate, subtype, format=container)
        table[name] = data.getvalue()
    return table


def count(path, **options):
    info = audio.probe(path, **options)
    blocks = list(audio.read_blocks(info))
    assert sum(map(len, blocks)) == info.n_samples
    return info.n_samples


@pytest.mark.parametrize("name", FORMATS)
def test_whole_files_are_read_whole(made, tmp_path, name, caplog):
    path = tmp_path / name
    path.write_bytes(made[name])
    n_samples = count(path)
    assert n_samples == 32000 or (name in ROUNDED and n_samples > 32000)
    assert caplog.records == []
    wav, rate = audio.read_whole(path)
    assert wav.shape == (n_samples, 1)
    expected = soundfile.read(path, dtype="float32", always_2d=True)[0]
    np.testing.assert_allclose(wav, expected, rtol=0, atol=1e-6)
    assert rate == (8000 if name == "w.wve" else RATE)


@pytest.mark.parametrize("keep", [0.35, 0.6, 0.97])
@pytest.mark.parametrize("name", FORMATS)
def test_a_cut_file_is_an_error_that_can_be_salvaged(made, tmp_path, name, keep, caplog):
    path = tmp_path / name
    path.write_bytes(made[name][: int(len(made[name]) * keep)])
    with pytest.raises(InputError, match=r"truncated|damaged") as error:
        count(path)
    assert "--salvage" in str(error.value)
    assert "\n" not in str(error.value)
    if name in ("v.ogg", "o.opus") and keep < 0.5:  # nothing but its headers is left
        return
    salvaged = audio.probe(path, salvage=True)
    assert salvaged.gaps
    assert any("salvaged" in r.getMessage() for r in caplog.records)
    got = np.concatenate(list(audio.read_blocks(salvaged)))
    assert 0.05 * 32000 < len(got) < 32600
    whole = soundfile.read(io.BytesIO(made[name]), dtype="float32", always_2d=True)[0]
    if FORMATS[name][1] not in ("VORBIS", "OPUS", "MPEG_LAYER_III"):
        np.testing.assert_array_equal(got, whole[: len(got)])


@pytest.mark.parametrize("name", ["a.wav", "x.wav", "r.wav", "a.w64", "a.aiff", "a.au", "a.caf"])
def test_a_cut_names_both_lengths(made, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(made[name][:-20000])
    with pytest.raises(InputError, match=r"promises 32000 samples, 2\d{4} are there"):
        audio.probe(path)


@pytest.mark.parametrize(
    "name", [n for n in FORMATS if n not in ("n.sph", "v.voc", "a.avr", "w.wve")]
)
def test_several_recordings_in_one_file_are_all_read(made, tmp_path, name, caplog):
    caplog.set_level(logging.INFO, "dvpd")
    path = tmp_path / name
    path.write_bytes(made[name] * 3)
    single = tmp_path / ("one" + name)
    single.write_bytes(made[name])
    wav, one = audio.read_whole(path)[0], audio.read_whole(single)[0]
    np.testing.assert_allclose(wav, np.concatenate([one] * 3), rtol=0, atol=1e-6)
    assert "3 recordings in one file" in caplog.text


def test_several_recordings_that_do_not_fit_together(made, tmp_path):
    path = tmp_path / "x.wav"
    path.write_bytes(made["a.wav"] + made["a.flac"])
    with pytest.raises(InputError, match="a FLAC recording follows at byte 64044"):
        audio.probe(path)
    other = io.BytesIO()
    soundfile.write(other, sound(), 8000, "PCM_16", format="WAV")
    path.write_bytes(made["a.wav"] + other.getvalue())
    with pytest.raises(InputError, match="16000 Hz and 1 channels and of 8000 Hz"):
        audio.probe(path)


def patched(data, *changes):
    out = bytearray(data)
    for offset, value in changes:
        out[offset : offset + len(value)] = value
    return bytes(out)


def streamed(made):
    """Files as streaming writers and recorders that crashed leave them."""
    wav, aiff = made["a.wav"], made["a.aiff"]
    ssnd = aiff.index(b"SSND") + 4
    comm = aiff.index(b"COMM") + 10
    caf = made["a.caf"].index(b"data") + 4
    rf = made["r.wav"]
    yield "ffmpeg.wav", patched(wav, (4, b"\xff" * 4), (40, b"\xff" * 4))
    yield "sox.wav", patched(wav, (4, struct.pack("<I", 0x7FFFF024)), (40, b"\0\xf0\xff\x7f"))
    yield "arecord.wav", patched(wav, (4, b"\x24\0\0\x80"), (40, b"\0\0\0\x80"))
    yield "crashed.wav", patched(wav, (4, b"\0" * 4), (40, b"\0" * 4))
    yield "float.wav", patched(made["f.wav"], (made["f.wav"].index(b"data") + 4, b"\0" * 4))
    yield "ffmpeg.rf64.wav", patched(rf, (20, b"\0" * 24))
    yield "ffmpeg.aiff", patched(aiff, (4, b"\0" * 4), (comm, b"\0" * 4), (ssnd, b"\0" * 4))
    yield "sox.aiff", patched(aiff, (comm, b"\x3f\x80\0\0"), (ssnd, b"\x7f\0\0\x08"))
    yield "ffmpeg.au", patched(made["a.au"], (8, b"\xff" * 4))
    yield "crashed.au", patched(made["a.au"], (8, b"\0" * 4))
    yield "unknown.caf", patched(made["a.caf"], (caf, b"\xff" * 8))
    w64 = made["a.w64"]
    yield "ffmpeg.w64", patched(w64, (w64.index(b"data") + 16, b"\xff" * 7 + b"\x7f"))
    flac = made["a.flac"]
    total = flac[21] & 0xF0
    yield "pipe.flac", patched(flac, (21, bytes([total]) + b"\0" * 4), (26, b"\0" * 16))


def test_files_of_streaming_writers_are_read_to_their_end(made, tmp_path):
    for name, data in streamed(made):
        path = tmp_path / name
        path.write_bytes(data)
        if name.endswith(("caf", "w64")):
            assert count(path) >= 32000, name
        else:
            assert count(path) == 32000, name


def test_a_streamed_flac_that_was_cut_is_an_error(made, tmp_path):
    data = dict(streamed(made))["pipe.flac"]
    path = tmp_path / "x.flac"
    path.write_bytes(data[: int(len(data) * 0.6)])
    with pytest.raises(InputError, match="damaged or truncated"):
        audio.probe(path)


def flac_with(data, total):
    """A FLAC file with another number of samples in its header."""
    return patched(data, (21, bytes([data[21] & 0xF0]) + struct.pack(">I", total)))


@pytest.mark.parametrize("n_samples", [1, 4096, 24000, 200000])
@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (44100, 2), (11000, 6)])
def test_a_flac_that_states_too_few_samples(tmp_path, n_samples, rate, channels):
    path, data = tmp_path / "x.flac", io.BytesIO()
    noise = 0.1 * np.random.default_rng(n_samples).standard_normal((n_samples, channels))
    soundfile.write(data, noise, rate, "PCM_16", format="FLAC")
    path.write_bytes(data.getvalue())
    assert count(path) == n_samples
    whole = audio.read_whole(path)[0]
    for total in {1, n_samples // 3, n_samples - 1} - {0, n_samples}:
        path.write_bytes(flac_with(data.getvalue(), total))
        with pytest.raises(InputError, match=f"promises {total} samples, {n_samples} are there"):
            audio.probe(path)
        info = audio.probe(path, salvage=True)
        assert info.gaps == (f"promises {total} samples, {n_samples} are there",)
        np.testing.assert_array_equal(np.concatenate(list(audio.read_blocks(info))), whole)


def test_flacs_with_wrong_lengths_in_a_row(made, tmp_path):
    path, data = tmp_path / "x.flac", made["a.flac"]
    path.write_bytes(flac_with(data, 0) + data + b"TAG" + bytes(125))
    assert count(path) == 64000
    path.write_bytes(data + flac_with(data, 31999) + bytes(5000))
    with pytest.raises(InputError, match="promises 31999 samples, 32000 are there"):
        audio.probe(path)
    assert count(path, salvage=True) == 64000


def test_flac_frames_are_counted_by_frame_or_by_sample():
    """RFC 9639, section 9.1; libFLAC writes blocks of one size alone."""

    def header(variable, number, block):
        head = bytes([0xFF, 0xF8 | variable, 0x74, 0x08]) + number.encode()
        head += struct.pack(">H", block - 1)
        return head + bytes([flac._crc8(head)])

    def there(*frames):
        data = b"\xff\xf8noise".join(header(*frame) for frame in frames)
        return flac._samples_there(View(io.BytesIO(data), len(data)), 0, len(data))

    assert there((0, "\0", 4096), (0, "\1", 4096), (0, "\2", 7)) == 2 * 4096 + 7
    assert there((1, "\0", 4096), (1, chr(4096), 100), (1, chr(4196), 7)) == 4203
    assert there((0, chr(70000), 4096), (0, chr(70001), 5)) == 4096 + 5  # cut out of a longer one
    assert there((0, "\0", 77)) == 77
    assert there((0, "\0", 4096), (0, "\5", 4096)) == 0  # something between is missing
    wrong = header(0, "\1", 4096)[:-1] + b"\0"
    assert flac._frame(wrong) is None
    assert flac._frame(header(0, chr(0x10FFFF), 65535)) == (False, 0x10FFFF, 65535)


def test_a_piece_of_a_recording(made, tmp_path):
    whole = sound()
    for name, data in (("a.flac", made["a.flac"]), ("p.flac", flac_with(made["a.flac"], 0)),
                       ("a.wav", made["a.wav"]), ("two.wav", 2 * made["a.wav"])):  # fmt: skip
        path = tmp_path / name
        path.write_bytes(data)
        info = audio.probe(path)
        for first, length in ((0, 9), (12345, 16000), (31990, 10), (31990, 4000)):
            piece = audio.read_piece(info, first, length)[:, 0]
            expected = np.tile(whole, 2)[: info.n_samples][first : first + length]
            np.testing.assert_allclose(piece, expected, rtol=0, atol=1e-4)


def test_mp3_without_a_xing_header_and_with_a_wrong_one(made, tmp_path):
    data = made["a.mp3"]
    place = data.index(b"Xing") if b"Xing" in data else data.index(b"Info")
    path = tmp_path / "x.mp3"
    path.write_bytes(patched(data, (place, b"\0" * 4)))
    assert count(path) > 32000  # the encoder's padding is no longer known
    wrong = patched(data, (place + 8, struct.pack(">I", 10)))
    path.write_bytes(wrong)
    assert count(path) > 32000  # all frames, not ten
    path.write_bytes(b"ID3\x04\0\0\0\0\0\x0a" + b"\0" * 10 + data + b"TAG" + b"\0" * 125)
    assert count(path) == 32000


def test_damage_in_the_middle(made, tmp_path, caplog):
    for name, message in (
        ("v.ogg", "checksum"),
        ("o.opus", "checksum"),
        ("a.flac", "damaged"),
        ("a.mp3", "no MPEG frame"),
    ):
        data = bytearray(made[name])
        half = len(data) // 2
        data[half : half + 2000 if name == "a.mp3" else half + 40] = bytes(
            2000 if name == "a.mp3" else 40
        )
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(InputError, match=message):
            count(path)
        if name != "o.opus" or find_spec("av"):  # libsndfile alone opens none of that one
            assert audio.probe(path, salvage=True).gaps
    # of FLAC the rest is found again, and silence keeps it in its place
    info = audio.probe(tmp_path / "a.flac", salvage=True)
    wav = np.concatenate(list(audio.read_blocks(info)))[:, 0]
    assert "silence stands for them" in info.gaps[0]
    np.testing.assert_allclose(wav[-8000:], sound()[-8000:], atol=1e-4)


def test_pages_that_are_missing(made, tmp_path):
    data = made["o.opus"]
    pages = [i for i in range(len(data)) if data.startswith(b"OggS", i)]
    path = tmp_path / "x.opus"
    path.write_bytes(data[: pages[-3]] + data[pages[-2] :])
    with pytest.raises(InputError, match=r"pages \d+ to \d+ are missing"):
        audio.probe(path)
    path.write_bytes(data[: pages[-1]])
    with pytest.raises(InputError, match="lacks its last page"):
        audio.probe(path)


def test_a_length_that_was_written_too_early(made, tmp_path):
    """A recorder that updates its header now and then, and died."""
    path = tmp_path / "x.wav"
    path.write_bytes(patched(made["a.wav"], (4, struct.pack("<I", 20036)), (40, b"\x20\x4e\0\0")))
    with pytest.raises(InputError, match="44000 bytes from byte 20044 on belong to no recording"):
        audio.probe(path)


def test_what_follows_a_recording_is_no_recording(made, tmp_path, caplog):
    for tail in (b"\0" * 5000, b"TAG" + b"x" * 125, b"junk\x04\0\0\0abcd", b"ID3\x04" + b"x" * 99):
        path = tmp_path / "x.wav"
        path.write_bytes(made["a.wav"] + tail)
        assert count(path) == 32000
        assert caplog.records == []
    path.write_bytes(made["a.wav"] + b"\x01\x02\x03")
    assert count(path) == 32000
    assert "3 bytes from byte 64044 on" in caplog.text


def test_headerless_samples_are_one_line(tmp_path, capfd):
    path = tmp_path / "x.raw"
    path.write_bytes((sound() * 32768).astype("<i2").tobytes())
    with pytest.raises(InputError, match="not a readable audio file") as error:
        audio.probe(path)
    assert "--raw 48000,1,s16" in str(error.value)
    assert capfd.readouterr().err == ""  # nothing from decoders


def test_a_format_without_a_length_is_said(tmp_path, caplog):
    soundfile.write(tmp_path / "x.pvf", sound(), RATE, "PCM_16", format="PVF")
    assert count(tmp_path / "x.pvf") == 32000
    assert "a cut would not show" in caplog.text


def test_exact_encodings(tmp_path):
    """What was read is written as it was, in every integer encoding."""
    for subtype, bits in (("PCM_U8", 8), ("PCM_16", 16), ("PCM_24", 24)):
        full = 2 ** (bits - 1)
        values = np.r_[np.arange(-full, full, max(1, full // 5000)), full - 1]
        wav = (values / full).astype(np.float32)[:, None]
        with audio.AudioWriter(tmp_path / f"{bits}.wav", RATE, 1, "WAV", subtype) as writer:
            writer.write(wav)
            writer.commit()
        back = audio.read_whole(tmp_path / f"{bits}.wav")[0]
        np.testing.assert_array_equal(back, wav)


def test_ogg_checksum_is_that_of_the_library(made):
    page = made["o.opus"][: 27 + 1 + 19]
    stored = int.from_bytes(page[22:26], "little")
    assert ogg._ogg_checksum(page[:22] + bytes(4) + page[26:]) == stored
