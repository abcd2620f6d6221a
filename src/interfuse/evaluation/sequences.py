"""Answers that are sequences, as text or as tokens: exact match, token F1, ROUGE-L; and what a language model answers.

Everything here is a few lines by its definition. The usual library of ROUGE brings a stemmer's whole toolbox along,
which ROUGE-L without stemming does not use; tests compare with the values it gives.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from interfuse.data.task import IGNORED
from interfuse.errors import DataError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_LETTERS = re.compile(r"[^a-z0-9]+")


Score = Callable[[Sequence[Hashable], Sequence[Hashable]], float]
"""Of an answer and its reference."""


@dataclass(frozen=True)
class SequenceScores:
    """Means over pairs of an answer and its reference, between 0 and 1; NaN where there is no pair.

    Attributes:
        pairs: How many there are.
    """

    exact_match: float
    token_f1: float
    rouge_l: float
    pairs: int


def plain_words(text: str) -> list[str]:
    """The words of an answer as SQuAD compares them (Rajpurkar et al., EMNLP 2016): in lower case, without punctuation
    and articles."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return _ARTICLES.sub(" ", bare).split()


def rouge_words(text: str) -> list[str]:
    """The words of a text as ROUGE-1.5.5 takes them: runs of letters a to z and figures, in lower case, not stemmed."""
    return _NO_LETTERS.sub(" ", text.lower()).split()


def exact_match(answer: Sequence[Hashable], reference: Sequence[Hashable]) -> float:
    """1 where both are equal, else 0."""
    return float([*answer] == [*reference])


def token_f1(answer: Sequence[Hashable], reference: Sequence[Hashable]) -> float:
    """The harmonic mean of precision and recall of the tokens that both have, each as often as in both, wherever it
    stands (SQuAD's F1). Of two empty sequences it is 1, of one 0."""
    if not answer or not reference:
        return float(not answer and not reference)
    return _f1((Counter(answer) & Counter(reference)).total(), len(answer), len(reference))


def rouge_l(answer: Sequence[Hashable], reference: Sequence[Hashable]) -> float:
    """The harmonic mean of the longest common subsequence's share of the answer and of the reference (Lin, 2004, eq. 1
    to 3 with β = 1). 0 where one of them is empty."""
    if not answer or not reference:
        return 0.0
    return _f1(_longest_common(answer, reference), len(answer), len(reference))


def _f1(common: int, answered: int, wanted: int) -> float:
    return 2 * common / (answered + wanted)


def _longest_common(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """The length of the longest common subsequence: one row of the table at a time."""
    row = [0] * (len(b) + 1)
    for token in a:
        before = 0  # the place above and to the left
        for place, other in enumerate(b, 1):
            above = row[place]
            row[place] = before + 1 if token == other else max(above, row[place - 1])
            before = above
    return row[-1]


def sequence_scores(
    answers: Iterable[str | Sequence[Hashable]], references: Iterable[str | Sequence[Hashable]]
) -> SequenceScores:
    """The scores of answers beside their references: texts, each split into words as the score has them, or tokens.

    Raises:
        DataError: there are not as many of both.
    """
    given, wanted = [*answers], [*references]
    if len(given) != len(wanted):
        raise DataError(f"{len(given)} answers, but {len(wanted)} references: give one reference for each answer")
    pairs = [*zip(given, wanted, strict=True)]

    def mean(score: Score, words: Callable[[str], list[str]]) -> float:
        each = [score(_split(answer, words), _split(reference, words)) for answer, reference in pairs]
        return sum(each) / len(each) if each else float("nan")

    return SequenceScores(
        mean(exact_match, plain_words), mean(token_f1, plain_words), mean(rouge_l, rouge_words), len(pairs)
    )


def _split(sequence: str | Sequence[Hashable], words: Callable[[str], list[str]]) -> Sequence[Hashable]:
    return words(sequence) if isinstance(sequence, str) else sequence


def continued(
    model: Callable[[Tensor], Tensor], x: Int64[Tensor, "batch time"], y: Int64[Tensor, "batch time"]
) -> tuple[list[list[int]], list[list[int]]]:
    """What a language model says itself where targets count, and these targets: what :func:`sequence_scores` takes.

    The most probable token, each after the model's own ones before it: the reference is not shown, as it is where token
    accuracy is measured. An answer has as many tokens as its reference; what follows is nobody's to score.

    Args:
        model: From tokens to scores ``[batch, time, tokens]``, in evaluation, each place from the places up to it.
        y: Targets: of place t the token at t + 1, and -100 where none counts.

    Raises:
        DataError: a target is not the token at the next place.
    """
    counts = y != IGNORED
    if not torch.equal(x[:, 1:][counts[:, :-1]], y[:, :-1][counts[:, :-1]]):
        raise DataError("the targets of a place must be the token at the next place, or -100 where none counts")
    said, own = x.clone(), y.clone()
    with torch.no_grad():
        for place in torch.nonzero(counts.any(0)).flatten().tolist():
            token = model(said)[:, place].argmax(-1)
            own[:, place] = torch.where(counts[:, place], token, own[:, place])
            if place + 1 < x.shape[1]:
                said[:, place + 1] = torch.where(counts[:, place], token, said[:, place + 1])
    return _of_rows(own, counts), _of_rows(y, counts)


def _of_rows(tokens: Tensor, counts: Tensor) -> list[list[int]]:
    return [row[there].tolist() for row, there in zip(tokens, counts, strict=True)]
