import pytest

from dvpd.runtime import spec
from dvpd.runtime.errors import InputError
from dvpd.runtime.spec import SamplerSpec, SignalSpec, TlbFactors


def test_presets_are_the_papers():
    severe = spec.TLB_PRESETS["severe"]
    assert severe.skip == ((4.1, 0.5), (2.0, 0.8))
    assert severe.backbone == ((1.5, 1.0), (2.5, 1.0))
    assert spec.TLB_PRESETS["none"] == TlbFactors()
    skip, backbone = severe.arrays()
    assert skip.dtype == "float32"
    assert backbone.shape == (2, 2)


@pytest.mark.parametrize(
    "value",
    [
        1,
        None,
        [[1, 1]],
        [[1, 2], [3]],
        [[1, 2], [3, float("inf")]],
        [[1, 2], [3, float("nan")]],
        [["1", "2"], ["3", "4"]],
        [[True, True], [True, True]],
    ],
)
def test_bad_factors(value):
    with pytest.raises(InputError, match="2 x 2"):
        TlbFactors(skip=value)


@pytest.mark.parametrize("value", [{"skip": [[1, 1], [1, 1]]}, [], "x", {}])
def test_bad_factor_mapping(value):
    with pytest.raises(InputError, match="'skip' and 'backbone'"):
        TlbFactors.from_mapping(value)


def test_graph_io():
    inputs, outputs = spec.graph_io("score", "fp16")
    assert [t.name for t in inputs][:3] == ["xt", "t", "feat_0"]
    assert {t.dtype for t in inputs if t.name.startswith("feat")} == {"float16"}
    assert outputs == spec.SCORE_OUTPUTS
    with pytest.raises(InputError, match="graph"):
        spec.graph_io("other", "fp32")
    with pytest.raises(InputError, match="precision"):
        spec.graph_io("score", "int8")


def test_defaults_hold():
    assert SignalSpec().n_frames(16000) == 126
    assert SamplerSpec() == SamplerSpec(t_rs=0.12, n_steps=3, alpha=0.4)
