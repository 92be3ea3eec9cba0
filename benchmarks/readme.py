"""Write the pages' tables from results that were measured, or check that they have them.

    python benchmarks/readme.py              # README.md and docs/ from benchmarks/results
    python benchmarks/readme.py --check      # exit with 1 if they have other figures

Each table stands between two marks in a page; what is written between them is lost. The results are
what ``rtf.py``, ``quality.py``, ``peers.py``, ``macs.py``, ``ablations.py`` and ``steps.py`` wrote with
``--json``, and every ``report.json`` that ``dvpd benchmark --report`` wrote on some board.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvpd.benchmarks import ablations, peers, quality
from dvpd.benchmarks import steps as step_tables
from dvpd.benchmarks.common import report, tables
from dvpd.runtime import command
from dvpd.runtime.errors import InputError
from dvpd.runtime.files import write_whole
from dvpd.runtime.manifest import MANIFEST_NAME

BOARD = "report.json"  # what dvpd benchmark --report calls its file
ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "models.md",
    ROOT / "docs" / "benchmarks.md",
    ROOT / "docs" / "training-history.md",
)
# The first folder that has a result gives it: quality comes from the latest weights, speed from the
# machine where it was measured (the graphs' operators are the same).
MACHINES = ("xeon-amx-2-cores", "xeon-2-cores", "epyc-2-cores")
_FOLDERS = [Path(__file__).resolve().parent / "results" / name for name in MACHINES]
RESULTS = tuple(folder for folder in _FOLDERS if folder.is_dir())


def sizes(models: Sequence[dict[str, Any]]) -> str:
    """Parameters and products of each model, from ``macs.py``."""
    rows = []
    for model in models:
        p, s = (model["parameters"][k] / 1e6 for k in ("predictive", "total"))
        a, b = (model["macs_per_second"][k] / 1e9 for k in ("predictive", "total"))
        rows.append([f"`{model['name']}`", f"{p:.2f} M / {s:.2f} M", f"{a:.2f} / {b:.2f}"])
    rows.append(["the paper", "0.61 M / 1.9 M", "2.41 / 10.2 (its scan uncounted)"])
    header = [
        "",
        "parameters, predictive / all",
        "GMAC per second of audio, predictive / all (1 + 3)",
    ]
    return tables.markdown(header, rows)


def _where(row: report.Row) -> str:
    """Backend, and the device where it is not the CPU."""
    device = row["device"]
    return str(row["backend"]) + ("" if device in ("cpu", "auto") else f" {device}")


def _machine(found: report.Report) -> str:
    m = found["machine"]
    return ", ".join(filter(None, [m["board"], *m["gpus"], m["cpu"]]))


def boards(paths: Sequence[Path]) -> str:
    """The base cases of the files that owners of boards sent (``dvpd benchmark --report``)."""
    rows = []
    for path in paths:
        table, found = _json(path), report.read(path)
        away = {(r["engine"], r["backend"], r["device"]): r["snr_db"] for r in table["parity"]}
        machine, watts = _machine(found), found["protocol"]["nvpmodel"]
        for row in report.base_rows(found):
            energy = (row["energy"] or {}).values()
            ms = row["latency_ms"]
            rows.append(
                [machine + (f" ({watts})" if watts else ""), f"`{row['engine']}`", _where(row),
                 row["steps"], f"{row['rtf']:.4f}", f"{ms['p50']:.1f} / {ms['p99']:.1f}",
                 away.get((row["engine"], row["backend"], row["device"])),
                 max((e["joules_per_audio_s"] for e in energy), default=None),
                 found["created"][:10]]
            )  # fmt: skip
    if not rows:
        return "No board's report has come in yet."
    header = ["board", "engine", "backend", "steps", "RTF", "p50 / p99, ms", "SNR to the CPU, dB",
              "J / s of audio", "measured"]  # fmt: skip
    return tables.markdown(header, rows)


def _alone(found: report.Report) -> dict[tuple[str, str, str], report.Row]:
    """The rows of no steps beside the base cases, by engine, backend and device."""
    sizes = {row["frames"] for row in report.base_rows(found)}
    return {
        (r["engine"], r["backend"], r["device"]): r
        for r in found["rows"]
        if r["status"] == "ok" and r["steps"] == 0 and r["batch"] == 1 and r["frames"] in sizes
    }


def _different(pair: tuple[report.Row, report.Row]) -> Sequence[report.Row]:
    """A row without steps and one with some; one of them where they are the same."""
    return pair if pair[0]["steps"] != pair[1]["steps"] else pair[1:]


def _by_default(engines: Sequence[str]) -> str:
    """Which steps the shipped engines among these take by default, in words; empty if none is."""
    paths = {name: ROOT / "engines" / name / MANIFEST_NAME for name in engines}
    counts = {n: _json(path)["sampler"]["n_steps"] for n, path in paths.items() if path.is_file()}
    if len(set(counts.values())) == 1:
        return f"{tables.steps_text(next(iter(counts.values())))} by default"
    return ", ".join(f"{n} {tables.steps_text(count)} by default" for n, count in counts.items())


def speed(found: report.Report) -> str:
    """Real-time factors with and without steps, from ``rtf.py``, with its protocol in a sentence."""
    alone = _alone(found)
    cold = {
        (p["engine"], p["backend"], p["device"]): p
        for p in found["processes"]
        if p["status"] == "ok"
    }
    rows = []
    base = report.base_rows(found)
    counts = sorted({0, *(row["steps"] for row in base)})
    for row in base:
        key = (row["engine"], row["backend"], row["device"])
        fresh, both = cold.get(key, {}), [alone.get(key), row][-len(counts) :]
        rows.append(
            [f"`{row['engine']}`", _where(row), *(f"{r['rtf']:.3f}" if r else None for r in both),
             *(" / ".join(f"{r['latency_ms'][p]:.0f}" for p in ("p50", "p95", "p99")) if r else None
               for r in both),
             f"{fresh['cold_start_s']:.2f}" if fresh else None,
             f"{fresh['peak_rss_mib']:.0f}" if fresh.get("peak_rss_mib") else None]
        )  # fmt: skip
    if not rows:
        raise InputError("the rtf report has no row that was measured")
    texts = [tables.steps_text(n) for n in counts]
    header = ["engine", "backend", *(f"RTF, {text}" for text in texts),
              *(f"p50 / p95 / p99, ms, {text}" for text in texts), "cold start, s",
              "peak RSS, MiB"]  # fmt: skip
    p, v = found["protocol"], found["protocol"]["versions"]
    share = p["others_cpu_share"]
    names = ", ".join(f"{n} {v[n]}" for n in ("onnxruntime", "openvino", "torch") if n in v)
    text = (
        f"{_machine(found)}, {p['threads']} threads, {found['created'][:10]}, {names}; windows "
        f"of {base[0]['window_s']:.2f} s from waveform to waveform (STFT and noise included), at "
        f"least {min(p['min_runs'], *(row['runs'] for row in base))} interleaved runs"
    )
    if share is not None:
        text += f"; other processes used {share:.0%} of the CPU"
    if default := _by_default(list(dict.fromkeys(row["engine"] for row in base))):
        text += f". The engines take {default}"
    if cold:  # results of 2026-11 do not say with how many
        begun = {fresh.get("steps", base[0]["steps"]) for fresh in cold.values()}
        those = " or ".join(map(tables.steps_text, sorted(begun)))
        text += f"; cold start and memory are of {those}"
    return tables.markdown(header, rows) + f"\n\n{text}."


def short_speed(found: report.Report) -> str:
    """Real-time factors of a model with and without steps, on the backend that is faster without."""
    alone = _alone(found)
    best: dict[str, tuple[report.Row, report.Row]] = {}
    for row in report.base_rows(found):
        without = alone.get((row["engine"], row["backend"], row["device"]), row)
        known = best.get(row["engine"])
        if known is None or without["rtf"] < known[0]["rtf"]:
            best[row["engine"]] = without, row
    if not best:
        raise InputError("the rtf report has no row that was measured")
    rows = [
        [f"`{name}`", _where(row), *(f"{r['rtf']:.2f}" for r in _different(pair))]
        for name, pair in best.items()
        for row in pair[1:]
    ]
    p, pair = found["protocol"], next(iter(best.values()))
    text = (
        f"{_machine(found)}, {p['threads']} threads, {found['created'][:10]}, windows of "
        f"{pair[0]['window_s']:.1f} s"
    )
    if default := _by_default(list(best)):
        text += f"; {default}"
    counts = (f"RTF, {tables.steps_text(r['steps'])}" for r in _different(pair))
    return tables.markdown(["model", "backend", *counts], rows) + f"\n\n{text}."


def short_quality(result: dict[str, Any]) -> str:
    """One row a model and sampler, one column a set, from ``quality.py``."""

    def figure(part: dict[str, Any], system: str) -> str:
        figures = part["systems"][system]
        if quality.has_pauses(part):
            return f"{figures['pause_lowered']['mean'] + 0.0:.0f}"
        return f"{figures['pesq']['mean']:.2f} / {figures['estoi']['mean']:.2f}"

    models = result["models"]
    if not models:
        raise InputError("the quality result has no model")
    first = models[0]["sets"]
    header = [""]
    for name, part in first.items():
        quiet = quality.has_pauses(part)
        header.append(f"{name}: noise lowered, dB" if quiet else f"{name}: PESQ / ESTOI")
    rows = [["noisy", *(figure(part, "noisy") for part in first.values())]]
    for model in models:
        for system, steps in (("predictive", 0), ("full", quality.full_steps(model))):
            figures = [figure(model["sets"][name], system) for name in first]
            rows.append([f"`{model['model']}`, {tables.steps_text(steps)}", *figures])
    counts = ", ".join(f"{part['n']} of {name}" for name, part in first.items())
    return tables.markdown(header, rows) + f"\n\nMeans over recordings: {counts}. {_age(result)}"


def full_quality(result: dict[str, Any]) -> str:
    """All columns of ``quality.py``."""
    return f"{quality.set_tables(result)} {_age(result)}"


def _age(result: dict[str, Any]) -> str:
    """When quality was measured, and whether the shipped weights are others since."""
    text = f"Measured {result['created'][:10]}"
    for model in result["models"]:
        manifest = ROOT / "engines" / model["model"] / MANIFEST_NAME
        if (
            manifest.is_file()
            and _json(manifest)["checkpoint_sha256"] != model["checkpoint_sha256"]
        ):
            return f"{text}; the weights were trained further since."
    return f"{text}."


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: {error}; measure it again (see {path.parent}/README.md)"
        ) from None


# Name of the block -> file of the results, reader, writer.
BLOCKS: dict[str, tuple[str, Callable[[Path], Any], Callable[[Any], str]]] = {
    "quality short": ("quality.json", _json, short_quality),
    "speed short": ("rtf.json", report.read, short_speed),
    "sizes": ("macs.json", _json, sizes),
    "quality table": ("quality.json", _json, full_quality),
    "speed": ("rtf.json", report.read, speed),
    "peers": ("peers.json", quality.read_peers, peers.to_markdown),
    "steps": ("steps.json", _json, lambda r: step_tables.to_markdown(r, groups=False)),
    "steps by degradation": (
        "steps.json",
        _json,
        lambda r: step_tables.to_markdown(r, groups=True),
    ),
    "sweeps": ("sweeps.json", _json, quality.sweep_tables),
    "ablations": ("ablations.json", _json, lambda r: ablations.to_markdown(r["runs"])),
    "ablation ssd": ("ablations-ssd.json", _json, lambda r: ablations.to_markdown(r["runs"])),
}


def find(file: str, folders: Sequence[Path]) -> Path:
    """``file`` in the first of ``folders`` that has it; in the first where none has.

    A file that a board's owner sent stands for ``rtf.json``.
    """
    names = (file, BOARD) if file == "rtf.json" else (file,)
    there = (folder / name for folder in folders for name in names)
    return next((path for path in there if path.is_file()), folders[0] / file)


def fill(text: str, folders: Sequence[Path]) -> str:
    """``text`` with every block that it has marks for made anew.

    Args:
        text: Markdown with marks.
        folders: Results of machines, the one to prefer first.

    Raises:
        InputError: A result is missing or damaged, a mark is unpaired, or there are no marks.
    """
    done = 0
    for name, (file, read, write) in BLOCKS.items():
        begin, end = quality.marks(name)
        if begin in text or end in text:
            text = quality.replace_block(text, write(read(find(file, folders))), name)
            done += 1
    begin, end = quality.marks("boards")
    if begin in text or end in text:
        sent = sorted(folders[0].resolve().parent.glob(f"*/{BOARD}"))
        text, done = quality.replace_block(text, boards(sent), "boards"), done + 1
    if not done:
        raise InputError(f"no marks; expected some of {', '.join(map(repr, BLOCKS))}")
    return text


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="readme.py", description=__doc__.split("\n")[0])
    parser.add_argument(
        "results", nargs="*", type=Path, default=RESULTS,
        help="folders of machines, the one to prefer first",
    )  # fmt: skip
    parser.add_argument(
        "--readme", type=Path, action="append", metavar="PAGE",
        help="page with marks; may be given again (default: README.md and pages of docs/)",
    )  # fmt: skip
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if it differs")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command.run(build_parser(), argv, _fill_pages)


def _fill_pages(args: argparse.Namespace) -> int:
    stale = 0
    try:
        pages = {page: page.read_text(encoding="utf-8") for page in args.readme or PAGES}
    except UnicodeDecodeError as error:
        raise InputError(f"--readme: a page is no text ({error.reason}); give Markdown") from None
    filled = {page: fill(text, args.results) for page, text in pages.items()}
    for page, after in filled.items():
        if not args.check:
            write_whole(page, after)
        elif after != pages[page]:
            print(
                f"{page} has other figures than {', '.join(map(str, args.results))}: run readme.py"
            )
            stale = 1
    return stale


if __name__ == "__main__":
    command.leave(main())
