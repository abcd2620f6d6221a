"""Real weights out of packages, and halves of them: relatives of half the depth, healed by some training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import transformers
from jaxtyping import Int64
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from interfuse.data import Shape
from interfuse.data.bbc_news import articles
from interfuse.data.tokenizing import tokenizer_named
from interfuse.data.weights import WEIGHTS
from interfuse.models.backbones.deriving import without_middle
from interfuse.models.backbones.keeping import kept
from interfuse.models.backbones.loading import Reference, Use, body_of, described, empty, load
from interfuse.models.backbones.pretraining import BUILD, Course, train
from interfuse.models.backbones.stages import sharing_copy, split_model
from interfuse.models.split import SplitModel
from interfuse.randomness import seeded
from interfuse.references import HUB


@dataclass(frozen=True)
class Half:
    """What is made of a model by leaving out layers in its middle.

    Attributes:
        origin: The whole model.
        first, last: How many layers are kept on either side.
        course: How it is healed, on rows of the public articles of BBC News: a causal model goes on with language
            modelling, an encoder learns to make the mean of hidden states that the whole one makes.
        length: Tokens of a row.
    """

    origin: str
    first: int
    last: int
    course: Course
    length: int


HEALING = 2
"""Another number wherever the same half is healed to other weights than before."""

HALVES: Mapping[str, Half] = MappingProxyType(
    {
        "smollm2-half": Half("smollm2-135m", 8, 7, Course(steps=40, batch=2, lr=3e-4, warm_up=5), length=128),
        "minilm-l3": Half("minilm-l6", 2, 1, Course(steps=60, batch=16, lr=3e-4, warm_up=5), length=64),
    }
)


def build(name: str, use: Use, sample_shape: Shape, classes: int, width: int) -> SplitModel:
    """A model of this module by name; see :func:`~.stages.split_model`. ``width`` changes nothing."""
    body = body_of(sharing_copy(model(name)))
    return split_model(body, sample_shape, classes, answers=use.answers or None, reads=use.reads)


@functools.cache
def model(name: str) -> PreTrainedModel:
    """The transformers model: once in a process, so it must not be changed.

    Raises:
        ConfigError: its package is not installed; names it.
        DataError: files of a package are not those that were published.
    """
    weights = WEIGHTS[name]
    reference = Reference.parse(weights.reference.removeprefix(HUB))
    if name in HALVES:
        half = HALVES[name]
        made = without_middle(model(half.origin), half.first, half.last)
        depends = (weights, half, BUILD, HEALING, transformers.__version__)
        with seeded(0, "heal"):  # a caller's own draws must not depend on who asked first
            return _filled(made, name, depends, lambda: _healed(name, half, made))
    weights.package.files()  # checks them
    if weights.gguf is None:
        return load(reference)
    # to unpack its numbers takes longer than to read them again
    made = empty(reference, weights.read_once("configuration", lambda: described(reference)))
    return _filled(made, name, (weights, transformers.__version__), lambda: _parameters(load.__wrapped__(reference)))


def _parameters(model: PreTrainedModel) -> dict[str, Tensor]:
    return {key: parameter.detach() for key, parameter in model.named_parameters()}


def _filled(
    made: PreTrainedModel, name: str, depends: object, make: Callable[[], Mapping[str, Tensor]]
) -> PreTrainedModel:
    """The model with the parameters that are kept under its name, or that are made now."""
    found, own = kept(name, depends, make), _parameters(made)
    for key, tensor in own.items():
        tensor.copy_(found[key])
    return made.eval()


def _healed(name: str, half: Half, made: PreTrainedModel) -> dict[str, Tensor]:
    """The parameters of a half after some training, so that what comes after the gap reads what comes before it."""
    texts = [text for of in articles()["public"].values() for text in of]
    tokenizer = tokenizer_named(name, texts, 0)
    tokens = torch.from_numpy(tokenizer.rows(texts, half.length))
    parameters = [parameter for parameter in made.parameters() if parameter.requires_grad]
    if body_of(made).kind == "causal":
        outputs = split_model(body_of(made), (half.length,), tokenizer.size)

        def loss(rows: Int64[Tensor, "batch"]) -> Tensor:
            of = tokens[rows]
            return functional.cross_entropy(
                outputs(of)[:, :-1].flatten(0, 1), of[:, 1:].flatten(), ignore_index=tokenizer.padding
            )
    else:
        whole, own = (split_model(body_of(of), (half.length,), 1) for of in (model(half.origin), made))

        def loss(rows: Int64[Tensor, "batch"]) -> Tensor:
            with torch.no_grad():
                wanted = whole.base(tokens[rows])
            return 1 - functional.cosine_similarity(own.base(tokens[rows]), wanted).mean()

    train(name, parameters, loss, len(tokens), half.course, name)
    return _parameters(made)
