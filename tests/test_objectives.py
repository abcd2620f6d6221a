"""Objectives are values: the live module, a functional view of it, and clients in one batch give the same losses."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.utils._pytree import tree_map

import interfuse.families
import interfuse.methods
import interfuse.training
from interfuse.data import Batch, Classification
from interfuse.families.drawing import learning_to_draw
from interfuse.families.dual_adapters import mixed_loss
from interfuse.families.feature_generators import generating, network, regularised
from interfuse.families.fusion_rows import mixed_likelihood
from interfuse.families.guidance import guided
from interfuse.families.imitation import imitation, noisy_loss
from interfuse.families.knowledge import mapping, projector, transferred
from interfuse.families.prototypes import pulled
from interfuse.families.submodels import masked_cross_entropy
from interfuse.methods import feddistill
from interfuse.methods.feddat import dual_teaching
from interfuse.methods.fedet import taught
from interfuse.methods.fedkd import distilled
from interfuse.methods.fedmkt import near_answers
from interfuse.methods.fedmrl import nested
from interfuse.methods.fedre import entangled_cross_entropy
from interfuse.methods.fedsim import loss_of_both
from interfuse.methods.fedtgp import apart, generator
from interfuse.methods.fml import mutual
from interfuse.methods.fml_uncertainty_gate import gated
from interfuse.methods.hetlora import of_tail
from interfuse.methods.ifl_private_labels import likelihood
from interfuse.methods.moon import contrastive
from interfuse.methods.perada import near_teacher
from interfuse.methods.scalefl import multi_exit
from interfuse.methods.takfl import near_teacher_and_itself
from interfuse.models import SplitModel, side_by_side
from interfuse.models.adapters import LoRALinear
from interfuse.models.resnets import Exit
from interfuse.training import (
    cross_entropy,
    modular_cross_entropy,
    proximal,
    pull_back,
    summed,
    supervised,
    supervised_modular,
    total,
)

ROWS, INPUTS, WIDTH, CLASSES, CLIENTS = 8, 5, 6, 3, 3
Case = Callable[[SplitModel, torch.Generator], Mapping[str, Any]]


def rand(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.empty(shape).uniform_(generator=generator)


def weights(model: SplitModel, generator: torch.Generator) -> dict[str, Tensor]:
    return {key: rand(generator, *tensor.shape) for key, tensor in model.tensors().items()}


def of_generator(model: SplitModel, generator: torch.Generator) -> dict[str, Any]:
    tensors = weights(network(CLASSES, WIDTH, 4, 7), generator)
    return {"generator": tensors, "counts": rand(generator, CLASSES), "alpha": 0.3, "beta": 0.7, "steps": 2}


def of_heads(model: SplitModel, generator: torch.Generator) -> dict[str, Any]:
    """As if the model in training were a generator: heads take its output for features."""
    head = SplitModel({"head": nn.Linear(CLASSES, CLASSES)})
    heads = tuple(weights(head, generator) for _ in range(2))
    return {"head": HEAD, "heads": heads, "counts": rand(generator, 2, CLASSES), "diversity": 0.5}


def of_extractor(model: SplitModel, generator: torch.Generator) -> dict[str, Any]:
    """The model in training is a generator: from features to samples."""
    return {
        "extractor": EXTRACTOR,
        "tensors": weights(EXTRACTOR, generator),
        "deviations": rand(generator, CLASSES, WIDTH),
        "means": rand(generator, 2, WIDTH),
        "spread": rand(generator, 2, WIDTH),
        "targets": rand(generator, 2, WIDTH),
        "bounds": torch.stack([-rand(generator, INPUTS), rand(generator, INPUTS)]),
        "latents": 3,
        "weights": (1.0, 0.5),
    }


EXTRACTOR = SplitModel({"base": nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.ReLU()), "modular": nn.Identity()})
HEAD = SplitModel({"head": nn.Linear(CLASSES, CLASSES)})
TASK = Classification(tuple("abc"))
CASES: dict[Callable[..., Tensor], Case] = {
    cross_entropy: lambda model, g: {},
    modular_cross_entropy: lambda model, g: {},
    supervised: lambda model, g: {"task": TASK},
    supervised_modular: lambda model, g: {"task": TASK},
    pull_back: lambda model, g: {"gradient": rand(g, ROWS, INPUTS)},
    proximal: lambda model, g: {"anchor": weights(model, g), "mu": 0.1},
    summed: lambda model, g: (
        total(  # type: ignore[attr-defined]  # the partial that it makes
            cross_entropy, partial(proximal, anchor=weights(model, g), mu=0.1)
        ).keywords
    ),
    likelihood: lambda model, g: {"epsilon": 1.0},
    mixed_likelihood: lambda model, g: {"labels": rand(g, CLASSES, CLASSES).softmax(1)},
    taught: lambda model, g: {
        "answer": torch.randperm(CLASSES, generator=g),
        "dissent": rand(g, CLASSES, CLASSES),
        "weight": 0.3,
    },
    generating: of_heads,
    regularised: of_generator,
    noisy_loss: lambda model, g: {"noise": 0.5, "task": TASK},
    imitation: lambda model, g: {
        "s_in": rand(g, 4, ROWS, WIDTH),
        "s_out": rand(g, 4, ROWS, WIDTH),
        "normalisation": "eval",
        "weight": 0.5,
    },
    pulled: lambda model, g: {"table": rand(g, CLASSES, WIDTH), "present": rand(g, CLASSES) > 0.3, "pull": 2.0},
    learning_to_draw: of_extractor,
    entangled_cross_entropy: lambda model, g: {"labels": rand(g, CLASSES, CLASSES).softmax(1)},
    masked_cross_entropy: lambda model, g: {"present": rand(g, CLASSES) > 0.3},
    contrastive: lambda model, g: {
        "received": weights(model, g),
        "previous": (weights(model, g),),
        "mu": 1.0,
        "temperature": 0.5,
        "task": TASK,
    },
    multi_exit: lambda model, g: {"gamma": 0.5, "temperature": 3.0},
    mutual: lambda model, g: {"alpha": 0.3, "beta": 0.6, "over": "batch"},
    transferred: lambda model, g: {
        "frame": rand(g, CLASSES, CLASSES),
        "images": rand(g, 2, INPUTS),
        "latents": rand(g, 2, CLASSES),
        "s": 3.0,
        "m": 0.5,
        "mu": 0.4,
    },
    mapping: lambda model, g: {"classes": CLASSES, "lam": 0.7},
    guided: lambda model, g: {"vectors": rand(g, CLASSES, WIDTH), "form": "features", "weight": 0.7},
    gated: lambda model, g: {"alpha": 0.3, "beta": 0.6, "over": "elements", "most": 1 - rand(g) / 2, "largest": 2},
    distilled: lambda model, g: {"over": "elements", "floor": 1e-3},
    nested: lambda model, g: {"prefix": WIDTH},
    apart: lambda model, g: {"known": torch.tensor([True] * CLASSES), "margin": rand(g)},
    near_teacher: lambda model, g: {"temperature": 2.0},
    near_answers: lambda model, g: {},
    near_teacher_and_itself: lambda model, g: {"temperature": 3.0, "own_temperature": 20.0, "gamma": 0.1},
    feddistill.taught: lambda model, g: {
        "table": rand(g, CLASSES, CLASSES),
        "known": rand(g, CLASSES) > 0.3,
        "weight": 0.5,
    },
    of_tail: lambda model, g: {"tail": (rand(g, 3) > 0.4).float(), "weight": 0.5},
}
OF_TWO_ADAPTERS = {loss_of_both, mixed_loss, dual_teaching}
"""They run a transformer with other adapters in place, and stand beside plain PyTorch in the tests of baselines."""
TARGETS: dict[Callable[..., Tensor], tuple[int, ...]] = {
    near_teacher: (CLASSES,),
    near_answers: (CLASSES,),
    near_teacher_and_itself: (2, CLASSES),
}
"""The shape of a row's target where that is no class: logits, or shares of classes."""
ON_FEATURES: set[Callable[..., Tensor]] = {
    modular_cross_entropy,
    supervised_modular,
    likelihood,
    mixed_likelihood,
    entangled_cross_entropy,
    apart,
}


def modules() -> Iterator[ModuleType]:
    yield interfuse.training
    for package in (interfuse.families, interfuse.methods):
        for found in pkgutil.iter_modules(package.__path__):
            yield importlib.import_module(f"{package.__name__}.{found.name}")


def objectives() -> dict[str, Callable[..., Tensor]]:
    """All module-level functions of ``(model, batch, step, *, ...)``."""
    return {
        f"{module.__name__}.{name}": value
        for module in modules()
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and is_objective(value)
    }


def is_objective(function: Callable[..., Any]) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY] == ["model", "batch", "step"]


def test_none_is_left_out() -> None:
    assert set(objectives().values()) == CASES.keys() | OF_TWO_ADAPTERS


def test_none_is_a_closure_or_a_method() -> None:
    """A function that takes a model, a batch and a step stands at the top of its module."""
    for module in modules():
        tree = ast.parse(Path(str(module.__file__)).read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.Lambda) and node not in tree.body:
                names = [argument.arg for argument in node.args.args]
                assert names[-3:] != ["model", "batch", "step"], (module.__name__, node.lineno)


def flat() -> SplitModel:
    return SplitModel(
        {
            "extractor": nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.Tanh()),
            "intermediate": nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()),
            "classifier": nn.Linear(WIDTH, CLASSES),
        }
    )


def normalised() -> SplitModel:
    return SplitModel(
        {
            "extractor": nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh()),
            "intermediate": nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh()),
            "classifier": nn.Linear(WIDTH, CLASSES),
        }
    )


def drawing() -> SplitModel:
    return SplitModel({"first": nn.Sequential(nn.Linear(WIDTH, 4), nn.Tanh()), "last": nn.Linear(4, INPUTS)})


def exits() -> SplitModel:
    inputs = nn.Sequential(nn.Unflatten(1, (1, INPUTS, 1)), nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4))
    return SplitModel(
        {"one": inputs, "exit1": Exit(4, CLASSES, last=False), "two": nn.Tanh(), "exit2": Exit(4, CLASSES, last=True)}
    )


def beside() -> SplitModel:
    """A model, a meme, and what lies between their features."""
    widths = {"projection": WIDTH, "projector": 2 * WIDTH}
    between = {name: SplitModel({name: nn.Linear(inputs, WIDTH)}) for name, inputs in widths.items()}
    return side_by_side({"model": flat(), "meme": normalised(), **between})


def of_classes() -> SplitModel:
    return generator(CLASSES, WIDTH, 7)


def projecting() -> SplitModel:
    return side_by_side({"model": flat(), "projector": projector(WIDTH, CLASSES)})


def adapted() -> SplitModel:
    layers = [LoRALinear(nn.Linear(inputs, outputs), 3, 2.0) for inputs, outputs in ((INPUTS, WIDTH), (WIDTH, CLASSES))]
    for layer in layers:
        nn.init.normal_(layer.own.B)
    return SplitModel(dict(zip(("base", "modular"), layers, strict=True)))


BUILDS: dict[Callable[..., Tensor], Sequence[Callable[[], SplitModel]]] = {
    multi_exit: (flat, normalised, exits),
    **dict.fromkeys((mutual, gated, distilled, nested), (beside,)),
    apart: (of_classes,),
    transferred: (projecting,),
    learning_to_draw: (drawing,),
    of_tail: (adapted,),
}
"""What a model must be for an objective; for others a plain one, with or without statistics."""


class View(nn.Module):
    """An objective as the ``forward`` of a module, so that PyTorch can put other tensors in the model's place."""

    def __init__(self, model: SplitModel, objective: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x: Tensor, y: Tensor, step: int, keywords: Mapping[str, Any]) -> Tensor:
        return self.objective(self.model, Batch(x, y), step, **keywords)


@pytest.fixture(autouse=True)
def fixed_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """What objectives draw, fixed: under ``vmap`` every client draws for itself, in another order than one by one."""
    generator = torch.Generator().manual_seed(5)
    noise, uniform = torch.randn(ROWS, WIDTH, generator=generator), torch.rand(ROWS, 4, generator=generator)
    monkeypatch.setattr(torch, "randn_like", lambda x: noise[:, : x.shape[1]])
    monkeypatch.setattr(torch, "randn", lambda *shape, device: noise.flatten()[: math.prod(shape)].reshape(shape))
    monkeypatch.setattr(torch, "rand", lambda *shape, generator=None: uniform)
    monkeypatch.setattr(torch, "randint", lambda high, shape: torch.tensor([high - 2]))
    monkeypatch.setattr(torch, "multinomial", lambda counts, number, replacement: torch.arange(number) % CLASSES)


def seeded_models(build: Callable[[], SplitModel]) -> list[SplitModel]:
    torch.default_generator.manual_seed(1)
    return [build() for _ in range(CLIENTS)]


def batch_for(objective: Callable[..., Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = rand(generator, ROWS, WIDTH if objective in ON_FEATURES else INPUTS)
    if objective in TARGETS:
        return x, rand(generator, ROWS, *TARGETS[objective]).softmax(-1)
    return x, torch.randperm(ROWS, generator=generator) % CLASSES


@pytest.mark.parametrize(("objective", "build"), [(o, b) for o in CASES for b in BUILDS.get(o, (flat, normalised))])
@pytest.mark.parametrize("step", [0, 5])
def test_one_by_one_functional_and_batched_agree(
    objective: Callable[..., Tensor], build: Callable[[], SplitModel], step: int
) -> None:
    """Losses, gradients, and the statistics that they leave."""
    models, generator = seeded_models(build), torch.Generator().manual_seed(3)
    xs, ys = map(torch.stack, zip(*(batch_for(objective, generator) for _ in models), strict=True))
    keywords = [CASES[objective](model, generator) for model in models]

    views = [View(copy.deepcopy(model), objective) for model in models]
    losses = torch.stack([view(x, y, step, own) for view, x, y, own in zip(views, xs, ys, keywords, strict=True)])
    trained = [view.model for view in views]
    found = (
        torch.autograd.grad(losses.sum(), [p for m in trained for p in m.parameters()], allow_unused=True)
        if (losses.requires_grad)
        else [None] * sum(len(list(m.parameters())) for m in trained)
    )

    functional = []
    for model, x, y, own in zip(models, xs, ys, keywords, strict=True):
        tensors = {f"model.{key}": t.clone() for key, t in model.state_dict().items()}
        functional.append(functional_call(View(copy.deepcopy(models[0]), objective), tensors, (x, y, step, own)))

    parameters, buffers = stack_module_state(models)
    kept = {key: t.detach() for key, t in parameters.items()}
    buffers = {f"model.{key}": t.clone() for key, t in buffers.items()}
    skeleton = View(copy.deepcopy(models[0]), objective)
    stacked = tree_map(lambda *values: torch.stack(values) if isinstance(values[0], Tensor) else values[0], *keywords)
    dims = tree_map(lambda value: 0 if isinstance(value, Tensor) else None, stacked)

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor, own: Any) -> Tensor:
        tensors = buffers | {f"model.{key}": t for key, t in parameters.items()}
        found: Tensor = functional_call(skeleton, tensors, (x, y, step, own))
        return found

    together = vmap(grad_and_value(loss), (0, 0, 0, 0, dims), randomness="different")
    gradients, batched = together(kept, buffers, xs, ys, stacked)
    torch.testing.assert_close(torch.stack(functional), losses, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(batched, losses, rtol=1e-6, atol=1e-6)
    one_by_one = iter(found)
    for place, model in enumerate(trained):
        for key, parameter in model.named_parameters():
            gradient = next(one_by_one)
            expected = torch.zeros_like(parameter) if gradient is None else gradient
            torch.testing.assert_close(gradients[key][place], expected, rtol=1e-5, atol=1e-6)
        for key, buffer in model.named_buffers():
            torch.testing.assert_close(buffers[f"model.{key}"][place], buffer, rtol=1e-5, atol=1e-6)


def test_clients_share_one_function_and_differ_in_what_is_bound() -> None:
    one, other = (total(cross_entropy, partial(proximal, anchor={"w": torch.ones(1) * i}, mu=0.1)) for i in range(2))
    assert isinstance(one, partial)
    assert isinstance(other, partial)
    assert one.func is other.func
    assert one.keywords["functions"] == other.keywords["functions"] == (cross_entropy, proximal)
