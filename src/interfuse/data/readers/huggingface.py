"""Data sets as Hugging Face keeps them: what ``save_to_disk`` writes, and Parquet files as they lie on the hub.

``save_to_disk`` makes a folder of Arrow files with ``state.json`` and ``dataset_info.json``; of several splits a folder
with ``dataset_dict.json`` and such a folder for each. On the hub a split is ``train-00000-of-00001.parquet`` and so on.
The package ``datasets`` is not needed.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interfuse.data.dataset import Dataset
from interfuse.data.readers import images
from interfuse.data.readers.tables import DEFAULT_LABEL, Table, from_arrow, parquet_in, read_table, validated
from interfuse.data.reading import ReadOptions, listed
from interfuse.errors import DataError
from interfuse.opening import json_in, opened

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "a Hugging Face data set"
HELD = ("test", "validation", "valid", "val", "dev")
"""Names of splits that are the test set, the first that is there."""
_SHARD = re.compile(r"(?P<split>\w[\w.]*?)-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]+)?\.parquet")
_SPLIT = re.compile(r"\w[\w.-]*")
_ONE_OF = re.compile(r"-of-0*([1-9]\d*)[-.]")
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


@dataclass(frozen=True)
class _Split:
    """The files of a split in order, and what ``dataset_info.json`` beside them says."""

    files: tuple[Path, ...]
    info: Mapping[str, Any]


def recognises(path: Path) -> bool:
    """Whether it is an Arrow file, a Parquet file named as on the hub, or a folder of such or of ``save_to_disk``."""
    if path.is_file():
        return path.suffix == ".arrow" or bool(_SHARD.fullmatch(path.name))
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json")) or bool(_shard_folders(path))


def _shard_folders(path: Path) -> list[Path]:
    """The folder, or those inside of it, that have files named as on the hub."""
    folders = [path, *sorted(inner for inner in path.iterdir() if inner.is_dir())] if path.is_dir() else []
    return [folder for folder in folders if any(_SHARD.fullmatch(file.name) for file in folder.iterdir())]


def _splits(path: Path) -> dict[str, _Split]:
    """The splits by name."""
    if path.is_file():
        return {"train": _Split((path,), _info(path.parent))}
    if (path / "dataset_dict.json").is_file():
        names = _json(path / "dataset_dict.json").get("splits")
        if not isinstance(names, list) or not names:
            raise DataError(f"{path / 'dataset_dict.json'} names no splits; save the data set anew")
        if odd := [name for name in names if not _SPLIT.fullmatch(str(name))]:
            raise DataError(f"{path / 'dataset_dict.json'} names the split {odd[0]!r}, which is no folder beside it")
        return {str(name): _saved(path / str(name)) for name in names}
    if (path / "state.json").is_file():
        return {str(_json(path / "state.json").get("_split") or "train"): _saved(path)}
    folders = _shard_folders(path)
    if len(folders) > 1:
        raise DataError(f"{path} has several data sets: give one of {listed([str(folder) for folder in folders])}")
    return _sharded(folders[0])


def _saved(folder: Path) -> _Split:
    """A split that ``save_to_disk`` wrote."""
    state = _json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise DataError(f"{folder} is a selection of rows by number; call flatten_indices() before save_to_disk")
    try:
        files = tuple(folder / str(entry["filename"]) for entry in state["_data_files"])
    except (KeyError, TypeError):
        raise DataError(f"{folder / 'state.json'} names no data files; save the data set anew") from None
    if outside := [file for file in files if file.parent.resolve() != folder.resolve()]:
        raise DataError(f"{folder / 'state.json'} names {outside[0]}, which is in another folder")
    return _Split(files, _info(folder))


def _info(folder: Path) -> Mapping[str, Any]:
    """What ``save_to_disk`` says of the columns."""
    file = folder / "dataset_info.json"
    return _json(file) if file.is_file() else {}


def _sharded(folder: Path) -> dict[str, _Split]:
    """Splits of files named as on the hub."""
    found: dict[str, dict[int, Path]] = {}
    counts: dict[str, int] = {}
    for file in sorted(folder.iterdir()):
        if match := _SHARD.fullmatch(file.name):
            split, number, count = match["split"], int(match["number"]), int(match["count"])
            if counts.setdefault(split, count) != count or number in found.get(split, {}):
                raise DataError(f"{file} does not belong to the other files of {split}; keep those of one data set")
            found.setdefault(split, {})[number] = file
    for split, files in found.items():
        if missing := sorted(set(range(counts[split])) - files.keys()):
            raise DataError(f"{folder} lacks file {missing[0]} of the {counts[split]} of {split}; download it anew")
    return {split: _Split(tuple(files[number] for number in sorted(files)), {}) for split, files in found.items()}


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json_in(file)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {file}: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"cannot read {file}: it holds no mapping")
    return content


def read(path: Path, options: ReadOptions) -> Dataset:
    """The split ``train``, with ``test`` or ``validation`` as test rows.

    Classes have the names that the data set has. A sample is all columns of numbers, or one picture or array.

    Raises:
        DataError: naming file, column and row.
    """
    options.only("label", "classes", "task", "group", "drop", "layout", format=FORMAT)
    splits = _splits(path)
    train = "train" if "train" in splits or len(splits) > 1 else next(iter(splits))
    if train not in splits:
        raise DataError(f"{path} has the splits {listed([*splits])}, and none is called train; rename one")
    held = next((name for name in HELD if name in splits and name != train), None)
    rows = {name: _rows(splits[name]) for name in (train, held) if name is not None}
    facts = [
        (f"split {name}", f"{len(found):,} rows" + (": the test rows" if name == held else ""))
        for name, found in rows.items()
    ]
    shards = _ONE_OF.search(path.name)
    if shards and int(shards[1]) > 1:
        facts.append(("warning", f"by its name this is one of {shards[1]} files; give the folder for all"))
    if left := [name for name in splits if name not in rows]:
        facts.append(("left out", f"the splits {listed(left)}"))
    row = [f"{name} row {number}" for name, found in rows.items() for number in range(1, len(found) + 1)]
    whole = _joined(path, [*rows.values()])
    features = _features(whole, splits[train].info)
    names = {name: tuple(map(str, of["names"])) for name, of in features.items() if of.get("_type") == "ClassLabel"}
    table = replace(_table(path, whole, row, facts, features, names), training=len(rows[train]))
    label = options.label or ((next(iter(names)),) if len(names) == 1 else ())
    if not options.label and label and DEFAULT_LABEL in set(table.columns) - {*label, *options.drop}:
        raise DataError(f"{path}: label={label[0]} has classes by name, but there is {DEFAULT_LABEL!r} too; say which")
    if len(label) == 1 and label[0] in names and options.classes is None:
        options = replace(options, classes=names[label[0]])
    return read_table(table, replace(options, label=label))


def _table(
    path: Path,
    whole: pa.Table,
    row: Sequence[str],
    facts: Sequence[tuple[str, str]],
    features: Mapping[str, Mapping[str, Any]],
    names: Mapping[str, Sequence[str]],
) -> Table:
    """The columns, with numbers of classes as their names, and pictures and arrays as samples."""
    from pyarrow import types

    columns: dict[str, np.ndarray] = {}
    samples: dict[str, np.ndarray] = {}
    refused: dict[str, str] = {}
    kinds: list[tuple[str, str]] = []
    for name in whole.column_names:
        values, kind, declared = whole[name], whole.schema.field(name).type, features.get(name, {}).get("_type")
        if name in names and types.is_integer(kind):
            columns[name] = _by_name(values.to_pylist(), names[name], f"{path}: column {name!r}", row)
        elif types.is_struct(kind) and declared in ("Image", None) and {"bytes", "path"} <= {f.name for f in kind}:
            samples[name], said = _pictures(values.to_pylist(), f"{path}: column {name!r}", row)
            kinds += said
        elif declared in ("Image", "Audio", "Video"):
            refused[name] = f"is {declared} by the name of a file; read them in a function: --data file.py:load"
        elif _is_list(kind) and _is_list(kind.value_type):
            found = _arrays(values)
            samples |= {name: found} if found is not None else {}
            refused |= {name: "is arrays of different shapes, or of no numbers"} if found is None else {}
    taken = {*columns, *samples, *refused}
    rest = from_arrow(path, FORMAT, whole.select([n for n in whole.column_names if n not in taken]), row, facts)
    return replace(
        rest,
        columns=columns | rest.columns,
        samples=samples,
        refused=refused | rest.refused,
        facts=(*rest.facts, *kinds),
    )


def _by_name(values: Sequence[int | None], names: Sequence[str], label: str, row: Sequence[str]) -> np.ndarray:
    """Names of classes; None where there is none, for which -1 stands too."""
    for at, value in enumerate(values):
        if value is not None and not (isinstance(value, int) and -1 <= value < len(names)):
            raise DataError(f"{label} has the class {value} in {row[at]}, but its names are {listed(names)}")
    return np.array([None if value in (None, -1) else names[value] for value in values], dtype=object)


def _pictures(
    values: Sequence[Mapping[str, Any] | None], label: str, row: Sequence[str]
) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Images ``[n, channels, height, width]``, and their kinds."""
    sources = []
    for at, value in enumerate(values):
        content = None if value is None else value["bytes"]
        if not isinstance(content, bytes):
            raise DataError(
                f"{label} has no picture in {row[at]}, only the name of a file at best; save the data set with its "
                "pictures inside, or give the folder of images"
            )
        sources.append((f"{label}, {row[at]}", io.BytesIO(content)))
    notes = images.Notes()
    found = images.read_images(sources, notes)
    return found, [("images", f"{count:,} {kind}") for kind, count in notes.kinds.items() if count]


def _arrays(values: pa.ChunkedArray) -> np.ndarray | None:
    """Nested lists as one array; None where they are none."""
    from pyarrow import compute, types

    shape, kind = [len(values)], values.type
    while _is_list(kind):
        lengths = compute.unique(compute.list_value_length(values)).to_pylist()
        if len(lengths) != 1 or not lengths[0]:
            return None
        shape.append(lengths[0])
        values, kind = compute.list_flatten(values), kind.value_type
    if values.null_count or not (types.is_integer(kind) or types.is_floating(kind)):
        return None
    found = values.to_numpy().astype(np.float64).reshape(shape)
    return found if np.isfinite(found).all() else None


def _is_list(kind: pa.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _features(table: pa.Table, info: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What ``datasets`` says of columns, in the file or beside it."""
    known: Any = info
    if said := (table.schema.metadata or {}).get(b"huggingface"):
        try:
            known = json.loads(said)["info"]
        except (ValueError, KeyError, TypeError, RecursionError):
            known = info
    found = known.get("features") if isinstance(known, dict) else None
    items = found.items() if isinstance(found, dict) else ()
    return {
        name: of
        for name, of in items
        if isinstance(of, dict) and (of.get("_type") != "ClassLabel" or isinstance(of.get("names"), list))
    }


def _rows(split: _Split) -> pa.Table:
    """The rows of all files of a split."""
    return _joined(split.files[0], [_arrow(file) for file in split.files])


def _joined(path: Path, parts: Sequence[pa.Table]) -> pa.Table:
    import pyarrow as pa

    for part in parts[1:]:
        if not part.schema.equals(parts[0].schema):
            raise DataError(
                f"{path}: files or splits differ in their columns: {parts[0].schema.names} and "
                f"{part.schema.names}, or in types; keep those of one data set"
            )
    return pa.concat_tables([part.replace_schema_metadata(parts[0].schema.metadata) for part in parts])


def _arrow(file: Path) -> pa.Table:
    """The rows of an Arrow or Parquet file."""
    try:
        import pyarrow as pa
        from pyarrow import ipc
    except ImportError:
        raise DataError(f"{file}: reading it needs pyarrow: pip install pyarrow") from None
    try:
        if file.suffix == ".parquet":
            with opened(file):
                table = parquet_in(file)
        else:
            with opened(file), pa.OSFile(str(file)) as source:
                begin = source.read(6)
                source.seek(max(0, file.stat().st_size - len(_END_OF_STREAM)))
                end = source.read()
                source.seek(0)
                if begin != b"ARROW1" and end != _END_OF_STREAM:
                    raise DataError(f"{file} does not end as an Arrow file does: it is cut off")
                table = (ipc.open_file if begin == b"ARROW1" else ipc.open_stream)(source).read_all()
        table = validated(table)
    except (OSError, MemoryError, ValueError, pa.ArrowException) as error:
        raise DataError(f"cannot read {file}: {error}") from error
    return table
