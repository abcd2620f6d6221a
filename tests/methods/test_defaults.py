"""Every default of every method: its value, what it is a number of, and where it is from."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from interfuse.cli.kinds import as_given
from interfuse.method import settings
from interfuse.methods import built_in

TABLE = Path(__file__).with_name("defaults.csv")
with TABLE.open(encoding="utf-8", newline="") as lines:
    ROWS = list(csv.DictReader(lines))


@pytest.mark.parametrize("method", sorted(built_in()))
def test_every_default_is_the_tables(method: str) -> None:
    """A new setting, or another value or source, belongs into ``defaults.csv``, with its unit."""
    wanted = [(row["setting"], row["value"], row["source"]) for row in ROWS if row["method"] == method]
    found = [(s.name, as_given(s.default), s.source) for s in settings(built_in()[method])]
    assert found == wanted


def test_the_table_is_of_methods_that_are_there_and_says_all_of_each_default() -> None:
    assert {row["method"] for row in ROWS} == set(built_in())
    assert all(row["unit"] and row["source"] for row in ROWS)
    assert len({(row["method"], row["setting"]) for row in ROWS}) == len(ROWS)


def test_whose_code_a_default_is_of_is_said_where_it_is_not_interfuses() -> None:
    """What the authors' commands and files say, read there and not here."""
    known = {(row["method"], row["setting"]): (row["value"], row["source"]) for row in ROWS}
    inco = {"weights": "uniform", "optimizer": "adam", "lr": "0.001", "batch_size": "64", "local_epochs": "5"}
    for name, value in (inco | {"participation": "0.1", "largest_weight": "5.0"}).items():
        assert known["inco", name] == (value, "InCo's code")
    assert known["scalefl", "gamma"] == ("0.0", "ScaleFL's code")
    assert known["fedgen", "lr"] == ("Exponential(start=0.01, decay=0.99)", "FedGen's code")
    assert known["fedgen", "labels"] == ("uniform", "FedGen's code")
    assert known["inclusivefl", "own_classifier"] == ("true", "InclusiveFL's code")
    assert known["lg-fedavg", "weights"] == ("uniform", "LG-FedAvg's code")
    assert known["fedavg", "lr"] == ("0.01", "interfuse")
