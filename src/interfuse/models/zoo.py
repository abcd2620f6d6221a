"""Models by name. Each of the small ones ends its base block in a vector of the agreed width, after a ReLU.

A builder takes the shape of one sample, an image ``(channels, height, width)`` or a signal ``(channels, time)``, the
number of classes and the fusion width d. Two models that share a key give it the same shape (same three arguments);
what only one block has lies under the name of its first owner, so the four default models share nothing, while every
model with a linear modular block has it as ``classifier``. ResNets share keys among themselves only; a narrower one has
slices of the tensors of a wider one.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from torch import nn

from interfuse.data import Shape
from interfuse.errors import ConfigError, ModelError, nearest
from interfuse.models import backbones, htfllib, resnets
from interfuse.models.contrasts import cut_after, deep, residual, shallow, transformer
from interfuse.models.layers import convolution, grid, head, last_convolution, two_parts
from interfuse.models.resnets import DEPTHS, WIDTHS, resnet
from interfuse.models.split import SplitModel, pair
from interfuse.references import is_reference, load_reference

Builder = Callable[[Any, int, int], SplitModel]
"""Sample shape (by name where a sample has several inputs), classes or other outputs, width -> model."""

M = TypeVar("M")

DEFAULT_MODELS = ("cnn", "mlp", "mixed", "deep-head")

_ARGUMENTS = ("sample_shape", "classes", "width")


@dataclass(frozen=True)
class ModelInfo:
    """An entry of the zoo."""

    name: str
    summary: str


def cnn(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """Three 3x3 convolutions (16, 32, as wide as needed), linear modular block."""
    return _three_convolutions("cnn", sample_shape, classes, width, batch_norm=False)


def cnn_bn(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """The model "cnn" with batch normalisation after every convolution."""
    return _three_convolutions("cnn-bn", sample_shape, classes, width, batch_norm=True)


def mlp(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """Fully connected: 512 and the width in the base block, 256 in the modular block."""
    return two_parts(_mlp_base(sample_shape, width), head("mlp", (width, 256, classes)))


def mixed(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """One 5x5 convolution of 8 channels, then fully connected; 128 in the modular block."""
    return two_parts(_mixed_base("mixed", sample_shape, width), head("mixed", (width, 128, classes)))


def deep_head(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """Two small convolutions; 256 and 64 in the modular block."""
    return two_parts(_deep_base("deep-head", sample_shape, width), head("deep-head", (width, 256, 64, classes)))


def mlp_linear(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """The base block of "mlp" with a linear modular block, that of "cnn"."""
    return two_parts(_mlp_base(sample_shape, width), {"classifier": nn.Linear(width, classes)})


def mixed_linear(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """The base block of "mixed" with a linear modular block, that of "cnn"."""
    return two_parts(_mixed_base("mixed-linear", sample_shape, width), {"classifier": nn.Linear(width, classes)})


def deep_linear(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """The base block of "deep-head" with a linear modular block, that of "cnn"."""
    return two_parts(_deep_base("deep-linear", sample_shape, width), {"classifier": nn.Linear(width, classes)})


def logistic(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """The smallest: one linear layer with ReLU, and a linear modular block."""
    base = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(sample_shape), width), nn.ReLU())
    return two_parts({"logistic.fc1": base}, {"classifier": nn.Linear(width, classes)})


_ZOO: Mapping[str, Builder] = {
    "cnn": cnn,
    "mlp": mlp,
    "mixed": mixed,
    "deep-head": deep_head,
    "cnn-bn": cnn_bn,
    "logistic": logistic,
    "mlp-linear": mlp_linear,
    "mixed-linear": mixed_linear,
    "deep-linear": deep_linear,
    "residual": residual,
    "transformer": transformer,
    "shallow": shallow,
    "deep": deep,
    **{f"cut-{layers}": cut_after(layers) for layers in range(1, 5)},
    **{
        f"resnet{depth}{width}": resnet(depth, width=channels) for width, channels in WIDTHS.items() for depth in DEPTHS
    },
    **htfllib.builders(),
}

FEDERATIONS: Mapping[str, tuple[str, ...]] = {
    **{f"resnets{width}": tuple(f"resnet{depth}{width}" for depth in DEPTHS) for width in WIDTHS},
    **htfllib.groups(),
}
"""Several models under one name, dealt to the clients in turn."""

_BY_PLAIN_NAME = {name.lower(): members for name, members in FEDERATIONS.items()}


def available() -> list[ModelInfo]:
    """The models of the zoo. What is made of transformers is :data:`.backbones.NAMES`."""
    return [ModelInfo(name, (builder.__doc__ or "").splitlines()[0]) for name, builder in _ZOO.items()]


def expanded(models: Iterable[M]) -> list[M | str]:
    """The same models with those of a federation in the place of its name.

    A federation may be named in letters of any case, and as an option of HtFLlib has it: ``HtFE-img-8``.
    """
    found: list[M | str] = []
    for model in models:
        plain = model.lower().replace("-img-", "") if isinstance(model, str) else None
        found.extend((model,) if plain is None else _BY_PLAIN_NAME.get(plain, (model,)))
    return found


def resolve(reference: str | Callable[..., object]) -> Builder:
    """The builder for a name, for ``package.module:function`` or ``path/file.py:function``, or a function.

    A name is one of the zoo, a variant (:func:`interfuse.models.resnets.named`,
    :func:`interfuse.models.htfllib.named`), or one of transformers (:func:`interfuse.models.backbones.named`). A
    function gets those of the keywords ``sample_shape``, ``classes`` and ``width`` that it names, and returns a
    :class:`SplitModel` or a pair (base block, modular block).

    Raises:
        ConfigError: the name is unknown, the reference cannot be loaded or is no such function.
    """
    if isinstance(reference, str) and (backbone := backbones.named(reference)) is not None:
        return backbone
    if isinstance(reference, str) and not is_reference(reference):
        builder = _ZOO.get(reference) or resnets.named(reference) or htfllib.named(reference)
        if builder is None:
            raise ConfigError(
                f"unknown model {reference!r}: {nearest(reference, [*_ZOO, *FEDERATIONS, *backbones.NAMES])}; "
                "or name your own as 'package.module:function' or 'path/file.py:function'"
            )
        return partial(_of_one_input, reference, builder)
    found = load_reference(reference) if isinstance(reference, str) else reference
    if not callable(found):
        raise ConfigError(f"model {reference!r} must be a function that builds a model, not {type(found).__name__}")
    return _adapted(found, str(reference))


def _of_one_input(name: str, builder: Builder, sample_shape: Shape, outputs: int, width: int) -> SplitModel:
    if not isinstance(sample_shape, tuple):
        raise ModelError(f"model {name!r} takes one input, but samples have {', '.join(sample_shape)}; bring your own")
    return builder(sample_shape, outputs, width)


def _adapted(function: Callable[..., object], name: str) -> Builder:
    parameters = inspect.signature(function).parameters.values()
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for parameter in parameters:
        known = parameter.name in _ARGUMENTS and parameter.kind is not parameter.POSITIONAL_ONLY
        if parameter.default is parameter.empty and parameter.kind not in variadic and not known:
            raise ConfigError(
                f"model {name} asks for {parameter.name!r}; a builder gets the keywords {', '.join(_ARGUMENTS)}"
            )

    wanted = frozenset(_ARGUMENTS if open_ended else named.intersection(_ARGUMENTS))
    return partial(_built, function, name, wanted)


def _built(
    function: Callable[..., object],
    name: str,
    wanted: frozenset[str],
    sample_shape: Shape,
    classes: int,
    width: int,
) -> SplitModel:
    given = zip(_ARGUMENTS, (sample_shape, classes, width), strict=True)
    built = function(**{key: value for key, value in given if key in wanted})
    match built:
        case SplitModel():
            return built
        case (nn.Module() as base, nn.Module() as modular):
            return pair(base, modular)
    raise ModelError(
        f"model {name} must return a SplitModel (see split_at) or a pair (base block, modular block), "
        f"not {type(built).__name__}"
    )


def _three_convolutions(
    name: str, sample_shape: tuple[int, ...], classes: int, width: int, *, batch_norm: bool
) -> SplitModel:
    first, shape = convolution(grid(name, sample_shape), 16, batch_norm=batch_norm)
    second, shape = convolution(shape, 32, batch_norm=batch_norm)
    last, fusion = last_convolution(shape, 48, width, batch_norm=batch_norm)
    base = {"conv1": first, "conv2": second, "conv3": last, **fusion}
    return two_parts({f"{name}.{key}": s for key, s in base.items()}, {"classifier": nn.Linear(width, classes)})


def _mlp_base(sample_shape: tuple[int, ...], width: int) -> dict[str, nn.Module]:
    return {
        "mlp.fc1": nn.Sequential(nn.Flatten(), nn.Linear(math.prod(sample_shape), 512), nn.ReLU()),
        "mlp.fc2": nn.Sequential(nn.Linear(512, width), nn.ReLU()),
    }


def _mixed_base(name: str, sample_shape: tuple[int, ...], width: int) -> dict[str, nn.Module]:
    first, shape = convolution(grid(name, sample_shape), 8, kernel=5, padding=2)
    fused = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), width), nn.ReLU())
    return {"mixed.conv1": first, "mixed.fc1": fused}


def _deep_base(name: str, sample_shape: tuple[int, ...], width: int) -> dict[str, nn.Module]:
    image = grid(name, sample_shape)
    # Unpadded as in the reference, except where a 5x5 kernel would leave almost nothing.
    first, shape = convolution(image, 6, kernel=5, padding=0 if min(image[1:]) >= 8 else 2)
    last, fusion = last_convolution(shape, 12, width)
    return {"deep-head.conv1": first, "deep-head.conv2": last, **{f"deep-head.{key}": f for key, f in fusion.items()}}
