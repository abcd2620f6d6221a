"""Which tokens of two tokenizers are the same: those that end at the same character of a text.

FedMosaic's release matches answers of models of two families by a dynamic programme over the texts of tokens. Here the
public data say where in its text each token ends (:attr:`.Dataset.ends`), and each party finds the places that all
tokenizers have in common by itself: ends of words at least, if there is one that cuts texts into words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from interfuse.data import PublicData
from interfuse.data.inputs import named
from interfuse.errors import ModelError
from interfuse.models import SplitModel
from interfuse.models.backbones.stages import Transformer


@dataclass(frozen=True)
class Tokens:
    """Some tokens, in the order of rows and places.

    Attributes:
        row: Of the public data.
        place: In the sequence that the transformer's layers work on; of public data with several tokenizers, the number
            of the place among those that these have in common (:func:`.common_places`).
        answer: Whether the model's output is made of what the last layer makes of this token.
    """

    row: Int64[Tensor, "tokens"]
    place: Int64[Tensor, "tokens"]
    answer: Bool[Tensor, "tokens"]


def matches(public: PublicData) -> bool:
    """Whether the places of tokens are those that several tokenizers have in common."""
    return len(public.ends) > 1


def reads(model: SplitModel, public: PublicData) -> int:
    """The number of the input whose tokens a model reads, in the order of names; -1: nobody knows which of several."""
    names = sorted(named(public.rows(torch.arange(1)).x))
    stage = _stage(model)
    return 0 if len(names) == 1 else -1 if stage is None else names.index(stage.tokens)


def common_places(model: SplitModel, public: PublicData, row: int) -> list[int]:
    """Where in the sequence that the model's layers work on the places are that all tokenizers have in common in a row
    of the public data, from the first to the last: of each character at which a token of each of them ends the last
    token that ends there; then the last token of the row, behind which nothing is read.

    Raises:
        ModelError: the model does not say which tokens it reads, or the public data not where these end.
    """
    stage = _stage(model)
    if stage is None or stage.tokens not in public.ends:
        raise ModelError(
            "the public data have tokens of several tokenizers, but not where those end that this model reads: take a "
            "model that says what it reads (hf:FOLDER?reads=NAME), or public data with one tokenizer"
        )
    tokens, ends = named(public.rows(torch.tensor([row])).x)[stage.tokens][0].cpu(), _of_row(public, row)
    shared = sorted(set.intersection(*({*own} for own in ends.values())) - {0})
    mine = ends[stage.tokens]
    column = {end: place for place, end in enumerate(mine)}  # the last of those that end there
    leading = 0 if stage.padding is None else int((tokens != stage.padding).long().argmax())
    before = stage.seen_before(public.rows(torch.tensor([row])).x)
    last = max((place for place, end in enumerate(mine) if end), default=len(mine) - 1)
    return [before + place - leading for place in (*(column[end] for end in shared), last)]


def in_common(model: SplitModel, public: PublicData, own: Tokens) -> Tokens:
    """Of these tokens of a model those at places that all tokenizers have in common."""
    answers = dict(zip(zip(own.row.tolist(), own.place.tolist(), strict=True), own.answer.tolist(), strict=True))
    found = [
        (row, number, answers[row, place])
        for row in dict.fromkeys(own.row.tolist())
        for number, place in enumerate(common_places(model, public, row))
        if (row, place) in answers
    ]
    row, place, answer = (torch.tensor(values) for values in zip(*found, strict=True))
    return Tokens(row, place, answer)


def own_places(
    model: SplitModel, public: PublicData, row: Int64[Tensor, "tokens"], place: Int64[Tensor, "tokens"]
) -> Int64[Tensor, "tokens"]:
    """Common places of rows as places in the sequence of a model.

    Raises:
        ModelError: a row has no such place; or as :func:`common_places`.
    """
    known: dict[int, Sequence[int]] = {}
    found = []
    for of, number in zip(row.tolist(), place.tolist(), strict=True):
        if of not in known:
            known[of] = common_places(model, public, of)
        if not 0 <= number < len(known[of]):
            raise ModelError(f"row {of} of the public data has {len(known[of])} places in common, but none is {number}")
        found.append(known[of][number])
    return torch.tensor(found, dtype=torch.int64)


def _stage(model: SplitModel) -> Transformer | None:
    return next((module for module in model.modules() if isinstance(module, Transformer)), None)


def _of_row(public: PublicData, row: int) -> dict[str, list[int]]:
    return {name: places[row].tolist() for name, places in public.ends.items()}
