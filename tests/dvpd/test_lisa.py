import pytest
import torch

from dvpd.lisa import DILATIONS, LISA, _dilated_sum, _DilatedSum, stripes, stripes_conv

SAME = 1e-4  # float32, values of order 10


def random_lisa(channels: int = 8) -> LISA:
    torch.manual_seed(1)
    module = LISA(channels, "batch")
    for name in ("l1", "l2", "gamma", "beta", "mean_weight"):
        torch.nn.init.normal_(getattr(module, name))
    return module.eval()


def reflect(i: int, n: int) -> int:
    i = abs(i)
    return i if i < n else 2 * (n - 1) - i


def stripes_by_loops(module: LISA, x: torch.Tensor) -> torch.Tensor:
    """Paper Eq. 2 and model notes, written out: y = l1 L(x) + l2 x, along F, then along T."""
    _, c, n_frames, n_bins = x.shape
    w = torch.tanh(module.kernels(x.mean((2, 3)))).reshape(-1, 3, 2, 3, 4)  # [B, d, axis, tap, G]
    total = torch.zeros_like(x)
    for i, d in enumerate(DILATIONS):
        y = x
        for axis, n in ((0, n_bins), (1, n_frames)):
            kernel = w[:, i, axis].repeat_interleave(c // 4, dim=2)  # [B, tap, C]
            shifted = [
                y.index_select(
                    3 - axis, torch.tensor([reflect(p + (k - 1) * d, n) for p in range(n)])
                )
                for k in range(3)
            ]
            mixed = sum(kernel[:, k, :, None, None] * shifted[k] for k in range(3))
            l1 = module.l1[i, axis, 0][None, :, None, None]
            l2 = module.l2[i, axis, 0][None, :, None, None]
            y = l1 * mixed + l2 * y
        total = total + module.gamma[i, 0][None, :, None, None] * y
    return total


@pytest.mark.parametrize("form", ["shifts", "convolution"])
def test_stripes_equal_the_paper_s_formula(form):
    module = random_lisa()
    x = torch.randn(2, 8, 20, 16)
    taps = module.taps(x).unsqueeze(-1).unsqueeze(-1)
    zero = torch.zeros_like(x)
    y = stripes(x, taps.unbind(0), zero) if form == "shifts" else stripes_conv(x, taps, zero)
    assert (y - stripes_by_loops(module, x)).abs().max() < SAME


def test_the_form_for_one_recording_is_the_same_module():
    module = random_lisa().eval()
    with torch.no_grad():
        module.beta.uniform_(0.5, 1.5)
        module.mean_weight.normal_(0, 0.3)
    x = torch.randn(1, 8, 20, 16)
    want = module(x)
    module.single = True
    assert (module(x) - want).abs().max() < SAME * want.abs().max()


def test_both_forms_have_the_same_gradient():
    module = random_lisa()
    x = torch.randn(2, 8, 20, 16, requires_grad=True)
    taps = module.taps(x).unsqueeze(-1).unsqueeze(-1)
    weight = torch.randn(x.shape)
    a = torch.autograd.grad((stripes(x, taps.unbind(0), x) * weight).sum(), x, retain_graph=True)[0]
    b = torch.autograd.grad((stripes_conv(x, taps, x) * weight).sum(), x)[0]
    assert (a - b).abs().max() < SAME * a.abs().max()


def test_fast_backward_is_the_gradient():
    torch.manual_seed(2)
    padded = torch.randn(1, 3, 18, 17, dtype=torch.float64, requires_grad=True)
    kernels = torch.randn(3, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_DilatedSum.apply, (padded, kernels))
    assert torch.equal(_DilatedSum.apply(padded, kernels), _dilated_sum(padded, kernels))


def test_kernels_depend_on_the_input():
    module = random_lisa()
    a, b = module.taps(torch.randn(1, 8, 20, 16)), module.taps(torch.randn(1, 8, 20, 16) + 1)
    assert (a - b).abs().max() > 0.01


def test_a_new_module_passes_its_input_to_the_last_convolution():
    module = LISA(8, "batch").eval()
    x = torch.randn(1, 8, 20, 16)
    expected = torch.nn.functional.leaky_relu(module.out(x), 0.2)
    assert (module(x) - expected).abs().max() < 1e-6


def test_channels_must_divide_into_groups():
    with pytest.raises(ValueError, match="multiple of 4"):
        LISA(6, "batch")
