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
# ResNets have a width of their own, HtFLlib's models sizes that they take: see test_resnets.py and test_htfllib.py
NAMES = [info.name for info in available() if not info.name.startswith(("resnet", "htfl-", "tv-"))]


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
        ("mlp-linear", 623_536, 4_330),
        ("mixed-linear", 678_016, 4_330),
        ("deep-linear", 816, 4_330),
        # stem; 16 -> 16, 16 -> 32, 32 -> 64 with two scales and shifts and a shortcut each; 64 -> 432.
        (
            "residual",
            160 + (2 * 2304 + 64 + 256) + (4608 + 9216 + 128 + 512) + (18_432 + 36_864 + 256 + 2048) + 65 * 432,
            4_330,
        ),
        # patches of 7x7; two layers of attention (4 x 48 x 49), 48-96-48 and two norms; a norm and 48 -> 432.
        ("transformer", 50 * 48 + 16 * 48 + 2 * (4 * 48 * 49 + 49 * 96 + 97 * 48 + 4 * 48) + 2 * 48 + 49 * 432, 4_330),
        ("shallow", 339_120, 433 * 256 + 257 * 64 + 65 * 10),
        # 784 -> 432, then 432 -> 432 three times; the cut moves layers from one block to the other
        ("cut-1", 339_120, 3 * 187_056 + 4_330),
        ("cut-2", 339_120 + 187_056, 2 * 187_056 + 4_330),
        ("cut-3", 339_120 + 2 * 187_056, 187_056 + 4_330),
        ("cut-4", 339_120 + 3 * 187_056, 4_330),
        # 1 -> 16, three of 16 -> 16, 16 -> 32, four of 32 -> 32; scale and shift of each; 4x4x32 -> 432.
        ("deep", 9 * (16 + 3 * 256 + 512 + 4 * 1024) + 2 * (4 * 16 + 5 * 32) + 513 * 432, 4_330),
    ],
)
def test_parameter_counts(name: str, base: int, modular: int) -> None:
    facts = measure(resolve(name)(IMAGE, 10, 432), torch.zeros(2, *IMAGE))
    assert facts.parameters == {"base": base, "modular": modular}
    assert (facts.fusion_width, facts.output_shape) == (432, (10,))


def test_what_the_zoo_lists() -> None:
    assert set(DEFAULT_MODELS) < set(NAMES)
    assert all(info.summary.endswith(".") for info in available())


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    shape=st.one_of(
        st.tuples(st.integers(1, 4), st.integers(4, 20), st.integers(4, 20)),
        st.tuples(st.integers(1, 9), st.integers(4, 140)),
    ),
    classes=st.integers(1, 12),
    width=st.integers(1, 80),
)
def test_any_image_any_signal_and_any_width(name: str, shape: tuple[int, ...], classes: int, width: int) -> None:
    model = resolve(name)(shape, classes, width)
    assert model.part_names == ("base", "modular")
    with model.evaluating():
        code = model.base(torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)))
        assert code.shape == (3, width)
        assert code.min() >= 0
        assert model.modular(code).shape == (3, classes)
    batch_norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    assert (name == "cnn-bn") == any(isinstance(module, batch_norms) for module in model.modules())


@pytest.mark.parametrize("name", ["residual", "transformer", "deep"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 13, 10), (9, 128)])
def test_every_value_of_a_sample_and_every_parameter_counts(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = resolve(name)(shape, 5, 12)
    # Many rows: a unit that is dead for one of them is alive for another.
    x = torch.randn(24, *shape, requires_grad=True)
    (model(x) * torch.randn(24, 5)).sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().sum(0) > 0).all()
    silent = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_tokens_have_places() -> None:
    """Without them a transformer could not tell an image from the same one with its patches exchanged."""
    torch.manual_seed(0)
    model = resolve("transformer")((1, 8, 8), 3, 16)
    x = torch.randn(1, 1, 8, 8)
    exchanged = torch.cat([x[..., 4:], x[..., :4]], dim=-1)
    with model.evaluating():
        assert not torch.allclose(model(x), model(exchanged), atol=1e-4)
        model.get_parameter("transformer.tokens.position").zero_()
        torch.testing.assert_close(model(x), model(exchanged))


def test_the_transformer_says_the_same_when_it_is_trained() -> None:
    torch.manual_seed(0)
    model, x = resolve("transformer")((1, 8, 8), 3, 16), torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        trained = model.train()(x)
    with model.evaluating():
        torch.testing.assert_close(model(x), trained)


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
        head = {"classifier.weight", "classifier.bias"}
        for name, default in (("mlp-linear", "mlp"), ("mixed-linear", "mixed"), ("deep-linear", "deep-head")):
            assert shared[("cnn", name)] == head
            linear = resolve(name)(IMAGE, 10, width)
            assert linear.tensors("modular").keys() == head
            assert shared[tuple(sorted((default, name)))] == linear.tensors("base").keys()
        assert shared[("cnn", "logistic")] == head


@pytest.mark.parametrize("name", NAMES)
def test_vectors_fit_only_the_fully_connected(name: str) -> None:
    if name in ("mlp", "mlp-linear", "shallow", "logistic") or name.startswith("cut-"):
        assert measure(resolve(name)((13,), 3, 8), torch.zeros(2, 13)).fusion_width == 8
        return
    for shape in ((13,), (1, 3, 28), (9, 3), (1, 4, 28, 28)):
        with pytest.raises(
            ModelError,
            match=f"'{name}' takes images .*mlp, mlp-linear, shallow and logistic: --models mlp,shallow",
        ):
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
    assert (measure(two, torch.zeros(2, 4)).fusion_width, two.part_names) == (6, ("base", "modular"))
    split = resolve(f"{file}:split")((4,), 9, 6)
    assert (measure(split, torch.zeros(2, 4)).fusion_width, measure(split, torch.zeros(2, 4)).output_shape) == (5, (9,))

    def mine(width: int) -> SplitModel:
        return pair(nn.Linear(4, width), nn.Linear(width, 2))

    assert measure(resolve(mine)((4,), 3, 11), torch.zeros(2, 4)).fusion_width == 11
    assert resolve(cnn)(IMAGE, 10, 432).state_dict().keys() == resolve("cnn")(IMAGE, 10, 432).state_dict().keys()
    assert measure(resolve("interfuse.models.zoo:logistic")((4,), 3, 6), torch.zeros(2, 4)).output_shape == (3,)


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
