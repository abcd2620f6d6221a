"""Files of commits and the packs in them: whole or not there, the newest version of each part, no more than needed."""

from __future__ import annotations

import hashlib
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch

from interfuse.errors import RunError
from interfuse.wire import FileRecord, Packs, Tensors, open_pack, save_pack, sync_folder
from interfuse.wire.packs import MOST

TENSORS = {
    "weight": torch.arange(6.0).reshape(2, 3).T,
    "mask": torch.tensor([-float("inf"), float("nan")]),
    "step": torch.tensor(7),
    "empty": torch.zeros(0, 512),
    "half": torch.ones(3, dtype=torch.bfloat16),
}
NOTHING = Tensors({})


def numbers(*values: float) -> Tensors:
    return Tensors({"x": torch.tensor(values)})


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to write beyond this size, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_parts_come_back_with_bits_types_and_record_and_others_can_read_them(tmp_path: Path) -> None:
    path = tmp_path / "pack"
    record = save_pack(path, {"b": Tensors(TENSORS), "a": NOTHING})
    data = path.read_bytes()
    assert record == FileRecord("pack", len(data), hashlib.sha256(data).hexdigest())
    record.check(tmp_path)
    sync_folder(tmp_path)
    parts = open_pack(path)
    assert parts.keys() == {"a", "b"}
    save_pack(tmp_path / "copy", parts)  # from file to file
    assert (tmp_path / "copy").read_bytes() == data
    library = safetensors.torch.load(safetensors.torch.load_file(path)["b"].numpy().tobytes())
    path.unlink()  # a part that is held can be read all the same
    for found in (parts["b"].tensors(), library):
        assert found.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, equal_nan=True)
    assert parts["a"].tensors() == {}


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "pack"
    (tmp_path / ".pack.tmp").write_bytes(b"x" * 10_000)  # of a process that was killed
    record = save_pack(path, {"a": Tensors(TENSORS)})
    with largest_file(100_000), pytest.raises(RunError, match=r"pack.*File too large"):
        save_pack(path, {"a": Tensors({"x": torch.zeros(100_000)})})
    with pytest.raises(RunError, match=r"pack.*complex64"):
        save_pack(path, {"a": Tensors({"x": torch.zeros(1, dtype=torch.complex64)})})
    assert [item.name for item in tmp_path.iterdir()] == ["pack"]
    record.check(tmp_path)
    for action in (lambda: save_pack(tmp_path / "gone" / "pack", {}), lambda: open_pack(tmp_path / "gone")):
        with pytest.raises(RunError, match=r"gone.*No such file"):
            action()
    with pytest.raises(RunError, match=r"gone.*No such file"):
        sync_folder(tmp_path / "gone")


def test_damage_is_found_and_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pack"
    record = save_pack(path, {"a": numbers(1, 2), "b": numbers(3)})
    data = path.read_bytes()
    for broken in (data[:-1] + bytes([data[-1] ^ 1]), data[:-1], data + b"\x00", b"", data[:20]):
        path.write_bytes(broken)
        with pytest.raises(RunError, match="pack is damaged"):
            record.check(tmp_path)
        if len(broken) != len(data):
            with pytest.raises(RunError, match="pack is damaged"):
                open_pack(path)
    path.write_bytes(data)
    part = open_pack(path)["b"]
    path.write_bytes(data[:-3])
    with pytest.raises(RunError, match="pack is damaged"):
        part.tensors()


def test_of_a_part_the_last_pack_counts_and_packs_with_nothing_new_go(tmp_path: Path) -> None:
    packs = Packs()
    for number, names in enumerate(["abcd", "ab", "c", "abc"]):
        contents = {name: numbers(number) for name in names}
        packs.add(tmp_path, save_pack(tmp_path / str(number), contents))
    assert [record.name for record in packs.records] == ["0", "3"]
    found = {name: part.tensors()["x"].item() for name, part in packs.parts.items()}
    assert found == {"a": 3, "b": 3, "c": 3, "d": 0}
    assert packs.stale() == ["d"]  # a quarter of the first pack
    packs.add(tmp_path, save_pack(tmp_path / "4", {name: packs.parts[name] for name in packs.stale()}))
    assert [record.name for record in packs.records] == ["3", "4"]
    assert packs.stale() == []


def test_what_many_workers_write_at_once_is_not_too_many(tmp_path: Path) -> None:
    packs = Packs()
    for worker in range(3 * MOST):
        packs.add(tmp_path, save_pack(tmp_path / str(worker), {f"part{worker}": numbers(0.0)}))
    assert packs.stale(at_once=MOST) == []
    assert len(packs.stale()) == MOST // 2


@pytest.mark.parametrize("drawn", [1, 30])
def test_disk_and_files_stay_within_bounds_however_few_change(drawn: int, tmp_path: Path) -> None:
    """150 commits of 100 parts, of which some are drawn each time: at most twice the state, and few packs."""
    names, draws = [f"part{n}" for n in range(100)], torch.Generator().manual_seed(0)
    packs, wanted = Packs(), dict.fromkeys(names, 0.0)
    packs.add(tmp_path, save_pack(tmp_path / "first", dict.fromkeys(names, numbers(0.0))))
    state, written, copied = packs.records[0].bytes, 0, 0
    for number in range(1, 151):
        chosen = [names[i] for i in torch.randperm(100, generator=draws)[:drawn]]
        wanted |= dict.fromkeys(chosen, float(number))
        stale = packs.stale()
        contents = {name: packs.parts[name] for name in stale} | dict.fromkeys(chosen, numbers(number))
        packs.add(tmp_path, save_pack(tmp_path / str(number), contents))
        written, copied = written + drawn, copied + len(stale)
        assert len(packs.records) <= MOST + 2
        assert sum(record.bytes for record in packs.records) <= 2.5 * state
    assert {name: part.tensors()["x"].item() for name, part in packs.parts.items()} == wanted
    assert copied <= 4 * written
