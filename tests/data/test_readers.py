"""Folders of images by class, and tables with a column of labels."""

from __future__ import annotations

import datetime
import decimal
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from interfuse.data import (
    Classification,
    Dataset,
    MultiLabel,
    ReadOptions,
    Regression,
    describe,
    load,
    load_folder,
    load_table,
    read_path,
)
from interfuse.data.readers import arrays
from interfuse.errors import ConfigError, DataError

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


def test_arrays_are_read_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """NumPy parses their headers as Python's literals, which CPython 3.11 does not always manage in two threads."""
    np.savez(tmp_path / "rows.npz", x=np.eye(4), y=np.arange(4) % 2)
    at_it, free, check = threading.Lock(), list[bool](), arrays.check_archive

    def check_alone(file: Any) -> None:
        free.append(at_it.acquire(blocking=False))
        time.sleep(0.05)  # the other thread comes meanwhile, where it may
        check(file)
        at_it.release()

    monkeypatch.setattr(arrays, "check_archive", check_alone)
    with ThreadPoolExecutor(2) as pool:
        assert len({len(one.x_train) for one in pool.map(load, [str(tmp_path / "rows.npz")] * 2)}) == 1
    assert free == [True, True]


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


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a,a,label\n1,2,x\n", "1 column names twice: a;"), ("a,label,label\n1,x,y\n", "names twice: label"),
        (" a,a ,label\n1,2,x\n", "names twice: a"), ("\ufeffa,a,label\n1,2,x\n", "names twice: a"),
        ("a,label\n1,x\n2\n", "line 3 has 1 values; every row needs 2 values"),
        ('a,label\n"1\n1",x\n2\n', "line 4 has 1 values"), ('a,label\n"1,x\n', "cannot read"),
        ("a,label\n1,x\n\n,y\n", "column 'a' has no value in line 4"), ("a,label\nNA,x\n2,y\n", r"line 2 \('NA'\)"),
        ("a,label\n1,x\ninf,y\n", "column 'a' has the value inf, which is not finite, in line 3"),
        ("a,label\n1,x\n1e39,y\n", "column 'a' has the value 1e.39, which is too large"),
        ("a;label\n1,5;x\n", r"column 'a' is not all numbers: '1,5' in line 2 \(numbers have a decimal point"),
        ('a,label\n"1,234",x\n', "'1,234' in line 2"), ("a,label\n1_000,x\n", "'1_000' in line 2"),
        ("a,b,label\nF,x,1\nM,2,0\n", "column 'a' .*'F' in line 2; column 'b' .*'x' in line 2.* drop=a,b"),
        ("a,label\n" + "".join(f"P{i},x\n" for i in range(30)), "another text in every row .*identifies rows"),
        ("5.1,3.5,label\n1,2,x\n", "first line holds numbers"), ("1,2\n3,4\n", "first line holds numbers"),
        ("a,label\n", "no rows below its head line"), ("a,,label\n1,2,x\n", "column 2 has no name"),
        ("t,label\n" + "".join(f"{1_600_000_000 + i},{i % 2}\n" for i in range(50)), "float32 cannot tell apart"),
        ("a,label\n" + "".join(f"{10**17 + i},{i % 2}\n" for i in range(9)), "column 'a' .* float64 cannot tell apart"),
        ("a,label\n1,\0\n", "line 2 has no value for column 'label'"),
        ("a,b\n1,2\n", "which column holds the labels. Say label=NAME .*it has a, b"),
    ],
)  # fmt: skip
def test_a_csv_that_would_lose_something_is_refused_by_line_and_column(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=problem):
        load(tmp_path / "rows.csv")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes("a,label\n1,schön\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"is not in UTF-8 \(byte 13\)"):
        load_table(tmp_path / "rows.csv", "label")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\ufeffa;label\n1.5;x\n2;y\n", ("delimiter", "semicolon")), ("a\tlabel\n1.5\tx\n2\ty\n", ("delimiter", "tab")),
        (",a,label\n0,1.5,x\n1,2,y\n", ("left out", "the first column, which has no name and counts the rows")),
        ("id,a,label\nP1,1.5,x\nP2,2,y\n", ("left out", "id, as said")),
        (" a , label\n1.5, x\n2,y \n", ("label", "label, by its name")),
    ],
)  # fmt: skip
def test_a_csv_of_another_form_is_read_and_said(text: str, said: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(text, encoding="utf-8")
    drop = ["id"] if text.startswith("id") else []
    found = read_path(tmp_path / "rows.csv", ReadOptions(drop=tuple(drop)))
    assert found.x_train.tolist() == [[1.5], [2.0]]
    assert (found.class_names, found.columns) == (("x", "y"), ("a",))
    assert found.reading is not None
    assert said in found.reading.facts


def test_truths_are_numbers_and_identifiers_that_are_numbers_are_said(tmp_path: Path) -> None:
    rows = "".join(f"{5000 + 7 * i},{i % 3 == 0},{i % 4},{'xy'[i % 2]}\n" for i in range(24))
    (tmp_path / "rows.csv").write_text("number,smokes,site_id,label\n" + rows)
    found = load_table(tmp_path / "rows.csv", "label")
    assert found.x_train[:4, 1].tolist() == [1, 0, 0, 1]
    said = [text for subject, text in describe(found) if subject in ("columns", "warning")]
    assert said == [
        "number, smokes, site_id; true is 1 and false 0 in smokes",
        "number: an identifier, by name or by another number in each row? If so, drop",
        "does site_id say whose a row is? group=site_id keeps its rows together, drop=site_id leaves it out",
    ]


def test_parquet_types_are_numbers_or_refused_by_column(tmp_path: Path) -> None:
    day = datetime.date(2020, 1, 1)
    good: dict[str, Any] = {
        "flag": [True, False], "price": [decimal.Decimal("1.25"), decimal.Decimal(2)], "list": [[1.0, 2.0], [3.0, 4.0]],
        "whole": pyarrow.array([1, 2], pyarrow.uint8()),
        "label": pyarrow.array(["b", "a"]).dictionary_encode(),
    }  # fmt: skip
    parquet.write_table(pyarrow.table(good), tmp_path / "good.parquet")
    found = load_table(tmp_path / "good.parquet", "label")
    assert found.columns == ("flag", "price", "list[0]", "list[1]", "whole")
    assert found.x_train.tolist() == [[1, 1.25, 1, 2, 1], [0, 2, 3, 4, 2]]
    assert found.y_train.tolist() == [1, 0]
    bad: dict[str, Any] = {
        "day": [day, day], "ragged": [[1.0], [1.0, 2.0]], "deep": [[[1.0]], [[2.0]]], "record": [{"a": 1}, {"a": 2}],
        "empty": pyarrow.nulls(2), "text": ["u", "v"], "gap": [1.0, None], "hole": [[1.0], [None]],
    }  # fmt: skip
    parquet.write_table(pyarrow.table(bad | {"label": ["a", "b"]}), tmp_path / "bad.parquet")
    with pytest.raises(DataError) as caught:
        load_table(tmp_path / "bad.parquet", "label")
    for name in bad:
        assert f"column {name!r} " in str(caught.value) or f"column '{name}[0]' " in str(caught.value)
    rest = [name for name in bad if name != "day"]
    with pytest.raises(DataError, match="day' is date32.*so it is no label"):
        load_table(tmp_path / "bad.parquet", "day", drop=rest)
    twice = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"])
    parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="names twice: a"):
        load_table(tmp_path / "twice.parquet", "a")


def saved(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deep_grey_images_keep_their_values(dtype: type, tmp_path: Path) -> None:
    values = np.arange(12).reshape(3, 4) * 5000
    ending = "png" if dtype == np.uint16 else "tif"
    saved(tmp_path / "a" / f"1.{ending}", values.astype(dtype))
    saved(tmp_path / "b" / f"1.{ending}", (values[::-1]).astype(dtype))
    found = load_folder(tmp_path)
    assert found.x_train.dtype == torch.float32
    assert found.x_train[0, 0].tolist() == values.tolist()
    assert found.mean == pytest.approx((values.mean(),))


def test_images_that_would_lose_something_are_refused_by_name(tmp_path: Path) -> None:
    grey, colour = np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.uint8)
    half = np.dstack([colour, np.full((4, 4), 128, np.uint8)])
    cases = {
        "alpha": (half, "transparent pixels"), "grey-alpha": (half[..., 2:], "transparent pixels"),
        "large": (np.full((4, 4), 2**25 + 1, np.int32), "float32 cannot hold"),
        "nan": (np.full((4, 4), np.nan, np.float32), "float32 cannot hold"),
    }  # fmt: skip
    for name, (values, problem) in cases.items():
        file = saved(tmp_path / name / "a" / ("1.tif" if values.dtype.itemsize == 4 else "1.png"), values)
        with pytest.raises(DataError, match=rf"{file.name} .*{problem}"):
            load_folder(tmp_path / name)
    saved(tmp_path / "mixed" / "a" / "1.png", grey)
    saved(tmp_path / "mixed" / "b" / "1.png", np.full((4, 4), 300, np.uint16))
    with pytest.raises(DataError, match="mixed/b/1.png is grey of 16 bits.*mixed/a/1.png is grey"):
        load_folder(tmp_path / "mixed")
    (tmp_path / "pages" / "a").mkdir(parents=True)
    Image.fromarray(grey).save(tmp_path / "pages/a/1.gif", save_all=True, append_images=[Image.fromarray(grey + 9)])
    with pytest.raises(DataError, match="several pictures"):
        load_folder(tmp_path / "pages")
    (tmp_path / "deep" / "a").mkdir(parents=True)
    (tmp_path / "deep/a/1.ppm").write_bytes(b"P6 2 2 65535 " + bytes(24))
    with pytest.raises(DataError, match="16 bits a colour"):
        load_folder(tmp_path / "deep")
    (tmp_path / "cmyk" / "a").mkdir(parents=True)
    Image.new("CMYK", (4, 4)).save(tmp_path / "cmyk/a/1.jpg")
    with pytest.raises(DataError, match="mode CMYK"):
        load_folder(tmp_path / "cmyk")


def test_opaque_alpha_palettes_and_orientation_are_read(tmp_path: Path) -> None:
    opaque = np.dstack([np.arange(12, dtype=np.uint8).reshape(2, 2, 3), np.full((2, 2), 255, np.uint8)])
    saved(tmp_path / "a" / "1.png", opaque)
    Image.fromarray(opaque[..., :3]).quantize(4).save(tmp_path / "a" / "2.png")
    found = load_folder(tmp_path)
    assert found.x_train[0].permute(1, 2, 0).tolist() == opaque[..., :3].tolist()
    assert found.shape == (3, 2, 2)
    picture = Image.fromarray(np.array([[1, 2]], np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "turned" / "a").mkdir(parents=True)
    picture.save(tmp_path / "turned/a/1.png", exif=exif)
    turned = load_folder(tmp_path / "turned")
    assert turned.x_train[0, 0].tolist() == [[1], [2]]
    assert ("images", "1 turned as their EXIF orientation says; 1 grey") in describe(turned)


def test_debris_is_left_out_at_every_level_and_said(tmp_path: Path) -> None:
    for name in (
        "cat/1.png",
        "dog/1.png",
        ".ipynb_checkpoints/1.png",
        "@eaDir/1.png",
        "__MACOSX/cat/1.png",
        "dog/.x.png",
    ):
        image(tmp_path / name, 1)
    for name in ("cat/Thumbs.db", "cat/.DS_Store", "desktop.ini", "README.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "owl").mkdir()
    found = load_folder(tmp_path)
    assert (found.class_names, len(found.y_train)) == (("cat", "dog"), 2)
    said = "\n".join(text for subject, text in describe(found) if subject == "left out")
    for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX", ".x.png", "Thumbs.db", "desktop.ini", "README.txt", "owl"):
        assert name in said


MACOS = (".DS_Store", "._1.png", "._.DS_Store", "Icon\r", ".localized", ".Spotlight-V100/x", "__MACOSX/cat/._1.png")
WINDOWS = ("Thumbs.db", "thumbs.db", "desktop.ini", "Desktop.ini", "ehthumbs.db", "$RECYCLE.BIN/S-1/desktop.ini")
OTHERS = (".directory", ".Trash-1000/info", "System Volume Information/x", "@eaDir/1.png@SynoEAStream", "lost+found/#1")


@pytest.mark.parametrize("name", [*MACOS, *WINDOWS, *OTHERS])
@pytest.mark.parametrize("place", ["", "train", "val", "train/cat", "val/dog"])
def test_what_systems_leave_is_no_image_at_any_depth(tmp_path: Path, place: str, name: str) -> None:
    for image_of in ("train/cat/1.png", "train/dog/1.png", "val/cat/1.png", "val/dog/1.png"):
        image(tmp_path / "clean" / image_of, 1)
    shutil.copytree(tmp_path / "clean", tmp_path / "left")
    left = tmp_path / "left" / place / name
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"\x00\x05\x16\x07" + bytes(100))  # as AppleDouble begins
    clean, found = load(tmp_path / "clean"), load(tmp_path / "left")
    assert (found.class_names, found.digest) == (clean.class_names, clean.digest)
    assert found.x_train.tolist() == clean.x_train.tolist()
    assert any(
        "hidden, or left by a file browser" in text for subject, text in describe(found) if subject == "left out"
    )


def test_train_and_val_above_the_classes_are_a_split(tmp_path: Path) -> None:
    for name in ("train/2/1.png", "train/10/1.png", "train/10/2.png", "val/10/1.png"):
        image(tmp_path / name, 1)
    found = load(tmp_path)
    assert (found.class_names, found.y_train.tolist(), found.y_test.tolist()) == (("2", "10"), [1, 1, 0], [1])
    assert ("warning", "no test row has 2") in describe(found)
    image(tmp_path / "val/3/1.png", 1)
    with pytest.raises(DataError, match="the class '3' has test images"):
        load_folder(tmp_path)
    (tmp_path / "val/3/1.png").unlink()
    image(tmp_path / "other/1.png", 1)
    with pytest.raises(DataError, match="has the folder train of classes beside other"):
        load_folder(tmp_path)
    image(tmp_path / "alone/train/a/1.png", 1)
    (tmp_path / "alone/val").mkdir()
    assert load_folder(tmp_path / "alone").class_names == ("a",)
    image(tmp_path / "loose/1.png", 1)
    image(tmp_path / "loose/a/1.png", 1)
    with pytest.raises(DataError, match=r"the image 1.png lies in no subfolder"):
        load_folder(tmp_path / "loose")
    for name in ("train/1.png", "car/1.png"):
        image(tmp_path / "vehicles" / name, 1)
    assert load_folder(tmp_path / "vehicles").class_names == ("car", "train")


def test_options_that_mean_nothing_for_a_format_are_refused(tmp_path: Path) -> None:
    image(tmp_path / "cat" / "1.png", 1)
    with pytest.raises(ConfigError, match="label means nothing for a folder of images"):
        load(tmp_path, label="x")
    with pytest.raises(ConfigError, match="drop means nothing for what is no file"):
        load("digits", drop="x")
    with pytest.raises(ConfigError, match="layout 'image': did you mean 'images'"):
        ReadOptions.of({"layout": "image"})
    with pytest.raises(ConfigError, match="no option 'lable' of reading: did you mean 'label'"):
        ReadOptions.of({"lable": "x"})
    options = {"label": "a, b", "classes": ["x"], "group": "g"}
    assert ReadOptions.of(ReadOptions.of(options).values()) == ReadOptions(("a", "b"), ("x",), None, "g")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="notes.txt is not .* or a folder of images by class"):
        load(tmp_path / "notes.txt")


def test_only_the_column_that_is_named_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("days,days[open],kind\n1.5,2.5,a\n3,4,b\n")
    assert load_table(tmp_path / "t.csv", "kind", drop=["days"]).columns == ("days[open]",)


def test_tabs_of_a_tsv(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("size, cm\tweight, kg\tkind\n1.5\t2.5\ta\n3\t4\tb\n")
    assert load_table(tmp_path / "t.tsv", "kind").columns == ("size, cm", "weight, kg")


def test_texts_of_parquet_that_are_none(tmp_path: Path) -> None:
    offsets = pyarrow.py_buffer(np.array([0, 2, 4], "<i4").tobytes())
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, offsets, pyarrow.py_buffer(b"\xff\xfeab")])
    parquet.write_table(pyarrow.table({"a": [1.5, 2], "kind": texts}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="Invalid UTF8"):
        load_table(tmp_path / "t.parquet", "kind")


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"classes": "a,a"}, "a name twice"), ({"label": 3}, "one or several names"), ({"drop": ""}, "one or several")],
)
def test_options_that_mean_nothing(options: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        ReadOptions.of(options)


def test_a_blank_may_be_a_character() -> None:
    assert ReadOptions.of({"classes": ["a", " ", " b "]}).classes == ("a", " ", "b")
