"""Questions about pictures as instructions, in the layout of DRAKE and HFLB on Hugging Face (SNUMPR).

Each data set is an archive ``<name>.tar`` with ``<name>/train/dataset-<subset>.json`` and the same below ``test``:
lists of entries with ``image``, the path of a picture or several, ``dataset/<name>/...``, and ``conversations``, a
question and its answer. This layout is read off the release's code (snumprlab/fedmosaic, 7887f5f); the archives
themselves could not be looked at.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from interfuse.data.dataset import Dataset
from interfuse.data.drake import DRAKE, HFLB, UNSEEN
from interfuse.data.fetch import Places
from interfuse.data.reading import UNREADABLE, Reading, ReadOptions, listed
from interfuse.data.sources import DatasetInfo
from interfuse.data.task import IGNORED, LanguageModelling
from interfuse.data.task_sets import TaskSet, first, places
from interfuse.data.tokenizing import Tokenizer, tokenizer_named
from interfuse.errors import ConfigError, DataError
from interfuse.references import COMMIT, is_commit

SIDE = 64
"""Points of a picture's side where nobody says otherwise: 12 kB a row, since all rows are held in memory."""
LENGTH = 128
"""Tokens of a question with its answer where nobody says otherwise."""
VOCABULARY = 8192
"""Size of a vocabulary that is made of the questions."""
_PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class Entry:
    """A question, its answer, and the paths of the pictures that it is about."""

    question: str
    answer: str
    pictures: tuple[Path, ...]


@dataclass(frozen=True)
class Instructions(TaskSet):
    """Tasks of one repository.

    :param usual: see :class:`.TaskSet`.
    :param repository: where the archives are on Hugging Face.
    :param tasks: of the repository.
    :param folder: its name in INTERFUSE_DATA and in the cache.
    """

    name: str
    usual: tuple[str, ...]
    repository: str
    tasks: tuple[str, ...]
    folder: str
    licence: str
    note: str

    takes = (*TaskSet.takes, "tokenizer", "length", "side", "revision")

    @property
    def known(self) -> tuple[str, ...]:
        return self.tasks

    def info(self) -> DatasetInfo:
        data = Places.from_environment().data
        return DatasetInfo(
            name=self.name,
            shape={"picture": (3, SIDE, SIDE), "question": (LENGTH,)},
            classes=0,
            rows_train=None,
            rows_test=None,
            state="found" if data is not None and (data / self.folder).is_dir() else "download",
            licence=self.licence,
            note=self.note,
        )

    def make(self, tasks: Sequence[str], options: ReadOptions) -> Dataset:
        if len(options.tokenizer) != 1:
            raise ConfigError(
                f"{self.name} needs the tokenizer of the models, one: tokenizer = 'hf:FOLDER', or 'words'"
            )
        if len(set(tasks)) < len(tasks):
            raise ConfigError(f"tasks of {self.name}: {listed(tasks)} have one twice, and its rows would be the same")
        most = options.rows or (None,) * len(tasks)
        own, held = [], []
        for task, count in zip(tasks, most, strict=True):
            root = self._root(task.rpartition("-")[0], options.revision)
            own.append(first(read_entries(root, task, "train"), count, task))
            held.append(first(read_entries(root, task, "test"), options.test_rows, task))
        questions = [text for of in own for entry in of for text in (entry.question, entry.answer)]
        tokenizer = tokenizer_named(options.tokenizer[0], questions, VOCABULARY)
        side, length = options.side or SIDE, options.length or LENGTH
        (x, y), (x_test, y_test) = (
            _samples([entry for of in part for entry in of], tokenizer, length, side) for part in (own, held)
        )
        return Dataset.from_arrays(
            self.name,
            x,
            y,
            x_test,
            y_test,
            task=LanguageModelling(tokenizer.size),
            layout={"picture": "images", "question": "tokens"},
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            groups=places(own),
            test_groups=places(held),
            group_names=tasks,
            note=self.note,
            licence=self.licence,
            reading=Reading(
                f"{self.repository}'s archives",
                (
                    ("tasks", listed([f"{task} is {number}" for number, task in enumerate(tasks)], 40)),
                    ("tokenizer", f"{options.tokenizer[0]} of {tokenizer.size:,}"),
                    ("pictures", f"{side} by {side}; several of a row are side by side in one"),
                ),
            ),
        )

    def _root(self, archive: str, revision: str | None) -> Path:
        """The folder that holds an unpacked archive: the user's, or that of the cache, into which it is downloaded.

        Raises:
            ConfigError: it is not here, and no commit is named; or the extra is not installed.
            DataError: it cannot be downloaded.
        """
        found = Places.from_environment()
        if found.data is not None and (found.data / self.folder / archive).is_dir():
            return found.data / self.folder
        if not is_commit(revision):
            raise ConfigError(
                f"{archive} of {self.name} is not in INTERFUSE_DATA, as {self.folder}/{archive}; to download it name "
                f"the commit of {self.repository} on Hugging Face: --read revision=..., {COMMIT} hexadecimal digits"
            )
        root = found.cache / self.folder / revision
        if not (root / archive).is_dir():
            download(self.repository, archive, revision, root)
        return root


def download(repository: str, archive: str, revision: str, root: Path) -> None:
    """Unpack an archive of a repository on Hugging Face into a folder. Needs the extra ``hub``.

    Raises:
        ConfigError: the extra is not installed.
        DataError: the archive cannot be had, or is none.
    """
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ConfigError(f"{repository} needs the extra hub of interfuse: pip install huggingface-hub") from error
    try:
        path = hf_hub_download(repository, f"{archive}.tar", repo_type="dataset", revision=revision)
        unpack(Path(path), archive, root)
    except (OSError, ValueError, tarfile.TarError) as error:
        raise DataError(f"{archive}.tar of {repository} at {revision} cannot be had: {error}") from error


def unpack(path: Path, archive: str, root: Path) -> None:
    """Unpack a tar that holds one folder of its name; nothing in it may lie outside of that.

    The folder appears when it is whole, so what was broken off is unpacked anew.
    """
    part = root / f"{archive}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with tarfile.open(path) as tar:
        tar.extractall(part, filter="data")
    (part / archive).replace(root / archive)
    shutil.rmtree(part)


def read_entries(root: Path, task: str, part: str) -> list[Entry]:
    """The entries of a task's file.

    Raises:
        DataError: names the file, and the entry, from 0.
    """
    archive, _, subset = task.rpartition("-")
    path = root / archive / part / f"dataset-{subset}.json"
    try:
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path} is no list of entries")
    return [_entry(root, entry, f"{path}, entry {number}") for number, entry in enumerate(entries)]


def _entry(root: Path, entry: Any, what: str) -> Entry:
    try:
        question, answer = (str(said["value"]) for said in entry["conversations"][:2])
        paths = entry.get("image", [])
        several = [paths] if isinstance(paths, str) else list(paths)
        pictures = tuple(root / Path(*_inner(path)) for path in several)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{what} has no two conversations with a value, or no image path") from error
    if not all(path.resolve().is_relative_to(root.resolve()) for path in pictures):
        raise DataError(f"{what} names a picture outside of {root}")
    if not answer.strip():
        raise DataError(f"{what} has no answer")
    return Entry(question.replace(_PLACEHOLDER, " ").strip(), answer.strip(), pictures)


def _inner(path: str) -> tuple[str, ...]:
    """The parts of a path below the folder ``dataset``, in which the release keeps its archives."""
    parts = Path(path).parts
    return parts[1:] if parts[:1] == ("dataset",) else parts


def _samples(
    entries: Sequence[Entry], tokenizer: Tokenizer, length: int, side: int
) -> tuple[dict[str, np.ndarray], Int64[np.ndarray, "n length"]]:
    """Pictures and tokens, and of each token the one behind it where that is of the answer."""
    pictures = np.stack([shown(entry.pictures, side) for entry in entries])
    tokens = np.full((len(entries), length), tokenizer.padding, np.int64)
    following = np.full((len(entries), length), IGNORED, np.int64)
    for row, entry in enumerate(entries):
        answer = list(tokenizer.encode(entry.answer))[:length]
        whole = [tokenizer.padding, *tokenizer.encode(entry.question), *answer][-length - 1 :]
        tokens[row, length + 1 - len(whole) :] = whole[:-1]
        following[row, length - len(answer) :] = answer
    # without a question the answer would begin at padding, which models move behind it, from where they see all of it
    return {"picture": pictures, "question": tokens}, np.where(tokens == tokenizer.padding, IGNORED, following)


def shown(paths: Sequence[Path], side: int) -> UInt8[np.ndarray, "3 side side"]:
    """Pictures in the smallest square grid that has room for them, row by row; black where there is none.

    Raises:
        DataError: one is missing or broken.
    """
    from PIL import Image  # comes with Matplotlib, and is slow to import

    across = max(1, int(np.ceil(np.sqrt(len(paths)))))
    cell = side // across
    found = np.zeros((3, side, side), np.uint8)
    for number, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                small = np.asarray(image.convert("RGB").resize((cell, cell), Image.Resampling.BILINEAR))
        except (*UNREADABLE, Image.DecompressionBombError) as error:
            raise DataError(f"cannot read the picture {path}: {error}") from error
        top, left = (cell * at for at in divmod(number, across))
        found[:, top : top + cell, left : left + cell] = small.transpose(2, 0, 1)
    return found


_NOTE = (
    "targets are the tokens of answers; several pictures of a row are put side by side in one, where the release gives "
    "each tokens of its own: not comparable with published numbers"
)
_DRAKE_LICENCE = "CC BY 4.0, and the licences of the sets that it is made of (M. Seo, T. Kim et al., ICLR 2026)"
_DRAKE_TASKS = tuple(task for tasks in DRAKE for task in tasks)
_HFLB_TASKS = tuple(task for tasks in HFLB for task in tasks)

INSTRUCTIONS = (
    Instructions(
        name="drake",
        usual=_DRAKE_TASKS,
        repository="SNUMPR/DRAKE",
        tasks=(*_DRAKE_TASKS, *UNSEEN),
        folder="drake",
        licence=_DRAKE_LICENCE,
        note=f"ten clients have four tasks each, in this order; {_NOTE}",
    ),
    Instructions(
        name="drake-unseen",
        usual=UNSEEN,
        repository="SNUMPR/DRAKE",
        tasks=UNSEEN,
        folder="drake",
        licence=_DRAKE_LICENCE,
        note=f"tasks that no client of drake has; {_NOTE}",
    ),
    Instructions(
        name="hflb",
        usual=_HFLB_TASKS,
        repository="SNUMPR/HFLB",
        tasks=_HFLB_TASKS,
        folder="hflb",
        licence="not stated; the licences of the sets that it is made of (H. Chen et al., 2023; M. Seo et al., 2026)",
        note=f"nine clients have four tasks each, in this order; {_NOTE}",
    ),
)
