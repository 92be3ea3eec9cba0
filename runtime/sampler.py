"""The reverse diffusion of paper Algorithm 1 as one function of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .arrays import FloatArray
from .backends.base import Backend, check_predict, predicted
from .schedule import InitialState, SamplerStep
from .spec import TlbFactors

TINY = np.float32(1e-20)  # below any magnitude that survives decompression


def sample(
    backend: Backend,
    noisy: FloatArray,
    *,
    start: InitialState,
    steps: Sequence[SamplerStep],
    alpha: float,
    tlb: TlbFactors,
    draw: Callable[[int], FloatArray],
) -> FloatArray:
    """Enhance a compressed spectrogram (paper Algorithm 1).

    Args:
        backend: The two networks.
        noisy: float32 [B, 3, T, F]: compressed real part, imaginary part, magnitude.
        start: Coefficients of the first state.
        steps: Coefficients of the reverse steps; none returns the predictive branch alone.
        alpha: Weight of the predictive magnitude in the fusion (Eq. 1).
        tlb: Factors of the score network.
        draw: Index i -> standard normals, float32, broadcastable to [B, 1, T, F]; index 0 starts
            the state, index i follows step i.

    Returns:
        float32 [B, 2, T, F]: compressed real and imaginary part of the estimate.

    Raises:
        InputError: ``noisy`` has a wrong dtype or shape.
        BackendError: A network failed or returned non-finite values.
    """
    run: Any = getattr(backend, "run_sampler", None)  # see base.SamplerBackend
    if run is not None:
        check_predict(noisy)
        noise = np.empty((len(steps), len(noisy), 1, *noisy.shape[2:]), np.float32)
        for index in range(len(steps)):
            noise[index] = draw(index)
        whole: FloatArray = run(noisy, noise, start=start, steps=steps, alpha=alpha, tlb=tlb)
        return whole
    if not steps:
        return predicted(backend, noisy)
    clean_ri, feats = backend.predict(noisy)
    y = noisy[:, 2:3]  # [B, 1, T, F]
    mag_p = np.sqrt(np.square(clean_ri).sum(axis=1, keepdims=True))  # [B, 1, T, F]
    tlb_skip, tlb_backbone = tlb.arrays()
    f32 = np.float32
    xt = f32(start.w_x0) * mag_p + f32(start.w_y) * y + f32(start.std) * draw(0)
    mean = xt
    for index, step in enumerate(steps):
        t = np.full(noisy.shape[0], step.t, np.float32)
        sigma_z = backend.score(xt, t, feats, tlb_skip, tlb_backbone)
        mean = f32(step.a) * xt + f32(step.b) * y + f32(step.e) * sigma_z
        if index + 1 < len(steps):  # the last mean is the result: noise would only be heard
            xt = mean + f32(step.n) * draw(index + 1)
    mag = f32(alpha) * mag_p + f32(1.0 - alpha) * np.maximum(mean, f32(0.0))
    # The predictive phase without atan2: X / |X|. A zero bin has no phase and stays zero.
    fused: FloatArray = clean_ri * (mag / np.maximum(mag_p, TINY))
    return fused
