import torch

from dvpd.interaction import Interaction


def test_equals_the_formula_on_a_concatenation():
    torch.manual_seed(0)
    fi = Interaction(6, 5, gate=True, norm="batch").eval()
    g, p, emb = torch.randn(2, 6, 8, 10), torch.randn(2, 6, 8, 10), torch.randn(2, 5)
    joined = torch.cat([g, p], dim=1)
    scale = 1 / (1 + fi.joint_g.norm.eps) ** 0.5  # a fresh batch norm
    weight = torch.cat([fi.joint_g.conv.weight * scale, fi.joint_p.weight], dim=1)
    joint = torch.sigmoid(
        torch.nn.functional.conv2d(joined, weight) + fi.time(emb)[:, :, None, None]
    )
    prior = torch.sigmoid(fi.prior(p.mean(2, keepdim=True)))
    assert (fi(g, p, emb) - (g + joint * prior * p)).abs().max() < 1e-5


def test_the_prior_does_not_depend_on_time():
    fi = Interaction(6, 5, gate=True, norm="batch").eval()
    p = torch.randn(1, 6, 8, 10)
    prior = torch.sigmoid(fi.prior(p.mean(2, keepdim=True)))
    assert prior.shape == (1, 6, 1, 10)


def test_without_the_gate_there_is_no_prior():
    fi = Interaction(6, 5, gate=False, norm="batch").eval()
    assert fi.prior is None
    g, p, emb = torch.randn(1, 6, 8, 10), torch.randn(1, 6, 8, 10), torch.randn(1, 5)
    joint = torch.sigmoid(fi.joint_g(g) + fi.joint_p(p) + fi.time(emb)[:, :, None, None])
    assert (fi(g, p, emb) - (g + joint * p)).abs().max() < 1e-6
