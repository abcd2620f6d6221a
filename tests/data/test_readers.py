"""Folders of images by class, and tables with a column of labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from interfuse.data import Classification, Dataset, MultiLabel, Regression, load_folder, load_table
from interfuse.errors import DataError

CSV = "a,kind,b\n1.5,cat,2\n-3,dog,4e1\n0,cat,0\n"


def test_a_table_becomes_numbers_and_labels(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(CSV)
    table = load_table(tmp_path / "rows.csv", "kind")
    assert table.x_train.tolist() == [[1.5, 2.0], [-3.0, 40.0], [0.0, 0.0]]
    assert table.y_train.tolist() == [0, 1, 0]
    assert table.class_names == ("cat", "dog")
    assert len(table.x_test) == 0
    ordered = load_table(tmp_path / "rows.csv", "kind", ["owl", "dog", "cat"])
    assert ordered.y_train.tolist() == [2, 1, 2]
    assert ordered.classes == 3


def test_parquet_is_read_as_csv_is(tmp_path: Path) -> None:
    columns = {"a": [1.5, -3.0, 0.0], "kind": ["cat", "dog", "cat"], "b": [2, 40, 0]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    (tmp_path / "rows.csv").write_text(CSV)
    found, wanted = (load_table(tmp_path / f"rows.{kind}", "kind") for kind in ("parquet", "csv"))
    assert torch.equal(found.x_train, wanted.x_train)
    assert torch.equal(found.y_train, wanted.y_train)


@pytest.mark.parametrize(
    ("text", "label", "problem"),
    [
        (CSV, "kin", "no column 'kin': did you mean 'kind'"),
        (CSV.replace("4e1", "much"), "kind", "column 'b' is not all numbers"),
        (CSV + "1,cat\n", "kind", "every row needs 3 values"),
        ("kind\ncat\n", "kind", "no column beside"),
        (CSV, "a", "not all numbers"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_by_name(text: str, label: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(DataError, match=problem):
        load_table(tmp_path / "rows.csv", label)


def image(path: Path, value: int, *, size: tuple[int, int] = (4, 3), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 7)).save(path)


def test_a_folder_of_images_has_a_class_for_each_subfolder(tmp_path: Path) -> None:
    for number, name in enumerate(("dog/1.png", "cat/1.png", "cat/2.png")):
        image(tmp_path / name, number)
    found = load_folder(tmp_path)
    assert found.shape == (3, 3, 4)
    assert found.class_names == ("cat", "dog")
    assert found.y_train.tolist() == [0, 0, 1]
    assert found.x_train[:, 0, 0, 0].tolist() == [1, 2, 0]
    assert found.x_train[:, 2, 0, 0].tolist() == [7, 7, 7]
    assert load_folder(tmp_path, ["dog", "cat"]).y_train.tolist() == [1, 1, 0]


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    image(tmp_path / "cat" / "1.png", 9, mode="L")
    found = load_folder(tmp_path)
    assert found.shape == (1, 3, 4)
    assert np.unique(found.x_train.numpy()).tolist() == [9]


def test_a_folder_that_cannot_be_used_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no subfolders with images"):
        load_folder(tmp_path)
    image(tmp_path / "cat" / "1.png", 1)
    with pytest.raises(DataError, match="'cat', which is not among dog"):
        load_folder(tmp_path, ["dog"])
    image(tmp_path / "cat" / "2.png", 1, size=(5, 5))
    with pytest.raises(DataError, match="make them alike"):
        load_folder(tmp_path)
    (tmp_path / "cat" / "2.png").write_text("no image")
    with pytest.raises(DataError, match="is no image"):
        load_folder(tmp_path)


HOUSES = "rooms,price,sold,garden\n3,1.5,1,0\n4,2.25,0,1\n5,4,0,0\n"


def table(folder: Path, *arguments: Any) -> Dataset:
    (folder / "houses.csv").write_text(HOUSES)
    return load_table(folder / "houses.csv", *arguments)


def test_a_column_of_fractions_is_a_regression(tmp_path: Path) -> None:
    found = table(tmp_path, "price")
    assert isinstance(found.task, Regression)
    assert (found.task.names, found.task.mean) == (("price",), pytest.approx((7.75 / 3,)))
    assert found.y_train.tolist() == [[1.5], [2.25], [4.0]]
    assert found.shape == (3,)


def test_a_column_of_whole_numbers_is_what_one_says(tmp_path: Path) -> None:
    assert table(tmp_path, "rooms").task == Classification(("3", "4", "5"))
    assert table(tmp_path, "rooms", None, "regression").y_train.tolist() == [[3.0], [4.0], [5.0]]
    assert table(tmp_path, "price", None, "classification").class_names == ("1.5", "2.25", "4")


def test_several_columns_are_labels_or_a_regression(tmp_path: Path) -> None:
    labels = table(tmp_path, ["garden", "sold"])
    assert labels.task == MultiLabel(("garden", "sold"))
    assert labels.y_train.tolist() == [[0, 1], [1, 0], [0, 0]]
    assert table(tmp_path, ["price", "rooms"]).task.names == ("price", "rooms")
    with pytest.raises(DataError, match="give the task"):
        table(tmp_path, ["rooms", "sold"])
    assert table(tmp_path, ["rooms", "sold"], None, "regression").task.dims() == {"outputs": 2}
