"""A labelled data set in memory, and the choice of stratified rows from it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from numpy.typing import ArrayLike
from torch import Tensor

from interfuse.data.axes import arranged
from interfuse.data.inputs import ONLY, Inputs, Shape, each, named, rows_of, shape_of, together
from interfuse.data.likeness import Range, range_of, unlike
from interfuse.data.normalising import Normalisation, normalisation_of, require
from interfuse.data.reading import Layout, Reading, listed
from interfuse.data.samples import as_stored
from interfuse.data.targets import clean, plain_origin, read_targets, regression
from interfuse.data.task import Regression, Task
from interfuse.errors import ConfigError, DataError
from interfuse.randomness import numpy_generator

Normalise = Literal["data", "plain"]
"""How a model's inputs are made: by mean and deviation of the training rows; or plainly, whatever the rows are like:
bytes mapped to [-1, 1], other numbers as they come."""


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
    :param test_groups: the natural client of each test row, numbered as ``groups`` are, so that a client can have the
        test rows of its own; None where nobody knows.
    :param group_names: what each group is (a person, a task), by number; several may be called alike. Empty where
        nobody named them.
    :param ends: of inputs that are tokens of the same texts by several tokenizers, by name: behind which character of
        its text each token of a training row ends, 0 where it is none, ``[n_train, time]``. By them tokens of one are
        those of another. Empty where nobody knows.
    :param columns: names of the columns of a table, in their order; empty where it has none.
    :param reading: how its source was understood.
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
    test_groups: Int64[Tensor, "n_test"] | None = field(default=None, repr=False)
    group_names: tuple[str, ...] = field(default=(), repr=False)
    ends: Mapping[str, Int64[Tensor, "n_train time"]] = field(default_factory=dict, repr=False)
    note: str = ""
    licence: str = "not stated"
    columns: tuple[str, ...] = field(default=(), repr=False)
    reading: Reading | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        with _naming(self.name):
            self._check()

    def _check(self) -> None:
        _check_inputs("x_train", self.x_train)
        _check_inputs("x_test", self.x_test)
        rows = rows_of(self.x_train)
        require(rows > 0, "x_train has no rows; at least one is needed")
        train, test = named(self.x_train), named(self.x_test)
        alike = train.keys() == test.keys()
        require(alike, f"x_test has the inputs {', '.join(test)}, but x_train {', '.join(train)}")
        for name, x in train.items():
            held = test[name]
            fits = held.shape[1:] == x.shape[1:] and held.dtype == x.dtype
            require(fits, f"x_test holds {_kind(held)} rows, but x_train {_kind(x)}")
            if x.dtype != torch.int64:
                require(name in self.normalisation, f"normalisation is missing for {name!r}")
                self.normalisation[name].check(x.shape[1])
        self.task.check("y_train", self.y_train, rows)
        self.task.check("y_test", self.y_test, rows_of(self.x_test))
        held_rows = rows_of(self.x_test)
        for name, numbers, many in (
            ("groups", self.groups, rows), ("blocks", self.blocks, rows), ("test_groups", self.test_groups, held_rows)
        ):  # fmt: skip
            if numbers is not None:
                require(numbers.dtype == torch.int64, f"{name} is {numbers.dtype}, must be int64")
                one = f"{name} has shape {list(numbers.shape)}, needs {[many]}, one a row"
                require(list(numbers.shape) == [many], one)
                require(not many or int(numbers.min()) >= 0, f"{name} has numbers below 0")
        alone = "test_groups without groups: say whose the training rows are too"
        require(self.test_groups is None or self.groups is not None, alone)
        if self.group_names:
            numbered = [numbers for numbers in (self.groups, self.test_groups) if numbers is not None and len(numbers)]
            most = max((int(numbers.max()) + 1 for numbers in numbered), default=0)
            short = f"group_names has {len(self.group_names)} names, but groups go to {most - 1}"
            require(len(self.group_names) >= most, short)
        for name, places in self.ends.items():
            require(
                name in train and train[name].dtype == torch.int64, f"ends of {name!r}, which is no input of tokens"
            )
            fits = places.dtype == torch.int64 and places.shape == train[name].shape
            require(fits, f"ends of {name!r} hold {_kind(places)} rows, but x_train {_kind(train[name])}, one a token")
            require(not places.numel() or int(places.min()) >= 0, f"ends of {name!r} has numbers below 0")
        if self.columns:
            wide = tuple(self.shape) if isinstance(self.shape, tuple) else ()
            require(wide == (len(self.columns),), f"columns has {len(self.columns)} names, but samples are {wide}")

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

    @property
    def mean(self) -> tuple[float, ...]:
        """Of the scaled training rows, by channel; empty where there are several inputs, or tokens."""
        return self.normalisation[ONLY].mean if ONLY in self.normalisation else ()

    @property
    def std(self) -> tuple[float, ...]:
        """As :attr:`mean`."""
        return self.normalisation[ONLY].std if ONLY in self.normalisation else ()

    @cached_property
    def example(self) -> Inputs:
        """Inputs of two samples, to look at what a model makes of such."""
        return self.normalise(each(lambda x: x[[0, -1]], self.x_train))

    @cached_property
    def bounds(self) -> Float[Tensor, "2 channels"] | None:
        """The least and the largest value that a normalised sample can have, by channel, where samples are stored as
        uint8; None: they are quantities without bounds. What draws samples has to know.

        Raises:
            DataError: samples have several inputs, or are numbers of something, such as tokens: neither can be drawn.
        """
        x = self.drawable
        if x.dtype != torch.uint8:
            return None
        ends = torch.tensor([0, 255], dtype=torch.uint8, device=x.device)
        return self.normalisation[ONLY](ends[:, None].expand(2, x.shape[1]))

    @property
    def drawable(self) -> Shaped[Tensor, "n_train *sample"]:
        """The training samples, where they are of a kind that can be drawn.

        Raises:
            DataError: they have several inputs, or are numbers of something, such as tokens.
        """
        if not isinstance(self.x_train, Tensor) or self.x_train.dtype == torch.int64:
            found = "tokens" if isinstance(self.x_train, Tensor) else f"the inputs {', '.join(self.x_train)}"
            raise DataError(
                f"data set {self.name!r}: samples are {found}, and only images, signals and tables can be drawn; take "
                "another method"
            )
        return self.x_train

    @cached_property
    def digest(self) -> str:
        """A hash of all samples, targets, groups and blocks, in hexadecimal.

        Whose a test row is is not in it: what a run makes of that is in the digest of its shares.
        """
        found = hashlib.blake2b(digest_size=16)
        for x, y in ((self.x_train, self.y_train), (self.x_test, self.y_test)):
            if not isinstance(x, Tensor):
                found.update("/".join(sorted(x)).encode())
            for tensor in (*(named(x)[name] for name in sorted(named(x))), y):
                found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
                found.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
        for name, numbers in (("groups", self.groups), ("blocks", self.blocks)):
            if numbers is not None:  # by them rows are divided
                found.update(name.encode() + np.ascontiguousarray(numbers.cpu().numpy()).tobytes())
        for name in sorted(self.ends):
            found.update(f"ends of {name}".encode() + np.ascontiguousarray(self.ends[name].cpu().numpy()).tobytes())
        return found.hexdigest()

    def to(self, device: str) -> Dataset:
        """The same data set with its samples and targets on a device."""
        if device == "cpu":
            return self
        x_train, x_test = (each(lambda x: x.to(device), of) for of in (self.x_train, self.x_test))
        y_train, y_test = self.y_train.to(device), self.y_test.to(device)
        return replace(self, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)

    def with_test_rows(self, rows: int | None) -> Dataset:
        """The same with so many fixed rows of its test set, every class in its proportion; None: with all."""
        if rows is None or rows >= len(self.y_test):
            return self
        chosen = stratified_subset(self.task.strata(self.y_test), rows, numpy_generator(0, "test rows"))
        groups = None if self.test_groups is None else self.test_groups[chosen]
        x_test = each(lambda x: x[chosen], self.x_test)
        return replace(self, x_test=x_test, y_test=self.y_test[chosen], test_groups=groups)

    def with_all_rows(self) -> Dataset:
        """The same with its test rows behind its training rows, so that all of them are divided. It has no test rows
        until :meth:`testing_on` says which.

        Raises:
            DataError: groups or blocks of the test rows are unknown.
        """
        if self.blocks is not None or (self.groups is not None and self.test_groups is None):
            raise DataError(
                f"data set {self.name!r}: nobody knows whose its test rows are, or what they overlap with, so they "
                "cannot be divided with the training rows: leave out divide = 'all'"
            )
        whole = None if self.test_groups is None or self.groups is None else torch.cat([self.groups, self.test_groups])
        x, held = named(self.x_train), named(self.x_test)
        return replace(
            self,
            x_train=together({name: torch.cat([x[name], held[name]]) for name in x}),
            y_train=torch.cat([self.y_train, self.y_test]),
            x_test=each(lambda x: x[:0], self.x_test),
            y_test=self.y_test[:0],
            groups=whole,
            ends={},
            test_groups=None,
        )

    def testing_on(self, held: Bool[np.ndarray, "n_train"]) -> Dataset:
        """The same with these of its training rows as its test rows instead."""
        stay, chosen = (torch.from_numpy(np.flatnonzero(rows)) for rows in (~held, held))
        return replace(
            self,
            x_train=each(lambda x: x[stay], self.x_train),
            y_train=self.y_train[stay],
            x_test=each(lambda x: x[chosen], self.x_train),
            y_test=self.y_train[chosen],
            groups=None if self.groups is None else self.groups[stay],
            test_groups=None if self.groups is None else self.groups[chosen],
            ends=self.ends_of(stay),
        )

    def normalised(self, how: Normalise) -> Dataset:
        """The same with the inputs that models get made so."""
        if how == "data":
            return self
        normal = {
            name: Normalisation(255.0, (0.5,), (0.5,)) if x.dtype == torch.uint8 else Normalisation(1.0, (0.0,), (1.0,))
            for name, x in named(self.x_train).items()
            if name in self.normalisation
        }
        return replace(self, normalisation=normal)

    def with_train_rows(self, rows: int | None) -> Dataset:
        """The same with so many fixed training rows, every class in its proportion; None: with all. Normalisation stays
        that of all rows."""
        if rows is None or rows >= len(self.y_train):
            return self
        chosen = stratified_subset(self.task.strata(self.y_train), rows, numpy_generator(0, "training rows"))
        groups, blocks = (None if numbers is None else numbers[chosen] for numbers in (self.groups, self.blocks))
        x_train = each(lambda x: x[chosen], self.x_train)
        ends = self.ends_of(torch.from_numpy(chosen))
        return replace(self, x_train=x_train, y_train=self.y_train[chosen], groups=groups, blocks=blocks, ends=ends)

    def ends_of(self, rows: Int64[Tensor, "n"]) -> dict[str, Int64[Tensor, "n time"]]:
        """:attr:`ends` of some training rows."""
        return {name: places[rows] for name, places in self.ends.items()}

    def normalise(self, x: Inputs) -> Inputs:
        """From rows as stored to a model's inputs, on the same device."""
        normal = self.normalisation
        return together({name: normal[name](t) if name in normal else t for name, t in named(x).items()})

    def denormalise(self, x: Float[Tensor, "batch *sample"]) -> Shaped[Tensor, "batch *sample"]:
        """From a model's inputs to rows as stored: the nearest that there are, where these are uint8.

        Raises:
            DataError: samples have several inputs, or are tokens.
        """
        like = self.drawable
        found = self.normalisation[ONLY].undone(x)
        return found.round().clamp(0, 255).to(like.dtype) if like.dtype == torch.uint8 else found.to(like.dtype)

    def stored(self, x: ArrayLike | Tensor | Mapping[str, ArrayLike | Tensor]) -> Inputs:
        """Samples that somebody brings, ``[batch, *shape]``, as rows of this data set; grey images may lack their axis.

        Those of a table may come by the names of its columns.

        Raises:
            DataError: they have another shape, type, order or range than the training rows, or values that are not
                finite.
        """
        forms = {name: (rows.dtype, tuple(rows.shape[1:])) for name, rows in named(self.x_train).items()}
        return as_stored(x, forms, self.columns, self._ranges)

    @cached_property
    def _ranges(self) -> Mapping[str, Range]:
        """Of the quantities that are floats."""
        return {name: range_of(x) for name, x in named(self.x_train).items() if x.dtype == torch.float32}

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
        layout: Layout | Mapping[str, Layout] | None = None,
        has_channels: bool = False,
        class_names: Sequence[str] | None = None,
        scale: float | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        groups: ArrayLike | Tensor | None = None,
        blocks: ArrayLike | Tensor | None = None,
        test_groups: ArrayLike | Tensor | None = None,
        group_names: Sequence[str] = (),
        ends: Mapping[str, Int64[np.ndarray, "n_train time"]] | None = None,
        note: str = "",
        licence: str = "not stated",
        columns: Sequence[str] = (),
        reading: Reading | None = None,
    ) -> Dataset:
        """A data set from NumPy arrays or tensors, with what is not given worked out, and said in :attr:`reading`.

        - ``x`` is one array, or several by name;
        - ``layout`` says what the axes of ``x`` are (:data:`.reading.Layout`), of several by name. Not given, two axes
          are a table, or tokens where they are int32 or int64; three are images ``[n, height, width]`` where both are
          equal, or nearly so for whole numbers (``has_channels`` says that they are signals ``[n, channels, time]``);
          four are images, channels first, or last where the last axis is 1, 3 or 4 and the others are large. Where two
          readings are likely it is refused;
        - uint8 stays; tokens become int64; every other number becomes float32, and is refused where that cannot hold
          it; arrays that have the right type already are shared, not copied;
        - ``task`` is one, or a name of :data:`.task.TASKS`. Not given, whole numbers or texts, one a row, are classes;
          several a row that are all 0 or 1 are labels; numbers that are not whole are a regression's;
        - ``class_names`` are those of classes, labels or outputs by number. Without them the numbers from 0 to the
          largest are classes as they are; where some are missing, those that are there are numbered anew in their
          order, and their names are the old numbers. Numbers that often stand for a row without a label (-1, 255)
          are refused, and so is what has as many values as an identifier or a quantity;
        - ``scale`` is 255 for uint8, else 1;
        - ``mean`` and ``std`` are those of the scaled training rows, per channel (per column of ``[n, columns]``); a
          constant channel gets a ``std`` of 1. So are those of a regression's targets;
        - ``groups`` and ``blocks`` are numbers, or texts that are numbered in their order; ``test_groups`` are of the
          same kind as ``groups``, and ``group_names`` are those of numbers; texts are their own names.

        Raises:
            DataError: an array has not the form described in :class:`Dataset`, or two readings are likely.
        """
        reading = reading or Reading("arrays")
        if has_channels:
            layout = "signals"
        with _naming(name):
            train, held = _named_arrays(x_train), _named_arrays(x_test)
            alike = train.keys() == held.keys()
            require(alike, f"x_test has the inputs {', '.join(held)}, but x_train {', '.join(train)}")
            tensors: dict[str, Tensor] = {}
            tensors_held: dict[str, Tensor] = {}
            for key, values in train.items():
                parts = [(_part("x_train", key), _array(values)), (_part("x_test", key), _array(held[key]))]
                kept, said = arranged(parts, layout.get(key) if isinstance(layout, Mapping) else layout)
                tensors[key], tensors_held[key] = map(torch.from_numpy, kept)
                reading = reading.saying("layout" if key == ONLY else f"layout of {key}", said)
                reading = reading.saying("warning", unlike(tensors[key], tensors_held[key]))
            targets = read_targets(
                (_array(y_train), plain_origin("y_train")),
                (_array(y_test), plain_origin("y_test")),
                task,
                class_names,
            )
            for text in targets.said:
                reading = reading.saying("labels", text)
            people, tested, names_found = _numbered_alike(groups, test_groups)
            reading = reading.saying("groups", _as_numbers(names_found))
            chains, names_of_blocks = _numbered("blocks", blocks)
            reading = reading.saying("blocks", _as_numbers(names_of_blocks))
        return cls(
            name=name,
            x_train=together(tensors),
            y_train=_targets(targets.train, targets.task),
            x_test=together(tensors_held),
            y_test=_targets(targets.test, targets.task),
            task=targets.task,
            normalisation={
                key: normalisation_of(rows, scale, mean, std)
                for key, rows in tensors.items()
                if rows.dtype != torch.int64
            },
            groups=people,
            blocks=chains,
            test_groups=tested,
            group_names=tuple(group_names) or names_found,
            ends={key: torch.from_numpy(places) for key, places in (ends or {}).items()},
            note=note,
            licence=licence,
            columns=tuple(columns),
            reading=reading,
        )

    def with_held_out(self) -> Dataset:
        """The same with a fixed fifth of its training rows as its test set, where it has none.

        The fifth is stratified by class. Where rows have several groups, or else blocks, it is a fifth of those, whole,
        stratified by the class that most of their rows have. Normalisation is that of the rows that stay.

        Raises:
            DataError: all rows are of one group.
        """
        if len(self.y_test):
            return self
        strata, rng = self.task.strata(self.y_train), numpy_generator(0, "data", "test")
        wholes = {kind: of for kind, of in (("group", self.groups), ("block", self.blocks)) if of is not None}
        several = [kind for kind, of in wholes.items() if len(np.unique(of.numpy())) > 1]
        if not wholes:
            test = stratified_subset(strata, len(strata) // HELD_OUT, rng)
            said = "a fifth of all rows, drawn by class: the source has no test rows"
        elif not several:
            raise DataError(
                f"data set {self.name!r}: all rows are of one {next(iter(wholes))}, so none can be held out to test; "
                "give test rows in the source"
            )
        else:
            kind = several[0]
            numbers, own = np.unique(wholes[kind].numpy(), return_inverse=True)
            most = np.array([np.bincount(strata[own == unit]).argmax() for unit in range(len(numbers))])
            chosen = stratified_subset(most, max(1, len(numbers) // HELD_OUT), rng)
            test = np.flatnonzero(np.isin(own, chosen))
            said = f"the rows of {len(chosen)} of {len(numbers)} {kind}s, whole: the source has no test rows"
        stay, held = (torch.from_numpy(rows) for rows in (np.delete(np.arange(len(strata)), test), test))
        x, y = each(lambda x: x[stay], self.x_train), self.y_train[stay]
        task = self.task
        if isinstance(task, Regression):
            task = regression(task.names, y.double().numpy())
        return replace(
            self,
            x_train=x,
            y_train=y,
            x_test=each(lambda x: x[held], self.x_train),
            y_test=self.y_train[held],
            task=task,
            normalisation={
                key: normalisation_of(named(x)[key], of.scale, None, None) for key, of in self.normalisation.items()
            },
            groups=None if self.groups is None else self.groups[stay],
            blocks=None if self.blocks is None else self.blocks[stay],
            ends=self.ends_of(stay),
            test_groups=None if self.groups is None else self.groups[held],
            reading=(self.reading or Reading("arrays")).saying("test rows", said),
        )


HELD_OUT = 5
"""One row in so many is a test row where a source has none."""


def stratified_subset(
    labels: Shaped[np.ndarray, "n"], size: int, rng: np.random.Generator
) -> Int64[np.ndarray, "min(size,n)"]:
    """Rows chosen at random so that every class keeps its proportion; sorted, exactly ``min(size, n)`` of them.

    The rows of a class are its proportional quota rounded down; the rows still owed go to the largest remainders, drawn
    among equal ones.

    Raises:
        ConfigError: ``size`` is negative.
    """
    if size < 0:
        raise ConfigError(f"a subset cannot have {size} rows; ask for 0 or more")
    size = min(size, len(labels))
    values, counts = np.unique(labels, return_counts=True)
    quota, remainder = np.divmod(counts * size, max(len(labels), 1))
    owed = size - int(quota.sum())
    shuffled = [rng.permutation(np.flatnonzero(labels == value)) for value in values]
    quota[np.lexsort((rng.random(len(values)), -remainder))[:owed]] += 1
    chosen = [of_class[:rows] for of_class, rows in zip(shuffled, quota, strict=True)]
    return np.sort(np.concatenate([np.empty(0, np.int64), *chosen]))


def _check_inputs(field_name: str, x: Inputs) -> None:
    several = named(x)
    require(isinstance(x, Tensor) or len(several) > 1, f"{field_name} has one input by name; give it as a tensor")
    for name, tensor in several.items():
        subject = field_name if name == ONLY else f"{field_name}[{name!r}]"
        known = tensor.dtype in (torch.uint8, torch.float32, torch.int64)
        require(known, f"{subject} is {tensor.dtype}, must be uint8, float32 or int64")
        shape = f"{subject} has shape {list(tensor.shape)}, needs at least 2 axes (rows and values or channels)"
        require(tensor.ndim >= 2, shape)
        finite = not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
        require(finite, f"{subject} has values that are not finite")
        alike = f"{subject} has {len(tensor)} rows, not {rows_of(x)} as the others"
        require(len(tensor) == rows_of(x), alike)


def _kind(x: Tensor) -> str:
    return f"{x.dtype} {list(x.shape[1:])}"


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Errors begin with the name of the data set."""
    try:
        yield
    except DataError as error:
        raise DataError(f"data set {name!r}: {error}") from None


def _array(values: ArrayLike | Tensor) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _named_arrays(values: ArrayLike | Tensor | Mapping[str, ArrayLike | Tensor]) -> Mapping[str, ArrayLike | Tensor]:
    return values if isinstance(values, Mapping) else {ONLY: values}


def _part(part: str, key: str) -> str:
    return part if key == ONLY else f"{part}[{key!r}]"


def _targets(y: np.ndarray, task: Task) -> Tensor:
    kept = np.require(y, np.float32 if task.dtype.is_floating_point else np.int64, requirements=["C", "W"])
    return torch.from_numpy(kept[:, np.newaxis] if kept.ndim == 1 and task.dtype.is_floating_point else kept)


def _numbered(part: str, values: ArrayLike | Tensor | None) -> tuple[Tensor | None, tuple[str, ...]]:
    """Groups or blocks as numbers, and texts among them in the order of their numbers."""
    if values is None:
        return None, ()
    cleaned = clean(_array(values), plain_origin(part))
    if cleaned.dtype.kind == "U":
        names, numbers = np.unique(cleaned, return_inverse=True)
        return torch.from_numpy(numbers.reshape(cleaned.shape).astype(np.int64)), tuple(map(str, names))
    whole = np.require(cleaned, np.int64, requirements=["C", "W"])
    require(np.array_equal(whole, cleaned), f"{part} has numbers that are not whole")
    return torch.from_numpy(whole), ()


def _as_numbers(names: Sequence[str]) -> str:
    return listed([f"{name} is {number}" for number, name in enumerate(names)])


def _numbered_alike(
    groups: ArrayLike | Tensor | None, test_groups: ArrayLike | Tensor | None
) -> tuple[Tensor | None, Tensor | None, tuple[str, ...]]:
    """Groups of training and of test rows: one text has one number in both."""
    if groups is None or test_groups is None:
        numbers, names = _numbered("groups", groups)
        return numbers, _numbered("test_groups", test_groups)[0], names
    sides = [_array(groups), _array(test_groups)]
    for part, side in zip(("groups", "test_groups"), sides, strict=True):
        require(side.ndim == 1, f"{part} has shape {list(side.shape)}, needs one a row")
    both, names = _numbered("groups", np.concatenate(sides))
    assert both is not None
    return both[: len(sides[0])], both[len(sides[0]) :], names
