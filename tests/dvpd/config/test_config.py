import json
from pathlib import Path

import pytest

from dvpd.config import (
    Config,
    ModelConfig,
    complete_from_dict,
    from_dict,
    load_toml,
    to_dict,
)
from dvpd.config.train import TrainConfig
from dvpd.runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
CONFIGS, ENGINES = ROOT / "dvpd" / "configs", ROOT / "engines"


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
    (tmp_path / "weights.toml").write_bytes(b"\xa5\0\xff")
    with pytest.raises(InputError, match="no valid TOML"):
        load_toml(tmp_path / "weights.toml")
    with pytest.raises(InputError, match="No such file"):
        load_toml(tmp_path / "none.toml")


def test_whole_numbers_stand_for_floats():
    assert from_dict(ModelConfig, {"ffn_factor": 2}).ffn_factor == 2.0


def test_tables_from_before_the_whole_chain_are_completed():
    """A checkpoint's [data] table, as it was before the links of Table 6 had their own keys."""
    table = {"crop_samples": 16256, "speech_weights": {"a": 2.0}, "noise_weights": {}}
    table |= {"speech_speed_p": 0.2, "speech_speed": [0.9, 1.1], "speech_eq_p": 0.2}
    table |= {"snr_db": [-5.0, 20.0], "clean_p": 0.03, "recorded_p": 0.65, "babble_p": 0.15}
    table |= {"coloured_p": 0.2, "hum_p": 0.07, "second_noise_p": 0.25, "noise_speed_p": 0.3}
    table |= {"noise_speed": [0.8, 1.25], "noise_eq_p": 0.4, "universal_p": 0.4, "reverb_p": 0.5}
    table |= {"measured_rir_p": 0.3, "t60_s": [0.15, 1.0], "early_ms": 0.0, "lowpass_p": 0.25}
    table |= {"lowpass_hz": [2000.0, 7900.0], "bandpass_p": 0.15, "resample_p": 0.2}
    table |= {"resample_hz": [6000, 8000], "clip_p": 0.25, "clip_quantile": [0.85, 0.995]}
    table |= {"level_p": 0.5, "level_db": [-30.0, 0.0]}
    data = complete_from_dict({**to_dict(Config()), "data": table}).data
    assert to_dict(data) == {**to_dict(data), **table}
    # what came later is off, what was always there stays on
    later = ("gsm", "tanh", "phaser", "bits", "expand", "gain", "microphone", "highpass", "white",
             "single", "freeverb", "image_rir", "noise_in_room", "gain_change")  # fmt: skip
    assert {getattr(data, f"{name}_p") for name in later} == {0.0}
    assert data.noise_p == data.resample_sinc_p == 1.0
    del table["snr_db"]
    with pytest.raises(InputError, match=r"missing key config\.data\.snr_db"):
        complete_from_dict({**to_dict(Config()), "data": table})


def test_shipped_weights_still_say_what_they_were_trained_with():
    from safetensors import safe_open

    from dvpd.checkpoint import load_checkpoint

    path = ENGINES / "dvpd-tiny" / "dvpd-tiny.safetensors"
    with safe_open(path, framework="pt") as file:
        written = json.loads(file.metadata()["config"])
    read = to_dict(load_checkpoint(path)[0])
    for table, keys in written.items():
        assert {key: read[table][key] for key in keys} == keys


@pytest.mark.parametrize("name", ["tiny", "base", "paper"])
def test_shipped_configs_are_whole(name):
    config = load_toml(CONFIGS / f"{name}.toml")
    assert complete_from_dict(to_dict(config)) == config


def test_older_train_tables_are_completed_and_others_not():
    values = to_dict(Config())
    del values["train"]["perceptual_weight"]
    assert complete_from_dict(values).train.perceptual_weight == 0.0
    del values["train"]["estoi_weight"], values["data"]["speech_change_p"]
    del values["data"]["speech_change_db"]
    assert complete_from_dict(values).train.estoi_weight == 0.0
    assert complete_from_dict(values).data.speech_change_p == 0.0
    del values["train"]["lr"]
    with pytest.raises(InputError, match=r"train\.lr"):
        complete_from_dict(values)


def test_a_score_branch_without_a_loss_is_refused():
    with pytest.raises(InputError, match=r"score_weight, .* are all 0"):
        TrainConfig(branches="score", score_weight=0.0)
    assert TrainConfig(branches="score", score_weight=0.0, sampler_weight=1.0).score_weight == 0.0


def test_a_causal_config_has_no_phase_rounds():
    with pytest.raises(InputError, match=r"phase_rounds is 1 with model.causal; expected 0"):
        from_dict(Config, {"model": {"causal": True}, "sampler": {"phase_rounds": 1}})
    assert from_dict(Config, {"sampler": {"phase_rounds": 1}}).sampler.phase_rounds == 1


def test_a_checkpoint_from_before_phase_rounds_means_none():
    values = to_dict(Config())
    del values["sampler"]["phase_rounds"]
    assert complete_from_dict(values).sampler.phase_rounds == 0


def test_a_checkpoint_from_before_the_share_of_noise_means_all_of_it():
    values = to_dict(Config())
    del values["sampler"]["noise"]
    assert complete_from_dict(values).sampler.noise == 1.0
