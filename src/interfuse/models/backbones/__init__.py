"""Models of transformers by name. Nothing here imports transformers until such a model is asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

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
}
_RANDOM = "-random"
NAMES = _TINY | {f"{name}{_RANDOM}": f"{name} without its training: a control." for name in _TINY}
"""Built-in ones, with a line about each."""


def named(name: str) -> Callable[[Any, int, int], SplitModel] | None:
    """The builder of a transformers model by name; None: it is no such name.

    Raises:
        ConfigError: the extra is missing, there is no such folder, or the name is not as it must be.
    """
    if name not in NAMES and not name.startswith(HUB):
        return None
    try:
        from interfuse.models.backbones import loading, tiny
    except ImportError as error:
        raise ConfigError(
            f"model {name!r} needs transformers ({error}): pip install 'interfuse[transformers]'"
        ) from error
    if name.startswith(HUB):
        reference = loading.Reference.parse(name.removeprefix(HUB))
        reference.check()
        return partial(loading.build, reference)
    own = name.removesuffix(_RANDOM)
    return partial(tiny.build, own, own != name)
