import pytest
import torch

from dvpd.tlb import band_index, scale_backbone, scale_skip


def test_ones_change_nothing_at_all():
    x = torch.randn(2, 4, 8, 16)
    assert torch.equal(scale_skip(x, torch.ones(2), band_index(16, 8)), x)
    assert torch.equal(scale_backbone(x, torch.ones(2), band_index(16, 8)), x)


@pytest.mark.parametrize("band", [0, 1])
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_skip_factor_scales_its_band_alone(band, factor):
    x = torch.randn(2, 4, 8, 16)
    factors = torch.ones(2)
    factors[band] = factor
    y = scale_skip(x, factors, band_index(16, 6))
    inside = slice(0, 6) if band == 0 else slice(6, 16)
    outside = slice(6, 16) if band == 0 else slice(0, 6)
    assert torch.equal(y[..., inside], factor * x[..., inside])
    assert torch.equal(y[..., outside], x[..., outside])


@pytest.mark.parametrize("band", [0, 1])
def test_backbone_gain_is_between_one_and_the_factor(band):
    x = torch.randn(2, 4, 8, 16)
    factors = torch.ones(2)
    factors[band] = 2.5
    gain = scale_backbone(x, factors, band_index(16, 6)) / x
    inside = slice(0, 6) if band == 0 else slice(6, 16)
    outside = slice(6, 16) if band == 0 else slice(0, 6)
    assert (gain[..., outside] - 1).abs().max() < 1e-5
    assert gain[..., inside].min() > 1 - 1e-4
    assert gain[..., inside].max() < 2.5 + 1e-4
    # each item is normalised by its own map: where the mean over channels is largest, the gain is b
    mean = x.mean(1)
    for item in range(2):
        t, f = divmod(int(mean[item].argmax()), 16)
        expected = 2.5 if (f < 6) == (band == 0) else 1.0
        assert abs(gain[item, 0, t, f].item() - expected) < 1e-4


def test_a_flat_map_is_left_alone():
    x = torch.full((1, 4, 8, 16), 3.0)
    y = scale_backbone(x, torch.tensor([4.0, 4.0]), band_index(16, 8))
    assert torch.equal(y, x)
