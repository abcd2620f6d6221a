from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from interfuse.errors import ModelError
from interfuse.models import SplitModel, measure, pair
from interfuse.randomness import seeded

DEEP = ("stem", "layer1.0", "layer1.1", "layer2.0", "fc")
SHALLOW = ("stem", "layer1.0", "layer2.0", "fc")
CUTS = {"extractor": ("stem",), "intermediate": ("layer1.0", "layer1.1", "layer2.0"), "classifier": ("fc",)}


def block() -> nn.Module:
    return nn.Sequential(OrderedDict(conv1=nn.Conv2d(4, 4, 3, padding=1), bn=nn.BatchNorm2d(4), relu=nn.ReLU()))


def model(names: tuple[str, ...] = DEEP, parts: dict[str, tuple[str, ...]] | None = None) -> SplitModel:
    stages: dict[str, nn.Module] = {name: block() for name in names}
    stages["stem"] = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout(0.5))
    stages["fc"] = nn.Sequential(nn.Flatten(), nn.Linear(4 * 4 * 4, 3))
    with seeded(0):
        for stage in stages.values():
            for parameter in stage.parameters():
                nn.init.normal_(parameter, std=0.3)
    return SplitModel(stages, parts)


@pytest.fixture
def x() -> Tensor:
    return torch.linspace(-1, 1, 5 * 36).reshape(5, 1, 6, 6)


def test_keys_are_stage_names_and_nest_across_depths() -> None:
    deep, shallow = model(), model(SHALLOW)
    assert "layer1.1.conv1.weight" in deep.state_dict()
    assert set(shallow.state_dict()) < set(deep.state_dict())
    assert all(deep.state_dict()[key].shape == tensor.shape for key, tensor in shallow.state_dict().items())
    assert {key.removesuffix(".bn.weight") for key in deep.state_dict() if key.endswith(".bn.weight")} == {*DEEP[1:4]}


def test_parts_in_a_row_are_the_model(x: Tensor) -> None:
    split = model(parts=CUTS)
    assert split.part_names == ("extractor", "intermediate", "classifier")
    with split.evaluating():
        whole, z = split(x), x
        for part in split.part_names:
            z = split.run(z, part)
        assert torch.equal(z, whole)
        assert torch.equal(split.modular(split.base(x)), whole)
        assert torch.equal(split.base(x), split.run(split.run(x, "extractor"), "intermediate"))
        assert torch.equal(split.run(x, "base"), split.base(x))


def test_regrouped_shares_the_stages(x: Tensor) -> None:
    split = model()
    other = split.regrouped({"client": (), "server": DEEP})
    assert other.part_names == ("client", "server")
    assert split.state_dict().keys() == other.state_dict().keys()
    with torch.no_grad():
        split.get_parameter("fc.1.bias").fill_(9.0)
    assert other.state_dict()["fc.1.bias"].unique().tolist() == [9.0]
    assert torch.equal(other.run(x, "client"), x)
    with split.evaluating():
        assert torch.equal(other.run(x, "server"), split(x))


def test_a_pair_is_found_by_torch_under_its_stage_names() -> None:
    split = pair(nn.Linear(4, 3), nn.Linear(3, 2))
    assert list(split.state_dict()) == ["base.weight", "base.bias", "modular.weight", "modular.bias"]
    assert split.get_submodule("base") is split.base
    doubled = {key: 2 * tensor for key, tensor in split.state_dict().items()}
    x = torch.ones(1, 4)
    expected = x @ doubled["base.weight"].T + doubled["base.bias"]
    expected = expected @ doubled["modular.weight"].T + doubled["modular.bias"]
    assert torch.allclose(torch.func.functional_call(split, doubled, (x,)), expected)


def test_a_copy_has_its_own_tensors(x: Tensor) -> None:
    split = model(parts=CUTS)
    twin = copy.deepcopy(split)
    twin.load({key: torch.zeros_like(tensor) for key, tensor in twin.tensors("classifier").items()})
    with split.evaluating(), twin.evaluating():
        assert twin(x).count_nonzero() == 0
        assert split(x).count_nonzero() > 0


@pytest.mark.parametrize(
    ("names", "parts", "complaint"),
    [
        ((), None, "at least one stage"),
        (("a", "b"), {"p": ("b", "a")}, "once and in order"),
        (("a", "b"), {"p": ("a",)}, "once and in order"),
        (("a", "b"), {"p": ("a", "b"), "q": ("b",)}, "once and in order"),
        (("stem", "fc"), {"p": ("sten", "fc")}, "did you mean 'stem'"),
        (("layer1", "layer1.0"), None, "inside stage 'layer1'"),
        (("forward",), None, "method of every model"),
        (("a..b",), None, "dots"),
        (("a", "base"), None, "must come first"),
        (("base", "neck", "modular"), None, "nothing may lie between"),
        (("base", "modular"), {"base": ("base", "modular"), "head": ()}, "nothing may lie between"),
    ],
)
def test_impossible_parts(names: tuple[str, ...], parts: dict[str, tuple[str, ...]] | None, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        SplitModel({name: nn.Identity() for name in names}, parts)


def test_part_of_and_unknown_names(x: Tensor) -> None:
    split = model(parts=CUTS)
    assert split.part_of("layer1.1.conv1.weight") == "intermediate"
    assert {split.part_of(key) for key in split.tensors("extractor")} == {"extractor"}
    with pytest.raises(ModelError, match=r"did you mean 'layer1\.1\.conv1\.weight'"):
        split.part_of("layer1.1.conv1.weigt")
    for act in (split.tensors, split.parameters_of, lambda part: split.run(x, part)):
        with pytest.raises(ModelError, match="did you mean 'classifier'"):
            act("classifer")


def test_tensors_are_live_detached_ordered_and_chosen() -> None:
    split = model(parts=CUTS)
    everything = split.tensors()
    floating = [key for key, tensor in split.state_dict().items() if tensor.is_floating_point()]
    assert list(everything) == floating
    assert len(floating) < len(split.state_dict())
    assert not any(tensor.requires_grad for tensor in everything.values())
    assert set(split.tensors(buffers=False)) == {key for key, _ in split.named_parameters()}
    by_part = [key for part in split.part_names for key in split.tensors(part)]
    assert sorted(by_part) == sorted(everything)
    assert split.tensors(["classifier", "extractor"]).keys() == split.tensors("extractor").keys() | {
        "fc.1.weight",
        "fc.1.bias",
    }
    everything["fc.1.bias"].fill_(5.0)
    assert split.get_parameter("fc.1.bias").tolist() == [5.0] * 3
    assert [*split.parameters_of(("extractor",)).values()] == [*split.get_submodule("stem").parameters()]


def test_a_shared_parameter_is_listed_once_but_has_both_keys() -> None:
    split = pair(nn.Linear(3, 3), nn.Linear(3, 3))
    split.modular.weight = split.base.weight  # type: ignore[attr-defined]
    assert list(split.parameters_of(None)) == ["base.weight", "base.bias", "modular.bias"]
    assert "modular.weight" in split.tensors("modular")
    with split.training_parts("modular"):
        assert split.get_parameter("base.weight").requires_grad
        assert not split.get_parameter("base.bias").requires_grad


def test_load_copies_or_changes_nothing() -> None:
    split = model()
    before = {key: tensor.clone() for key, tensor in split.state_dict().items()}
    good = {"fc.1.bias": torch.ones(3, dtype=torch.float16)}
    with pytest.raises(ModelError, match=r"'fc\.1\.weight': expected shape \(3, 64\), found \(64, 3\)"):
        split.load({**good, "fc.1.weight": torch.zeros(64, 3)})
    with pytest.raises(ModelError, match=r"no tensor 'fc\.1\.wait'"):
        split.load({**good, "fc.1.wait": torch.zeros(3)})
    assert all(torch.equal(before[key], tensor) for key, tensor in split.state_dict().items())
    parameter = split.get_parameter("fc.1.bias")
    split.load({**good, "layer1.0.bn.num_batches_tracked": torch.tensor(4)})
    assert parameter.tolist() == [1.0] * 3
    assert parameter is split.get_parameter("fc.1.bias")
    assert split.state_dict()["layer1.0.bn.num_batches_tracked"] == 4


def modes(split: SplitModel) -> list[bool]:
    return [module.training for module in split.modules()]


def test_evaluating_puts_every_mode_back(x: Tensor) -> None:
    split = model()
    split.get_submodule("layer1.0").eval()
    before, statistics = modes(split), split.state_dict()["layer1.1.bn.running_mean"].clone()
    with pytest.raises(KeyError), split.evaluating():
        assert not any(modes(split))
        assert not split(x).requires_grad
        raise KeyError
    assert modes(split) == before
    assert any(before)
    assert not all(before)
    assert torch.equal(split.state_dict()["layer1.1.bn.running_mean"], statistics)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("trained", [("extractor",), ("intermediate",), ("extractor", "classifier"), None])
def test_only_the_trained_parts_change(trained: tuple[str, ...] | None, x: Tensor) -> None:
    split = model(parts=CUTS)
    split.get_parameter("stem.0.bias").requires_grad_(False)
    split.eval()
    before = {key: tensor.clone() for key, tensor in split.state_dict().items()}
    with split.training_parts(trained), seeded(1):
        optimizer = torch.optim.SGD(split.parameters(), lr=0.1)
        split(x).square().sum().backward()
        optimizer.step()
    changed = {key for key, tensor in split.state_dict().items() if not torch.equal(before[key], tensor)}
    mine = {key for part in trained or split.part_names for key in split.tensors(part)}
    # Frozen by the model itself, and a bias in front of a batch normalisation has hardly a gradient.
    assert changed - {key for key in before if key.endswith("num_batches_tracked")} <= mine - {"stem.0.bias"}
    assert {key for key in mine if key.endswith(("weight", "running_mean"))} <= changed
    assert not any(modes(split))
    assert [key for key, p in split.named_parameters() if not p.requires_grad] == ["stem.0.bias"]


def test_measure() -> None:
    split = model(parts=CUTS)
    before, statistics = modes(split), split.state_dict()["layer1.0.bn.running_mean"].clone()
    facts = measure(split, torch.zeros(2, 1, 6, 6))
    assert facts.cut_shapes == {"extractor": (4, 4, 4), "intermediate": (4, 4, 4), "classifier": (3,)}
    assert facts.fusion_shape == (4, 4, 4)
    assert facts.fusion_width is None
    assert facts.output_shape == (3,)
    assert facts.parameters == {"extractor": 40, "intermediate": 3 * (148 + 8), "classifier": 195}
    assert modes(split) == before
    assert torch.equal(split.state_dict()["layer1.0.bn.running_mean"], statistics)
    assert measure(pair(nn.Linear(4, 7), nn.Linear(7, 2)), torch.zeros(2, 4)).fusion_width == 7
    tokens = pair(nn.Sequential(nn.Embedding(9, 4), nn.Flatten()), nn.Linear(12, 2))
    assert measure(tokens, torch.zeros(2, 3, dtype=torch.int64)).fusion_width == 12


@pytest.mark.parametrize(
    ("base", "modular", "complaint"),
    [
        (nn.Linear(5, 7), nn.Linear(7, 2), r"stage 'base' cannot take samples of shape \(4,\)"),
        (nn.Linear(4, 7), nn.Linear(8, 2), r"stage 'modular' cannot take samples of shape \(7,\)"),
        (nn.Flatten(0), nn.Linear(8, 2), r"2 samples gave shape \(8,\)"),
        (nn.LSTM(4, 4), nn.Linear(4, 2), "gave tuple"),
    ],
)
def test_measure_names_the_stage_that_does_not_fit(base: nn.Module, modular: nn.Module, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        measure(pair(base, modular), torch.zeros(2, 4))


class Frozen(nn.Linear):
    """It stays in evaluation mode, whoever asks."""

    def train(self, mode: bool = True) -> Frozen:
        super().train(False)
        return self


@pytest.mark.parametrize("own", [nn.Linear, Frozen])
def test_modes_are_those_of_a_walk_through_all_modules_each_time(own: type[nn.Linear]) -> None:
    made = SplitModel({"a": nn.Sequential(own(2, 2), nn.Dropout()), "b": nn.Sequential(nn.Linear(2, 2), nn.Dropout())})
    made.get_submodule("b").eval()
    before = [module.training for module in made.modules()]
    for _ in range(2):
        for parts, trained in ((None, "ab"), ("a", "a"), (["b"], "b"), ((), "")):
            with made.training_parts(parts):
                for name in "ab":
                    wanted = [name in trained and not isinstance(m, Frozen) for m in made.get_submodule(name).modules()]
                    assert [module.training for module in made.get_submodule(name).modules()] == wanted
            assert [module.training for module in made.modules()] == before
        with made.evaluating():
            assert not any(module.training for module in made.modules() if module is not made or own is nn.Linear)


def test_a_module_whose_own_functions_hold_its_mode_is_asked_each_time() -> None:
    """As code does that has dropout in evaluation too, or freezes a backbone: the class is PyTorch's."""
    made = SplitModel({"a": nn.Sequential(nn.Linear(2, 2), nn.Dropout()), "b": nn.Linear(2, 2)})
    dropout = made.get_submodule("a.1")
    vars(dropout)["train"] = lambda mode=True: dropout
    for _ in range(2):
        with made.evaluating():
            assert [dropout.training, made.get_submodule("b").training] == [True, False]
        dropout.training = False
        with made.training_parts():
            assert [dropout.training, made.get_submodule("b").training] == [False, True]
        dropout.training = True
