"""A job on a Ray cluster: its tasks go through Ray Data to actors with an open engine each.

Only names travel: an actor reads the recording and writes the output where every node sees them,
a shared file system or object storage. This process alone has the journal, claims, and gives
outputs their names. So whatever Ray repeats when an actor or a node dies is done once.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import logging
import os
import pickle
import queue
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..backends.choose import cpu_quota
from ..command import explain
from ..errors import BackendError, InputError, one_line
from ..files import sha256_file
from ..progress import Progress
from . import places
from .journal import POISON_ATTEMPTS
from .run import Run
from .worker import Engine, Task, answer, hung, settle, trace_of

_T = TypeVar("_T")
LOCAL, AUTO = "local", "auto"
PACKAGE = "dvpd"
_CONNECT_S, _HEALTH_S, _NODES_S, _WAIT_S = 5.0, 90.0, 120.0, 0.5
_STORE_BYTES = 128 << 20  # of a local cluster: names need little
_MOST_A_TASK = 16  # recordings; what an actor that dies has done of them is done again
_A_PASS = (20_000, 1_000)  # recordings that are claimed at a time: at least, and for each actor
# Ray sends usage statistics unless it is told not to; its core prints to stderr what it mends itself.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
# After Ctrl-C a thread of Ray Data that still runs would start another cluster.
_QUIET["RAY_ENABLE_AUTO_CONNECT"] = "0"


@dataclass(frozen=True)
class Actors:
    """How the work is spread.

    Attributes:
        n: Actors.
        cpus: CPUs of each.
        gpus: GPUs of each.
    """

    n: int
    cpus: int
    gpus: int


def wants_gpu(engine: Engine) -> bool:
    """Whether the options name a GPU: then each actor gets one.

    Args:
        engine: The options.
    """
    on_gpu = engine.device.startswith(("cuda", "gpu", "tensorrt", "rtx"))
    return on_gpu or engine.backend.startswith("tensorrt")


@contextlib.contextmanager
def joined(address: str) -> Iterator[Any]:
    """Connect to a cluster, or start one on this machine.

    Args:
        address: "local", "auto" (the cluster that this machine belongs to) or HOST:PORT.

    Yields:
        The package ``ray``, connected. Meanwhile ``sys.stdout`` is ``sys.stderr``.

    Raises:
        InputError: Nothing answers there, or it is no cluster that can be used.
    """
    check_address(address)
    if address not in (LOCAL, AUTO):
        _check_answers(address)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    ray = importlib.import_module("ray")
    importlib.import_module("ray.data")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        options |= {"num_cpus": cpu_quota(), "object_store_memory": _STORE_BYTES}
        options |= {"include_dashboard": False}
    ours = signal.getsignal(signal.SIGTERM)
    with contextlib.redirect_stdout(sys.stderr):  # Ray tells of its troubles there, at any time
        try:
            try:
                ray.init(address=address, **options)
            except (OSError, RuntimeError, ValueError) as error:
                raise InputError(f"--ray {address}: {one_line(error)}") from None
            with contextlib.suppress(ValueError):  # not the main thread, where none was set
                signal.signal(signal.SIGTERM, ours)  # Ray takes it
            yield ray
        finally:
            ray.shutdown()


def check_address(address: str) -> None:
    """Whether an address has the form of one.

    Args:
        address: As of ``joined``.

    Raises:
        InputError: It has not.
    """
    host, _, port = address.rpartition(":")
    right = bool(host) and "/" not in host and port.isdigit() and 0 < int(port) < 1 << 16
    if address not in (LOCAL, AUTO) and not right:
        raise InputError(
            f"--ray {address}: expected local, auto or HOST:PORT, such as 10.0.0.1:6379; start the "
            "job on a machine of the cluster"
        )


def _check_answers(address: str) -> None:
    """Whether a cluster answers, in bounded time: Ray itself would try for minutes, or abort.

    Raises:
        InputError: None does.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise InputError(
            f"--ray {address}: nothing answers there ({error.strerror or error}); is "
            f"`ray start --head --port {port}` running, and the port open?"
        ) from None
    importlib.import_module("ray")
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        process = subprocess.run(
            command, timeout=_HEALTH_S, stdin=subprocess.DEVNULL, capture_output=True
        )
        well = process.returncode == 0
    except subprocess.TimeoutExpired:
        well = False
    if not well:
        raise InputError(
            f"--ray {address}: what answers there is no Ray cluster of this version, or takes more "
            f"than {_HEALTH_S:g} s to say so"
        )


def spread(ray: Any, engine: Engine, n: int | None) -> Actors:
    """As many actors as the cluster has room for, unless a number is given.

    Args:
        ray: Connected.
        engine: Threads and device.
        n: The number.

    Raises:
        InputError: The cluster has no room for one.
    """
    cpus, gpus = engine.threads or 1, int(wants_gpu(engine))
    has = ray.cluster_resources()
    room = int(has.get("CPU", 0)) // cpus
    if gpus:
        room = min(room, int(has.get("GPU", 0)))
    if not room and n is None:
        what = f"{cpus} CPUs" + (" and a GPU" if gpus else "")
        raise InputError(
            f"the cluster has {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs; a process "
            f"needs {what}: fewer --threads, or --device cpu"
        )
    return Actors(n or room, cpus, gpus)


def check_nodes(ray: Any, engine: Engine, folders: list[Path]) -> None:
    """Whether every node has the package, the model and the folders.

    Args:
        ray: Connected.
        engine: What will be opened.
        folders: What every node must see.

    Raises:
        InputError: One lacks something, by its address.
    """
    version = importlib.import_module("dvpd").__version__
    manifest = engine.folder / "manifest.json"
    needed = (PACKAGE, version, str(manifest), sha256_file(manifest))
    local = [str(folder) for folder in folders if not places.is_remote(folder)]
    urls = len(local) < len(folders)

    def look() -> str | None:  # a function within one travels whole: a node may lack the package
        import hashlib
        import importlib
        import importlib.util
        import os

        package, version, manifest, sha256 = needed
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is missing: install it there, with the same extras"
        there = importlib.import_module(package).__version__
        if there != version:
            return f"has {package} {there}, this machine has {version}: install the same"
        if urls and importlib.util.find_spec("upath") is None:
            return f"cannot read URLs: pip install '{package}[cloud]' there"
        for folder in local:
            if not os.path.isdir(folder):
                return f"{folder} is not there: every node must see it, or use URLs of a storage"
        try:
            with open(manifest, "rb") as stream:
                if hashlib.sha256(stream.read()).hexdigest() != sha256:
                    return f"{manifest} is of another model than here"
        except OSError as error:
            return f"{manifest}: {error.strerror}: the model must be at the same path"
        return None

    affinity = importlib.import_module("ray.util.scheduling_strategies")
    looks = {}
    for node in ray.nodes():
        if node["Alive"]:
            where = affinity.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=where)(look)
            looks[node["NodeManagerAddress"], node["NodeID"]] = task.remote()
    limit = time.monotonic() + _NODES_S
    for (address, _), found in looks.items():
        try:
            said = ray.get(found, timeout=max(limit - time.monotonic(), 1.0))
        except Exception as error:  # Ray has dozens; each means that this node is of no use
            said = f"does not work ({one_line(error)[:300]})"
        if said is not None:
            raise InputError(f"the cluster's node {address}: {said}")


class _Tries:
    """An actor beside this process that counts how often a task was begun and ended.

    It tells an actor that was started anew what happened to the one before.
    """

    def __init__(self) -> None:
        self._counts: dict[int, tuple[list[str], int]] = {}

    def begin(self, number: int, staged: str) -> tuple[list[str], int]:
        """What was begun before, and how much of it was ended."""
        begun, ended = self._counts.get(number, ([], 0))
        self._counts[number] = ([*begun, staged], ended)
        return begun, ended

    def end(self, number: int) -> None:
        begun, ended = self._counts[number]
        self._counts[number] = (begun, ended + 1)


class _Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


class Enhance:
    """What an actor runs: it opens an engine once, and answers tasks."""

    def __init__(self, engine: Engine, tries: Any) -> None:
        """Open the engine; what is wrong with it is told with the first task.

        Args:
            engine: What to open.
            tries: The actor that counts.
        """
        self._ray = importlib.import_module("ray")
        self._engine, self._tries = engine, tries
        self._listener = _Listener()
        log = logging.getLogger("dvpd")
        log.addHandler(self._listener)
        log.setLevel(logging.INFO)
        self._broken: str | None = None
        try:
            self._enhancer = engine.open()
            settle()
        except Exception as error:
            self._broken = f"node {self._ray.util.get_node_ip_address()}: {explain(error)}"

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Answer some tasks.

        Args:
            batch: "task": pickles of a number and a ``Task``.

        Returns:
            "answer": pickles of the number, what was said meanwhile, and the message.
        """
        answers = []
        for data in batch["task"]:
            number, task = pickle.loads(data)
            message = ("broken", self._broken) if self._broken else self._answer(number, task)
            said, self._listener.said = self._listener.said, []
            answers.append(pickle.dumps((number, said, message)))
        return {"answer": answers}

    def _answer(self, number: int, task: Task) -> tuple[Any, ...]:
        # a name of its own: what a lost node may still write is another file
        staged = task.staged.with_name(f"{secrets.token_hex(4)}-{task.staged.name}")
        begun, ended = self._ray.get(self._tries.begin.remote(number, str(staged)))
        if (count := len(begun) - ended) >= POISON_ATTEMPTS:
            traces = (hung(trace_of(Path(path))) for path in reversed(begun))
            said = next((text for text in traces if text), "the process that worked on it ended")
            return "poison", f"{task.job.source}: {said}, {count} times"
        message = answer(replace(task, staged=staged), self._enhancer, self._engine, _nobody)
        self._ray.get(self._tries.end.remote(number))
        return message


def _nobody(message: tuple[Any, ...]) -> None:
    """Parts of a recording are not told."""


def work_there(
    run: Run, ray: Any, engine: Engine, n: int | None, folders: list[Path], progress: Progress
) -> int:
    """Do the jobs of a run on a cluster.

    Args:
        run: The run.
        ray: Connected.
        engine: What each actor opens.
        n: How many actors; None: as many as there is room for.
        folders: What every node must see.
        progress: Of the whole.

    Returns:
        How many actors.

    Raises:
        InputError: A node, or the cluster, cannot do it.
        BackendError: No engine can be opened, or the cluster is lost.
    """
    actors = spread(ray, engine, n)
    engine = replace(engine, threads=actors.cpus, folder=_absolute(engine.folder))
    if engine.dnsmos is not None:
        models = _absolute(engine.dnsmos)
        engine, folders = replace(engine, dnsmos=models), [*folders, models]
    if engine.device == "auto" and not actors.gpus:
        engine = replace(engine, device="cpu")
    check_nodes(ray, engine, [_absolute(folder) for folder in folders])
    n_pass = max(_A_PASS[0], _A_PASS[1] * actors.n)
    known: set[str] = set()
    with run.open():
        run.longest_first()
        while True:
            tasks = list(itertools.islice(iter(run.next_task, None), n_pass))
            if tasks:
                _pass(run, ray, engine, actors, tasks, progress, known)
            elif run.stopped or not run.look_again():
                break
            else:
                time.sleep(_WAIT_S)
                run.tick(progress)
    return actors.n


def _absolute(path: Path) -> Path:
    """Actors do not work in this process's folder."""
    return path if places.is_remote(path) else Path(os.path.abspath(path))


def _packed(number: int, task: Task) -> bytes:
    job = replace(task.job, source=_absolute(task.job.source), target=_absolute(task.job.target))
    return pickle.dumps((number, Task(job, _absolute(task.staged))))


def _pass(
    run: Run, ray: Any, engine: Engine, actors: Actors, tasks: list[Task], progress: Progress,
    known: set[str],
) -> None:  # fmt: skip
    waiting = dict(enumerate(tasks))
    heard: queue.Queue[Any] = queue.Queue()
    stream = _stream(ray, engine, actors, waiting)
    threading.Thread(target=_listen, args=(stream, heard), daemon=True).start()
    try:
        while waiting and not run.stopped:
            run.tick(progress)
            try:
                row = heard.get(timeout=_WAIT_S)
            except queue.Empty:
                continue
            if not isinstance(row, bytes):
                raise BackendError(f"the cluster ended the job: {row}; run again with --resume")
            number, said, message = pickle.loads(row)
            for text in said:
                if text not in known and len(known) < 100:  # every engine says the same
                    known.add(text)
                    run.say(text)
            if message[0] == "broken":
                raise BackendError(message[1])
            if (task := waiting.pop(number, None)) is not None:
                run.hear(task, message)
    finally:
        run.n_left += len(waiting)
    run.name_made()
    run.tick(progress)


def dealt(items: Sequence[_T], n: int) -> list[_T]:
    """Items as if dealt to ``n`` players in turn, player by player.

    Blocks are neighbours, and the largest recordings come first: one actor would get them all.

    Args:
        items: The largest first.
        n: Blocks that the result is cut into.
    """
    return [item for first in range(n) for item in items[first::n]]


def _stream(ray: Any, engine: Engine, actors: Actors, tasks: dict[int, Task]) -> Any:
    """The dataset of the tasks' answers; nothing runs yet."""
    context = ray.data.DataContext.get_current()
    settings = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "execution_no_progress_timeout_s": -1,  # a recording may take hours; we watch ourselves
        "max_consecutive_actor_init_deaths": 10,  # nodes that go while an engine is opened
    }
    for name, value in settings.items():
        if hasattr(context, name):  # not every version of Ray has all of them
            setattr(context, name, value)
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    n_blocks = -(-len(tasks) // min(max(len(tasks) // (20 * actors.n), 1), _MOST_A_TASK))
    rows = [{"task": _packed(*item)} for item in dealt(list(tasks.items()), n_blocks)]
    here = importlib.import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    tries = ray.remote(num_cpus=0, scheduling_strategy=here)(_Tries).remote()
    return ray.data.from_items(rows, override_num_blocks=n_blocks).map_batches(
        Enhance,
        batch_size=None,
        fn_constructor_args=(engine, tries),
        compute=ray.data.ActorPoolStrategy(size=min(actors.n, n_blocks)),
        num_cpus=actors.cpus,
        num_gpus=actors.gpus,
    )


def _listen(stream: Any, heard: queue.Queue[Any]) -> None:
    """Run the dataset in a thread of its own, so that this process can give signs of life."""
    try:
        for row in stream.iter_rows():
            heard.put(row["answer"])
        heard.put("not every task was answered")
    except Exception as error:
        heard.put(one_line(error)[-500:])
