"""Exact match, token F1 and ROUGE-L against brute force and the usual library; what a language model says itself."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from interfuse.errors import DataError
from interfuse.evaluation import exact_match, rouge_l, sequence_scores, token_f1
from interfuse.evaluation.sequences import continued, plain_words, rouge_words

# rouge-score 0.1.2, RougeScorer(["rougeL"], use_stemmer=False).score(reference, answer)["rougeL"].fmeasure
ROUGE = [
    ("the cat sat on the mat", "the cat was on a mat", 0.6666666666666666),
    ("A blue circle.", "blue circle", 0.8),
    ("red", "blue", 0.0),
    ("it's 3 red-ish squares", "three red squares it is", 0.3636363636363636),
    ("one two three four five", "five four three two one", 0.20000000000000004),
    ("Yes, yes, no", "yes no yes", 0.6666666666666666),
    ("", "x", 0),
    ("naïve café", "naive cafe", 0.0),
]
TOKENS = st.lists(st.integers(0, 3), max_size=7)


@pytest.mark.parametrize(("answer", "reference", "value"), ROUGE)
def test_rouge_l_is_that_of_rouge_score(answer: str, reference: str, value: float) -> None:
    assert rouge_l(rouge_words(answer), rouge_words(reference)) == pytest.approx(value, abs=1e-12)
    assert sequence_scores([answer], [reference]).rouge_l == pytest.approx(value, abs=1e-12)


def subsequences(of: list[int]) -> set[tuple[int, ...]]:
    return {chosen for length in range(len(of) + 1) for chosen in combinations(of, length)}


@given(TOKENS, TOKENS)
def test_scores_are_those_of_brute_force(answer: list[int], reference: list[int]) -> None:
    longest = max(map(len, subsequences(answer) & subsequences(reference)))
    left = list(reference)
    common = sum(1 for token in answer if token in left and (left.remove(token) or True))
    if answer and reference:
        for found, same in ((rouge_l(answer, reference), longest), (token_f1(answer, reference), common)):
            precision, recall = same / len(answer), same / len(reference)
            assert found == pytest.approx(2 * precision * recall / (precision + recall) if same else 0.0)
    else:
        assert rouge_l(answer, reference) == 0
        assert token_f1(answer, reference) == (answer == reference)
    assert exact_match(answer, reference) == (answer == reference)


def test_words_are_compared_as_squad_does() -> None:
    assert plain_words("  The Blue-ish circle, an answer! ") == ["blueish", "circle", "answer"]
    found = sequence_scores(["The red circle.", "two", "a b c", ""], ["red  circle", "three", "c b d", ""])
    assert found.exact_match == 0.5
    assert found.token_f1 == pytest.approx((1 + 0 + 0.8 + 1) / 4)  # "a" is an article: b c beside c b d
    assert found.pairs == 4
    assert math.isnan(sequence_scores([], []).token_f1)
    assert sequence_scores([[1, 2, 3]], [[1, 3]]).rouge_l == pytest.approx(0.8)
    with pytest.raises(DataError, match="2 answers, but 1 references"):
        sequence_scores(["a", "b"], ["a"])


def test_what_a_model_says_follows_from_its_own_words_and_not_from_the_reference() -> None:
    """A model that says the next number after the one before it: one wrong step is never put right."""

    def successor(x: Tensor) -> Tensor:
        return functional.one_hot((x + 1) % 10, 10).float()

    x = torch.tensor([[7, 3, 5, 6, 7, 0], [1, 2, 3, 4, 0, 0]])
    y = torch.tensor([[-100, 5, 6, 7, -100, -100], [2, 3, 4, -100, -100, -100]])
    own, wanted = continued(successor, x, y)
    assert wanted == [[5, 6, 7], [2, 3, 4]]
    assert own == [[4, 5, 6], [2, 3, 4]]  # shown the reference, it would say 4, 6, 7
    assert sequence_scores(own, wanted).exact_match == 0.5
    assert sequence_scores(own, wanted).rouge_l == pytest.approx((4 / 6 + 1) / 2)


def test_answers_may_end_with_the_row_and_targets_must_follow_from_tokens() -> None:
    x, y = torch.tensor([[1, 2, 3]]), torch.tensor([[-100, 3, 9]])
    own, wanted = continued(lambda x: functional.one_hot(x, 10).float(), x, y)
    assert (own, wanted) == ([[2, 2]], [[3, 9]])
    with pytest.raises(DataError, match="the targets of a place must be the token at the next place"):
        continued(lambda x: functional.one_hot(x, 10).float(), x, torch.tensor([[5, -100, -100]]))
