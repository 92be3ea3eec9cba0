"""``rtf.py --stream``: live mode, block by block; what it costs, when it is late, how long it delays.

    python benchmarks/rtf.py --stream engines/dvpd-live-tiny --threads 1
    python benchmarks/rtf.py --stream engines/dvpd-live-tiny --block-ms 10,32 --audio-seconds 60

Every case (engine x backend x threads x block x steps) is one stream of ``--audio-seconds``. A block's
latency is the time from its last sample to its output, the waiting for the block before included;
it is late if that takes longer than the next block takes to come. Only the blocks in which the
networks ran count, or short blocks would look fast. The steps are fixed: no fewer are taken where
computing falls behind.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dvpd.benchmarks.common import comparison, machine, meters, report, stream_timing, tables
from dvpd.benchmarks.common.timing import variants
from dvpd.runtime import command
from dvpd.runtime.backends.choose import BACKENDS, cpu_quota, installed
from dvpd.runtime.engines import find_live_engine
from dvpd.runtime.enhancer import Enhancer
from dvpd.runtime.errors import InputError, UsageError, one_line, raise_interrupt
from dvpd.runtime.files import write_whole
from dvpd.runtime.progress import show_status

SCHEMA = "dvpd-stream-1"
SCHEMA_FILE = Path(report.__file__).with_name("stream.schema.json")
TIMED = (
    "one call of process(): resampling, STFT and compression, the networks, noise and fusion, inverse "
    "STFT; no device and no pipe"
)

Say = Callable[[str], None]
Row = dict[str, Any]
Report = dict[str, Any]


def _cases(args: argparse.Namespace) -> list[tuple[int, float, int | None]]:
    """(threads, block in ms, steps): each axis alone around its first value, or the whole grid."""
    axes = (args.threads or [cpu_quota()], args.block_ms, args.steps or [None])
    return [
        (threads, block, steps)
        for threads in axes[0]
        for block in axes[1]
        for steps in axes[2]
        if args.grid
        or sum(x != axis[0] for x, axis in zip((threads, block, steps), axes, strict=True)) <= 1
    ]


def _pairs(args: argparse.Namespace) -> tuple[list[tuple[str, str]], list[dict[str, str]]]:
    """Backends and devices that are measured, and the backends that are not installed."""
    names = list(BACKENDS) if args.backend == "all" else args.backend.split(",")
    if unknown := sorted(set(names) - {*BACKENDS}):
        raise InputError(f"backend is {unknown[0]!r}; expected all, or of {', '.join(BACKENDS)}")
    not_run = [
        {"backend": name, "reason": f"not installed: pip install '{BACKENDS[name][1]}'"}
        for name in names
        if not installed(name)
    ]
    found = [pair for name in names if installed(name) for pair in variants(name, args.device)]
    if not found:
        raise InputError(f"nothing to measure: {not_run[0]['reason']}")
    return found, not_run


@contextlib.contextmanager
def _energy(found: Sequence[meters.Meter], row: Row) -> Iterator[None]:
    """Energy of what is inside, written into the row; its "audio_s" is known at the end."""
    with contextlib.ExitStack() as stack:
        readings = {meter.name: stack.enter_context(meters.measuring(meter)) for meter in found}
        yield
    row["energy"] = {
        name: {
            "joules_per_audio_s": reading.joules / row["audio_s"],
            "watts": reading.joules / reading.seconds,
        }
        for name, reading in readings.items()
    }


def _measure(
    enhancer: Enhancer,
    args: argparse.Namespace,
    block_ms: float,
    steps: int | None,
    found: Sequence[meters.Meter],
    row: Row,
) -> None:
    """One case, into its row."""
    rate = args.rate
    block = max(1, round(block_ms * rate / 1000))
    stream_timing.warm_up(enhancer, rate, block, steps)
    stream = enhancer.stream(rate, 1, steps=steps, adapt=False)
    row.update(
        steps=stream.stats.steps_now,
        latency_samples=stream.latency_samples,
        stream_latency_ms=stream.latency_ms,
    )
    with _energy(found, row):
        timed = stream_timing.time_stream(
            stream,
            stream_timing.speech(rate),
            rate,
            block,
            args.audio_seconds,
            real_time=args.real_time,
        )
        row["audio_s"] = timed.audio_s
    row.update(stream_timing.summarise(timed, stream.latency_ms))


def _engine(
    path: Path,
    pair: tuple[str, str],
    args: argparse.Namespace,
    found: Sequence[meters.Meter],
    watch: machine.CpuWatch,
    say: Say,
) -> tuple[list[Row], list[Row]]:
    """Rows and delays of one engine on one backend; what fails is a row that says why."""
    rows: list[Row] = []
    delays: list[Row] = []
    enhancer: Enhancer | None = None
    opened = None  # threads
    for threads, block_ms, steps in _cases(args):
        row: Row = {
            "engine": path.name, "backend": pair[0], "device": pair[1], "threads": threads,
            "sample_rate": args.rate, "window_s": block_ms / 1e3, "batch": 1, "steps": steps,
            "status": "ok", "error": None,
        }  # fmt: skip
        rows.append(row)
        say(f"{path.name} on {pair[0]}, {threads} threads, blocks of {block_ms:g} ms")
        try:
            if enhancer is None or threads != opened:
                if enhancer is not None:
                    enhancer.close()
                enhancer, opened = Enhancer.open(path, *pair, threads), threads
            row["model"], row["precision"] = enhancer.manifest.name, enhancer.manifest.precision
            _measure(enhancer, args, block_ms, steps, found, row)
            if not delays:
                delays = [
                    {"engine": path.name, "backend": pair[0], "device": pair[1]}
                    | stream_timing.measure_delay(enhancer, rate, steps)
                    for rate in args.delay_rates
                ]
        except Exception as error:  # engines raise types of their own: a row, never a crash
            raise_interrupt(error)
            row.update(status="failed", error=one_line(error))
        watch.look()
    if enhancer is not None:
        enhancer.close()
    return rows, delays


def run(args: argparse.Namespace, say: Say = lambda _: None) -> Report:
    """Measure what the arguments ask for; the report as JSON.

    Args:
        args: From ``rtf.build_parser``.
        say: Receives what is being done.

    Raises:
        InputError: Nothing can be measured, or an argument is out of range.
    """
    paths = [Path(p) for p in args.engines] or [find_live_engine()]
    load_before = machine.load_average()
    pairs, not_run = _pairs(args)
    watch, (found, absent) = machine.CpuWatch(), meters.find_meters()
    rows: list[Row] = []
    delays: list[Row] = []
    for path in paths:
        for pair in pairs:
            more, late = _engine(path, pair, args, found, watch, say)
            rows += more
            delays += late
    for meter in found:
        meter.close()
    warnings = watch.warnings()
    warnings += [
        f"{row['engine']} on {row['backend']} at {row['sample_rate']} Hz: the measured delay "
        "is not the reported one"
        for row in delays
        if not stream_timing.same([row])
    ]
    return {
        "schema": SCHEMA,
        "created": machine.now(),
        "machine": machine.machine(),
        "protocol": {
            "timed": TIMED,
            "real_time": args.real_time,
            "audio_s": args.audio_seconds,
            "affinity": machine.affinity(),
            "governors": machine.governors(),
            "clocks_mhz": None if watch.clocks is None else list(watch.clocks),
            "nvpmodel": machine.nvpmodel(),
            "versions": machine.versions(),
            "load_before": load_before,
            "load_after": machine.load_average(),
            "others_cpu_share": watch.others_share(),
            "git": machine.git_revision(Path(__file__).resolve().parent),
            "note": args.note,
        },
        "meters": {"found": [m.name for m in found], "absent": absent},
        "warnings": warnings,
        "not_run": not_run,
        "rows": rows,
        "delays": delays,
        "processes": [],
    }


# ------------------------------------------------------------------------------------------------
# Tables

HEADER = (
    "case", "threads", "block", "steps", "RTF", "CPU", "p50", "p95", "p99", "max", "jitter", "late",
    "delay", "RSS", "grows",
)  # fmt: skip
TITLE = "Live, block by block: ms; CPU seconds for a second of audio; delay with p99; MiB"
DELAY_HEADER = ("case", "rate, Hz", "reported", "by speech", "by a click", "ms")
ENERGY_HEADER = ("case", "threads", "block, ms", "meter", "J / s of audio", "W")


def sections(result: Report) -> list[tuple[str, Sequence[str], list[list[Any]]]]:
    """(title, header, rows) of every table that has rows."""
    speed, energy = [], []
    for row in result["rows"]:
        head = [report.label(row), row["threads"], 1e3 * row["window_s"]]
        if row["status"] == "failed":
            speed.append([*head, row["steps"], "failed", *[None] * (len(HEADER) - 6)])
            continue
        speed.append(
            [*head, row["steps"], row["rtf"], row["cpu_s_per_audio_s"]]
            + [row["latency_ms"][k] for k in ("p50", "p95", "p99", "max")]
            + [row["jitter_ms"], f"{row['missed']}/{row['blocks']}"]
            + [row[k] for k in ("delay_ms", "rss_mib", "growth_mib")]
        )
        energy += [
            [*head, meter, e["joules_per_audio_s"], e["watts"]]
            for meter, e in row["energy"].items()
        ]
    delays = [
        [report.label(row)]
        + [row[k] for k in ("sample_rate", "reported", "speech", "click")]
        + [1e3 * row["reported"] / row["sample_rate"]]
        for row in result["delays"]
    ]
    parts: list[tuple[str, Sequence[str], list[list[Any]]]] = [
        (TITLE, HEADER, speed),
        ("Delay from end to end, samples", DELAY_HEADER, delays),
        ("Energy", ENERGY_HEADER, energy),
    ]
    return [part for part in parts if part[2]]


def protocol_lines(result: Report) -> list[tuple[str, str]]:
    """The protocol as (name, text)."""
    p, m = result["protocol"], result["machine"]
    git, share = p["git"], p["others_cpu_share"]
    return [
        ("measured", result["created"]),
        ("machine", f"{m['cpu']}, {m['usable_cores']} of {m['logical_cores']} cores, {m['os']}"),
        ("what is timed", p["timed"]),
        ("pace", f"{p['audio_s']:g} s of audio a case, "
         + ("in real time" if p["real_time"] else
            "back to back; when a block would have been ready is computed")),
        ("late", "output later than the next block, or the model's next block where that is longer"),
        ("load average", f"{p['load_before']} before, {p['load_after']} after; other processes "
         + ("not known" if share is None else f"{share:.1%} of all cores' time")),
        ("versions", ", ".join(f"{k} {v}" for k, v in p["versions"].items())),
        ("revision", "not a checkout" if git is None else
         git["revision"] + (" with changes" if git["modified"] else "")),
        *([("note", p["note"])] if p["note"] else []),
    ]  # fmt: skip


def to_markdown(result: Report) -> str:
    """The report as Markdown."""
    parts = ["# Live mode", *report.remarks(result)]
    for title, header, rows in sections(result):
        parts += [f"## {title}", tables.markdown(header, rows)]
    parts += ["## Protocol", tables.markdown(("", ""), protocol_lines(result))]
    return "\n\n".join(parts) + "\n"


def main(args: argparse.Namespace) -> int:
    """The mode as a command; returns the exit code: 0, or 1 for a failure or a missed condition.

    Args:
        args: From ``rtf.build_parser``.

    Raises:
        InputError: An option of another mode, or nothing to measure.
    """
    for name in ("compare", "report", "html"):
        if getattr(args, name):
            raise UsageError(f"--{name} does not go with --stream; it has --json and --markdown")
    with command.usage():
        conditions = [comparison.parse_condition(text) for text in args.conditions]
    if args.from_json:
        result = report.read(args.from_json, SCHEMA, SCHEMA_FILE)
    else:
        result = run(args, show_status)
        report.validate(result, schema=SCHEMA, file=SCHEMA_FILE)
    if args.json:
        write_whole(args.json, json.dumps(result, indent=1, allow_nan=False) + "\n")
    if args.markdown:
        write_whole(args.markdown, to_markdown(result))
    for title, header, rows in sections(result):
        tables.show(title, header, rows)
    for line in report.remarks(result):
        print(line)
    missed = [line for condition in conditions for line in comparison.check(condition, result)]
    for line in missed:
        command.say(f"not met: {line}")
    failed = all(row["status"] == "failed" for row in result["rows"])
    return command.EXIT_FAILED if missed or failed else command.EXIT_DONE
