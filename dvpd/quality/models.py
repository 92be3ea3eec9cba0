"""Checkpoints and engine folders behind one interface, and the outputs that are measured."""

from __future__ import annotations

import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np

from ..runtime.arrays import FloatArray
from ..runtime.backends.base import Backend, StreamBackend
from ..runtime.enhancer import Enhancer
from ..runtime.errors import InputError
from ..runtime.manifest import GraphFile, Manifest
from ..runtime.spec import GRAPH_NAMES, SAMPLE_RATE, TLB_PRESETS

KEPT_PREDICTIONS = 16  # windows of 8.2 s whose features are kept
KEPT_SCORES = 512  # about 1 MB each
TLB_OFF = "off"


def _digest(array: FloatArray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(array).data).digest()


class SharedBackend:
    """A backend that remembers what it computed, for systems that differ little.

    The predictive branch alone and every sampler ask for the same prediction. Samplers that differ
    in alpha alone ask for the same scores, too, as alpha enters after the last one.

    Attributes:
        name: The inner backend's name.
        device: Its device.
    """

    def __init__(
        self, inner: Backend, predictions: int = KEPT_PREDICTIONS, scores: int = KEPT_SCORES
    ) -> None:
        """Wrap a backend.

        Args:
            inner: What computes.
            predictions: Windows whose features are kept.
            scores: Score calls that are kept.
        """
        self.inner, self.kept = inner, (predictions, scores)
        self.name, self.device = inner.name, inner.device
        self._predictions: OrderedDict[bytes, tuple[FloatArray, Sequence[Any]]] = OrderedDict()
        self._scores: OrderedDict[tuple[bytes, ...], tuple[Any, FloatArray]] = OrderedDict()

    def forget(self) -> None:
        """Drop what is remembered (call it between recordings)."""
        self._predictions.clear()
        self._scores.clear()

    def predict(self, noisy: FloatArray) -> tuple[FloatArray, Sequence[Any]]:
        """See ``Backend.predict``."""
        key = _digest(noisy)
        if key not in self._predictions:
            predicted = self._predictions[key] = self.inner.predict(noisy)
            if len(self._predictions) > self.kept[0]:
                self._predictions.popitem(last=False)
            return predicted
        return self._predictions[key]

    def score(
        self,
        xt: FloatArray,
        t: FloatArray,
        feats: Sequence[Any],
        tlb_skip: FloatArray,
        tlb_backbone: FloatArray,
    ) -> FloatArray:
        """See ``Backend.score``."""
        key = tuple(_digest(array) for array in (xt, t, tlb_skip, tlb_backbone))
        known = self._scores.get(key)
        if known is None or known[0] is not feats:  # the same state, of another recording
            known = feats, self.inner.score(xt, t, feats, tlb_skip, tlb_backbone)
            self._scores[key] = known
            if len(self._scores) > self.kept[1]:
                self._scores.popitem(last=False)
        return known[1]

    def predict_next(self, noisy: FloatArray, state: Any) -> tuple[FloatArray, Sequence[Any], Any]:
        """See ``StreamBackend.predict_next``; nothing is shared between streams."""
        return cast(StreamBackend, self.inner).predict_next(noisy, state)

    def score_next(self, *args: Any) -> tuple[FloatArray, Any]:
        """See ``StreamBackend.score_next``."""
        return cast(StreamBackend, self.inner).score_next(*args)

    def close(self) -> None:
        """Release the inner backend."""
        self.forget()
        self.inner.close()


def torch_enhancer(model: Any, config: Any, device: str = "cpu") -> Enhancer:
    """The runtime around a model in PyTorch.

    Args:
        model: ``dvpd.model.DVPD`` in eval mode.
        config: Its ``dvpd.config.Config``.
        device: torch device the model is on.
    """
    from ..model import causal_spec  # engine folders need no torch
    from ..torch_backend import TorchBackend

    nothing: Mapping[str, Any] = MappingProxyType({})
    manifest = Manifest(
        name=config.model.name,
        version="0",
        signal=config.signal,
        sde=config.sde,
        sampler=config.sampler,
        tlb_presets=TLB_PRESETS,
        precision="fp32",
        opset=0,
        exporter=nothing,
        checkpoint_sha256="0" * 64,
        graphs={name: GraphFile(f"{name}.onnx", "0" * 64) for name in GRAPH_NAMES},
        parameters=nothing,
        macs_per_second=nothing,
        parity=nothing,
        causal=causal_spec(model, config.signal),
    )
    return Enhancer(manifest, SharedBackend(TorchBackend(model, device)))


def open_model(
    path: str | Path, backend: str = "auto", device: str = "auto", threads: int | None = None
) -> Enhancer:
    """A checkpoint or an engine folder as an ``Enhancer`` that shares what systems have in common.

    Args:
        path: .safetensors file, or engine folder.
        backend: For an engine folder, see ``Enhancer.open``.
        device: See ``Enhancer.open``; for a checkpoint a torch device, "auto" for CUDA if there.
        threads: CPU threads; None for a sensible number.

    Raises:
        DvpdError: It cannot be opened.
    """
    if Path(path).is_dir():
        enhancer = Enhancer.open(path, backend, device, threads)
        return Enhancer(enhancer.manifest, SharedBackend(enhancer.backend), enhancer.window_plan)
    if not Path(path).exists():
        raise InputError(
            f"{path}: is not there; expected a checkpoint (.safetensors) or the folder of an engine, "
            "such as engines/dvpd-tiny"
        )
    import torch

    from ..checkpoint import load_model
    from ..torch_device import find_device

    if threads:
        torch.set_num_threads(threads)
    place = find_device(device)
    config, model = load_model(path)
    return torch_enhancer(model.to(place), config, str(place))


@dataclass(frozen=True)
class System:
    """One way to run the sampler.

    Attributes:
        name: How reports call it.
        steps: Calls of the score network, at least one.
        alpha: Weight of the predictive magnitude.
        tlb: Preset name, "off" for none.
        t_rs: Start time.
    """

    name: str
    steps: int
    alpha: float
    tlb: str
    t_rs: float


def sampler_grid(
    manifest: Manifest,
    *,
    steps: Sequence[int] = (),
    alphas: Sequence[float] = (),
    tlbs: Sequence[str] = (),
    t_rs: Sequence[float] = (),
) -> tuple[System, ...]:
    """Every combination of the settings, the one without TLB among them.

    Args:
        manifest: The model's, whose defaults stand for what is not given.
        steps: Calls of the score network; 0, the predictive branch alone, is no sampler. None given,
            where the model takes 0 by default: 1, so that its score network is measured, too.
        alphas: Weights of the predictive magnitude.
        tlbs: Presets, "off" for none, "all" for all.
        t_rs: Start times.

    Returns:
        Systems called "full", with the settings in the name that have several values; none if
        ``steps`` is 0 alone.

    Raises:
        InputError: A preset is unknown, or a number is out of range.
    """
    default = manifest.sampler
    presets = [name for name in manifest.tlb_presets if name != "none"]
    for tlb in tlbs:
        if tlb not in ("all", TLB_OFF, "none", *presets):
            raise InputError(f"tlb is {tlb!r}; expected {', '.join((TLB_OFF, *presets, 'all'))}")
    wanted = [TLB_OFF, *(name for name in presets if name in tlbs or "all" in tlbs)]
    counts = list(dict.fromkeys(steps)) or [default.score_steps]
    weights = list(dict.fromkeys(alphas)) or [default.alpha]
    starts = list(dict.fromkeys(t_rs)) or [default.t_rs]
    systems = []
    for count, start, weight, tlb in itertools.product(counts, starts, weights, wanted):
        if count == 0:
            continue
        replace(default, n_steps=count, alpha=weight, t_rs=start)  # refuses what is out of range
        parts = ["full"]
        parts += [f"steps={count}"] * (len(counts) > 1)
        parts += [f"t_rs={start:g}"] * (len(starts) > 1)
        parts += [f"alpha={weight:g}"] * (len(weights) > 1)
        parts += [f"tlb={tlb}"] * (tlb != TLB_OFF)
        systems.append(System(" ".join(parts), count, float(weight), tlb, float(start)))
    return tuple(systems)


def enhance_systems(
    enhancer: Enhancer, noisy: FloatArray, systems: Sequence[System], seed: int = 0
) -> dict[str, FloatArray]:
    """Outputs of one recording by system: "noisy", "predictive", and those asked for.

    Args:
        enhancer: From ``open_model`` or ``torch_enhancer``.
        noisy: [L] at 16 kHz.
        systems: From ``sampler_grid``.
        seed: Seed of the sampler's noise, the same for all.

    Raises:
        DvpdError: The model fails.
    """
    outputs = {"noisy": noisy, "predictive": enhancer.enhance(noisy, SAMPLE_RATE, steps=0).wav}
    for system in systems:
        manifest = enhancer.manifest
        sampler = replace(manifest.sampler, t_rs=system.t_rs)
        sampling = Enhancer(
            replace(manifest, sampler=sampler), enhancer.backend, enhancer.window_plan
        )
        outputs[system.name] = sampling.enhance(
            noisy,
            SAMPLE_RATE,
            steps=system.steps,
            alpha=system.alpha,
            tlb=None if system.tlb == TLB_OFF else system.tlb,
            seed=seed,
        ).wav
    if isinstance(enhancer.backend, SharedBackend):
        enhancer.backend.forget()
    return outputs
