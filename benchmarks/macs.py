"""Parameters, multiply-accumulates, other arithmetic and bytes of a model, counted twice.

    python benchmarks/macs.py                        # every engine folder found
    python benchmarks/macs.py dvpd/configs/base.toml --depth 3 --json costs.json

Three counters: (1) a dispatch counter sees every operator that reaches a kernel of the PyTorch
model; (2) a walk over the ONNX graphs counts from their inferred shapes; the two must agree
exactly for every module and operator, or this command fails; (3) ptflops, which the paper used,
with the difference explained term by term. An engine folder without its checkpoint is counted by
(2) alone; for a checkpoint or a config the graphs are exported for the occasion.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dvpd.benchmarks.common.graph_costs import GraphCosts, engine_costs
from dvpd.benchmarks.common.tables import markdown
from dvpd.runtime import command
from dvpd.runtime.engines import find_checkpoint, find_window_engines
from dvpd.runtime.errors import InputError, ParityError
from dvpd.runtime.files import write_whole
from dvpd.runtime.manifest import MANIFEST_NAME, Manifest
from dvpd.runtime.spec import GRAPH_NAMES, N_FREQS, SamplerSpec, SignalSpec

COUNT_FRAMES = 1000  # 8 s: what does not grow with time is lost in it
PTFLOPS_FRAMES = 256  # ptflops really runs the model: 2 s are enough
SCORE_CALLS = SamplerSpec.n_steps
FRAME_RATE_HZ = SignalSpec().frame_rate_hz

# Paper Table 1: method, parameters (millions), GMAC per second of audio, type (predictive,
# diffusion). As printed there; counted with ptflops.
PAPER_TABLE_1 = (
    ("Conv-TasNet", 3.4, 3.2, "P"),
    ("MANNER", 24.1, 8.7, "P"),
    ("PGUSE-P", 2.3, 5.8, "P"),
    ("CMGAN", 1.8, 31.7, "P"),
    ("MP-SENet", 2.26, 34.58, "P"),
    ("DVPD-P", 0.61, 2.41, "P"),
    ("CDiffuSE", 4.3, 292.4, "D"),
    ("SGMSE+", 65.6, 8000.0, "D"),
    ("DOSE+", 65.9, 310.4, "D"),
    ("StoRM", 55.1, 15800.0, "D+P"),
    ("UNIVERSE++", 42.9, 42.8, "D+P"),
    ("PGUSE", 5.1, 26.3, "D+P"),
    ("DVPD", 1.9, 10.2, "D+P"),
)

Key = tuple[str, str]


@dataclass(frozen=True)
class Counted:
    """What the counters say of one model; all values are for ``n_frames`` frames, batch 1.

    Attributes:
        name: Model name.
        n_frames: T.
        graphs: The walk over the ONNX graphs, "predictive" and "score"; empty where there is
            none.
        calls: The PyTorch counter, likewise (``dvpd.macs.MacCounter``).
        parameters: Trained parameters by branch, with "total".
        parameters_by_module: The same by (branch, module).
        ptflops: By branch, for a call on ``PTFLOPS_FRAMES`` frames: the terms of ptflops' count,
            its total, what the terms leave unexplained, and every product of this counter.
    """

    name: str
    n_frames: int
    graphs: dict[str, GraphCosts]
    calls: dict[str, Any]
    parameters: dict[str, int]
    parameters_by_module: Counter[Key]
    ptflops: dict[str, dict[str, int]]


def differences(counter: Any, graph: GraphCosts) -> list[str]:
    """Where the two counters disagree, one line each; empty if they agree everywhere.

    What depends on weights alone is computed at export and is in no graph: it is left out.

    Args:
        counter: ``dvpd.macs.MacCounter`` of a branch with folded norms.
        graph: The walk over the branch's graph.
    """
    lines = []
    for ours, theirs in (
        (counter.macs_by_module - counter.folded, graph.macs),
        (counter.elementwise - counter.folded_elementwise, graph.elementwise),
    ):
        for module, operator in sorted(set(ours) | set(theirs)):
            a, b = ours[module, operator], theirs[module, operator]
            if a != b:
                lines.append(f"{module or '(top)'}, {operator}: PyTorch {a}, ONNX {b}")
    return lines


def ptflops_terms(branch: Any, inputs: Sequence[Any], counter: Any) -> dict[str, int]:
    """What ptflops counts for a branch, as terms of our own counter.

    ptflops hooks modules and a few functions. It sees convolutions and Linear modules with their
    biases, batch norms (two for each element) and SiLU; it sees neither the ``@`` and ``*``
    operators nor functional calls, so the attention's products, LISA's multiply-adds and all gates
    are missing.

    Args:
        branch: ``nn.Module`` with its norms unfolded, in eval mode.
        inputs: Its arguments. Not on the meta device, whose Python kernels ptflops counts too.
        counter: ``dvpd.macs.MacCounter`` of the same call.

    Returns:
        Term -> count; "ptflops" is its own total, "unexplained" what the terms leave of it,
        "every product" the total of this counter.

    Raises:
        InputError: ptflops is not installed, or fails.
    """
    try:
        from ptflops import get_model_complexity_info
    except ImportError:
        raise InputError("the paper's counter is not installed: pip install ptflops") from None
    from torch import nn

    class Single(nn.Module):  # ptflops calls a model with one tensor
        def __init__(self) -> None:
            super().__init__()
            self.branch = branch

        def forward(self, x: Any) -> Any:
            return self.branch(x, *inputs[1:])

    total, _ = get_model_complexity_info(
        Single(), (1,), input_constructor=lambda _: inputs[0], as_strings=False,
        print_per_layer_stat=False, verbose=False, backend="pytorch",
    )  # fmt: skip
    if total is None:
        raise InputError("ptflops failed on this model; its message is above")
    kinds = {name: type(module) for name, module in branch.named_modules()}

    def of(table: Counter[Key], operator: str, kind: type) -> int:
        return sum(n for (m, o), n in table.items() if o == operator and kinds.get(m) is kind)

    terms = {
        "convolutions": of(counter.macs_by_module, "convolution", nn.Conv2d),
        "Linear modules": of(counter.macs_by_module, "matrix product", nn.Linear),
        "their biases": of(counter.elementwise, "add", nn.Conv2d)
        + of(counter.elementwise, "add", nn.Linear),
        "batch norms, 2 an element": 2 * of(counter.elementwise, "batch norm", nn.BatchNorm2d),
        # the sigmoid of SiLU: the embedding is the only part that uses it
        "SiLU": counter.elementwise["embedding", "sigmoid"],
    }
    return {
        **terms,
        "ptflops": int(total),
        "unexplained": int(total) - sum(terms.values()),
        "every product": counter.total - sum(counter.folded.values()),
    }


def _inputs(model: Any, n_frames: int) -> dict[str, tuple[Any, ...]]:
    import torch

    noisy = torch.zeros(1, 3, n_frames, N_FREQS)
    _, feats = model.predictive(noisy)
    factors = torch.ones(2, 2)
    score = (noisy[:, :1], torch.full((1,), 0.12), feats, factors, factors)
    return {"predictive": (noisy,), "score": score}


def count_model(config: Any, model: Any, n_frames: int, folder: Path | None) -> Counted:
    """Count a PyTorch model three ways.

    Args:
        config: ``dvpd.config.Config``.
        model: ``dvpd.model.DVPD`` in eval mode.
        n_frames: T.
        folder: Engine folder with the same model's graphs; None to export them now.

    Raises:
        DvpdError: A counter fails.
        ParityError: The graphs and the model do not agree.
    """
    import torch

    from dvpd.macs import count_calls, parameter_counts
    from dvpd.torch_backend import prepare

    calls = dict(zip(GRAPH_NAMES, count_calls(prepare(model, "fp32"), n_frames), strict=True))
    if folder is not None:
        graphs = engine_costs(folder, n_frames)
    else:
        graphs = _exported_costs(prepare(model, "fp32"), n_frames)
    wrong = [f"{g}: {line}" for g in GRAPH_NAMES for line in differences(calls[g], graphs[g])]
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ParityError(
            f"{config.model.name}: the two counters disagree: {'; '.join(wrong[:8])}{more}"
        )
    unfolded = dict(zip(GRAPH_NAMES, count_calls(model, PTFLOPS_FRAMES), strict=True))
    with torch.no_grad():
        inputs = _inputs(model, PTFLOPS_FRAMES)
        terms = {g: ptflops_terms(getattr(model, g), inputs[g], unfolded[g]) for g in GRAPH_NAMES}
    by_module: Counter[Key] = Counter()
    for branch in GRAPH_NAMES:
        for name, parameter in getattr(model, branch).named_parameters():
            by_module[branch, name.rpartition(".")[0]] += parameter.numel()
    return Counted(
        name=config.model.name,
        n_frames=n_frames,
        graphs=graphs,
        calls=calls,
        parameters=parameter_counts(model),
        parameters_by_module=by_module,
        ptflops=terms,
    )


def _exported_costs(prepared: Any, n_frames: int) -> dict[str, GraphCosts]:
    """Graphs of a model that has none yet, written to a temporary folder and counted."""
    import onnx

    from dvpd.benchmarks.common.graph_costs import graph_costs, score_shapes
    from dvpd.export.graphs import build_graph

    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for graph in GRAPH_NAMES:
            paths[graph] = Path(folder) / f"{graph}.onnx"
            onnx.save(build_graph(prepared, graph, "fp32"), paths[graph])
        first = graph_costs(paths["predictive"], {"noisy": (1, 3, n_frames, N_FREQS)})
        score = graph_costs(paths["score"], score_shapes(first, n_frames, 1))
    return {"predictive": first, "score": score}


def count(path: Path, n_frames: int = COUNT_FRAMES) -> Counted:
    """Count a checkpoint (.safetensors), a config (.toml) or an engine folder.

    Raises:
        DvpdError: It cannot be read or counted.
        ParityError: The two counters disagree.
    """
    if path.is_dir():
        manifest = Manifest.load(path)
        checkpoint = find_checkpoint(path, manifest.checkpoint_sha256)
        if checkpoint is None:
            return Counted(
                manifest.name, n_frames, engine_costs(path, n_frames), {},
                {k: int(v) for k, v in manifest.parameters.items()}, Counter(), {},
            )  # fmt: skip
        from dvpd.checkpoint import load_model

        return count_model(*load_model(checkpoint), n_frames, path)
    if path.suffix == ".toml":
        from dvpd.config import load_toml
        from dvpd.model import DVPD

        config = load_toml(path)
        return count_model(config, DVPD(config.model).eval(), n_frames, None)
    from dvpd.checkpoint import load_model

    return count_model(*load_model(path), n_frames, None)


def per_second(value: float, n_frames: int) -> float:
    """A count for ``n_frames`` frames as one for a second of audio."""
    return value * FRAME_RATE_HZ / n_frames


def to_json(counted: Counted) -> dict[str, Any]:
    """The counts as JSON: per call on ``n_frames`` frames, and per second of audio."""
    result: dict[str, Any] = {
        "name": counted.name,
        "n_frames": counted.n_frames,
        "parameters": counted.parameters,
        "counters_agree": bool(counted.calls),
        "calls": {},
    }
    for graph, costs in counted.graphs.items():
        result["calls"][graph] = {
            "macs": costs.total_macs,
            "macs_per_second": per_second(costs.total_macs, counted.n_frames),
            "macs_by_operator": _sums(costs.macs, 1),
            "macs_by_module": _sums(costs.macs, 0),
            "elementwise_by_operator": _sums(costs.elementwise, 1),
            "bytes_moved": sum(costs.bytes_moved.values()),
            "bytes_least": costs.bytes_least,
            "peak_activation_bytes": costs.peak_activation_bytes,
            "nodes": costs.nodes,
            "weights": costs.weights,
        }
    if counted.ptflops:
        result["ptflops"] = counted.ptflops
    result["macs_per_second"] = {
        "predictive": result["calls"]["predictive"]["macs_per_second"],
        "total": totals(counted)[1],
    }
    return result


def _sums(table: Counter[Key], part: int) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for key, n in table.items():
        sums[key[part]] += n
    return dict(sums.most_common())


def totals(counted: Counted) -> tuple[float, float]:
    """MACs for a second of audio: the predictive call, and all (1 + 3) calls."""
    p, s = (per_second(counted.graphs[g].total_macs, counted.n_frames) for g in GRAPH_NAMES)
    return p, p + SCORE_CALLS * s


def _by_module(counted: Counted, graph: str, depth: int) -> str:
    costs = counted.graphs[graph]

    def short(module: str) -> str:
        return ".".join(module.split(".")[:depth]) or "(top)"

    rows: dict[str, list[float]] = {}
    for column, table in enumerate((costs.macs, costs.elementwise)):
        for (module, _), n in table.items():
            rows.setdefault(short(module), [0.0] * 4)[column] += per_second(n, counted.n_frames)
    for module, n in costs.bytes_moved.items():
        rows.setdefault(short(module), [0.0] * 4)[2] += per_second(n, counted.n_frames)
    for (branch, module), n in counted.parameters_by_module.items():
        if branch == graph:
            rows.setdefault(short(module), [0.0] * 4)[3] += n
    ordered = sorted(rows.items(), key=lambda item: -item[1][0])
    return markdown(
        ["module", "MMAC", "other operations, M", "MB moved", "parameters, k"],
        [
            [name, f"{v[0] / 1e6:.2f}", f"{v[1] / 1e6:.2f}", f"{v[2] / 1e6:.1f}",
             f"{v[3] / 1e3:.1f}" if counted.parameters_by_module else None]
            for name, v in ordered
        ],
    )  # fmt: skip


def _by_operator(counted: Counted) -> str:
    names: Counter[str] = Counter()
    table: dict[str, dict[str, float]] = {}
    for graph, costs in counted.graphs.items():
        sums = Counter(_sums(costs.macs, 1)) + Counter(_sums(costs.elementwise, 1))
        table[graph] = {k: per_second(v, counted.n_frames) / 1e6 for k, v in sums.items()}
        names.update(sums)
    rows = []
    for name, _ in names.most_common():
        p, s = (table[g].get(name, 0.0) for g in GRAPH_NAMES)
        products = name in ("convolution", "matrix product", "elementwise product")
        rows.append(
            [name, "MAC" if products else "other", f"{p:.3f}", f"{s:.3f}",
             f"{p + SCORE_CALLS * s:.3f}"]
        )  # fmt: skip
    return markdown(["operator", "kind", "predictive, M", "score, M", "1 + 3 calls, M"], rows)


def _ptflops_text(counted: Counted) -> str:
    seen = ("convolutions", "Linear modules")
    p, s = (
        {**terms, "unseen": terms["every product"] - sum(terms[k] for k in seen)}
        for terms in (counted.ptflops[g] for g in GRAPH_NAMES)
    )
    labels = {k: f"seen by ptflops: {k}" for k in p}
    labels |= {
        "ptflops": "**ptflops**",
        "unexplained": "of it unexplained",
        "every product": "**every product** (this counter)",
        "unseen": "of it unseen by ptflops (attention, gates, multiply-adds)",
    }
    rows = []
    for key, label in labels.items():
        values = (p[key], s[key], p[key] + SCORE_CALLS * s[key])
        rows.append([label, *(f"{per_second(v, PTFLOPS_FRAMES) / 1e9:.4f}" for v in values)])
    return markdown(["GMAC per second of audio", "predictive", "score", "1 + 3 calls"], rows)


def table_1(models: Sequence[Counted]) -> str:
    """Our models beside the paper's Table 1."""
    rows: list[list[Any]] = []
    for m in models:
        p, total = (value / 1e9 for value in totals(m))
        for suffix, key, macs in ((", predictive alone", "predictive", p), ("", "total", total)):
            flops = None
            if m.ptflops:
                a, b = (m.ptflops[g]["ptflops"] for g in GRAPH_NAMES)
                count = a if suffix else a + SCORE_CALLS * b
                flops = f"{per_second(count, PTFLOPS_FRAMES) / 1e9:.2f}"
            rows.append(
                [f"**{m.name}{suffix}**", "P" if suffix else "D+P",
                 f"{m.parameters[key] / 1e6:.2f}", f"{macs:.2f}", flops]
            )  # fmt: skip
    for name, params, gmacs, kind in PAPER_TABLE_1:
        rows.append([f"{name} (paper)", kind, params, None, f"{gmacs:g}"])
    header = [
        "method", "type", "parameters, M", "GMAC/s, every product", "GMAC/s, ptflops",
    ]  # fmt: skip
    return markdown(header, rows)


def render(models: Sequence[Counted], depth: int) -> str:
    """The whole report as Markdown."""
    parts = []
    for m in models:
        p, total = totals(m)
        agree = (
            "PyTorch counter and ONNX walk agree exactly, module by module and operator by operator"
            if m.calls
            else "no checkpoint found: counted from the ONNX graphs alone"
        )
        parts += [
            f"## {m.name}",
            f"{m.parameters['total']:,} parameters, {p / 1e9:.4f} GMAC per second of audio "
            f"(predictive), {total / 1e9:.4f} with {SCORE_CALLS} score calls; {agree}. "
            f"T = {m.n_frames} frames.",
            "By operator, per second of audio:",
            _by_operator(m),
        ]
        for graph in GRAPH_NAMES:
            costs = m.graphs[graph]
            parts += [
                f"{graph} by module, per second of audio (a call moves at least "
                f"{per_second(costs.bytes_least, m.n_frames) / 1e6:.1f} MB a second of audio; "
                f"largest set of activations alive together "
                f"{costs.peak_activation_bytes / 1e6:.1f} MB at this T; "
                f"{sum(costs.nodes.values())} nodes):",
                _by_module(m, graph, depth),
            ]
        if m.ptflops:
            parts += ["The paper's counter, explained:", _ptflops_text(m)]
    parts += ["## Beside the paper's Table 1", table_1(models)]
    return "\n\n".join(parts)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="macs.py", description=__doc__.split("\n")[0])
    parser.add_argument(
        "models", nargs="*", type=Path,
        help="engine folders, checkpoints or configs (default: every engine folder found)",
    )  # fmt: skip
    parser.add_argument("--frames", type=int, default=COUNT_FRAMES, help="T, a multiple of 4")
    parser.add_argument("--depth", type=int, default=2, help="parts of a module's name shown")
    parser.add_argument("--json", type=Path, help="write all counts here")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command.run(build_parser(), argv, _count)


def _count(args: argparse.Namespace) -> int:
    if args.frames < 32 or args.frames % 4 or args.depth < 1:
        raise InputError(
            f"--frames is {args.frames}, --depth {args.depth}; expected a multiple of 4, at "
            "least 32, and a depth of at least 1"
        )
    paths = args.models or [p for p in find_window_engines() if (p / MANIFEST_NAME).is_file()]
    if not paths:
        raise InputError("no engine folder is found; give a checkpoint or a config")
    models = [count(path, args.frames) for path in paths]
    if args.json:
        write_whole(args.json, json.dumps([to_json(m) for m in models], indent=1) + "\n")
    print(render(models, args.depth))
    return 0


if __name__ == "__main__":
    command.leave(main())
