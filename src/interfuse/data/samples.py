"""Samples that somebody brings, as rows of the kind that a model was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from interfuse.data.inputs import ONLY, Inputs, together
from interfuse.data.likeness import Range, check_like
from interfuse.data.reading import listed
from interfuse.errors import DataError

Form = tuple[torch.dtype, tuple[int, ...]]
"""Type of a row as it is stored, and shape of one sample."""


def as_stored(
    x: ArrayLike | Tensor | Mapping[str, ArrayLike | Tensor],
    forms: Mapping[str, Form],
    columns: Sequence[str] = (),
    ranges: Mapping[str, Range] | None = None,
) -> Inputs:
    """Samples that somebody brings, ``[batch, *shape]``, as rows of these forms; grey images may lack their axis.

    Those of a table may come by the names of its columns.

    Args:
        ranges: Of training rows, by input, where they are known.

    Raises:
        DataError: they have another shape, type, order or range, or values that are not finite.
    """
    brought = _in_order(x, columns) if isinstance(x, Mapping) and columns else x
    given = brought if isinstance(brought, Mapping) else {ONLY: brought}
    if given.keys() != forms.keys():
        raise DataError(f"expected the inputs {', '.join(forms)}, found {', '.join(given) or 'none'}")
    found = {}
    for name, (dtype, shape) in forms.items():
        array = np.ascontiguousarray(given[name])
        if array.dtype.kind not in "biuf":
            raise DataError(f"input {name}: expected numbers, found {array.dtype}")
        if array.shape[1:] == shape[1:] and shape[0] == 1:
            array = array[:, np.newaxis]
        if array.shape[1:] != shape or not len(array):
            of = f" ({listed(columns, 30)})" if columns else ""
            wanted = f"[batch, {', '.join(map(str, shape))}]{of}"
            raise DataError(f"input {name}: expected samples {wanted}, found {array.shape}")
        check_like(name, array, dtype, (ranges or {}).get(name))
        found[name] = torch.from_numpy(array).to(dtype)
    return together(found)


def _in_order(x: Mapping[str, ArrayLike | Tensor], columns: Sequence[str]) -> ArrayLike:
    """Columns by name as one array."""
    if tuple(x) != tuple(columns):
        lacking, more = ([n for n in a if n not in b] for a, b in ((columns, x), (x, columns)))
        problem = (
            f"lacks {listed(lacking)}" if lacking else f"has also {listed(more)}" if more else "are in another order"
        )
        raise DataError(f"the columns given {problem}; the model takes, in this order, {listed(columns, 30)}")
    return np.stack([np.asarray(x[name]) for name in columns], axis=1)
