"""Folders that ``datasets.save_to_disk`` writes and Parquet files of the hub, written here without that package."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from interfuse.data import Dataset
from interfuse.data.readers import read_path
from interfuse.data.reading import ReadOptions
from interfuse.errors import DataError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

RNG = np.random.default_rng(0)
CATS = {"label": {"names": ["cat", "dog", "eel"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}


def saved(folder: Path, *tables: pa.Table, features: Mapping[str, Any] = {}, split: str | None = "train") -> Path:
    """A folder of ``save_to_disk`` with a file for each table."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{number:05}-of-{len(tables):05}.arrow" for number in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    state = {"_data_files": [{"filename": name} for name in names], "_indices_data_files": None, "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


def picture(pixels: np.ndarray) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return {"bytes": file.getvalue(), "path": "0.png"}


def pictures(rows: int, labels: list[int], size: int = 4, **more: Any) -> tuple[pa.Table, np.ndarray]:
    pixels = RNG.integers(0, 256, (rows, size, size, 3), np.uint8)
    return pa.table({"image": [*map(picture, pixels)], "label": labels, **more}), np.moveaxis(pixels, -1, 1)


def numbers(rows: int, **more: Any) -> pa.Table:
    return pa.table({"x": RNG.random((rows, 3)).tolist(), "label": np.arange(rows) % 2, **more})


def loaded(path: Path, **options: Any) -> Dataset:
    return read_path(path, ReadOptions(**options))


def test_a_list_column_in_two_files(tmp_path: Path) -> None:
    one, two = numbers(4), numbers(5)
    data = loaded(saved(tmp_path / "hf", one, two))
    np.testing.assert_allclose(data.x_train, one["x"].to_pylist() + two["x"].to_pylist(), rtol=1e-6)
    assert data.y_train.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert (len(data.y_test), data.columns, data.name) == (0, ("x[0]", "x[1]", "x[2]"), "hf")
    single = loaded(tmp_path / "hf/data-00001-of-00002.arrow")
    assert single.y_train.tolist() == [0, 1, 0, 1, 0]
    assert dict(single.reading.facts)["warning"] == "by its name this is one of 2 files; give the folder for all"


def test_pictures_with_names_of_classes_and_two_splits(tmp_path: Path) -> None:
    (train, x), (held, x_held) = pictures(5, [2, 0, 0, 2, 0]), pictures(2, [1, 0])
    for split, table in (("train", train), ("test", held), ("validation", held)):
        saved(tmp_path / "d" / split, table, features=CATS, split=split)
    (tmp_path / "d/dataset_dict.json").write_text('{"splits": ["train", "validation", "test"]}')
    data = loaded(tmp_path / "d")
    np.testing.assert_array_equal(data.x_train, x)
    np.testing.assert_array_equal(data.x_test, x_held)
    assert (data.shape, data.x_train.dtype) == ((3, 4, 4), torch.uint8)
    assert (data.class_names, data.y_train.tolist(), data.y_test.tolist()) == (
        ("cat", "dog", "eel"),
        [2, 0, 0, 2, 0],
        [1, 0],
    )
    facts = dict(data.reading.facts)
    assert (facts["split test"], facts["left out"]) == ("2 rows: the test rows", "the splits validation")


@pytest.mark.parametrize("folder", ["data", "plain_text", "."])
def test_parquet_files_of_the_hub(folder: str, tmp_path: Path) -> None:
    (one, x), (two, x_two), (held, _) = pictures(2, [0, 1]), pictures(1, [1]), pictures(3, [1, 1, 0])
    said = {b"huggingface": json.dumps({"info": {"features": CATS}}).encode()}
    (tmp_path / folder).mkdir(exist_ok=True)
    for name, table in (
        ("train-00001-of-00002-0a1b", two),
        ("train-00000-of-00002-9f8e", one),
        ("validation-00000-of-00001", held),
    ):
        parquet.write_table(table.replace_schema_metadata(said), tmp_path / folder / f"{name}.parquet")
    data = loaded(tmp_path)
    np.testing.assert_array_equal(data.x_train, np.concatenate([x, x_two]))
    assert (data.y_train.tolist(), data.y_test.tolist()) == ([0, 1, 1], [1, 1, 0])
    assert data.class_names == ("cat", "dog", "eel")
    single = loaded(tmp_path / folder / "train-00001-of-00002-0a1b.parquet")
    assert (len(single.y_train), dict(single.reading.facts)["warning"]) == (
        1,
        "by its name this is one of 2 files; give the folder for all",
    )


def test_arrays_of_several_axes(tmp_path: Path) -> None:
    values = RNG.random((6, 2, 5))
    table = pa.table({"signal": values.tolist(), "label": [0, 1] * 3, "person": ["a", "b", "b", "c", "a", "a"]})
    path = saved(tmp_path / "hf", table)
    with pytest.raises(DataError, match="beside column 'signal' there are person: leave out .* drop=person"):
        loaded(path)
    data = loaded(path, group="person", layout="signals")
    np.testing.assert_allclose(data.x_train, values, rtol=1e-6)
    assert (data.shape, data.groups.tolist()) == ((2, 5), [0, 1, 1, 2, 0, 0])


def test_several_columns_of_classes_are_asked_about(tmp_path: Path) -> None:
    fine = {"names": ["a", "b", "c"], "_type": "ClassLabel"}
    table, _ = pictures(3, [0, 1, 2], coarse_label=[0, 0, 1])
    table = table.rename_columns(["img", "fine_label", "coarse_label"])
    path = saved(tmp_path / "cifar", table, features={"fine_label": fine, "coarse_label": fine})
    with pytest.raises(DataError, match="which column holds the labels"):
        loaded(path)
    with pytest.raises(DataError, match="beside column 'img' there are coarse_label"):
        loaded(path, label=("fine_label",))
    assert loaded(path, label=("coarse_label",), drop=("fine_label",)).class_names == ("a", "b", "c")


def test_the_only_column_of_classes_is_the_label(tmp_path: Path) -> None:
    path = saved(tmp_path / "hf", numbers(4).rename_columns(["x", "kind"]), features={"kind": CATS["label"]})
    assert loaded(path).class_names == ("cat", "dog", "eel")
    two_lists = saved(tmp_path / "two", numbers(4, embedding=RNG.random((4, 2)).tolist()))
    assert loaded(two_lists, drop=("embedding",)).columns == ("x[0]", "x[1]", "x[2]")
    assert loaded(two_lists).shape == (5,)


def without_end(path: Path) -> None:
    file = path / "data-00000-of-00002.arrow"
    file.write_bytes(file.read_bytes()[:-8])


def cut(path: Path) -> None:
    file = path / "data-00001-of-00002.arrow"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def rewritten(name: str, content: str) -> Callable[[Path], object]:
    return lambda path: (path / name).write_text(content)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (without_end, r"data-00000-of-00002.arrow does not end as an Arrow file does: it is cut off"),
        (cut, r"data-00001-of-00002.arrow does not end"),
        (lambda path: (path / "data-00001-of-00002.arrow").unlink(), "cannot read .*data-00001-of-00002.arrow"),
        (lambda path: (path / "data-00001-of-00002.arrow").write_bytes(b"\xff" * 4 + bytes(4)), "cannot read .*arrow"),
        (rewritten("state.json", "{"), "cannot read .*state.json"),
        (rewritten("state.json", "[]"), "state.json: it holds no mapping"),
        (rewritten("state.json", '{"_data_files": [{}]}'), "state.json names no data files"),
        (rewritten("state.json", '{"_data_files": [{"filename": "../../x.arrow"}]}'), "which is in another folder"),
        (
            rewritten("state.json", '{"_data_files": [], "_indices_data_files": [{"filename": "i"}]}'),
            "call flatten_indices",
        ),
        (rewritten("dataset_info.json", "nothing"), "cannot read .*dataset_info.json"),
        (rewritten("dataset_dict.json", "{}"), "names no splits"),
        (rewritten("dataset_dict.json", '{"splits": ["train"]}'), "cannot read .*train.state.json"),
    ],
)
def test_damage(damage: Callable[[Path], object], problem: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "hf", numbers(4), numbers(4))
    damage(path)
    with pytest.raises(DataError, match=problem):
        loaded(path)


@pytest.mark.parametrize(
    ("table", "features", "problem"),
    [
        (pa.table({"x": [[1.0], [1.0, 2.0]], "label": [0, 1]}), {}, "different length: 1 in train row 1, 2 in"),
        (pa.table({"x": [[[1.0]], [[1.0, 2.0]]], "label": [0, 1]}), {}, "'x' is arrays of different shapes"),
        (pa.table({"x": [1.0, None], "label": [0, 1]}), {}, "'x' has no value in train row 2"),
        (pa.table({"x": [1.0, 2.0], "label": [0, -1]}), CATS, "train row 2 has no value for column 'label'"),
        (pa.table({"x": [1.0, 2.0], "label": [0, None]}), CATS, "train row 2 has no value for column 'label'"),
        (pa.table({"x": [1.0, 2.0], "label": [0, 3]}), CATS, "'label' has the class 3 in train row 2, but its names"),
        (pa.table({"text": ["a b", "c d"], "label": [0, 1]}), {}, "column 'text' is not all numbers.*drop=text"),
        (pa.table({"image": ["0.png", "1.png"], "label": [0, 1]}), CATS, "'image' is Image by the name of a file"),
        (
            pa.table({"image": [picture(np.eye(2, dtype=np.uint8)), {"bytes": None, "path": "1"}], "label": [0, 1]}),
            CATS,
            "'image' has no picture in train row 2, only the name",
        ),
        (
            pa.table({"image": [picture(np.zeros((n, 2), np.uint8)) for n in (2, 3)], "label": [0, 1]}),
            CATS,
            r"'image', train row 2 has shape \(3, 2\), but .* train row 1 \(2, 2\)",
        ),
        (
            pa.table({"image": [{"bytes": b"no picture", "path": None}] * 2, "label": [0, 1]}),
            CATS,
            "'image', train row 1 is no image that can be read",
        ),
        (pa.table({"x": [1.0], "y": [2.0]}), {}, "which column holds the labels. Say label=NAME .*it has x, y"),
    ],
)
def test_columns_that_cannot_be_read(
    table: pa.Table, features: Mapping[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=problem):
        loaded(saved(tmp_path / "hf", table, features=features))


def test_what_is_not_whole_or_not_one_data_set(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    parquet.write_table(numbers(2), tmp_path / "data/train-00000-of-00002.parquet")
    with pytest.raises(DataError, match="lacks file 1 of the 2 of train"):
        loaded(tmp_path)
    parquet.write_table(numbers(2), tmp_path / "data/train-00001-of-00003.parquet")
    with pytest.raises(DataError, match="does not belong to the other files of train"):
        loaded(tmp_path)
    shutil.rmtree(tmp_path / "data")
    for folder in ("de", "en"):
        (tmp_path / folder).mkdir()
        parquet.write_table(numbers(2), tmp_path / folder / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match="several data sets: give one of .*de, .*en"):
        loaded(tmp_path)
    parquet.write_table(numbers(2, more=[0, 1]), tmp_path / "de/test-00000-of-00001.parquet")
    with pytest.raises(DataError, match="differ in their columns"):
        loaded(tmp_path / "de")


def test_a_column_that_points_outside_of_its_file(tmp_path: Path) -> None:
    folder = saved(tmp_path / "d", pa.table({"a": [1.5, 2], "label": ["ab", "cd"]}))
    offsets, wrong = (np.array([0, 2, end], "<i4").tobytes() for end in (4, 2**30))
    (file,) = folder.glob("*.arrow")
    assert offsets in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(offsets, wrong))
    with pytest.raises(DataError, match="cannot read .*arrow"):
        loaded(folder)


def test_numbers_of_tokens_stay_whole(tmp_path: Path) -> None:
    table = pa.table({"ids": [[2**31, 2, 3], [4, 5, 6]], "label": [0, 1]})
    data = loaded(saved(tmp_path / "d", table), layout="tokens")
    assert isinstance(data.x_train, torch.Tensor)
    assert (data.x_train.dtype, data.x_train[0].tolist()) == (torch.int64, [2**31, 2, 3])
    with pytest.raises(DataError, match="'a' holds no whole numbers, so no tokens"):
        loaded(saved(tmp_path / "e", pa.table({"a": [1.5, 2], "label": [0, 1]})), layout="tokens")


def test_a_split_is_a_folder_beside(tmp_path: Path) -> None:
    saved(tmp_path / "secret", numbers(4))
    (tmp_path / "d").mkdir()
    (tmp_path / "d/dataset_dict.json").write_text('{"splits": ["../secret"]}')
    with pytest.raises(DataError, match="names the split '../secret'"):
        loaded(tmp_path / "d")


def test_a_column_called_label_is_not_passed_over(tmp_path: Path) -> None:
    sex = {"sex": {"names": ["f", "m"], "_type": "ClassLabel"}}
    table = pa.table({"a": [1.5, 2, 3], "sex": [0, 1, 0], "label": [0, 2, 1]})
    with pytest.raises(DataError, match="label=sex has classes by name, but there is 'label' too"):
        loaded(saved(tmp_path / "d", table, features=sex))
    assert loaded(tmp_path / "d", drop=("label",)).class_names == ("f", "m")


def test_classes_that_are_texts_already(tmp_path: Path) -> None:
    named = {"label": {"names": ["b", "a"], "_type": "ClassLabel"}}
    table = pa.table({"a": [1.5, 2], "label": ["a", "b"]})
    assert loaded(saved(tmp_path / "d", table, features=named)).y_train.tolist() == [1, 0]
