"""Train on your own speech and noise, export, enhance: the whole way with one small command.

    python examples/train_on_own_data.py --speech SPEECH --noise NOISE --out runs/own

Without ``--speech`` and ``--noise`` the recordings beside this file serve: enough to see every part
work, not to learn anything. The defaults continue from the shipped ``dvpd-tiny`` for a few steps;
real training takes ``--steps`` in the thousands. Needs the extras train, export and cpu.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import soundfile

from dvpd import train
from dvpd.export import to_onnx
from dvpd.runtime import Enhancer, command

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "dvpd" / "configs" / "tiny.toml"
WEIGHTS = HERE.parent / "engines" / "dvpd-tiny" / "dvpd-tiny.safetensors"


def make_data(folder: Path, speech: Path | None, noise: Path | None) -> Path:
    """The layout that training takes: speech/SOURCE and noise/SOURCE, links to your folders."""
    clean, rate = soundfile.read(HERE / "clean.flac", dtype="float32")
    noisy, _ = soundfile.read(HERE / "noisy.flac", dtype="float32")
    for kind, given, wav in (("speech", speech, clean), ("noise", noise, noisy - clean)):
        place = folder / kind / "own"
        if place.exists():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if given is not None:
            place.symlink_to(given.resolve(), target_is_directory=True)
        else:
            place.mkdir()
            soundfile.write(place / "example.flac", wav, rate)
    return folder


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--speech", type=Path, help="folder of clean recordings")
    parser.add_argument("--noise", type=Path, help="folder of noise")
    parser.add_argument("--out", type=Path, default=Path("runs/own"))
    parser.add_argument("--steps", type=command.whole(1), default=20)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--init", type=Path, default=WEIGHTS, help="weights to continue from")
    parser.add_argument("--from-nothing", action="store_true", help="do not continue from --init")
    parser.add_argument("--no-export", action="store_true", help="stop after training")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; returns the exit code."""
    return command.run(build_parser(), argv, _run)


def _run(args: argparse.Namespace) -> int:
    data = make_data(args.out / "data", args.speech, args.noise)
    settings = {
        "train.steps": args.steps,
        "train.branches": '"predictive"',
        "train.lr": 2e-4,  # gentle: the weights are trained already
        "train.workers": 0,
        "data.room_bank": 0,  # simulated rooms take a minute at the start; real training wants them
    }
    words = [f"--set={key}={value}" for key, value in settings.items()]
    if not args.from_nothing:
        words += ["--init", str(args.init)]
    run = args.out / "train"
    code = train.main([str(args.config), "--data", str(data), "--out", str(run), *words])
    if code or args.no_export:
        return code
    engine = args.out / "engine"
    code = to_onnx.main([str(run / "last.safetensors"), "-o", str(engine)])
    if code:
        return code
    with Enhancer.open(engine) as enhancer:
        done = enhancer.enhance_file(HERE / "noisy.flac", args.out / "enhanced.flac")
    print(f"wrote {done.path}, enhanced by the model that you trained")
    return 0


if __name__ == "__main__":
    command.leave(main())
