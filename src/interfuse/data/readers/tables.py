"""Tables: CSV and Parquet files with a column for each feature, and columns of targets."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from interfuse.data.axes import MOST_WHOLE, lost
from interfuse.data.dataset import Dataset
from interfuse.data.reading import Reading, ReadOptions, listed
from interfuse.data.targets import (
    MISSING,
    NUMBER,
    PADDED,
    TOLD_APART,
    TRUTHS,
    Origin,
    Targets,
    clean,
    read_targets,
    truths_as_numbers,
)
from interfuse.data.task import MultiLabel, Regression
from interfuse.errors import DataError, nearest
from interfuse.opening import opened

if TYPE_CHECKING:
    from pyarrow import ChunkedArray
    from pyarrow import Table as ArrowTable

Column = Shaped[np.ndarray, "rows"]

TABLES = (".csv", ".tsv", ".parquet", ".pq")
MOST_BYTES, MOST_NAMES = 1 << 36, 1 << 26
"""Of a Parquet file: of its columns, unpacked, and of what it says about them."""
DELIMITERS = (",", ";", "\t", "|")
DEFAULT_LABEL = "label"
"""A column of this name is the label where none is said; so is the only one of this name in other letters (Label)."""
COMMA_NUMBER = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?|[+-]?\d{1,3}([.,' ]\d{3})+([.,]\d+)?", re.ASCII)
PERSON_NAME = re.compile(
    r"(person|people|subject|patient|participant|user|client|site|hospital|cent(er|re)|clinic|device|station|group)s?"
    r"([_\s.-]?(id|no|nr|num|number|code))?",
    re.IGNORECASE,
)
"""A column that is likely to say whose a row is."""
MARKS = (-999, -99, -9, -9999, 9, 99, 999, 9999)
"""Numbers that often stand for a missing value."""
SEPARATOR_LINE = re.compile(r"sep=(.)\s*", re.IGNORECASE)
"""A first line by which Excel is told what divides the values."""
ID_NAME = re.compile(r"(^|[_\s.-])(id|uuid|guid|mrn|key|index)$", re.IGNORECASE)


@dataclass(frozen=True)
class Table:
    """Columns by name, as they stand in a file.

    Attributes:
        row: What a person calls a row: its line, or its number from 1.
        refused: Columns that cannot be read, and why; they may be left out.
        facts: What was decided, by subject.
        spread: Lists that became columns, and the names of these.
        samples: Columns of which each value is a whole sample, ``[rows, ...]``: pictures, arrays.
        training: So many rows are training rows, the others test rows; None: all are.
    """

    path: Path
    format: str
    columns: dict[str, Column]
    row: Sequence[str]
    refused: dict[str, str] = field(default_factory=dict)
    facts: tuple[tuple[str, str], ...] = ()
    spread: dict[str, tuple[str, ...]] = field(default_factory=dict)
    samples: dict[str, Shaped[np.ndarray, "rows *sample"]] = field(default_factory=dict)
    training: int | None = None

    def origin(self, name: str, first: int = 0) -> Origin:
        """How errors call a column and its rows from the first one that is meant on."""
        return Origin(f"column {name!r}", lambda row: f"{self.path}: {self.row[first + row]}")


def recognises(path: Path) -> bool:
    """Whether it is a file with the ending of a table."""
    return path.is_file() and path.suffix.lower() in TABLES


def load_table(
    path: str | Path,
    label: str | Sequence[str],
    classes: Sequence[str] | None = None,
    task: str | None = None,
    *,
    group: str | None = None,
    drop: Sequence[str] = (),
) -> Dataset:
    """All rows of a CSV (with a head line) or Parquet file as training rows: numbers, and columns of targets.

    Args:
        label: The column of targets, or several.
        classes: The values of the label column in the order of their numbers; None: those that are there, sorted.
        task: A name of :data:`.task.TASKS`. None: a single column has classes, unless all of it is numbers and some are
            not whole; of several see :meth:`Dataset.from_arrays`.
        group: The column that says whose a row is.
        drop: Columns that are no features.

    Raises:
        DataError: the file cannot be read, has no such column, or a value that is no number; names line and column.
    """
    labels = (label,) if isinstance(label, str) else tuple(label)
    return read(Path(path), ReadOptions(labels, None if classes is None else tuple(classes), task, group, tuple(drop)))


def read(path: Path, options: ReadOptions) -> Dataset:
    """A table as options say; see :func:`load_table`."""
    options.only("label", "classes", "task", "group", "drop", format="a table")
    return read_table(read_parquet(path) if path.suffix.lower() in (".parquet", ".pq") else read_csv(path), options)


def read_table(table: Table, options: ReadOptions) -> Dataset:
    """The data set of columns as options say."""
    path, training = table.path, len(table.row) if table.training is None else table.training
    known = [*table.columns, *table.refused, *table.samples]
    drop = [one for name in options.drop for one in table.spread.get(name, (name,))]
    labels = options.label or _label_by_name([*table.columns, *table.refused])
    if not labels:
        raise DataError(
            f"{path}: which column holds the labels? Say label=NAME (--read label=NAME on the command line); it has "
            f"{listed(known, 30)}"
        )
    said_apart = [*labels, *drop, *([options.group] if options.group else [])]
    for name in said_apart:
        if name not in known:
            raise DataError(f"{path} has no column {name!r}: {nearest(name, known)}")
        if said_apart.count(name) > 1:
            raise DataError(f"{path}: column {name!r} is named twice among label, group and drop")
        if name in table.refused and name not in drop:
            raise DataError(f"{path}: column {name!r} {table.refused[name]}, so it is no label and no group")
        if name in table.samples and name not in drop:
            raise DataError(f"{path}: column {name!r} holds pictures or arrays, so it is no label and no group")
    features = [name for name in known if name not in said_apart]
    if not features:
        raise DataError(f"{path} has no column beside {', '.join(map(repr, said_apart))}")
    whole = [name for name in features if name in table.samples]
    if whole and len(features) > 1:
        others = [name for name in features if name != whole[0]]
        raise DataError(
            f"{path}: a sample is one picture or array, but beside column {whole[0]!r} there are {listed(others)}: "
            f"leave out what is no sample, such as drop={','.join(others)}"
        )
    if whole:
        x, said, features = table.samples[whole[0]], [f"a sample is {whole[0]}"], []
    elif options.layout == "tokens":
        x, said, features = _tokens(table, features), [], []
    else:
        refused = {name: why for name, why in table.refused.items() if name in features}
        features = [name for name in features if name not in refused]
        x, said = _features(table, features, refused)
    by_name = "" if options.label else ", by its name"
    reading = Reading(table.format, table.facts).saying("label", f"{listed(labels)}{by_name}")
    if options.drop:
        reading = reading.saying("left out", f"{listed(options.drop)}, as said")
    for text in said:
        reading = reading.saying("columns", text)
    groups = None
    if options.group is not None:
        groups = clean(table.columns[options.group], table.origin(options.group))
        reading = reading.saying("group", options.group)
    targets = _targets(table, labels, options, training)
    for text in (*targets.said, _leaks(features, x[:training], targets.train)):
        reading = reading.saying("labels", text)
    return Dataset.from_arrays(
        path.stem,
        x[:training],
        targets.train,
        x[training:],
        targets.test,
        task=targets.task,
        layout=options.layout,
        groups=None if groups is None else groups[:training],
        test_groups=None if groups is None or training == len(groups) else groups[training:],
        columns=features,
        reading=reading,
    )


def _tokens(table: Table, names: Sequence[str]) -> Int64[np.ndarray, "rows columns"]:
    """Columns of whole numbers side by side, as they are."""
    for name in names:
        column = table.columns.get(name)
        if column is None or column.dtype.kind not in "iu":
            raise DataError(
                f"{table.path}: column {name!r} holds no whole numbers, so no tokens; drop={name} leaves it out"
            )
    return np.stack([table.columns[name] for name in names], axis=1).astype(np.int64)


def _label_by_name(names: Sequence[str]) -> tuple[str, ...]:
    alike = [name for name in names if name.lower() == DEFAULT_LABEL]
    return (DEFAULT_LABEL,) if DEFAULT_LABEL in alike else tuple(alike) if len(alike) == 1 else ()


def _leaks(names: Sequence[str], x: Shaped[np.ndarray, "rows columns"], y: Column) -> str:
    """A warning of columns that are the target, or another number for each class; empty: there are none."""
    if not names or len(x) < TOLD_APART or y.ndim > 1:
        return ""
    _, first, number = np.unique(y, return_index=True, return_inverse=True)
    if len(first) < 2:
        return ""
    stands = x[first[number.ravel()]] if 2 * len(first) <= len(y) else y[:, np.newaxis]
    same = np.flatnonzero((x == stands).all(axis=0))
    found = [names[index] for index in same.tolist() if len(np.unique(x[first, index])) == len(first)]
    return f"warning: {listed(found)} says the label itself; leave it out: drop={','.join(found)}" if found else ""


def read_features(path: Path) -> dict[str, Float64[np.ndarray, "rows"]]:
    """The columns of a table that is all numbers, in their order.

    Raises:
        DataError: it is not; names line and column.
    """
    table = read_parquet(path) if path.suffix.lower() in (".parquet", ".pq") else read_csv(path)
    values, _ = _features(table, [*table.columns], table.refused)
    return dict(zip(table.columns, values.T, strict=True))


def _targets(table: Table, labels: Sequence[str], options: ReadOptions, training: int) -> Targets:
    """The targets of these columns, whose tasks are called by them where it has no classes."""
    if len(labels) == 1:
        column, origin = table.columns[labels[0]], table.origin(labels[0])
    else:
        columns = [truths_as_numbers(clean(table.columns[name], table.origin(name))) for name in labels]
        for name, one in zip(labels, columns, strict=True):
            if one.dtype.kind == "U":
                raise DataError(f"{table.path}: column {name!r} is not all numbers: {str(one[0])!r} in {table.row[0]}")
        column, origin = np.stack(columns, axis=1), replace(table.origin(""), what=f"columns {listed(labels)}")
    try:
        held = replace(origin, row=table.origin("", training).row)
        found = read_targets(
            (column[:training], origin), (column[training:], held), options.task, options.classes, names_are_values=True
        )
    except DataError as error:
        text = str(error)
        raise DataError(text if text.startswith(str(table.path)) else f"{table.path}: {text}") from None
    if isinstance(found.task, Regression | MultiLabel):
        if options.classes is not None:
            raise DataError(f"{table.path}: classes are named, but the task is {found.task.name}; leave them out")
        return replace(found, task=replace(found.task, names=tuple(labels)))
    return found


def _features(
    table: Table, names: Sequence[str], refused: dict[str, str]
) -> tuple[Float64[np.ndarray, "rows columns"], list[str]]:
    """All features side by side, and what was decided of them.

    Raises:
        DataError: naming every column that is not all numbers, the line and the value.
    """
    problems, values, said = dict(refused), [], []
    truths, distinct, people, marks, padded = [], [], [], [], []
    for name in names:
        column = table.columns[name]
        if column.dtype.kind == "b" or _are_truths(column):
            truths.append(name)
            column = np.array([str(value).lower() == "true" for value in column])
        found = _numbers(column, table)
        if isinstance(found, str):
            keeps = f"; group={name} keeps the rows of each together" if PERSON_NAME.fullmatch(name) else ""
            problems[name] = found + keeps
            continue
        values.append(found)
        marks += _marks(name, found)
        if column.dtype == object and (codes := [text for text in map(str, column) if PADDED.match(text)]):
            padded.append(f"{name} (such as {codes[0]})")
        if PERSON_NAME.fullmatch(name) and len(np.unique(found)) < len(found):
            people.append(name)
            continue
        many = len(found) >= TOLD_APART and bool((found == np.trunc(found)).all())
        if many and (ID_NAME.search(name) or len(np.unique(found)) == len(found)):
            distinct.append(name)
    if problems:
        listing = "; ".join(f"column {name!r} {problem}" for name, problem in [*problems.items()][:8])
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise DataError(
            f"{table.path}: {listing}{more}. Put numbers there, or leave columns out with drop={','.join(problems)}"
        )
    if truths:
        said.append(f"true is 1 and false 0 in {listed(truths)}")
    if distinct:
        said.append(
            f"warning: {listed(distinct)}: an identifier, by name or by another number in each row? If so, drop"
        )
    for name in people:
        said.append(
            f"warning: does {name} say whose a row is? group={name} keeps its rows together, drop={name} leaves it out"
        )
    if marks:
        said.append(f"warning: a mark of missing values? Far from all others of the column are {listed(marks)}")
    if padded:
        said.append(f"warning: codes with a leading zero became numbers: {listed(padded)}")
    return np.stack(values, axis=1), said


def _marks(name: str, values: Float64[np.ndarray, "rows"]) -> list[str]:
    """Numbers that may stand for a missing value, and how often: far from all others, or below 0 where no other is."""
    there = [mark for mark in MARKS if (values == mark).sum() > 1]
    others = values[~np.isin(values, there)]
    if not there or not len(others) or others.min() == others.max():
        return []
    low, high = float(others.min()), float(others.max())
    found = [
        mark for mark in there if (mark < 0 <= low) or low - mark > high - low or mark - high > max(1.0, high - low)
    ]
    return [f"{mark} in {int((values == mark).sum())} rows of {name}" for mark in found]


def _are_truths(column: Column) -> bool:
    return str(column[0]).lower() in TRUTHS and {str(value).lower() for value in column} <= TRUTHS.keys()


def _numbers(column: Column, table: Table) -> Float64[np.ndarray, "rows"] | str:
    """A column as finite numbers that float32 holds, or what is wrong with it."""
    try:
        values = column.astype(np.float64)
        plain = column.dtype != object or not any("_" in text or not text.isascii() for text in map(str, column))
    except (TypeError, ValueError):
        plain = False
    if not plain:
        return _not_numbers([str(value).strip() for value in column.tolist()], table)
    if (np.abs(values) >= MOST_WHOLE).any() and (values == np.trunc(values)).all() and column.dtype == object:
        texts = [str(value) for value in column]
        if all(text.lstrip("+-").isdecimal() for text in texts):
            numbers = [int(text) for text in texts]
            if len(set(numbers)) > len(np.unique(values)):
                return f"has whole numbers such as {numbers[0]}, which float64 cannot tell apart"
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        others = f", nor in {len(bad) - 1} other rows" if len(bad) > 1 else ""
        what = "no value" if np.isnan(values[bad[0]]) else f"the value {values[bad[0]]:g}, which is not finite,"
        return f"has {what} in {table.row[bad[0]]}{others if 'no value' in what else ''}"
    return lost(column if column.dtype.kind in "iu" else values) or values


def _not_numbers(texts: Sequence[str], table: Table) -> str:
    wrong = [row for row, text in enumerate(texts) if not NUMBER.fullmatch(text)]
    absent = [row for row in wrong if texts[row].lower() in MISSING]
    if len(absent) == len(wrong):
        others = f", nor in {len(absent) - 1} other rows" if len(absent) > 1 else ""
        shown = f" ({texts[absent[0]]!r})" if texts[absent[0]] else ""
        return f"has no value in {table.row[absent[0]]}{shown}{others}"
    first = next(row for row in wrong if row not in set(absent))
    text = texts[first]
    if COMMA_NUMBER.fullmatch(text):
        return f"is not all numbers: {text!r} in {table.row[first]} (numbers have a decimal point and no separators)"
    if len(texts) >= TOLD_APART and len(set(texts)) == len(texts):
        return f"is not all numbers: another text in every row ({text!r}, ...), so it identifies rows"
    return f"is not all numbers: {text!r} in {table.row[first]}"


def read_csv(path: Path) -> Table:
    """The columns of a CSV file, all as text.

    Raises:
        DataError: it is no CSV in UTF-8 with a head line; names line and column.
    """
    facts: list[tuple[str, str]] = []
    try:
        with io.TextIOWrapper(opened(path), newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            told = SEPARATOR_LINE.fullmatch(first)
            if told:
                facts.append(("left out", f"line 1, {first.strip()}"))
            else:
                file.seek(0)
            above = 1 if told else 0
            tabs = path.suffix.lower() == ".tsv" and "\t" in first
            delimiter = told[1] if told else "\t" if tabs else _delimiter(first)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            rows, lines, before = [], [], above
            for row in reader:
                # a quoted field may go over several lines: a row is called by its first
                if row:
                    rows.append(row)
                    lines.append(f"line {before + 1}")
                before = above + reader.line_num
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not in UTF-8 (byte {error.start}): save it as UTF-8") from None
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"cannot read {path} as CSV: {error}") from error
    empty = 0
    while rows and len(rows[-1]) > 1 and not any(map(str.strip, rows[-1])):
        rows.pop()
        empty += 1
    if empty:
        facts.append(("left out", f"the last {empty} lines, which have no values"))
        lines = lines[: len(rows)]
    if len(rows) < 2:
        raise DataError(f"{path} has no rows below its head line")
    head, *rows = rows
    names, top, lines = [name.strip() for name in head], lines[0], lines[1:]
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(names):
            comment = top if head[0].startswith("#") or len(head) == 1 else line if row[0].startswith("#") else ""
            hint = f"; if {comment} is a title or a comment, remove it" if comment else ""
            raise DataError(
                f"{path}: {line} has {len(row)} values; every row needs {len(names)} values, as the head line has{hint}"
            )
    if all(map(NUMBER.fullmatch, names)) or any("." in name and NUMBER.fullmatch(name) for name in names):
        raise DataError(f"{path}: its first line holds numbers, but must hold the names of the columns")
    if delimiter != ",":
        facts.append(("delimiter", {";": "semicolon", "\t": "tab"}.get(delimiter, delimiter)))
    # objects, since an array of texts has the length of the longest in every row
    columns = [np.array([value.strip() for value in column], dtype=object) for column in zip(*rows, strict=True)]
    if names[0] in ("", "Unnamed: 0") and _counts_rows(columns[0]):
        facts.append(("left out", "the first column, which has no name and counts the rows"))
        names, columns = names[1:], columns[1:]
    empty = 0
    while len(names) > 1 and not names[-1] and not any(columns[-1]):
        names, columns, empty = names[:-1], columns[:-1], empty + 1
    if empty:
        facts.append(("left out", f"the last {empty} columns, which have neither names nor values"))
    _check_names(path, names)
    return Table(path, "CSV", dict(zip(names, columns, strict=True)), lines, facts=tuple(facts))


def _delimiter(head: str) -> str:
    """The one that divides the head line into most columns; the first of equals."""
    return max(DELIMITERS, key=lambda one: len(next(csv.reader([head], delimiter=one), [])))


def _counts_rows(column: Column) -> bool:
    counted = list(map(str, column))
    return counted in ([str(n) for n in range(len(counted))], [str(n) for n in range(1, len(counted) + 1)])


def _check_names(path: Path, names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise DataError(f"{path} has {len(twice)} column names twice: {listed(twice)}; rename or remove one of each")
    if "" in names:
        raise DataError(f"{path}: column {names.index('') + 1} has no name")


def read_parquet(path: Path) -> Table:
    """The columns of a Parquet file; a list column of one length becomes as many columns.

    Raises:
        DataError: it is no Parquet file, or has two columns of one name.
    """
    try:
        from pyarrow import ArrowException
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from None
    try:
        with opened(path):  # Arrow opens it itself: its threads must not hold a file of Python's when that ends
            table = validated(parquet_in(path))
    except (OSError, MemoryError, ValueError, ArrowException) as error:
        raise DataError(f"cannot read {path} as Parquet: {error}") from error
    facts: list[tuple[str, str]] = []
    shards = re.search(r"-of-0*([1-9]\d*)$", path.stem)
    if shards and int(shards[1]) > 1:
        facts.append(("warning", f"by its name this is one of {shards[1]} files of one table"))
    return from_arrow(path, "Parquet", table, [f"row {number}" for number in range(1, len(table) + 1)], facts)


def parquet_in(file: Path) -> ArrowTable:
    """The table of a Parquet file.

    Raises:
        ValueError: it says that it unpacks to more than :data:`MOST_BYTES`. Other errors: it is damaged.
    """
    from pyarrow import parquet

    found = parquet.ParquetFile(file, thrift_string_size_limit=MOST_NAMES, thrift_container_size_limit=MOST_NAMES)
    groups = [found.metadata.row_group(number) for number in range(found.metadata.num_row_groups)]
    size, rows = sum(group.total_byte_size for group in groups), found.metadata.num_rows
    if max(size, rows) > MOST_BYTES:
        raise ValueError(f"it says that it unpacks to {size:,} bytes, {rows:,} rows: that is too much")
    return found.read()


def validated(table: ArrowTable) -> ArrowTable:
    """The table, all of it looked at and its names decoded: in a damaged file columns point to where nothing is.

    Raises:
        ArrowException, UnicodeDecodeError: it is damaged.
    """
    table.validate(full=True)
    _ = table.column_names
    return table


def from_arrow(
    path: Path, format: str, table: ArrowTable, row: Sequence[str], facts: Sequence[tuple[str, str]]
) -> Table:
    """The columns of an Arrow table; a list column of one length becomes as many columns.

    Raises:
        DataError: it has no rows, or two columns of one name.
    """
    names = [name.strip() for name in table.column_names]
    _check_names(path, names)
    if not row:
        raise DataError(f"{path} has no rows")
    said = list(facts)
    columns: dict[str, Column] = {}
    refused: dict[str, str] = {}
    lists: dict[str, tuple[str, ...]] = {}
    for name, values in zip(names, table.columns, strict=True):
        if re.fullmatch(r"__index_level_\d+__", name):
            said.append(("left out", f"{name}, the index that pandas wrote"))
            continue
        found = _arrow_column(values, row)
        if isinstance(found, str):
            refused[name] = found
        elif found.ndim == 2:
            spread = {f"{name}[{index}]": column for index, column in enumerate(found.T)}
            said.append(("columns", f"list {name} became {len(spread)} columns, {next(iter(spread))} and so on"))
            columns |= spread
            lists[name] = tuple(spread)
        else:
            columns[name] = found
    _check_names(path, [*columns, *refused])
    return Table(path, format, columns, row, refused, tuple(said), lists)


def _arrow_column(values: ChunkedArray, row: Sequence[str]) -> np.ndarray | str:
    """A column as NumPy has it, ``[rows, length]`` of lists; or what is wrong with it."""
    import pyarrow as pa
    from pyarrow import types

    kind = values.type
    if types.is_dictionary(kind):
        values = values.cast(kind.value_type)
        kind = values.type
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _arrow_lists(values, row)
    if types.is_decimal(kind):
        values = values.cast(pa.float64())
    elif types.is_null(kind):
        return "has no values at all"
    elif not (
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_binary(kind)
    ):
        return f"is {kind}, neither numbers nor text"
    if values.null_count:
        return np.array(values.to_pylist(), dtype=object)
    found = values.to_numpy()
    return found if found.dtype.kind in "biuf" else np.array(values.to_pylist(), dtype=object)


def _arrow_lists(lists: ChunkedArray, row: Sequence[str]) -> np.ndarray | str:
    from pyarrow import compute, types

    lengths = compute.list_value_length(lists).fill_null(0).to_numpy()
    for at in np.flatnonzero((lengths != lengths[0]) | (lengths < 1))[:1]:
        return f"is lists of different length: {lengths[0]} in {row[0]}, {lengths[at]} in {row[at]}"
    kind = lists.type.value_type
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return "is lists of lists: save each inner one as a column"
    if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
        return "is lists of something else than numbers"
    values = compute.list_flatten(lists)
    found: np.ndarray = (values.cast("float64") if values.null_count else values).to_numpy()
    return found.reshape(len(lists), -1)
