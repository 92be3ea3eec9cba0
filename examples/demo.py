"""Enhance a real noisy recording with the shipped graphs: wav, picture and figures.

    python examples/demo.py [--model engines/NAME] [--out demo-output]
    python examples/demo.py --examples      # also enhanced.flac and before-after.png of this folder

Needs the light runtime alone (numpy, soundfile, soxr, onnxruntime); PESQ and the picture are left
out where their packages are missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile as sf

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dvpd.runtime import Enhancer, command  # noqa: E402  # found by the line above


def si_sdr_db(estimate: np.ndarray, reference: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio of two waveforms [L] (Le Roux et al. 2019)."""
    estimate, reference = estimate - estimate.mean(), reference - reference.mean()
    target = (estimate @ reference) / (reference @ reference) * reference
    noise = estimate - target
    return float(10 * np.log10((target @ target) / (noise @ noise)))


def pesq_wb(wav: np.ndarray, reference: np.ndarray, rate: int) -> float | None:
    """Wide-band PESQ, or None where the package is missing."""
    try:
        from pesq import pesq
    except ImportError:
        return None
    return float(pesq(rate, reference, wav, "wb"))


def picture(path: Path, wavs: dict[str, np.ndarray], rate: int) -> bool:
    """Spectrograms one below the other, on one scale; False where matplotlib is missing.

    Below and not beside each other, so that the letters can be read where the page is narrow.
    """
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"font.size": 13}):
        figure, axes = pyplot.subplots(
            len(wavs), 1, figsize=(7.2, 1.9 * len(wavs)), sharex=True, layout="constrained"
        )
        for axis, (name, wav) in zip(axes, wavs.items(), strict=True):
            # silence has no logarithm
            faint = 1e-8 * np.random.default_rng(0).standard_normal(len(wav))
            _, _, _, image = axis.specgram(
                wav + faint, NFFT=512, Fs=rate, noverlap=384, vmin=-130, vmax=-30, cmap="magma"
            )
            image.set_extent((0, len(wav) / rate, 0, rate / 2000))
            axis.axis((0, len(wav) / rate, 0, rate / 2000))
            axis.set_title(name, loc="left", fontsize=13)
            axis.set_ylabel("kHz")
        axes[-1].set_xlabel("time, s")
        figure.colorbar(image, ax=list(axes), label="dB / Hz", pad=0.01, aspect=40)
        figure.savefig(path, dpi=110)
        pyplot.close(figure)
    return True


def shrink(source: Path, target: Path, width: int = 790, colours: int = 48) -> None:
    """A small copy of a picture, for the README: noise compresses badly in many colours."""
    from PIL import Image  # matplotlib brings it

    with Image.open(source) as image:
        height = round(image.height * width / image.width)
        small = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    small.quantize(colours, dither=Image.Dither.NONE).save(target, optimize=True)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="demo.py", description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="engine folder, or a model's name")
    parser.add_argument("--out", type=Path, default=ROOT / "demo-output")
    parser.add_argument("--backend", default="auto")
    parser.add_argument(
        "--examples", action="store_true", help="write enhanced.flac and before-after.png again"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    return command.run(build_parser(), argv, _run)


def _run(args: argparse.Namespace) -> None:
    noisy_path, clean_path = ROOT / "examples" / "noisy.flac", ROOT / "examples" / "clean.flac"
    enhanced_path = args.out / "enhanced.wav"
    args.out.mkdir(parents=True, exist_ok=True)
    with Enhancer.open(args.model, backend=args.backend) as enhancer:
        name = f"{enhancer.manifest.name} {enhancer.manifest.version}"
        warm, rate = sf.read(noisy_path, dtype="float32")
        enhancer.enhance(warm[:16000], rate)  # first call: memory and kernels are set up
        result = enhancer.enhance_file(noisy_path, enhanced_path, overwrite=True)
    clean, rate = sf.read(clean_path, dtype="float32")
    noisy, _ = sf.read(noisy_path, dtype="float32")
    enhanced, _ = sf.read(enhanced_path, dtype="float32")
    print(
        f"{noisy_path.name}: {len(noisy) / rate:.2f} s, enhanced by {name} in {result.seconds:.2f} s"
    )
    print(f"real-time factor {result.rtf:.3f}, network calls a window: {result.nfe}")
    print(f"{'':10}{'PESQ':>8}{'SI-SDR':>10}")
    for label, wav in (("noisy", noisy), ("enhanced", enhanced)):
        score = pesq_wb(wav, clean, rate)
        shown = f"{score:8.2f}" if score is not None else f"{'-':>8}"
        print(f"{label:10}{shown}{si_sdr_db(wav, clean):7.1f} dB")
    print(f"wrote {enhanced_path}")
    spectrograms = args.out / "spectrograms.png"
    drawn = picture(spectrograms, {"noisy": noisy, "enhanced": enhanced, "clean": clean}, rate)
    print(f"wrote {spectrograms}" if drawn else "no picture: matplotlib is not installed")
    if args.examples:
        sf.write(ROOT / "examples" / "enhanced.flac", enhanced, rate)
        if drawn:
            shrink(spectrograms, ROOT / "examples" / "before-after.png")
        print("wrote examples/enhanced.flac" + " and examples/before-after.png" * drawn)


if __name__ == "__main__":
    command.leave(main())
