import pytest

from dvpd.config import Config, ModelConfig, complete_from_dict, from_dict, load_toml, to_dict
from dvpd.runtime.errors import InputError


def test_round_trip_through_plain_tables():
    assert complete_from_dict(to_dict(Config())) == Config()


def test_toml_fills_in_defaults(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('[model]\nchannels = 16\n[sde]\nname = "ouve"\n')
    config = load_toml(path)
    assert config.model == ModelConfig(channels=16)
    assert config.sde.name == "ouve"


@pytest.mark.parametrize(("text", "message"), [
    ("[model]\nchanels = 16\n", "unknown key config.model.chanels"),
    ("[modell]\nchannels = 16\n", "unknown key config.modell"),
    ("[model]\nchannels = 18\n", "multiple of 4"),
    ("[model]\nchannels = true\n", "channels is True"),
    ("[model]\nscan = 'rnn'\n", "model.scan is 'rnn'"),
    ("[model]\nblocks = 3\n", "model.blocks is 3"),
    ("[model]\nembedding = 7\n", "even"),
    ("[model]\nffn_factor = 0.0\n", "ffn_factor"),
    ("model = 3\n", "expected a table"),
    ("[model\n", "no valid TOML"),
])  # fmt: skip
def test_mistakes_are_named(tmp_path, text, message):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_toml(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        load_toml(tmp_path / "none.toml")


def test_whole_numbers_stand_for_floats():
    assert from_dict(ModelConfig, {"ffn_factor": 2}).ffn_factor == 2.0
