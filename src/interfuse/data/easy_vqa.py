"""easy-VQA (Victor Zhou, MIT): questions about a shape in a small picture, and the same in other visual domains.

Yes/no questions are there to be asked for, and are a trap: their wording alone answers 88 % of those about colours
and 68 % of those about shapes, since an image has one shape and most of what is asked for is not there.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from jaxtyping import Int64, UInt8

from interfuse.data.dataset import Dataset
from interfuse.data.fetch import Places, decoded_once
from interfuse.data.formats import Arrays
from interfuse.data.inputs import Shape
from interfuse.data.packages import Package
from interfuse.data.reading import Reading, ReadOptions, listed
from interfuse.data.task import QuestionAnswering
from interfuse.data.task_sets import PackagedTasks, first, places
from interfuse.errors import ConfigError, DataError

Pictures = UInt8[np.ndarray, "n 3 side side"]
Rows = Int64[np.ndarray, "rows"]

PACKAGE = Package(
    name="easy-vqa",
    version="1.0",
    module="easy_vqa",
    inside="data",
    suffixes=(".json", ".png"),
    sha256="047607a33abeb23fc8ef089c78314c475ebe2ca019da6df79feac393e2ceaa0f",
)
LICENCE = "MIT (V. Zhou)"

SIDE = 32
"""Points of a picture's side; it is published with twice as many."""
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
ANSWERS = (*COLOURS, *SHAPES, "no", "yes")
"""The classes, the same whatever tasks are chosen."""
WORDS = (
    "a", "black", "blue", "brown", "circle", "color", "contain", "does", "gray", "green", "image", "in", "is", "no",
    "not", "of", "present", "rectangle", "red", "shape", "teal", "the", "there", "triangle", "what", "yellow", "?",
)  # fmt: skip
"""Of all training questions, in the order of their tokens, which begin with 1."""
NOTHING = 0
"""The token before a question that is shorter than others."""
TOKENS = len(WORDS) + 1
"""Size of the vocabulary."""
LENGTH = 10
"""Tokens of a question: nine words are the most, and the mark at its end."""

KINDS = ("colour", "shape", "colour-yes-no", "shape-yes-no")


def _as_it_is(x: Pictures) -> Pictures:
    return x


def _hue(x: Pictures) -> Pictures:
    return x[:, [2, 0, 1]]


def _reversed(x: Pictures) -> Pictures:
    return x[:, ::-1]


def _inverted(x: Pictures) -> Pictures:
    return 255 - x


def _inverted_hue(x: Pictures) -> Pictures:
    return _hue(_inverted(x))


def _opposite(x: Pictures) -> Pictures:
    wide = x.astype(np.int16)
    turned: Pictures = (wide.max(1, keepdims=True) + wide.min(1, keepdims=True) - wide).astype(np.uint8)
    return turned


DOMAINS: Mapping[str, Callable[[Pictures], Pictures]] = MappingProxyType(
    {
        "original": _as_it_is,
        "hue": _hue,  # by a third of a turn: red becomes green
        "bgr": _reversed,
        "inverted": _inverted,
        "inverted-hue": _inverted_hue,
        "opposite": _opposite,  # hue by half a turn: red becomes cyan
    }
)
"""What is made of a picture, whose values are from 0 to 255 and whose channels are red, green and blue."""
UNSEEN = "opposite"
"""The domain that no client has unless it is asked for."""


@dataclass(frozen=True)
class Asked:
    """Questions of one part: tokens, answers, kinds by number, and the picture of each."""

    tokens: Int64[np.ndarray, "n length"]
    answers: Int64[np.ndarray, "n"]
    kinds: Int64[np.ndarray, "n"]
    pictures: Int64[np.ndarray, "n"]

    def of(self, task: str) -> Rows:
        """Those of a task, in the order of the file."""
        return np.flatnonzero(self.kinds == KINDS.index(task.rpartition("/")[2]))


def encoded(question: str) -> list[int]:
    """The tokens of a question, at the end of so many places: the last one is that of its mark.

    Raises:
        DataError: it has another word, or too many.
    """
    words = re.findall(r"[a-z]+|\?", question.lower())
    unknown = [word for word in words if word not in WORDS]
    if unknown or len(words) > LENGTH:
        wrong = f"the word {unknown[0]!r}, which easy-VQA's questions have not" if unknown else f"{len(words)} words"
        raise DataError(f"the question {question!r} has {wrong}")
    return [NOTHING] * (LENGTH - len(words)) + [WORDS.index(word) + 1 for word in words]


def kind_of(question: str, answer: str) -> str:
    """What a question is about, and whether it is answered by yes or no."""
    if answer in COLOURS:
        return "colour"
    if answer in SHAPES:
        return "shape"
    return "colour-yes-no" if any(word in COLOURS for word in question.split()) else "shape-yes-no"


def averaged(content: bytes) -> UInt8[np.ndarray, "3 side side"]:
    """A picture of twice the side, averaged over 2 by 2 points, halves up."""
    from PIL import Image  # comes with Matplotlib, and is slow to import

    with Image.open(io.BytesIO(content)) as image:
        points = np.asarray(image.convert("RGB"), np.uint16).reshape(SIDE, 2, SIDE, 2, 3)
    mean: UInt8[np.ndarray, "side side 3"] = ((points.sum(axis=(1, 3)) + 2) // 4).astype(np.uint8)
    return mean.transpose(2, 0, 1)


def _decoded() -> Arrays:
    """Pictures of both parts by number, then the bytes of both parts' questions."""
    files = PACKAGE.files()
    pictures = [
        np.stack([averaged(files[f"{part}/images/{number}.png"]) for number in range(count)])
        for part, count in (("train", 4000), ("test", 1000))
    ]
    return *pictures, *(np.frombuffer(files[f"{part}/questions.json"], np.uint8) for part in ("train", "test"))


def _asked(contents: UInt8[np.ndarray, "bytes"]) -> Asked:
    triples = json.loads(contents.tobytes())
    questions = {text: encoded(text) for text in sorted({text for text, _, _ in triples})}
    return Asked(
        np.array([questions[text] for text, _, _ in triples], np.int64),
        np.array([ANSWERS.index(answer) for _, answer, _ in triples], np.int64),
        np.array([KINDS.index(kind_of(text, answer)) for text, answer, _ in triples], np.int64),
        np.array([picture for *_, picture in triples], np.int64),
    )


@dataclass(frozen=True)
class EasyVQA(PackagedTasks):
    """Some of its training pictures, in tasks ``<domain>/<kind>``; test pictures are those of the official test part.

    :param usual: see :class:`.TaskSet`.
    :param pictures: the numbers of the training pictures that it may use.
    :param dealt: each task has pictures of its own, so no two clients have the same; else every task has all of them.
    :param tested: test rows of a task where nobody says otherwise; None: all.
    :param rows: how many the usual tasks have, to train on and to test.
    """

    name: str
    usual: tuple[str, ...]
    pictures: range
    dealt: bool
    tested: int | None
    rows: tuple[int, int]
    note: str

    package, licence, class_names = PACKAGE, LICENCE, ANSWERS
    shape: ClassVar[Shape] = {"picture": (3, SIDE, SIDE), "question": (LENGTH,)}

    @property
    def known(self) -> tuple[str, ...]:
        return tuple(f"{domain}/{kind}" for domain in DOMAINS for kind in KINDS)

    def make(self, tasks: Sequence[str], options: ReadOptions) -> Dataset:
        if not self.dealt and len(set(tasks)) < len(tasks):
            raise ConfigError(f"tasks of {self.name}: {listed(tasks)} have one twice, and its rows would be the same")
        pictures, pictures_held, *questions = decoded_once(Places.from_environment().decoded(PACKAGE), _decoded)
        train, test = map(_asked, questions)
        own, held = [], []
        for place, task in enumerate(tasks):
            rows, of = train.of(task), self.pictures[place :: len(tasks)] if self.dealt else self.pictures
            rows = rows[np.isin(train.pictures[rows], of)]
            own.append(first(rows, options.rows[place] if options.rows else None, task))
            rows = test.of(task)
            # clients with one task begin at different test pictures
            rows = np.roll(rows, -(place * len(rows) // len(tasks))) if self.dealt else rows
            held.append(first(rows, options.test_rows or self.tested, task))
        return Dataset.from_arrays(
            self.name,
            _inputs(train, pictures, tasks, own),
            train.answers[np.concatenate(own)],
            _inputs(test, pictures_held, tasks, held),
            test.answers[np.concatenate(held)],
            task=QuestionAnswering(ANSWERS),
            layout={"picture": "images", "question": "tokens"},
            # not those of the rows: clients whose rows differ, and the public rows, are to see pictures alike
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            groups=places(own),
            test_groups=places(held),
            group_names=tasks,
            blocks=train.pictures[np.concatenate(own)],
            note=self.note,
            licence=self.licence,
            reading=Reading(
                f"the package {PACKAGE.name} {PACKAGE.version}",
                (
                    ("tasks", listed([f"{task} is {number}" for number, task in enumerate(tasks)], 20)),
                    ("blocks", "questions about one picture stay together"),
                ),
            ),
        )


def _inputs(asked: Asked, pictures: Pictures, tasks: Sequence[str], rows: Sequence[Rows]) -> dict[str, np.ndarray]:
    """The samples of each task in turn."""
    shown = [
        DOMAINS[task.rpartition("/")[0]](pictures[asked.pictures[of]]) for task, of in zip(tasks, rows, strict=True)
    ]
    return {"picture": np.concatenate(shown), "question": asked.tokens[np.concatenate(rows)]}


_WHAT = ("colour", "shape")
_NOTE = (
    "samples have a picture (averaged to 32 by 32 points) and a question of 10 tokens; questions that are answered by "
    "yes or no are left out unless asked for"
)
_SPLIT = "the split is interfuse's own; not comparable with published numbers"

EASY_VQA = (
    EasyVQA(
        name="easy-vqa",
        usual=tuple(f"original/{kind}" for kind in _WHAT),
        pictures=range(4000),
        dealt=False,
        tested=None,
        rows=(10_168, 2_537),
        note=_NOTE,
    ),
    EasyVQA(
        name="easy-vqa-domains",
        usual=tuple(f"{domain}/{kind}" for domain in DOMAINS if domain != UNSEEN for kind in _WHAT),
        pictures=range(2000, 3800),
        dealt=True,
        tested=200,
        rows=(2_313, 2_000),
        note=f"natural clients are tasks, a visual domain with a kind of question each; {_NOTE}; {_SPLIT}",
    ),
    EasyVQA(
        name="easy-vqa-unseen",
        usual=tuple(f"{UNSEEN}/{kind}" for kind in _WHAT),
        pictures=range(3800, 4000),
        dealt=True,
        tested=200,
        rows=(262, 400),
        note=f"tasks in a visual domain that no client of easy-vqa-domains has; {_NOTE}; {_SPLIT}",
    ),
    EasyVQA(
        name="easy-vqa-public",
        usual=tuple(f"original/{kind}" for kind in _WHAT),
        pictures=range(2000),
        dealt=False,
        tested=None,
        rows=(5_034, 2_537),
        note=f"the pictures that easy-vqa-domains and easy-vqa-unseen leave out; {_NOTE}; {_SPLIT}",
    ),
)
"""All of it; what clients have; tasks that come later; what everybody has. The last three have no picture in common."""
