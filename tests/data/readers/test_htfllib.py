"""HtFLlib's and PFLlib's folders: converted to what was in them, and no pickle can do anything."""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interfuse.data import Natural, load, make_shares
from interfuse.data.readers import htfllib, pickled, read_path
from interfuse.data.readers.htfllib import convert
from interfuse.data.readers.pickled import arrays_of
from interfuse.data.reading import ReadOptions
from interfuse.errors import DataError

RNG = np.random.default_rng(0)
CONFIG = {"num_clients": 3, "num_classes": 5, "non_iid": True, "partition": "dir", "alpha": 0.1}


def client(rows: int, labels: int = 4) -> dict[str, np.ndarray]:
    return {"x": RNG.random((rows, 1, 4, 4)).astype(np.float32), "y": RNG.integers(0, labels, rows)}


def folder(path: Path, sizes: tuple[int, ...] = (8, 1, 5), config: Any = CONFIG) -> dict[str, dict[str, np.ndarray]]:
    held = {}
    for part in ("train", "test"):
        (path / part).mkdir(parents=True)
        for number, rows in enumerate(sizes):
            held[f"{part}/{number}"] = client(rows)
            np.savez_compressed(path / part / f"{number}.npz", data=held[f"{part}/{number}"])
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return held


def packed(path: Path, stream: bytes, header: bytes | None = None) -> None:
    """A client's file with this pickle in it."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|O", "fortran_order": False, "shape": ()})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.npy", (head.getvalue() if header is None else header) + stream)


def as_numpy_pickles(value: object, protocol: int = 4) -> bytes:
    whole = np.empty((), object)
    whole[()] = value
    return pickle.dumps(whole, protocol=protocol)


def test_a_folder_is_never_read_but_converted(tmp_path: Path) -> None:
    source = tmp_path / "MNIST"
    held = folder(source)
    for path in (source, source / "train", source / "test"):
        with pytest.raises(DataError, match="holds pickles, .* convert it once: interfuse convert .*MNIST MNIST.npz"):
            read_path(path, ReadOptions())
    facts = convert(source, tmp_path / "out.npz")
    assert facts == [
        "3 clients, 14 training rows float32 [1, 4, 4]",
        "14 test rows of all clients: the common test set; with --test source each client has its own of them",
        "5 classes, of which nobody has [4]",
    ]
    data = load(str(tmp_path / "out.npz"))
    np.testing.assert_array_equal(data.x_train, np.concatenate([held[f"train/{c}"]["x"] for c in range(3)]))
    np.testing.assert_array_equal(data.y_test, np.concatenate([held[f"test/{c}"]["y"] for c in range(3)]))
    shares = make_shares(data, Natural(), 3, 0)
    own = {tuple(data.y_train[share.rows].tolist()) for share in shares}
    assert own == {tuple(held[f"train/{c}"]["y"].tolist()) for c in range(3)}
    for share in make_shares(data, Natural(), 3, 0, validation=0.0, test="source"):
        client = int(data.groups[share.train[0]])
        assert data.y_train[share.train].tolist() == held[f"train/{client}"]["y"].tolist()
        assert data.y_test[share.held].tolist() == held[f"test/{client}"]["y"].tolist()
        assert not len(share.test)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        assert arrays["class_names"].tolist() == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("code", ["<f4", ">f8", "|u1", "<i8", "<f2", ">i4"])
def test_arrays_of_all_types_and_orders(protocol: int, code: str) -> None:
    x = (RNG.random((5, 3, 2)) * 100).astype(code)
    for array in (x, np.asfortranarray(x), x[:0], np.empty((0, 7), code)):
        stream = as_numpy_pickles({"x": array, "y": array.ravel()}, protocol)
        found = arrays_of(stream, "file")
        assert [found[name].dtype for name in "xy"] == [array.dtype] * 2
        np.testing.assert_array_equal(found["x"], array)
        np.testing.assert_array_equal(found["y"], array.ravel())


def test_names_of_numpy_1_are_known() -> None:
    stream = as_numpy_pickles({"x": np.arange(6.0).reshape(2, 3), "y": np.arange(2)}, protocol=3)
    old = stream.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != stream
    np.testing.assert_array_equal(arrays_of(old, "file")["x"], np.arange(6.0).reshape(2, 3))


class Calls:
    """What calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Builds:
    """What calls the ``__setstate__`` of an array with a state of one's own."""

    def __init__(self, *state: object) -> None:
        self.state = state

    def __reduce__(self) -> Any:
        from numpy._core.multiarray import _reconstruct

        return _reconstruct, (np.ndarray, (0,), b"b"), self.state


def nested(depth: int) -> tuple[Any, ...]:
    value: tuple[Any, ...] = ()
    for _ in range(depth):
        value = (value,)
    return value


F4 = np.dtype("f4")
GOOD = np.zeros((2, 3), np.float32)
HOSTILE: dict[str, tuple[object, str]] = {
    "a command": (Calls(os.system, "touch ran"), "it would call posix.system"),
    "code": (Calls(eval, "open('ran', 'w')"), "it would call builtins.eval"),
    "code in an array": ({"x": GOOD, "y": Calls(exec, "open('ran', 'w')")}, "it would call builtins.exec"),
    "a function of numpy": (Calls(np.fromfile, "ran"), "it would call numpy.fromfile"),
    "a loader": (Calls(pickle.loads, as_numpy_pickles(Calls(os.system, "touch ran"))), "it would call _pickle.loads"),
    "a method of a class": (Calls(getattr, GOOD, "tofile"), "it would call builtins.getattr"),
    "an array of objects": ({"x": np.array([[1], [2, 3]], object), "y": GOOD}, "array of objects, such as texts"),
    "texts": ({"x": np.array(["a", "b"]), "y": GOOD}, "'U1', which is no type of numbers"),
    "a record": ({"x": np.zeros(2, "f4,O"), "y": GOOD}, "no type of numbers"),
    "a huge type": (Calls(np.dtype, "S2000000000", False, True), "no type of numbers"),
    "a type of objects": (Calls(np.dtype, "O", False, True), "'O', which is no type of numbers"),
    "another call of a type": (Calls(np.dtype, {"names": ["a"]}), "calls a function of NumPy as no array does"),
    "a huge array": (Builds(1, (2**40,), F4, False, b"0000"), "more or fewer bytes than its shape needs"),
    "a negative size": (Builds(1, (-1, -1), F4, False, b"0000"), "more or fewer bytes"),
    "sizes that overflow": (Builds(1, (2**62, 4, 0), F4, False, b""), "no dictionary of arrays of numbers"),
    "a buffer that is none": (Builds(1, (1,), F4, False, [1]), "list where bytes is needed"),
    "a state that is short": (Builds(1, (1,), F4), "no dictionary of arrays of numbers"),
    "a list": ({"x": [1, 2], "y": GOOD}, "'x' is no array of numbers"),
    "a number as name": ({1: GOOD}, "int where str is needed"),
    "no dictionary": (GOOD, "holds no dictionary"),
    "a set": ({"x": {1}, "y": GOOD}, "the instruction EMPTY_SET, which no array needs"),
    "a class": ({"x": Path, "y": GOOD}, "it would call pathlib"),
    "a deep tuple": ({"x": nested(200), "y": GOOD}, "'x' is no array of numbers"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_in_a_pickle_is_called(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    value, problem = HOSTILE[name]
    folder(Path("d"))
    for stream in (as_numpy_pickles(value), pickle.dumps(value, protocol=4)):
        packed(Path("d/train/1.npz"), stream)
        with pytest.raises(DataError, match=r"^d.train.1\.npz"):
            convert(Path("d"), Path("out.npz"))
    packed(Path("d/train/1.npz"), as_numpy_pickles(value))
    with pytest.raises(DataError, match=problem):
        convert(Path("d"), Path("out.npz"))
    assert not Path("ran").exists()
    assert not Path("out.npz").exists()


def instructions(*names: str) -> bytes:
    codes = {instruction.name: instruction.code.encode("latin1") for instruction in pickletools.opcodes}
    return b"".join(codes[name] for name in names)


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"\x80\x04",
        instructions("STOP"),
        instructions("REDUCE", "STOP"),
        instructions("EMPTY_TUPLE", "BUILD", "STOP"),
        instructions("TUPLE", "STOP"),
        instructions("EMPTY_DICT", "APPEND", "STOP"),
        instructions("EMPTY_TUPLE", "EMPTY_TUPLE", "STACK_GLOBAL", "STOP"),
        instructions("MARK", "EMPTY_DICT", "TUPLE3", "STOP"),
        b"h\x05.",  # a memory that nobody wrote
        b"cos\nsystem\n(S'touch ran'\ntR.",  # in the oldest protocol
        b"c\n\n.",
        b"\x8b\xff\xff\xff\x7f",  # a number of two thousand million bytes that are not there
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"Pid\n.",
        instructions("EMPTY_LIST", "MEMOIZE") + b"h\x00" + instructions("APPEND", "STOP"),  # a list of itself
    ],
)
def test_programs_that_no_pickler_writes(stream: bytes) -> None:
    with pytest.raises(DataError):
        arrays_of(stream, "file")


def test_a_bomb_of_small_objects() -> None:
    with pytest.raises(DataError, match="more instructions than arrays need"):
        arrays_of(b"\x80\x04" + b"}" * 10**6 + b".", "file")
    assert pickled.MOST_STEPS <= 10**4


def test_a_bomb_of_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "d")
    monkeypatch.setattr(htfllib, "LARGEST", 10**6)
    packed(tmp_path / "d/train/1.npz", bytes(2 * 10**6))
    assert (tmp_path / "d/train/1.npz").stat().st_size < 10**4
    with pytest.raises(DataError, match="unpacks to 2,000,[0-9]+ bytes, more than the 1,000,000 of a client"):
        convert(tmp_path / "d", tmp_path / "out.npz")


STREAM = as_numpy_pickles({"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": np.arange(2)})


@settings(max_examples=400, deadline=None)
@given(at=st.integers(0, len(STREAM) - 1), cut=st.booleans(), byte=st.binary(max_size=4))
def test_a_damaged_pickle_is_arrays_or_refused(at: int, cut: bool, byte: bytes) -> None:
    damaged = STREAM[:at] + byte + (b"" if cut else STREAM[at + len(byte) :])
    try:
        found = arrays_of(damaged, "file")
    except DataError:
        return
    assert all(array.dtype.kind in "iuf" for array in found.values())


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda d: (d / "train/2.npz").unlink(), "client 2 has a file in one of train and test only"),
        (lambda d: [(d / part / "2.npz").unlink() for part in ("train", "test")], "says 3 clients, but train/ has 2"),
        (lambda d: (d / "train/0.npz").write_bytes((d / "train/0.npz").read_bytes()[:300]), "cannot read .*0.npz"),
        (lambda d: (d / "test/0.npz").write_bytes(b""), "cannot read .*test.0.npz"),
        (lambda d: np.savez(d / "train/1.npz", x=GOOD), "1.npz: it holds x.npy, not data"),
        (lambda d: np.savez(d / "train/1.npz", data=GOOD), "holds an array of float32 with shape"),
        (lambda d: np.savez(d / "train/1.npz", data={"x": GOOD}), "1.npz holds x; it needs x and y alone"),
        (lambda d: np.savez(d / "train/1.npz", data=client(3) | {"y": np.zeros(2, int)}), "one y for each row of x"),
        (lambda d: np.savez(d / "train/1.npz", data=client(3) | {"y": np.zeros(3)}), "y is float64; it needs whole"),
        (lambda d: np.savez(d / "train/1.npz", data=client(3) | {"y": np.array([0, 1, -1])}), "go from -1 to 1"),
        (lambda d: np.savez(d / "train/1.npz", data=client(3) | {"y": np.array([0, 1, 2**40])}), "classes, from 0"),
        (lambda d: np.savez(d / "train/1.npz", data={"x": GOOD, "y": np.zeros(2, int)}), r"has samples float32 \[3\]"),
        (lambda d: (d / "config.json").write_text('{"num_clients": 3}'), "cannot read num_clients and num_classes"),
        (lambda d: (d / "config.json").write_text("{"), "cannot read num_clients and num_classes"),
        (
            lambda d: (d / "config.json").write_text('{"num_clients": 3, "num_classes": 2}'),
            "says 2 classes, but a label is 3",
        ),
    ],
)
def test_damage(damage: Callable[[Path], object], problem: str, tmp_path: Path) -> None:
    folder(tmp_path / "d")
    damage(tmp_path / "d")
    with pytest.raises(DataError, match=problem):
        convert(tmp_path / "d", tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


def test_what_cannot_be_converted(tmp_path: Path) -> None:
    folder(tmp_path / "d", config=None)
    assert convert(tmp_path / "d", tmp_path / "out.npz")[2].startswith("no config.json: labels go to 3, so there are 4")
    with pytest.raises(DataError, match="out.npz is there already"):
        convert(tmp_path / "d", tmp_path / "out.npz")
    with pytest.raises(DataError, match="give the path of an .npz to write"):
        convert(tmp_path / "d", tmp_path / "out")
    with pytest.raises(DataError, match="give the folder that holds train and test"):
        convert(tmp_path / "d/train", tmp_path / "again.npz")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("num_classes", float("inf"), "cannot read num_clients and num_classes"),
        ("num_classes", 10**15, "at most 65536 can be read"),
    ],
)
def test_impossible_numbers_in_the_config(name: str, value: float, problem: str, tmp_path: Path) -> None:
    folder(tmp_path / "d", config=CONFIG | {name: value})
    with pytest.raises(DataError, match=problem):
        convert(tmp_path / "d", tmp_path / "out.npz")


def test_no_client_is_there_twice(tmp_path: Path) -> None:
    folder(tmp_path / "d")
    (tmp_path / "d/train/01.npz").write_bytes((tmp_path / "d/train/1.npz").read_bytes())
    with pytest.raises(DataError, match=r"01.npz is not named by the number of a client"):
        convert(tmp_path / "d", tmp_path / "out.npz")


@pytest.mark.parametrize("text", ["(((((", "-" * 9000 + "1"])
def test_a_header_that_numpy_cannot_parse(text: str, tmp_path: Path) -> None:
    folder(tmp_path / "d")
    packed(tmp_path / "d/train/0.npz", b"", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode())
    with pytest.raises(DataError, match="cannot read .*0.npz: ."):
        convert(tmp_path / "d", tmp_path / "out.npz")


def test_names_in_a_pickle_do_nothing_to_a_terminal(tmp_path: Path) -> None:
    folder(tmp_path / "d")
    np.savez(tmp_path / "d/train/0.npz", data=client(3) | {"\x1b[31m" * 1000: np.zeros(3)})
    with pytest.raises(DataError) as refused:
        convert(tmp_path / "d", tmp_path / "out.npz")
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 500


def test_nothing_is_left_where_a_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    folder(tmp_path / "d")
    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(DataError, match="No space left"):
        convert(tmp_path / "d", tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()
