"""Larger and smaller models out of one: relatives, as Llama 1B and 3B are, between which updates of adapters mean
something."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interfuse.errors import ModelError

_WRITES = ("o_proj.weight", "down_proj.weight", "embed_tokens.weight", "projector.weight", "projector.bias")
"""Ends of the keys of what writes into the residual stream."""
_WRITTEN_BY_LAYERS = _WRITES[:2]


@torch.no_grad()
def grow(small: Mapping[str, Tensor], large: Mapping[str, Tensor], layers: tuple[int, int]) -> None:
    """Have a new, wider and deeper model compute the function of a small one, before it is trained further.

    Layer k of the small model becomes layer r·k + r − 1 of the large one, r times as deep. Its matrices lie in the
    first rows and columns. What writes into the residual stream writes nothing into the new coordinates; what reads
    these, and the new heads and hidden units, keep their random values, so that gradients reach them. A layer in
    between writes nothing. RMS normalisation divides by a root mean square over more coordinates, so its weights are
    smaller by the root of the ratio of widths.

    Args:
        small, large: Tensors by key, of models with Llama's names, heads of one width, and ``rms_norm_eps`` in the
            ratio of widths; the large one's are written to.
        layers: Of the small and of the large model.

    Raises:
        ModelError: the large model is no multiple as deep, or too narrow.
    """
    ratio, rest = divmod(layers[1], layers[0])
    if rest or not ratio:
        raise ModelError(f"a model of {layers[0]} layers cannot become one of {layers[1]}: take a multiple")
    for key, tensor in large.items():
        origin = _origin(key, ratio)
        if origin is None:
            if key.endswith(_WRITTEN_BY_LAYERS):
                tensor.zero_()
            continue
        first = small[origin]
        if any(few > many for few, many in zip(first.shape, tensor.shape, strict=True)):
            raise ModelError(
                f"{key} would shrink from {tuple(first.shape)} to {tuple(tensor.shape)}: a model only grows"
            )
        if key.endswith("norm.weight"):
            first = first * math.sqrt(len(first) / len(tensor))
        if key.endswith(_WRITES):
            tensor.zero_()
        tensor[tuple(slice(0, size) for size in first.shape)] = first


def without_middle(model: PreTrainedModel, first: int, last: int) -> PreTrainedModel:
    """A copy with the first and the last layers only, in tensors of its own. It has to be healed by some training.

    The first half alone would be of no use: its last layer writes what no head was trained to read.
    """
    made = copy.deepcopy(model)
    layers = next(module for module in made.modules() if isinstance(module, nn.ModuleList))
    kept = [*layers[:first], *layers[len(layers) - last :]]
    for place, layer in enumerate(kept):
        for module in layer.modules():
            if "layer_idx" in vars(module):
                module.layer_idx = place
    holder, name = next(
        (holder, name) for holder in made.modules() for name, child in holder.named_children() if child is layers
    )
    holder.register_module(name, nn.ModuleList(kept))
    made.config.num_hidden_layers = len(kept)
    return made


def _origin(key: str, ratio: int) -> str | None:
    """The small model's key of what a key of the large one comes from; None: of a layer in between."""
    before, found, after = key.partition("layers.")
    if not found:
        return key
    number, _, rest = after.partition(".")
    own, place = divmod(int(number), ratio)
    return f"{before}layers.{own}.{rest}" if place == ratio - 1 else None
