"""Tiny archives in the formats that data sets are published in, written here from the descriptions of the formats."""

from __future__ import annotations

import bz2
import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from interfuse.data.formats import HAR_SIGNALS

MAT_CODES = {"uint8": (9, 2), "int16": (10, 3), "float64": (6, 9)}  # array class, type of the values


def cifar_bytes(images: np.ndarray, *labels: np.ndarray) -> bytes:
    return np.concatenate([*(row[:, None] for row in labels), images.reshape(len(images), -1)], axis=1).tobytes()


def tar_gz(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, contents in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            archive.addfile(info, io.BytesIO(contents))
    return gzip.compress(packed.getvalue(), mtime=0)


def zipped(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, contents in files.items():
            archive.writestr(name, contents)
    return packed.getvalue()


def mat_bytes(arrays: Mapping[str, np.ndarray], *, compressed: bool = True) -> bytes:
    """A MAT file of version 5 with one matrix an array."""
    body = b""
    for name, array in arrays.items():
        kind, code = MAT_CODES[array.dtype.name]
        matrix = _element(6, struct.pack("<II", kind, 0)) + _element(5, np.array(array.shape, "<i4").tobytes())
        matrix += _element(1, name.encode()) + _element(code, array.tobytes(order="F"))
        element = _element(14, matrix)
        if compressed:
            squeezed = zlib.compress(element)
            element = struct.pack("<II", 15, len(squeezed)) + squeezed  # not padded
        body += element
    return b"MATLAB 5.0 MAT-file".ljust(116) + bytes(8) + b"\x00\x01IM" + body


def _element(code: int, contents: bytes) -> bytes:
    if 0 < len(contents) <= 4:
        return struct.pack("<HH", code, len(contents)) + contents.ljust(4, b"\0")
    return struct.pack("<II", code, len(contents)) + contents + bytes(-len(contents) % 8)


def libsvm_bz2(thousandths: np.ndarray, labels: np.ndarray, *, sparse: bool) -> bytes:
    lines = []
    for image, label in zip(thousandths.reshape(len(labels), -1), labels, strict=True):
        pixels = (f"{i}:{value / 1000:g}" for i, value in enumerate(image, 1) if value or not sparse)
        lines.append(" ".join([str(label + 1), *pixels]) + " \n")
    return bz2.compress("".join(lines).encode())


def jpeg(image: np.ndarray) -> bytes:
    """Of ``[height, width, 3]``, or of a grey one ``[height, width]``."""
    packed = io.BytesIO()
    Image.fromarray(image).save(packed, "JPEG", quality=95, subsampling=0)
    return packed.getvalue()


def tiny_imagenet_files(
    train: Mapping[str, Sequence[np.ndarray]], held: Sequence[tuple[str, np.ndarray]], words: Mapping[str, str]
) -> dict[str, bytes]:
    """Images by class, those of the validation part with their class, and the words of all classes there are."""
    root = "tiny-imagenet-200"
    files = {
        f"{root}/wnids.txt": "".join(f"{number}\n" for number in reversed(sorted(train))).encode(),
        f"{root}/words.txt": "".join(f"{number}\t{text}\n" for number, text in words.items()).encode(),
        f"{root}/test/images/test_0.JPEG": jpeg(np.zeros((64, 64, 3), np.uint8)),
    }
    for number, images in train.items():
        files[f"{root}/train/{number}/{number}_boxes.txt"] = b""
        for place, image in reversed([*enumerate(images)]):
            files[f"{root}/train/{number}/images/{number}_{place}.JPEG"] = jpeg(image)
    for place, (_, image) in enumerate(held):
        files[f"{root}/val/images/val_{place}.JPEG"] = jpeg(image)
    lines = [f"val_{place}.JPEG\t{number}\t0\t0\t62\t62\n" for place, (number, _) in enumerate(held)]
    files[f"{root}/val/val_annotations.txt"] = "".join(lines).encode()
    return files


def har_zip(windows: np.ndarray, labels: np.ndarray, people: np.ndarray, test: np.ndarray, *, nested: bool) -> bytes:
    def text(values: np.ndarray) -> bytes:
        return "".join(" ".join(f"{value: .7e}" for value in row) + "\n" for row in values).encode()

    files = {}
    for part, rows in (("train", ~test), ("test", test)):
        for number, signal in enumerate(HAR_SIGNALS):
            files[f"UCI HAR Dataset/{part}/Inertial Signals/{signal}_{part}.txt"] = text(windows[rows, number])
        for name, values in (("y", labels + 1), ("subject", people)):
            column = "".join(f"{value}\n" for value in values[rows])
            files[f"UCI HAR Dataset/{part}/{name}_{part}.txt"] = column.encode()
    inner = zipped(files)
    return zipped({"UCI HAR Dataset.names": b"", "UCI HAR Dataset.zip": inner}) if nested else inner
