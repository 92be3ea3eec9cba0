from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import expi

from dvpd.runtime.errors import InputError
from dvpd.runtime.schedule import (
    SdeSpec,
    diffusion,
    drift_rate,
    exp_integral,
    initial_state,
    mean_weight,
    sampler_steps,
    std,
)

BBED = SdeSpec()
OUVE = SdeSpec(name="ouve")
TABLE_DIGITS = 5.1e-6  # the reference values are given to five decimals


def test_exp_integral_equals_scipy():
    x = -np.geomspace(1e-6, 10.0, 300)
    np.testing.assert_allclose(exp_integral(x), expi(x), rtol=1e-12, atol=1e-12)
    assert isinstance(exp_integral(-1.0), float)


def test_bbed_reference_values():
    t = np.array([0.12, 0.08, 0.04])
    np.testing.assert_allclose(std(BBED, t), [0.24663, 0.20160, 0.14270], atol=TABLE_DIGITS)
    np.testing.assert_allclose(diffusion(BBED, t), [0.80091, 0.77087, 0.74197], atol=TABLE_DIGITS)
    np.testing.assert_allclose(mean_weight(BBED, t), 1 - t, rtol=1e-15)


@pytest.mark.parametrize("sde", [BBED, OUVE, SdeSpec(name="ouve", k=7.0, c=0.2, gamma=0.4)])
@pytest.mark.parametrize("t", [0.01, 0.12, 0.5, 0.9, 0.999])
def test_variance_is_the_integral_of_the_noise(sde, t):
    # x_t = w(t) x0 + ... + integral of w(t) / w(s) g(s) dw(s)
    def integrand(s):
        return (mean_weight(sde, t) / mean_weight(sde, s) * diffusion(sde, s)) ** 2

    expected = quad(integrand, 0.0, t, epsabs=1e-14, epsrel=1e-12, limit=200)[0]
    assert std(sde, t) ** 2 == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("sde", [BBED, OUVE])
def test_marginal_against_monte_carlo(sde):
    rng = np.random.default_rng(7)
    n_paths, n_steps, t_end = 40_000, 200, 0.4
    dt = t_end / n_steps
    x0, y = 1.0, -0.5
    x = np.full(n_paths, x0)
    for i in range(n_steps):
        s = (i + 0.5) * dt  # midpoint: second-order in the coefficients
        noise = diffusion(sde, s) * np.sqrt(dt) * rng.standard_normal(n_paths)
        x = x + drift_rate(sde, s) * (y - x) * dt + noise
    w = mean_weight(sde, t_end)
    # Five standard errors of the mean and of the standard deviation, plus the step's own error.
    sigma = std(sde, t_end)
    assert x.mean() == pytest.approx(w * x0 + (1 - w) * y, abs=5 * sigma / n_paths**0.5 + 2e-3)
    assert x.std() == pytest.approx(sigma, rel=5 / (2 * n_paths) ** 0.5 + 3e-3)


def test_ouve_variance_is_not_the_papers_printed_one():
    printed = 0.51 * (2.6**0.5 - np.exp(-2 * 1.5 * 0.5)) / (2 * 1.5 + np.log(2.6))
    assert abs(std(OUVE, 0.5) ** 2 - printed) > 0.01


def test_scalar_and_array_agree():
    t = np.linspace(0.0, 0.999, 50)
    for sde in (BBED, OUVE):
        for function in (std, diffusion, mean_weight, drift_rate):
            values = function(sde, t)
            assert values.dtype == np.float64
            assert isinstance(function(sde, 0.3), float)
            np.testing.assert_array_equal(values, [function(sde, float(v)) for v in t])
    assert std(BBED, 0.0) == 0.0
    assert std(OUVE, 0.0) == 0.0


def test_steps_follow_algorithm_1():
    rng = np.random.default_rng(0)
    xt, y, net = rng.standard_normal((3, 8))
    steps = sampler_steps(BBED, 0.12, 3)
    assert [s.t for s in steps] == pytest.approx([0.12, 0.08, 0.04])
    for step in steps:
        f = (y - xt) / (1 - step.t)
        score = -net / std(BBED, step.t) ** 2
        expected = xt + (-f + diffusion(BBED, step.t) ** 2 * score) * 0.04
        np.testing.assert_allclose(step.a * xt + step.b * y + step.e * net, expected, rtol=1e-12)
    assert [s.n for s in steps[:2]] == pytest.approx(
        [diffusion(BBED, 0.12) * 0.2, diffusion(BBED, 0.08) * 0.2]
    )
    assert steps[-1].n == 0.0
    assert all(isinstance(v, float) for s in steps for v in (s.t, s.dt, s.a, s.b, s.e, s.n))


@pytest.mark.parametrize("sde", [BBED, OUVE])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_an_exact_last_step_takes_the_noise_away_that_the_network_knows(sde, n_steps):
    rng = np.random.default_rng(0)
    x0, y, z = rng.standard_normal((3, 8))
    *first, last = sampler_steps(sde, 0.12, n_steps, "exact")
    assert tuple(first) == sampler_steps(sde, 0.12, n_steps)[:-1]
    w, sigma_z = mean_weight(sde, last.t), std(sde, last.t) * z
    xt = w * x0 + (1 - w) * y + sigma_z
    np.testing.assert_allclose(last.a * xt + last.b * y + last.e * sigma_z, x0, rtol=1e-12)
    assert last.n == 0.0
    euler = sampler_steps(sde, 0.12, n_steps)[-1]
    left = euler.a * xt + euler.b * y + euler.e * sigma_z - x0
    assert np.abs(left).max() > 0.01 * np.abs(sigma_z).max()


def test_the_last_euler_step_leaves_the_share_of_noise_that_the_docstring_says():
    for n_steps, share in ((1, -0.129), (3, -0.038)):
        last = sampler_steps(BBED, 0.12, n_steps)[-1]
        assert last.a + last.e == pytest.approx(share, abs=0.002)


@pytest.mark.parametrize("sde", [BBED, OUVE])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_noise_changes_what_is_added_alone(sde, share):
    whole, part = initial_state(sde, 0.12), initial_state(sde, 0.12, share)
    assert part.std == pytest.approx(share * whole.std)
    assert (part.t, part.w_x0, part.w_y) == (whole.t, whole.w_x0, whole.w_y)
    for less, step in zip(
        sampler_steps(sde, 0.12, 3, "exact", share),
        sampler_steps(sde, 0.12, 3, "exact"),
        strict=True,
    ):
        assert less.n == pytest.approx(share * step.n)
        assert replace(less, n=step.n) == step


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), "half", True])
def test_a_share_that_is_none(share):
    for call in (
        lambda: initial_state(BBED, 0.12, share),
        lambda: sampler_steps(BBED, 0.12, 1, "exact", share),
    ):
        with pytest.raises(InputError, match="sampler noise"):
            call()


def test_ouve_steps_use_its_stiffness():
    step = sampler_steps(OUVE, 0.5, 5)[0]
    assert (step.a, step.b) == pytest.approx((1 + 1.5 * 0.1, -1.5 * 0.1))


def test_exact_score_recovers_clean_speech():
    # With the true score of a single x0 the reverse process must end near x0.
    x0, y = 0.7, 0.2
    z = np.random.default_rng(1).standard_normal((2001, 4000))
    start = initial_state(BBED, 0.5)
    x = start.w_x0 * x0 + start.w_y * y + start.std * z[0]
    steps = sampler_steps(BBED, 0.5, 400)
    for i, step in enumerate(steps):
        w = mean_weight(BBED, step.t)
        mean = step.a * x + step.b * y + step.e * (x - w * x0 - (1 - w) * y)
        x = mean + step.n * z[i + 1]
    assert x.mean() == pytest.approx(x0, abs=0.01)
    assert x.std() < 0.05


def test_initial_state():
    state = initial_state(BBED, 0.12)
    assert (state.w_x0, state.w_y) == pytest.approx((0.88, 0.12))
    assert state.std == std(BBED, 0.12)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "vp"},
        {"k": 1.0},
        {"k": 101.0},
        {"k": "2"},
        {"c": 0.0},
        {"c": float("nan")},
        {"gamma": -1.0},
        {"t_eps": 0.0},
        {"t_max": 1.0},
        {"t_eps": 0.9, "t_max": 0.5},
        {"k": True},
    ],
)
def test_bad_process(options):
    with pytest.raises(InputError, match="sde"):
        SdeSpec(**options)


@pytest.mark.parametrize("t", [-0.1, 1.0, float("nan")])
def test_time_outside(t):
    for function in (std, diffusion, mean_weight):
        with pytest.raises(InputError, match=r"\[0, 1\)"):
            function(BBED, t)


@pytest.mark.parametrize("last_step", ["euler", "exact"])
def test_no_steps_are_none(last_step):
    assert sampler_steps(BBED, 0.12, 0, last_step) == ()


@pytest.mark.parametrize(("t_rs", "n"), [(0.0, 3), (1.0, 3), (0.12, -1), (0.12, 1.5), (0.12, True)])
def test_bad_sampler(t_rs, n):
    with pytest.raises(InputError):
        sampler_steps(BBED, t_rs, n)
    if t_rs in (0.0, 1.0):
        with pytest.raises(InputError):
            initial_state(BBED, t_rs)


def test_bad_last_step():
    with pytest.raises(InputError, match=r"last_step is 'heun'; expected one of euler, exact"):
        sampler_steps(BBED, 0.12, 3, "heun")


def test_exp_integral_range():
    with pytest.raises(InputError):
        exp_integral(0.0)
