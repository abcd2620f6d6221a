"""A labelled data set in memory, and the choice of stratified rows from it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from numpy.typing import ArrayLike
from torch import Tensor

from interfuse.errors import ConfigError, DataError
from interfuse.randomness import numpy_generator


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test rows with their labels, held whole in memory on the CPU.

    :param name: the name that runs and reports show.
    :param x_train: uint8 or float32; images are ``[n, channels, height, width]``, signals ``[n, channels, time]``,
        tables ``[n, columns]``.
    :param y_train: int64, from 0 to ``classes - 1``.
    :param class_names: one name a class, in the order of the labels.
    :param scale: ``x / scale`` maps a row to [0, 1]: 255 for usual images, 1 for floats that need none.
    :param mean: of the scaled training rows, one number a channel (axis 1), or one for all channels.
    :param std: as ``mean``; positive.
    :param groups: the natural client (a person, a device) of each training row, from 0; None where there is none.
    :param blocks: training rows that overlap, such as windows of one recording, have one number, from 0: a client's
        rows of a block all go to its training, its validation or its test share. None where all rows stand alone.
    :param note: what a reader of results must know ("not comparable with published KMNIST numbers").
    Raises:
        DataError: a field contradicts this description; the text names the field.
    """

    name: str
    x_train: Shaped[Tensor, "n_train *sample"] = field(repr=False)
    y_train: Int64[Tensor, "n_train"] = field(repr=False)
    x_test: Shaped[Tensor, "n_test *sample"] = field(repr=False)
    y_test: Int64[Tensor, "n_test"] = field(repr=False)
    class_names: tuple[str, ...]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    groups: Int64[Tensor, "n_train"] | None = field(default=None, repr=False)
    blocks: Int64[Tensor, "n_train"] | None = field(default=None, repr=False)
    note: str = ""
    licence: str = "not stated"

    def __post_init__(self) -> None:
        self._check_rows("x_train", self.x_train)
        self._check_rows("x_test", self.x_test)
        self._require(len(self.x_train) > 0, "x_train", "has no rows; at least one is needed")
        self._require(
            self.x_test.shape[1:] == self.x_train.shape[1:] and self.x_test.dtype == self.x_train.dtype,
            "x_test",
            f"holds {_kind(self.x_test)} rows, but x_train {_kind(self.x_train)}",
        )
        self._check_labels("y_train", self.y_train, len(self.x_train), self.classes)
        self._check_labels("y_test", self.y_test, len(self.x_test), self.classes)
        for name, numbers in (("groups", self.groups), ("blocks", self.blocks)):
            if numbers is not None:
                self._check_labels(name, numbers, len(self.x_train), None)
        self._require(math.isfinite(self.scale) and self.scale > 0, "scale", f"is {self.scale}, must be positive")
        for name, values in (("mean", self.mean), ("std", self.std)):
            channels = self.shape[0]
            self._require(
                len(values) in (1, channels), name, f"has {len(values)} numbers; {channels} channels need as many, or 1"
            )
            self._require(all(map(math.isfinite, values)), name, "is not finite")
        self._require(min(self.std) > 0, "std", "must be positive; give 1 for a constant channel")

    def _require(self, condition: bool, field_name: str, problem: str) -> None:
        if not condition:
            raise DataError(f"data set {self.name!r}: {field_name} {problem}")

    def _check_rows(self, field_name: str, x: Tensor) -> None:
        self._require(x.dtype in (torch.uint8, torch.float32), field_name, f"is {x.dtype}, must be uint8 or float32")
        self._require(
            x.ndim >= 2, field_name, f"has shape {list(x.shape)}, needs at least 2 axes (rows and values or channels)"
        )
        self._require(
            not x.is_floating_point() or bool(torch.isfinite(x).all()), field_name, "has values that are not finite"
        )

    def _check_labels(self, field_name: str, y: Tensor, rows: int, end: int | None) -> None:
        self._require(y.dtype == torch.int64, field_name, f"is {y.dtype}, must be int64")
        self._require(list(y.shape) == [rows], field_name, f"has shape {list(y.shape)}, needs {[rows]}, one a row")
        if rows:
            low, high = int(y.min()), int(y.max())
            limit = "0 or more" if end is None else f"0 to {end - 1}, one a class name"
            self._require(
                low >= 0 and (end is None or high < end),
                field_name,
                f"has labels from {low} to {high}; they must be {limit}",
            )

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, channels first, without the batch axis."""
        return tuple(self.x_train.shape[1:])

    @cached_property
    def digest(self) -> str:
        """A hash of all samples and labels, in hexadecimal."""
        found = hashlib.blake2b(digest_size=16)
        for tensor in (self.x_train, self.y_train, self.x_test, self.y_test):
            found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            found.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
        return found.hexdigest()

    def to(self, device: str) -> Dataset:
        """The same data set with its samples and labels on a device."""
        if device == "cpu":
            return self
        names = ("x_train", "y_train", "x_test", "y_test")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def with_test_rows(self, rows: int | None) -> Dataset:
        """The same with so many fixed rows of its test set, every class in its proportion; None: with all."""
        if rows is None or rows >= len(self.y_test):
            return self
        chosen = stratified_subset(self.y_test.numpy(), rows, numpy_generator(0, "test rows"))
        return replace(self, x_test=self.x_test[chosen], y_test=self.y_test[chosen])

    def normalise(self, x: Shaped[Tensor, "batch *sample"]) -> Float[Tensor, "batch *sample"]:
        """``(x / scale - mean) / std`` per channel as float32, a new tensor on the device of ``x``."""
        factors = [1 / (self.scale * std) for std in self.std]
        offsets = [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]
        out = x.to(torch.float32, copy=True)
        # One multiplication and one addition in place beat the formula as written and torch.addcmul two to four times.
        if len(factors) == 1:
            return out.mul_(factors[0]).add_(offsets[0])
        per_channel = (-1, *[1] * (x.ndim - 2))
        factor, offset = torch.tensor([factors, offsets], device=x.device).reshape(2, *per_channel)
        return out.mul_(factor).add_(offset)

    @classmethod
    def from_arrays(
        cls,
        name: str,
        x_train: ArrayLike | Tensor,
        y_train: ArrayLike | Tensor,
        x_test: ArrayLike | Tensor,
        y_test: ArrayLike | Tensor,
        *,
        has_channels: bool = False,
        class_names: Sequence[str] | None = None,
        scale: float | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        groups: ArrayLike | Tensor | None = None,
        blocks: ArrayLike | Tensor | None = None,
        note: str = "",
        licence: str = "not stated",
    ) -> Dataset:
        """A data set from NumPy arrays or tensors, with what is not given worked out.

        - ``x`` of three axes is taken for images ``[n, height, width]`` and gets a channel axis, unless
          ``has_channels`` says that it holds signals ``[n, channels, time]``;
        - uint8 stays, every other number becomes float32; labels must be whole numbers and become int64; arrays that
          have the right type already are shared, not copied;
        - ``scale`` is 255 for uint8, else 1; class names are the labels' numbers;
        - ``mean`` and ``std`` are those of the scaled training rows, per channel (per column of ``[n, columns]``); a
          constant channel gets a ``std`` of 1.

        Raises:
            DataError: an array has not the form described in :class:`Dataset`.
        """
        x, x_held = (
            _rows(name, part, values, has_channels) for part, values in (("x_train", x_train), ("x_test", x_test))
        )
        y, y_held = (_labels(name, part, values) for part, values in (("y_train", y_train), ("y_test", y_test)))
        if class_names is None:
            highest = max((int(part.max()) for part in (y, y_held) if part.numel()), default=-1)
            class_names = [str(label) for label in range(highest + 1)]
        if scale is None:
            scale = 255.0 if x.dtype == torch.uint8 else 1.0
        if mean is None or std is None:
            found_mean, found_std = _moments(x, scale)
            mean = found_mean if mean is None else mean
            std = found_std if std is None else std
        return cls(
            name=name,
            x_train=x,
            y_train=y,
            x_test=x_held,
            y_test=y_held,
            class_names=tuple(class_names),
            scale=scale,
            mean=tuple(mean),
            std=tuple(std),
            groups=None if groups is None else _labels(name, "groups", groups),
            blocks=None if blocks is None else _labels(name, "blocks", blocks),
            note=note,
            licence=licence,
        )


def stratified_subset(
    labels: Shaped[np.ndarray, "n"], size: int, rng: np.random.Generator
) -> Int64[np.ndarray, "min(size,n)"]:
    """Rows chosen at random so that every class keeps its proportion; sorted, exactly ``min(size, n)`` of them.

    The rows of a class are its proportional quota rounded down; the rows still owed go to the largest remainders, to
    the smaller label where these are equal.

    Raises:
        ConfigError: ``size`` is negative.
    """
    if size < 0:
        raise ConfigError(f"a subset cannot have {size} rows; ask for 0 or more")
    size = min(size, len(labels))
    values, counts = np.unique(labels, return_counts=True)
    quota, remainder = np.divmod(counts * size, max(len(labels), 1))
    owed = size - int(quota.sum())
    quota[np.argsort(-remainder, kind="stable")[:owed]] += 1
    chosen = [
        rng.permutation(np.flatnonzero(labels == value))[:rows] for value, rows in zip(values, quota, strict=True)
    ]
    return np.sort(np.concatenate([np.empty(0, np.int64), *chosen]))


def _kind(x: Tensor) -> str:
    return f"{x.dtype} {list(x.shape[1:])}"


def _array(name: str, part: str, values: ArrayLike | Tensor) -> np.ndarray:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise DataError(f"data set {name!r}: {part} is {array.dtype}, not an array of numbers")
    return array


def _rows(name: str, part: str, values: ArrayLike | Tensor, has_channels: bool) -> Tensor:
    array = _array(name, part, values)
    # PyTorch cannot mark memory as read-only, so a read-only array is copied.
    array = np.require(array, np.uint8 if array.dtype == np.uint8 else np.float32, requirements=["C", "W"])
    return torch.from_numpy(array[:, np.newaxis] if array.ndim == 3 and not has_channels else array)


def _labels(name: str, part: str, values: ArrayLike | Tensor) -> Tensor:
    array = _array(name, part, values)
    with np.errstate(invalid="ignore"):
        whole = np.require(array, np.int64, requirements=["C", "W"])
    if not np.array_equal(whole, array):
        raise DataError(f"data set {name!r}: {part} has labels that are not whole numbers")
    return torch.from_numpy(whole)


def _moments(x: Tensor, scale: float) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of ``x / scale`` per channel (axis 1), summed in float64."""
    channels = x.transpose(0, 1).flatten(1) if x.ndim > 1 and x.numel() else torch.zeros(1, 1)
    variance, mean = zip(*(_variance_mean(channel) for channel in channels), strict=True)
    std = [math.sqrt(v) / scale for v in variance]
    return [m / scale for m in mean], [s if s > 0 else 1.0 for s in std]


def _variance_mean(values: Tensor) -> tuple[float, float]:
    if values.dtype == torch.uint8:
        # Counting the 256 values needs no float copy of a large image set.
        counts = torch.bincount(values, minlength=256).double()
        grey = torch.arange(256, dtype=torch.float64)
        mean = (counts @ grey) / counts.sum()
        return float((counts @ (grey - mean) ** 2) / counts.sum()), float(mean)
    variance, mean = torch.var_mean(values.double(), correction=0)
    return float(variance), float(mean)
