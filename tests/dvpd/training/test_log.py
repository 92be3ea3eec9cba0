"""What a run shows: lines, the bar, TensorBoard's event files."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import soundfile as sf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from train_parts import CROP, Tones, log_of, micro_config

from dvpd.runtime import progress
from dvpd.train import find_examples
from dvpd.training.log import Bar, Lines, TensorBoard, make_display, spectrogram_picture
from dvpd.training.trainer import Trainer

STEP = {
    "kind": "step",
    "step": 3,
    "minutes": 0.5,
    "epoch": 1,
    "audio_hours": 1.25,
    "loss": 0.5,
    "lr": 1e-3,
}
TRAIN = {**STEP, "kind": "train", "crops_per_s": 12.34, "skipped": 0}


def test_lines(capsys):
    show = Lines()
    show(STEP)
    assert capsys.readouterr().err == ""
    show(TRAIN)
    show({"kind": "dev", "step": 3, "score": 1.5})
    assert capsys.readouterr().err == (
        "train: step 3 minutes 0.5 audio_hours 1.25 loss 0.5 lr 0.001 crops_per_s 12.34\n"
        "dev: step 3 score 1.5\n"
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("minutes", [0.0, 2.0])
def test_bar(minutes, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "BAR_AFTER_S", 0.0)
    monkeypatch.setattr(progress, "BAR_EVERY_S", 0.0)
    bar = make_display(micro_config(steps=12, minutes=minutes).train)
    for step, done in ((1, 0.125), (2, 0.25)):
        bar({**STEP, "step": step, "minutes": done})
    bar(TRAIN)
    bar(STEP)
    bar({"kind": "dev", "step": 3, "score": 1.5})
    bar.close()
    text = stream.getvalue()
    # 3 of 12 steps, or half a minute of 2
    for part in ("25%", "s left, step 3 loss 0.5000 lr 1.0e-03 12.3 crops/s 1.25 h"):
        assert part in text
    assert "\r\033[Kdev: step 3 score 1.5\n" in text


def test_the_bar_is_for_terminals(monkeypatch):
    config = micro_config().train
    assert isinstance(make_display(config), Lines)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(make_display(config), Bar)


def test_picture():
    time_s = np.arange(CROP) / 16000
    tone = np.sin(2 * np.pi * 1000 * time_s).astype(np.float32)
    picture = spectrogram_picture([0 * tone, tone], micro_config())
    assert picture.shape == (257 + 4 + 257, 1 + CROP // 128, 3)
    upper, gap, lower = np.split(picture.astype(int), [257, 261])
    assert (upper == [0, 0, 8]).all()  # silence is the darkest colour
    assert (gap == 255).all()
    brightness = lower.sum(-1)[:, 16]
    assert 256 - brightness.argmax() == 32  # 1 kHz is bin 32, counted from the bottom
    assert (lower[256 - 32, 16] >= [245, 240, 170]).all()


def test_tensorboard_holds_figures_pictures_and_sound(tmp_path):
    config = micro_config(steps=2, eval_minutes=1e-9)
    trainer = Trainer(config, Tones(), tmp_path, evaluate=lambda m, c: {"score": 1.25})
    board = TensorBoard(tmp_path / "tb", find_examples(config, Tones(), None)[:2])
    trainer.report, trainer.show = board, board.show
    trainer.run()
    board.close()
    events = EventAccumulator(
        str(tmp_path / "tb"), size_guidance={"images": 0, "audio": 0}
    ).Reload()
    log = log_of(tmp_path)
    for kind, names in (
        ("train", ("loss", "score", "lr", "grad_norm", "audio_hours")),
        ("dev", ("score",)),
    ):
        for name in names:
            written = [(e.step, e.value) for e in events.Scalars(f"{kind}/{name}")]
            expected = [(r["step"], pytest.approx(r[name])) for r in log if r["kind"] == kind]
            assert written == expected
    assert [r["step"] for r in log if r["kind"] == "train"] == [1, 2]
    systems = {"noisy", "predictive", "full", "clean"}
    assert set(events.Tags()["audio"]) == {f"train-{i}/{s}" for i in (0, 1) for s in systems}
    clean = sf.read(io.BytesIO(events.Audio("train-1/clean")[0].encoded_audio_string))
    assert clean[1] == 16000
    # 16 bits, truncated towards zero
    np.testing.assert_allclose(clean[0], Tones().pair(0, 0, 1)[1], atol=2 / 32768)
    assert len(events.Audio("train-0/noisy")) == 1
    looks = [r["step"] for r in log if r["kind"] == "dev"]
    assert [e.step for e in events.Audio("train-0/full")] == looks
    image = events.Images("train-0/spectrograms")[0]
    assert (image.height, image.width) == (4 * 257 + 3 * 4, 1 + CROP // 128)


def test_examples_of_a_dev_set(tmp_path):
    for i in range(5):
        noisy, clean = Tones().pair(0, 0, i)
        for side, wav in (("noisy", noisy), ("clean", clean)):
            (tmp_path / side).mkdir(exist_ok=True)
            sf.write(tmp_path / side / f"p{i}.wav", wav, 16000, subtype="FLOAT")
    examples = find_examples(micro_config(), Tones(), tmp_path)
    assert [name for name, _, _ in examples] == ["p0", "p1", "p3"]
    np.testing.assert_array_equal(examples[2][1], Tones().pair(0, 0, 3)[0])
    long = np.full(16000 * 9, 0.1, np.float32)
    for side in ("noisy", "clean"):
        sf.write(tmp_path / side / "p0.wav", long, 16000, subtype="FLOAT")
    assert [len(wav) for wav in find_examples(micro_config(), Tones(), tmp_path)[0][1:]] == [
        80000
    ] * 2
