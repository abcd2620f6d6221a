"""Whether samples that somebody brings are like those that a model was trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from interfuse.errors import DataError

BEYOND = 10
"""A value may be as far outside of the training rows' range as that is wide, so many times."""
NARROWER = 100
"""Images and signals of so much smaller a spread are in another unit."""


@dataclass(frozen=True, eq=False)
class Range:
    """The least and the largest value of each column of a table, or of all images or signals together."""

    low: Float64[np.ndarray, "columns"]
    high: Float64[np.ndarray, "columns"]


def range_of(x: Tensor) -> Range:
    """That of training rows."""
    flat = x if x.ndim == 2 else x.reshape(-1, 1)
    low, high = flat.amin(0), flat.amax(0)
    return Range(low.double().cpu().numpy(), high.double().cpu().numpy())


def check_like(name: str, x: Shaped[np.ndarray, "batch *sample"], stored: torch.dtype, known: Range | None) -> None:
    """Check samples of the right shape, to be kept in a type, against the range of training rows.

    Raises:
        DataError: their type, a value, or their unit cannot be meant.
    """
    low, high = float(x.min()), float(x.max())
    if not np.isfinite(x).all():
        row = int(np.argwhere(~np.isfinite(x))[0][0])
        raise DataError(f"input {name}: sample {row} has a value that is not finite")
    if stored == torch.uint8:
        if x.dtype.kind not in "iu":
            raise DataError(
                f"input {name}: the data set stores whole numbers from 0 to 255 (uint8), found {x.dtype} from {low:g} "
                f"to {high:g}; give them as they were before scaling, as uint8"
            )
        if low < 0 or high > 255:
            raise DataError(f"input {name}: expected numbers from 0 to 255, found some from {low:g} to {high:g}")
        return
    if stored == torch.int64:
        if x.dtype.kind not in "iu" or low < 0:
            raise DataError(f"input {name}: expected numbers of tokens, whole and from 0, found {x.dtype} from {low:g}")
        return
    if known is None:
        return
    if x.dtype == np.uint8:
        raise DataError(
            f"input {name}: the data set stores floats from {known.low.min():g} to {known.high.max():g}, found uint8; "
            "bring them to that unit, as float32"
        )
    flat = x.astype(np.float64) if x.ndim == 2 else x.astype(np.float64).reshape(-1, 1)
    wide = known.high - known.low
    beyond = (flat < known.low - BEYOND * wide) | (flat > known.high + BEYOND * wide)
    # a column that is constant in training says nothing of its unit
    beyond &= wide > 0
    if beyond.any():
        row, column = np.argwhere(beyond)[0]
        where = f", column {column}" if x.ndim == 2 else ""
        raise DataError(
            f"input {name}{where}: found {flat[row, column]:g}, but training rows go from {known.low[column]:g} to "
            f"{known.high[column]:g}; is it in another unit?"
        )
    if x.ndim > 2 and 0 < (high - low) * NARROWER < wide[0]:
        raise DataError(
            f"input {name}: samples go from {low:g} to {high:g}, but training rows from {known.low[0]:g} to "
            f"{known.high[0]:g}; are they in another unit?"
        )
