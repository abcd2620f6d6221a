"""What `interfuse methods` says of settings, and error texts about unknown names."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Le

from interfuse.cli.kinds import as_given, in_words
from interfuse.errors import nearest
from interfuse.method import settings
from interfuse.methods import built_in


class Colour(Enum):
    RED = "red"
    BLUE = "dark-blue"


@dataclass
class Schedule:
    start: float


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Annotated[float, Gt(0), Le(1)], "number > 0, <= 1"),
        (Annotated[int, Ge(1)] | None, "integer >= 1"),
        (Literal["all", "pairs"], "all | pairs"),
        (Annotated[float, Gt(0)] | Schedule, "number > 0 | Schedule"),
        (Colour, "red | dark-blue"),
        (bool, "true | false"),
        (str, "text"),
    ],
)
def test_an_annotation_in_words(kind: Any, words: str) -> None:
    assert in_words(kind) == words


@pytest.mark.parametrize(("value", "words"), [(None, "none"), (True, "true"), (0.1, "0.1"), ("Adam", "Adam")])
def test_defaults_as_they_are_written(value: object, words: str) -> None:
    assert as_given(value) == words


@pytest.mark.parametrize("method", built_in())
def test_settings_of_every_method_are_in_words(method: str) -> None:
    for setting in settings(built_in()[method]):
        assert not any(part in in_words(setting.type) for part in ("typing", "<class", "Literal", "Annotated"))


def test_few_names_are_all_listed() -> None:
    assert nearest("tua", ["tau", "rounds"]) == "did you mean 'tau'? valid: rounds, tau"
    assert nearest("x", [f"name{i:02d}" for i in range(40)]).count("name") == 40


def test_of_many_names_those_that_are_near() -> None:
    names = ["ifl", "ifl-cut", "ifl-tau", *(f"zz{i}" for i in range(40))]
    text = nearest("ifll", names)
    assert text == "did you mean 'ifl'? near it: ifl-cut, ifl-tau"
    assert nearest("zzzifl", ["ifl", *(f"q{i}" for i in range(40))]) == "did you mean 'ifl'?"
