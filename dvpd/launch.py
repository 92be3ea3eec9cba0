"""Train on a machine that is lent for minutes and has no network: pack here, run there.

    python -m dvpd.launch pack DATA parts                      # parts of at most 56 MiB
    python -m dvpd.launch run parts --config base.toml --minutes 20 --init grown.safetensors --out OUT
    python -m dvpd.launch run parts --config base.toml --minutes 20 --out OUT     # goes on exactly

``pack`` copies the recordings as they are encoded; every part by itself is a data set of all sources,
so that a run can start with the first. ``run`` checks and unpacks what is there, measures a few steps
of each setting (precision, memory layout, on request torch.compile), takes the fastest, trains until
the minutes are over, and says where the time went. OUT holds weights, state and log of the training.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .checkpoint import sha256_file, write_whole
from .config import Config, load_toml, to_dict
from .runtime.errors import DvpdError, InputError, ManifestError

INDEX_NAME = "index.json"
FORMAT = "dvpd-parts-1"
KINDS = ("speech", "noise", "rir")
CHOICE_NAME = "launch.json"  # the settings that were chosen: a run that goes on keeps them
MARGIN_S = 20.0  # for the last save
MIB = 1 << 20


# ------------------------------------------------------------------------------------------------
# Packing


def find_recordings(data: Path) -> list[Path]:
    """All files of speech/, noise/ and rir/, relative to ``data``, sorted.

    Raises:
        InputError: One of the first two is missing or empty.
    """
    found = []
    for kind in KINDS:
        files = sorted(p.relative_to(data) for p in (data / kind).rglob("*") if p.is_file())
        if not files and kind != "rir":
            raise InputError(f"{data / kind} has no files; expected DATA with speech/ and noise/")
        found += files
    return found


def deal(sizes: Sequence[tuple[Path, int]], limit: int) -> list[list[Path]]:
    """Deal files to parts of at most ``limit`` bytes, each source evenly over all of them.

    Args:
        sizes: File and size (bytes).
        limit: Of a part (bytes), tar headers included.

    Raises:
        InputError: A file is larger than a part.
    """
    blocks = [(path, -(-size // 512) * 512 + 2048) for path, size in sizes]  # header, long name
    for path, size in blocks:
        if size + 10240 > limit:
            raise InputError(f"{path} has {size} bytes; a part holds {limit}: raise --part-mib")
    count = -(-sum(size for _, size in blocks) // (limit - 10240))
    while True:
        parts: list[list[Path]] = [[] for _ in range(count)]
        room = [limit - 10240] * count
        for i, (path, size) in enumerate(blocks):
            # neighbours are of one source: in turn, to the next part that has room
            order = [(i + k) % count for k in range(count)]
            place = next((k for k in order if room[k] >= size), None)
            if place is None:
                break
            parts[place].append(path)
            room[place] -= size
        else:
            return parts
        count += 1


def pack(data: Path, out: Path, part_mib: float) -> list[Path]:
    """Write the parts of a training folder and their index.

    Args:
        data: Folder with speech/, noise/ and, if there, rir/.
        out: Folder to write; must not be there yet.
        part_mib: Size of a part at most (MiB).

    Returns:
        The parts.

    Raises:
        InputError: ``data`` is no training folder, or ``out`` is there.
        OSError: It cannot be written; nothing is left.
    """
    if out.exists():
        raise InputError(f"{out} is there already; choose another folder")
    files = find_recordings(data)
    parts = deal([(p, (data / p).stat().st_size) for p in files], int(part_mib * MIB))
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        index: dict[str, Any] = {"format": FORMAT, "parts": {}}
        for i, members in enumerate(parts):
            path = scratch / f"part-{i:03d}.tar"
            with tarfile.open(path, "w") as tar:
                for member in members:
                    tar.add(data / member, arcname=member.as_posix())
            index["parts"][path.name] = {"sha256": sha256_file(path), "files": len(members)}
        write_whole(scratch / INDEX_NAME, json.dumps(index, indent=1).encode())
        scratch.chmod(0o755)
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return [out / name for name in index["parts"]]


def unpack(parts: Path, out: Path) -> tuple[int, int]:
    """Unpack the parts that are there; those of an earlier call are not repeated.

    Args:
        parts: Folder from ``pack``; parts may be missing.
        out: Folder for the recordings.

    Returns:
        Parts unpacked in all, and parts that there are.

    Raises:
        ManifestError: The index or a part is damaged.
        InputError: No part is there.
    """
    try:
        index = json.loads((parts / INDEX_NAME).read_text(encoding="utf-8"))
        entries = dict(index["parts"])
        if index["format"] != FORMAT:
            raise ValueError(f"format {index['format']!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ManifestError(
            f"{parts / INDEX_NAME}: not an index of dvpd.launch pack ({error})"
        ) from None
    here = [name for name in entries if (parts / name).is_file()]
    if not here:
        raise InputError(f"{parts} has none of the {len(entries)} parts of its index")
    out.mkdir(parents=True, exist_ok=True)
    for name in here:
        done = out / f".{name}.done"
        if done.is_file() and done.read_text() == entries[name]["sha256"]:
            continue
        if sha256_file(parts / name) != entries[name]["sha256"]:
            raise ManifestError(f"{parts / name} is damaged (SHA-256 differs); copy it again")
        with tarfile.open(parts / name) as tar:
            tar.extractall(out, filter="data")
        done.write_text(entries[name]["sha256"])
    return len(here), len(entries)


# ------------------------------------------------------------------------------------------------
# Running


def candidates(device: str, compiled: bool) -> Iterator[dict[str, Any]]:
    """Settings of [train] to try: no numerical difference but rounding."""
    for precision in ("fp32", "bf16") if device.startswith("cuda") else ("fp32",):
        for channels_last in (False, True):
            for compile_ in (False, True) if compiled else (False,):
                yield {
                    "precision": precision, "channels_last": channels_last, "compile": compile_
                }  # fmt: skip


def crops_per_second(config: Config, device: str, steps: int) -> float:
    """Crops a second of the training step alone, on random audio; 0 where it fails.

    Args:
        config: The whole config.
        device: torch device.
        steps: Steps timed, after two that warm up.
    """
    import torch

    from .parallel import join_team
    from .trainer import Trainer

    shape = (config.train.batch_size, config.data.crop_samples)
    draw = torch.Generator().manual_seed(0)
    clean = 0.1 * torch.randn(shape, generator=draw)
    noisy = clean + 0.05 * torch.randn(shape, generator=draw)
    on_gpu = device.startswith("cuda")
    times = []
    with tempfile.TemporaryDirectory() as scratch:
        try:
            trainer = Trainer(config, _Nothing(), scratch, team=join_team(device))
            for i in range(steps + 2):
                begin = time.perf_counter()
                trainer.train_step(noisy, clean)  # reads its losses: waits for the device
                if i >= 2:
                    times.append(time.perf_counter() - begin)
        except RuntimeError as error:  # out of memory, or a compiler that is not there
            sys.stderr.write(f"  not possible: {str(error).splitlines()[0]}\n")
            return 0.0
        finally:
            if on_gpu:
                torch.cuda.empty_cache()
    return config.train.batch_size / statistics.median(times)


class _Nothing:
    def pair(self, seed: int, epoch: int, index: int) -> Any:
        raise AssertionError("the probe brings its own audio")


def choose(config: Config, device: str, compiled: bool, steps: int) -> dict[str, Any]:
    """The fastest settings, with what each reached.

    Raises:
        InputError: None of them runs.
    """
    tried = []
    for settings in candidates(device, compiled):
        sys.stderr.write(f"probe: {settings}\n")
        rate = crops_per_second(
            replace(config, train=replace(config.train, **settings)), device, steps
        )
        tried.append({"settings": settings, "crops_per_s": round(rate, 3)})
        sys.stderr.write(f"  {rate:.2f} crops/s\n")
    best = max(tried, key=lambda row: row["crops_per_s"])
    if not best["crops_per_s"]:
        raise InputError(
            f"no setting runs on {device}: lower train.batch_size, now {config.train.batch_size}"
        )
    return {"device": device, "chosen": best, "tried": tried}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Unpack, choose, train; returns what was done and where the time went.

    Raises:
        DvpdError: The parts, the config or the state cannot be used.
    """
    import torch

    from .train import main as train
    from .train import override

    begin = time.monotonic()
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.minutes * 60.0 <= MARGIN_S:
        raise InputError(f"--minutes is {args.minutes}; expected more than {MARGIN_S / 60:.1f}")
    out: Path = args.out
    data = args.scratch or out.parent / "launch-data"
    here, there = unpack(args.parts, data)
    config = override(load_toml(args.config), args.settings)
    out.mkdir(parents=True, exist_ok=True)
    choice_path = out / CHOICE_NAME
    if choice_path.is_file():
        choice = json.loads(choice_path.read_text(encoding="utf-8"))
    else:
        choice = choose(config, device, args.compile, args.probe_steps)
        write_whole(choice_path, json.dumps(choice, indent=1).encode())
    settings = [*args.settings]
    for key, value in choice["chosen"]["settings"].items():
        settings.append(f"train.{key}={json.dumps(value)}")
    resume = (out / "state.pt").is_file()
    words = [str(args.config), "--data", str(data), "--out", str(out), "--device", device,
             "--cache", str(args.cache or data.parent / "launch-cache")]  # fmt: skip
    words += ["--resume"] if resume else ["--init", str(args.init)] if args.init else []
    words += ["--dev", str(args.dev)] if args.dev else []
    words += [word for setting in settings for word in ("--set", setting)]
    prepared = time.monotonic() - begin
    left = args.minutes * 60.0 - prepared - MARGIN_S
    if left <= 0.0:
        raise InputError(
            f"preparing took {prepared:.0f} s of {args.minutes} minutes; nothing is left to train"
        )
    before = _position(out)
    status = train([*words, "--max-minutes", f"{left / 60.0:.4f}"])
    if status:
        raise InputError("training failed; see above")
    after, wall = _position(out), time.monotonic() - begin
    trained = 60.0 * (after["minutes"] - before["minutes"])
    return {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "parts": [here, there],
        "resumed": resume,
        "choice": choice["chosen"],
        "steps": after["step"] - before["step"],
        "audio_hours": round(after["audio_hours"] - before["audio_hours"], 4),
        "wall_s": round(wall, 1),
        "share_training": round(trained / wall, 3),
        "model": to_dict(config)["model"]["name"],
    }


def _position(out: Path) -> dict[str, float]:
    """Step, minutes and hours of the newest weights; zeros where there are none."""
    from .checkpoint import read_checkpoint

    path = out / "last.safetensors"
    if not path.is_file():
        return {"step": 0, "minutes": 0.0, "audio_hours": 0.0}
    _, _, extra = read_checkpoint(path)
    return {
        "step": int(extra["step"]),
        "minutes": float(extra["minutes"]),
        "audio_hours": float(extra["audio_hours"]),
    }


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="dvpd.launch", description="Train on a machine that is lent for minutes."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="copy a training folder into parts")
    packing.add_argument("data", type=Path, help="folder with speech/, noise/ and, if there, rir/")
    packing.add_argument("out", type=Path, help="folder to write")
    packing.add_argument("--part-mib", type=float, default=56.0, help="size at most (MiB)")
    running = commands.add_parser("run", help="train on the parts that are here")
    running.add_argument("parts", type=Path)
    running.add_argument("--config", required=True, help="TOML file")
    running.add_argument("--minutes", type=float, required=True, help="of all, unpacking included")
    running.add_argument("--out", type=Path, required=True, help="weights, state and log; goes on")
    running.add_argument("--init", type=Path, metavar="CKPT", help="weights to start from")
    running.add_argument("--dev", type=Path, help="see dvpd.train")
    running.add_argument("--device", default="auto")
    running.add_argument("--scratch", type=Path, help="for the recordings (beside OUT)")
    running.add_argument("--cache", type=Path, help="for decoded audio (beside OUT)")
    running.add_argument("--probe-steps", type=int, default=8, help="timed for each setting")
    running.add_argument("--compile", action="store_true", help="try torch.compile, too (minutes)")
    running.add_argument(
        "--set", action="append", default=[], metavar="T.K=V", dest="settings",
        help="override a key of the config",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = build_parser().parse_args(argv)
    try:
        if args.command == "pack":
            if not args.part_mib > 0.0:
                raise InputError(f"--part-mib is {args.part_mib}; expected more than 0")
            for path in pack(args.data, args.out, args.part_mib):
                print(f"{path}  {path.stat().st_size / MIB:.1f} MiB")
            return 0
        if args.probe_steps < 1:
            raise InputError(f"--probe-steps is {args.probe_steps}; expected at least 1")
        print(json.dumps(run(args)))
    except (DvpdError, OSError, tarfile.TarError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
