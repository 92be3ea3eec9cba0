import numpy as np
import pytest
import soundfile

from dvpd.runtime import InputError
from dvpd.runtime.audio import probe, read_blocks
from dvpd.runtime.cut import cut


@pytest.fixture(params=["WAV", "FLAC", "MP3"])
def recording(request, tmp_path, speech):
    path = tmp_path / f"in.{request.param.lower()}"
    soundfile.write(path, np.stack([speech, -speech], 1)[:40000], 16000, format=request.param)
    return path


def read(info):
    return np.concatenate(list(read_blocks(info)))


@pytest.mark.parametrize(
    "part", [(0.0, None), (0.5, 1.0), (1.0, None), (2.4999, 0.0001), (0, 0.25)]
)
def test_a_part_is_what_the_whole_holds_there(recording, part):
    info = probe(recording)
    start_s, duration_s = part
    first = round(start_s * 16000)
    end = None if duration_s is None else first + round(duration_s * 16000)
    found = cut(info, part)
    np.testing.assert_array_equal(read(found), read(info)[first:end])
    assert found.n_samples == len(read(found))


def test_no_part_is_the_whole(recording):
    info = probe(recording)
    assert cut(info, None) is info


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ((-1.0, None), "start is -1.0 s"),
        ((float("nan"), None), "start is nan s"),
        ((2.5, None), "the part starts at 2.5 s; the recording has 2.5 s"),
        ((0.0, 0.0), "duration is 0.0 s"),
        ((0.0, float("inf")), "duration is inf s"),
        ((1.0, 2.0), "the part ends at 1 + 2 s; the recording has 2.5 s"),
    ],
)
def test_a_part_that_is_not_there(tmp_path, speech, part, said):
    soundfile.write(tmp_path / "in.wav", speech[:40000], 16000)
    with pytest.raises(InputError) as error:
        cut(probe(tmp_path / "in.wav"), part)
    assert said in str(error.value)


def test_marks_stay_behind_and_texts_go_with_a_part(enhancer, tmp_path, speech):
    source, target = tmp_path / "in.wav", tmp_path / "out.wav"
    with soundfile.SoundFile(source, "w", 16000, 1, "PCM_16") as file:
        file.title = "Talk"
        file.write(speech[:32000])
    cue = (1).to_bytes(4, "little") + bytes(24)
    data = bytearray(source.read_bytes()) + b"cue " + len(cue).to_bytes(4, "little") + cue
    data[4:8] = (len(data) - 8).to_bytes(4, "little")
    source.write_bytes(data)
    done = enhancer.enhance_file(source, target, steps=0, part=(0.5, 1.0))
    assert done.left == ("what is more than a text tag",)
    assert b"cue " not in target.read_bytes()
    with soundfile.SoundFile(target) as file:
        assert (file.title, file.frames) == ("Talk", 16000)
    assert done.peaks == pytest.approx([np.abs(soundfile.read(source)[0][8000:24000]).max()])
