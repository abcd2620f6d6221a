"""Readers against files written by the tests, and what they say of files that are something else."""

from __future__ import annotations

import bz2
import gzip
import io

import numpy as np
import pytest
from archives import cifar_bytes, har_zip, libsvm_bz2, mat_bytes, tar_gz, zipped

from interfuse.data.formats import (
    read_cifar,
    read_cifar_archive,
    read_har_archive,
    read_libsvm_images,
    read_mat,
    read_npz,
)
from interfuse.errors import DataError

RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.integers(0, 256, (5, 3, 32, 32), np.uint8), np.array([3, 0, 9, 9, 1], np.uint8)


def test_cifar_planes_are_red_green_blue() -> None:
    record = bytes([7]) + bytes([1]) * 1024 + bytes([2]) * 1024 + bytes([3]) * 1024
    images, labels = read_cifar(record, "x")
    assert (images.shape, labels.tolist()) == ((1, 3, 32, 32), [7])
    assert [set(plane.flatten().tolist()) for plane in images[0]] == [{1}, {2}, {3}]


def test_cifar_archives() -> None:
    coarse = LABELS + 20
    raw = gzip.decompress(
        tar_gz({
            "a/two.bin": cifar_bytes(IMAGES[2:], coarse[2:], LABELS[2:]), "a/notes.html": b"<p>",
            "a/one.bin": cifar_bytes(IMAGES[:2], coarse[:2], LABELS[:2]),
            "a/test.bin": cifar_bytes(IMAGES[3:], coarse[3:], LABELS[3:]),
        })
    )  # fmt: skip
    x, y, x_test, y_test = read_cifar_archive(["a/one.bin", "a/two.bin"], "a/test.bin", label_bytes=2)(raw, "x")
    np.testing.assert_array_equal(x, IMAGES)
    np.testing.assert_array_equal(y, LABELS)
    np.testing.assert_array_equal(x_test, IMAGES[3:])
    np.testing.assert_array_equal(y_test, LABELS[3:])
    with pytest.raises(DataError, match=r"x has no 'a/three.bin': it holds a/two.bin"):
        read_cifar_archive(["a/three.bin"], "a/test.bin", 2)(raw, "x")
    with pytest.raises(DataError, match="a/notes.html is no file of CIFAR's binary version"):
        read_cifar_archive(["a/notes.html"], "a/test.bin", 2)(raw, "x")
    for bad in (b"rubbish", raw[:700]):
        with pytest.raises(DataError, match="x "):
            read_cifar_archive(["a/one.bin"], "a/test.bin", 2)(bad, "x")


@pytest.mark.parametrize("compressed", [True, False])
def test_mat(compressed: bool) -> None:
    arrays = {
        "X": RNG.integers(0, 256, (4, 3, 2, 5), np.uint8), "y": np.array([[10], [1], [2], [10], [3]], np.uint8),
        "z": RNG.normal(size=(3, 1)), "one": np.array([[-7]], np.int16),
    }  # fmt: skip
    raw = mat_bytes(arrays, compressed=compressed)
    for names in (("X", "y"), ("one", "z", "X")):
        for name, found in zip(names, read_mat(*names)(raw, "x"), strict=True):
            np.testing.assert_array_equal(found, arrays[name])
    with pytest.raises(DataError, match="x has no 'w': it holds X, y, z, one"):
        read_mat("w")(raw, "x")


def test_what_is_no_mat_file() -> None:
    raw = mat_bytes({"X": IMAGES})
    big_endian = raw[:126] + b"MI" + raw[128:]
    for bad in (b"", b"rubbish" * 40, big_endian, raw[:-9], raw[:140], raw[:150] + b"\xff" + raw[151:]):
        with pytest.raises(DataError, match="x (is|has)"):
            read_mat("X")(bad, "x")


@pytest.mark.parametrize("sparse", [True, False])
def test_libsvm(sparse: bool) -> None:
    thousandths = RNG.integers(-1000, 1001, (6, 16, 16)).astype(np.int16)
    thousandths[0, 0] = 0
    labels = np.array([9, 0, 4, 4, 1, 2], np.uint8)
    found = read_libsvm_images(bz2.decompress(libsvm_bz2(thousandths, labels, sparse=sparse)), "x")
    np.testing.assert_array_equal(found[0], thousandths)
    np.testing.assert_array_equal(found[1], labels)


@pytest.mark.parametrize("raw", [b"1 257:0.5\n", b"1 a:0.5\n", b"1 3\n", b"x 1:0.5\n", b"\xff\xfe"])
def test_what_is_no_libsvm(raw: bytes) -> None:
    with pytest.raises(DataError, match="x does not hold images"):
        read_libsvm_images(raw, "x")


@pytest.mark.parametrize("nested", [True, False])
def test_har(nested: bool) -> None:
    windows = RNG.normal(size=(4, 9, 128)).astype(np.float32)
    labels, people = np.array([0, 5, 2, 2], np.uint8), np.array([1, 2, 30, 4], np.uint8)
    test = np.array([False, True, False, True])
    found = read_har_archive(har_zip(windows, labels, people, test, nested=nested), "x")
    order = [0, 2, 1, 3]  # training rows first
    np.testing.assert_allclose(found[0], windows[order], rtol=1e-6)
    assert [part.tolist() for part in found[1:]] == [labels[order].tolist(), people[order].tolist()]
    assert found[0].dtype == np.float32


@pytest.mark.parametrize("raw", [b"rubbish", zipped({"UCI HAR Dataset/train/y_train.txt": b"1\n"})])
def test_what_is_no_har(raw: bytes) -> None:
    with pytest.raises(DataError, match="x is no archive of UCI HAR"):
        read_har_archive(raw, "x")


def test_npz() -> None:
    file = io.BytesIO()
    np.savez(file, a=IMAGES, b=LABELS)
    a, b = read_npz("a", "b")(file.getvalue(), "x")
    np.testing.assert_array_equal(a, IMAGES)
    np.testing.assert_array_equal(b, LABELS)
    file = io.BytesIO()
    np.savez(file, a=np.array([{}], object))
    for raw in (file.getvalue(), b"rubbish", b""):
        with pytest.raises(DataError, match="x is no .npz with a, b"):
            read_npz("a", "b")(raw, "x")
