"""Two processes act as one: batch norms, bad batches, stopping, who writes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from train_parts import ROOT, log_of

from dvpd.runtime.errors import InputError
from dvpd.training.parallel import JointBatchNorm, Team, join_team, synchronise_norms

# Forks after the imports, so that they are paid for once; each fork is what torchrun would start.
RANKS = """
    import os, socket, sys
    import torch, lightning_fabric
    from torch import nn
    from train_parts import Tones, micro_config
    from dvpd.layers import BatchNorm
    from dvpd.training.parallel import join_team, synchronise_norms
    from dvpd.training.trainer import Trainer

    SIZE = 2
    folder = sys.argv[1]

    def shared(tensor, rank):
        return tensor[rank * len(tensor) // SIZE : (rank + 1) * len(tensor) // SIZE]

    def work(team):
        {body}

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(SIZE):
        child = os.fork()
        if not child:
            try:
                os.environ |= dict(
                    RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0", WORLD_SIZE=str(SIZE),
                    LOCAL_WORLD_SIZE=str(SIZE), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
                    GLOO_SOCKET_IFNAME="lo",
                )
                torch.set_num_threads(1)
                work(join_team("cpu"))
                os._exit(0)
            except BaseException:
                import traceback
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
        children.append(child)
    ends = [os.waitpid(child, 0)[1] for child in children]
    sys.exit(any(ends))
"""


def run_ranks(body: str, folder) -> str:
    """Run ``body`` in two processes of one team; what they wrote to stderr."""
    script = textwrap.dedent(RANKS).replace("{body}", textwrap.indent(body, "    ").strip())
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'dvpd'}"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


NORMS = textwrap.dedent("""
    close = torch.testing.assert_close
    for offset in (0.0, 300.0):  # a channel far from zero must keep its variance
        draw = torch.Generator().manual_seed(3)
        whole = torch.randn(4, 3, 5, 7, generator=draw) * torch.tensor([0.1, 1, 9])[:, None, None]
        whole = (whole + torch.arange(4.0)[:, None, None, None] + offset).requires_grad_()
        factor = torch.randn(4, 3, 5, 7, generator=draw)
        plain, joint, alone = (nn.Sequential(BatchNorm(3, momentum=0.02)) for _ in range(3))
        for norm in (plain, joint, alone):
            with torch.no_grad():
                norm[0].weight.copy_(torch.tensor([0.5, 2.0, -1.0]))
                norm[0].bias.copy_(torch.tensor([0.1, 0.0, 3.0]))
        keys = list(joint.state_dict())
        synchronise_norms(joint)
        assert list(joint.state_dict()) == keys

        expected = plain(whole)
        (expected * factor).sum().backward()
        part = shared(whole.detach(), team.rank).clone().requires_grad_()
        result = joint(part)
        (result * shared(factor, team.rank)).sum().backward()
        # float32 at 300 +- 0.1 resolves 3e-5, which the norm divides by that 0.1
        tolerance = dict(rtol=1e-4, atol=1e-5 if offset == 0.0 else 5e-3)
        close(result, shared(expected, team.rank), **tolerance)
        close(part.grad, shared(whole.grad, team.rank), **tolerance)
        for mine, other in zip(joint.parameters(), plain.parameters()):
            total = mine.grad.clone()
            torch.distributed.all_reduce(total)
            close(total, other.grad, rtol=1e-4, atol=tolerance["atol"] * 10)
        for mine, other in zip(joint.buffers(), plain.buffers()):
            close(mine, other, rtol=1e-5, atol=1e-6)
        # what it is there for: statistics of one share alone are others
        separate = (alone(part) - shared(expected, team.rank)).abs().max()
        assert separate > 0.1, separate
    joint.eval()
    plain.eval()
    close(joint(part), plain(part))
""")

TRAINING = textwrap.dedent("""
    # crop 3 is the second process's part of step 0 (four crops a step)
    config = micro_config(batch_size=4, steps=9, epoch_crops=99, branches="predictive")
    trainer = Trainer(config, Tones(broken=(3,)), folder, team=team)
    weights = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    kept, step = [], trainer.train_step

    def watched(*batch):
        assert len(batch[0]) == 2
        values = step(*batch)
        if trainer.step == 1:
            kept.extend(torch.equal(v, weights[k]) for k, v in trainer.model.state_dict().items())
        if trainer.step == 3 and team.rank == 1:
            trainer.stop()  # a signal that only one process got
        return values

    trainer.train_step = watched
    trainer.run()
    assert all(kept) and kept
    assert trainer.skipped == 1
    assert trainer.step == 3
    again = Trainer(config, Tones(), folder, team=team)
    again.resume()
    assert (again.step, again.seconds) == (3, trainer.seconds)
    values = torch.cat([p.flatten() for p in trainer.model.state_dict().values()])
    assert bool((team.mean(values) == values).all())  # every process has the same weights
""")


def test_batch_norm_over_two_processes(tmp_path):
    run_ranks(NORMS, tmp_path)


def test_two_processes_agree(tmp_path):
    errors = run_ranks(TRAINING, tmp_path)
    assert errors.count("skipped") == 1  # reported once
    assert "step 0 (seed 0, epoch 0, crops 0 to 3)" in errors
    assert [r["step"] for r in log_of(tmp_path)] == [2, 3]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "last.safetensors",
        "log.jsonl",
        "state.pt",
    ]


def test_one_process_changes_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    team = join_team("cpu")
    assert type(team) is Team
    assert (team.rank, team.size, team.device.type) == (0, 1, "cpu")
    model = nn.Conv2d(1, 1, 1)
    assert team.wrap(model) is model


def test_every_batch_norm_of_the_model_is_replaced(make_small_model):
    model = synchronise_norms(make_small_model())
    kinds = {type(m) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {JointBatchNorm}
    wav = torch.randn(1, 3, 36, 257)
    assert torch.equal(model.predictive(wav)[0], make_small_model().predictive(wav)[0])


def test_lightning_missing_is_a_clear_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(InputError, match="needs lightning-fabric: pip install"):
        join_team("cpu")
