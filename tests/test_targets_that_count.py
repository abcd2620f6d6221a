"""A client none of whose rows has a target that counts is refused before anything is trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from worlds import setup_of, shares_of

from interfuse.data import Dataset, LanguageModelling
from interfuse.data.task import IGNORED
from interfuse.errors import ConfigError
from interfuse.models import SplitModel, pair

TOKENS, ROWS, PLACES = 5, 12, 4


def reader(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    return pair(nn.Embedding(TOKENS, width), nn.Linear(width, classes))


def text(counting: range) -> Dataset:
    """The next token at the last place of these rows; at others nothing is asked."""
    x = torch.arange(ROWS * PLACES).reshape(ROWS, PLACES) % TOKENS
    y = torch.full_like(x, IGNORED)
    y[list(counting), -1] = 1
    made: Dataset = Dataset.from_arrays("text", x, y, x, y, task=LanguageModelling(TOKENS), layout="tokens")
    return made


def test_it_is_named() -> None:
    shares = shares_of(range(0, 6), range(6, ROWS))
    said = "client 1 has 6 training rows of text, but none has a target that counts, so it has nothing to learn from"
    with pytest.raises(ConfigError, match=said):
        setup_of("fedavg", models=[reader], dataset=text(range(0, 6)), shares=shares)
    setup_of("fedavg", models=[reader], dataset=text(range(0, 7)), shares=shares)  # one is enough
