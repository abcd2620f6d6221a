"""The one training loop against plain loops."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from worlds import largest_difference, plain_training, same_bits

from interfuse.data import Batch
from interfuse.errors import ModelError
from interfuse.models import SplitModel
from interfuse.randomness import seeded
from interfuse.training import (
    Cosine,
    DivergedError,
    Exponential,
    Gradients,
    Objective,
    Optimizer,
    OptimizerState,
    cross_entropy,
    fit,
    modular_cross_entropy,
    proximal,
    pull_back,
    total,
)


def net(seed: int = 0) -> SplitModel:
    with seeded(seed, "net"):
        return SplitModel(
            {
                "a": nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU()),
                "b": nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Tanh()),
                "c": nn.Linear(4, 3),
            }
        )


def smooth(seed: int = 0) -> SplitModel:
    with seeded(seed, "smooth"):
        return SplitModel({"a": nn.Sequential(nn.Linear(5, 6), nn.Tanh()), "c": nn.Linear(6, 3)})


def draw(count: int = 6, size: int = 8, seed: int = 0) -> list[Batch]:
    g = torch.Generator().manual_seed(seed)
    return [Batch(torch.randn(size, 5, generator=g), torch.randint(3, (size,), generator=g)) for _ in range(count)]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}


Build = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: list[tuple[Optimizer, Build]] = [
    (Optimizer("sgd"), lambda p: torch.optim.SGD(p, lr=0.1)),
    (Optimizer("sgd", momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True)),
    (
        Optimizer("sgd", 0.5, 0.01),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5, weight_decay=0.01, fused=True),
    ),
    (Optimizer("adam"), lambda p: torch.optim.Adam(p, lr=0.1, fused=True)),
    (Optimizer("adam", weight_decay=0.1), lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, fused=True)),
    (Optimizer("adamw", weight_decay=0.1), lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, fused=True)),
]
optimizers = pytest.mark.parametrize(("optimizer", "build"), OPTIMIZERS)


@optimizers
def test_fit_is_a_plain_loop(optimizer: Optimizer, build: Build) -> None:
    mine, plain = net(), net()
    done = fit(mine, cross_entropy, draw(), lr=0.1, optimizer=optimizer)
    plain_training(plain, [(b.x, b.y) for b in draw()], build(plain.parameters()))
    assert same_bits(state(mine), state(plain))
    assert (done.steps, done.samples) == (6, 48)
    assert done.learning_rate_sum == pytest.approx(0.6)


@optimizers
def test_kept_slots_make_two_calls_one_long_call(optimizer: Optimizer, build: Build) -> None:
    long, short = net(), net()
    fit(long, cross_entropy, draw(), lr=0.1, optimizer=optimizer)
    slots: OptimizerState = {}
    fit(short, cross_entropy, draw()[:2], lr=0.1, optimizer=optimizer, slots=slots)
    copied = {key: {name: tensor.clone() for name, tensor in kept.items()} for key, kept in slots.items()}
    fit(short, cross_entropy, draw()[2:], lr=0.1, optimizer=optimizer, slots=copied)
    assert same_bits(state(long), state(short))
    if optimizer.name != "sgd" or optimizer.momentum:
        forgetful = net()
        fit(forgetful, cross_entropy, draw()[:2], lr=0.1, optimizer=optimizer)
        fit(forgetful, cross_entropy, draw()[2:], lr=0.1, optimizer=optimizer)
        assert not same_bits(state(long), state(forgetful))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_plain_step_has_the_bits_of_the_fused_kernel(dtype: torch.dtype) -> None:
    noise = torch.Generator().manual_seed(0)
    shapes = [(), (1,), (7,), (17,), (64,), (10, 33), (8, 3, 3, 3), (32, 1, 5, 5), (5, 7, 1), (0, 3)]
    for memory in (torch.contiguous_format, torch.channels_last):
        for lr in (0.0, 1e-8, 3.3e-3, 0.01, 0.1, 1 / 3, 1.0):
            mine, fused = [], []
            for shape in shapes:
                values, gradient = (torch.randn(shape, generator=noise, dtype=dtype) for _ in range(2))
                if len(shape) == 4:
                    values, gradient = (t.contiguous(memory_format=memory) for t in (values, gradient))
                for made in (mine, fused):
                    made.append(nn.Parameter(values.clone()))
                    made[-1].grad = gradient * 1e-30 if len(shape) == 3 else gradient
            Optimizer().stepper({str(place): p for place, p in enumerate(mine)}, {})(lr)
            torch.optim.SGD(fused, lr=lr, fused=True).step()
            assert all(torch.equal(a, b) for a, b in zip(mine, fused, strict=True))


def test_the_optimizer_is_where_no_compiler_is_imported() -> None:
    """PyTorch's optimizer classes import it when the first of them is made, which takes seconds."""
    program = (
        "import sys, torch\n"
        "from interfuse.models import SplitModel\n"
        "from interfuse.training import Batch, cross_entropy, fit\n"
        "model = SplitModel({'a': torch.nn.Linear(2, 2), 'c': torch.nn.Linear(2, 2)})\n"
        "fit(model, cross_entropy, [Batch(torch.ones(3, 2), torch.zeros(3).long())], lr=0.1, optimizer='adam')\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def convolutional(memory_format: torch.memory_format) -> SplitModel:
    with seeded(0, "convolutional"):
        stages = {"a": nn.Conv2d(3, 4, 3), "b": nn.Sequential(nn.Tanh(), nn.Flatten()), "c": nn.Linear(16, 3)}
        model = SplitModel(stages)
    return cast(SplitModel, model.to(memory_format=memory_format))  # type: ignore[call-overload]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kept", [torch.contiguous_format, torch.channels_last])
@optimizers
def test_slots_and_gradients_fit_parameters_of_any_layout(
    optimizer: Optimizer, build: Build, layout: torch.memory_format, kept: torch.memory_format
) -> None:
    """Fused kernels walk through memory: slots that were saved with other strides must be laid out anew."""
    g = torch.Generator().manual_seed(0)
    batches = [Batch(torch.randn(4, 3, 4, 4, generator=g), torch.randint(3, (4,), generator=g)) for _ in range(4)]
    long, short = convolutional(layout), convolutional(layout)
    # gradients from a rule have any strides
    turned = lambda gradients, parameters: {k: v.contiguous() for k, v in gradients["loss"].items()}  # noqa: E731
    fit(long, cross_entropy, batches, lr=0.1, optimizer=optimizer, combine=turned)
    slots: OptimizerState = {}
    fit(short, cross_entropy, batches[:2], lr=0.1, optimizer=optimizer, slots=slots)
    for own in slots.values():
        for name, slot in own.items():
            own[name] = slot.contiguous(memory_format=kept) if slot.ndim == 4 else slot.clone()
    fit(short, cross_entropy, batches[2:], lr=0.1, optimizer=optimizer, slots=slots)
    for key, tensor in state(long).items():
        torch.testing.assert_close(state(short)[key], tensor, rtol=0, atol=1e-6)


@optimizers
def test_a_step_shows_in_the_counters_by_which_changes_are_noticed(optimizer: Optimizer, build: Build) -> None:
    model, slots = smooth(), cast(OptimizerState, {})
    fit(model, cross_entropy, draw(1), lr=0.1, optimizer=optimizer, slots=slots)
    tensors = [*model.parameters(), *(slot for own in slots.values() for slot in own.values())]
    before = [tensor._version for tensor in tensors]
    fit(model, cross_entropy, draw(1), lr=0.1, optimizer=optimizer, slots=slots)
    assert all(tensor._version > version for tensor, version in zip(tensors, before, strict=True))


@optimizers
def test_a_parameter_with_gaps_in_memory_is_trained_too(optimizer: Optimizer, build: Build) -> None:
    mine, plain = smooth(), smooth()
    linear = cast(nn.Linear, mine.get_submodule("c"))
    wide = torch.zeros(3, 12)
    wide[:, ::2] = linear.weight.detach()
    linear.weight = nn.Parameter(wide[:, ::2])
    fit(mine, cross_entropy, draw(), lr=0.1, optimizer=optimizer)
    plain_training(plain, [(b.x, b.y) for b in draw()], build(plain.parameters()))
    for key, tensor in state(plain).items():
        torch.testing.assert_close(state(mine)[key], tensor, rtol=0, atol=1e-6)
    assert bool((wide[:, 1::2] == 0).all())


def test_autocast_computes_the_objective_in_bfloat16_and_leaves_the_rest() -> None:
    seen: list[torch.dtype] = []

    def looking(model: SplitModel, batch: Batch, step: int) -> Tensor:
        logits = model(batch.x)
        seen.append(logits.dtype)
        return functional.cross_entropy(logits, batch.y)

    mine, plain = smooth(), smooth()
    fit(mine, looking, draw(), lr=0.1, autocast=torch.bfloat16)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for b in draw():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = functional.cross_entropy(plain(b.x), b.y)
        loss.backward()
        optimizer.step()
    assert seen == [torch.bfloat16] * 6
    assert {p.dtype for p in mine.parameters()} == {torch.float32}
    assert same_bits(state(mine), state(plain))


def test_the_loss_is_the_mean_over_steps_before_each_step() -> None:
    model, plain = smooth(), smooth()
    done = fit(model, cross_entropy, draw(3), lr=0.1)
    losses = []
    for batch in draw(3):
        losses.append(float(functional.cross_entropy(plain(batch.x), batch.y).detach()))
        plain_training(plain, [(batch.x, batch.y)], torch.optim.SGD(plain.parameters(), lr=0.1))
    assert done.loss == pytest.approx(sum(losses) / 3, abs=1e-6)


@pytest.mark.parametrize("limit", [0.01, 0.3, 1e6])
@pytest.mark.parametrize("combined", [False, True])
def test_clipping_bounds_the_global_norm(limit: float, combined: bool) -> None:
    mine, plain = smooth(), smooth()
    combine = (lambda gradients, parameters: gradients["loss"]) if combined else None
    fit(mine, cross_entropy, draw(), lr=0.1, clip=limit, combine=combine)
    for b in draw():
        functional.cross_entropy(plain(b.x), b.y).backward()
        gradients = [p.grad for p in plain.parameters() if p.grad is not None]
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        with torch.no_grad():
            for p, g in zip(plain.parameters(), gradients, strict=True):
                p -= 0.1 * g * min(1.0, limit / norm)
                p.grad = None
    assert largest_difference(state(mine), state(plain)) < 1e-6
    assert largest_difference(state(mine), state(smooth())) <= 6 * 0.1 * limit + 1e-6


def test_schedules_see_round_and_step() -> None:
    seen = []

    def rate(round: int, step: int) -> float:
        seen.append((round, step))
        return 0.1 / (1 + round + step)

    mine, plain = smooth(), smooth()
    done = fit(mine, cross_entropy, draw(3), lr=rate, round=4)
    for step, b in enumerate(draw(3)):
        plain_training(plain, [(b.x, b.y)], torch.optim.SGD(plain.parameters(), lr=0.1 / (5 + step)))
    assert same_bits(state(mine), state(plain))
    assert set(seen) == {(4, 0), (4, 1), (4, 2)}
    assert done.learning_rate_sum == pytest.approx(0.1 / 5 + 0.1 / 6 + 0.1 / 7)


def test_exponential_and_cosine() -> None:
    assert [Exponential(0.8, 0.5)(r, 7) for r in range(3)] == [0.8, 0.4, 0.2]
    cosine = Cosine(1.0, 10, 0.2)
    assert (cosine(0, 3), cosine(5, 3)) == (1.0, pytest.approx(0.6))
    assert (cosine(10, 0), cosine(99, 0)) == (pytest.approx(0.2), pytest.approx(0.2))
    assert all(later < earlier for earlier, later in pairwise(cosine(r, 0) for r in range(11)))


def two_losses() -> dict[str, Objective]:
    return {"ce": cross_entropy, "size": lambda model, batch, step: model(batch.x).square().mean()}


def summed(gradients: Mapping[str, Gradients], parameters: Mapping[str, Tensor]) -> Gradients:
    return {key: torch.stack([g[key] for g in gradients.values()]).sum(0) for key in parameters}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_several_losses_are_summed_unless_a_rule_combines_them(optimizer: Any) -> None:
    by_default, by_rule, by_hand = smooth(), smooth(), smooth()
    mean = fit(by_default, two_losses(), draw(), lr=0.1, optimizer=optimizer).loss
    assert fit(by_rule, two_losses(), draw(), lr=0.1, combine=summed, optimizer=optimizer).loss == pytest.approx(mean)
    assert fit(by_hand, total(*two_losses().values()), draw(), lr=0.1, optimizer=optimizer).loss == pytest.approx(mean)
    assert largest_difference(state(by_default), state(by_rule)) < 1e-6
    assert largest_difference(state(by_default), state(by_hand)) < 1e-6


def test_a_rule_sees_each_gradient_and_the_parameters_and_decides_the_step() -> None:
    model, expected = smooth(), smooth()
    batch = draw(1)[0]
    wanted = {}
    for name, objective in two_losses().items():
        found = torch.autograd.grad(objective(expected, batch, 0), list(expected.parameters()))
        wanted[name] = dict(zip(dict(expected.named_parameters()), found, strict=True))
    given_: dict[str, Any] = {}

    def rule(gradients: Mapping[str, Gradients], parameters: Mapping[str, Tensor]) -> Gradients:
        given_.update(gradients)
        assert same_bits({k: p.clone() for k, p in parameters.items()}, state(expected))
        assert not any(p.requires_grad for p in parameters.values())
        return {"c.bias": torch.ones(3)}

    fit(model, two_losses(), [batch], lr=0.5, combine=rule)
    for name, gradients in wanted.items():
        assert largest_difference(gradients, given_[name]) < 1e-6
    moved = state(model)["c.bias"] - state(expected)["c.bias"]
    assert torch.allclose(moved, torch.full((3,), -0.5))
    assert {k for k in state(model) if not torch.equal(state(model)[k], state(expected)[k])} == {"c.bias"}


@pytest.mark.parametrize("train", ["a", "b", "c", ("a", "c"), "base", "modular", "all"])
@pytest.mark.parametrize("combine", [None, summed])
def test_frozen_parts_stay_bit_identical_with_their_buffers(train: Any, combine: Any) -> None:
    model, before = net(), state(net())
    fit(model, {"loss": cross_entropy}, draw(), lr=0.1, train=train, combine=combine, optimizer=Optimizer("adamw"))
    stages = {"all": "abc", "base": "ab", "modular": "c"}.get(str(train), train)
    after = state(model)
    assert {key for key in after if not torch.equal(before[key], after[key])} == {
        key for key in after if key[0] in stages
    }
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())


def test_frozen_normalisation_uses_its_running_statistics() -> None:
    model, plain = net(), net()
    fit(model, cross_entropy, draw(), lr=0.1, train="c")
    for part in ("a", "b"):
        plain.get_submodule(part).requires_grad_(False)
    head = torch.optim.SGD(plain.parameters_of("c").values(), lr=0.1)
    for b in draw():
        plain.eval()
        head.zero_grad()
        functional.cross_entropy(plain(b.x), b.y).backward()
        head.step()
    assert same_bits(state(model), state(plain))


def test_a_given_batch_finds_the_gradient_of_its_input() -> None:
    model, batch = smooth(), draw(1)[0]
    z = torch.randn(8, 6, generator=torch.Generator().manual_seed(3), requires_grad=True)
    w = model.c.weight.detach().clone()  # type: ignore[union-attr, operator]
    p = torch.softmax(model.modular(z).detach(), dim=1)
    expected = (p - functional.one_hot(batch.y, 3)) @ w / 8
    fit(model, modular_cross_entropy, [Batch(z, batch.y)], lr=0.1, train="modular")
    assert z.grad is not None
    assert torch.allclose(z.grad, expected, atol=1e-6)


def test_a_pulled_back_gradient_trains_the_front_as_the_whole_would() -> None:
    whole, cut = smooth(), smooth()
    for b in draw():
        front = cut.base(b.x)
        z = front.detach().requires_grad_()
        fit(cut, modular_cross_entropy, [Batch(z, b.y)], lr=0.1, train="modular")
        assert z.grad is not None
        fit(cut, partial(pull_back, gradient=z.grad), [Batch(front, b.y)], lr=0.1, train="base")
    plain_training(whole, [(b.x, b.y) for b in draw()], torch.optim.SGD(whole.parameters(), lr=0.1))
    assert largest_difference(state(whole), state(cut)) < 1e-6


def test_a_part_without_parameters_is_trained_without_effect() -> None:
    model = SplitModel({"in": nn.Identity(), "c": nn.Linear(5, 3)})
    before = state(model)
    b = draw(1)[0]
    done = fit(model, partial(pull_back, gradient=torch.ones(8, 5)), [b], lr=0.1, train="in")
    assert done.steps == 1
    assert same_bits(before, state(model))


def test_an_objective_that_ignores_the_model_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="does not require grad"):
        fit(smooth(), lambda model, batch, step: model(batch.x).detach().sum(), draw(1), lr=0.1)


def test_proximal_is_the_sum_of_squares_over_the_anchors_keys() -> None:
    model, anchor = smooth(0), state(smooth(1))
    own = state(model)
    for keys in (set(anchor), {"a.0.weight"}):
        kept = {key: anchor[key] for key in keys}
        expected = 0.5 * 0.3 * sum(float((own[key] - anchor[key]).square().sum()) for key in keys)
        assert float(proximal(model, draw(1)[0], 0, anchor=kept, mu=0.3).detach()) == pytest.approx(expected, rel=1e-5)
    fit(model, partial(proximal, anchor=anchor, mu=0.5), draw(1), lr=0.2)
    for key in own:  # without a loss on data the distance shrinks by 1 - eta mu
        assert torch.allclose(state(model)[key] - anchor[key], (own[key] - anchor[key]) * 0.9, atol=1e-6)


def test_one_row_is_left_out_and_counted_where_normalisation_trains_and_only_there() -> None:
    one = [Batch(torch.ones(1, 5), torch.tensor([1]))]
    model, before = net(), state(net())
    done = fit(model, cross_entropy, [*draw(2), *one], lr=0.1)
    assert (done.steps, done.samples, done.left_out) == (2, 16, 1)
    trained = net()
    fit(trained, cross_entropy, draw(2), lr=0.1)
    assert same_bits(state(trained), state(model))
    model = net()
    assert (fit(model, cross_entropy, one, lr=0.1).steps, fit(model, cross_entropy, one, lr=0.1).left_out) == (0, 1)
    assert same_bits(before, state(model))
    assert fit(model, cross_entropy, one, lr=0.1, train="c").steps == 1
    assert fit(smooth(), cross_entropy, one, lr=0.1).steps == 1


class _Spoiling(nn.Linear):
    """A head that works in place on what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2.0))


@pytest.mark.parametrize("train", ["all", "c"])
def test_outputs_of_a_part_are_those_before_each_step_of_the_batches_that_were_trained_on(train: str) -> None:
    """Also where the next stage works in place, or a batch got no further than the part itself."""

    def built() -> SplitModel:
        torch.manual_seed(0)
        return SplitModel({"a": nn.Linear(5, 4), "b": nn.BatchNorm1d(4), "c": _Spoiling(4, 3)})

    single = Batch(torch.ones(1, 5), torch.tensor([1]))
    batches = [*draw(2), *([single] if train == "all" else []), *draw(2)]
    model, plain = built(), built()
    done = fit(model, cross_entropy, batches, lr=0.1, train=train, outputs_of="base")
    expected, labels = [], []
    for batch in batches:
        if len(batch.y) > 1:
            with plain.training_parts(train), torch.no_grad():
                kept = {key: buffer.clone() for key, buffer in plain.named_buffers()}
                expected.append(plain.base(batch.x).clone())
                labels.append(batch.y)
                plain.load(kept)  # the statistics move once, in the step
        fit(plain, cross_entropy, [batch], lr=0.1, train=train)
    assert done.outputs is not None
    assert torch.equal(done.outputs.features, torch.cat(expected))
    assert torch.equal(done.outputs.y, torch.cat(labels))
    assert same_bits(state(model), state(plain))
    assert fit(model, cross_entropy, [], lr=0.1, outputs_of="base").outputs is None
    assert model.get_submodule("b")._forward_hooks == {}


def test_outputs_of_what_the_losses_do_not_run_are_refused() -> None:
    features = [Batch(torch.ones(2, 4), torch.tensor([0, 1]))]
    with pytest.raises(ModelError, match=r"outputs_of = 'base', but the losses do not run this part"):
        fit(net(), modular_cross_entropy, features, lr=0.1, outputs_of="base")
    empty = net().regrouped({"none": (), "rest": net().stage_names})
    with pytest.raises(ModelError, match="part 'none' has no stage"):
        fit(empty, cross_entropy, draw(), lr=0.1, outputs_of="none")


def test_outputs_of_a_module_with_several_uses_are_refused() -> None:
    relu = nn.ReLU()
    again = SplitModel({"a": nn.Linear(5, 5), "b": relu, "c": nn.Linear(5, 4), "d": relu, "e": nn.Linear(4, 3)})
    with pytest.raises(ModelError, match="part 'base' ends with one module that is used as b and d: .* of its own"):
        fit(again, cross_entropy, draw(), lr=0.1, outputs_of="base")


@pytest.mark.parametrize(
    ("layer", "trained"),
    [
        (nn.BatchNorm2d(4), True),
        (nn.BatchNorm2d(4, track_running_stats=False), True),
        (nn.SyncBatchNorm(4), True),
        (nn.InstanceNorm2d(4, track_running_stats=True), True),
        (nn.GroupNorm(2, 4), True),
        (nn.Sequential(nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.BatchNorm2d(4)), False),
        (nn.Sequential(nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.GroupNorm(4, 4)), False),
        (nn.Sequential(nn.BatchNorm2d(4), nn.Flatten(), nn.LayerNorm(16), nn.BatchNorm1d(16)), False),
        (nn.Sequential(nn.BatchNorm2d(4), nn.Flatten(2), nn.BatchNorm1d(4)), True),
        (nn.Sequential(nn.Unflatten(1, (4, 1)), nn.BatchNorm3d(4)), True),
    ],
)
def test_one_row_is_trained_on_where_pytorch_does_and_otherwise_leaves_no_trace(
    layer: nn.Module, trained: bool
) -> None:
    """PyTorch refuses one value a channel, not one row."""
    one = Batch(torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([1]))
    with seeded(0, "one row"):
        front, tail = nn.Sequential(nn.Conv2d(1, 4, 1), layer, nn.Flatten()), nn.LazyLinear(3)
        tail(front(torch.randn(2, 1, 2, 2)))
    model = SplitModel({"a": front, "c": tail})
    before = state(model)
    done = fit(model, cross_entropy, [one], lr=0.1)
    assert (done.steps, done.left_out) == ((1, 0) if trained else (0, 1))
    assert same_bits(before, state(model)) is not trained


def test_what_is_refused_with_several_rows_is_an_error() -> None:
    model = SplitModel(
        {"a": nn.Sequential(nn.Unflatten(1, (5, 1)), nn.InstanceNorm1d(5), nn.Flatten()), "c": nn.Linear(5, 3)}
    )
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        fit(model, cross_entropy, draw(1), lr=0.1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_an_error_with_advice(bad: float) -> None:
    batches = draw(3)
    batches[1] = Batch(torch.full((8, 5), bad), batches[1].y)
    with pytest.raises(DivergedError, match=r"mean loss of 3 steps is nan; try a lower learning rate"):
        fit(smooth(), cross_entropy, batches, lr=0.1)


def test_no_batches_do_nothing() -> None:
    model = net()
    done = fit(model, cross_entropy, [], lr=0.1)
    assert (done.steps, done.samples, done.learning_rate_sum, done.loss) == (0, 0, 0.0, 0.0)
    assert same_bits(state(net()), state(model))


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(ModelError, match="no part 'bsae': did you mean 'base'"):
        fit(smooth(), cross_entropy, draw(1), lr=0.1, train="bsae")


@given(st.integers(1, 9), st.integers(1, 4), st.floats(1e-4, 0.5))
def test_counts_add_up(size: int, count: int, lr: float) -> None:
    done = fit(smooth(), cross_entropy, draw(count, size), lr=lr)
    assert (done.steps, done.samples) == (count, count * size)
    assert done.learning_rate_sum == pytest.approx(count * lr)


@pytest.mark.parametrize("names", [("loss",), ("one", "two")])
def test_gradients_are_combined_around_what_the_model_has_frozen(names: tuple[str, ...]) -> None:
    mine, plain = smooth(), smooth()
    frozen = {"a.0.weight", "c.bias"}
    for model in (mine, plain):
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(key not in frozen)
    first, seen = state(mine), set[str]()

    def combine(gradients: Mapping[str, Gradients], parameters: Mapping[str, Tensor]) -> Gradients:
        seen.update(parameters, *gradients.values())
        return {key: sum(g[key] for g in gradients.values()) / len(names) for key in parameters}  # type: ignore[misc]

    fit(mine, dict.fromkeys(names, cross_entropy), draw(), lr=0.1, combine=combine)
    trained = [p for p in plain.parameters() if p.requires_grad]
    plain_training(plain, [(b.x, b.y) for b in draw()], torch.optim.SGD(trained, lr=0.1))
    assert largest_difference(state(mine), state(plain)) < 1e-6
    assert seen == {key for key, _ in mine.named_parameters()} - frozen
    assert same_bits({key: first[key] for key in frozen}, {key: state(mine)[key] for key in frozen})
    assert not same_bits(first, state(mine))
