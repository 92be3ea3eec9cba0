import pytest
import torch

from dvpd.fanc import (
    BANDS,
    FANCDecoder,
    FANCEncoder,
    UniformDecoder,
    UniformEncoder,
    compressed_bins,
    split_bin,
)


def test_bands_and_bins():
    assert [(hi - lo) // s for lo, hi, s in BANDS] == [64, 32, 32]
    assert compressed_bins("fanc") == 128
    assert split_bin("fanc") == 64  # 2 kHz = bin 64 of 257
    assert compressed_bins("uniform") == 88
    with pytest.raises(ValueError, match="'fanc' or 'uniform'"):
        compressed_bins("mel")


@pytest.mark.parametrize(("encoder", "decoder", "bins"), [
    (FANCEncoder, FANCDecoder, 128), (UniformEncoder, UniformDecoder, 88),
])  # fmt: skip
def test_shapes_there_and_back(encoder, decoder, bins):
    enc = encoder(3, 8, "batch", 6).eval()
    y = enc(torch.randn(2, 3, 12, 257), torch.randn(2, 6))
    assert y.shape == (2, 8, 12, bins)
    dec = decoder(8, 4, 2, "batch").eval()
    z = dec(y, y)
    assert z.shape == (2, 2, 12, 257)
    assert z.abs().max() == 0  # the last convolution starts at zero


@pytest.mark.parametrize(("bin_in", "low", "high"), [(20, 17 - 1, 24 + 1), (250, 96, 128)])
def test_a_bin_reaches_its_own_band(bin_in, low, high):
    torch.manual_seed(0)
    enc = FANCEncoder(1, 8, "batch").eval()
    x = torch.zeros(1, 1, 8, 257, requires_grad=True)
    base = enc(torch.zeros(1, 1, 8, 257))
    touched = x.detach().clone()
    touched[..., bin_in] = 1.0
    moved = (enc(touched) - base).abs().amax((0, 1, 2)) > 1e-7
    reached = moved.nonzero().flatten()
    assert len(reached) > 0
    assert reached.min() >= low
    assert reached.max() < high


def test_sub_pixel_step_interleaves_along_frequency():
    from dvpd.fanc import _spread

    x = torch.arange(2 * 4 * 1 * 3).reshape(1, 8, 1, 3)
    y = _spread(x, 4)
    assert y.shape == (1, 2, 1, 12)
    assert y[0, 0, 0].tolist() == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]
