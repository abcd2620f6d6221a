"""Labels mean themselves, whatever kind of array or file they stand in, and what is missing is no class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from interfuse.data import Classification, Dataset, MultiLabel, Regression, load, load_table
from interfuse.data.describing import describe
from interfuse.errors import DataError


def data(y: Any, y_test: Any = (), **more: Any) -> Dataset:
    x = np.random.default_rng(0).random((len(y) + len(y_test), 3))
    return Dataset.from_arrays("made", x[: len(y)], y, x[len(y) :], y_test, **more)


def facts(dataset: Dataset) -> str:
    return "\n".join(f"{subject}: {text}" for subject, text in describe(dataset))


RNG = np.random.default_rng(0)


def many(values: list[Any], rows: int = 60) -> np.ndarray:
    return np.array(values)[np.arange(rows) % len(values)]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([0, 1, 2], "012"), ([1, 2, 3], "123"), ([0, 2], "02"), ([102, 4011, 71999], ("102", "4011", "71999")),
        ([9, 10], ("9", "10")), ([0.0, 1.0], "01"), ([-1, 1], ("-1", "1")), ([True, False], ("False", "True")),
        (["b", "a"], "ab"), ([b"b", b"a"], "ab"), (["10", "9"], ("9", "10")), ([" 2 ", "1.0"], "12"),
        (["01", "1"], ("01", "1")), (["true", "FALSE"], ("False", "True")), (["well", "ill"], ("ill", "well")),
    ],
)  # fmt: skip
def test_each_value_is_one_class_in_the_order_of_numbers_or_texts(values: list[Any], names: Any) -> None:
    y = many(values)
    found = data(y, y[:5])
    assert found.class_names == tuple(names)
    assert np.bincount(found.y_train.numpy()).tolist() == [30, 30] if len(values) == 2 else [20, 20, 20]
    numbered = {str(value): number for value, number in zip(y.tolist(), found.y_train.tolist(), strict=True)}
    assert found.y_test.tolist() == [numbered[str(value)] for value in y[:5].tolist()]


def test_new_numbers_are_said() -> None:
    assert "labels: the numbers 1 is 0, 2 is 1, 3 is 2, by their order" in facts(data(many([1, 2, 3])))
    assert "labels" not in facts(data(many([0, 1, 2])))


@pytest.mark.parametrize(
    ("y", "problem"),
    [
        (many([0, 1, 255]), "the number 255 beside"), (many([0, 1, -1]), "the number -1 beside"),
        (many([1, 2, 9]), "the number 9 beside"), (many([0, 1, 2, 99]), "the number 99 beside"),
        (np.arange(40), "another value in every row"), (np.arange(1000, 1040), "another value in every row"),
        (np.array([f"P{i:03d}" for i in range(40)]), "another value in every row"),
        (many([100_000 + 500 * i for i in range(200)], 1000), "200 different numbers from 100000 to 199500: say"),
        (many([float(i) for i in range(40)], 400), "40 different numbers"),
        ([0, 1, np.nan], r"y_train\[2\] has no value for y_train \('nan'\)"),
        (["a", None, "b"], r"y_train\[1\] has no value"), (["a", "", ""], r"y_train\[1\] .* nor have 1 other rows"),
        (["1", "NA", "2"], r"y_train\[1\]"), (["a", "nan"], r"y_train\[1\]"), ([1.0, np.inf], r"y_train\[1\]"),
        ([1, "a", {}], "dict {} is neither"),
        (np.array(["2020-01-01"], "datetime64[D]"), "neither numbers nor texts"),
        (np.eye(4, 3)[:3], "a single 1"),
    ],
)  # fmt: skip
def test_what_is_no_class_is_refused(y: Any, problem: str) -> None:
    y = np.asarray(y, dtype=object) if isinstance(y, list) and not all(isinstance(v, float | int) for v in y) else y
    with pytest.raises(DataError, match=problem):
        data(y)


def test_what_is_said_settles_it() -> None:
    dear = many([100_000 + 500 * i for i in range(200)], 1000)
    assert isinstance(data(dear, task="regression").task, Regression)
    assert data(dear, task="classification").classes == 200
    assert data(many([0, 1, 255]), class_names=("0", "1", "255")).y_train[:3].tolist() == [0, 1, 2]
    assert data(np.eye(4, 3)[:3], task="multi-label").task == MultiLabel(("0", "1", "2"))
    assert data([[1], [0], [2]]).task == Classification(("0", "1", "2"))


def test_names_are_of_positions_or_asked_about() -> None:
    assert data([0, 1], class_names=["healthy", "ill"]).y_train.tolist() == [0, 1]
    assert data(["ill", "healthy"], class_names=["healthy", "ill"]).y_train.tolist() == [1, 0]
    assert data([1, 3], class_names=["1", "2", "3"]).y_train.tolist() == [0, 2]
    with pytest.raises(DataError, match="may be positions in class_names"):
        data([1, 2], class_names=["1", "2", "3"])
    assert data([1, 2], task=Classification(("1", "2", "3"))).y_train.tolist() == [1, 2]
    with pytest.raises(DataError, match="labels from 1 to 5"):
        data([1, 5], class_names=["a", "b"])
    with pytest.raises(DataError, match="'cat', which is not among dog"):
        data(["cat"], class_names=["dog"])


def test_classes_of_the_test_rows_alone_and_single_ones_are_said() -> None:
    found = data([0, 1, 0], [2])
    assert found.classes == 3
    assert "warning: no training row has 2" in facts(found)
    assert "warning: there is one class, ill" in facts(data(["ill", "ill"]))
    with pytest.raises(DataError, match="y_train holds text, but y_test numbers"):
        data(["a", "b"], [0])


@given(values=st.lists(st.integers(0, 30), min_size=1, max_size=8, unique=True), kind=st.sampled_from("ifUO"))
def test_equal_values_are_equal_classes_in_every_type(values: list[int], kind: str) -> None:
    y = many(values, 64)
    types = {"i": np.int16, "f": np.float64, "U": np.str_, "O": object}
    try:
        wanted = data(y)
    except DataError:
        with pytest.raises(DataError):
            data(y.astype(types[kind]))
        return
    found = data(y.astype(types[kind]))
    assert found.class_names == wanted.class_names == tuple(map(str, sorted(values)))
    assert torch.equal(found.y_train, wanted.y_train)


@pytest.mark.parametrize("values", [[1, 2, 3], [9, 10, 11], [0.0, 1.0], ["x", "y"], [102, 4011]])
def test_a_csv_a_parquet_and_an_npz_give_the_same_classes(values: list[Any], tmp_path: Path) -> None:
    y = many(values)
    x = np.arange(60) / 7
    (tmp_path / "t.csv").write_text("a,label\n" + "".join(f"{a},{b}\n" for a, b in zip(x, y, strict=True)))
    parquet.write_table(pyarrow.table({"a": x, "label": y}), tmp_path / "t.parquet")
    np.savez(tmp_path / "t.npz", x=x[:, None], y=y)
    found = [load(tmp_path / f"t.{kind}") for kind in ("csv", "parquet", "npz")]
    for other in found[1:]:
        assert other.class_names == found[0].class_names
        assert torch.equal(other.y_train, found[0].y_train)
        assert torch.equal(other.y_test, found[0].y_test)


@pytest.mark.parametrize("task", ["classification", "regression", "multi-label"])
@pytest.mark.parametrize("value", ["", "nan", "NA", "None"])
def test_a_missing_target_is_refused_with_line_and_column(task: str, value: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"a,y,z\n1,0,1\n\n2,{value},0\n3,1,1\n")
    label = ["z", "y"] if task == "multi-label" else ["y"]
    with pytest.raises(DataError, match=r"t.csv: line 4 has no value for column 'y'"):
        load_table(tmp_path / "t.csv", label, task=task)


@pytest.mark.parametrize("codes", [[2**53, 2**53 + 1, 2**53 + 2], [2**64, 2**64 + 1, 2**64 + 2]])
def test_codes_that_float64_cannot_tell_apart_are_classes_and_groups_of_their_own(
    codes: list[int], tmp_path: Path
) -> None:
    lines = [f"{row / 7},{codes[row % 3]}" for row in range(30)]
    (tmp_path / "t.csv").write_text("\n".join(["a,label", *lines]))
    assert load_table(tmp_path / "t.csv", "label").class_names == tuple(map(str, codes))
    (tmp_path / "t.csv").write_text("\n".join(["a,person,label", *(f"{line},{n % 2}" for n, line in enumerate(lines))]))
    groups = load_table(tmp_path / "t.csv", "label", group="person").groups
    assert groups is not None
    assert len(groups.unique()) == 3


def test_yes_and_no_are_called_as_the_names_are(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,label\n1.5,true\n2,FALSE\n")
    assert load_table(tmp_path / "t.csv", "label", ["true", "false"]).y_train.tolist() == [0, 1]
    parquet.write_table(pyarrow.table({"a": [1.5, 2], "label": [True, False]}), tmp_path / "t.parquet")
    assert load_table(tmp_path / "t.parquet", "label", ["true", "false"]).y_train.tolist() == [0, 1]


def test_labels_that_a_row_has_or_has_not_may_be_true_and_false(tmp_path: Path) -> None:
    bits = np.array([[1, 0], [1, 1], [0, 0], [0, 1]], bool)
    assert data(bits).task == data(bits, task="multi-label").task == MultiLabel(("0", "1"))
    assert data(bits).y_train.tolist() == bits.tolist()
    assert data(bits[:, 0], task="multi-label").y_train.tolist() == bits[:, :1].tolist()
    (tmp_path / "t.csv").write_text("a,x,y\n1.5,true,false\n2,true,true\n")
    assert load_table(tmp_path / "t.csv", ["x", "y"]).y_train.tolist() == [[1, 0], [1, 1]]


def test_numbers_of_numpy_among_objects() -> None:
    assert data(np.array([np.int64(1), np.int64(0)], object)).y_train.tolist() == [1, 0]


def test_no_two_classes_have_one_name() -> None:
    with pytest.raises(DataError, match="x, x have one name twice"):
        data(many([0, 1]), class_names=["x", "x"])


def test_numbers_taken_for_positions_are_said(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,label\n1.5,1\n2,2\n")
    read = load_table(tmp_path / "t.csv", "label", ["well", "ill", "dead"])
    assert "positions among the names, from 0: well is 0, ill is 1, dead is 2" in facts(read)
