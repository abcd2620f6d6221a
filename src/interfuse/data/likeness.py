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
FEWEST = 10
"""Rows from which on the spread of a test set says something."""


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
    if problem := _out_of_range(x, known):
        raise DataError(f"input {name}{problem}")
    if x.ndim > 2 and 0 < (high - low) * NARROWER < known.high[0] - known.low[0]:
        raise DataError(
            f"input {name}: samples go from {low:g} to {high:g}, but training rows from {known.low[0]:g} to "
            f"{known.high[0]:g}; are they in another unit?"
        )


def unlike(train: Tensor, test: Tensor) -> str:
    """A warning of test rows in another unit than training rows, by their ranges; empty: they seem alike.

    Of a table more than half of the columns that vary must be narrower: one may be so by chance.
    """
    if train.dtype != torch.float32 or not len(test):
        return ""
    known, held = range_of(train), range_of(test)
    if problem := _out_of_range(test.numpy(), known):
        return f"warning: test rows{problem}"
    wide, narrow = known.high - known.low, held.high - held.low
    varied = narrow > 0
    if len(test) >= FEWEST and varied.any() and np.median(narrow[varied] * NARROWER < wide[varied]) == 1:
        return (
            f"warning: test rows go from {held.low.min():g} to {held.high.max():g}, but training rows from "
            f"{known.low.min():g} to {known.high.max():g}; are they in another unit?"
        )
    return ""


def _out_of_range(x: Shaped[np.ndarray, "batch *sample"], known: Range) -> str:
    """Which value is far outside of the range of training rows, in words; empty: none is."""
    flat = x.astype(np.float64) if x.ndim == 2 else x.astype(np.float64).reshape(-1, 1)
    wide = known.high - known.low
    beyond = (flat < known.low - BEYOND * wide) | (flat > known.high + BEYOND * wide)
    # a column that is constant in training says nothing of its unit
    beyond &= wide > 0
    if beyond.any():
        row, column = np.argwhere(beyond)[0]
        where = f", column {column}" if x.ndim == 2 else ""
        return (
            f"{where}: found {flat[row, column]:g}, but training rows go from {known.low[column]:g} to "
            f"{known.high[column]:g}; is it in another unit?"
        )
    return ""
