"""Small backbones for experiments: trained once on a machine on the public part of a data set, in less than a minute.

``vqa-s``, ``vqa-m`` and ``vqa-q`` are trained by themselves, ``vqa-g`` is grown from ``vqa-s`` and trained on. One
frozen tower makes tokens of a picture for all of them; ``vqa-v`` sees by a vision transformer of its own. ``news-l``
and ``news-q`` are strangers that tell topics of news, with tokenizers of their own. Each has a variant ``...-random``,
whose transformer, projection and head are not trained: a control.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar

import torch
import transformers
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    ViTConfig,
    ViTModel,
)

from interfuse.data import Dataset, Shape, load
from interfuse.data.bbc_news import VOCABULARY
from interfuse.data.easy_vqa import NOTHING, TOKENS
from interfuse.data.inputs import ONLY, each, named, shape_text
from interfuse.data.tokenizing import PIECES, WORDS
from interfuse.errors import ModelError
from interfuse.models.backbones.deriving import grow
from interfuse.models.backbones.keeping import kept
from interfuse.models.backbones.loading import body_of
from interfuse.models.backbones.pretraining import BUILD, Course, train
from interfuse.models.backbones.stages import Sight, Transformer, sharing_copy, split_model
from interfuse.models.making import digest_of
from interfuse.models.split import SplitModel
from interfuse.randomness import seeded

HEAD = 16
"""Width of an attention head, the same in all, so that positions mean the same in a model and in what it grows to."""
EPS = 1e-6
M = TypeVar("M", bound=nn.Module)

_KINDS = MappingProxyType({"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)})


@dataclass(frozen=True)
class Tiny:
    """A small backbone.

    Attributes:
        kind: Its family.
        feed: Hidden units of a layer's feed-forward network.
        course: How it is trained, where it is grown, after that.
        parent: What it is grown from.
        public: The name of the data set on whose training rows it is trained.
        tokens: Size of the vocabulary.
        padding: The token of places without one.
        reads: The name of its tokens, where samples have the same text by several tokenizers.
        sees: What makes tokens of pictures: see :data:`TOWERS`.
    """

    kind: str
    width: int
    layers: int
    feed: int
    course: Course
    parent: str | None = None
    public: str = "easy-vqa-public"
    tokens: int = TOKENS
    padding: int = NOTHING
    reads: str | None = field(default=None, repr=False)  # not what training depends on where there is but one
    sees: str = field(default="convolutions", repr=False)  # training depends on the tower's values


NEWS = "bbc-news-public"
TINY: Mapping[str, Tiny] = MappingProxyType(
    {
        "vqa-s": Tiny("llama", 48, 4, 128, Course(steps=400, batch=32, lr=3e-3)),
        "vqa-g": Tiny("llama", 80, 8, 216, Course(steps=200, batch=32, lr=1e-3), parent="vqa-s"),
        "vqa-m": Tiny("llama", 64, 6, 172, Course(steps=400, batch=32, lr=3e-3)),
        "vqa-q": Tiny("qwen2", 64, 4, 172, Course(steps=400, batch=32, lr=3e-3)),
        "vqa-v": Tiny("llama", 64, 4, 172, Course(steps=400, batch=32, lr=3e-3), sees="patches"),
        "news-l": Tiny(
            "llama", 64, 4, 172, Course(80, 32, 3e-3, warm_up=20), public=NEWS, tokens=VOCABULARY, reads=WORDS
        ),
        "news-q": Tiny(
            "qwen2", 64, 4, 172, Course(80, 32, 3e-3, warm_up=20), public=NEWS, tokens=VOCABULARY, reads=PIECES
        ),
    }
)
TOWER = Course(steps=1600, batch=32, lr=5e-3, decay=0.05)
PATCHES = Course(steps=1600, batch=32, lr=1e-3, decay=0.05, warm_up=100)
CHANNELS = (16, 32, 64)
"""Of the tower's convolutions; the last is the width of a tower's tokens."""


def build(name: str, random: bool, sample_shape: Shape, classes: int, width: int) -> SplitModel:
    """A model of this module by name. ``width`` changes nothing.

    Raises:
        ModelError: it was not trained on samples of this shape, or not on so many classes.
    """
    tiny = TINY[name]
    known = public(tiny.public)
    fits = tiny.reads is not None and sample_shape == _only(known.shape, tiny.reads)
    if not (fits or sample_shape == known.shape) or classes != known.classes:
        raise ModelError(
            f"model {name!r} is made for {known.name} ({shape_text(known.shape)}; {known.classes} classes), but "
            f"samples are {shape_text(sample_shape)} and have {classes}: take data of that kind, or another model"
        )
    made = untrained(tiny) if random else sharing_copy(pretrained(name))
    if fits:
        stage_of(made).tokens = ONLY
    return made


def _only(shape: Shape, name: str) -> tuple[int, ...] | None:
    return None if isinstance(shape, tuple) else shape[name]


def stage_of(model: SplitModel) -> Transformer:
    """Its first stage."""
    stage = model.get_submodule("transformer")
    assert isinstance(stage, Transformer)
    return stage


@functools.cache
def public(name: str) -> Dataset:
    """The data that a family is trained on; of texts by the tokenizers of all who read them."""
    readers = [tiny.reads for tiny in TINY.values() if tiny.public == name and tiny.reads is not None]
    return load(name, tokenizer=readers)


@functools.cache
def pretrained(name: str) -> SplitModel:
    """The model after its training: from the cache, or trained now. It must not be changed."""
    tiny = TINY[name]
    with seeded(0, "backbone", name):
        model = untrained(tiny)
    origin = None if tiny.parent is None else pretrained(tiny.parent)
    common = digest_of(model.live(model.given_keys))
    before = None if origin is None else digest_of(origin.state_dict())
    reads = () if tiny.reads is None else (tiny.reads,)
    depends = (tiny, HEAD, EPS, BUILD, transformers.__version__, public(tiny.public).digest, common, before, *reads)

    def made() -> Mapping[str, Tensor]:
        if origin is not None and tiny.parent is not None:
            grow(origin.tensors(), model.tensors(), (TINY[tiny.parent].layers, tiny.layers))
        _learn(name, tiny, model)
        return model.tensors()

    model.load(kept(name, depends, made))
    return model.eval()


def untrained(tiny: Tiny) -> SplitModel:
    """A new model, with values that the global generator draws, and the common tower where samples have pictures."""
    known = public(tiny.public)
    model = causal(tiny)
    body = replace(body_of(model), padding=None)  # what stands before a short question was there in training too
    pictures = [x for x in named(known.x_train).values() if x.dim() == 4]
    seen = sharing_copy(TOWERS[tiny.sees](tiny.public)) if pictures else None
    sight = None if seen is None else Sight(seen, nn.Linear(CHANNELS[-1], tiny.width))
    head = torch.randn(known.classes, tiny.width) * body.spread
    return split_model(body, known.shape, known.classes, head=head, sight=sight, reads=tiny.reads)


def causal(tiny: Tiny) -> PreTrainedModel:
    """Its transformer alone."""
    config, model = _KINDS[tiny.kind]
    parent = tiny if tiny.parent is None else TINY[tiny.parent]
    made: PreTrainedModel = model(
        config(
            vocab_size=tiny.tokens,
            hidden_size=tiny.width,
            intermediate_size=tiny.feed,
            num_hidden_layers=tiny.layers,
            num_attention_heads=tiny.width // HEAD,
            num_key_value_heads=tiny.width // HEAD,
            head_dim=HEAD,
            max_position_embeddings=512,
            pad_token_id=tiny.padding,
            rms_norm_eps=EPS * parent.width / tiny.width,
        )
    )
    return made


def _learn(name: str, tiny: Tiny, model: SplitModel) -> None:
    """Train all of it but the tower, whose output is computed once."""
    known = public(tiny.public)
    stage = stage_of(model)
    x, y = known.normalise(known.x_train), known.y_train
    if stage.picture is not None:
        x = {**named(x), stage.picture: _seen(stage.get_submodule("tower"), named(x)[stage.picture])}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def loss(rows: Int64[Tensor, "batch"]) -> Tensor:
        hidden = stage.after_tower(each(lambda of: of[rows], x))
        return functional.cross_entropy(model.modular(hidden), y[rows])

    train(name, parameters, loss, len(y), tiny.course, name)


@torch.no_grad()
def _seen(tower: nn.Module, pictures: Tensor) -> Float[Tensor, "n k features"]:
    return torch.cat([tower(some) for some in torch.split(pictures, 256)])


class Places(nn.Module):
    """A feature map [batch, channels, height, width] as tokens [batch, height·width, channels]."""

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch k channels"]:
        return x.flatten(2).transpose(1, 2)


@functools.cache
def tower(name: str) -> nn.Sequential:
    """What makes 16 tokens of 64 of a picture of 32 by 32: trained with answers, then frozen. It must not be changed.

    It is trained with batch normalisation, which then becomes part of the convolutions: the same function, and nothing
    that depends on a mode.
    """
    known = public(name)
    depends = (TOWER, CHANNELS, BUILD, known.digest)
    with seeded(0, "tower"):  # a caller's own draws must not depend on who asked first
        plain = _convolutions(normalised=False)
        make = functools.partial(_convolutions, normalised=True)
        plain.load_state_dict(kept(f"tower-{name}", depends, lambda: _folded(_taught(known, make, TOWER)).state_dict()))
    return plain.eval().requires_grad_(False)


class Patches(nn.Module):
    """A small vision transformer: a picture of 32 by 32 as tokens [batch, 16, 64], one of each patch of 8 by 8."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = ViTModel(
            ViTConfig(
                hidden_size=CHANNELS[-1],
                num_hidden_layers=3,
                num_attention_heads=CHANNELS[-1] // HEAD,
                intermediate_size=2 * CHANNELS[-1],
                image_size=32,
                patch_size=8,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            ),
            add_pooling_layer=False,
        )

    def forward(self, x: Float[Tensor, "batch 3 32 32"]) -> Float[Tensor, "batch 16 channels"]:
        tokens: Tensor = self.transformer(pixel_values=x).last_hidden_state[:, 1:]
        return tokens


@functools.cache
def patches(name: str) -> nn.Module:
    """What makes 16 tokens of 64 of a picture by a vision transformer, trained alike. It must not be changed."""
    known = public(name)
    depends = (PATCHES, CHANNELS, HEAD, BUILD, transformers.__version__, known.digest)
    with seeded(0, "patches"):
        made = Patches()
        made.load_state_dict(kept(f"patches-{name}", depends, lambda: _taught(known, Patches, PATCHES).state_dict()))
    return made.eval().requires_grad_(False)


TOWERS: Mapping[str, Callable[[str], nn.Module]] = MappingProxyType({"convolutions": tower, "patches": patches})
"""What makes tokens of a picture, of the name of the public data that it is trained on."""


def _taught(known: Dataset, make: Callable[[], M], course: Course) -> M:
    """A tower that has learnt to answer, with the wording of a question beside it."""
    shape = known.shape
    assert not isinstance(shape, tuple)
    picture = next(name for name, one in shape.items() if len(one) == 3)
    question = next(name for name, one in shape.items() if len(one) == 1)
    inputs, y = named(known.normalise(known.x_train)), known.y_train
    with seeded(0, "tower"):
        made = make()
        # the wording says what is asked, the picture what is answered, so their scores add up
        answer = nn.LazyLinear(known.classes)
        answer(made(inputs[picture][:2]).flatten(1))
        asked = nn.EmbeddingBag(int(inputs[question].max()) + 1, known.classes, mode="sum")

    def loss(rows: Int64[Tensor, "batch"]) -> Tensor:
        turned = _turned(inputs[picture][rows])
        scores = answer(made(turned).flatten(1)) + asked(inputs[question][rows])
        return functional.cross_entropy(scores, y[rows])

    train("tower", [*made.parameters(), *answer.parameters(), *asked.parameters()], loss, len(y), course, "tower")
    return made.eval()


def _turned(x: Tensor) -> Tensor:
    """A batch turned and mirrored by chance in one of eight ways, which neither colours nor shapes mind."""
    way = int(torch.randint(8, ()))
    x = x.flip(2) if way & 1 else x
    x = x.flip(3) if way & 2 else x
    return x.transpose(2, 3) if way & 4 else x


def _convolutions(normalised: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for few, many in zip((3, *CHANNELS), CHANNELS, strict=False):
        layers.append(nn.Conv2d(few, many, 3, padding=1, bias=not normalised))
        layers += [nn.BatchNorm2d(many)] if normalised else []
        layers += [nn.MaxPool2d(2), nn.ReLU()]
    return nn.Sequential(*layers, Places())


def _folded(made: nn.Sequential) -> nn.Sequential:
    plain, layers = _convolutions(normalised=False), [layer for layer in made if not isinstance(layer, nn.BatchNorm2d)]
    norms = iter(layer for layer in made if isinstance(layer, nn.BatchNorm2d))
    for layer, into in zip(layers, plain, strict=True):
        if isinstance(layer, nn.Conv2d):
            into.load_state_dict(nn.utils.fuse_conv_bn_eval(layer, next(norms)).state_dict())
    return plain
