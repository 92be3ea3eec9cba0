"""The diffusion process and its sampler's coefficients, in float64, defined here alone.

Training, validation, export and the runtime all read these functions, so that no constant is
typed twice. Times t are dimensionless in [0, 1); every function takes a float or an array.

Source: paper section 4.2, appendix A (Eqs. 7-12) and Algorithm 1; Lay et al. 2023 (BBED). The
diffusion coefficient is g(t) = sqrt(c) k^t for both processes. The paper prints sqrt(c k^t) and,
in Eq. 9, the OUVE variance that belongs to that other g; its sizes (sigma, g at t = 0.12, 0.08,
0.04) fit only sqrt(c) k^t. The OUVE variance below is therefore derived for sqrt(c) k^t:
d(sigma^2)/dt = -2 gamma sigma^2 + c k^(2t), sigma(0) = 0.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields
from typing import overload

import numpy as np

from .arrays import DoubleArray
from .checks import check_whole, number
from .errors import InputError

SDE_NAMES = ("bbed", "ouve")
LAST_STEPS = ("euler", "exact")
K_MAX = 100.0  # keeps |2 ln k| below 10, where the series of Ei holds 13 digits


@dataclass(frozen=True)
class SdeSpec:
    """A forward process dx = f(x, y, t) dt + sqrt(c) k^t dw from clean x0 towards noisy y.

    Attributes:
        name: "bbed" (f = (y - x) / (1 - t)) or "ouve" (f = gamma (y - x)).
        k: Growth of the diffusion coefficient, in (1, 100].
        c: Scale of the diffusion coefficient's square, > 0.
        gamma: Stiffness of OUVE, > 0; BBED does not use it.
        t_eps: Smallest time drawn in training.
        t_max: Largest time drawn in training, < 1.
    """

    name: str = "bbed"
    k: float = 2.6
    c: float = 0.51
    gamma: float = 1.5
    t_eps: float = 0.01
    t_max: float = 0.999

    def __post_init__(self) -> None:
        """Refuse constants for which the closed forms do not hold."""
        if self.name not in SDE_NAMES:
            raise InputError(f"sde name is {self.name!r}; expected one of {', '.join(SDE_NAMES)}")
        for field in fields(self)[1:]:
            number("sde", field.name, getattr(self, field.name))
        if not 1.0 < self.k <= K_MAX:
            raise InputError(f"sde k is {self.k}; expected 1 < k <= {K_MAX:g}")
        if not self.c > 0.0:
            raise InputError(f"sde c is {self.c}; expected c > 0")
        if not self.gamma > 0.0:
            raise InputError(f"sde gamma is {self.gamma}; expected gamma > 0")
        if not 0.0 < self.t_eps < self.t_max < 1.0:
            raise InputError(
                f"sde t_eps, t_max are {self.t_eps}, {self.t_max}; expected 0 < t_eps < t_max < 1"
            )


@dataclass(frozen=True)
class InitialState:
    """Coefficients of the sampler's first state, x = w_x0 * x_p + w_y * y + std * z."""

    t: float
    w_x0: float
    w_y: float
    std: float


@dataclass(frozen=True)
class SamplerStep:
    """One Euler-Maruyama step of Algorithm 1, lines 24-25, as plain numbers.

    With the network's output sigma_z at (xt, t):
        mean   = a * xt + b * y + e * sigma_z
        x_next = mean + n * z
    The last step has n = 0: its mean is the result.
    """

    t: float
    dt: float
    a: float
    b: float
    e: float
    n: float


def _checked(t: float | DoubleArray) -> DoubleArray:
    t64 = np.asarray(t, dtype=np.float64)
    # Written so that NaN fails too.
    if not bool(np.all((t64 >= 0.0) & (t64 < 1.0))):
        raise InputError("diffusion time t must lie in [0, 1)")
    return t64


def _like(t: float | DoubleArray, value: DoubleArray) -> float | DoubleArray:
    return value if isinstance(t, np.ndarray) else float(value)


def exp_integral(x: float | DoubleArray) -> float | DoubleArray:
    """Exponential integral Ei(x) for -10 <= x < 0, float64.

    Power series Ei(x) = euler_gamma + ln|x| + sum_n x^n / (n n!) (Abramowitz & Stegun 5.1.10).

    Args:
        x: Argument(s) in [-10, 0).

    Raises:
        InputError: An argument lies outside [-10, 0).
    """
    x64 = np.asarray(x, dtype=np.float64)
    if not bool(np.all((x64 >= -10.0) & (x64 < 0.0))):
        raise InputError("exp_integral expects arguments in [-10, 0)")
    total = np.zeros_like(x64)
    power = np.ones_like(x64)  # x^n / n!
    for n in range(1, 60):  # 10^59 / 59! < 1e-21
        power = power * x64 / n
        total = total + power / n
    return _like(x, np.euler_gamma + np.log(-x64) + total)


@overload
def mean_weight(sde: SdeSpec, t: float) -> float: ...
@overload
def mean_weight(sde: SdeSpec, t: DoubleArray) -> DoubleArray: ...
def mean_weight(sde: SdeSpec, t: float | DoubleArray) -> float | DoubleArray:
    """Weight w of x0 in the mean w * x0 + (1 - w) * y at time t (paper Eqs. 8 and 11).

    Args:
        sde: The process.
        t: Time(s) in [0, 1).

    Raises:
        InputError: A time lies outside [0, 1).
    """
    t64 = _checked(t)
    return _like(t, 1.0 - t64 if sde.name == "bbed" else np.exp(-sde.gamma * t64))


@overload
def std(sde: SdeSpec, t: float) -> float: ...
@overload
def std(sde: SdeSpec, t: DoubleArray) -> DoubleArray: ...
def std(sde: SdeSpec, t: float | DoubleArray) -> float | DoubleArray:
    """Standard deviation sigma(t) of the marginal, given x0 and y.

    BBED: sigma^2 = c (1-t) [k^(2t) - 1 + t + h (1-t) (Ei(2(t-1) ln k) - Ei(-2 ln k))],
    h = 2 k^2 ln k (Lay et al. 2023). OUVE: c (k^(2t) - exp(-2 gamma t)) / (2 gamma + 2 ln k).

    Args:
        sde: The process.
        t: Time(s) in [0, 1).

    Raises:
        InputError: A time lies outside [0, 1).
    """
    t64 = _checked(t)
    log_k = math.log(sde.k)
    if sde.name == "bbed":
        h = 2.0 * sde.k**2 * log_k
        ei = np.asarray(exp_integral(2.0 * (t64 - 1.0) * log_k)) - float(exp_integral(-2.0 * log_k))
        inner = np.expm1(2.0 * t64 * log_k) + t64 + h * (1.0 - t64) * ei
        var = sde.c * (1.0 - t64) * inner
    else:
        grown = np.expm1(2.0 * t64 * log_k) - np.expm1(-2.0 * sde.gamma * t64)
        var = sde.c * grown / (2.0 * sde.gamma + 2.0 * log_k)
    return _like(t, np.sqrt(np.maximum(var, 0.0)))


@overload
def diffusion(sde: SdeSpec, t: float) -> float: ...
@overload
def diffusion(sde: SdeSpec, t: DoubleArray) -> DoubleArray: ...
def diffusion(sde: SdeSpec, t: float | DoubleArray) -> float | DoubleArray:
    """Diffusion coefficient g(t) = sqrt(c) k^t.

    Args:
        sde: The process.
        t: Time(s) in [0, 1).

    Raises:
        InputError: A time lies outside [0, 1).
    """
    t64 = _checked(t)
    return _like(t, math.sqrt(sde.c) * np.exp(t64 * math.log(sde.k)))


@overload
def drift_rate(sde: SdeSpec, t: float) -> float: ...
@overload
def drift_rate(sde: SdeSpec, t: DoubleArray) -> DoubleArray: ...
def drift_rate(sde: SdeSpec, t: float | DoubleArray) -> float | DoubleArray:
    """Rate r of the drift f = r * (y - x): 1 / (1 - t) for BBED, gamma for OUVE.

    Args:
        sde: The process.
        t: Time(s) in [0, 1).

    Raises:
        InputError: A time lies outside [0, 1).
    """
    t64 = _checked(t)
    return _like(t, 1.0 / (1.0 - t64) if sde.name == "bbed" else np.full_like(t64, sde.gamma))


def _check_start(t_rs: float) -> None:
    if not 0.0 < number("sampler", "t_rs", t_rs) < 1.0:
        raise InputError(f"sampler start time t_rs is {t_rs!r}; expected 0 < t_rs < 1")


def check_share(value: object) -> float:
    """``value`` as the share of the process's noise that the sampler's states get.

    Args:
        value: What was given.

    Raises:
        InputError: It is no number in [0, 1].
    """
    share = number("sampler", "noise", value)
    if not 0.0 <= share <= 1.0:
        raise InputError(f"sampler noise is {share}; expected 0 <= noise <= 1")
    return share


def initial_state(sde: SdeSpec, t_rs: float, noise: float = 1.0) -> InitialState:
    """Coefficients of Algorithm 1, line 8: the marginal at t_rs around the predictive estimate.

    Args:
        sde: The process.
        t_rs: Start time in (0, 1).
        noise: Share of the marginal's standard deviation, 0 to 1; Algorithm 1 has 1.

    Raises:
        InputError: ``t_rs`` lies outside (0, 1), or ``noise`` outside [0, 1].
    """
    _check_start(t_rs)
    return _marginal(sde, float(t_rs), check_share(noise))


@functools.lru_cache(maxsize=64)  # the same for each window
def _marginal(sde: SdeSpec, t: float, noise: float) -> InitialState:
    weight = mean_weight(sde, t)
    return InitialState(t=t, w_x0=weight, w_y=1.0 - weight, std=noise * std(sde, t))


def sampler_steps(
    sde: SdeSpec, t_rs: float, n_steps: int, last_step: str = "euler", noise: float = 1.0
) -> tuple[SamplerStep, ...]:
    """The reverse steps at t = t_rs, t_rs - dt, ..., dt with dt = t_rs / n_steps.

    Algorithm 1, lines 24-25: X_mean = X_t + [-f + g^2 s] dt, with f = r (Y - X_t) the drift
    towards Y and s = -sigma_z / sigma^2 the score, since the network returns sigma z.

    A last Euler step does not quite reach x0: a network that knew sigma z exactly would leave
    a part of it in the result (-0.13 sigma z for one BBED step from 0.12, -0.04 for three). The
    exact last step solves X_t = w x0 + (1 - w) Y + sigma z for x0 instead.

    Args:
        sde: The process.
        t_rs: Start time in (0, 1).
        n_steps: Number of network calls; 0 gives no steps.
        last_step: "euler" or "exact".
        noise: Share of the noise between two steps, 0 to 1; Algorithm 1 has 1.

    Raises:
        InputError: ``t_rs``, ``n_steps``, ``last_step`` or ``noise`` is out of range.
    """
    if last_step not in LAST_STEPS:
        raise InputError(f"last_step is {last_step!r}; expected one of {', '.join(LAST_STEPS)}")
    _check_start(t_rs)
    count = check_whole("", "n_steps", n_steps, 0)
    return _steps(sde, float(t_rs), count, last_step, check_share(noise))


@functools.lru_cache(maxsize=64)  # the same for each recording
def _steps(
    sde: SdeSpec, t_rs: float, count: int, last_step: str, noise: float
) -> tuple[SamplerStep, ...]:
    dt = t_rs / max(count, 1)
    steps = []
    for index in range(count):
        t = t_rs * (count - index) / count
        rate = drift_rate(sde, t)
        g = diffusion(sde, t)
        last = index == count - 1
        if last and last_step == "exact":
            w = mean_weight(sde, t)
            steps.append(SamplerStep(t=t, dt=dt, a=1 / w, b=1 - 1 / w, e=-1 / w, n=0.0))
            break
        steps.append(
            SamplerStep(
                t=t,
                dt=dt,
                a=1.0 + rate * dt,
                b=-rate * dt,
                e=-(g**2) * dt / std(sde, t) ** 2,
                n=0.0 if last else noise * g * math.sqrt(dt),
            )
        )
    return tuple(steps)
