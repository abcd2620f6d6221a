from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from worlds import coverage

from interfuse.aggregation import (
    BufferPolicy,
    Plan,
    Update,
    counted_mean,
    extract,
    keys_plan,
    recalibrate,
    travels,
    use_batch_statistics,
)
from interfuse.errors import ConfigError, DataError, ModelError
from interfuse.randomness import seeded

SHAPES: Mapping[str, tuple[int, ...]] = {"w": (4, 3), "b": (4,), "k": (2, 3, 2), "s": ()}


def tensors(seed: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=draw, dtype=torch.float64) for key, shape in shapes.items()}


def index(size: int) -> st.SearchStrategy[Tensor | None]:
    some = st.lists(st.integers(0, size - 1), unique=True).map(lambda held: torch.tensor(held, dtype=torch.int64))
    return st.none() | some


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    whole = st.none()
    choices = {key: whole | st.tuples(*(index(size) for size in shape)) for key, shape in SHAPES.items()}
    return {key: draw(choice) for key, choice in choices.items() if draw(st.booleans())}


@st.composite
def some_updates(draw: st.DrawFn) -> list[Update]:
    count = draw(st.integers(0, 4))
    return [
        (plan := draw(plans()), extract(tensors(draw(st.integers(0, 99))), plan), draw(st.floats(0.1, 50)))
        for _ in range(count)
    ]


def positions(plan: Plan, key: str) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Position in the server's tensor -> position in the client's, by plain loops."""
    if key not in plan:
        return {}
    held = plan[key]
    every = [
        list(range(size)) if held is None or held[axis] is None else held[axis].tolist()
        for axis, size in enumerate(SHAPES[key])
    ]
    return {
        tuple(every[axis][i] for axis, i in enumerate(there)): there
        for there in itertools.product(*(range(len(one)) for one in every))
    }


@settings(max_examples=150, deadline=None)
@given(some_updates())
def test_counted_mean_against_loops(updates: list[Update]) -> None:
    server = tensors(1000)
    result = counted_mean(server, updates)
    counts = coverage(server, [plan for plan, _, _ in updates])
    assert list(result) == list(server)
    for key, shape in SHAPES.items():
        for place in itertools.product(*map(range, shape)):
            sent = [
                (values[key][positions(plan, key)[place]].item(), weight)
                for plan, values, weight in updates
                if place in positions(plan, key)
            ]
            expected = server[key][place].item()
            if sent:
                expected = math.fsum(v * w for v, w in sent) / math.fsum(w for _, w in sent)
            assert result[key][place].item() == pytest.approx(expected, abs=1e-12)
            assert counts[key][place] == len(sent)


@settings(max_examples=60, deadline=None)
@given(plans(), st.floats(0.1, 50))
def test_what_one_client_extracts_and_returns_changes_nothing(plan: Plan, weight: float) -> None:
    server = tensors(1)
    twice = [(plan, extract(server, plan), weight), (plan, extract(server, plan), 0.3 * weight)]
    for updates in (twice[:1], twice):
        result = counted_mean(server, updates)
        assert all(torch.equal(result[key], server[key]) for key in server)


@settings(max_examples=60, deadline=None)
@given(plans(), st.floats(1e-6, 1e6))
def test_a_single_holder_is_taken_bit_for_bit(plan: Plan, weight: float) -> None:
    server, own = tensors(1), {key: tensor.float() for key, tensor in tensors(2).items()}
    own["b"][0] = -0.0
    server = {key: tensor.float() for key, tensor in server.items()}
    result = counted_mean(server, [(plan, extract(own, plan), weight)])
    for key in SHAPES:
        held = coverage(server, [plan])[key] > 0
        expected = torch.where(held, own[key], server[key])
        assert torch.equal(result[key].view(torch.int32), expected.view(torch.int32))


@settings(max_examples=40, deadline=None)
@given(some_updates(), st.randoms())
def test_order_matters_only_by_rounding(updates: list[Update], random: object) -> None:
    server, shuffled = tensors(0), list(updates)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = counted_mean(server, updates), counted_mean(server, shuffled)
    for key in server:
        torch.testing.assert_close(one[key], other[key], rtol=1e-12, atol=1e-12)


def test_whole_tensors_and_full_indices_give_the_same_bits() -> None:
    server = {key: tensor.float() for key, tensor in tensors(0).items()}
    values = [{key: tensor.float() for key, tensor in tensors(seed).items()} for seed in range(1, 6)]
    weights = [3.0, 100.0, 0.7, 13.0, 1.0]
    full = {key: tuple(torch.arange(size) for size in shape) for key, shape in SHAPES.items()}
    by_key = counted_mean(server, [(keys_plan(server), v, w) for v, w in zip(values, weights, strict=True)])
    by_index = counted_mean(server, [(full, v, w) for v, w in zip(values, weights, strict=True)])
    again = counted_mean(server, [(keys_plan(server), v, w) for v, w in zip(values, weights, strict=True)])
    for key in server:
        assert torch.equal(by_key[key], by_index[key])
        assert torch.equal(by_key[key], again[key])


def test_results_are_new_and_inputs_stay() -> None:
    server = {"w": torch.zeros(3), "untouched": torch.ones(2), "count": torch.tensor(7)}
    sent = {"w": torch.full((3,), 2.0)}
    result = counted_mean(server, [(keys_plan(["w"]), sent, 1.0), (keys_plan(["w"]), sent, 1.0)])
    for tensor in result.values():
        tensor.fill_(-5)
    part = extract(server, {"w": (torch.tensor([2, 0]),), "untouched": None})
    part["w"].fill_(9)
    part["untouched"].fill_(9)
    assert server["w"].tolist() == [0.0] * 3
    assert server["untouched"].tolist() == [1.0] * 2
    assert server["count"] == 7
    assert sent["w"].tolist() == [2.0] * 3


@pytest.mark.parametrize("held", [None, (torch.arange(2),)])
def test_what_the_server_had_does_not_enter_the_mean(held: tuple[Tensor] | None) -> None:
    server = {"w": torch.tensor([math.nan, math.inf])}
    updates: list[Update] = [({"w": held}, {"w": torch.tensor([1.0, 2.0])}, 3.0)]
    assert counted_mean(server, updates)["w"].tolist() == [1.0, 2.0]


def test_two_rates_average_where_they_overlap() -> None:
    # HeteroFL: rate 1 and rate 1/2; the half's block is the mean, the rest is the large client's.
    server = {"w": torch.zeros(4, 4)}
    half: Plan = {"w": (torch.arange(2), torch.arange(2))}
    result = counted_mean(
        server, [(keys_plan(server), {"w": torch.full((4, 4), 1.0)}, 1.0), (half, {"w": torch.full((2, 2), 4.0)}, 2.0)]
    )
    expected = torch.full((4, 4), 1.0)
    expected[:2, :2] = 3.0
    assert torch.equal(result["w"], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_is_the_servers_and_integers_are_skipped(dtype: torch.dtype) -> None:
    server = {"w": torch.zeros(3, dtype=dtype), "count": torch.tensor(7), "flag": torch.tensor([True])}
    # Sent or not, a counter is left alone.
    updates = [
        (keys_plan(server), {"w": torch.full((3,), 60_000.0), "count": torch.tensor(900)}, 1.0),
        (keys_plan(server), {"w": torch.full((3,), 30_000.0)}, 1.0),
    ]
    result = counted_mean(server, updates)
    assert result["w"].dtype == dtype
    # The sum, 90,000, lies outside float16.
    assert result["w"].tolist() == pytest.approx([45_000.0] * 3, rel=0.01)
    assert (result["count"].item(), result["flag"].tolist()) == (7, [True])


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
def test_weights_must_be_positive_and_finite(weight: float) -> None:
    with pytest.raises(ConfigError, match="positive and finite"):
        counted_mean({"w": torch.zeros(1)}, [({}, {}, weight)])


@pytest.mark.parametrize(
    ("plan", "values", "complaint"),
    [
        ({"weigth": None}, {}, "did you mean 'weight'"),
        ({"weight": None}, {}, "did not send 'weight'"),
        ({}, {"weight": torch.zeros(2, 3)}, "not in its plan"),
        ({"weight": None}, {"weight": torch.zeros(3, 2)}, r"expected shape \(2, 3\), found \(3, 2\)"),
        ({"weight": (None,)}, {"weight": torch.zeros(2, 3)}, "has 1 dimensions"),
        ({"weight": (None, torch.tensor([0, 3]))}, {"weight": torch.zeros(2, 2)}, r"dimension 1: .* in \[0, 3\)"),
        ({"weight": (torch.tensor([-1]), None)}, {"weight": torch.zeros(1, 3)}, r"dimension 0: .* in \[0, 2\)"),
        ({"weight": (torch.tensor([1, 1]), None)}, {"weight": torch.zeros(2, 3)}, "listed twice"),
        ({"weight": (torch.tensor([0.0]), None)}, {"weight": torch.zeros(1, 3)}, "vector of int64"),
        ({"weight": (torch.tensor([1]), None)}, {"weight": torch.zeros(2, 3)}, r"expected shape \(1, 3\)"),
    ],
)
def test_plans_and_values_that_do_not_fit(plan: Plan, values: dict[str, Tensor], complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        counted_mean({"weight": torch.zeros(2, 3)}, [(plan, values, 1.0)])


def normalised() -> nn.Sequential:
    with seeded(0):
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def data(rows: int, seed: int = 0) -> Tensor:
    return 3 + 2 * torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))


def test_what_travels_under_each_policy() -> None:
    model = normalised()
    parameters = {key for key, _ in model.named_parameters()}
    for policy in BufferPolicy:
        sent = {
            key
            for key, t in model.state_dict().items()
            if travels(policy, is_buffer=key not in parameters, dtype=t.dtype)
        }
        buffers = {"1.running_mean", "1.running_var"} if policy is BufferPolicy.AGGREGATE else set()
        assert sent == parameters | buffers


@pytest.mark.parametrize("training", [True, False])
def test_batch_statistics_need_no_running_ones(training: bool) -> None:
    layer, x = nn.BatchNorm1d(3).train(training), data(64)
    before = {key: tensor.clone() for key, tensor in layer.state_dict().items()}
    buffer = layer.running_mean
    expected = (x - x.mean(0)) / (x.var(0, unbiased=False) + layer.eps).sqrt()
    with pytest.raises(KeyError), use_batch_statistics(nn.Sequential(layer)):
        torch.testing.assert_close(layer(x), expected)
        raise KeyError
    assert layer.running_mean is buffer
    assert layer.track_running_stats
    assert all(torch.equal(before[key], tensor) for key, tensor in layer.state_dict().items())
    assert torch.allclose(layer.eval()(x), x, atol=1e-3)


def test_batch_statistics_leave_other_layers_alone() -> None:
    without = nn.BatchNorm1d(3, track_running_stats=False)
    instance = nn.InstanceNorm1d(3, track_running_stats=True).eval()
    x = data(64).T[None]
    with use_batch_statistics(nn.Sequential(without, instance, nn.LayerNorm(3))):
        torch.testing.assert_close(instance(x), nn.functional.instance_norm(x))
    assert not without.track_running_stats
    assert without.running_mean is None
    torch.testing.assert_close(instance(x), x, atol=1e-3, rtol=1e-3)


def test_recalibrated_on_one_batch_the_statistics_are_those_of_the_data() -> None:
    model, x = normalised(), data(200)
    model[1].momentum = 0.3
    model.train()
    model[1].eval()
    model(data(20, seed=1))
    parameters = {key: p.clone() for key, p in model.named_parameters()}
    recalibrate(model, [x])
    with torch.no_grad():
        hidden = model[0](x)
    torch.testing.assert_close(model[1].running_mean, hidden.mean(0))
    torch.testing.assert_close(model[1].running_var, hidden.var(0, unbiased=True))
    assert model[1].momentum == 0.3
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    assert all(torch.equal(parameters[key], p) and p.grad is None for key, p in model.named_parameters())


def test_recalibrated_on_batches_the_statistics_are_averages_and_forget_the_past() -> None:
    model, x = normalised(), data(200)
    recalibrate(model, [data(50, seed=1) * 10])
    recalibrate(model, iter(x.split(40)))
    with torch.no_grad():
        hidden = [model[0](batch) for batch in x.split(40)]
    torch.testing.assert_close(model[1].running_mean, torch.cat(hidden).mean(0))
    torch.testing.assert_close(model[1].running_var, torch.stack([h.var(0) for h in hidden]).mean(0))
    assert model[1].num_batches_tracked == 5


def test_recalibrating_ignores_dropout_and_layers_without_statistics() -> None:
    layers = (nn.Dropout(0.5), nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False))
    x = data(100)
    recalibrate(nn.Sequential(*layers), [x])
    torch.testing.assert_close(layers[1].running_mean, x.mean(0))


def test_recalibrating_on_nothing_changes_nothing() -> None:
    model = normalised()
    recalibrate(model, [data(50)])
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(DataError, match="at least one batch"):
        recalibrate(model, [])
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
