from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from worlds import coverage

from interfuse.aggregation import Plan, counted_mean, extract
from interfuse.errors import ModelError
from interfuse.models import SplitModel, resolve
from interfuse.models.plans import width_plan, window, with_rows


class Bottleneck(nn.Module):
    """Convolutions of 1, 3 and 1 beside the identity: the block whose third convolution is easily forgotten."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.norm2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.norm3 = nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x)).relu()
        y = self.norm2(self.conv2(y)).relu()
        return (self.norm3(self.conv3(y)) + x).relu()


def bottlenecks(rate: float, *, blocks: int = 2) -> SplitModel:
    channels, inner = math.ceil(12 * Fraction(str(rate))), math.ceil(5 * Fraction(str(rate)))
    stages: dict[str, nn.Module] = {"stem": nn.Conv2d(2, channels, 3, padding=1)}
    stages |= {f"layer1.{i}": Bottleneck(channels, inner) for i in range(blocks)}
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3))
    return SplitModel(stages | {"classifier": head})


def perceptron(rate: float) -> SplitModel:
    wide, slim = math.ceil(9 * Fraction(str(rate))), math.ceil(4 * Fraction(str(rate)))
    first = nn.Sequential(nn.Flatten(), nn.Linear(2 * 8 * 8, wide), nn.BatchNorm1d(wide), nn.ReLU())
    return SplitModel(
        {"first": first, "second": nn.Sequential(nn.Linear(wide, slim), nn.ReLU()), "last": nn.Linear(slim, 3)}
    )


def resnet(rate: float) -> SplitModel:
    return resolve(f"resnet14-narrow@{rate}")((2, 8, 8), 3, 0)


def with_exits(rate: float) -> SplitModel:
    return resolve(f"resnet10-narrow-exits{2 if rate < 1 else 4}@{rate}")((2, 8, 8), 3, 0)


FAMILIES: list[Callable[[float], SplitModel]] = [resnet, bottlenecks, perceptron, with_exits]


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def rough(model: SplitModel, seed: int = 0) -> dict[str, Tensor]:
    """Other values for all tensors, variances above zero."""
    draw = torch.Generator().manual_seed(seed)
    return {
        key: torch.rand(t.shape, generator=draw) + 0.5 if "var" in key else torch.randn(t.shape, generator=draw) / 2
        for key, t in model.tensors().items()
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rate", [0.5, 0.3])
@pytest.mark.parametrize("shift", [0, -1, 3, 17])
def test_a_slice_is_the_whole_network_without_the_other_channels(
    family: Callable[[float], SplitModel], rate: float, shift: int
) -> None:
    """The windows of all layers fit together: as if the channels outside of them gave nothing."""
    whole, part = family(1), family(rate)
    values = rough(whole)
    plan = width_plan(shapes(whole.tensors()), shapes(part.tensors()), shift)
    part.load(extract(values, plan))
    if family is with_exits:
        whole = resolve("resnet10-narrow-exits2")((2, 8, 8), 3, 0)
    nothing = {key: torch.zeros_like(value) for key, value in whole.tensors().items()}
    whole.load(counted_mean(nothing, [(plan, extract(values, plan), 1.0)]))
    x = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    with whole.evaluating(), part.evaluating():
        torch.testing.assert_close(part(x), whole(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shift", [0, 5])
def test_extract_and_scatter_are_exact_inverses(family: Callable[[float], SplitModel], shift: int) -> None:
    whole, part = family(1), family(0.4)
    server, plan = rough(whole), width_plan(shapes(whole.tensors()), shapes(part.tensors()), shift)
    assert shapes(extract(server, plan)) == shapes(part.tensors())
    unchanged = counted_mean(server, [(plan, extract(server, plan), 2.0)])
    assert all(torch.equal(unchanged[key], server[key]) for key in server)
    new = {key: value + 1 for key, value in rough(part, seed=2).items()}
    written = counted_mean(server, [(plan, new, 2.0)])
    assert all(torch.equal(value, new[key]) for key, value in extract(written, plan).items())
    held = coverage(server, [plan])
    assert all(torch.equal(written[key][held[key] == 0], server[key][held[key] == 0]) for key in server)
    assert sum(int(count.sum()) for count in held.values()) == sum(value.numel() for value in new.values())


def by_loops(lengths: tuple[int, ...], shape: tuple[int, ...], shift: int) -> set[tuple[int, ...]]:
    """The positions that are held, one by one."""
    axes = [
        {(i + shift) % n if m < n else i for i in range(m)} for n, m in zip(lengths, shape, strict=True)
    ]  # fmt: skip
    return set(itertools.product(*axes))


@st.composite
def some_parts(draw: st.DrawFn) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]], int]:
    """A chain of layers, and a narrower one with fewer of them."""
    widths = [draw(st.integers(1, 6)) for _ in range(4)]
    held = [draw(st.integers(1, width)) for width in widths]
    whole, part = {}, {}
    for i, ((a, b), (c, d)) in enumerate(zip(itertools.pairwise(widths), itertools.pairwise(held), strict=True)):
        first = i == 0
        whole |= {f"{i}.w": (b, a, 2), f"{i}.b": (b,)}
        if i < draw(st.integers(1, 3)):
            part |= {f"{i}.w": (d, a if first else c, 2), f"{i}.b": (d,)}
    return whole, part, draw(st.integers(-9, 9))


@settings(max_examples=100, deadline=None)
@given(some_parts())
def test_positions_of_a_window(drawn: tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]], int]) -> None:
    whole, part, shift = drawn
    plan = width_plan(whole, part, shift)
    counts = coverage({key: torch.zeros(shape) for key, shape in whole.items()}, [plan])
    for key, lengths in whole.items():
        wanted = by_loops(lengths, part[key], shift) if key in part else set()
        assert {tuple(place.tolist()) for place in counts[key].nonzero()} == wanted


@given(n=st.integers(1, 12), m=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_rolling_reaches_every_channel_equally_often(n: int, m: int) -> None:
    m = min(m, n)
    rounds = [window(n, m, -round) for round in range(n)]
    picked = torch.cat([torch.arange(n) if held is None else held for held in rounds])
    assert torch.bincount(picked, minlength=n).tolist() == [m] * n
    assert rounds[0] is None or rounds[0].tolist() == list(range(m))


def test_ordered_dropout_nests_and_full_rows_are_all_rows() -> None:
    model = {rate: shapes(resnet(rate).tensors()) for rate in (0.25, 0.5, 1)}
    zeros = {key: torch.zeros(shape) for key, shape in model[1].items()}
    small, middle = (coverage(zeros, [width_plan(model[1], model[rate])]) for rate in (0.25, 0.5))
    assert all((small[key] <= middle[key]).all() for key in zeros)
    by_hand = width_plan(model[0.5], model[0.25])  # the same inside of the middle one
    inner = coverage({key: torch.zeros(shape) for key, shape in model[0.5].items()}, [by_hand])
    assert all(inner[key].sum() == small[key].sum() for key in zeros)


def test_rows_of_a_plan() -> None:
    server = {"fc.weight": torch.zeros(4, 6), "fc.bias": torch.zeros(4), "body": torch.zeros(6)}
    parts = {"fc.weight": (4, 3), "fc.bias": (4,), "body": (3,)}
    plan = width_plan(shapes(server), parts, shift=-1)
    fc = {key: parts[key] for key in ("fc.weight", "fc.bias")}
    held = coverage(server, [with_rows(plan, fc, torch.tensor([1, 3]))])
    assert held["fc.bias"].tolist() == [0, 1, 0, 1]
    assert held["fc.weight"].tolist() == [[0] * 6, [1, 1, 0, 0, 0, 1]] * 2
    assert held["body"].tolist() == [1, 1, 0, 0, 0, 1]
    nobody = with_rows(plan, fc, torch.tensor([], dtype=torch.int64))
    sent = {"fc.weight": torch.zeros(0, 3), "fc.bias": torch.zeros(0), "body": torch.ones(3)}
    assert counted_mean(server, [(nobody, sent, 1.0)])["fc.bias"].tolist() == [0] * 4
    whole: Plan = width_plan(parts, parts)
    assert list(with_rows(whole, fc, torch.arange(4))) == list(parts)


@pytest.mark.parametrize(
    ("part", "shift", "complaint"),
    [
        ({"a.w": (3, 2), "c.w": (1,)}, 0, "a tensor 'c.w' that the larger model has not"),
        ({"a.w": (5, 2)}, 0, r"'a.w' of shape \(5, 2\) is no slice of one of shape \(4, 2\)"),
        ({"a.w": (4,)}, 0, "is no slice"),
        ({"a.w": (2, 2), "b.w": (3, 18)}, 1, "'b.w' takes 18 of 36 inputs, which no layer gives"),
    ],
)
def test_parts_that_are_none(part: dict[str, tuple[int, ...]], shift: int, complaint: str) -> None:
    whole = {"a.w": (4, 2), "b.w": (3, 36)}  # a layer that takes maps of 4 channels and 9 points, flattened
    with pytest.raises(ModelError, match=complaint):
        width_plan(whole, part, shift)
    width_plan(whole, {"a.w": (2, 2), "b.w": (3, 18)})  # the first channels fit: they come first in a flattened map
