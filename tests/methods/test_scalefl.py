from __future__ import annotations

import math

import pytest
import torch
from slim import Round, mean_by_loops
from torch import Tensor, nn
from worlds import Recorder, federation, tiny_dataset

from interfuse.data import Batch
from interfuse.federation import Federation
from interfuse.messages import Weights
from interfuse.methods.scalefl import ScaleFL, multi_exit
from interfuse.models import SplitModel
from interfuse.models.resnets import Exit, exit_logits
from interfuse.training import cross_entropy


def several_exits(count: int) -> SplitModel:
    torch.manual_seed(count)
    stages: dict[str, nn.Module] = {}
    for i in range(1, count + 1):
        stages[f"layer{i}"] = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Tanh())
        stages[f"exit{i}"] = Exit(2, 3, last=i == count)
    return SplitModel(stages)


BATCH = Batch(torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(3)), torch.arange(5) % 3)


def by_loops(logits: list[Tensor], y: Tensor, gamma: float, t: float) -> float:
    """The loss number by number, with the divergence as a mean over the batch of sums over classes."""
    total = 0.0
    for j, own in enumerate(logits, 1):
        entropy, distance = 0.0, 0.0
        for row, teacher, label in zip(own, logits[-1], y.tolist(), strict=True):
            entropy -= math.log(row.softmax(0)[label]) / len(y)
            p, q = (teacher / t).softmax(0), (row / t).softmax(0)
            distance += sum(float(a) * math.log(a / b) for a, b in zip(p, q, strict=True)) / len(y)
        total += j * (entropy + (gamma * t * t * distance if j < len(logits) else 0))
    return total / (len(logits) * (len(logits) + 1) / 2)


@pytest.mark.parametrize("exits", [2, 3, 4])
@pytest.mark.parametrize(("gamma", "t"), [(0.0, 3.0), (0.05, 3.0), (2.0, 1.0)])
def test_the_loss_by_hand(exits: int, gamma: float, t: float) -> None:
    model = several_exits(exits)
    with torch.no_grad():
        expected = by_loops(exit_logits(model, BATCH.x), BATCH.y, gamma, t)
    assert multi_exit(model, BATCH, 0, gamma=gamma, temperature=t).item() == pytest.approx(expected, rel=1e-5)


def test_one_exit_is_plain_cross_entropy() -> None:  # U10
    model = several_exits(1)
    assert torch.equal(multi_exit(model, BATCH, 0, gamma=7.0, temperature=3.0), cross_entropy(model, BATCH, 0))


def test_exits_that_agree_have_no_distance() -> None:
    model = several_exits(3)
    for exit in ("exit1", "exit2", "exit3"):
        for parameter in model.parameters_of(exit).values():
            nn.init.zeros_(parameter)
    with_distillation, without = (multi_exit(model, BATCH, 0, gamma=g, temperature=3.0) for g in (5.0, 0.0))
    torch.testing.assert_close(with_distillation, without)
    torch.testing.assert_close(without, torch.tensor(math.log(3.0)))


def test_the_teacher_does_not_learn_from_its_students() -> None:
    """The distance alone moves early exits and what lies before them, not what only the last exit uses."""
    model = several_exits(3)
    one, none = (multi_exit(model, BATCH, 0, gamma=g, temperature=3.0) for g in (1.0, 0.0))
    difference = one - none
    difference.backward()  # type: ignore[no-untyped-call]
    moved = {
        part
        for part in model.part_names
        if any(p.grad is not None and p.grad.abs().max() > 1e-7 for p in model.parameters_of(part).values())
    }
    assert moved == {"layer1", "exit1", "layer2", "exit2"}


LEVELS = ["resnet10-narrow-exits1@0.3", "resnet10-narrow-exits2@0.3", "resnet10-narrow-exits4@0.5"]


def levels(method: ScaleFL, **others: object) -> Federation:
    return federation(method, models=LEVELS, dataset=tiny_dataset(rows=24, shape=(1, 8, 8)), wrap=Recorder, **others)


def test_a_round_by_hand() -> None:
    f = levels(ScaleFL(lr=0.01, local_steps=2, batch_size=4))
    now = Round(f)
    for key in ("stem.conv.weight", "stem.norm.bias", "layer2.0.norm1.running_var", "exit1.fc.weight", "exit4.fc.bias"):
        sent = []
        for client, reply in now.up.items():
            got = now.down[client]
            assert isinstance(reply, Weights)
            assert isinstance(got, Weights)
            if key not in reply.tensors:
                assert client < 2
                continue
            value = reply.tensors[key]
            assert torch.equal(got.tensors[key], now.before[key][tuple(slice(0, n) for n in value.shape)])
            sent.append((value, [list(range(n)) for n in value.shape], 1.0))
        assert len(sent) == {"s": 3, "l": 2, "1": 3, "4": 1}[key[4] if key.startswith("exit") else key[0]]
        torch.testing.assert_close(now.after[key], mean_by_loops(now.before[key], sent), rtol=1e-6, atol=1e-7)


def test_exits_that_nobody_sent_stay() -> None:
    f = levels(ScaleFL(lr=0.01, local_steps=2, batch_size=4, participation=0.34))
    seen = set()
    for _ in range(8):
        now = Round(f)
        (client,) = now.up
        seen.add(client)
        for key, old in now.before.items():
            if client < 2 and key.startswith(("exit4", "layer3", "layer4")):
                assert torch.equal(now.after[key], old)
    assert len(seen) > 1


def test_distillation_begins_after_the_warm_up() -> None:
    settings = {"lr": 0.01, "local_steps": 2, "batch_size": 4}
    late, never, at_once = (
        levels(ScaleFL(**settings, gamma=gamma, warm_up=warm_up), rounds=2)
        for gamma, warm_up in ((3.0, 2), (0.0, 0), (3.0, 0))
    )
    key = "layer1.0.conv1.weight"
    assert torch.equal(late.server.state.weights[key], never.server.state.weights[key])
    assert not torch.equal(at_once.server.state.weights[key], never.server.state.weights[key])
    late.run_round()
    never.run_round()
    assert not torch.equal(late.server.state.weights[key], never.server.state.weights[key])


def test_the_authors_divergence_is_a_mean_over_classes_too() -> None:
    """Their gamma, a mean over batch and classes before it, is this one divided by the number of classes."""
    model, theirs, classes = several_exits(2), 0.05, 3
    early, last = exit_logits(model, BATCH.x)
    teacher, student = (last / 3).softmax(1), (early / 3).log_softmax(1)
    mean = nn.functional.kl_div(student, teacher, reduction="none").mean()
    plain = multi_exit(model, BATCH, 0, gamma=0.0, temperature=3.0)
    ours = multi_exit(model, BATCH, 0, gamma=theirs / classes, temperature=3.0)
    torch.testing.assert_close(ours - plain, theirs * 9 * mean / 3, rtol=1e-3, atol=1e-6)


def test_models_without_exits_train_on_cross_entropy() -> None:
    f = federation(ScaleFL(lr=0.01, local_steps=1), rounds=1)
    assert all(tensor.isfinite().all() for tensor in f.server.state.weights.values())
