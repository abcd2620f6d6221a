"""What axes are, what float32 holds, samples brought at inference, and groups that stay whole."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interfuse.data import (
    IID,
    Dataset,
    Natural,
    Normalisation,
    ReadOptions,
    describe,
    load,
    load_table,
    make_shares,
    read_path,
)
from interfuse.errors import ConfigError, DataError

Y = np.arange(40) % 2


def made(x: np.ndarray, **more: Any) -> Dataset:
    y = Y[: len(x)]
    return Dataset.from_arrays("made", x, y, x[:2], y[:2], **more)


@pytest.mark.parametrize(
    ("dtype", "sample", "shape", "kept"),
    [
        ("f4", (28, 28), (1, 28, 28), "float32"), ("u1", (6, 5), (1, 6, 5), "uint8"),
        ("u2", (8, 9), (1, 8, 9), "float32"),
        ("f4", (3, 8, 8), (3, 8, 8), "float32"), ("f4", (13, 8, 8), (13, 8, 8), "float32"),
        ("u1", (32, 24, 3), (3, 32, 24), "uint8"), ("f4", (16, 16, 4), (4, 16, 16), "float32"),
        ("u1", (9, 9, 1), (1, 9, 9), "uint8"), ("i8", (3, 8, 8), (3, 8, 8), "uint8"),
        ("f8", (5,), (5,), "float32"), ("i8", (5,), (5,), "int64"), ("?", (5,), (5,), "float32"),
    ],
)  # fmt: skip
def test_axes_that_have_one_reading(dtype: str, sample: tuple[int, ...], shape: tuple[int, ...], kept: str) -> None:
    x = np.random.default_rng(0).integers(0, 200, (4, *sample)).astype(dtype)
    found = made(x)
    assert (found.shape, str(found.x_train.dtype)) == (shape, f"torch.{kept}")
    wanted = np.moveaxis(x, -1, 1) if len(sample) == 3 and shape != sample else x
    assert torch.equal(found.x_train.double(), torch.from_numpy(wanted.astype(np.float64)).reshape(4, *shape))


@pytest.mark.parametrize(
    ("dtype", "sample", "layouts"),
    [
        ("f4", (9, 64), ("images", "signals")), ("f4", (30, 20), ("images", "signals")),
        ("u1", (9, 128), ("images", "signals")), ("i8", (28, 28), ("images", "signals")),
        ("f4", (3, 32, 3), ("images", "images-last")), ("u1", (64, 64, 13), ("images", "images-last")),
    ],
)  # fmt: skip
def test_axes_that_have_two_readings_are_asked_about(dtype: str, sample: tuple[int, ...], layouts: Any) -> None:
    x = np.random.default_rng(0).integers(0, 200, (4, *sample)).astype(dtype)
    with pytest.raises(DataError, match=f"say layout='{layouts[0]}' or layout='{layouts[1]}'"):
        made(x)
    shapes = {
        "images": (1, *sample) if len(sample) == 2 else sample, "signals": sample,
        "images-last": (sample[-1], *sample[:-1]),
    }  # fmt: skip
    for layout in layouts:
        assert made(x, layout=layout).shape == shapes[layout]


def test_whole_numbers_are_a_table_where_it_is_said_or_some_are_below_zero() -> None:
    x = np.arange(20).reshape(4, 5)
    assert made(x, layout="table").x_train.dtype == torch.float32
    assert made(x - 3).x_train.dtype == torch.float32
    assert ("layout", "whole numbers below 0, so quantities and no tokens") in describe(made(x - 3))
    assert made(x.astype(np.uint16), layout="tokens").x_train.dtype == torch.int64
    assert made(np.zeros((4, 16, 9)), layout="signals-last").shape == (9, 16)
    with pytest.raises(DataError, match="layout 'table' has 2 axes, but x_train has shape"):
        made(np.zeros((4, 5, 5)), layout="table")
    with pytest.raises(DataError, match="tokens are whole numbers"):
        made(np.zeros((4, 5)), layout="tokens")


def test_what_float32_cannot_tell_apart_is_refused() -> None:
    small = np.random.default_rng(0).normal(size=(40, 2))
    for offset in (1.6e9, -3e12):
        with pytest.raises(DataError, match=r"x_train\[:, 1\] varies by .* float32 cannot tell apart"):
            made(small + np.array([0, offset]))
    with pytest.raises(DataError, match="too large for float32"):
        made(small * np.array([1, 1e40]))
    with pytest.raises(DataError, match=r"x_train\[:, 0\] varies by .* float32 cannot tell apart"):
        made(10**17 + np.arange(80).reshape(40, 2), layout="table")
    with pytest.raises(DataError, match=r"x_train\[3, 1\] has no finite value"):
        made(np.where(np.arange(80).reshape(40, 2) == 7, np.nan, small))
    with pytest.raises(DataError, match="y_train varies by"):
        Dataset.from_arrays("made", small, 1e9 + small[:, 0], small, small[:, 0])
    constant = made(small * np.array([1, 0]) + np.array([0, 1.6e9 + 0.1]))
    assert constant.normalise(constant.x_train)[:, 1].unique().tolist() == [0.0]


@pytest.mark.parametrize("ratio", [10.0, 200.0, 5000.0])
def test_large_offsets_are_subtracted_before_they_are_scaled(ratio: float) -> None:
    x = (np.random.default_rng(0).normal(size=(40, 2)) * 100 + np.array([ratio * 100, 0])).astype(np.float32)
    z = made(x).normalise(torch.from_numpy(x))
    wanted = (x.astype(np.float64) - x.mean(0, dtype=np.float64)) / x.std(0, dtype=np.float64)
    np.testing.assert_allclose(z, wanted, atol=1e-3 if ratio > 1000 else 1e-4)
    per_image = Normalisation(255.0, (1.0,), (0.001,))(torch.full((2, 1, 2, 2), 255, dtype=torch.uint8))
    assert per_image.abs().max() == 0


class TestSamplesThatSomebodyBrings:
    def test_of_bytes(self) -> None:
        data = made(np.random.default_rng(0).integers(0, 256, (4, 8, 8), np.uint8))
        kept = data.stored(np.full((1, 8, 8), 200))
        assert (kept.dtype, kept.shape) == (torch.uint8, (1, 1, 8, 8))
        for x, problem in (
            (np.full((1, 8, 8), 0.5), r"0 to 255 \(uint8\), found float64 from 0.5 to 0.5"),
            (np.full((1, 8, 8), 300), "found some from 300"),
            (np.full((1, 8, 8), np.nan), "sample 0 has a value that is not"),
            (np.zeros((1, 7, 8), np.uint8), r"expected samples \[batch, 1, 8, 8\], found \(1, 7, 8\)"),
        ):  # fmt: skip
            with pytest.raises(DataError, match=problem):
                data.stored(x)

    def test_of_floats(self) -> None:
        data = made(np.random.default_rng(0).random((4, 8, 8)))
        assert data.stored(np.full((1, 8, 8), 1.5)).dtype == torch.float32
        with pytest.raises(DataError, match="found uint8; bring them"):
            data.stored(np.full((1, 8, 8), 200, np.uint8))
        with pytest.raises(DataError, match="found 200, but training rows go from 0.* in another unit"):
            data.stored(np.full((1, 8, 8), 200.0))
        large = made(np.random.default_rng(0).random((4, 8, 8)) * 255)
        with pytest.raises(DataError, match="samples go from 0.*in another unit"):
            large.stored(np.random.default_rng(1).random((1, 8, 8)))

    def test_of_tokens(self) -> None:
        data = made(np.arange(20).reshape(4, 5))
        assert data.stored([[1, 2, 3, 4, 5]]).dtype == torch.int64
        for x in (np.zeros((1, 5)), np.full((1, 5), -1)):
            with pytest.raises(DataError, match="numbers of tokens"):
                data.stored(x)

    def test_of_a_table_by_name(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text("age,sex,label\n40,0,x\n50,1,y\n")
        data = load_table(tmp_path / "t.csv", "label")
        assert data.stored({"age": [45], "sex": [1]}).tolist() == [[45, 1]]
        for x, problem in (
            ({"sex": [1], "age": [45]}, "are in another order; the model takes, in this order, age, sex"),
            ({"age": [45]}, "lacks sex"), ({"age": [1], "sex": [1], "id": [1]}, "has also id"),
        ):  # fmt: skip
            with pytest.raises(DataError, match=problem):
                data.stored(x)
        with pytest.raises(DataError, match=r"expected samples \[batch, 2\] \(age, sex\), found \(1, 3\)"):
            data.stored([[1, 2, 3]])
        with pytest.raises(DataError, match="column 0: found 4500, but training rows go from 40 to 50"):
            data.stored([[4500, 1]])


class TestGroupsStayWhole:
    def windows(self, tmp_path: Path, **arrays: Any) -> Dataset:
        rng = np.random.default_rng(0)
        np.savez(tmp_path / "w.npz", x=rng.normal(size=(120, 3, 20)), y=np.arange(120) % 3, channels="first", **arrays)
        return load(tmp_path / "w.npz")

    @pytest.mark.parametrize("name", ["groups", "people", "subject", "blocks"])
    def test_in_the_fifth_that_is_held_out(self, name: str, tmp_path: Path) -> None:
        who = np.repeat(np.arange(10), 12)
        found = self.windows(tmp_path, **{name: who})
        numbers = found.blocks if name == "blocks" else found.groups
        assert numbers is not None
        assert (len(found.y_test), found.shape) == (24, (3, 20))
        stay = set(numbers.tolist())
        with np.load(tmp_path / "w.npz") as arrays:
            held = {int(who[(arrays["x"].astype(np.float32) == x).all((1, 2))][0]) for x in found.x_test.numpy()}
        assert (len(stay), len(held)) == (8, 2)
        assert not stay & held

    @pytest.mark.parametrize("name", ["people", "blocks"])
    @pytest.mark.parametrize("partition", [IID(), Natural()])
    def test_in_the_shares_of_a_client(self, name: str, partition: Any, tmp_path: Path) -> None:
        who = np.array([f"p{i // 6}" for i in range(120)])
        found = self.windows(tmp_path, **{name: who} | ({"people": who} if isinstance(partition, Natural) else {}))
        numbers = found.groups if found.blocks is None else found.blocks
        assert numbers is not None
        for share in make_shares(found, partition, 3, seed=0):
            train, validation, test = (
                set(numbers[rows].tolist()) for rows in (share.train, share.validation, share.test)
            )
            assert min(map(len, (train, validation, test))) > 0
            assert not train & (validation | test)
            assert not validation & test

    def test_but_for_a_client_that_is_one_person(self, tmp_path: Path) -> None:
        found = self.windows(tmp_path, people=np.repeat(np.arange(5), 24))
        for share in make_shares(found, Natural(), 4, seed=0):
            assert [len(rows) for rows in (share.train, share.validation, share.test)] == [20, 2, 2]

    def test_one_group_alone_cannot_be_held_out(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="all rows are of one group"):
            self.windows(tmp_path, people=np.zeros(120))
        with pytest.raises(DataError, match="has groups and people: say which"):
            self.windows(tmp_path, people=np.zeros(120), groups=np.zeros(120))
        with pytest.raises(DataError, match=r"has no array 'who': .*people"):
            load(tmp_path / "w.npz", group="who") if self.windows(tmp_path, people=np.arange(120) % 4) else None

    def test_a_column_of_a_table_says_whose_rows_are(self, tmp_path: Path) -> None:
        rows = "".join(f"{i / 7},{'ABCDE'[i % 5]},{'xy'[i // 5 % 2]}\n" for i in range(50))
        (tmp_path / "t.csv").write_text("a,site,label\n" + rows)
        found = load(tmp_path / "t.csv", group="site")
        assert (found.columns, len(found.y_train), len(found.y_test)) == (("a",), 40, 10)
        assert ("test rows", "the rows of 1 of 5 groups, whole: the source has no test rows") in describe(found)
        with pytest.raises(ConfigError, match="layout means nothing for a table"):
            load(tmp_path / "t.csv", layout="table")


def test_an_npz_says_what_its_arrays_are(tmp_path: Path) -> None:
    def read(**arrays: Any) -> Dataset:
        np.savez(tmp_path / "t.npz", **arrays)
        return load(tmp_path / "t.npz")

    x, y = np.arange(100).reshape(20, 5), np.arange(20) % 2
    with pytest.raises(DataError, match="columns of a table or numbers of tokens: say layout=table"):
        read(x=x, y=y)
    assert read(x=x, y=y, layout="table").x_train.dtype == torch.float32
    assert read(x=x, y=y, layout=b"tokens").x_train.dtype == torch.int64
    assert load(tmp_path / "t.npz", layout="table").x_train.dtype == torch.float32
    assert read(x=x / 2, y=y, class_names=["no", "yes"], ids=y).class_names == ("no", "yes")
    assert ("left out", "ids: not among the names that are read") in describe(load(tmp_path / "t.npz"))
    turned, straight = (read_path(tmp_path / "t.npz", ReadOptions(classes=names)) for names in (("1", "0"), ("0", "1")))
    assert (turned.y_train.tolist(), straight.y_train.tolist()) == ((1 - y).tolist(), y.tolist())
    assert read(x=np.zeros((20, 8, 8, 2)), y=y, channels="last").shape == (2, 8, 8)
    with pytest.raises(DataError, match="channels is 'middle'"):
        read(x=np.zeros((20, 8, 8, 2)), y=y, channels="middle")
    with pytest.raises(DataError, match="holds both x and X"):
        read(x=x / 2, X=x / 2, y=y)
    with pytest.raises(DataError, match="y has shape"):
        read(x=x / 2, y=1)


def test_whole_numbers_are_pixels_where_training_and_test_rows_are(tmp_path: Path) -> None:
    x, y = np.arange(20 * 3 * 8 * 8).reshape(20, 3, 8, 8) % 256, np.arange(20) % 2
    np.savez(tmp_path / "t.npz", x=x, y=y)
    assert load(tmp_path / "t.npz").x_train.dtype == torch.uint8
    made = Dataset.from_arrays("made", x, y, x[:2] + 1000, y[:2])
    assert made.x_train.dtype == made.x_test.dtype == torch.float32


def test_an_npz_names_its_classes(tmp_path: Path) -> None:
    def read(names: Any, **options: Any) -> Dataset:
        np.savez(tmp_path / "t.npz", x=np.arange(60).reshape(20, 3) / 7, y=np.arange(20) % 2, class_names=names)
        return read_path(tmp_path / "t.npz", ReadOptions.of(options))

    assert read(np.array([b"no", b"yes"])).class_names == ("no", "yes")
    turned = read(["no", "yes"], classes=["yes", "no"])
    assert (turned.class_names, turned.y_train[:2].tolist()) == (("yes", "no"), [1, 0])
    with pytest.raises(DataError, match="class 'yes', which is not among no, maybe"):
        read(["no", "yes"], classes=["no", "maybe"])
    with pytest.raises(DataError, match="class_names has shape"):
        read("no")


@pytest.mark.parametrize("shape", [(2**44, 2), (10**30, 2)])
def test_an_npz_that_claims_more_than_there_is_memory(shape: tuple[int, ...], tmp_path: Path) -> None:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": shape})
    unfinished = b"\x93NUMPY\x01\x00\x05\x00((((("
    for content in (head.getvalue(), unfinished):
        with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive:
            archive.writestr("x.npy", content)
        with pytest.raises(DataError, match="cannot read"):
            load(tmp_path / "t.npz")


def test_an_npz_with_a_text_in_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", x=np.zeros((3, 2)))
    with zipfile.ZipFile(tmp_path / "t.npz", "a") as archive:
        archive.writestr("y", "hello")
    with pytest.raises(DataError, match="y is no array"):
        load(tmp_path / "t.npz")
