import sys
from pathlib import Path

import pytest

from dvpd.config import ModelConfig
from dvpd.model import DVPD

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for train_parts, small_model

from small_model import SMALL, set_weights


@pytest.fixture
def small_config() -> ModelConfig:
    return SMALL


@pytest.fixture
def make_small_model():
    def make(config: ModelConfig = SMALL) -> DVPD:
        model = DVPD(config)
        set_weights(model)
        return model.eval()

    return make


@pytest.fixture
def small_model(make_small_model) -> DVPD:
    return make_small_model()
