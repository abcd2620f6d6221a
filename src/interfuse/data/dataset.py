"""A labelled data set in memory, and the choice of stratified rows from it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from numpy.typing import ArrayLike
from torch import Tensor

from interfuse.data.inputs import ONLY, Inputs, Shape, each, named, rows_of, shape_of, together
from interfuse.data.reading import Reading
from interfuse.data.task import TASKS, Classification, MultiLabel, Regression, Task
from interfuse.errors import ConfigError, DataError, nearest
from interfuse.randomness import numpy_generator


@dataclass(frozen=True)
class Normalisation:
    """``(x / scale - mean) / std`` as float32.

    :param scale: ``x / scale`` maps a row to [0, 1]: 255 for usual images, 1 for floats that need none.
    :param mean: of the scaled training rows, one number a channel (axis 1), or one for all channels.
    :param std: as ``mean``; positive.
    """

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, x: Shaped[Tensor, "batch *sample"]) -> Float[Tensor, "batch *sample"]:
        """The rows normalised, a new tensor on the device of ``x``."""
        factors = [1 / (self.scale * std) for std in self.std]
        offsets = [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]
        out = x.to(torch.float32, copy=True)
        # One multiplication and one addition in place beat the formula as written and torch.addcmul two to four times.
        if len(factors) == 1:
            return out.mul_(factors[0]).add_(offsets[0])
        per_channel = (-1, *[1] * (x.ndim - 2))
        factor, offset = torch.tensor([factors, offsets], device=x.device).reshape(2, *per_channel)
        return out.mul_(factor).add_(offset)

    def check(self, channels: int) -> None:
        """Check that it fits so many channels.

        Raises:
            DataError: it does not.
        """
        _require(math.isfinite(self.scale) and self.scale > 0, f"scale is {self.scale}, must be positive")
        for name, values in (("mean", self.mean), ("std", self.std)):
            many = f"{name} has {len(values)} numbers; {channels} channels need as many, or 1"
            _require(len(values) in (1, channels), many)
            _require(all(map(math.isfinite, values)), f"{name} is not finite")
        _require(min(self.std) > 0, "std must be positive; give 1 for a constant channel")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test rows with their targets, held whole in memory on the CPU.

    A row has one input, a tensor, or several in a mapping by name. Each keeps the type it came with: uint8 or float32
    is a quantity and is normalised (images are ``[n, channels, height, width]``, signals ``[n, channels, time]``,
    tables ``[n, columns]``), int64 is a number of something, such as a token, and is not.

    :param name: the name that runs and reports show.
    :param y_train: targets as the task has them; of a classification int64, from 0 to ``classes - 1``.
    :param task: what targets and outputs are.
    :param normalisation: of each input that is a quantity, by name; a single input is called ``x``.
    :param groups: the natural client (a person, a device) of each training row, from 0; None where there is none.
    :param blocks: training rows that overlap, such as windows of one recording, have one number, from 0: a client's
        rows of a block all go to its training, its validation or its test share. None where all rows stand alone.
    :param reading: how its source was understood; None where it came as arrays.
    :param note: what a reader of results must know ("not comparable with published KMNIST numbers").
    Raises:
        DataError: a field contradicts this description; the text names the field.
    """

    name: str
    x_train: Inputs = field(repr=False)
    y_train: Shaped[Tensor, "n_train *target"] = field(repr=False)
    x_test: Inputs = field(repr=False)
    y_test: Shaped[Tensor, "n_test *target"] = field(repr=False)
    task: Task
    normalisation: Mapping[str, Normalisation]
    groups: Int64[Tensor, "n_train"] | None = field(default=None, repr=False)
    blocks: Int64[Tensor, "n_train"] | None = field(default=None, repr=False)
    note: str = ""
    licence: str = "not stated"
    reading: Reading | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        try:
            self._check()
        except DataError as error:
            raise DataError(f"data set {self.name!r}: {error}") from None

    def _check(self) -> None:
        _check_inputs("x_train", self.x_train)
        _check_inputs("x_test", self.x_test)
        rows = rows_of(self.x_train)
        _require(rows > 0, "x_train has no rows; at least one is needed")
        train, test = named(self.x_train), named(self.x_test)
        alike = train.keys() == test.keys()
        _require(alike, f"x_test has the inputs {', '.join(test)}, but x_train {', '.join(train)}")
        for name, x in train.items():
            held = test[name]
            fits = held.shape[1:] == x.shape[1:] and held.dtype == x.dtype
            _require(fits, f"x_test holds {_kind(held)} rows, but x_train {_kind(x)}")
            if x.dtype != torch.int64:
                _require(name in self.normalisation, f"normalisation is missing for {name!r}")
                self.normalisation[name].check(x.shape[1])
        self.task.check("y_train", self.y_train, rows)
        self.task.check("y_test", self.y_test, rows_of(self.x_test))
        for name, numbers in (("groups", self.groups), ("blocks", self.blocks)):
            if numbers is not None:
                _require(numbers.dtype == torch.int64, f"{name} is {numbers.dtype}, must be int64")
                one = f"{name} has shape {list(numbers.shape)}, needs {[rows]}, one a row"
                _require(list(numbers.shape) == [rows], one)
                _require(int(numbers.min()) >= 0, f"{name} has numbers below 0")

    @property
    def classes(self) -> int:
        """Number of classes; 0 where the task has none."""
        return self.task.dims().get("classes", 0)

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class, in the order of the labels."""
        return self.task.names if self.classes else ()

    @property
    def shape(self) -> Shape:
        """Shape of one sample, channels first, without the batch axis."""
        return shape_of(self.x_train)

    @cached_property
    def example(self) -> Inputs:
        """Inputs of two samples, to look at what a model makes of such."""
        return self.normalise(each(lambda x: x[[0, -1]], self.x_train))

    @cached_property
    def digest(self) -> str:
        """A hash of all samples and targets, in hexadecimal."""
        found = hashlib.blake2b(digest_size=16)
        for x, y in ((self.x_train, self.y_train), (self.x_test, self.y_test)):
            if not isinstance(x, Tensor):
                found.update("/".join(sorted(x)).encode())
            for tensor in (*(named(x)[name] for name in sorted(named(x))), y):
                found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
                found.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
        return found.hexdigest()

    def to(self, device: str) -> Dataset:
        """The same data set with its samples and targets on a device."""
        if device == "cpu":
            return self
        return self._with(lambda tensor: tensor.to(device), lambda tensor: tensor.to(device))

    def with_test_rows(self, rows: int | None) -> Dataset:
        """The same with so many fixed rows of its test set, every class in its proportion; None: with all."""
        if rows is None or rows >= len(self.y_test):
            return self
        chosen = stratified_subset(self.task.strata(self.y_test), rows, numpy_generator(0, "test rows"))
        return self._with(lambda tensor: tensor, lambda tensor: tensor[chosen])

    def _with(self, train: Callable[[Tensor], Tensor], test: Callable[[Tensor], Tensor]) -> Dataset:
        x_train, x_test = each(train, self.x_train), each(test, self.x_test)
        return replace(self, x_train=x_train, y_train=train(self.y_train), x_test=x_test, y_test=test(self.y_test))

    def normalise(self, x: Inputs) -> Inputs:
        """From rows as stored to a model's inputs, on the same device."""
        normal = self.normalisation
        return together({name: normal[name](t) if name in normal else t for name, t in named(x).items()})

    def stored(self, x: ArrayLike | Tensor | Mapping[str, ArrayLike | Tensor]) -> Inputs:
        """Samples that somebody brings, ``[batch, *shape]``, as rows of this data set; grey images may lack their axis.

        Raises:
            DataError: they have another shape.
        """
        given = {name: torch.as_tensor(np.ascontiguousarray(one)) for name, one in _named_arrays(x).items()}
        for name, rows in named(each(lambda x: x[:0], self.x_train)).items():
            found, shape = given.get(name, rows), tuple(rows.shape[1:])
            if tuple(found.shape[1:]) == shape[1:] and shape[0] == 1:
                given[name] = found = found.unsqueeze(1)
            if tuple(found.shape[1:]) != shape or not len(found):
                raise DataError(
                    f"input {name}: expected samples [batch, {', '.join(map(str, shape))}], found {tuple(found.shape)}"
                )
        return together(given)

    @classmethod
    def from_arrays(
        cls,
        name: str,
        x_train: ArrayLike | Tensor | Mapping[str, ArrayLike | Tensor],
        y_train: ArrayLike | Tensor,
        x_test: ArrayLike | Tensor | Mapping[str, ArrayLike | Tensor],
        y_test: ArrayLike | Tensor,
        *,
        task: Task | str | None = None,
        has_channels: bool = False,
        class_names: Sequence[str] | None = None,
        scale: float | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        groups: ArrayLike | Tensor | None = None,
        blocks: ArrayLike | Tensor | None = None,
        note: str = "",
        licence: str = "not stated",
        reading: Reading | None = None,
    ) -> Dataset:
        """A data set from NumPy arrays or tensors, with what is not given worked out.

        - ``x`` is one array, or several by name;
        - ``x`` of three axes is taken for images ``[n, height, width]`` and gets a channel axis, unless
          ``has_channels`` says that it holds signals ``[n, channels, time]``;
        - uint8 stays; int32 and int64 are numbers of something (tokens) and become int64; every other number becomes
          float32; arrays that have the right type already are shared, not copied;
        - ``task`` is one, or a name of :data:`.task.TASKS`. Not given, whole numbers, one a row, are classes; several
          a row that are all 0 or 1 are labels; numbers that are not whole are a regression's;
        - names of classes, labels or outputs (``class_names``) are their numbers;
        - ``scale`` is 255 for uint8, else 1;
        - ``mean`` and ``std`` are those of the scaled training rows, per channel (per column of ``[n, columns]``); a
          constant channel gets a ``std`` of 1. So are those of a regression's targets.

        Raises:
            DataError: an array has not the form described in :class:`Dataset`.
        """
        x, x_held = (
            {key: _rows(name, part, one, has_channels) for key, one in _named_arrays(values).items()}
            for part, values in (("x_train", x_train), ("x_test", x_test))
        )
        y, y_held = (_array(name, part, values) for part, values in (("y_train", y_train), ("y_test", y_test)))
        if not isinstance(task, Task):
            task = _task(name, task, y, y_held, class_names)
        return cls(
            name=name,
            x_train=together(x),
            y_train=_targets(name, "y_train", y, task),
            x_test=together(x_held),
            y_test=_targets(name, "y_test", y_held, task),
            task=task,
            normalisation={
                key: _normalisation(rows, scale, mean, std) for key, rows in x.items() if rows.dtype != torch.int64
            },
            groups=None if groups is None else _whole(name, "groups", _array(name, "groups", groups)),
            blocks=None if blocks is None else _whole(name, "blocks", _array(name, "blocks", blocks)),
            note=note,
            licence=licence,
            reading=reading,
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


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise DataError(problem)


def _check_inputs(field_name: str, x: Inputs) -> None:
    several = named(x)
    _require(isinstance(x, Tensor) or len(several) > 1, f"{field_name} has one input by name; give it as a tensor")
    for name, tensor in several.items():
        subject = field_name if name == ONLY else f"{field_name}[{name!r}]"
        known = tensor.dtype in (torch.uint8, torch.float32, torch.int64)
        _require(known, f"{subject} is {tensor.dtype}, must be uint8, float32 or int64")
        shape = f"{subject} has shape {list(tensor.shape)}, needs at least 2 axes (rows and values or channels)"
        _require(tensor.ndim >= 2, shape)
        finite = not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
        _require(finite, f"{subject} has values that are not finite")
        alike = f"{subject} has {len(tensor)} rows, not {rows_of(x)} as the others"
        _require(len(tensor) == rows_of(x), alike)


def _kind(x: Tensor) -> str:
    return f"{x.dtype} {list(x.shape[1:])}"


def _array(name: str, part: str, values: ArrayLike | Tensor) -> np.ndarray:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise DataError(f"data set {name!r}: {part} is {array.dtype}, not an array of numbers")
    return array


def _named_arrays(values: ArrayLike | Tensor | Mapping[str, ArrayLike | Tensor]) -> Mapping[str, ArrayLike | Tensor]:
    return values if isinstance(values, Mapping) else {ONLY: values}


def _rows(name: str, part: str, values: ArrayLike | Tensor, has_channels: bool) -> Tensor:
    array = _array(name, part, values)
    kept = {np.dtype(np.uint8): np.uint8, np.dtype(np.int64): np.int64, np.dtype(np.int32): np.int64}
    # PyTorch cannot mark memory as read-only, so a read-only array is copied.
    array = np.require(array, kept.get(array.dtype, np.float32), requirements=["C", "W"])
    image = array.ndim == 3 and array.dtype != np.int64 and not has_channels
    return torch.from_numpy(array[:, np.newaxis] if image else array)


def _task(name: str, kind: str | None, y: np.ndarray, y_held: np.ndarray, names: Sequence[str] | None) -> Task:
    """The task that is named, or that targets look like."""
    if kind is None:
        whole = bool((np.isnan(y) | (y == np.trunc(y))).all()) if y.dtype.kind == "f" else True
        kind = Classification.name if y.ndim == 1 else MultiLabel.name
        if not whole:
            kind = Regression.name
        elif y.ndim != 1 and not np.isin(y, (0, 1)).all():
            raise DataError(
                f"data set {name!r}: y_train has several whole numbers a row, which may be many things; give the task"
            )
    if kind == Classification.name:
        parts = (_whole(name, part, array) for part, array in (("y_train", y), ("y_test", y_held)))
        highest = max((int(part.max()) for part in parts if part.numel()), default=-1)
        return Classification(tuple(names or map(str, range(highest + 1))))
    columns = y.astype(np.float64).reshape(len(y), -1)
    labels = tuple(names or map(str, range(columns.shape[1])))
    if kind == MultiLabel.name:
        return MultiLabel(labels)
    if kind != Regression.name:
        raise DataError(f"data set {name!r}: unknown task {kind!r}: {nearest(kind, TASKS)}")
    std = columns.std(axis=0)
    return Regression(labels, tuple(columns.mean(axis=0).tolist()), tuple(np.where(std > 0, std, 1.0).tolist()))


def _targets(name: str, part: str, array: np.ndarray, task: Task) -> Tensor:
    if task.dtype == torch.int64:
        return _whole(name, part, array)
    array = np.require(array, np.float32, requirements=["C", "W"])
    return torch.from_numpy(array[:, np.newaxis] if array.ndim == 1 else array)


def _whole(name: str, part: str, array: np.ndarray) -> Tensor:
    with np.errstate(invalid="ignore"):
        whole = np.require(array, np.int64, requirements=["C", "W"])
    if not np.array_equal(whole, array):
        raise DataError(f"data set {name!r}: {part} has labels that are not whole numbers")
    return torch.from_numpy(whole)


def _normalisation(
    x: Tensor, scale: float | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Normalisation:
    if scale is None:
        scale = 255.0 if x.dtype == torch.uint8 else 1.0
    if mean is None or std is None:
        found_mean, found_std = _moments(x, scale)
        mean = found_mean if mean is None else mean
        std = found_std if std is None else std
    return Normalisation(scale, tuple(mean), tuple(std))


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
