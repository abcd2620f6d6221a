"""From targets as a source has them (numbers, texts, gaps) to a task and targets as that has them.

A whole number means itself, and equal values are equal classes whatever kind of file they stood in: numbers are sorted
as numbers, texts as texts, and what is missing is no class.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from interfuse.data.axes import MOST_WHOLE, lost
from interfuse.data.reading import listed
from interfuse.data.task import TASKS, Classification, MultiLabel, QuestionAnswering, Regression, Task, numbered
from interfuse.errors import DataError, nearest

Values = Shaped[np.ndarray, "n *target"]
"""Of any type: numbers, texts, bytes, or objects such as None among them."""

MISSING = frozenset({"", "nan", "<na>", "#n/a", "#na", "null", "?", "na", "n/a", "none", "-", "--", ".", "missing"})
"""What stands for no value, in small letters."""
DOUBTFUL = frozenset({"unknown", "unk", "undefined", "unspecified"})
"""Names of classes that may stand for no value, in small letters."""
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
"""As files have them: Python's own numbers may have underscores and digits of other scripts."""
PADDED = re.compile(r"[+-]?0\d")
TRUTHS = {"false": "False", "true": "True"}

SENTINELS = (255, 999, 9999, 32767, 65535)
"""Numbers that often stand for a row without a label, where all others are below 100."""
SMALL_SENTINELS = (9, 99)
FEW = 30
"""So many different numbers are classes even where some between them are missing."""
TOLD_APART = 20
"""From so many rows on, a different value in each row is no class."""

MOSTLY_WHOLE, FEW_WHOLE = 0.9, 10
"""Numbers of which at least this part is whole, with at most so many values, are likely classes."""

_SETTLE = (
    "name all classes: classes=FIRST,SECOND of a file (--read classes=... on the command line), class_names of arrays"
)


@dataclass(frozen=True)
class Origin:
    """How errors call targets and one of their rows, which are counted from 0."""

    what: str
    row: Callable[[int], str]


def plain_origin(part: str) -> Origin:
    """Of an array."""
    return Origin(part, lambda row: f"{part}[{row}]")


@dataclass(frozen=True)
class Targets:
    """A task, targets of training and test rows as it has them, and what was decided, in words.

    The numbers of a regression are still float64.
    """

    task: Task
    train: Values
    test: Values
    said: tuple[str, ...] = ()


def read_targets(
    train: tuple[Values, Origin],
    test: tuple[Values, Origin],
    task: Task | str | None,
    names: Sequence[str] | None,
    *,
    names_are_values: bool = False,
) -> Targets:
    """The task that is named or that targets look like, and the targets.

    Args:
        names: Of classes, labels or outputs, in the order of their numbers.
        names_are_values: Where names are numbers themselves: whether a row's number is one of them, and not the
            position of one.

    Raises:
        DataError: a value is missing or impossible, or two readings are likely.
    """
    if train[0].ndim == 0 or test[0].ndim == 0 or not len(train[0]):
        raise DataError(f"{train[1].what} has shape {list(train[0].shape)}; it needs a target for each row")
    names = None if names is None else [composed(name) for name in names]
    known = frozenset(task.names if isinstance(task, Task) else names or ())
    if names is not None and len(known) < len(names):
        raise DataError(f"{listed(names)} have one name twice; each class, label or output needs its own")
    (y, origin), (y_held, held) = (clean(*train, known), train[1]), (clean(*test, known), test[1])
    if task.dtype.is_floating_point if isinstance(task, Task) else task in (Regression.name, MultiLabel.name):
        y, y_held = truths_as_numbers(y), truths_as_numbers(y_held)
    if not y_held.size:
        y_held = y[:0]
    if y.size and (y.dtype.kind == "U") != (y_held.dtype.kind == "U"):
        kinds = ("text" if one.dtype.kind == "U" else "numbers" for one in (y, y_held))
        raise DataError(f"{origin.what} holds {{}}, but {held.what} {{}}".format(*kinds))
    if isinstance(task, Task):
        if isinstance(task, Classification | QuestionAnswering) and y.dtype.kind == "U":
            return Targets(task, _by_text(y, origin, task.names), _by_text(y_held, held, task.names))
        if task.dtype.is_floating_point:
            return Targets(task, y, y_held)
        return Targets(task, _whole(y, origin), _whole(y_held, held))
    kind = task
    said: tuple[str, ...] = ()
    if y.dtype.kind == "U" and any(_is_decomposed(one) for part in (train[0], test[0]) for one in part.flat):
        said = ("letters that were written as a letter and its accent are one letter (NFC)",)
    if kind not in (None, *TASKS):
        raise DataError(f"unknown task {kind!r}: {nearest(str(kind), TASKS)}")
    if y.ndim == 2 and y.shape[1] == 1 and (kind == Classification.name or (kind is None and _are_whole(y))):
        y, y_held, said = y[:, 0], y_held.ravel(), (*said, "one column, taken for one class a row")
    if kind is None:
        kind = _looks_like(y, origin, classes=names is not None and names_are_values)
    if kind == Classification.name:
        return _classes((y, origin), (y_held, held), names, said, names_are_values, told=task is not None)
    if y.dtype.kind == "U":
        raise DataError(f"{origin.what} holds text ({str(y.flat[0])!r}), but the task is {kind}: it needs numbers")
    columns = y.astype(np.float64).reshape(len(y), -1)
    labels = tuple(names or map(str, range(columns.shape[1])))
    if kind == MultiLabel.name:
        return Targets(MultiLabel(labels), y, y_held, said)
    for index, column in enumerate(columns.T):
        if problem := lost(column):
            where = origin.what if columns.shape[1] == 1 else f"{origin.what}[:, {index}]"
            raise DataError(f"{where} {problem}; subtract a number that is common to all before")
    return Targets(regression(labels, columns), y, y_held, said)


def regression(names: Sequence[str], y: Float64[np.ndarray, "n outputs"]) -> Regression:
    """The task of such training targets."""
    std = y.std(axis=0)
    return Regression(tuple(names), tuple(y.mean(axis=0).tolist()), tuple(np.where(std > 0, std, 1.0).tolist()))


def clean(values: Values, origin: Origin, known: frozenset[str] | None = None) -> Values:
    """Finite numbers, or everything as text without blanks around it.

    Args:
        known: Names of classes, which are not missing; None: these are no classes.

    Raises:
        DataError: a value is missing or neither; names the row.
    """
    kind = values.dtype.kind
    if kind in "iu":
        return values
    if kind == "b":
        if values.ndim > 1 and values.shape[1] != 1:
            return values.astype(np.uint8)  # labels that a row has or has not
        return np.where(values, *(_truths(known or frozenset())[text] for text in ("true", "false")))
    if kind == "f":
        bad = ~np.isfinite(values)
        if bad.any():
            raise _missing(origin, int(np.argwhere(bad)[0][0]), str(values[bad][0]), int(bad.sum()))
        return values
    if kind not in "SUO":
        raise DataError(f"{origin.what} is {values.dtype}: neither numbers nor texts")
    texts = [_text(value, origin, row // max(1, values[:1].size)) for row, value in enumerate(values.ravel().tolist())]
    return _of_texts(texts, origin, values.shape, known)


def _text(value: object, origin: Origin, row: int) -> str:
    if isinstance(value, bytes):
        try:
            return composed(value.decode("utf-8").strip().strip("\0"))
        except UnicodeDecodeError:
            raise DataError(f"{origin.row(row)}: {value!r} is no text in UTF-8") from None
    if value is None:
        return ""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if not isinstance(value, str | int | float):
        raise DataError(f"{origin.row(row)}: {type(value).__name__} {value!r} is neither a number nor a text")
    return composed(str(value).strip().strip("\0"))  # NumPy's texts end before a zero


def composed(text: str) -> str:
    """The text with each letter and its accent as one letter (Unicode's NFC): file systems and programs differ."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _is_decomposed(value: object) -> bool:
    text = value.decode("utf-8") if isinstance(value, bytes) else str(value)
    return composed(text) != text


def _of_texts(texts: Sequence[str], origin: Origin, shape: tuple[int, ...], known: frozenset[str] | None) -> Values:
    wide = max(1, int(np.prod(shape[1:])))
    absent = [at for at, text in enumerate(texts) if text.lower() in MISSING and not (text and known and text in known)]
    if absent:
        value = texts[absent[0]]
        named = f"; if {value!r} is a class, {_SETTLE}" if value and known is not None else ""
        raise _missing(origin, absent[0] // wide, value, len(absent), named)
    if all(NUMBER.fullmatch(text) and not PADDED.match(text) for text in texts):
        return as_numbers(texts).reshape(shape)
    if {text.lower() for text in texts} <= TRUTHS.keys():
        texts = [_truths(known or frozenset())[text.lower()] for text in texts]
    return np.array(texts, dtype=np.str_).reshape(shape)


def as_numbers(texts: Sequence[str]) -> Shaped[np.ndarray, "n"]:
    """int64 where all of them are whole, else float64; the texts where neither can tell whole numbers apart."""
    values = np.array(texts, dtype=np.float64)
    if (values == np.trunc(values)).all():
        if (np.abs(values) < MOST_WHOLE).all():
            return values.astype(np.int64)
        if all(text.lstrip("+-").isdecimal() for text in texts):
            try:
                return np.array([int(text) for text in texts], np.int64)
            except OverflowError:
                return np.array(texts, np.str_)
    return values


def _truths(known: frozenset[str]) -> dict[str, str]:
    """How yes and no are called: as among the names that are known, else as Python does."""
    return TRUTHS | {name.lower(): name for name in known if name.lower() in TRUTHS}


def truths_as_numbers(values: Values) -> Values:
    """1 for true and 0 for false where they are all there is; other values as they are."""
    if values.dtype.kind != "U" or not values.size or not np.isin(values, [*TRUTHS.values()]).all():
        return values
    return np.array(values == TRUTHS["true"], np.uint8)


def _missing(origin: Origin, row: int, value: str, count: int, way: str = "") -> DataError:
    stands = f" ({value!r})" if value else ""
    others = "" if count == 1 else f", nor have {count - 1} other rows"
    return DataError(f"{origin.row(row)} has no value for {origin.what}{stands}{others}: leave these rows out{way}")


def _are_whole(y: Values) -> bool:
    return y.dtype.kind in "iuU" or bool((y == np.trunc(y)).all())


def _looks_like(y: Values, origin: Origin, *, classes: bool) -> str:
    if y.dtype.kind == "U" or (classes and y.ndim == 1):
        return Classification.name
    if not _are_whole(y):
        _check_mistyped(y, origin)
        return Regression.name
    if y.ndim == 1:
        return Classification.name
    if not np.isin(y, (0, 1)).all():
        raise DataError(
            f"{origin.what} has several whole numbers a row, which may be many things; give the task "
            f"({', '.join(TASKS)})"
        )
    if y.shape[1] > 1 and len(y) > 1 and (y.reshape(len(y), -1).sum(axis=1) == 1).all():
        raise DataError(
            f"every row of {origin.what} has a single 1, which may be its class or labels of which it has one: give "
            "y.argmax(axis=1), or task='multi-label'"
        )
    return MultiLabel.name


def _check_mistyped(y: Values, origin: Origin) -> None:
    """Refuse a few fractions among many rows of a few whole numbers: a class that is mistyped, or quantities."""
    odd = np.flatnonzero((y != np.trunc(y)).ravel())
    values = np.unique(np.delete(y.ravel(), odd))
    if y.size != len(y) or len(y) - len(odd) < MOSTLY_WHOLE * len(y) or not 1 < len(values) <= FEW_WHOLE:
        return
    others = f" ({len(odd)} rows are not whole)" if len(odd) > 1 else ""
    raise DataError(
        f"{origin.row(int(odd[0]))} has {y.flat[odd[0]]:g} for {origin.what}{others}, but {len(y) - len(odd)} of "
        f"{len(y)} rows have one of {listed(_texts(values))}: mend it if these are classes (or say "
        "task='classification'), say task='regression' if they are quantities"
    )


def alike(names: Sequence[str]) -> str:
    """A warning of names of classes that differ only in case, blanks or leading zeros; empty: there are none."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        plain = "".join(name.casefold().split())
        kinds.setdefault(plain.lstrip("0") or "0" if plain.isdecimal() else plain, []).append(name)
    pairs = [" and ".join(map(repr, same)) for same in kinds.values() if len(same) > 1]
    differ = "which differ only in case, blanks or leading zeros"
    return f"warning: are they one class? {listed(pairs)}, {differ}" if pairs else ""


def _classes(
    train: tuple[Values, Origin],
    test: tuple[Values, Origin],
    names: Sequence[str] | None,
    said: tuple[str, ...],
    names_are_values: bool,
    *,
    told: bool,
) -> Targets:
    (y, origin), (y_held, held) = train, test
    texts = [_texts(one) for one in (y, y_held)]
    if names is not None:
        task = Classification(tuple(names))
        if y.dtype.kind == "U" or _names_are_meant({*texts[0], *texts[1]}, task.names, origin, names_are_values):
            return Targets(task, _by_text(y, origin, task.names), _by_text(y_held, held, task.names), said)
        if names_are_values and task.names != numbered(len(task.names)):
            meant = [f"{name} is {number}" for number, name in enumerate(task.names)]
            said += (f"its numbers are taken for positions among the names, from 0: {listed(meant, 5)}",)
        return Targets(task, _whole(y, origin), _whole(y_held, held), said)
    values = np.unique(np.concatenate([y, y_held])) if y_held.size else np.unique(y)
    if not told and len(values):
        _check_classes(values, y, origin)
    if values.dtype.kind != "U" and len(values):
        if _are_whole(values):
            _check_sentinels([int(value) for value in values], origin)
        elif not told:
            raise DataError(f"{origin.what} has labels that are not whole numbers")
    task = Classification(tuple(_texts(values)))
    numbers = [np.searchsorted(values, one).astype(np.int64) for one in (y, y_held)]
    if values.dtype.kind != "U" and task.names != tuple(map(str, range(len(values)))):
        became = listed([f"{name} is {index}" for index, name in enumerate(task.names)], 5)
        said += (f"the numbers {became}, by their order",)
    if values.dtype.kind == "U" and (warning := alike(task.names)):
        said += (warning,)
    doubtful = [name for name in task.names if name.lower() in DOUBTFUL]
    if doubtful:
        said += (f"warning: the class {doubtful[0]!r} may stand for rows without a label",)
    return Targets(task, numbers[0], numbers[1], said)


def _texts(values: Values) -> list[str]:
    """Values as names: whole numbers without a point."""
    if values.dtype.kind == "U":
        return [str(value) for value in values]
    return [str(int(v)) if float(v).is_integer() else repr(float(v)) for v in values.tolist()]


def in_order(names: Iterable[str]) -> list[str]:
    """Different names sorted, as numbers where all of them are whole numbers."""
    found = sorted(set(names))
    return sorted(found, key=int) if all(name.isdecimal() and not PADDED.match(name) for name in found) else found


def _names_are_meant(texts: set[str], names: Sequence[str], origin: Origin, names_are_values: bool) -> bool:
    """Whether numbers are meant as names of classes that are numbers, and not as positions."""
    if not texts <= set(names) or all(text == str(names.index(text)) for text in texts):
        return False
    positions = set(map(str, range(len(names))))
    if not names_are_values and texts <= positions:
        raise DataError(
            f"the numbers of {origin.what} may be positions in class_names ({listed(names)}) or names among them: "
            "give task=Classification(names) for positions, or the names themselves as text"
        )
    return True


def _by_text(y: Values, origin: Origin, names: Sequence[str]) -> Int64[np.ndarray, "n"]:
    number = {name: index for index, name in enumerate(names)}
    texts = _texts(y)
    for row, text in enumerate(texts):
        if text not in number:
            raise DataError(f"{origin.row(row)} has the class {text!r}, which is not among {listed(names)}")
    return np.array([number[text] for text in texts], np.int64)


def _whole(y: Values, origin: Origin) -> Int64[np.ndarray, "n *target"]:
    if y.dtype.kind == "U":
        raise DataError(f"{origin.what} holds text ({str(y.flat[0])!r}), not numbers")
    whole = np.require(y, np.int64, requirements=["C", "W"])
    if not np.array_equal(whole, y):
        raise DataError(f"{origin.what} has labels that are not whole numbers")
    return whole


def _check_classes(values: Values, y: Values, origin: Origin) -> None:
    """Refuse what is an identifier or a quantity, by how many values there are."""
    many, rows = len(values), len(y)
    example = ", ".join(_texts(values[:3]))
    if many >= rows >= TOLD_APART:
        raise DataError(
            f"{origin.what} has another value in every row ({example}, ...): identifiers are no classes; take another "
            "column, or task='regression' for quantities"
        )
    if values.dtype.kind == "U" or many <= FEW or not _are_whole(values):
        return
    dense = int(values[-1]) - int(values[0]) + 1 == many and int(values[0]) in (0, 1)
    if not dense or rows < 2 * many or values.dtype.kind == "f":
        raise DataError(
            f"{origin.what} has {many} different numbers from {_texts(values[:1])[0]} to {_texts(values[-1:])[0]}: say "
            f"task='regression' if they are quantities, task='classification' if they are codes of classes"
        )


def _check_sentinels(values: Sequence[int], origin: Origin) -> None:
    """Refuse numbers that look like rows without a label."""
    *others, high = values
    doubtful = [value for value in values if value < 0]
    if doubtful and values != [-1, 1]:
        raise _no_label(doubtful[0], origin)
    run = bool(others) and others[0] in (0, 1) and all(b - a == 1 for a, b in pairwise(others))
    small = high in SMALL_SENTINELS and run and len(others) > 1 and high > others[-1] + 1
    if small or (high in SENTINELS and others and others[-1] < 100):
        raise _no_label(high, origin)


def _no_label(value: int, origin: Origin) -> DataError:
    return DataError(
        f"{origin.what} has the number {value} beside the others, which often stands for rows without a label: leave "
        f"those rows out; if it is a class, {_SETTLE}"
    )
