"""Grids of few bits: which numbers a rounded tensor may hold, and how those are written.

A row of a tensor has one scale s. Where the row has negative numbers its grid is s·{-(2^(b-1) - 1), ..., 2^(b-1) - 1},
elsewhere, as behind a ReLU, s·{0, ..., 2^b - 1}, which is twice as fine. Two things make rounding a projection, so that
rounded numbers can be written, read and rounded again without changing a bit:

- the number of largest magnitude lies on the end of the grid, so the scale can be read off the numbers;
- a scale has 16 significant bits, those of a float32 without its last byte: times a place on a grid, of 8 bits, it is
  exact in float32, and so is the quotient.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

Per = Literal["row", "tensor"]
BITS = {"int8": 8, "int4": 4, "int2": 2}

Rows = Float32[Tensor, "rows columns"]
Column = Float32[Tensor, "rows 1"]


def rows_of(x: Tensor, per: Per) -> Rows:
    """A tensor as rows: all but its first dimension are columns; with fewer than two, or ``tensor``, it is one row."""
    return x.reshape(1, -1) if per == "tensor" or x.ndim < 2 else x.reshape(len(x), -1)


BYTES_OF_SCALE = 3


def number_of_rows(shape: tuple[int, ...], per: Per) -> int:
    """How many rows :func:`rows_of` makes of a tensor that is not empty."""
    return 1 if per == "tensor" or len(shape) < 2 else shape[0]


def project(rows: Rows, bits: int, noise: Rows | float) -> Rows:
    """Numbers on their grids: x becomes the next number above it with the probability of its distance from that below.

    The error is at most the scale, which is the largest magnitude of the row over the steps of its grid, and less than
    1 / 32,768 more (rows with magnitudes below 1.5e-36 become 0). The mean over the noise is x, but for the largest of
    a row, which may move by as little, and rows whose negative numbers all became 0, which are rounded without these.

    Args:
        noise: Uniform in [0, 1) for each number, or one number for all: 0.5 is rounding to the nearest.
    """
    both = _on_grid(rows, 2 ** (bits - 1) - 1, noise)
    positive = _on_grid(rows.clamp(min=0), 2**bits - 1, noise)
    return torch.where((both < 0).any(1, keepdim=True), both, positive)


def _on_grid(rows: Rows, steps: int, noise: Rows | float) -> Rows:
    magnitudes = rows.abs()
    largest = magnitudes.amax(1, keepdim=True)
    scale = _scale(largest, steps)
    ratio = rows / _divisor(scale)
    below = ratio.floor()
    below += noise < ratio - below  # not floor(ratio + noise): that sum is rounded itself
    outwards = torch.where(magnitudes == largest, rows.sign() * steps, below)
    return outwards.clamp(-steps, steps) * scale + 0.0  # a zero has no sign


def _scale(largest: Column, steps: Column | int) -> Column:
    """The smallest scale that reaches the largest magnitude; 0 where it would be no normal number."""
    ratio = largest / steps
    bits = (ratio.view(torch.int32) + 0xFF) & ~0xFF
    highest = torch.full_like(ratio, torch.finfo(torch.float32).max) / steps
    bits = torch.minimum(bits, highest.view(torch.int32) & ~0xFF)
    return torch.where(ratio < torch.finfo(torch.float32).tiny, 0.0, bits.view(torch.float32))


def _divisor(scale: Column) -> Column:
    return torch.where(scale == 0, 1.0, scale)


def to_codes(rows: Rows, bits: int) -> tuple[UInt8[np.ndarray, "rows 3"], UInt8[np.ndarray, "rows columns"]] | None:
    """Scales of three bytes, negative for grids with negative numbers, and the places on the grids.

    None where a number does not lie on the grid of its row.
    """
    negative = (rows < 0).any(1, keepdim=True)
    steps = torch.where(negative, 2 ** (bits - 1) - 1, 2**bits - 1)
    scale = _scale(rows.abs().amax(1, keepdim=True), steps)
    places = (rows / _divisor(scale)).round()
    if not torch.equal(places * scale, rows):
        return None
    codes = (places + torch.where(negative, steps, 0)).to(torch.uint8)
    scales = torch.where(negative, -scale, scale).flatten().numpy().astype("<f4")
    return scales.view(np.uint8).reshape(-1, 4)[:, 1:], codes.numpy()


def from_codes(
    scales: UInt8[np.ndarray, "rows 3"], codes: np.ndarray, where: np.ndarray | None, out: np.ndarray, bits: int
) -> bool:
    """The inverse of :func:`to_codes`, written to the rows of ``out``; whether there are such numbers.

    Args:
        where: What indexes the numbers whose codes these are among all, of which the others are 0; None: they are all.
    """
    whole = np.zeros((len(scales), 4), np.uint8)
    whole[:, 1:] = scales
    factors = whole.view("<f4")
    steps = 2 ** (bits - 1) - 1
    signed = np.signbit(factors)
    zeros = np.where(signed, np.uint8(steps), np.uint8(0))
    if where is not None:
        given, codes = codes, np.repeat(zeros, out.shape[1])
        codes[where] = given
    codes = codes.reshape(out.shape)
    if not np.isfinite(factors).all() or (signed & (codes.max(1, keepdims=True) > 2 * steps)).any():
        return False
    out[:] = codes
    out -= zeros
    with np.errstate(over="ignore"):  # whether a message is finite is checked with the rest of it
        out *= np.abs(factors)
    out += 0  # a zero has no sign
    return True


def pack(codes: np.ndarray, bits: int) -> bytes:
    """Codes of few bits, several a byte, the first in the lowest bits."""
    each = 8 // bits
    padded = np.zeros(-(-len(codes) // each) * each, np.uint8)
    padded[: len(codes)] = codes
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    joined: np.ndarray = np.bitwise_or.reduce(padded.reshape(-1, each) << shifts, axis=1, dtype=np.uint8)
    return joined.tobytes()


def unpack(data: np.ndarray, count: int, bits: int) -> np.ndarray:
    """The inverse of :func:`pack`, for bytes of the right number."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes: np.ndarray = data[:, None] >> shifts
    codes &= np.uint8(2**bits - 1)
    return codes.reshape(-1)[:count]
