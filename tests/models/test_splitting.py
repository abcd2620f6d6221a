from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interfuse.errors import ModelError
from interfuse.models import measure, split_at
from interfuse.randomness import seeded

SHAPE = (2, 8, 8)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.conv(x)))


class Residual(nn.Module):
    """Like many published networks: containers, residual sums, functions, a parameter of its own, an optional input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.layer1 = nn.Sequential(Block(4), Block(4))
        self.layer2 = nn.ModuleList([Block(4), Block(4)])
        self.scale = nn.Parameter(torch.full((4, 1, 1), 1.5))
        self.register_buffer("shift", torch.full((4, 1, 1), 0.5))
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.layer1(F.relu(self.stem(x)))
        if mask is not None:
            x = x * mask
        for block in self.layer2:
            x = block(x)
        x = x * torch.tensor(0.5) * self.scale + self.shift
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        return self.fc(self.drop(x))


class Late(nn.Module):
    """A parameter read early and used late, which is no value that crosses."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)
        self.gain = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        gain = self.gain
        return self.second(self.first(x)) * gain


@pytest.fixture
def x() -> Tensor:
    return torch.linspace(-1, 1, 5 * 128).reshape(5, *SHAPE)


@pytest.mark.parametrize(
    ("name", "last_in_base", "first_in_modular"),
    [
        ("layer1", "layer1.1.norm.weight", "layer2.0.conv.weight"),
        ("layer1.0", "layer1.0.norm.weight", "layer1.1.conv.weight"),
        ("layer2", "layer2.1.norm.weight", "fc.weight"),
        ("layer2.0", "layer2.0.norm.weight", "layer2.1.conv.weight"),
        ("drop", "layer2.1.norm.weight", "fc.weight"),
    ],
)
def test_the_halves_are_the_module_and_share_its_tensors(
    name: str, last_in_base: str, first_in_modular: str, x: Tensor
) -> None:
    module = Residual().train()
    module.layer1[0].eval()
    before = [part.training for part in module.modules()]
    keys = set(module.state_dict())
    split = split_at(module, name)
    assert [part.training for part in module.modules()] == before != [True] * len(before)
    assert set(module.state_dict()) == keys
    assert split.part_names == ("base", "modular")
    assert list(split.tensors("base", buffers=False))[-1].startswith(f"base.{last_in_base.rpartition('.')[0]}")
    assert next(iter(split.tensors("modular"))).startswith("modular.")
    assert f"modular.{first_in_modular}" in split.state_dict()
    assert split.get_parameter(f"base.{last_in_base}") is module.get_parameter(last_in_base)
    with seeded(0), torch.no_grad():
        trained = module(x)
    with seeded(0), torch.no_grad():
        assert torch.equal(split(x), trained)
    module.eval()
    with split.evaluating(), torch.no_grad():
        assert torch.equal(split.modular(split.base(x)), module(x))


def test_the_cut_is_behind_the_functions_of_the_submodule(x: Tensor) -> None:
    module = Residual().eval()
    with split_at(module, "layer1.0").evaluating():
        assert torch.equal(split_at(module, "layer1.0").base(x), module.layer1[0](F.relu(module.stem(x))))


def test_of_several_calls_the_last_counts() -> None:
    inner, relu, out = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)
    x = torch.ones(2, 4)
    assert torch.equal(split_at(nn.Sequential(inner, relu, inner, relu, out), "1").modular(x), out(x))
    # One layer on both sides could not be trained with one side frozen.
    with pytest.raises(ModelError, match=r"parameter '0\.weight' is used on both sides"):
        split_at(nn.Sequential(inner, relu, inner), "1")


def test_a_parameter_read_early_stays_on_its_side() -> None:
    module, x = Late(), torch.ones(2, 4)
    split = split_at(module, "first")
    assert torch.equal(split(x), module(x))
    assert sorted(split.tensors("modular")) == ["modular.gain", "modular.second.bias", "modular.second.weight"]
    assert split.get_parameter("modular.gain") is module.gain


def test_a_sequential_and_its_copy() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.ReLU(), nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 2))
    split = split_at(module, "1")
    assert list(split.state_dict()) == [
        "base.0.weight", "base.0.bias", "base.1.1.weight", "base.1.1.bias", "modular.3.weight", "modular.3.bias"
    ]  # fmt: skip
    twin, x = copy.deepcopy(split), torch.ones(2, 4)
    assert torch.equal(twin(x), module(x))
    with torch.no_grad():
        module[0].bias.add_(1.0)
    assert not torch.equal(twin(x), module(x))
    assert torch.equal(split(x), module(x))


@pytest.mark.parametrize("width", [7, 432])
def test_a_width_puts_a_vector_between_the_blocks(width: int, x: Tensor) -> None:
    module = Residual()
    split = split_at(module, "layer1", width=width, sample_shape=SHAPE)
    facts = measure(split, torch.zeros(2, *SHAPE))
    assert facts.fusion_width == width
    assert facts.output_shape == (3,)
    flat = 4 * 4 * 4
    plain = measure(split_at(module, "layer1"), torch.zeros(2, *SHAPE)).parameters
    assert facts.parameters["base"] - plain["base"] == flat * width + width
    assert facts.parameters["modular"] - plain["modular"] == flat * width + flat
    with split.evaluating():
        code = split.base(x)
        state = split.state_dict()
        inner = split_at(module, "layer1")
        raw = inner.base(x).flatten(1)
        assert torch.allclose(
            code, (raw @ state["base.to_fusion.1.weight"].T + state["base.to_fusion.1.bias"]).clamp(min=0), atol=1e-5
        )
        back = code @ state["modular.from_fusion.0.weight"].T + state["modular.from_fusion.0.bias"]
        assert torch.allclose(split.modular(code), inner.modular(back.reshape(5, 4, 4, 4)), atol=1e-5)
    split(x).sum().backward()
    assert module.stem.weight.grad is not None


def test_a_code_of_the_right_size_gets_no_parameters(x: Tensor) -> None:
    module = Residual().eval()
    split = split_at(module, "stem", width=64, sample_shape=SHAPE)
    assert measure(split, torch.zeros(2, *SHAPE)).fusion_width == 64
    assert set(split.state_dict()) == set(split_at(module, "stem").state_dict())
    with split.evaluating():
        assert torch.equal(split(x), module(x))
        assert split.base(x).min() < 0
    plain = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    assert str(split_at(plain, "1", 6, (4,)).base) == str(split_at(plain, "1").base)


def test_what_cannot_be_split() -> None:
    with pytest.raises(ModelError, match="did you mean 'layer1'"):
        split_at(Residual(), "layr1")
    with pytest.raises(ModelError, match=r"does not call 'unused' by itself; cut after one of: .*layer1\.0"):
        split_at(Residual(), "unused")
    with pytest.raises(ModelError, match=r"these cross: relu, layer1_0_conv; cut later, for example after 'layer1\.0'"):
        split_at(Residual(), "layer1.0.conv")
    with pytest.raises(ModelError, match="sample_shape"):
        split_at(Residual(), "layer1", width=3)
    clash = nn.Sequential()
    clash.add_module("to_fusion", nn.Linear(4, 6))
    clash.add_module("out", nn.Linear(6, 2))
    with pytest.raises(ModelError, match="'to_fusion' already"):
        split_at(clash, "to_fusion", width=3, sample_shape=(4,))


class Decides(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x


class DropsOut(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), training=self.training)


class TwoInputs(nn.Sequential):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x + y)


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        (Decides, "cannot trace the forward pass of Decides: symbolically traced variables cannot be used"),
        (TwoInputs, "missing 1 required positional argument: 'y'"),
        (DropsOut, "reads self.training"),
    ],
)
def test_forward_passes_that_cannot_be_traced(kind: type[nn.Sequential], complaint: str) -> None:
    module = kind(nn.Linear(4, 4), nn.ReLU())
    module[0].eval()
    with pytest.raises(ModelError, match=complaint):
        split_at(module, "0")
    assert [part.training for part in module.modules()] == [True, False, True]
