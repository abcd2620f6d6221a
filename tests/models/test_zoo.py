from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from interfuse.errors import ConfigError, ModelError
from interfuse.models import DEFAULT_MODELS, SplitModel, available, measure, pair, resolve
from interfuse.models.zoo import cnn

IMAGE = (1, 28, 28)
NAMES = [info.name for info in available()]


@pytest.mark.parametrize(
    ("name", "base", "modular"),
    [
        ("cnn", 18_672, 4_330),
        ("mlp", 623_536, 113_418),
        ("mixed", 678_016, 56_714),
        ("deep-head", 816, 127_946),
        # cnn plus scale and shift of 16 + 32 + 48 channels; 784 x 432 weights and 432 biases.
        ("cnn-bn", 18_672 + 2 * 96, 4_330),
        ("logistic", 339_120, 4_330),
    ],
)
def test_parameter_counts(name: str, base: int, modular: int) -> None:
    facts = measure(resolve(name)(IMAGE, 10, 432), IMAGE)
    assert facts.parameters == {"base": base, "modular": modular}
    assert (facts.fusion_width, facts.classes) == (432, 10)


def test_what_the_zoo_lists() -> None:
    assert set(DEFAULT_MODELS) < set(NAMES)
    assert all(info.summary.endswith(".") for info in available())


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    shape=st.tuples(st.integers(1, 4), st.integers(4, 20), st.integers(4, 20)),
    classes=st.integers(1, 12),
    width=st.integers(1, 80),
)
def test_any_image_and_any_width(name: str, shape: tuple[int, int, int], classes: int, width: int) -> None:
    model = resolve(name)(shape, classes, width)
    assert model.part_names == ("base", "modular")
    with model.evaluating():
        code = model.base(torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)))
        assert code.shape == (3, width)
        assert code.min() >= 0
        assert model.modular(code).shape == (3, classes)
    assert (name == "cnn-bn") == any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_the_last_convolution_fills_the_width_where_it_can() -> None:
    assert not [key for key in resolve("cnn")(IMAGE, 10, 9 * 5).state_dict() if "fc1" in key]
    assert resolve("cnn")(IMAGE, 10, 9 * 5).get_parameter("cnn.conv3.0.weight").shape[0] == 5
    adapted = resolve("cnn")(IMAGE, 10, 100)
    assert adapted.get_parameter("cnn.fc1.0.weight").shape == (100, 432)
    # 4 -> 2 -> 1, and no third pooling.
    assert resolve("cnn")((3, 4, 4), 10, 7).get_parameter("cnn.conv3.0.weight").shape == (7, 32, 3, 3)


def test_equal_keys_have_equal_shapes_and_the_defaults_share_none() -> None:
    for width in (432, 50):
        states = {name: resolve(name)(IMAGE, 10, width).state_dict() for name in NAMES}
        shared = {
            (a, b): {key for key in states[a].keys() & states[b].keys()} for a, b in combinations(sorted(states), 2)
        }
        for (a, b), keys in shared.items():
            assert all(states[a][key].shape == states[b][key].shape for key in keys)
            assert not keys or not {a, b} <= set(DEFAULT_MODELS)
        assert shared[("cnn", "logistic")] == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("name", NAMES)
def test_vectors_fit_only_the_fully_connected(name: str) -> None:
    if name in ("mlp", "logistic"):
        assert measure(resolve(name)((13,), 3, 8), (13,)).fusion_width == 8
        return
    for shape in ((13,), (1, 3, 28)):
        with pytest.raises(ModelError, match=f"'{name}' takes images .*mlp, logistic"):
            resolve(name)(shape, 3, 8)


CODE = """
from torch import nn
from interfuse.models import split_at

def two(sample_shape, width):
    return nn.Linear(*sample_shape, width), nn.Linear(width, 3)

def split(*, classes, depth=2, **others):
    assert sorted(others) == ["sample_shape", "width"]
    return split_at(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, classes)), "0")

def whole(): return nn.Linear(4, 3)
def asks(shape): return nn.Linear(4, 3)
number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "vendor.py"
    path.write_text(CODE)
    return path


def test_a_model_of_ones_own(file: Path) -> None:
    two = resolve(f"{file}:two")((4,), 3, 6)
    assert (measure(two, (4,)).fusion_width, two.part_names) == (6, ("base", "modular"))
    split = resolve(f"{file}:split")((4,), 9, 6)
    assert (measure(split, (4,)).fusion_width, measure(split, (4,)).classes) == (5, 9)

    def mine(width: int) -> SplitModel:
        return pair(nn.Linear(4, width), nn.Linear(width, 2))

    assert measure(resolve(mine)((4,), 3, 11), (4,)).fusion_width == 11
    assert resolve(cnn)(IMAGE, 10, 432).state_dict().keys() == resolve("cnn")(IMAGE, 10, 432).state_dict().keys()
    assert measure(resolve("interfuse.models.zoo:logistic")((4,), 3, 6), (4,)).classes == 3


def test_references_that_are_no_builder(file: Path) -> None:
    for reference, complaint in [
        ("cnm", "unknown model 'cnm': did you mean 'cnn'"),
        (f"{file}:number", "must be a function that builds a model, not int"),
        (f"{file}:asks", "asks for 'shape'; a builder gets the keywords sample_shape, classes, width"),
        (f"{file}:missing", "has no 'missing'"),
    ]:
        with pytest.raises(ConfigError, match=complaint):
            resolve(reference)
    with pytest.raises(ModelError, match=r"must return a SplitModel .* not Linear"):
        resolve(f"{file}:whole")((4,), 3, 6)
