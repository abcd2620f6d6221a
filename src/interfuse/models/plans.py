"""Plans of sub-models: which slices of a wide and deep model's tensors a narrower or shallower one holds.

A plan is read off the shapes of the two models, by key. A tensor that the smaller model does not have is not held
(depth, early exits), and of a dimension that is shorter there the first positions are held, or a rolling window.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Int64
from torch import Tensor

from interfuse.aggregation import Index, Plan
from interfuse.errors import ModelError

Shapes = Mapping[str, tuple[int, ...]]


def width_plan(whole: Shapes, part: Shapes, shift: int = 0) -> Plan:
    """What a model with the shapes ``part`` holds of one with the shapes ``whole``, both by key.

    Of a dimension of n positions of which the part has m, it holds (i + shift) mod n for i = 0 … m − 1. With shift 0
    these are the first ones (HeteroFL, ScaleFL; FjORD's ordered dropout, between the widths of one client). FedRolex
    (Alam et al., NeurIPS 2022) moves the window by one in each round.

    Windows of layers that meet fit together because all of their dimensions have one length. With a shift, that is
    checked: every shortened input must be as long as some layer's output, so a layer that takes flattened feature maps
    cannot be rolled.

    Raises:
        ModelError: the part has a tensor that the whole has not, or a longer one; or its inputs cannot be rolled.
    """
    outputs = {shape[0] for shape in whole.values() if shape}
    plan: dict[str, Index | None] = {}
    for key, shape in part.items():
        if key not in whole:
            raise ModelError(f"it has a tensor {key!r} that the larger model has not")
        lengths = whole[key]
        if len(shape) != len(lengths) or any(m > n for m, n in zip(shape, lengths, strict=True)):
            raise ModelError(f"its tensor {key!r} of shape {shape} is no slice of one of shape {lengths}")
        if shift and len(shape) > 1 and shape[1] < lengths[1] and lengths[1] not in outputs:
            raise ModelError(
                f"its tensor {key!r} takes {shape[1]} of {lengths[1]} inputs, which no layer gives as its outputs; "
                "rolling windows need models that flatten no feature maps, such as resnet18@0.5"
            )
        plan[key] = None if shape == lengths else tuple(map(window, lengths, shape, [shift] * len(shape)))
    return plan


def window(size: int, held: int, shift: int = 0) -> Int64[Tensor, " held"] | None:
    """The positions (i + shift) mod size for i = 0 … held − 1; None for all of them, in whatever order."""
    return None if held == size else torch.remainder(torch.arange(held) + shift, size)


def with_rows(plan: Plan, shapes: Shapes, rows: Int64[Tensor, " held"]) -> Plan:
    """The same plan with these rows alone of the tensors of these shapes, of which it has all rows.

    That is what counts of a classifier that was trained on some of the classes.
    """
    whole = {key: plan[key] or (None,) * len(shape) for key, shape in shapes.items()}
    return {**plan, **{key: (rows, *index[1:]) for key, index in whole.items()}}
