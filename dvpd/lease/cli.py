"""The commands of `dvpd.lease`. Those that run on the lent machine import no torch: they are short."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ..runtime import command
from ..runtime.errors import InputError, UsageError
from ..runtime.files import write_whole
from .parts import MIB, SETUP_NAME, check_call, pack, receive
from .plan import load_plan
from .publish import RESULT, collect, deliver
from .rows import ROWS_NAME, is_over, last_of, read_rows, report, unfinished
from .work import LEASE_NAME, Work

WORK = "/tmp/dvpd-lease"
ASSUMED_S = 120.0  # since the ask, where the clocks of both machines do not agree
SOURCES = ("dvpd", "runtime", "export", "benchmarks", "engines", "tests", "pyproject.toml")
STOP_WAIT_S = 30.0
FREE_WAIT_S = 3.0  # a supervisor that was killed may still be on its way out


def start(args: argparse.Namespace) -> int:
    """Take call 0 and leave a supervisor running; on a lease that had begun, go on with it."""
    work = Work(args.work)
    if work.started:
        if time.time() >= work.deadline:
            raise InputError(f"the lease in {work.root} is over; choose another --work")
        if not _free(work, FREE_WAIT_S):
            print(f"runs already; {status(work)}")
            return 0
    else:
        prepare(args, work)
        work = Work(args.work)
    work.stop.unlink(missing_ok=True)
    path = os.pathsep.join([str(work.site), str(work.code)])
    env = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # mixing has a process for each core
        env.setdefault(name, "1")
    env.setdefault(
        "PYTORCH_NVML_BASED_CUDA_CHECK", "1"
    )  # looking for a GPU must not open it: forks
    argv = [sys.executable, "-m", "dvpd.lease", "supervise", "--work", str(work.root)]
    with (work.logs / "supervisor.log").open("ab") as log:
        # The shell is gone at once: the supervisor is nobody's child, in a session of its own.
        subprocess.run(
            ["sh", "-c", '"$@" &', "sh", *argv], cwd=work.code, env=env, check=True,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    print(f"started; {work.deadline - time.time():.0f} s are left")
    return 0


def _free(work: Work, patience_s: float) -> bool:
    """Whether no supervisor runs, or none does after a while."""
    until = time.monotonic() + patience_s
    while True:
        with work.locked() as lock:
            if lock is not None:
                return True
        if time.monotonic() >= until:
            return False
        time.sleep(0.1)


def prepare(args: argparse.Namespace, work: Work) -> None:
    """Copy the checkout, unpack what call 0 brought; the lease's own file comes last."""
    if args.started is None:
        raise UsageError("--started is missing; expected when the machine was asked for (date +%s)")
    check_call(args.call)
    with tarfile.open(args.call / SETUP_NAME) as tar:
        tar.extractall(work.setup, filter="data")
    for wheel in sorted((work.setup / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(work.site)
    root = Path(__file__).resolve().parents[2]
    for name in SOURCES:
        if (root / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(root / name, work.code / name, ignore=ignored, dirs_exist_ok=True)
        elif (root / name).is_file():
            shutil.copyfile(root / name, work.code / name)
    _, parts = receive(args.call, work.inbox)
    now, started = time.time(), args.started
    if not 0.0 <= now - started < 60.0 * args.minutes:
        command.say(
            f"--started {started:.0f} is {now - started:.0f} s ago by this machine's clock; "
            f"{ASSUMED_S:.0f} s are taken"
        )
        started = now - min(ASSUMED_S, 12.0 * args.minutes)
    lease = {"started": started, "minutes": args.minutes, "device": args.device, "parts": parts}
    write_whole(work.root / LEASE_NAME, json.dumps(lease).encode())


def feed(args: argparse.Namespace) -> int:
    """Take a part of the data."""
    work = Work(args.work)
    taken, parts = receive(args.call, work.inbox)
    print(f"took {', '.join(taken) or 'nothing'} of {len(parts)} parts; {status(work)}")
    return 0


def status(work: Work) -> str:
    """The lease in a line."""
    if not work.started:
        return f"no lease in {work.root}"
    rows = read_rows(work.rows)
    words = [f"{time.time() - work.lease['started']:.0f} of {60 * work.lease['minutes']:.0f} s"]
    with work.locked() as lock:
        alive = lock is None
    running = [name for name, _ in unfinished(rows) if name != "supervisor"]
    if is_over(rows):
        words.append("ended")
    elif alive or time.time() - (work.root / LEASE_NAME).stat().st_mtime < 5.0:
        words.append(", ".join(running) or "starting")
    else:
        lines = (work.logs / "supervisor.log").read_text(errors="replace").splitlines()
        words.append(f"NOT RUNNING ({' '.join(lines[-1:])})")
    bad = [r for r in rows if r["event"] == "end" and r.get("how", "ok") not in ("ok", "stopped")]
    words += [f"{row['phase']} {row['how']}" for row in bad[-3:]]
    if saved := last_of(rows, "train", "saved"):
        words.append(f"{saved['model']} step {saved['step']}, {saved['audio_hours']:.2f} h saved")
    return "; ".join(words)


def poll(args: argparse.Namespace) -> int:
    """Copy what is new into the folder that comes back, after a while."""
    work = Work(args.work)
    until = time.monotonic() + args.wait
    while time.monotonic() < until and not is_over(read_rows(work.rows)):
        time.sleep(min(0.2, max(until - time.monotonic(), 0.0)))
    names = deliver(work.published, args.out, args.files, int(args.total_mib * MIB), args.again)
    print(f"{status(work)}; brings {', '.join(names) or 'nothing new'}")
    return 0


def stop(args: argparse.Namespace) -> int:
    """End the lease: states are saved and published."""
    work = Work(args.work)
    if work.started:
        work.stop.touch()
        _free(work, STOP_WAIT_S)
    print(status(work))
    return 0


def _begun(root: Path) -> Work:
    work = Work(root)
    if not work.started:
        raise InputError(f"no lease in {work.root}: python -m dvpd.lease start begins one")
    return work


def supervise(args: argparse.Namespace) -> int:
    """What `start` leaves running."""
    work = _begun(args.work)
    with work.locked() as lock:
        if lock is None:
            command.say("this lease has a supervisor already")
            return 1
        from .supervisor import supervise as run  # behind the lock: torch takes seconds to come

        return run(work, lock)


def phase(args: argparse.Namespace) -> int:
    """A phase as a program of its own."""
    work = _begun(args.work)
    try:
        words = json.loads(args.words)
    except ValueError as error:
        raise UsageError(f"{args.words!r} is no JSON: {error}") from None
    from .supervisor import run_phase

    run_phase(work, args.name, words)
    return 0


def pack_calls(args: argparse.Namespace) -> int:
    """Write the folders that the calls carry, and print the calls."""
    here = {
        name: str(path) for name in ("data", "wheels", "cache") if (path := getattr(args, name))
    }
    plan = load_plan(args.plan, here)
    calls = pack(plan, args.out)
    for call in calls:
        size = sum(p.stat().st_size for p in call.iterdir())
        print(f"{call}  {size / MIB:.1f} MiB")
    minutes = f"{plan.minutes:g}"
    words = "python3 -m dvpd.lease"
    print(f"""
Every call takes the checkout along, {args.out} carried in it (let git ignore it). RESULTS is the
folder there that comes back; UNIX_TIME is when the machine was asked for (date +%s, at home), written
out. Calls are less than the machine's idle limit apart.

1. with {calls[0]}:
   {words} start {calls[0]} --started UNIX_TIME --minutes {minutes}""")
    for i, call in enumerate(calls[1:], 2):
        print(f"{i}. with {call}:\n   {words} feed {call} && {words} poll --out RESULTS --files 2")
    print(f"""{len(calls) + 1}. again and again, until it says "ended":
   {words} poll --out RESULTS --wait 20
   and at home after each:  python -m dvpd.lease collect FILES_THAT_CAME_BACK --into runs/lease
{len(calls) + 2}. at the end:
   {words} poll --out RESULTS --again
Where a part cannot be carried, go on: training takes the parts that are there. If the supervisor is
said to be NOT RUNNING, make call 1 again.""")
    return 0


def collect_pieces(args: argparse.Namespace) -> int:
    """Join what came back; says what is whole, and where the time went."""
    for source in args.sources:
        if not source.is_dir():
            raise InputError(f"{source}: not a folder; give those that poll has filled")
    found = collect(args.sources, args.into)
    if not found and not args.quiet:
        command.say("nothing of a lease in these folders yet; give those that poll has filled")
    for stream, entry in sorted(found.items()):
        text = f"{stream}: publication {entry['number']}" if entry["number"] else f"{stream}: none"
        if entry["number"] != entry["newest"]:
            text += f"; {entry['newest']} lacks {len(entry['missing'])} pieces"
        print(text)
    whole = bool(found.get(RESULT, {}).get("number"))
    if whole and not args.quiet:
        print(report(read_rows(args.into / RESULT / ROWS_NAME)))
    return 0 if whole else 1


def rehearse(args: argparse.Namespace) -> int:
    """Make all calls of a lease on this machine, in their order."""
    if args.into.exists():
        raise InputError(f"{args.into} is there already; choose another folder")
    args.into.mkdir(parents=True)
    work, here = args.into / "machine", ["--work", str(args.into / "machine")]
    calls = sorted(args.calls.glob("call-*"), key=lambda p: int(p.name[5:]))
    if not calls:
        raise InputError(f"{args.calls} has no call-0; expected a folder of dvpd.lease pack")
    words = ["--started", str(time.time()), "--minutes", str(args.minutes)]
    main(["start", str(calls[0]), *words, "--device", args.device, *here])
    for call in calls[1:]:
        main(["feed", str(call), *here])
    limits = ["--files", str(args.files), "--total-mib", str(args.total_mib)]
    count = 0
    while True:
        over = is_over(read_rows(Work(work).rows)) or time.time() > Work(work).deadline
        came = args.into / f"came-{count:03d}"
        wait = [] if over else ["--wait", str(args.minutes * 60.0 / 45.0)]  # 20 s in 15 minutes
        main(["poll", "--out", str(came), *wait, *limits, *here])
        arrived = any(came.iterdir())
        main(["collect", str(came), "--into", str(args.into / "home"), "--quiet"])
        shutil.rmtree(came)
        count += 1
        if over and not arrived:
            break
    main(["stop", *here])
    print(report(read_rows(args.into / "home" / RESULT / ROWS_NAME)))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="dvpd.lease", description="Train on a machine that is lent for a short time."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, call: object, text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text)
        one.set_defaults(run=call)
        return one

    one = add("pack", pack_calls, "at home: write the folders to carry, print the calls")
    one.add_argument("plan", type=Path, help="TOML file; keys: dvpd/lease/plan.py")
    one.add_argument("out", type=Path, help="folder to write")
    for name, text in (
        ("data", "with speech/, noise/ and, if there, rir/"),
        ("wheels", "with wheels of what the machine lacks"),
        ("cache", "compile caches that an earlier lease brought back: INTO/cache of collect"),
    ):
        one.add_argument(
            f"--{name}", type=Path, metavar="DIR", help=f"{text}; instead of the plan's"
        )
    one = add("collect", collect_pieces, "at home: join what came back")
    one.add_argument("sources", type=Path, nargs="+", help="folders of files that came back")
    one.add_argument("--into", type=Path, required=True, help="folder of all results")
    one.add_argument("--quiet", action="store_true", help="do not say where the time went")
    one = add("rehearse", rehearse, "at home: make all calls on this machine")
    one.add_argument("calls", type=Path, help="folder from pack")
    one.add_argument("--into", type=Path, required=True, help="folder to write")
    one.add_argument(
        "--minutes", type=command.number(above=True), required=True, help="limits are scaled to it"
    )
    one.add_argument("--device", default="cpu")
    _limits(one)
    there = [
        add("start", start, "there: take call 0, leave it running; goes on after a crash"),
        add("feed", feed, "there: take a part of the data"),
        add("poll", poll, "there: copy what is new into the folder that comes back"),
        add("stop", stop, "there: save, publish, end"),
        add("supervise", supervise, "what start leaves running"),
        add("phase", phase, "one phase, for the supervisor"),
    ]
    for one in there:
        one.add_argument("--work", type=Path, default=Path(WORK), help=f"folder there ({WORK})")
    one = there[0]
    one.add_argument("call", type=Path, help="folder call-0")
    one.add_argument(
        "--started", type=command.number(), help="when the machine was asked for (date +%%s)"
    )
    one.add_argument(
        "--minutes",
        type=command.number(above=True),
        default=15.0,
        help="of the lease, from then on",
    )
    one.add_argument("--device", default="auto", help="cpu, cuda or auto")
    there[1].add_argument("call", type=Path, help="folder call-1, call-2 ...")
    one = there[2]
    one.add_argument("--out", type=Path, required=True, help="folder that comes back")
    one.add_argument(
        "--wait", type=command.number(), default=0.0, help="wait first, unless it ends (s)"
    )
    one.add_argument("--again", action="store_true", help="the newest, also if delivered before")
    _limits(one)
    there[5].add_argument("name")
    there[5].add_argument("words", help="JSON")
    return parser


def _limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--files", type=command.whole(1), default=8, help="that come back at most")
    parser.add_argument(
        "--total-mib", type=command.number(above=True), default=64.0, help="of them together (MiB)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command.run(build_parser(), argv, _run)


def _run(args: argparse.Namespace) -> int:
    try:
        return int(args.run(args))
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        raise InputError(str(error)) from error
