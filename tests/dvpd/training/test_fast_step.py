"""The step that a graph can replay: nothing for the host to do, same results, and its ladder."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import set_weights
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from train_parts import Tones, micro_config

from dvpd.losses import weighted_sum
from dvpd.model import DVPD
from dvpd.training.fast_step import FastStep, Rung, Step, ladder
from dvpd.training.objective import Objective
from dvpd.training.trainer import Trainer

# torch's tracer makes an instance of every autograd function that it meets
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

LOSS_TOLERANCE = 1e-4  # products and FFTs differ by 3e-7; logarithms of small values magnify it
GOLDEN = Path(__file__).parents[2] / "assets" / "five_steps.json"
SAMPLES = 8192
EXTRA = {
    "mr_stft_weight": 0.3, "si_sdr_weight": 0.1, "snr_weight": 0.1, "perceptual_weight": 0.05,
    "estoi_weight": 0.2,
}  # fmt: skip
STAGES = {
    "both": {"branches": "both", **EXTRA},
    "predictive": {"branches": "predictive", "channels_last": True},
    "sampler": {"branches": "score", "score_weight": 0.0, "sampler_weight": 1.0, **EXTRA},
    "few steps": {
        "branches": "score", "score_weight": 0.0, "sampler_weight": 1.0, "start_weight": 0.5,
        "target": "x0", "consistency_weight": 0.5, "consistency_target": "ema",
    },
}  # fmt: skip
OLD_STAGES = [name for name in STAGES if name != "few steps"]  # what version 0.1 had


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two tones with a slow envelope in white noise, [2, 8192]."""
    rng = np.random.default_rng(step)
    time_s = np.arange(SAMPLES) / 16000
    envelope = 1 + np.sin(2 * np.pi * 5 * time_s)
    tones = [np.sin(2 * np.pi * f * time_s) for f in (300.0 + 40 * step, 700.0 - 30 * step)]
    clean = 0.2 * np.stack(tones) * envelope
    noisy = clean + 0.05 * rng.standard_normal(clean.shape)
    return torch.from_numpy(noisy).float(), torch.from_numpy(clean).float()


def make_trainer(folder, stage: str = "predictive", **settings) -> Trainer:
    settings = {"lr": 2e-5, "warmup_steps": 2, "steps": 20, **STAGES[stage], **settings}
    trainer = Trainer(micro_config(**settings), Tones(), folder)
    set_weights(trainer.model)
    set_weights(trainer.ema.model)
    return trainer


def draws_of(trainer: Trainer, objective: Objective | None = None, device: str = "cpu"):
    return (objective or trainer.objective).draw(0, 2, SAMPLES, torch.device(device))


def all_state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Every tensor that training changes, by name."""
    state = {f"model.{k}": v for k, v in trainer.model.state_dict().items()}
    state |= {f"ema.{k}": v for k, v in trainer.ema.model.state_dict().items()}
    for i, entry in trainer.optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{i}.{k}": v for k, v in entry.items()}
    state["updates"] = torch.tensor(trainer.ema.updates)
    return {k: v.clone() for k, v in state.items()}


def products(trainer: Trainer) -> Objective:
    """The trainer's objective as on a GPU: transforms as products."""
    average = trainer.ema.model
    return Objective(trainer.model, trainer.config, dft=torch.float32, average=average)


@pytest.mark.parametrize("stage", OLD_STAGES)
def test_the_step_equals_that_of_version_0_1(tmp_path, stage):
    """Figures of the code before the step was made fit for a graph, recorded with it."""
    trainer = make_trainer(tmp_path, stage)
    for i, expected in enumerate(json.loads(GOLDEN.read_text())[stage]):
        values = trainer.train_step(*batch(i))
        assert values == pytest.approx(expected, rel=2e-3, abs=1e-6), f"step {i}"


@pytest.mark.parametrize("stage", OLD_STAGES)
def test_products_in_place_of_ffts_give_the_same_losses_and_gradients(tmp_path, stage):
    trainer = make_trainer(tmp_path, stage)
    results = []
    for objective in (trainer.objective, products(trainer)):
        trainer.optimizer.zero_grad()
        loss = weighted_sum(trainer.config.train, objective(*batch(0), draws_of(trainer)))
        loss.backward()
        grads = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
        results.append((loss.item(), torch.cat(grads)))
    assert results[1][0] == pytest.approx(results[0][0], rel=LOSS_TOLERANCE)
    difference = (results[1][1] - results[0][1]).norm()
    assert difference < 5e-3 * results[0][1].norm()


class Pointwise(torch.nn.Module):
    """In the score branch's place, where the losses call it many times: few operators to trace."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 1, 1)

    def forward(self, xt, t, feats, *_):
        return self.conv(xt) * t[:, None, None, None] + sum(f.mean() for f in feats)


@pytest.mark.parametrize("stage", STAGES)
def test_the_objective_is_one_graph_without_breaks(tmp_path, stage):
    """The networks with gradients in "both", the predictive one without in the last two."""
    trainer = make_trainer(tmp_path, stage, silence_weight=0.1)
    if trainer.config.train.branches == "score":
        torch.manual_seed(0)
        trainer.model.score, trainer.ema.model.score = Pointwise(), Pointwise()
    objective = products(trainer)
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(objective, backend=backend, fullgraph=True, dynamic=False)
    got = compiled(*batch(0), draws_of(trainer))
    assert len(graphs) == 1
    expected = objective(*batch(0), draws_of(trainer))
    assert {k: v.item() for k, v in got.items()} == pytest.approx(
        {k: v.item() for k, v in expected.items()}, rel=1e-5
    )


class Lint(TorchDispatchMode):
    """Refuses what a capture cannot record: tensors of the host, and copies between devices."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.calls = device, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
        assert name not in ("lift_fresh", "lift_fresh_copy", "_local_scalar_dense"), name
        out = func(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves((args, kwargs, out)):
            if isinstance(x, torch.Tensor):
                assert x.device.type == self.device, f"{name}: {x.device} {tuple(x.shape)}"
        return out


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_in_the_step_reads_the_device_or_makes_tensors_of_host_data(tmp_path, stage):
    """Forward, backward, clip, optimiser, average: on tensors without data, which no host can read."""
    trainer = make_trainer(tmp_path, stage)
    trainer.train_step(*batch(0))  # the optimiser's state is made at the first step
    step = trainer.fast.step
    step.objective = products(trainer)
    fake = FakeTensorMode()
    with FakeCopyMode(fake):
        copied, inputs = copy.deepcopy((step, (*batch(1), draws_of(trainer))))
    copied.bind()  # a copied optimiser has lost them
    with fake, Lint("cpu") as lint:
        copied(*inputs)
    assert lint.calls > 1000


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_in_forward_and_backward_comes_from_the_host_s_memory(tmp_path, monkeypatch, stage):
    # autocast knows no tensors of device "meta"
    monkeypatch.setattr(torch, "autocast", lambda *_: contextlib.nullcontext())
    trainer = make_trainer(tmp_path, stage, silence_weight=0.1)
    noisy, clean = (x.to("meta") for x in batch(0))
    draws = torch.utils._pytree.tree_map(
        lambda x: x.to("meta") if isinstance(x, torch.Tensor) else x, draws_of(trainer)
    )
    objective = products(trainer).to("meta")
    with Lint("meta"):
        loss = weighted_sum(trainer.config.train, objective(noisy, clean, draws))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(trainer.model.parameters()), 1.0)


DEFECTS = {
    "read": lambda x: float(x.sum()),
    "host data": lambda x: x + torch.tensor([1.0, 2.0, 3.0]),
    "size that depends on values": lambda x: x[x > 0.0],
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_lint_finds_what_it_is_there_for(defect):
    fake = FakeTensorMode()
    x = fake.from_tensor(torch.ones(3))
    with fake, Lint("cpu"), pytest.raises((AssertionError, RuntimeError)):
        DEFECTS[defect](x)


@pytest.mark.parametrize("stage", OLD_STAGES)
@pytest.mark.parametrize("first", [True, False])
def test_a_batch_with_nan_changes_nothing_at_all(tmp_path, stage, first):
    trainer = make_trainer(tmp_path, stage, batch_size=2)
    if not first:
        trainer.train_step(*batch(0))
    before = all_state(trainer)
    noisy, clean = batch(1)
    noisy[1, 100] = math.nan
    assert trainer.train_step(noisy, clean)["skipped"] == 1.0
    after = all_state(trainer)
    for name, value in after.items():
        # a first step makes the optimiser's state: zeros
        expected = before.get(name, torch.zeros_like(value))
        assert value.numpy().tobytes() == expected.numpy().tobytes(), name
    good = trainer.train_step(*batch(2))
    assert good["skipped"] == 0.0
    assert all(torch.isfinite(v).all() for v in all_state(trainer).values())


def test_norm_statistics_lie_in_one_tensor(tmp_path):
    trainer = make_trainer(tmp_path)
    count = sum(
        m.running_mean.numel() for m in trainer.model.modules() if hasattr(m, "running_mean")
    )
    norms = trainer.fast.step.norms
    assert norms.shape == (2 * count,)
    norms.fill_(7.0)
    buffers = dict(trainer.model.named_buffers())
    assert all((b == 7.0).all() for n, b in buffers.items() if "running" in n)
    trainer.save()
    again = Trainer(trainer.config, Tones(), tmp_path)
    again.resume()
    assert (again.fast.step.norms == 7.0).all()


# --- the ladder -------------------------------------------------------------------------------


def test_rungs_from_the_best_to_the_plain_step():
    assert [str(r) for r in ladder(compiled=True, graph=True)] == [
        "compiled regions in one CUDA graph", "compiled regions", "one CUDA graph", "call by call",
    ]  # fmt: skip
    assert ladder(compiled=False, graph=False) == [Rung(False, False)]


class Recorder:
    """In a CUDA graph's place: runs what it was given again, on the tensors in place."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.captured, self.replays = error, 0, 0

    def __call__(self, function):
        if self.error:
            raise self.error
        self.captured += 1
        function()

        def replay():
            self.replays += 1
            function()

        return replay


def on_ladder(trainer: Trainer, capture, *, compiled=False, rows=3, **options) -> Trainer:
    """Let the trainer climb as it would on a GPU, with ``capture`` in the graph's place."""
    old = trainer.fast.step
    step = Step(
        old.objective, trainer.model, trainer.optimizer, trainer.ema, trainer.team,
        trainer.config.train, rows,
    )  # fmt: skip
    rungs = ladder(compiled, graph=True)
    trainer.fast = FastStep(step, trainer.objective, rungs, capture=capture, options=options)
    return trainer


@pytest.mark.parametrize("stage", ["both", "sampler", "few steps"])
def test_a_captured_step_equals_the_plain_one(tmp_path, stage):
    plain = make_trainer(tmp_path / "a", stage)
    recorder = Recorder()
    captured = on_ladder(make_trainer(tmp_path / "b", stage), recorder)
    rows = []
    for i in range(3):
        expected = plain.train_step(*batch(i))
        captured._start(*batch(i))
        rows.append(expected)
    # the figures of three steps, read at once
    assert [values for _, values in captured._read()] == rows
    assert (recorder.captured, recorder.replays) == (1, 4)  # one more: the comparison
    assert captured.fast.rung == Rung(False, True)
    mine, theirs = all_state(captured), all_state(plain)
    assert all(torch.equal(v, theirs[k]) for k, v in mine.items())


def test_the_log_of_steps_read_together_is_that_of_steps_read_one_by_one(tmp_path):
    records = []
    for name in ("a", "b"):
        trainer = make_trainer(tmp_path / name, steps=5, log_steps=2)
        if name == "b":
            trainer = on_ladder(trainer, Recorder(), rows=2)
        trainer.report = records.append
        trainer.run()
        (tmp_path / name / "log.jsonl").read_text()
    drop = ("minutes", "crops_per_s")
    records = [{k: v for k, v in r.items() if k not in drop} for r in records]
    steps = [[r for r in records if r["kind"] == kind] for kind in ("step", "train")]
    for kind in steps:
        half = len(kind) // 2
        assert len(kind) in (10, 4)
        assert kind[:half] == kind[half:]


def test_a_bad_batch_is_told_when_the_figures_are_read(tmp_path, caplog):
    trainer = on_ladder(make_trainer(tmp_path), Recorder())
    noisy, clean = batch(0)
    for i in range(3):
        trainer._start(noisy * (math.nan if i == 1 else 1.0), clean)
    assert [v["skipped"] for _, v in trainer._read()] == [0.0, 1.0, 0.0]
    assert trainer.skipped == 1
    assert "step 1 (seed 0, epoch 0, crops 2 to 3)" in caplog.text


def test_a_capture_that_fails_steps_down_and_says_why(tmp_path, caplog):
    plain = make_trainer(tmp_path / "a")
    trainer = on_ladder(make_trainer(tmp_path / "b"), Recorder(RuntimeError("no capture here")))
    expected = plain.train_step(*batch(0))
    assert trainer.train_step(*batch(0)) == expected
    assert trainer.fast.rung == Rung(False, False)
    assert "one CUDA graph does not work here: no capture here" in caplog.text
    mine, theirs = all_state(trainer), all_state(plain)
    assert all(torch.equal(v, theirs[k]) for k, v in mine.items())


def test_a_compiler_that_fails_in_the_middle_leaves_no_trace(tmp_path, caplog):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    plain = make_trainer(tmp_path / "a")
    recorder = Recorder()
    trainer = make_trainer(tmp_path / "b")
    trainer = on_ladder(trainer, recorder, compiled=True, backend=broken)
    trainer.train_step(*batch(0))
    plain.train_step(*batch(0))
    assert trainer.fast.rung == Rung(False, True)
    assert caplog.text.count("no compiler here") >= 2
    mine, theirs = all_state(trainer), all_state(plain)
    assert all(torch.equal(v, theirs[k]) for k, v in mine.items())


def test_warming_up_changes_nothing_and_captures_once(tmp_path):
    recorder = Recorder()
    trainer = on_ladder(make_trainer(tmp_path), recorder)
    data = replace(trainer.config.data, crop_samples=SAMPLES)
    trainer.config = replace(trainer.config, data=data)
    trainer.train_step(*batch(0))
    trainer.fast.reset()
    before = all_state(trainer)
    trainer.warm_up()
    assert all(torch.equal(v, before[k]) for k, v in all_state(trainer).items())
    trainer.train_step(*batch(1))
    assert recorder.captured == 2
    assert (trainer.step, trainer.fast.rung) == (2, Rung(False, True))


def test_a_captured_step_that_computes_something_else_is_left(tmp_path, caplog):
    trainer = make_trainer(tmp_path)

    class Wrong(Recorder):
        def __call__(self, function):
            replay = super().__call__(function)

            def wrong():
                replay()
                trainer.fast.step.history.mul_(1.1)

            return wrong

    trainer = on_ladder(trainer, Wrong())
    trainer.train_step(*batch(0))
    assert trainer.fast.rung == Rung(False, False)
    assert "the plain step's is" in caplog.text


def test_a_resumed_state_is_captured_anew(tmp_path):
    recorder = Recorder()
    trainer = on_ladder(make_trainer(tmp_path), recorder)
    trainer.train_step(*batch(0))
    trainer.save()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    # versions without the graph read it
    assert {type(g["lr"]) for g in state["optimizer"]["param_groups"]} == {float}
    assert not any(g["capturable"] for g in state["optimizer"]["param_groups"])
    trainer.resume()
    trainer.train_step(*batch(1))
    assert recorder.captured == 2
    other = make_trainer(tmp_path / "plain")
    for i in range(2):
        other.train_step(*batch(i))
    mine, theirs = all_state(trainer), all_state(other)
    assert all(torch.equal(v, theirs[k]) for k, v in mine.items())


def test_compiled_regions_give_the_same_step(tmp_path):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    trainer = make_trainer(tmp_path / "a", "both", compile=True)
    trainer.fast.options = {"backend": backend, "fullgraph": True}
    plain = make_trainer(tmp_path / "b", "both")
    for i in range(2):
        assert trainer.train_step(*batch(i)) == pytest.approx(plain.train_step(*batch(i)), rel=1e-4)
    assert trainer.fast.rung == Rung(True, False)
    # equal blocks share their code: fewer graphs than regions
    assert 5 < len(graphs) < len(trainer.fast._compiled)


def test_learning_rate_and_decay_reach_the_device(tmp_path):
    trainer = on_ladder(make_trainer(tmp_path, warmup_steps=5), Recorder())
    rates = []
    for i in range(3):
        trainer._start(*batch(i))
        rates.append(trainer.fast.step.lr.item())
    assert rates == pytest.approx([lr for _, lr in trainer._pending], rel=1e-6)
    assert len(set(rates)) == 3
    assert trainer.ema.updates == 3


def test_precision_of_the_transforms_where_products_are_rounded():
    """In float64 they do not depend on what float32 products may lose (TF32)."""
    config = micro_config()
    objective = Objective(DVPD(config.model), config, dft=torch.float64)
    wav, _ = batch(0)
    assert objective.dft.analysis.dtype == torch.float64
    assert objective.dft(wav).dtype == torch.float32
    assert replace(config.train, kernels="fast").nhwc
