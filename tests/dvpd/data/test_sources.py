"""The layouts a training folder may have."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dvpd.config import Config
from dvpd.config.data import DataConfig
from dvpd.data import open_source, rooms, sources
from dvpd.data.mix import Mixer
from dvpd.data.paired import PairedSource
from dvpd.runtime.errors import InputError

CONFIG = Config(data=DataConfig(crop_samples=8000))


def fill(lab, folder, *kinds):
    for kind in kinds:
        for i in range(2):
            lab.write(folder / kind / "source" / f"{i}.wav", lab.voice(0.8, i))


def test_speech_and_noise_are_mixed(lab, tmp_path):
    fill(lab, tmp_path, "speech", "noise", "rir")
    seen = []
    source = open_source(CONFIG, tmp_path, tmp_path / "cache", lambda *n: seen.append(n))
    assert isinstance(source, Mixer)
    assert [s for s in seen if s[1] == s[2]] == [("speech", 2, 2), ("noise", 2, 2), ("rir", 2, 2)]
    assert source.pair(0, 0, 0)[0].shape == (8000,)


def test_weights_that_name_no_source_are_named(lab, tmp_path, caplog):
    fill(lab, tmp_path, "speech", "noise")
    open_source(CONFIG, tmp_path)
    assert not caplog.messages
    config = replace(CONFIG, data=replace(CONFIG.data, noise_weights={"sourse": 2.0}))
    open_source(config, tmp_path)
    assert "data.noise_weights names sourse, of which there is nothing" in caplog.text
    assert "the sources are source" in caplog.text


def test_rooms_are_optional(lab, tmp_path):
    fill(lab, tmp_path, "speech", "noise")
    assert isinstance(open_source(CONFIG, tmp_path), Mixer)


@pytest.mark.parametrize("name", ["", "_testset_wav", "_trainset_28spk_wav"])
def test_recorded_pairs_are_found(lab, tmp_path, name):
    fill(lab, tmp_path, f"noisy{name}", f"clean{name}")
    (tmp_path / "logfiles").mkdir()
    for place in (tmp_path, tmp_path / f"noisy{name}"):
        assert isinstance(open_source(CONFIG, place), PairedSource)


def test_several_sets_of_pairs_are_ambiguous(lab, tmp_path):
    fill(lab, tmp_path, *(f"{s}_{k}set_wav" for s in ("noisy", "clean") for k in ("test", "train")))
    with pytest.raises(InputError, match=r"several sets .*noisy_testset_wav, noisy_trainset_wav"):
        open_source(CONFIG, tmp_path)
    assert isinstance(open_source(CONFIG, tmp_path / "noisy_trainset_wav"), PairedSource)


def test_the_working_folder_can_be_given_as_a_dot(lab, tmp_path, monkeypatch):
    fill(lab, tmp_path, "noisy", "clean")
    monkeypatch.chdir(tmp_path)
    assert sources.find_sides(Path()) == (Path("noisy"), Path("clean"))
    monkeypatch.chdir(tmp_path / "noisy")
    noisy, clean = sources.find_sides(Path())
    assert (noisy, clean) == (Path(), tmp_path / "clean")
    with pytest.raises(InputError, match="expected speech"):
        sources.find_sides(Path("source"))


def test_other_layouts_are_refused(lab, tmp_path):
    with pytest.raises(InputError, match=r"has nothing; expected speech/"):
        open_source(CONFIG, tmp_path)
    fill(lab, tmp_path, "speech", "music")
    with pytest.raises(InputError, match=r"has music, speech; expected speech/ and noise/"):
        open_source(CONFIG, tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        open_source(CONFIG, tmp_path / "nowhere")


@pytest.mark.skipif(not rooms.has_image_sources(), reason="pyroomacoustics is not installed")
def test_bank_comes_with_the_source(lab, tmp_path):
    fill(lab, tmp_path, "speech", "noise")
    data = replace(CONFIG.data, room_bank=4, room_side_m=(3.0, 4.0), t60_s=(0.2, 0.3))
    seen = []
    source = open_source(
        replace(CONFIG, data=data), tmp_path, tmp_path / "c", lambda *n: seen.append(n)
    )
    assert seen[-1] == ("rooms", 4, 4)
    assert len(source._bank) == 4
    kinds = {source.draw_room(np.random.default_rng(i))[1] for i in range(40)}
    assert kinds == {"image", "freeverb", "statistical"}


def test_without_pyroomacoustics_statistical_rooms_stand_in(lab, tmp_path, monkeypatch, caplog):
    fill(lab, tmp_path, "speech", "noise")
    monkeypatch.setattr(sources, "has_image_sources", lambda: False)
    config = replace(CONFIG, data=replace(CONFIG.data, room_bank=4))
    with caplog.at_level(logging.WARNING, "dvpd"):
        source = open_source(config, tmp_path)
    assert "statistical rooms stand in" in caplog.text
    kinds = {source.draw_room(np.random.default_rng(i))[1] for i in range(40)}
    assert kinds == {"freeverb", "statistical"}


def test_no_bank_is_built_for_nothing():
    for off in ({"room_bank": 0}, {"room_bank": 9, "image_rir_p": 0.0}, {"universal_p": 0.0}):
        assert sources.open_bank(replace(CONFIG.data, **off), None) == []
