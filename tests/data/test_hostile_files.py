"""Every reader meets every hostile file: what it says is one typed error, soon, and no memory is taken for it."""

from __future__ import annotations

import io
import itertools
import json
import os
import runpy
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from interfuse.cli.serving import predict
from interfuse.data import Dataset, ReadOptions, read_path
from interfuse.data.readers import READERS
from interfuse.data.readers.images import Notes, read_images
from interfuse.errors import ConfigError, DataError, InterfuseError
from interfuse.opening import content, json_in, opened, to_add_to
from interfuse.runs import read_config
from interfuse.toml import read_toml


def npz(**arrays: bytes) -> bytes:
    """An archive of members with these bytes."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in arrays.items():
            archive.writestr(f"{name}.npy", data)
    return made.getvalue()


def npy(shape: str, dtype: str = "<f8", data: bytes = b"") -> bytes:
    """An array whose header says anything."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (64 - (len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin1") + data


def whole(array: np.ndarray) -> bytes:
    made = io.BytesIO()
    np.save(made, array)
    return made.getvalue()


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A picture that says that it has any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def encrypted(archive: bytes) -> bytes:
    """The same archive with the mark of encrypted members in both headers."""
    data = bytearray(archive)
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(signature)
        while at >= 0:
            data[at + place] |= 1
            at = data.find(signature, at + 4)
    return bytes(data)


def parquet_of(columns: dict[str, object]) -> bytes:
    made = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), made)
    return made.getvalue()


DEEP = 200_000
GOOD = npz(x=whole(np.zeros((4, 2), np.float32)), y=whole(np.zeros(4, np.int64)))
TABLE = parquet_of({"a": [1.0, 2.0], "label": [0, 1]})
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n%%EndComments\n/x (id) def\nshowpage\n%%EOF\n"
CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "zeros": b"\0" * 4096,
    "no text": b"\xff\xfe\xfa" * 100,
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "deep mappings": b'{"users":' * DEEP,
    "deep users": b'{"users": ' + b"[" * DEEP,
    "a large number": b'{"users": ["a"], "num_samples": [1], "user_data": {"a": {"x": [[1e999]], "y": [1]}}}',
    "a field of a megabyte": b"a,label\n" + b"x" * (1 << 20) + b",1\n2,3\n",
    "an open quote": b'a,label\n"' + b"1,2\n" * 1000,
    "many columns": b",".join(b"c%d" % n for n in range(5000)) + b"\n1,2\n",
    "a label of 2**62": b"a,label\n1,4611686018427387904\n2,0\n",
    "10**12 numbers": npz(x=npy("(1000000000000,)"), y=npy("(4,)", "<i8", b"\0" * 32)),
    "-1 numbers": npz(x=npy("(-1,)"), y=npy("(4,)", "<i8", b"\0" * 32)),
    "a header that is code": npz(x=npy("__import__('os').abort()"), y=whole(np.zeros(4))),
    "a deep header": npz(x=npy("(" * 2000), y=whole(np.zeros(4))),
    "objects": npz(x=npy("(4,)", "|O", b"\x80\x04."), y=whole(np.zeros(4))),
    "labels of 2**62": npz(x=whole(np.zeros((2, 2))), y=whole(np.array([0, 2**62]))),
    "a bomb": npz(x=b"\0" * (64 << 20), y=whole(np.zeros(4))),
    "encrypted members": encrypted(GOOD),
    "an archive cut off": GOOD[: len(GOOD) // 2],
    "a picture of 10**18 points": png(10**9, 10**9),
    "a picture of 2**28 points": png(1 << 14, 1 << 14),
    "a picture cut off": png(4, 4, b"\0" * 7),
    "a program for Ghostscript": EPS,
    "a table cut off": TABLE[:-20],
    "a table with another end": TABLE[:-12] + b"\xff\xff\xff\x7f" + b"\0\0\0\0PAR1",
    "a table of other bytes": TABLE[:40] + b"\xff" * (len(TABLE) - 48) + TABLE[-8:],
    "safetensors of 2**60 bytes": struct.pack("<Q", 2**60) + b"{}",
}


def put(path: Path, how: bytes | str) -> None:
    """A file with such content, or something that is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(how, bytes):
        path.write_bytes(how)
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    else:
        path.symlink_to(how)


PLACES: dict[str, tuple[str, ...]] = {
    "LEAF's JSON": ("train/all.json", "one.json"),
    "HtFLlib's or PFLlib's folder": ("train/0.npz",),
    "UCI HAR's folder": ("train/Inertial Signals/body_acc_x_train.txt", "activity_labels.txt"),
    "a data set of datasets": ("dataset_info.json", "state.json", "data-00000-of-00001.arrow", "train.parquet"),
    "an .npz of arrays": ("rows.npz",),
    "a CSV or Parquet table": ("rows.csv", "rows.tsv", "rows.parquet"),
    "a folder of images by class": ("cat/1.png", "dog/1.jpg"),
}
"""Where a file of a format lies in its folder."""
KINDS: dict[str, bytes | str] = CONTENTS | {
    "a pipe": "pipe",
    "a folder": "folder",
    "a device": "/dev/zero",
    "a link to nothing": "none",
}
HARMLESS = ("many columns", "a field of a megabyte", "a label of 2**62", "labels of 2**62")
"""Large or odd, and data."""
OPTIONS = (ReadOptions(), ReadOptions(classes=("0", "1")), ReadOptions(task="regression"))


def outcome(path: Path, options: ReadOptions) -> tuple[str, Dataset | None]:
    """What is said of a path, or what it is; settings that a format does not take are said to be so."""
    try:
        return "", read_path(path, options)
    except DataError as error:
        return str(error), None
    except ConfigError:
        return path.stem, None


def test_every_reader_meets_every_file(tmp_path: Path) -> None:
    tried, places = 0, [place for names in PLACES.values() for place in names]
    assert len(PLACES) == len(READERS)
    for number, (what, how) in enumerate(KINDS.items()):
        for place in places:
            root = tmp_path / str(number) / place.replace("/", "-")
            put(root / place, how)
            if place.startswith("train/Inertial"):
                put(root / "train" / "y_train.txt", b"1\n")
            if place.endswith((".arrow", ".json")) and "/" not in place and place != "one.json":
                others = {"dataset_info.json", "state.json", "data-00000-of-00001.arrow"} - {place}
                for other in others:
                    put(root / other, b'{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
            for path, reader, options in itertools.product((root, root / place), READERS, OPTIONS):
                if path.exists() and reader.recognises(path):
                    tried += 1
                    said, found = outcome(path, options)
                    assert found is None or (what in HARMLESS and found.classes in (0, 1, 2)), (what, path)
                    assert found is not None or path.stem in said, (what, path)
    assert tried > 600, tried


@pytest.mark.parametrize("mode", ["P", "RGB"])
def test_no_picture_reaches_another_program(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow takes an EPS for a picture whatever its name is, and has Ghostscript carry it out."""
    started: list[object] = []
    monkeypatch.setattr("subprocess.check_call", lambda *asked, **options: started.append(asked))
    for name in ("a.png", "a.jpg", "a.tif"):
        (tmp_path / name).write_bytes(EPS)
        with pytest.raises(DataError, match="is no image"):
            read_images([(name, tmp_path / name)], Notes())
    assert not started


def toml(text: str) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        path.write_text(text)
        return read_toml(path)

    return read


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 100_000, "[" + "a." * 2000 + "a]", "a = {a = " * 20_000, "a = '\0'", "a = 1e", "\ufeff="]
)
def test_settings_that_are_deep_or_no_settings(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="file.toml"):
        toml(text)(tmp_path / "file.toml")
    with pytest.raises(ConfigError, match="file.toml"):
        read_config(tmp_path / "file.toml")


def test_what_is_no_file_is_never_waited_for(tmp_path: Path) -> None:
    """Neither for reading nor for adding to it, and what a link points to is not touched."""
    ways = {"a pipe": "pipe", "a folder": "folder", "a device": "/dev/zero", "a link": str(tmp_path / "to")}
    for what, how in ways.items():
        path = tmp_path / what
        put(path, how)
        for reading in (content, json_in, opened, to_add_to):
            if what == "a link" and reading is not to_add_to:
                (tmp_path / "to").write_text("1")
                continue
            with pytest.raises(OSError, match="not a file"):
                reading(path)
    assert (tmp_path / "to").read_text() == "1"
    with pytest.raises(OSError, match="more than 3 bytes"):
        (tmp_path / "long").write_bytes(b"1234")
        content(tmp_path / "long", 3)
    (tmp_path / "deep").write_bytes(CONTENTS["deep lists"])
    with pytest.raises(ValueError, match="too deep"):
        json_in(tmp_path / "deep")
    assert json.loads((tmp_path / "to").read_text()) == 1


@pytest.mark.parametrize("what", KINDS)
def test_samples_to_predict(what: str, tmp_path: Path) -> None:
    for name in ("samples.npy", "samples.csv", "samples.parquet"):
        put(tmp_path / name, KINDS[what])
        with pytest.raises(InterfuseError):
            predict([tmp_path / name], model=tmp_path / "none")
    for artefact in ("manifest.json", "program.json", "weights.safetensors", "SHA256SUMS"):
        folder = tmp_path / artefact.partition(".")[0]
        put(folder / artefact, KINDS[what])
        with pytest.raises(InterfuseError):
            predict([tmp_path / "samples.npy"], model=folder)


def test_changed_files_are_refused_or_data(tmp_path: Path) -> None:
    """A few of the tries of benchmarks/fuzz_files.py."""
    fuzz = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks/fuzz_files.py"))["fuzz"]
    found = fuzz(300, 1, tmp_path)
    assert {*found} <= {"data", "refused"}, found
    assert min(found.values()) > 10
