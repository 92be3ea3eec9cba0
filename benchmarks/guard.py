"""Keeps costs and quality from getting worse unnoticed.

    python benchmarks/guard.py                # compare with benchmarks/costs.json; 1 if worse
    python benchmarks/guard.py --pin          # accept what is there now (say why in the commit)

Costs are counted, not timed, so they are the same on every machine: multiply-accumulates,
parameters, nodes by type, bytes moved, largest set of live activations and file size of every
shipped graph. Quality is what every shipped engine makes of the first seconds of
examples/noisy.flac on every backend, and of two utterances with a long pause between them: noise
that comes back there is not seen in the first. Costs may fall; quality must stay what it is, within
a tolerance, in both directions.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvpd.benchmarks.common import recordings
from dvpd.benchmarks.common.graph_costs import engine_costs
from dvpd.benchmarks.common.tables import markdown
from dvpd.quality.pauses import BANDS_KHZ
from dvpd.runtime import command
from dvpd.runtime.backends.base import StreamBackend
from dvpd.runtime.backends.choose import BACKENDS, installed
from dvpd.runtime.errors import InputError
from dvpd.runtime.files import write_whole
from dvpd.runtime.manifest import BLOCK, MANIFEST_NAME, SINGLE, Manifest
from dvpd.runtime.spec import SAMPLE_RATE

ROOT = Path(__file__).resolve().parent.parent
PINS = Path(__file__).resolve().parent / "costs.json"
FORMAT = 1
N_FRAMES = 256  # 2.048 s
CLIP = ("examples/noisy.flac", "examples/clean.flac")
CLIP_SAMPLES = 80000  # 5 s of it; all 11.5 s would only take longer
SEED = 0
RATE_HZ = SAMPLE_RATE

# How far above its pin a cost may lie (fraction). Counts are exact; a file's size moves a little
# with the figures in its metadata.
COST_TOLERANCE = {"file_bytes": 0.01}
# How far from its pin a figure of quality may lie, either way: engines round differently on
# different CPUs, which moves PESQ by less than 0.002.
QUALITY_TOLERANCE = {"pesq": 0.02, "estoi": 0.005, "si_sdr": 0.1}
BANDS = {f"speech_{a}_{b}": f"{a}-{b} kHz, dB" for a, b in BANDS_KHZ}
PAUSE_TOLERANCE = {
    "pause_lowered": 1.0,
    "pause_worst": 1.0,
    "pause_loudest": 1.5,
    "pause_jump": 2.0,
    "words_lost": 3.0,  # two of the recording's blocks
    "speech_level": 0.2,
    **dict.fromkeys(BANDS, 0.3),
    "pesq_speech": 0.02,
    "estoi_speech": 0.005,
}
PAUSE_LABELS = {
    "pause_lowered": "noise lowered, dB",
    "pause_worst": "worst tenth, dB",
    "pause_loudest": "loudest 0.5 s, dB",
    "pause_jump": "jump, dB",
    "words_lost": "words lost, %",
    "speech_level": "speech level, dB",
    **BANDS,
    "pesq_speech": "PESQ, utterances",
    "estoi_speech": "ESTOI, utterances",
}
# Instructions depend on the engine's version and the CPU's vector units: compared only with a pin
# of the same ones.
INSTRUCTION_TOLERANCE = 0.02
INSTRUCTION_FRAMES = 32
BEYOND_VALGRIND = ("avx512", "avx_vnni", "amx")
INSTRUCTION_ROUNDS = (1, 5)  # start-up, which they share, varies by 0.02 % of itself


@dataclass(frozen=True)
class Finding:
    """One figure that is not as pinned.

    Attributes:
        where: Engine, graph or backend.
        what: Name of the figure.
        pinned: The pin, or None where there is none.
        got: What was measured, or None where it is gone.
        fails: Whether the guard fails because of it; a cost that fell is only worth a word.
    """

    where: str
    what: str
    pinned: float | None
    got: float | None
    fails: bool

    def text(self) -> str:
        """One readable line."""
        if self.pinned is None:
            return f"{self.where}: {self.what} has no pin (is {_number(self.got)})"
        if self.got is None:
            return f"{self.where}: {self.what} is pinned ({_number(self.pinned)}) but not there"
        change = self.got - self.pinned
        share = f", {change / self.pinned:+.2%}" if self.pinned else ""
        return (
            f"{self.where}: {self.what} was {_number(self.pinned)}, is {_number(self.got)} "
            f"({_number(change, sign=True)}{share})"
        )


def _number(value: float | None, sign: bool = False) -> str:
    if value is None:
        return "nothing"
    plus = "+" if sign else ""
    return f"{value:{plus}.4f}" if isinstance(value, float) else f"{value:{plus},}"


def shipped_engines(root: Path = ROOT) -> list[Path]:
    """Engine folders under ``root/engines`` that git tracks; all of them where git cannot say."""
    folders = sorted(path.parent for path in (root / "engines").glob(f"*/{MANIFEST_NAME}"))
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "ls-files", f"engines/*/{MANIFEST_NAME}"],
            capture_output=True, text=True, check=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return folders
    tracked = {root / Path(line).parent for line in done.stdout.splitlines()}
    return [folder for folder in folders if folder in tracked]


def measure_costs(folders: Sequence[Path]) -> dict[str, Any]:
    """Deterministic costs: engine -> graph -> figures.

    Args:
        folders: Engine folders.

    Raises:
        DvpdError: A graph cannot be counted.
    """
    result: dict[str, Any] = {}
    for folder in folders:
        manifest = Manifest.load(folder)
        table = result.setdefault(folder.name, {})
        if manifest.causal is not None:
            table.update(
                {graph: _stateful_costs(folder, manifest, graph) for graph in manifest.graphs}
            )
            if manifest.block is not None:
                table[BLOCK] = _file_costs(folder / manifest.block.file)
            continue
        counted = engine_costs(folder, N_FRAMES)
        if manifest.single:
            singles = engine_costs(folder, N_FRAMES, single=True)
            counted |= {graph + SINGLE: costs for graph, costs in singles.items()}
        for graph, costs in counted.items():
            table[graph] = {
                "macs": costs.total_macs,
                "other_operations": sum(costs.elementwise.values()),
                "bytes_moved": sum(costs.bytes_moved.values()),
                "peak_activation_bytes": costs.peak_activation_bytes,
                "weights": costs.weights,
                "file_bytes": (folder / manifest.files[graph].file).stat().st_size,
                "parameters": manifest.parameters[graph.removesuffix(SINGLE)],
                "nodes": sum(costs.nodes.values()),
                **{f"nodes.{kind}": n for kind, n in costs.nodes.items()},
            }
    return result


def _stateful_costs(folder: Path, manifest: Manifest, graph: str) -> dict[str, Any]:
    """What a causal graph's file says: its sizes are read at run time, so that no bytes are counted."""
    assert manifest.causal is not None
    return {
        "macs": manifest.macs_per_second[graph],  # a second of audio
        "state": manifest.causal.state_size[graph],
        "parameters": manifest.parameters[graph],
        **_file_costs(folder / manifest.graphs[graph].file),
    }


def _file_costs(path: Path) -> dict[str, Any]:
    """What a graph's file says."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    nodes = Counter(node.op_type for node in graph.node)
    return {
        "file_bytes": path.stat().st_size,
        "nodes": sum(nodes.values()),
        **{f"nodes.{kind}": n for kind, n in sorted(nodes.items())},
    }


def measure_quality(
    folders: Sequence[Path],
    backends: Sequence[str],
    root: Path = ROOT,
    threads: int | None = None,
) -> dict[str, Any]:
    """Figures of the tracked recording: engine -> backend -> system -> metric.

    Args:
        folders: Engine folders.
        backends: Names of installed backends.
        root: Folder that holds the recording.
        threads: CPU threads; None for a sensible number.

    Raises:
        DvpdError: An engine fails.
    """
    import soundfile

    from dvpd.quality import metrics
    from dvpd.quality.models import open_model

    measures = {"pesq": metrics.pesq_wb, "estoi": metrics.estoi, "si_sdr": metrics.si_sdr}
    noisy, clean = (
        soundfile.read(root / name, dtype="float32", frames=CLIP_SAMPLES)[0] for name in CLIP
    )
    result: dict[str, Any] = {}
    for folder in folders:
        for backend in backends:
            table = result.setdefault(folder.name, {}).setdefault(backend, {})
            with open_model(folder, backend, "cpu", threads) as enhancer:
                full = enhancer.manifest.sampler.score_steps
                for system, steps in (("predictive", 0), ("full", full)):
                    wav = enhancer.enhance(noisy, RATE_HZ, steps=steps, seed=SEED).wav
                    table[system] = {k: round(f(clean, wav), 5) for k, f in measures.items()}
    return result


def measure_pauses(
    folders: Sequence[Path], backend: str, root: Path = ROOT, threads: int | None = None
) -> dict[str, Any]:
    """Figures of the long recording with a pause: engine -> "predictive" -> figure.

    Of the predictive branch of engines in full precision on one backend: what a network knows of
    pauses is in its weights, and the sampler starts from what that branch leaves there.

    Args:
        folders: Engine folders.
        backend: Name of an installed backend.
        root: Folder that holds tests/assets.
        threads: CPU threads; None for a sensible number.

    Raises:
        DvpdError: An engine fails.
    """
    from dvpd.quality.metrics import Meter
    from dvpd.runtime.enhancer import Enhancer

    meter = Meter(tuple(PAUSE_TOLERANCE))
    noisy, clean, speech = recordings.with_pauses(root / "tests" / "assets")
    result: dict[str, Any] = {}
    for folder in folders:
        with Enhancer.open(folder, backend, "cpu", threads) as enhancer:
            if enhancer.manifest.precision != "fp32":
                continue
            wav = enhancer.enhance(noisy, RATE_HZ, steps=0).wav
        figures = meter(clean, wav, noisy, speech)
        rounded = {name: round(figures[name], 3) for name in PAUSE_TOLERANCE}
        result[folder.name] = {"predictive": rounded}
    return result


def compare_costs(pinned: Mapping[str, Any], got: Mapping[str, Any]) -> list[Finding]:
    """What is not as pinned in ``measure_costs``' result; more than the tolerance fails."""
    findings = []
    for where, what, pin, value in _leaves(pinned, got):
        if pin is None or value is None:
            # a node type that is new or gone is a change of cost from or to nothing
            if what.startswith("nodes."):
                findings.append(Finding(where, what, pin or 0, value or 0, value is not None))
            else:
                findings.append(Finding(where, what, pin, value, True))
        elif value != pin:
            allowed = pin * (1 + COST_TOLERANCE.get(what, 0.0))
            if value > allowed or COST_TOLERANCE.get(what, 0.0) * pin < pin - value:
                findings.append(Finding(where, what, pin, value, value > allowed))
    return findings


def compare_quality(
    pinned: Mapping[str, Any],
    got: Mapping[str, Any],
    tolerance: Mapping[str, float] = QUALITY_TOLERANCE,
) -> list[Finding]:
    """What is not as pinned in ``measure_quality``' or ``measure_pauses``' result.

    A backend that is pinned but was not measured (not installed here) is no finding.
    """
    there = {
        engine: {b: v for b, v in table.items() if b in got.get(engine, {})}
        for engine, table in pinned.items()
        if engine in got
    }
    gone = [Finding(e, "quality", 1, None, True) for e in pinned if e not in got]
    return gone + [
        Finding(where, what, pin, value, True)
        for where, what, pin, value in _leaves(there, got)
        if pin is None or value is None or abs(value - pin) > tolerance[what]
    ]


def _leaves(a: Any, b: Any, path: tuple[str, ...] = ()) -> list[tuple[str, str, Any, Any]]:
    """(where, what, value of a, value of b) of two nested tables."""
    if isinstance(a, Mapping) or isinstance(b, Mapping):
        rows = []
        first, second = (x if isinstance(x, Mapping) else {} for x in (a, b))
        for key in sorted({*first, *second}):
            rows += _leaves(first.get(key), second.get(key), (*path, key))
        return rows
    return [(" ".join(path[:-1]), path[-1], a, b)]


def count_instructions(folder: Path) -> dict[str, Any] | None:
    """Instructions of one predictive and one score call of ONNX Runtime on one thread.

    From the difference of a process that makes many rounds and one that makes one, so that start-up
    drops out. ``perf`` counts where the machine has the counter, else callgrind.

    Args:
        folder: An engine folder.

    Returns:
        {"instructions", "tool", "onnxruntime", "cpu"}, or None where there is no tool.
    """
    import onnxruntime

    for tool in ("perf", "callgrind"):
        if shutil.which("perf" if tool == "perf" else "valgrind") is None:
            continue
        few, many = INSTRUCTION_ROUNDS
        first, last = (_instructions(tool, folder, rounds) for rounds in INSTRUCTION_ROUNDS)
        if first is not None and last is not None:
            return {
                "instructions": (last - first) // (many - few),
                "tool": tool,
                "onnxruntime": onnxruntime.__version__,
                "cpu": _cpu_features(tool),
            }
    return None


def _cpu_features(tool: str) -> str:
    """Vector units that ``tool`` lets the engine see: they choose its kernels."""
    from dvpd.runtime.doctor import _cpu

    features: list[str] = _cpu()["features"]
    if tool == "callgrind":  # valgrind's own CPU ends with AVX2
        features = [f for f in features if not f.startswith(BEYOND_VALGRIND)]
    return ",".join(features)


def _instructions(tool: str, folder: Path, rounds: int) -> int | None:
    child = [sys.executable, str(Path(__file__).resolve()), "--rounds", str(rounds), str(folder)]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "counts"
        if tool == "perf":
            command = ["perf", "stat", "-x,", "-o", str(out), "-e", "instructions:u", *child]
        else:
            command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", *child]
        if shutil.which("setarch"):  # the same addresses in every run, so the same hash tables
            command = ["setarch", "-R", *command]
        fixed = {**os.environ, "PYTHONHASHSEED": "0"}  # else sets and dicts differ from run to run
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=fixed)
        if done.returncode or not out.is_file():
            return None
        for line in out.read_text(errors="replace").splitlines():
            if tool == "perf" and "instructions" in line:
                count = line.split(",")[0]
                return int(count) if count.isdigit() else None
            if tool == "callgrind" and line.startswith(("summary:", "totals:")):
                return int(line.split()[1])
    return None


def _run_rounds(folder: Path, rounds: int) -> None:
    """The counted child: ``rounds`` calls of both graphs on 32 frames."""
    import numpy as np

    from dvpd.runtime.backends.choose import open_backend
    from dvpd.runtime.spec import N_FREQS, TlbFactors

    manifest = Manifest.load(folder)
    backend = open_backend(folder, manifest, "ort", "cpu", 1)
    noisy = np.full((1, 3, INSTRUCTION_FRAMES, N_FREQS), 0.1, np.float32)
    t = np.full(1, 0.12, np.float32)
    if manifest.causal is not None:
        live = cast(StreamBackend, backend)
        states: list[Any] = [None, None]
        for _ in range(rounds):
            _, feats, states[0] = live.predict_next(noisy, states[0])
            factors = TlbFactors().arrays()
            _, states[1] = live.score_next(noisy[:, :1], t, feats, *factors, states[1])
        return
    for _ in range(rounds):
        _, feats = backend.predict(noisy)
        backend.score(noisy[:, :1], t, feats, *TlbFactors().arrays())


def compare_instructions(
    pinned: Mapping[str, Any], got: Mapping[str, Any | None]
) -> tuple[list[Finding], list[str]]:
    """Findings, and why engines could not be compared."""
    findings, notes = [], []
    for engine, value in got.items():
        pin = pinned.get(engine)
        if value is None:
            notes.append(f"{engine}: neither perf nor callgrind can count instructions here")
        elif pin is None or any(pin[k] != value[k] for k in ("tool", "onnxruntime", "cpu")):
            notes.append(f"{engine}: no pin for this tool, ONNX Runtime and CPU")
        else:
            a, b = pin["instructions"], value["instructions"]
            if abs(b - a) > INSTRUCTION_TOLERANCE * a:
                findings.append(Finding(engine, "instructions", a, b, b > a))
    return findings, notes


def read_pins(path: Path) -> dict[str, Any]:
    """The pinned figures.

    Raises:
        InputError: The file is missing, damaged, or of another format.
    """
    try:
        pins = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}; write it with guard.py --pin") from None
    if not isinstance(pins, dict) or pins.get("format") != FORMAT:
        raise InputError(f"{path}: not of format {FORMAT}; write it with guard.py --pin")
    return pins


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="guard.py", description=__doc__.split("\n")[0])
    parser.add_argument("engines", nargs="*", type=Path, help="default: every shipped engine")
    parser.add_argument("--pin", action="store_true", help="write what is measured as the pins")
    parser.add_argument("--pins", type=Path, default=PINS, help="file of the pins")
    parser.add_argument("--no-quality", action="store_true", help="costs alone, in a second")
    parser.add_argument(
        "--instructions", action="store_true",
        help="also count the instructions of a tiny run (perf or callgrind; minutes)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command.run(build_parser(), argv, _guard)


def _guard(args: argparse.Namespace) -> int:
    if args.rounds:
        _run_rounds(args.engines[0], args.rounds)
        return 0
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    folders = args.engines or shipped_engines()
    if not folders:
        raise InputError("no engine folder is tracked under engines/; nothing to guard")
    backends = [name for name in BACKENDS if name in ("ort", "openvino") and installed(name)]
    got: dict[str, Any] = {"format": FORMAT, "n_frames": N_FRAMES, "clip": CLIP[0],
                           "clip_samples": CLIP_SAMPLES}  # fmt: skip
    got["costs"] = measure_costs(folders)
    got["quality"] = {} if args.no_quality else measure_quality(folders, backends)
    got["pauses"] = measure_pauses(folders, backends[0]) if got["quality"] and backends else {}
    if args.instructions:
        got["instructions"] = {f.name: count_instructions(f) for f in folders}
    if args.pin:
        before = read_pins(args.pins) if args.pins.is_file() else {}
        if args.engines:  # the others keep theirs
            got["costs"] = {**before.get("costs", {}), **got["costs"]}
        for part in ("quality", "pauses", "instructions"):
            # what was not measured now keeps its pin
            kept = {k: v for k, v in before.get(part, {}).items() if k in got["costs"]}
            new = {k: v for k, v in got.get(part, {}).items() if v is not None}
            got[part] = {**kept, **new}
        write_whole(args.pins, json.dumps(got, indent=1, sort_keys=True) + "\n")
        print(f"{args.pins}: pinned {', '.join(got['costs'])}")
        return 0
    pins = read_pins(args.pins)
    if args.engines:
        chosen = {f.name for f in folders}
        for part in ("costs", "quality", "pauses"):
            pins[part] = {k: v for k, v in pins.get(part, {}).items() if k in chosen}
    findings = compare_costs(pins["costs"], got["costs"])
    if not args.no_quality:
        findings += compare_quality(pins["quality"], got["quality"])
        findings += compare_quality(pins.get("pauses", {}), got["pauses"], PAUSE_TOLERANCE)
    notes: list[str] = []
    if args.instructions:
        more, notes = compare_instructions(pins.get("instructions", {}), got["instructions"])
        findings += more
    print(report(findings, notes, pins, got))
    return 1 if any(f.fails for f in findings) else 0


def report(
    findings: Sequence[Finding], notes: Sequence[str], pins: Mapping[str, Any],
    got: Mapping[str, Any],
) -> str:  # fmt: skip
    """What the guard has to say, failures first."""
    worse = [f.text() for f in findings if f.fails]
    better = [f.text() for f in findings if not f.fails]
    lines = []
    if worse:
        lines += [f"{len(worse)} figures are worse than pinned:", *(f"  {x}" for x in worse)]
        lines.append("If this is meant: python benchmarks/guard.py --pin, and say why.")
    if better:
        lines += ["Cheaper than pinned (guard.py --pin keeps it so):", *(f"  {x}" for x in better)]
    lines += notes
    for header, table in (
        ({"pesq": "PESQ", "estoi": "ESTOI", "si_sdr": "SI-SDR, dB"}, got["quality"]),
        (PAUSE_LABELS, got.get("pauses", {})),
    ):
        rows: dict[str, Any] = {}
        for where, what, _, value in _leaves({}, table):
            rows.setdefault(where, {})[what] = value
        if rows:
            lines.append(
                markdown(
                    ["engine", *header.values()],
                    [[where, *(row[k] for k in header)] for where, row in rows.items()],
                )
            )
    if not worse:
        quality = "quality as pinned" if got["quality"] else "quality not measured"
        lines.append(f"{', '.join(got['costs'])}: no cost above its pin, {quality}.")
    return "\n".join(lines)


if __name__ == "__main__":
    command.leave(main())
