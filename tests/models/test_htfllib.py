"""HtFLlib's models: as many parameters as published, features of any width, one linear modular block."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from interfuse.errors import ModelError
from interfuse.models import SplitModel, measure, resolve


def build(name: str, shape: tuple[int, ...] = (3, 32, 32), classes: int = 100, width: int = 512) -> SplitModel:
    torch.manual_seed(0)
    return resolve(name)(shape, classes, width)


@pytest.mark.parametrize(
    ("shape", "classes", "by_layer"),
    [
        ((3, 32, 32), 100, (2_432, 51_264, 819_712, 51_300)),  # 924,708: what FML sends in FedTGP's table 5
        ((1, 28, 28), 10, (832, 51_264, 524_800, 5_130)),
    ],
)
def test_the_parameters_of_the_cnn(shape: tuple[int, ...], classes: int, by_layer: tuple[int, ...]) -> None:
    model = build("htfl-cnn", shape, classes)
    parameters = [parameter.numel() for parameter in model.parameters()]
    assert tuple(a + b for a, b in zip(parameters[::2], parameters[1::2], strict=True)) == by_layer
    assert sum(by_layer) == {100: 924_708, 10: 582_026}[classes]
    assert measure(model, torch.zeros(2, *shape)).fusion_width == 512


def test_the_cnn_by_hand() -> None:
    model, x = build("htfl-cnn", (3, 20, 17), 5, 100), torch.randn(4, 3, 20, 17)
    t = {key.removeprefix("htfl-cnn."): tensor for key, tensor in model.state_dict().items()}
    first = functional.max_pool2d(functional.conv2d(x, t["conv1.0.weight"], t["conv1.0.bias"]).relu(), 2)
    second = functional.max_pool2d(functional.conv2d(first, t["conv2.0.weight"], t["conv2.0.bias"]).relu(), 2)
    features = functional.linear(second.flatten(1), t["fc1.1.weight"], t["fc1.1.bias"]).relu()
    # 512 features in 100 windows: from the floor of 5.12 i to the ceiling of 5.12 (i + 1)
    pooled = [features[:, 512 * i // 100 : -(-512 * (i + 1) // 100)].mean(1) for i in range(100)]
    with model.evaluating():
        torch.testing.assert_close(model.base(x), torch.stack(pooled, 1))
        expected = functional.linear(torch.stack(pooled, 1), t["classifier.weight"], t["classifier.bias"])
        torch.testing.assert_close(model(x), expected)


def test_the_linear_modular_block_is_that_of_the_zoo() -> None:
    model, other = build("htfl-cnn", width=432), build("cnn", width=432)
    assert (
        model.tensors("modular").keys() == other.tensors("modular").keys() == {"classifier.weight", "classifier.bias"}
    )


@pytest.mark.parametrize("shape", [(3, 15, 32), (9, 128), (13,)])
def test_samples_that_the_cnn_cannot_take(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="'htfl-cnn' takes images .* at least 16 points a side, not samples of shape"):
        build("htfl-cnn", shape)
    assert measure(build("htfl-cnn", (1, 16, 16)), torch.zeros(2, 1, 16, 16)).output_shape == (100,)
