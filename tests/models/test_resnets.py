from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from interfuse.data import Batch
from interfuse.errors import ConfigError
from interfuse.models import FEDERATIONS, SplitModel, expanded, measure, resolve
from interfuse.models.resnets import DEPTHS, exit_logits
from interfuse.runs.config import parse_config
from interfuse.training import cross_entropy, fit

PARAMETERS = {  # by depth, with three channels; one channel has 2 * 49 * 64 fewer
    10: 4_910_922, 14: 10_812_234, 18: 11_181_642, 22: 17_082_954, 26: 17_452_362
}  # fmt: skip


def on_paper(name: str, shape: tuple[int, ...] = (3, 32, 32)) -> SplitModel:
    """A model of 10 classes without values."""
    with torch.device("meta"):
        return resolve(name)(shape, 10, 432)


def count(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


@pytest.mark.parametrize("depth", DEPTHS)
def test_parameter_counts_of_the_published_family(depth: int) -> None:
    model = on_paper(f"resnet{depth}")
    assert count(model.parameters_of()) == PARAMETERS[depth]
    assert count(on_paper(f"resnet{depth}", (1, 32, 32)).parameters_of()) == PARAMETERS[depth] - 6_272
    assert count(model.parameters_of("classifier")) == 5_130
    assert count(model.parameters_of("extractor")) == 9_408 + 128


def test_the_mean_of_the_family_is_that_of_the_published_table() -> None:
    assert round(sum(PARAMETERS.values()) / 5 / 1e6, 2) == 12.29
    assert round(sum(p - 6_272 for p in PARAMETERS.values()) / 5 / 1e6, 2) == 12.28


def test_tensors_of_a_shallower_network_are_a_part_of_those_of_a_deeper_one() -> None:
    for narrow in ("", "-narrow"):
        states = [on_paper(f"resnet{depth}{narrow}").state_dict() for depth in DEPTHS]
        for shallow, deep in pairwise(states):
            assert shallow.keys() < deep.keys()
            assert all(shallow[key].shape == deep[key].shape for key in shallow)
    new = [key for key in on_paper("resnet14").state_dict() if key not in on_paper("resnet10").state_dict()]
    assert {key.rsplit(".", 2)[0] for key in new} == {"layer3.1", "layer4.1"}


def test_features_on_either_side_of_the_intermediate_layers() -> None:
    for shape, features in (((3, 32, 32), (64, 8, 8)), ((1, 28, 28), (64, 7, 7))):
        model = resolve("resnet10")(shape, 10, 432)
        facts = measure(model, torch.zeros(2, *shape))
        assert facts.cut_shapes == {"extractor": features, "intermediate": (512,), "classifier": (10,)}
        assert (facts.fusion_width, facts.output_shape) == (512, (10,))
        x = torch.randn(2, *shape)
        with model.evaluating():
            steps = x
            for part in model.part_names:
                steps = model.run(steps, part)
            assert torch.equal(steps, model(x))
            assert torch.equal(model.modular(model.base(x)), model(x))
            assert torch.equal(model.base(x), model.run(model.run(x, "extractor"), "intermediate"))


def by_hand(state: Mapping[str, Tensor], blocks: tuple[int, ...], x: Tensor) -> Tensor:
    """A ResNet in evaluation mode, in functions alone."""

    def norm(key: str, z: Tensor) -> Tensor:
        mean, var = state[f"{key}.running_mean"], state[f"{key}.running_var"]
        return functional.batch_norm(z, mean, var, state[f"{key}.weight"], state[f"{key}.bias"])

    z = functional.conv2d(x, state["stem.conv.weight"], stride=2, padding=3)
    z = functional.max_pool2d(norm("stem.norm", z).relu(), 3, stride=2, padding=1)
    for group, many in enumerate(blocks, 1):
        for block in range(many):
            name = f"layer{group}.{block}"
            stride = 2 if group > 1 and not block else 1
            y = functional.conv2d(z, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = functional.conv2d(norm(f"{name}.norm1", y).relu(), state[f"{name}.conv2.weight"], padding=1)
            if stride == 2:
                z = norm(f"{name}.shortcut.norm", functional.conv2d(z, state[f"{name}.shortcut.conv.weight"], stride=2))
            z = (norm(f"{name}.norm2", y) + z).relu()
    return functional.linear(z.mean((2, 3)), state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_network_is_the_one_of_the_paper(depth: int) -> None:
    torch.manual_seed(depth)
    model, x = resolve(f"resnet{depth}-narrow@0.25")((2, 16, 16), 5, 9), torch.randn(6, 2, 16, 16)
    model.train()(x)  # statistics other than those of the beginning
    with model.evaluating():
        torch.testing.assert_close(model(x), by_hand(model.state_dict(), DEPTHS[depth], x))


@settings(max_examples=12, deadline=None)
@given(
    depth=st.sampled_from(list(DEPTHS)),
    norm=st.sampled_from(["", "-group", "-static"]),
    exits=st.sampled_from(["", "-exits1", "-exits2", "-exits3", "-exits4"]),
    rate=st.sampled_from(["", "@1", "@0.5", "@.7", "@0.0625"]),
    shape=st.one_of(
        st.tuples(st.integers(1, 3), st.integers(4, 13), st.integers(4, 13)),
        st.tuples(st.integers(1, 3), st.integers(4, 40)),
    ),
    rows=st.integers(1, 3),
)
def test_any_variant_takes_any_image_and_any_signal(
    depth: int, norm: str, exits: str, rate: str, shape: tuple[int, ...], rows: int
) -> None:
    model = resolve(f"resnet{depth}-narrow{norm}{exits}{rate}")(shape, 4, 7)
    x = torch.randn(rows, *shape)
    with model.evaluating():
        scores = model(x)
        assert scores.shape == (rows, 4)
        assert scores.isfinite().all()
        levels = exit_logits(model, x)
        assert len(levels) == int(exits[-1:] or 1)
        assert torch.equal(levels[-1], scores)
    wanted = {"": nn.modules.batchnorm._BatchNorm, "-group": nn.GroupNorm, "-static": ()}[norm]
    found = [m for m in model.modules() if isinstance(m, nn.GroupNorm | nn.modules.batchnorm._BatchNorm)]
    assert bool(found) == (norm != "-static")
    assert all(isinstance(m, wanted) for m in found)
    fit(model, cross_entropy, [Batch(x, torch.arange(rows) % 4)] * 2, lr=0.01)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_channels_at_a_rate_are_rounded_up() -> None:
    whole = on_paper("resnet18").state_dict()
    for rate in (0.5, 0.7, 0.3, 0.0625):
        part = on_paper(f"resnet18@{rate}").state_dict()
        assert part.keys() == whole.keys()
        assert all(a <= b for key in whole for a, b in zip(part[key].shape, whole[key].shape, strict=True))
        for group in range(1, 5):
            assert part[f"layer{group}.1.conv2.weight"].shape[:2] == (math.ceil(rate * 32 * 2**group),) * 2
        assert part["fc.weight"].shape[0] == 10
        assert part["stem.conv.weight"].shape[1] == 3
    for name in ("resnet18@1", "resnet18@1.0"):
        assert shapes(on_paper(name).state_dict()) == shapes(whole)


def test_static_normalisation_is_that_of_the_batch_in_either_mode() -> None:
    torch.manual_seed(0)
    static, batch = (resolve(f"resnet10-narrow{norm}@0.5")((1, 16, 16), 3, 0) for norm in ("-static", ""))
    static.load({key: value for key, value in batch.tensors(buffers=False).items()})
    x = torch.randn(5, 1, 16, 16)
    torch.testing.assert_close(static.train()(x), batch.train()(x))
    assert torch.equal(static.eval()(x), static.train()(x))
    assert not torch.allclose(batch.eval()(x), batch.train()(x), atol=1e-3)
    assert static.tensors().keys() == dict(static.named_parameters()).keys()


@pytest.mark.parametrize("rate", ["", "@0.5", "@0.25"])
def test_groups_of_channels_are_large_enough_for_maps_of_one_point(rate: str) -> None:
    """Normalised one by one, channels would say nothing about a small image."""
    torch.manual_seed(0)
    model = resolve(f"resnet10-narrow-group{rate}")((1, 8, 8), 3, 0)
    x = torch.randn(6, 1, 8, 8)
    assert model.base(x).detach().std(0).max() > 0.1
    assert torch.equal(model.train()(x), model.eval()(x))
    torch.testing.assert_close(model(x)[:1], model(x[:1]))  # a sample does not depend on the others


def test_exits_are_heads_of_what_the_groups_hand_on() -> None:
    torch.manual_seed(0)
    full, x = resolve("resnet14-narrow-exits4")((1, 16, 16), 3, 0), torch.randn(5, 1, 16, 16)
    with full.evaluating():
        levels = exit_logits(full, x)
        for exits in (1, 2, 3, 4):
            part = resolve(f"resnet14-narrow-exits{exits}")((1, 16, 16), 3, 0)
            assert part.state_dict().keys() <= full.state_dict().keys()
            part.load({key: full.state_dict()[key] for key in part.state_dict()})
            with part.evaluating():
                assert torch.equal(part(x), levels[exits - 1])
        z = full.run(x, "extractor")
        for name in ("layer1.0", "layer2.0"):
            z = full.get_submodule(name)(z)
        fc = full.get_submodule("exit2.fc")
        torch.testing.assert_close(levels[1], fc(z.mean((2, 3))))
        plain = resolve("resnet10-narrow")((1, 16, 16), 3, 0)
        with plain.evaluating():
            assert [level.tolist() for level in exit_logits(plain, x)] == [plain(x).tolist()]


@pytest.mark.parametrize("name", ["resnet12", "resnet18@0", "resnet18@1.5", "resnet18-exits5", "resnet18@0.5-narrow"])
def test_names_that_are_no_variant(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown model"):
        resolve(name)


def test_a_federation_of_all_depths() -> None:
    assert FEDERATIONS["resnets"] == tuple(f"resnet{depth}" for depth in (10, 14, 18, 22, 26))
    assert expanded(["cnn", "resnets-narrow"]) == ["cnn", *FEDERATIONS["resnets-narrow"]]
    config = parse_config({"models": ["resnets"], "clients": 10})
    assert config.models == FEDERATIONS["resnets"]
