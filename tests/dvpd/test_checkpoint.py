import json

import pytest
import torch
from safetensors.torch import save_file

from dvpd import checkpoint
from dvpd.config import Config, to_dict
from dvpd.model import DVPD
from dvpd.runtime import files
from dvpd.runtime.errors import InputError, ManifestError


@pytest.fixture
def saved(tmp_path, small_config):
    model = DVPD(small_config)
    path = tmp_path / "model.safetensors"
    config = Config(model=small_config)
    checkpoint.save_checkpoint(path, model.state_dict(), config, {"hours": "1.5"})
    return path, model, config


def test_the_file_alone_rebuilds_the_model(saved):
    path, model, config = saved
    loaded_config, loaded = checkpoint.load_model(path)
    assert loaded_config == config
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert checkpoint.read_checkpoint(path)[2] == {"hours": "1.5"}
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file left


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".pth"])
def test_a_pickle_is_never_loaded(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    torch.save({"x": 1}, path)
    with pytest.raises(InputError, match="never loaded"):
        checkpoint.load_checkpoint(path)


def test_a_renamed_pickle_is_refused_too(tmp_path):
    path = tmp_path / "model.safetensors"
    torch.save({"x": 1}, path)
    with pytest.raises(ManifestError, match="not a readable"):
        checkpoint.load_checkpoint(path)


def test_missing_truncated_and_foreign_files(tmp_path, saved):
    path, _, _ = saved
    with pytest.raises(InputError, match="no such checkpoint"):
        checkpoint.load_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match=r"is a folder; expected .* such as .*model\.safetensors"):
        checkpoint.load_checkpoint(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ManifestError, match="not a readable"):
        checkpoint.load_checkpoint(path)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(1)}, foreign)
    with pytest.raises(ManifestError, match="format is None"):
        checkpoint.load_checkpoint(foreign)


@pytest.mark.parametrize(("change", "message"), [
    (lambda c: c["model"].update(colour=1), "unknown key config.model.colour"),
    (lambda c: c["model"].pop("state"), "missing key config.model.state"),
    (lambda c: c.pop("sde"), "missing key config.sde"),
    (lambda c: c["model"].update(channels="many"), "channels is 'many'"),
])  # fmt: skip
def test_config_keys_must_match(tmp_path, small_config, change, message):
    values = to_dict(Config(model=small_config))
    change(values)
    path = tmp_path / "model.safetensors"
    meta = {"format": checkpoint.FORMAT, "config": json.dumps(values)}
    save_file(DVPD(small_config).state_dict(), path, metadata=meta)
    with pytest.raises(ManifestError, match=message):
        checkpoint.load_checkpoint(path)


def test_weights_of_another_size_are_refused(tmp_path, small_config, saved):
    path, model, _ = saved
    checkpoint.save_checkpoint(path, model.state_dict(), Config())
    with pytest.raises(ManifestError, match="do not fit"):
        checkpoint.load_model(path)


def test_a_failed_save_leaves_the_old_file(saved, monkeypatch):
    path, model, config = saved
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save_checkpoint(path, model.state_dict(), config)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
