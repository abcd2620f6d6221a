"""The table of who sees what names every method, and says what is retained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from interfuse.method import Method, retained
from interfuse.methods import built_in
from interfuse.methods.fedin import FedIN
from interfuse.methods.ifl import IFL
from interfuse.methods.ifl_ablations import IFLAblations
from interfuse.methods.ifl_async import IFLAsync
from interfuse.methods.ifl_late_replay import IFLLateReplay

PAGE = Path(__file__).parents[2] / "docs" / "security.md"


def table() -> dict[str, str]:
    """The line of each method."""
    lines = PAGE.read_text().split("| method |")[1].splitlines()[2:]
    rows = [line for line in lines if line.startswith("| `")]
    return {name: row for row in rows for name in re.findall(r"`([a-z0-9-]+)`", row.split("|")[1])}


def test_every_method_stands_in_the_table() -> None:
    assert sorted(table()) == sorted(built_in())


@pytest.mark.parametrize("name", sorted(built_in()))
def test_what_is_retained_is_said(name: str) -> None:
    if retained(built_in()[name]()) and name != "pooled":
        assert "by `retention`" in table()[name]


@pytest.mark.parametrize("method", [IFLAsync(), IFLLateReplay(), FedIN(), IFLAblations(pairs="late")])
def test_a_method_whose_state_holds_features_says_so(method: Method) -> None:
    assert "features" in retained(method)


def test_plain_ifl_keeps_nothing() -> None:
    assert not retained(IFL())
