"""One training step that the host only starts, and the ways to run it.

`Step` is the step itself: forward, backward, clip, AdamW, average. Whether it was finite is decided
where it runs, so that it can be a CUDA graph. `FastStep` runs it on the highest rung of a ladder that
works on the machine: compiled regions in one CUDA graph, one CUDA graph, compiled regions, or call by
call. A rung that fails, or that computes something else than the plain step, is left with its reason
in the log.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config.train import TrainConfig
from ..fanc import FANCDecoder, FANCEncoder, UniformDecoder, UniformEncoder
from ..interaction import Interaction
from ..lisa import LISA, DualPath
from ..losses import PredictiveTerms, weighted_sum
from ..model import DVPD
from ..odam import ODAM
from ..unet import Down, Up
from .ema import Ema
from .objective import Draws, Objective
from .parallel import Team

logger = logging.getLogger("dvpd.train")

# What is compiled, each by itself: equal blocks share their code, so that it takes a minute or two
# where the whole step takes many.
REGIONS = (
    ODAM, LISA, DualPath, Down, Up, FANCEncoder, FANCDecoder, UniformEncoder, UniformDecoder,
    Interaction, PredictiveTerms,
)  # fmt: skip
RECOMPILE_LIMIT = 64  # of one forward function: widths, levels and branches
WARM_UP_STEPS = 3  # before a capture: libraries choose their algorithms and allocate
AHEAD = 2  # steps that may wait on the device while the host goes on
TOLERANCE = {"fp32": 2e-3, "bf16": 5e-2}  # of loss and gradient norm, against the plain step


def gather_norms(model: nn.Module) -> Tensor:
    """Lay the running statistics of all batch norms into one tensor; they become views of it.

    One copy then keeps them, and one takes them back.

    Args:
        model: On its device.

    Returns:
        [n] float32; empty where the model has no batch norm.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    places = [(m, name) for m in norms for name in ("running_mean", "running_var")]
    if not places:
        return torch.zeros(0, device=next(model.parameters()).device)
    flat = torch.cat([getattr(m, name) for m, name in places])
    first = 0
    for module, name in places:
        size = getattr(module, name).numel()
        setattr(module, name, flat[first : first + size])
        first += size
    return flat


class Step:
    """One optimiser step on tensors of the device; a non-finite one changes nothing.

    The host reads nothing, and no tensor is made from host data. Figures are written to a row of
    ``history``, which `read` fetches.

    Attributes:
        names: Of the figures: the loss terms, "loss", "grad_norm" and "skipped".
        bad: 1.0 where the last step was not finite.
        hold: 1.0 lets a step change nothing, as if it were not finite.
        lr: Learning rate, 0-dim.
    """

    def __init__(
        self,
        objective: Callable[..., dict[str, Tensor]],
        model: DVPD,
        optimizer: torch.optim.Optimizer,
        ema: Ema[DVPD],
        team: Team,
        config: TrainConfig,
        rows: int,
    ) -> None:
        """Take over the parts of a training.

        Args:
            objective: An `Objective`, or what a team wrapped around it.
            model: The networks in training.
            optimizer: AdamW, fused.
            ema: Their average.
            team: The processes that train together.
            config: Weights and limits.
            rows: Steps whose figures are kept until they are read.
        """
        self.objective, self.model, self.optimizer, self.ema = objective, model, optimizer, ema
        self.team, self.config, self.rows = team, config, rows
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.norms = gather_norms(model)
        self.norms_before = self.norms.clone()
        device = team.device
        self.bad, self.hold, self.lr = (torch.zeros((), device=device) for _ in range(3))
        self.names: list[str] = []
        self.history = torch.zeros(0, device=device)
        self.row = torch.zeros(1, dtype=torch.int64, device=device)
        self.bind()

    def bind(self) -> None:
        """Let the optimiser use this step's tensors; needed anew after it loaded a state."""
        self.optimizer.found_inf = self.bad  # type: ignore[attr-defined]  # what torch's GradScaler sets
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr

    def __call__(self, noisy: Tensor, clean: Tensor, draws: Draws) -> None:
        """Do the step.

        Args:
            noisy: This process's waveforms [B, L], on the device.
            clean: [B, L].
            draws: From `Objective.draw`.
        """
        with torch.no_grad():
            self.norms_before.copy_(self.norms)
        self.optimizer.zero_grad(set_to_none=True)
        terms = self.objective(noisy, clean, draws)
        loss = weighted_sum(self.config, terms)
        self.team.backward(loss)
        limit = self.config.grad_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        with torch.no_grad():
            figures = self.team.mean(torch.stack([*terms.values(), loss, norm]).double())
            finite = torch.isfinite(figures[-2:]).all()
            self.bad.copy_(torch.maximum(self.hold, 1.0 - finite.float()))
            self.optimizer.step()
            self.norms.copy_(torch.where(self.bad > 0.0, self.norms_before, self.norms))
            self.ema.update(self.model, self.bad)
            figures = torch.cat([figures, self.bad.double()[None]])
            if not self.names:
                self.names = [*terms, "loss", "grad_norm", "skipped"]
                self.history = figures.new_zeros(self.rows, len(self.names))
            self.history.index_copy_(0, self.row, figures[None])
            self.row.add_(1).remainder_(self.rows)

    def read(self, count: int) -> list[dict[str, float]]:
        """Figures of the last ``count`` steps since the last reading; waits for the device."""
        values = self.history[:count].tolist()
        self.row.zero_()
        return [dict(zip(self.names, row, strict=True)) for row in values]

    def give_up(self) -> None:
        """Take back what an attempt left that raised in the middle."""
        with torch.no_grad():
            self.norms.copy_(self.norms_before)
        self.optimizer.zero_grad(set_to_none=True)
        self.row.zero_()


@dataclass(frozen=True)
class Rung:
    """A way to run the step.

    Attributes:
        compiled: Whether the regions are compiled.
        graph: Whether the step is captured.
    """

    compiled: bool
    graph: bool

    def __str__(self) -> str:
        """In words."""
        words = ["compiled regions"] * self.compiled + ["one CUDA graph"] * self.graph
        return " in ".join(words) or "call by call"


def ladder(compiled: bool, graph: bool) -> list[Rung]:
    """The rungs to try, the best first; the last is the plain step.

    Args:
        compiled: Whether compilation is asked for.
        graph: Whether the step can be a CUDA graph here.
    """
    return [
        Rung(c, g)
        for c in ((True, False) if compiled else (False,))
        for g in ((True, False) if graph else (False,))
    ]


def compile_regions(module: nn.Module, **options: Any) -> list[nn.Module]:
    """Compile each of ``REGIONS`` in ``module`` by itself, at its first call; returns them.

    Args:
        module: The objective.
        options: Of ``torch.compile``.
    """
    limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    torch._dynamo.config.recompile_limit = limit
    regions: list[nn.Module] = [m for m in module.modules() if isinstance(m, REGIONS)]
    for region in regions:
        region.compile(dynamic=False, **options)
    return regions


def capture_cuda(function: Callable[[], None]) -> Callable[[], None]:
    """Record what ``function`` does on the GPU; returns what replays it.

    Args:
        function: Reads and writes tensors that stay where they are.
    """
    torch.cuda.empty_cache()  # of the steps before, on another stream
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP_STEPS):
            function()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # Thread-local: the loader's thread pins memory meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        function()
    return graph.replay


class FastStep:
    """Runs a `Step` from inputs that stay in place, on the highest rung that works.

    Attributes:
        step: The step.
        rung: Where it runs; None before the first step.
        reasons: Why each higher rung was left.
    """

    def __init__(
        self,
        step: Step,
        objective: Objective,
        rungs: Sequence[Rung],
        *,
        capture: Callable[[Callable[[], None]], Callable[[], None]] = capture_cuda,
        options: dict[str, Any] | None = None,
    ) -> None:
        """Keep the parts; compiling and capturing happen at the first step.

        Args:
            step: The step.
            objective: Its objective, whose regions are compiled.
            rungs: From `ladder`.
            capture: Records a function on tensors in place and returns what replays it.
            options: Of ``torch.compile``.
        """
        self.step, self.objective = step, objective
        self.rungs = list(rungs)
        self.capture, self.options = capture, options or {}
        self.reasons: list[tuple[Rung, str]] = []
        self.rung: Rung | None = None
        self._run: Callable[[], None] | None = None
        self._inputs: list[Tensor] = []
        self._waiting: deque[Any] = deque()
        self._compiled: list[nn.Module] = []

    def reset(self) -> None:
        """Forget what was captured: the optimiser has other tensors now."""
        self._take_down()
        self.rung = None
        self.step.bind()

    def __call__(self, noisy: Tensor, clean: Tensor, draws: Draws, lr: float) -> None:
        """Start one step.

        Args:
            noisy: This process's waveforms [B, L]; pinned memory is copied without waiting.
            clean: [B, L].
            draws: From `Objective.draw`.
            lr: Learning rate.
        """
        device = self.step.team.device
        self.step.lr.fill_(lr)
        self.prepare(noisy, clean, draws)
        self._limit_ahead()
        if self._run is None:
            noisy, clean = (x.to(device, non_blocking=True) for x in (noisy, clean))
            self.step(noisy, clean, draws)
        else:
            for place, value in zip(self._inputs, _flat(noisy, clean, draws), strict=True):
                place.copy_(value, non_blocking=True)
            self._run()
        if device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
            self._waiting.append(event)

    def prepare(self, noisy: Tensor, clean: Tensor, draws: Draws) -> None:
        """Find the rung, compiling and capturing, with steps that change nothing.

        Args:
            noisy: Any waveforms of a step's shape [B, L].
            clean: Likewise.
            draws: From `Objective.draw`.
        """
        if self.rung is not None:
            return
        device = self.step.team.device
        with warnings.catch_warnings():
            # the compiler looks at every input, at the output of the block before it, too
            warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor")
            # The tracer makes an instance of every autograd function that it meets.
            warnings.filterwarnings("ignore", message=".*should not be instantiated")
            self._climb(noisy.to(device), clean.to(device), draws)

    def _limit_ahead(self) -> None:
        """Wait until few steps are left: each that waits keeps its batch in pinned memory."""
        while len(self._waiting) >= AHEAD:
            self._waiting.popleft().synchronize()

    def _climb(self, noisy: Tensor, clean: Tensor, draws: Draws) -> None:
        """Find the highest rung that works, with steps that change nothing."""
        *higher, plain = self.rungs
        if higher:
            reference = self._held(lambda: self.step(noisy, clean, draws))
        for rung in higher:
            try:
                self._set_up(rung, noisy, clean, draws)
                run = self._run or (lambda: self.step(noisy, clean, draws))
                self._compare(reference, self._held(run))
            except Exception as error:  # compilers and drivers raise what they like
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                logger.warning("training step: %s does not work here: %s", rung, reason)
                self.reasons.append((rung, reason))
                self._take_down()
                self.step.give_up()
                continue
            self.rung = rung
            break
        else:
            self.rung = plain
        if higher:
            logger.info("training step: %s", self.rung)

    def _set_up(self, rung: Rung, noisy: Tensor, clean: Tensor, draws: Draws) -> None:
        if rung.compiled and not self._compiled:
            self._compiled = compile_regions(self.objective, **self.options)
        if not rung.graph:
            return
        self._inputs = [x.clone() for x in _flat(noisy, clean, draws)]
        places = _restored(self._inputs, draws)
        for group in self.step.optimizer.param_groups:
            group["capturable"] = True
        # torch warns of steps outside a capture: those that warm up are meant
        self.step.optimizer._warned_capturable_if_run_uncaptured = True
        self.step.hold.fill_(1.0)
        self._run = self.capture(lambda: self.step(*places))

    def _take_down(self) -> None:
        self._run, self._inputs = None, []
        for region in self._compiled:
            region._compiled_call_impl = None
        self._compiled = []
        for group in self.step.optimizer.param_groups:
            group["capturable"] = False
        self.step.hold.zero_()

    def _held(self, run: Callable[[], None]) -> dict[str, float]:
        """Figures of a step that changes nothing."""
        self.step.hold.fill_(1.0)
        self.step.row.zero_()
        run()
        figures = self.step.read(1)[0]
        self.step.hold.zero_()
        return figures

    def _compare(self, plain: dict[str, float], mine: dict[str, float]) -> None:
        tolerance = TOLERANCE[self.step.config.precision]
        for name in ("loss", "grad_norm"):
            a, b = plain[name], mine[name]
            if math.isfinite(a) and not abs(a - b) <= tolerance * abs(a):
                raise ValueError(f"{name} is {b:.6g}; the plain step's is {a:.6g}")


def _flat(noisy: Tensor, clean: Tensor, draws: Draws) -> list[Tensor]:
    tensors = [noisy, clean]
    part: Any  # a tensor, a tuple of them, or None
    for part in draws:
        if part is not None:
            tensors += part if isinstance(part, tuple) else [part]
    return tensors


def _restored(tensors: list[Tensor], like: Draws) -> tuple[Tensor, Tensor, Draws]:
    """The other direction of `_flat`."""
    noisy, clean, *rest = tensors
    left = iter(rest)

    def part_like(part: Any) -> Any:
        if isinstance(part, tuple):
            return tuple(next(left) for _ in part)
        return None if part is None else next(left)

    return noisy, clean, Draws(*map(part_like, like))
