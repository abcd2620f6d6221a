from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interfuse.data import Batch
from interfuse.models import SplitModel, make, resolve
from interfuse.models.arranging import pool_first
from interfuse.numerics import Numerics
from interfuse.training import cross_entropy, fit

MAPS = [torch.contiguous_format, torch.channels_last]
POOLINGS: list[Mapping[str, Any]] = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 1},
    {"kernel_size": 2, "ceil_mode": True},
]


def bits(tensor: Tensor) -> Tensor:
    """Of all numbers; of what is none, that it is none."""
    tensor = torch.where(tensor.isnan(), torch.nan, tensor)
    return tensor.detach().contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def values(kind: str, shape: tuple[int, ...]) -> Tensor:
    noise = torch.Generator().manual_seed(0)
    x, share = torch.randn(shape, generator=noise), torch.rand(shape, generator=noise)
    match kind:
        case "no window above 0":
            return -x.abs()
        case "ties":
            return x.mul(1.5).round() + 0.0  # no -0.0
        case "not numbers":
            return torch.where(share < 0.05, torch.nan, torch.where(share > 0.9, -torch.inf, x))
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("kind", ["numbers", "no window above 0", "ties", "not numbers"])
def test_relu_and_maximum_commute_bit_for_bit_and_so_do_their_gradients(
    kind: str, sides: int, dtype: torch.dtype
) -> None:
    x = values(kind, (3, 5, 13) if sides == 1 else (3, 5, 13, 12)).to(dtype)
    for options in POOLINGS:
        pooling = nn.MaxPool1d(**options) if sides == 1 else nn.MaxPool2d(**options)
        for memory in MAPS[: 1 if sides == 1 else 2]:
            found = []
            for layers in (nn.Sequential(nn.ReLU(), pooling), nn.Sequential(pooling, nn.ReLU())):
                given = x.clone(memory_format=memory).requires_grad_()
                out = layers(given)
                out.backward(torch.arange(1, out.numel() + 1).view(out.shape).to(dtype))
                assert given.grad is not None
                found.append((bits(out), bits(given.grad)))
            assert torch.equal(found[0][0], found[1][0])
            assert torch.equal(found[0][1], found[1][1])


def hooked(register: Callable[[nn.Module], object]) -> nn.Sequential:
    layers = block()
    register(layers[1])
    return layers


def block(relu: nn.Module | None = None, pooling: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU() if relu is None else relu, pooling or nn.MaxPool2d(2))


class Own(nn.Sequential):
    """What it does with its layers is its own affair."""


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = block()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.layers[:2](x).flatten(1), self.layers(x).flatten(1)], 1)


SHARED = nn.ReLU()


def kinds(stage: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in stage.modules() if not list(layer.children())]


@pytest.mark.parametrize(
    "stages",
    [
        {"a": block(nn.ReLU(inplace=True))},
        {"a": block(nn.ReLU6())},
        {"a": block(pooling=nn.AvgPool2d(2))},
        {"a": block(pooling=nn.MaxPool2d(2, return_indices=True))},
        {"a": block(pooling=nn.MaxPool2d(2, padding=1, dilation=2))},
        {"a": nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Identity(), nn.MaxPool2d(2))},
        {"a": nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), "b": nn.MaxPool2d(2)},
        {"a": nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), nn.MaxPool2d(2))},
        {"a": block(SHARED), "b": nn.Sequential(nn.Conv2d(2, 2, 3), SHARED)},
        {"a": Own(*block())},
        {"a": Whole()},
        {"a": hooked(lambda layer: layer.register_forward_hook(lambda *_: None))},
        {"a": hooked(lambda layer: layer.register_forward_pre_hook(lambda *_: None))},
        {"a": hooked(lambda layer: layer.register_full_backward_hook(lambda *_: None))},
        {"a": hooked(lambda layer: layer.register_full_backward_pre_hook(lambda *_: None))},
    ],
)
def test_layers_that_others_may_see_stay_where_they_are(stages: dict[str, nn.Module]) -> None:
    model = SplitModel(stages)
    before = kinds(model)
    pool_first(model)
    assert kinds(model) == before


def test_neighbours_trade_places_also_in_sequences_of_sequences_and_before_two_poolings() -> None:
    model = SplitModel({"a": nn.Sequential(block(), nn.Conv2d(2, 2, 3)), "b": nn.Sequential(*block(), nn.MaxPool2d(2))})
    keys = list(model.state_dict())
    pool_first(model)
    assert kinds(model) == ["Conv2d", "MaxPool2d", "ReLU", "Conv2d", "Conv2d", "MaxPool2d", "MaxPool2d", "ReLU"]
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("name", ["cnn-bn", "deep-head"])
def test_a_model_that_is_made_trains_to_the_bits_of_the_builders(name: str) -> None:
    builder = resolve(name)
    made = make(lambda: builder((1, 12, 12), 3, 36), 0, "test", device="cpu", numerics=Numerics(layout="contiguous"))
    plain = builder((1, 12, 12), 3, 36)
    assert list(made.state_dict()) == list(plain.state_dict())
    assert kinds(made) != kinds(plain)
    plain.load_state_dict(made.state_dict())
    noise = torch.Generator().manual_seed(0)
    batches = [Batch(torch.randn(6, 1, 12, 12, generator=noise), torch.arange(6) % 3) for _ in range(4)]
    for model in (made, plain):
        fit(model, cross_entropy, batches, lr=0.1)
    for key, tensor in plain.state_dict().items():
        assert torch.equal(made.state_dict()[key], tensor), key
