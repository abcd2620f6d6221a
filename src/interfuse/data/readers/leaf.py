"""LEAF's JSON (Caldas et al., arXiv:1812.01097): users, how many samples each has, and their samples.

A file is ``{"users": [...], "num_samples": [...], "user_data": {user: {"x": [...], "y": [...]}}}``; a data set is a
folder with ``train/`` and ``test/``, each of such files, or one such folder, or one such file. What a sample is, no
file says, so it is told by its form: 784 numbers are FEMNIST's images, other numbers rows of a table, texts of one
length with the next character are Shakespeare's. Other data of LEAF is words or names of files, which each paper
prepares in its own way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from interfuse.data.axes import MOST_WHOLE
from interfuse.data.dataset import Dataset
from interfuse.data.reading import Reading, ReadOptions
from interfuse.data.task import Classification
from interfuse.errors import DataError
from interfuse.opening import content as content_of
from interfuse.opening import opened

FORMAT = "LEAF's JSON"
FEMNIST = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
"""FEMNIST's classes in the order of their numbers (LEAF, ``data/femnist``)."""
SHAKESPEARE = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
"""The 80 characters of LEAF's Shakespeare in the order of their numbers (LEAF, ``models/utils/language_utils.py``)."""

MOST = 1 << 34
"""Bytes of a file."""
_KEYS = ("users", "num_samples", "user_data")
_LOOKED_AT = 4096  # bytes of a file that show what it is
_PIXELS = 28 * 28
_WRITER = re.compile(r"f\d{4}_\d{2}")


@dataclass(frozen=True)
class _User:
    """One user's samples in one file, and what errors call them."""

    name: str
    place: str
    x: Sequence[Any]
    y: Sequence[Any]


def recognises(path: Path) -> bool:
    """Whether a file, or the first one of a folder, begins as LEAF's do."""
    first = next(iter(_files(path).get("train", [])), None)
    if first is None:
        return False
    try:
        with opened(first) as file:
            begin = file.read(_LOOKED_AT)
    except OSError:
        return False
    return begin.lstrip()[:1] == b"{" and any(f'"{key}"'.encode() in begin for key in _KEYS)


def read(path: Path, options: ReadOptions) -> Dataset:
    """The data set: users are groups; ``test/``, where there is one, is the common test set.

    Raises:
        DataError: naming file, user and sample.
    """
    options.only("classes", "layout", format=FORMAT)
    users = {part: [user for file in files for user in _users(file)] for part, files in _files(path).items()}
    for part, named in users.items():
        _check_once(part, named)
    train, test = ([user for user in users.get(part, []) if len(user.y)] for part in ("train", "test"))
    if not train:
        raise DataError(f"{path} has no training samples")
    if isinstance(train[0].x[0], str):
        return _next_characters(path, train, test, options)
    return _numbers(path, train, test, options)


def _files(path: Path) -> dict[str, list[Path]]:
    """The files by part: ``train``, and ``test`` where there is one."""
    if path.is_file():
        return {"train": [path]} if path.suffix == ".json" else {}
    if (path / "data" / "train").is_dir():  # as LEAF's own scripts leave it
        path = path / "data"
    folders = {part: path / part for part in ("train", "test")} if (path / "train").is_dir() else {"train": path}
    return {
        part: sorted(file for file in folder.glob("*.json") if not file.name.startswith("."))
        for part, folder in folders.items()
        if folder.is_dir()
    }


def _users(file: Path) -> Iterator[_User]:
    try:
        content = json.loads(content_of(file, MOST), object_pairs_hook=_once, parse_constant=_no_number)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {file} as JSON: {error}") from error
    kinds = dict(zip(_KEYS, (list, list, dict), strict=True))
    for key, kind in kinds.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise DataError(f"{file} is not {FORMAT}: it needs {key!r}, {'a mapping' if kind is dict else 'a list'}")
    names, counts, data = (content[key] for key in _KEYS)
    if len(names) != len(counts):
        raise DataError(f"{file}: {len(names)} users, but {len(counts)} num_samples; it is damaged")
    plays = content.get("hierarchies")
    if plays is not None and (not isinstance(plays, list) or len(plays) != len(names)):
        raise DataError(f"{file}: hierarchies needs one entry for each of {len(names)} users; it is damaged")
    if unlisted := sorted(data.keys() - set(map(str, names))):
        raise DataError(f"{file}: user_data has {unlisted[0]!r}, who is not among users; it is damaged")
    for name, count in zip(names, counts, strict=True):
        held = data.get(name) if isinstance(name, str) else None
        place = f"{file}, user {name!r}"
        if not isinstance(held, dict) or not all(isinstance(held.get(part), list) for part in "xy"):
            raise DataError(f"{place}: listed among users, but user_data has no lists x and y of theirs")
        if not len(held["x"]) == len(held["y"]) == count:
            raise DataError(f"{place}: num_samples says {count}, but x has {len(held['x'])} and y {len(held['y'])}")
        yield _User(name, place, held["x"], held["y"])


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for at, (key, _) in enumerate(pairs) if key in dict(pairs[:at]))
        raise ValueError(f"{twice!r} is there twice")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number that can be trained on")


def _check_once(part: str, users: Sequence[_User]) -> None:
    places: dict[str, str] = {}
    for user in users:
        if user.name in places:
            raise DataError(f"{part}: {user.place} is also {places[user.name]}; give the samples of a user in one file")
        places[user.name] = user.place


def _numbers(path: Path, train: list[_User], test: list[_User], options: ReadOptions) -> Dataset:
    """Rows of a table, or FEMNIST's images."""
    length = len(train[0].x[0]) if isinstance(train[0].x[0], list) else 0
    x, x_held = (_joined([_rows(user, length) for user in users], length) for users in (train, test))
    y, y_held = (_joined([_targets(user) for user in users]) for users in (train, test))
    images = length == _PIXELS and options.layout in (None, "images")
    if options.layout not in (None, "images" if images else "table"):
        raise DataError(f"{path}: samples are {length} numbers; layout = {options.layout!r} does not fit such")
    names = options.classes
    if images:
        x, x_held = (rows.astype(np.float32).reshape(-1, 1, 28, 28) for rows in (x, x_held))
        if names is None:
            names = _femnist(path, train, np.concatenate([y, y_held]))
    kind = f"{'grey images of 28x28' if images else 'rows'}, {length} numbers each"
    return Dataset.from_arrays(
        path.stem,
        x,
        y,
        x_held,
        y_held,
        layout="images" if images else "table",
        class_names=names,
        groups=_numbered(train),
        test_groups=_numbered(test, train) if test else None,
        reading=_reading(kind, train, test, names),
    )


def _femnist(path: Path, train: list[_User], labels: np.ndarray) -> tuple[str, ...]:
    """FEMNIST's classes, where it is FEMNIST."""
    low, high = labels.min(), labels.max()
    if low < 0 or high >= len(FEMNIST):
        raise DataError(f"{path}: labels go from {low:g} to {high:g}, but FEMNIST's are 0 to 61; give classes")
    if high < 10 and not all(_WRITER.fullmatch(user.name) for user in train):
        raise DataError(
            f"{path}: 784 numbers with labels up to {high:g} can be digits alone, or FEMNIST, whose digits are the "
            "first of 62 classes; give classes, such as 0,1,2,3,4,5,6,7,8,9"
        )
    return FEMNIST


def _rows(user: _User, length: int) -> np.ndarray:
    """``[n, length]`` float64."""
    try:
        found = np.array(user.x, np.float64)
    except (TypeError, ValueError, OverflowError):
        found = np.empty(0)
    if length and found.shape == (len(user.x), length) and np.isfinite(found).all():
        return found
    for row, sample in enumerate(user.x):
        place = f"{user.place}, sample {row} of x"
        if not (isinstance(sample, list) and all(isinstance(value, int | float) for value in sample)):
            raise DataError(
                f"{place} is neither numbers nor a text with its next character (Sent140's and Reddit's are lists of "
                "words); turn it into numbers in a function: --data file.py:load"
            )
        if not length or len(sample) != length:
            raise DataError(f"{place} has {len(sample)} numbers, but the first one {length}; all need as many, from 1")
    raise DataError(f"{user.place}: x has a number that is too large")


def _targets(user: _User) -> np.ndarray:
    """``[n]`` float64."""
    for row, target in enumerate(user.y):
        if not isinstance(target, int | float):
            raise DataError(
                f"{user.place}, sample {row} of y is {target!r}, but samples of numbers have numbers as labels"
            )
        if abs(target) >= MOST_WHOLE:
            raise DataError(f"{user.place}, sample {row} of y is too large a number for a label")
    return np.array(user.y, np.float64)


def _next_characters(path: Path, train: list[_User], test: list[_User], options: ReadOptions) -> Dataset:
    """Texts of one length as numbers of characters, int64 ``[n, time]``; classes are the characters that come next."""
    options.only("classes", format=f"texts in {FORMAT}")
    alphabet = SHAKESPEARE if options.classes is None else "".join(options.classes)
    if options.classes is not None and not all(len(name) == 1 for name in options.classes):
        raise DataError(f"{path}: classes of texts are single characters, in the order of their numbers")
    length = len(train[0].x[0])
    (x, y), (x_held, y_held) = (_characters(users, length, alphabet) for users in (train, test))
    blocks = np.cumsum([begins for user in train for begins in _begins(user)]) - 1
    names = tuple({"\n": "newline", " ": "space"}.get(character, character) for character in alphabet)
    kind = f"texts of {length} characters, and the next one"
    return Dataset.from_arrays(
        path.stem,
        x,
        y,
        x_held,
        y_held,
        layout="tokens",
        task=Classification(names),
        groups=_numbered(train),
        blocks=blocks,
        test_groups=_numbered(test, train) if test else None,
        reading=_reading(
            kind, train, test, names, overlap=f"{blocks[-1] + 1} unbroken texts; their windows stay together"
        ),
    )


def _characters(users: list[_User], length: int, alphabet: str) -> tuple[np.ndarray, np.ndarray]:
    number = {character: index for index, character in enumerate(alphabet)}
    x, y = [], []
    for user in users:
        for row, (text, target) in enumerate(zip(user.x, user.y, strict=True)):
            place = f"{user.place}, sample {row}"
            if not (isinstance(text, str) and isinstance(target, str) and len(target) == 1):
                raise DataError(
                    f"{place}: a text needs the one character that comes next as y, found {target!r}; turn other "
                    "texts, such as CelebA's names of files, into numbers in a function: --data file.py:load"
                )
            if len(text) != length:
                raise DataError(f"{place}: its text has {len(text)} characters, but the first one {length}")
            try:
                x.append([number[character] for character in text])
                y.append(number[target])
            except KeyError as error:
                raise DataError(
                    f"{place} has the character {error}, which is not among the {len(alphabet)} known ones; give "
                    "classes: all characters in the order of their numbers"
                ) from None
    return np.array(x, np.int64).reshape(-1, length), np.array(y, np.int64)


def _begins(user: _User) -> list[bool]:
    """Whether each text does not go on from the one before, by one character: LEAF moves its window by one."""
    goes_on = [text == before[1:] + target for before, target, text in zip(user.x, user.y, user.x[1:], strict=False)]
    return [True, *(not on for on in goes_on)]


def _joined(arrays: list[np.ndarray], *sample: int) -> np.ndarray:
    return np.concatenate([np.empty((0, *sample)), *arrays])


def _users_of(names: Collection[object]) -> str:
    return f"{len(names)} user{'s' * (len(names) != 1)}"


def _numbered(users: list[_User], known: Sequence[_User] = ()) -> Int64[np.ndarray, "n"]:
    """Whose each sample is, by the numbers of known users; those who are unknown have further ones."""
    number = {name: index for index, name in enumerate(dict.fromkeys(user.name for user in (*known, *users)))}
    return np.repeat([number[user.name] for user in users], [len(user.y) for user in users])


def _reading(
    kind: str, train: list[_User], test: list[_User], names: Sequence[str] | None, overlap: str = ""
) -> Reading:
    trained, held = ({user.name for user in users} for users in (train, test))
    common = f"{_users_of(held)}, {len(held - trained)} of them without training samples"
    facts = {
        "samples": kind,
        "overlap": overlap,
        "classes": "" if names is None else f"{len(names)}: {', '.join(names[:5])} ... {names[-1]}",
        "groups": f"{_users_of(train)}, the natural clients; {len(trained - held)} of them without test samples",
        "test": common if test else "none in the files",
    }
    return Reading(FORMAT, tuple((subject, text) for subject, text in facts.items() if text))
