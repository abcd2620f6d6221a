"""What is likely not meant is asked about, or said as a warning that names the place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from interfuse.data import Dataset, Regression, describe, load
from interfuse.errors import DataError, ModelError
from interfuse.models import measure, resolve

ROWS = 40
RNG = np.random.default_rng(0)
PLAIN = [f"{value:.3f}" for value in RNG.random(ROWS)]


def table(path: Path, **columns: Sequence[Any]) -> Path:
    """A CSV with a plain column ``a`` and these."""
    columns = {"a": PLAIN} | columns
    lines = [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join([",".join(columns), *lines]) + "\n")
    return path


def cycle(*values: Any) -> list[Any]:
    return [values[row % len(values)] for row in range(ROWS)]


def warnings(data: Dataset) -> str:
    return "\n".join(text for subject, text in describe(data) if subject == "warning")


LABELS = cycle("ill", "well", "well")


@pytest.mark.parametrize(
    ("column", "values", "warning"),
    [
        ("lab", [-999 if row % 9 == 0 else row / 7 for row in range(ROWS)], "-999 in 5 rows of lab"),
        ("age", [-9 if row % 9 == 0 else 20 + row * 1.5 for row in range(ROWS)], "-9 in 5 rows of age"),
        ("smoker", cycle(0, 1, 9), "9 in 13 rows of smoker"),
        ("pressure", [999 if row % 9 == 0 else 120 + row % 7 for row in range(ROWS)], "999 in 5 rows of pressure"),
        ("age", [99 if row % 9 == 0 else 20 + row * 1.5 for row in range(ROWS)], ""),
        ("once", [-999, *range(1, ROWS)], ""),
        ("balance", [row % 8 - 12 for row in range(ROWS)], ""),
        ("visits", cycle(7, 8, 9), ""),
        ("patient", [row // 4 for row in range(ROWS)], "group=patient keeps its rows together, drop=patient leaves"),
        ("Site_no", [row // 20 for row in range(ROWS)], "group=Site_no keeps"),
        ("patience", [row // 4 for row in range(ROWS)], ""),
        ("outcome", [int(label == "ill") for label in LABELS], "outcome says the label itself"),
        ("almost", [int(label == "ill" and row) for row, label in enumerate(LABELS)], ""),
        ("zip", cycle("01000", "02000", "12000"), "became numbers: zip (such as 01000)"),
    ],
)
def test_columns_that_are_doubtful_are_said(column: str, values: list[Any], warning: str, tmp_path: Path) -> None:
    found = warnings(load(table(tmp_path / "rows.csv", **{column: values}, label=LABELS)))
    words = ("mark of missing", "keeps its rows", "label itself", "leading zero")
    assert warning in found
    assert sum(word in found for word in words) == bool(warning)


def test_a_target_of_a_regression_among_the_columns_is_said(tmp_path: Path) -> None:
    price = [row + 0.5 for row in range(ROWS)]
    data = load(table(tmp_path / "rows.csv", copy=price, price=price), label="price")
    assert isinstance(data.task, Regression)
    assert "copy says the label itself" in warnings(data)


def test_texts_of_people_may_be_a_group(tmp_path: Path) -> None:
    path = table(tmp_path / "rows.csv", patient=cycle("P1", "P2", "P3"), label=LABELS)
    with pytest.raises(DataError, match="column 'patient' .*group=patient keeps the rows of each together"):
        load(path)


@pytest.mark.parametrize(
    ("names", "warning"),
    [
        (("yes", "Yes", "no"), "'Yes' and 'yes', which"), (("01", "1"), "'01' and '1'"),
        (("a b", "ab"), "'a b' and 'ab'"), (("yes", "no"), ""), (("a1", "a01"), ""), (("unknown", "no"), "'unknown'"),
    ],
)  # fmt: skip
def test_classes_that_may_be_one_or_none_are_said(names: tuple[str, ...], warning: str, tmp_path: Path) -> None:
    found = warnings(load(table(tmp_path / "rows.csv", label=cycle(*names))))
    assert warning in found
    assert bool(found) == bool(warning)
    assert not warnings(load(table(tmp_path / "rows.csv", label=cycle(*names)), classes=names))


def test_an_accent_is_part_of_its_letter(tmp_path: Path) -> None:
    data = load(table(tmp_path / "rows.csv", label=cycle("é", "e\u0301", "e")))
    assert data.class_names == ("e", "é")
    assert any("(NFC)" in text for _, text in describe(data))
    named = load(table(tmp_path / "rows.csv", label=cycle("é", "e\u0301", "e")), classes=("e\u0301", "e"))
    assert named.class_names == ("é", "e")
    for folder in ("é", "e\u0301", "z"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / "images" / folder / "1.png")
    assert load(tmp_path / "images").class_names == ("z", "é")


@pytest.mark.parametrize("value", ["None", "NA", "N/A", "-", "missing", "nan", "NULL", "."])
def test_what_stands_for_no_label_is_refused_unless_named(value: str, tmp_path: Path) -> None:
    path = table(tmp_path / "rows.csv", label=cycle("ill", value))
    with pytest.raises(DataError, match=r"line 3 has no value for column 'label' .* is a class, name all classes: cl"):
        load(path)
    assert load(path, classes=("ill", value)).class_names == ("ill", value)


def test_a_single_fraction_among_classes_is_asked_about(tmp_path: Path) -> None:
    path = table(tmp_path / "rows.csv", label=[0.5 if row == 5 else row % 2 for row in range(ROWS)])
    with pytest.raises(DataError, match=r"line 7 has 0.5 for column 'label', but 39 of 40 rows have one of 0, 1"):
        load(path)
    assert load(path, task="classification").class_names == ("0", "0.5", "1")
    assert isinstance(load(path, task="regression").task, Regression)
    half = table(tmp_path / "half.csv", label=[row % 5 / 2 for row in range(ROWS)])
    assert isinstance(load(half).task, Regression)


@pytest.mark.parametrize("shape", [(6, 6), (9,)])
@pytest.mark.parametrize("factor", [1, 1 / 255, 255])
def test_a_test_set_in_another_unit_is_said(shape: tuple[int, ...], factor: float) -> None:
    x = RNG.random((60, *shape)) * 255
    data = Dataset.from_arrays("made", x[:40], np.arange(40) % 2, x[40:] * factor, np.arange(20) % 2)
    assert ("another unit?" in warnings(data)) == (factor != 1)


def test_five_axes_are_asked_about() -> None:
    x, y = RNG.integers(0, 256, (10, 4, 6, 5, 3)), np.arange(10) % 2
    with pytest.raises(DataError, match="say layout='volumes' or layout='volumes-last'"):
        Dataset.from_arrays("made", x, y, x, y)
    last = Dataset.from_arrays("made", x, y, x, y, layout="volumes-last")
    assert (last.shape, last.x_train.dtype) == ((3, 4, 6, 5), torch.uint8)
    assert last.x_train[1, 2].tolist() == x[1, ..., 2].tolist()
    assert Dataset.from_arrays("made", x, y, x, y, layout="volumes").shape == (4, 6, 5, 3)
    assert Dataset.from_arrays("made", x[..., 0], y, x[..., 0], y, layout="volumes").shape == (1, 4, 6, 5)
    with pytest.raises(DataError, match="samples of 5 axes are not read"):
        Dataset.from_arrays("made", x[..., None], y, x[..., None], y)


def test_spreadsheets_leave_lines_and_columns_that_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("sep=;\r\na;Label;;\r\n1;x;;\r\n2;y;;\r\n;;;\r\n;;;\r\n")
    data = load(path)
    assert sorted([*data.x_train.flatten().tolist(), *data.x_test.flatten().tolist()]) == [1, 2]
    said = dict(describe(data))
    assert said["left out"] == (
        "line 1, sep=;; the last 2 lines, which have no values; the last 2 columns, which have neither names nor values"
    )
    assert said["label"] == "Label, by its name"
    path.write_text("sep=;\na;label\n1;x\nmuch;y\n")
    with pytest.raises(DataError, match="'much' in line 4"):
        load(path)
    path.write_text("# exported\na,label\n1,x\n")
    with pytest.raises(DataError, match="if line 1 is a title or a comment, remove it"):
        load(path)
    path.write_text("a,b,label\n1,1,x\n# made by hand\n2,2,y\n")
    with pytest.raises(DataError, match="if line 3 is a title or a comment, remove it"):
        load(path)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("a.xlsx", "export the sheet as CSV"), ("a.csv.gz", "unpack it"), ("a.data", "renamed to .csv"),
        ("a.npy", "save it as .npz"),
    ],
)  # fmt: skip
def test_other_files_are_refused_with_a_way_forward(name: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=hint):
        load(tmp_path / name)


def test_texts_that_are_objects_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=RNG.random((4, 2)), y=np.array(["a", "b"] * 2, object))
    with pytest.raises(DataError, match=r"y holds Python objects.*\.astype\(str\)"):
        load(tmp_path / "rows.npz")


def test_folders_of_images_at_another_level(tmp_path: Path) -> None:
    def image(path: Path) -> None:
        path.parent.mkdir(parents=True)
        Image.fromarray(RNG.integers(0, 256, (4, 4), dtype=np.uint8)).save(path)

    for name in ("a", "b"):
        image(tmp_path / "wrapped" / "data" / name / "1.png")
        for part in ("train", "val", "test"):
            image(tmp_path / "split" / part / name / "1.png")
    with pytest.raises(DataError, match=r"one level deeper; give .*wrapped/data"):
        load(tmp_path / "wrapped")
    found = load(tmp_path / "split")
    assert (len(found.y_train), len(found.y_test)) == (2, 2)
    assert dict(describe(found))["left out"] == "val: the test rows are those of test"
    image(tmp_path / "wrapped" / "data" / "a" / "more" / "2.png")
    with pytest.raises(DataError, match=r"more is a folder within the class a"):
        load(tmp_path / "wrapped" / "data")


def test_many_classes_are_said_in_two_lines_and_no_subject_twice() -> None:
    y = np.arange(62).repeat(2)[: 62 + 40]
    data = Dataset.from_arrays("made", RNG.random((102, 3)), y, RNG.random((3, 3)), y[:3], groups=y)
    facts = [fact for fact in describe(data) if fact[0] != "warning"]
    assert len({subject for subject, _ in facts}) == len(facts)
    said = dict(facts)
    assert said["classes"] == f"51: {', '.join(map(str, range(51)))}"
    assert said["rows of a class"] == "2 to 2 (51 of 51 classes) to train on, 1 to 2 (2 of 51 classes) to test"
    assert facts[-1][0] == "digest"


def test_no_model_that_is_there_takes_tokens() -> None:
    with pytest.raises(ModelError, match="no built-in model takes tokens: .*--models file.py:build"):
        resolve("cnn")((80,), 4, 16)
    with pytest.raises(ModelError, match="no built-in model takes tokens"):
        measure(resolve("mlp")((80,), 4, 16), torch.zeros(2, 80, dtype=torch.int64))
