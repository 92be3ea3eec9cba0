"""Share the GPU with PyCUDA: its GPUArray goes into the sampler, the result becomes one again.

    python examples/pycuda_arrays.py noisy.wav clean.wav [--model engines/dvpd-tiny-fp16]

Needs a GPU, PyCUDA and plans (``dvpd build``). The sampler copies its input from the array on the
device, not through the host; its output comes back to the host and is uploaded for what you do next.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from dvpd.runtime import Enhancer, audio, command
from dvpd.runtime.errors import InputError
from dvpd.runtime.noise import frame_noise
from dvpd.runtime.phase import to_waveform
from dvpd.runtime.spec import TlbFactors, padded_frames
from dvpd.runtime.stft import compress, decompress, stft

ENGINE = Path(__file__).resolve().parent.parent / "engines" / "dvpd-tiny-fp16"


def enhance(enhancer: Enhancer, gpuarray: Any, wav: np.ndarray) -> np.ndarray:
    """Enhance one window, from and to arrays on the device.

    Args:
        enhancer: Opened with a TensorRT backend.
        gpuarray: The module ``pycuda.gpuarray``.
        wav: float32 [L] at the model's rate, at most as long as the plans hold (8.2 s).

    Returns:
        float32 [L].
    """
    manifest = enhancer.manifest
    peak = max(float(np.abs(wav).max()), 1e-9)
    features = compress(stft(wav / np.float32(peak), manifest.signal), manifest.signal)  # [3, T, F]
    n_frames = features.shape[1]
    padded = padded_frames(n_frames)
    noisy = np.zeros((1, 3, padded, features.shape[2]), np.float32)
    noisy[0, :, :n_frames] = features

    on_device = gpuarray.to_gpu(noisy)  # yours may come from a kernel of your own
    sampler = manifest.sampler
    steps = sampler.steps(manifest.sde)
    noise = np.empty((len(steps), 1, 1, padded, features.shape[2]), np.float32)  # maybe 0 steps
    for draw in range(len(steps)):
        noise[draw, 0, 0] = frame_noise(0, draw, 0, padded)
    clean_ri = enhancer.backend.run_sampler(
        on_device,
        noise,
        start=sampler.start(manifest.sde),
        steps=steps,
        alpha=sampler.alpha,
        tlb=TlbFactors(),
    )
    result = gpuarray.to_gpu(clean_ri)  # [1, 2, T, F], for the next kernel
    spec = decompress(result.get()[0, :, :n_frames], manifest.signal)
    out = to_waveform(spec, len(wav), manifest.signal, sampler.phase_rounds)
    return out * np.float32(peak)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("input", help="at the model's rate (16 kHz), one channel, up to 8 s")
    parser.add_argument("output")
    parser.add_argument("--model", type=Path, default=ENGINE, help="an engine folder with plans")
    parser.add_argument("--backend", choices=["tensorrt", "tensorrt-rtx"], default="tensorrt")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; returns the exit code."""
    return command.run(build_parser(), argv, _run)


def _run(args: argparse.Namespace) -> None:
    import pycuda.autoprimaryctx  # noqa: F401  # the context that the CUDA runtime uses, too
    from pycuda import gpuarray

    wav, sample_rate = audio.read_whole(args.input)
    with Enhancer.open(args.model, backend=args.backend) as enhancer:
        if sample_rate != enhancer.manifest.signal.sample_rate or wav.shape[1] != 1:
            raise InputError(f"{args.input}: {sample_rate} Hz; expected 16000 Hz and one channel")
        soundfile.write(args.output, enhance(enhancer, gpuarray, wav[:, 0]), sample_rate)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    command.leave(main())
