import pytest
import torch

from dvpd.odam import LinearScan, Mixer, SSDScan, ssd_chunked, ssd_recurrence

EXACT = 1e-10  # float64: two orders of summation of the same terms


def ssd_inputs(length: int, heads: int = 3, state: int = 5, width: int = 4) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(length)
    shape = (2, 3, length)
    x = torch.randn(*shape, heads, width, generator=g, dtype=torch.float64)
    dt = torch.rand(*shape, heads, generator=g, dtype=torch.float64) * 2
    a = -torch.rand(heads, generator=g, dtype=torch.float64) * 3
    b = torch.randn(*shape, state, generator=g, dtype=torch.float64)
    c = torch.randn(*shape, state, generator=g, dtype=torch.float64)
    return [t.requires_grad_() for t in (x, dt, a, b, c)]


@pytest.mark.parametrize("length", [1, 31, 32, 33, 100, 128])
def test_chunked_scan_equals_recurrence_in_value_and_gradient(length):
    inputs = ssd_inputs(length)
    plain, chunked = ssd_recurrence(*inputs), ssd_chunked(*inputs, chunk=32)
    assert plain.shape == inputs[0].shape
    assert (plain - chunked).abs().max() < EXACT
    weight = torch.randn(
        plain.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    expected = torch.autograd.grad((plain * weight).sum(), inputs)
    got = torch.autograd.grad((chunked * weight).sum(), inputs)
    for e, g in zip(expected, got, strict=True):
        assert (e - g).abs().max() < EXACT * max(1.0, e.abs().max().item())


def test_chunked_scan_survives_strong_decay_in_float32():
    x, dt, a, b, c = (t.detach().float() for t in ssd_inputs(96))
    y = ssd_chunked(x, dt * 1000, a, b, c)
    assert torch.isfinite(y).all()


@pytest.mark.parametrize("axis", ["time", "frequency"])
def test_ssd_scan_looks_both_ways_along_both_axes(axis):
    scan = SSDScan(8, 4, 2)
    u = torch.zeros(1, 12, 16, 8, requires_grad=True)
    centre = scan(u + 0.1)[0, 6, 8].sum()
    grad = torch.autograd.grad(centre, u)[0][0].abs().sum(-1)  # [T, F]
    line = grad[:, 8] if axis == "time" else grad[6]
    assert (line > 0).all()


def linear_scan_by_loops(scan: LinearScan, u: torch.Tensor) -> torch.Tensor:
    """The formulas of the module's docstring, one output at a time."""
    n_frames, n_bins, _ = u.shape
    out = torch.zeros_like(u)
    k, q = torch.sigmoid(scan.freq_key(u)), torch.sigmoid(scan.freq_query(u))
    frame = u.mean(1)
    tk, tq = torch.sigmoid(scan.time_key(frame)), torch.sigmoid(scan.time_query(frame))
    for t in range(n_frames):
        for f in range(n_bins):
            for n in range(k.shape[-1]):
                mean_f = (k[t, :, n, None] * u[t]).sum(0) / k[t, :, n].sum()
                mean_t = (tk[:, n, None] * u[:, f]).sum(0) / tk[:, n].sum()
                out[t, f] += q[t, f, n] * mean_f + tq[t, n] * mean_t
    return out


def test_linear_scan_equals_its_formula():
    torch.manual_seed(0)
    scan = LinearScan(6, 3)
    u = torch.randn(2, 7, 5, 6)
    expected = torch.stack([linear_scan_by_loops(scan, item) for item in u])
    assert (scan(u) - expected).abs().max() < 1e-3  # the key floor of 1e-4 is left out above


@pytest.mark.parametrize("scan", ["linear", "ssd"])
def test_a_new_mixer_adds_nothing_and_learns(scan):
    mixer = Mixer(8, 4, 2, scan, "batch").train()
    x = torch.randn(2, 8, 12, 16)
    y = mixer(x)
    assert y.abs().max() == 0
    y.sum().backward()
    assert mixer.out.norm.weight.grad.abs().max() > 0


def test_unknown_scan_is_refused():
    with pytest.raises(ValueError, match="'linear' or 'ssd'"):
        Mixer(8, 4, 2, "rnn", "batch")
