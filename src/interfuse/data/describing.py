"""A data set in words: how its source was understood, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from interfuse.data.dataset import Dataset
from interfuse.data.inputs import ONLY, Inputs, named
from interfuse.data.normalising import Normalisation
from interfuse.data.reading import listed
from interfuse.data.task import Classification, Regression

SHOWN = 12
"""Names or channels that are shown one by one."""
CLASSES_SHOWN = 20
"""Up to so many classes have a fact of their own."""

WARNING = "warning"
"""The subject of what is doubtful."""
FEW_REPEATED = 0.01
"""A part of the rows: public sets have a few that come twice, which changes no result."""

DataFacts = tuple[tuple[str, str], ...]
"""Texts by subject, in order; only a warning may come again."""


def describe(dataset: Dataset) -> DataFacts:
    """What a data set is, and how it was read."""
    warnings, found = [], dict[str, list[str]]()
    for subject, text in _facts(dataset):
        if subject == WARNING:
            warnings.append((subject, text))
        else:
            found.setdefault(subject, []).append(text)
    *facts, digest = ((subject, "; ".join(texts)) for subject, texts in found.items())
    return (*facts, *warnings, digest)


def warnings_of(facts: DataFacts) -> list[str]:
    """What a reader of the data set's results must know of it."""
    return [text for subject, text in facts if subject == WARNING]


def description(dataset: Dataset) -> dict[str, Any]:
    """The same as plain values."""
    train, test = (_counts(dataset, y) for y in (dataset.y_train, dataset.y_test))
    return {
        "name": dataset.name,
        "format": dataset.reading.format if dataset.reading else None,
        "task": dataset.task.name,
        "rows": {"train": len(dataset.y_train), "test": len(dataset.y_test)},
        "inputs": {
            name: {"shape": list(x.shape[1:]), "type": str(x.dtype).removeprefix("torch.")}
            for name, x in named(dataset.x_train).items()
        },
        "columns": list(dataset.columns),
        "names": list(dataset.task.names),
        "counts": {"train": train.tolist(), "test": test.tolist()},
        "groups": _sizes(dataset.groups),
        "test_groups": _sizes(dataset.test_groups),
        "blocks": _sizes(dataset.blocks),
        "normalisation": {
            name: {"scale": of.scale, "mean": list(of.mean), "std": list(of.std)}
            for name, of in dataset.normalisation.items()
        },
        "facts": [list(fact) for fact in describe(dataset)],
        "digest": dataset.digest,
        "licence": dataset.licence,
    }


def _facts(dataset: Dataset) -> Iterator[tuple[str, str]]:
    reading = dataset.reading
    yield "data set", dataset.name
    yield "format", reading.format if reading else "not said"
    yield "rows", f"{len(dataset.y_train):,} to train on, {len(dataset.y_test):,} to test"
    for name, x in named(dataset.x_train).items():
        subject = "samples" if name == ONLY else f"input {name}"
        yield subject, f"{_axes(x)} of {str(x.dtype).removeprefix('torch.')}"
    if dataset.columns:
        yield "columns", listed(dataset.columns, 3 * SHOWN)
    yield from _target_facts(dataset)
    of_rows = ("groups", dataset.groups, "training"), ("blocks", dataset.blocks, "training")
    for subject, numbers, part in (*of_rows, ("test groups", dataset.test_groups, "test")):
        if sizes := _sizes(numbers):
            low, high = min(sizes), max(sizes)
            each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
            yield subject, f"{len(sizes)}, of {each} {part} rows"
    for name, normalisation in dataset.normalisation.items():
        yield "normalisation" if name == ONLY else f"normalisation of {name}", _formula(normalisation)
    facts = reading.facts if reading else ()
    for subject, text in facts:
        yield (WARNING, text.removeprefix("warning: ")) if text.startswith("warning: ") else (subject, text)
    yield from ((WARNING, text) for text in _doubts(dataset))
    yield from _repeated(dataset)
    if dataset.note:
        yield "note", dataset.note
    if dataset.licence != "not stated":
        yield "licence", dataset.licence
    yield "digest", dataset.digest


def _target_facts(dataset: Dataset) -> Iterator[tuple[str, str]]:
    task = dataset.task
    yield "task", task.name
    if dataset.classes:
        train, test = (_counts(dataset, y) for y in (dataset.y_train, dataset.y_test))
        if dataset.classes > CLASSES_SHOWN:
            yield "classes", f"{dataset.classes}: {listed(dataset.class_names, 100)}"
            yield "rows of a class", f"{_spread(train)} to train on, {_spread(test)} to test"
            return
        for number, name in enumerate(dataset.class_names):
            yield f"class {number}", f"{name}: {train[number]:,} to train on, {test[number]:,} to test"
    elif isinstance(task, Regression):
        for name, mean, std in list(zip(task.names, task.mean, task.std, strict=True))[:SHOWN]:
            yield f"target {name}", f"mean {mean:.6g}, standard deviation {std:.6g}"
    elif task.names:
        there = dataset.y_train.double().sum(0).tolist()
        for name, count in list(zip(task.names, there, strict=True))[:SHOWN]:
            yield f"label {name}", f"in {count:,.0f} rows to train on"


def _spread(counts: Int64[np.ndarray, "classes"]) -> str:
    """How many rows the classes have that have some."""
    there = counts[counts > 0]
    return f"{there.min():,} to {there.max():,} ({len(there)} of {len(counts)} classes)" if len(there) else "none"


def _axes(x: Tensor) -> str:
    """Shape of a sample, with names of its axes where they are usual."""
    shape = list(x.shape[1:])
    names = {1: ("columns",), 2: ("channels", "steps"), 3: ("channels", "height", "width")}.get(len(shape))
    if names is None:
        return f"shape {shape}"
    if len(shape) == 1:
        return f"{shape[0]} {'columns' if x.is_floating_point() else 'numbers'}"
    return f"{' x '.join(map(str, shape))} ({', '.join(names)})"


def _formula(normalisation: Normalisation) -> str:
    def numbers(values: tuple[float, ...]) -> str:
        if len(values) <= SHOWN:
            return listed([f"{value:.4g}" for value in values], SHOWN)
        return f"{min(values):.4g} to {max(values):.4g}"

    x = "x" if normalisation.scale == 1 else f"x / {normalisation.scale:g}"
    return f"({x} - mean) / std, mean {numbers(normalisation.mean)}, std {numbers(normalisation.std)}"


def _counts(dataset: Dataset, y: Tensor) -> Int64[np.ndarray, "classes"]:
    return np.bincount(dataset.task.strata(y), minlength=dataset.classes) if dataset.classes else np.zeros(0, np.int64)


def _sizes(numbers: Tensor | None) -> list[int]:
    """Rows of each group."""
    return [] if numbers is None else [int(count) for count in np.unique(numbers.numpy(), return_counts=True)[1]]


def _doubts(dataset: Dataset) -> Iterator[str]:
    """What is likely not meant."""
    if isinstance(dataset.task, Classification):  # questions have many answers, of which a client's need but some
        train, test = (_counts(dataset, y) for y in (dataset.y_train, dataset.y_test))
        if dataset.classes == 1:
            yield f"there is one class, {dataset.class_names[0]}, so nothing to tell apart"
        elif lacking := [name for name, rows in zip(dataset.class_names, train, strict=True) if not rows]:
            yield f"no training row has {listed(lacking)}"
        lacking = [name for name, rows in zip(dataset.class_names, test, strict=True) if not rows]
        if lacking and len(dataset.y_test):
            yield f"no test row has {listed(lacking)}"
    if ONLY in dataset.normalisation:
        x = dataset.x_train
        flat = x.transpose(0, 1).flatten(1) if isinstance(x, Tensor) else x[ONLY]
        constant = [index for index, values in enumerate(flat) if bool((values == values[0]).all())]
        if constant and len(dataset.y_train) > 1:
            names = [dataset.columns[index] if dataset.columns else f"channel {index}" for index in constant]
            yield f"constant, so nothing to learn from: {listed(names)}"


def _repeated(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Equal rows: a warning where they are more than a few."""
    train_rows, test_rows = _row_hashes(dataset.x_train), _row_hashes(dataset.x_test)
    different = set(train_rows)
    if again := len(train_rows) - len(different):
        subject = WARNING if again > FEW_REPEATED * len(train_rows) else "repeated"
        yield subject, f"{again:,} training rows are equal to another one in all inputs"
    if known := sum(row in different for row in test_rows):
        subject = WARNING if known > FEW_REPEATED * len(test_rows) else "repeated"
        yield subject, f"{known:,} of {len(test_rows):,} test rows are equal to a training row in all inputs"


def _row_hashes(x: Inputs) -> list[int]:
    arrays = [tensor.cpu().numpy() for tensor in named(x).values()]
    return [hash(tuple(one.tobytes() for one in row)) for row in zip(*arrays, strict=True)]
