"""The child process: one system, requests as JSON lines."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dvpd.benchmarks.common import machine
from dvpd.benchmarks.peer_adapters.base import RATE_HZ, Peer
from dvpd.benchmarks.peer_adapters.clones import (
    FastEnhancer,
    FastEnhancerB,
    FastEnhancerM,
    FastEnhancerS,
    Gtcrn,
    MpSenet,
    Pguse,
    Sgmse,
)
from dvpd.benchmarks.peer_adapters.own import (
    Arithmetic,
    Dvpd,
    DvpdOne,
    DvpdPredictive,
    DvpdThree,
)
from dvpd.benchmarks.peer_adapters.packages import DeepFilterLibrary, DeepFilterNet, RnNoise
from dvpd.runtime.arrays import FloatArray
from dvpd.runtime.errors import BackendError, InputError

COUNT_S = 4.0  # audio that costs are counted on

ADAPTERS: dict[str, type[Peer]] = {
    "dvpd": Dvpd,
    "dvpd-predictive": DvpdPredictive,
    "dvpd-one": DvpdOne,
    "dvpd-three": DvpdThree,
    "arithmetic": Arithmetic,
    "pguse": Pguse,
    "sgmse": Sgmse,
    "gtcrn": Gtcrn,
    "mpsenet": MpSenet,
    "fastenhancer-t": FastEnhancer,
    "fastenhancer-b": FastEnhancerB,
    "fastenhancer-s": FastEnhancerS,
    "fastenhancer-m": FastEnhancerM,
    "deepfilternet": DeepFilterNet,
    "deepfilter-library": DeepFilterLibrary,
    "rnnoise": RnNoise,
}
TITLES = {
    "pguse": "PGUSE", "sgmse": "SGMSE+", "gtcrn": "GTCRN", "mpsenet": "MP-SENet",
    "fastenhancer": "FastEnhancer", "fastenhancer-t": "FastEnhancer-T",
    "fastenhancer-b": "FastEnhancer-B", "fastenhancer-s": "FastEnhancer-S",
    "fastenhancer-m": "FastEnhancer-M", "deepfilternet": "DeepFilterNet",
    "deepfilter-library": "DeepFilterNet3, its runtime", "rnnoise": "RNNoise",
}  # fmt: skip
# clone -> the systems in it
CLONES = {
    "pguse": ("pguse",), "sgmse": ("sgmse",), "gtcrn": ("gtcrn",), "mpsenet": ("mpsenet",),
    "fastenhancer": ("fastenhancer-t", "fastenhancer-b", "fastenhancer-s", "fastenhancer-m"),
}  # fmt: skip


def serve(kind: str, folder: Path | None, weights: Path | None, sites: Sequence[str]) -> int:
    """Load a system and answer requests from stdin until it ends.

    Requests: {"do": "info"}, {"do": "time", "wav": FILE.npy}, {"do": "enhance", "wav": FILE.npy,
    "out": FILE.npy}. Every answer is one JSON line; one with "error" says what went wrong.
    """
    # what a peer prints must not get between the answers
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    sys.path[:0] = sites
    if folder is not None and any(kind in kinds for kinds in CLONES.values()):
        sys.path.insert(0, str(folder))
    try:
        if folder is not None and not folder.is_dir():
            raise InputError(
                f"{folder} is not a folder; give the clone of {TITLES.get(kind, kind)}"
            )
        threads = int(os.environ["OMP_NUM_THREADS"])
        if ADAPTERS[kind].torch:
            import torch

            torch.set_num_threads(threads)
            torch.set_grad_enabled(False)
        start = time.perf_counter()
        peer = ADAPTERS[kind](folder, weights)
        answer(load_s=time.perf_counter() - start)
    except Exception as error:  # whatever a peer raises is a row
        answer(error=f"{type(error).__name__}: {error}")
        return 1
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "info":
                answer(**_info(peer))
                continue
            wav = np.load(request["wav"])
            peer.prepare()
            start = time.perf_counter()
            out = peer.enhance(wav)
            seconds = (time.perf_counter() - start) * peer.calls
            if request["do"] == "enhance":
                _check(out, wav)
                np.save(request["out"], out)
            answer(seconds=seconds, peak_rss_mib=machine.peak_rss_mib())
        except Exception as error:  # likewise
            answer(error=f"{type(error).__name__}: {error}")
    return 0


def _check(out: Any, wav: FloatArray) -> None:
    if out.shape != wav.shape or not np.isfinite(out).all():
        raise BackendError(
            f"returned {list(out.shape)} for {list(wav.shape)}, or not finite values"
        )


def _info(peer: Peer) -> dict[str, Any]:
    """Parameters, arithmetic for a second of audio, latency kind and weights."""
    info: dict[str, Any] = {
        "latency": peer.latency,
        "weights": peer.weights,
        "calls": peer.calls,
        "parameters": None,
        "gmacs": None,
    }
    if isinstance(peer, Dvpd):
        manifest = peer.enhancer.manifest
        macs, parameters = manifest.macs_per_second, manifest.parameters
        steps = manifest.sampler.n_steps if peer.steps is None else peer.steps
        info["parameters"] = parameters.get("total" if steps else "predictive")
        if {"predictive", *(["score"] if steps else [])} <= set(macs):
            info["gmacs"] = (macs["predictive"] + steps * macs.get("score", 0)) / 1e9
        return info
    if peer.networks:
        import torch

        from dvpd.macs import MacCounter

        torch.backends.mha.set_fastpath_enabled(False)  # one fused kernel would hide its products
        rng = np.random.default_rng(0)
        wav = (0.1 * rng.standard_normal(int(COUNT_S * RATE_HZ))).astype(np.float32)
        with MacCounter() as counter:
            peer.count(wav)
        info["gmacs"] = counter.total * peer.calls / COUNT_S / 1e9
        info["parameters"] = sum(p.numel() for m in peer.networks for p in m.parameters())
        torch.backends.mha.set_fastpath_enabled(True)
    return info
