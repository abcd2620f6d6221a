"""Models of transformers by name: ``hf:FOLDER``, ``hf:NAME?revision=COMMIT``. Nothing here imports transformers until a
model is asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from interfuse.data import Shape
from interfuse.errors import ConfigError
from interfuse.models.backbones.stages import TOWER, Body, Sight, Transformer, sharing_copy, split_model
from interfuse.models.split import SplitModel
from interfuse.references import HUB

__all__ = ["TOWER", "Body", "Sight", "Transformer", "named", "sharing_copy", "split_model"]


def named(name: str) -> Callable[[Any, int, int], SplitModel] | None:
    """The builder of a transformers model by name; None: it is no such name.

    Raises:
        ConfigError: the extra is missing, there is no such folder, or the name is not as it must be.
    """
    if not name.startswith(HUB):
        return None
    try:
        from interfuse.models.backbones.loading import Reference
    except ImportError as error:
        raise ConfigError(
            f"model {name!r} needs transformers ({error}): pip install 'interfuse[transformers]'"
        ) from error
    reference = Reference.parse(name.removeprefix(HUB))
    reference.check()
    return partial(_build, reference)


def _build(reference: Any, sample_shape: Shape, classes: int, width: int) -> SplitModel:
    from interfuse.models.backbones.loading import build

    return build(reference, sample_shape, classes, width)
