from __future__ import annotations

import hashlib
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch

from interfuse.errors import RunError
from interfuse.wire import FileRecord, load_tensors, save_tensors, sync_folder

TENSORS = {
    "weight": torch.arange(6.0).reshape(2, 3).T,
    "mask": torch.tensor([-float("inf"), float("nan")]),
    "step": torch.tensor(7),
    "empty": torch.zeros(0, 512),
}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to write beyond this size, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_comes_back_with_bits_types_and_record(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    record = save_tensors(path, TENSORS, {"round": "3", "attempt": "0"})
    data = path.read_bytes()
    assert record == FileRecord("state.safetensors", len(data), hashlib.sha256(data).hexdigest())
    assert [item.name for item in tmp_path.iterdir()] == ["state.safetensors"]
    sync_folder(tmp_path)
    for found in (load_tensors(path, record.sha256), load_tensors(path), safetensors.torch.load_file(path)):
        assert found.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_metadata_is_in_the_header_in_one_order(tmp_path: Path) -> None:
    one = save_tensors(tmp_path / "a", TENSORS, {"round": "3", "by": 'é"\n'})
    two = save_tensors(tmp_path / "b", dict(reversed(TENSORS.items())), {"by": 'é"\n', "round": "3"})
    assert one.sha256 == two.sha256
    data = (tmp_path / "a").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"] == {"round": "3", "by": 'é"\n'}
    with safetensors.safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata() == {"round": "3", "by": 'é"\n'}


def test_files_of_safetensors_can_be_loaded(tmp_path: Path) -> None:
    tensors = {"x": torch.ones(3, dtype=torch.bfloat16), "y": torch.tensor([True, False])}
    safetensors.torch.save_file(tensors, tmp_path / "f", {"made": "elsewhere", "": "\\"})
    found = load_tensors(tmp_path / "f")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state"
    record = save_tensors(path, TENSORS)
    with largest_file(100_000), pytest.raises(RunError, match=r"state.*File too large"):
        save_tensors(path, {"x": torch.zeros(100_000)})
    assert [item.name for item in tmp_path.iterdir()] == ["state"]
    assert load_tensors(path, record.sha256).keys() == TENSORS.keys()


def test_a_left_over_temporary_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".state.tmp").write_bytes(b"x" * 10_000)
    save_tensors(tmp_path / "state", TENSORS)
    assert load_tensors(tmp_path / "state").keys() == TENSORS.keys()
    assert [item.name for item in tmp_path.iterdir()] == ["state"]


def test_what_cannot_be_written_or_found_is_a_run_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"gone.*No such file"):
        save_tensors(tmp_path / "gone" / "state", TENSORS)
    with pytest.raises(RunError, match=r"state.*complex64"):
        save_tensors(tmp_path / "state", {"x": torch.zeros(1, dtype=torch.complex64)})
    with pytest.raises(RunError, match=r"state.*No such file"):
        load_tensors(tmp_path / "state")
    with pytest.raises(RunError, match=r"gone.*No such file"):
        sync_folder(tmp_path / "gone")


def test_damage_is_found_and_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "state"
    record = save_tensors(path, TENSORS)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    load_tensors(path)
    with pytest.raises(RunError, match=r"state is damaged.*SHA-256"):
        load_tensors(path, record.sha256)
    for broken in (data[:-1], data + b"\x00", b"", data[:20]):
        path.write_bytes(broken)
        with pytest.raises(RunError, match="state is damaged"):
            load_tensors(path)
