"""HtFLlib's models: the published numbers of parameters and multiplications, features of any width, and its groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from interfuse.errors import ConfigError, ModelError
from interfuse.models import FEDERATIONS, SplitModel, expanded, measure, resolve
from interfuse.models.htfllib import builders
from interfuse.runs.config import parse_config


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


@pytest.mark.parametrize(
    ("name", "features", "parameters", "multiplications"),
    [  # of torchvision's models at 224 by 224 with 1,000 classes, as its documentation has them (GFLOPS there)
        ("tv-resnet18", 512, 11_689_512, 1.814),
        ("tv-resnet34", 512, 21_797_672, 3.664),
        ("tv-resnet50", 2048, 25_557_032, 4.089),
        ("tv-resnet101", 2048, 44_549_160, 7.801),
        ("tv-resnet152", 2048, 60_192_808, 11.514),
        ("tv-googlenet", 1024, 6_624_904, 1.498),
        ("tv-mobilenetv2", 1280, 3_504_872, 0.301),
        ("tv-vit-b16", 768, 86_567_656, 17.564),
        ("tv-vit-b32", 768, 88_224_232, 4.409),
        # by hand: stem, then groups of one block of two 3x3 convolutions with two numbers a channel for the norms
        ("tv-resnet4", 64, 9_536 + 73_984 + 65_000, None),
        ("tv-resnet6", 128, 9_536 + 73_984 + 230_144 + 129_000, None),
    ],
)
def test_the_published_numbers(name: str, features: int, parameters: int, multiplications: float | None) -> None:
    with torch.device("meta"):
        model, x = build(name, (3, 224, 224), 1000), torch.empty(2, 3, 224, 224)
    layers = model.stage_names[: model.stage_names.index(f"{name}.fusion")]
    with FlopCounterMode(display=False) as counter:
        for layer in layers:
            x = model.get_submodule(layer)(x)
    assert x.shape == (2, features)
    linear = (features + 1) * 1000
    assert sum(parameter.numel() for parameter in model.parameters_of("base").values()) + linear == parameters
    if multiplications is not None:  # two operations a multiplication, for two images
        assert round(counter.get_total_flops() / 4e9 + features * 1e-6, 3) == multiplications


@pytest.mark.parametrize("name", [*builders(), "tv-resnet18-h128", "tv-vit-b16-h64"])
@pytest.mark.parametrize(("shape", "width"), [((3, 32, 32), 40), ((1, 64, 32), 700)])
def test_narrow_ones_of_any_width_learn(name: str, shape: tuple[int, ...], width: int) -> None:
    """Every parameter has a gradient, and every row of a batch its own output in evaluation."""
    network, _, hidden = name.partition("-h")
    name = f"{network}-narrow-h{hidden}" if hidden else f"{network}-narrow"
    model, x = build(name, shape, 5, width), torch.randn(4, *shape)
    (model(x) * torch.randn(4, 5)).sum().backward()
    silent = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []
    with model.evaluating():
        assert model.base(x).shape == (4, width)
        torch.testing.assert_close(model(x[1:3]), model(x)[1:3], atol=1e-4, rtol=1e-3)
    assert model.part_names == ("base", "modular")


def test_parts_that_are_shared() -> None:
    """The linear modular block is that of the zoo, hidden ones are shared by their size, base blocks by a network."""
    names = ["htfl-cnn", "tv-resnet18", "tv-resnet18-h256", "htfl-cnn-h256", "tv-resnet4-narrow", "cnn"]
    names += ["tv-vit-b16", "tv-vit-b32", "tv-vit-b32-narrow"]
    with torch.device("meta"):
        models = {name: build(name, width=432) for name in names}

    def sharing(part: str) -> set[frozenset[str]]:
        keys = {name: model.tensors(part).keys() for name, model in models.items()}
        return {frozenset(other for other in names if keys[other] & keys[name]) for name in names}

    linear = frozenset({"htfl-cnn", "tv-resnet18", "tv-resnet4-narrow", "cnn"})
    hidden = [{"tv-resnet18-h256", "htfl-cnn-h256"}, {"tv-vit-b16", "tv-vit-b32"}, {"tv-vit-b32-narrow"}]
    assert sharing("modular") == {linear, *map(frozenset, hidden)}
    assert models["tv-resnet18"].tensors("modular").keys() == {"classifier.weight", "classifier.bias"}
    two = [{"htfl-cnn", "htfl-cnn-h256"}, {"tv-resnet18", "tv-resnet18-h256"}]
    assert sharing("base") == {*map(frozenset, two), *(frozenset({name}) for name in set(names) - set().union(*two))}
    shapes = [tuple(tensor.shape) for tensor in models["tv-vit-b16"].tensors("modular").values()]
    assert shapes == [(768, 432), (768,), (100, 768), (100,)]
    assert isinstance(models["tv-vit-b16"].get_submodule("tv-vit.head1.1"), nn.Tanh)


def test_a_quarter_of_all_widths() -> None:
    for name in set(builders()) - {"tv-resnet101", "tv-resnet152"}:  # as the one of 50, and slow to make
        with torch.device("meta"):
            full, narrow = build(name), build(f"{name}-narrow")
        shapes = [[t.shape for t in model.tensors("base").values()] for model in (full, narrow)]
        for one, other in zip(*shapes, strict=True):
            assert all(a in (b, 4 * b) for a, b in zip(one, other, strict=True)), name


@pytest.mark.parametrize(
    ("name", "shapes", "needed"),
    [
        ("htfl-cnn", [(3, 15, 32), (9, 128), (13,)], "at least 16"),
        ("tv-resnet18", [(3, 3, 8), (9, 128)], "at least 4"),
        ("tv-vit-b16", [(1, 28, 28), (3, 16, 40)], "a multiple of 16"),
        ("tv-vit-b32", [(1, 16, 16)], "a multiple of 32"),
    ],
)
def test_samples_that_a_network_cannot_take(name: str, shapes: list[tuple[int, ...]], needed: str) -> None:
    for shape in shapes:
        with pytest.raises(ModelError, match=f"{name!r} takes images .* of {needed} points a side, not samples of"):
            build(name, shape)


@pytest.mark.parametrize("name", [*builders()])
def test_the_smallest_images(name: str) -> None:
    side = {"htfl-cnn": 16, "tv-googlenet": 15, "tv-vit-b16": 16, "tv-vit-b32": 32}.get(name, 4)
    assert measure(build(f"{name}-narrow", (1, side, side)), torch.zeros(2, 1, side, side)).output_shape == (100,)


def test_groups() -> None:
    """The lists of HtFLlib's main.py, of which client i gets model i and modular block i modulo their numbers."""
    resnets = [f"tv-resnet{depth}" for depth in (4, 6, 8, 10, 18, 34, 50, 101, 152)]
    four = ["htfl-cnn", "tv-googlenet", "tv-mobilenetv2", "tv-resnet18"]
    assert expanded(["HtFE2"]) == ["htfl-cnn", "tv-resnet18"]
    assert expanded(["htfe3"]) == resnets[3:6]
    assert expanded(["HTFE4"]) == four
    assert expanded(["HtFE-img-5"]) == [*four[1:3], *resnets[4:7]]
    assert expanded(["HtFE-img-8"]) == expanded(["htfe8"]) == [*four, *resnets[5:]]
    assert expanded(["HtFE9"]) == resnets
    assert expanded(["HtM-img-10"]) == [*four, *resnets[5:], "tv-vit-b16", "tv-vit-b32"]
    heads = ["", "-h512", "-h256", "-h128"]
    assert expanded(["Res34-HtC-img-4"]) == [f"tv-resnet34{head}" for head in heads]
    eight = expanded(["HtFE-img-8-HtC-img-4"])
    assert eight == [name + head for name, head in zip([*four, *resnets[5:]], 2 * heads, strict=True)]
    assert expanded(["HtFE2-narrow", "cnn"]) == ["htfl-cnn-narrow", "tv-resnet18-narrow", "cnn"]
    assert expanded(["HtFE8-HtC4-narrow"])[1] == "tv-googlenet-narrow-h512"
    assert parse_config({"models": ["htfe2"], "clients": 4}).models == ("htfl-cnn", "tv-resnet18")
    assert all(callable(resolve(name)) for members in FEDERATIONS.values() for name in members)


@pytest.mark.parametrize("name", ["tv-resnet12", "tv-vit-b8", "htfl-cnn-h0", "htfl-cnn-h64-narrow", "HtFE1"])
def test_names_of_nothing(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown model"):
        resolve(name)
