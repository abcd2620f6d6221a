"""What the tests of downloads publish, and the web they publish it on."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass, field

import numpy as np

from interfuse.data.fetch import RemoteFile
from interfuse.data.formats import read_idx

FOLDER, TORCHVISION = "tiny", "Tiny/raw"


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


@dataclass
class Web:
    """A local web server: what it serves, how it misbehaves, and what it was asked for."""

    url: str
    contents: dict[str, bytes] = field(default_factory=dict)
    cut_once_at: dict[str, int] = field(default_factory=dict)
    ranges: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)


@dataclass(frozen=True)
class Published:
    """A small file as its authors would publish it."""

    array: np.ndarray
    unpacked: bytes
    packed: bytes
    file: RemoteFile


def publish(array: np.ndarray, *bases: str, name: str = "train-images-idx3-ubyte.gz") -> Published:
    unpacked = idx_bytes(array)
    packed = gzip.compress(unpacked, mtime=0)
    hashes = (hashlib.sha256(part).hexdigest() for part in (packed, unpacked))
    return Published(array, unpacked, packed, RemoteFile(FOLDER, TORCHVISION, name, *hashes, bases, read_idx))
