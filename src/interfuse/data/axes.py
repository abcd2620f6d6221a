"""What the axes of an array are, and numbers in the type in which a data set keeps them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

from interfuse.data.reading import Layout
from interfuse.errors import DataError

Array = Shaped[np.ndarray, "n *sample"]

SMALL, LARGE = (1, 3, 4), 8
"""Numbers of channels that a last axis may have, and what the axes before it then have at least."""
NARROW = 4
"""A grey picture of whole numbers is at most so many times as long as it is wide."""
MOST_WHOLE = 2**53
"""From where on float64 holds not every whole number."""
LOST = 1e-3
"""How much of its standard deviation a column may lose where it is cut to float32."""

_AXES: dict[Layout, tuple[int, ...]] = {
    "images": (3, 4),
    "images-last": (3, 4),
    "signals": (2, 3),
    "signals-last": (2, 3),
    "table": (2,),
    "tokens": (2,),
    "volumes": (4, 5),
    "volumes-last": (4, 5),
}


def arranged(parts: Sequence[tuple[str, Array]], layout: Layout | None) -> tuple[list[Array], str]:
    """Training and test rows, by what errors call them, as data sets keep them, and what they were taken for.

    Raises:
        DataError: two readings are likely, the layout does not fit, or float32 cannot hold the values.
    """
    for part, x in parts:
        if x.dtype.kind not in "biuf":
            raise DataError(f"{part} is {x.dtype}, not an array of numbers")
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            place = ", ".join(map(str, np.argwhere(~np.isfinite(x))[0]))
            raise DataError(f"{part}[{place}] has no finite value: fill it in, or leave the row out")
        if x.ndim == 0 or (part == parts[0][0] and not len(x)):
            raise DataError(f"{part} has no rows; at least one is needed")
    what, first = parts[0]
    said = ""
    if layout is None:
        layout, said = likely(
            what, first, lowest=min((x.min() for _, x in parts if x.size and x.dtype.kind in "iu"), default=0)
        )
    elif first.ndim not in _AXES[layout]:
        axes = " or ".join(map(str, _AXES[layout]))
        raise DataError(f"layout {layout!r} has {axes} axes, but {what} has shape {list(first.shape)}")
    pixels = (
        layout is not None and layout.startswith(("images", "volumes")) and all(map(_are_pixels, (x for _, x in parts)))
    )
    return [_kept(part, _moved(x, layout), layout, pixels) for part, x in parts], said


def likely(what: str, x: Array, lowest: int = 0) -> tuple[Layout | None, str]:
    """What the axes of rows are, and that in words where it is not obvious.

    Raises:
        DataError: two readings are likely.
    """
    shape, tokens = list(x.shape[1:]), x.dtype in (np.int32, np.int64)
    match x.ndim:
        case 2 if tokens and lowest < 0:
            return "table", "whole numbers below 0, so quantities and no tokens"
        case 2 if tokens:
            return "tokens", "whole numbers, taken for numbers of tokens; layout='table' makes them quantities"
        case 2:
            return "table", ""
        case 3 if tokens:
            raise _two(what, x, "images [n, height, width]", "images", "signals [n, channels, time]", "signals")
        case 3:
            ratio = max(shape) / max(1, min(shape))
            if ratio != 1 and (x.dtype.kind == "f" or ratio > NARROW):
                raise _two(what, x, "images [n, height, width]", "images", "signals [n, channels, time]", "signals")
            return "images", "images [n, height, width] of one channel"
        case 4:
            return _likely_images(what, x, shape)
        case 5:
            first, last = "volumes [n, channels, depth, height, width]", "volumes [n, depth, height, width, channels]"
            raise _two(what, x, first, "volumes", last, "volumes-last")
        case axes if axes > 5:
            raise DataError(f"{what} has shape {list(x.shape)}; samples of {axes - 1} axes are not read: join some")
    return None, ""


def _likely_images(what: str, x: Array, shape: list[int]) -> tuple[Layout, str]:
    first, second, last = shape
    if first in (1, 2, 3, 4):
        if last in SMALL and second >= LARGE and second != last and first < LARGE:
            raise _two(what, x, "channels first", "images", "channels last", "images-last")
        return "images", ""
    if last in SMALL and first >= LARGE and second >= LARGE:
        return "images-last", f"images [n, height, width, channels]: the last axis, {last}, is the channels"
    if second != last:
        raise _two(what, x, "channels first", "images", "channels last", "images-last")
    return "images", f"images of {first} channels"


def _two(what: str, x: Array, one: str, name: str, other: str, its: str) -> DataError:
    return DataError(
        f"{what} of {x.dtype} and shape {list(x.shape)} may be {one} or {other}: say layout={name!r} or layout={its!r}"
    )


def _moved(x: Array, layout: Layout | None) -> Array:
    """Channels first, with an axis of their own."""
    if layout is not None and len(_AXES[layout]) == 2 and x.ndim == _AXES[layout][0]:
        return x[:, np.newaxis]
    return np.moveaxis(x, -1, 1) if layout is not None and layout.endswith("-last") else x


def _are_pixels(x: Array) -> bool:
    """Whether whole numbers are all from 0 to 255; of no rows they may be."""
    return x.dtype in (np.int32, np.int64) and (not x.size or (int(x.min()) >= 0 and int(x.max()) <= 255))


def _kept(what: str, x: Array, layout: Layout | None, pixels: bool) -> Array:
    """uint8 and what are pixels is uint8, tokens are int64, any other number is float32."""
    if layout == "tokens":
        if x.dtype.kind not in "iu":
            raise DataError(f"{what} is {x.dtype}, but tokens are whole numbers; save them as int64")
        return np.require(x, np.int64, requirements=["C", "W"])
    if pixels or (layout is None and x.dtype in (np.int32, np.int64)):
        return np.require(x, np.uint8 if pixels else np.int64, requirements=["C", "W"])
    if x.dtype != np.uint8:
        _check_held(what, x)
    # PyTorch cannot mark memory as read-only, so a read-only array is copied.
    return np.require(x, np.uint8 if x.dtype == np.uint8 else np.float32, requirements=["C", "W"])


def _check_held(what: str, x: Array) -> None:
    """Check that float32 holds the values: not more than the largest one, and the differences within a channel."""
    if x.ndim < 2 or not x.size or x.dtype in (np.float32, np.float16, np.int8, np.int16, np.uint16, np.bool_):
        return
    for channel in range(x.shape[1]):
        problem = lost(x[:, channel])
        if problem:
            raise DataError(
                f"{what}[:, {channel}] {problem}; subtract a number that is common to all before, or leave it out"
            )


def lost(values: Shaped[np.ndarray, "n *rest"]) -> str:
    """What float32 cannot hold of these values, in words; empty: nothing. Values that are not finite are left out."""
    exact = values.astype(np.float64)
    exact = exact[np.isfinite(exact)]
    if not len(exact):
        return ""
    if np.abs(exact).max() > np.finfo(np.float32).max:
        return f"has the value {exact[np.abs(exact).argmax()]:g}, which is too large for float32"
    spread = float((exact - exact.mean()).std())
    error = float(np.abs(exact - exact.astype(np.float32)).max())
    least = 1e-14 * float(np.abs(exact).max())  # so much a constant varies by rounding
    if values.dtype.kind in "iu" and np.abs(exact).max() >= MOST_WHOLE:
        # float64 rounds these too, so what is told apart is seen in the whole numbers themselves
        spread = float((values - values.min()).astype(np.float64).std())
        error = float(np.spacing(np.float32(np.abs(exact).max())))
        least = 0.0
    if spread > least and error > LOST * spread:
        return f"varies by {spread:.3g} around {exact.mean():.10g}, which float32 cannot tell apart"
    return ""
