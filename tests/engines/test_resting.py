"""Clients at rest that memory has no room for: they lie in a file, and nothing else is different."""

from __future__ import annotations

import errno
import gc
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from worlds import everything_owned, federation, in_packs, in_process, same_bits, tiny_dataset, weights_of

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.clock import NAMED
from interfuse.engines.host import Resident
from interfuse.engines.resting import RestingFile
from interfuse.errors import RunError
from interfuse.evaluation import evaluate
from interfuse.families.averaging import Global
from interfuse.federation import Federation
from interfuse.handler import on_client
from interfuse.method import Method
from interfuse.methods import built_in
from interfuse.party import ALL
from interfuse.server import Server
from interfuse.wire import Packs, Part, Tensors

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "scaffold": ("scaffold", {"participation": 0.5, "local_steps": 2}, {"models": ["logistic"]}),
    "fedproto": ("fedproto", {"optimizer": "adam"}, {"models": ["mlp", "logistic"]}),
    "ifl": ("ifl", {"optimizer": "adam", "local_steps": 2}, {"models": ["mlp", "logistic"]}),
    "statistics": ("fedavg", {"buffers": "local", "participation": 0.5, "local_steps": 2}, {"models": ["cnn-bn"]}),
    "undone": (
        "ifl-partial",
        {"deadline": 0.15, "local_steps": 2, "participation": 0.9},
        {"models": ["logistic"], "devices": replace(NAMED["stragglers"], away_seconds=0.2)},
    ),
}
NONE, SOME = 0, 6 << 14
"""Bytes: all of them lie in the file; some do, for small models."""


def world(case: str, **settings: Any) -> Federation:
    name, hyperparameters, others = CASES[case]
    shape = {"dataset": tiny_dataset(rows=240, shape=(1, 4, 4)), "clients": 12}
    return federation(built_in()[name].configure(hyperparameters), **shape, **others, **settings)


def evidence(f: Federation, folder: Path) -> tuple[dict[str, Tensor], Any, Mapping[str, float]]:
    """All that both sides own, what an evaluation finds, and the time."""
    return in_packs(folder, f.save(folder).packs), evaluate(f, full=True), dict(f.exchange.clock.times)


@pytest.mark.parametrize("case", CASES)
def test_results_do_not_depend_on_the_memory_for_clients(case: str, tmp_path: Path) -> None:
    """With 1, 2 and 3 workers, and from a commit."""
    owned, scores, times = evidence(world(case, rounds=3), tmp_path)
    for workers, memory in ((1, SOME), (2, NONE)):
        f, again = world(case, workers=workers, memory=memory), world(case, workers=5 - 2 * workers, memory=memory)
        try:
            f.run_round()
            again.load(tmp_path, 1, f.save(tmp_path))
            for one in (f, again):
                for _ in range(2):
                    one.run_round()
                found = evidence(one, tmp_path)
                assert same_bits(found[0], owned)
                assert found[1:] == (scores, times)
        finally:
            f.engine.close()
            again.engine.close()


def test_memory_for_clients_bounds_what_is_in_memory_and_the_file_gives_room_back() -> None:
    f = world("ifl", memory=SOME, rounds=1)
    host = in_process(f)._host
    assert 0 < len(host._residents) < 12
    assert host._taken <= SOME
    assert len(host._residents) + len(host._parts.keys() - host._residents.keys()) == 12
    descriptor = host._file._source.descriptor
    size = os.fstat(descriptor).st_size
    f.run_round()
    assert os.fstat(descriptor).st_size <= 2 * size
    everything_owned(f)  # they lie in packs now
    assert os.fstat(descriptor).st_size == 0
    assert len(host._residents) < 12
    assert {part.source.name for part in host._parts.values()}


def test_of_clients_in_the_file_nothing_is_in_memory() -> None:
    """Not even until garbage is collected."""
    gc.collect()
    gc.disable()
    try:
        f = world("ifl", memory=NONE, rounds=1)
        assert not [found for found in gc.get_objects() if type(found) is Resident]
        assert len(in_process(f)._host._parts) == 12
    finally:
        gc.enable()


def test_places_in_the_file_are_used_again() -> None:
    file, one, drawn = RestingFile(None), Tensors({"x": torch.ones(1000)}), random.Random(0)
    lying: dict[float, Part] = {}
    for number in range(300):
        lying[number] = file.put(Tensors({"x": torch.full((drawn.choice([3, 500, 1000]),), float(number))}))
        if len(lying) > 20:
            file.give_up(lying.pop(drawn.choice(sorted(lying))))
        assert all(part.tensors()["x"].unique().tolist() == [value] for value, part in lying.items())
    assert file._end <= 60 * one.size
    for part in lying.values():
        file.give_up(part)
    assert file._end == 0


def test_a_full_disk_is_said_with_what_to_do_and_a_damaged_pack_is_named(tmp_path: Path) -> None:
    made = world("ifl", rounds=1)
    saved = made.save(tmp_path)
    with open(tmp_path / saved.packs[0].name, "r+b") as file:
        again = world("ifl")
        again.load(tmp_path, 1, saved)
        file.truncate(3000)
        with pytest.raises(RunError, match=f"{saved.packs[0].name} is damaged"):
            again.run_round()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(RunError, match=f"clients at rest .*{tmp_path}: File too large.*client_memory"):
            made = federation("local", clients=3, rounds=1, memory=NONE, folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@dataclass(frozen=True)
class Remembers(Method):
    """Clients remember where the model was, and one of them that fails would not matter."""

    def keeps(self) -> frozenset[str]:
        return ALL

    def new_client(self, client: Client) -> Global:
        return Global(client.tensors())

    def round(self, server: Server, clients: Clients) -> None:
        clients.call(self.train, minimum=1)

    @on_client
    def train(self, client: Client[Global]) -> None:
        client.fit(client.loss, steps=1, lr=0.1)
        if client.round == 1:
            client.state = Global(client.tensors())


def remembering(rounds: int, **settings: Any) -> Federation:
    return federation(Remembers(), rounds=rounds, **settings)


def test_a_state_is_no_part_of_the_model_that_it_was_taken_from() -> None:
    in_memory, at_rest = (everything_owned(remembering(3, memory=memory)) for memory in (None, NONE))
    assert same_bits(in_memory, at_rest)
    assert any(
        not torch.equal(t, in_memory[f"client-00000:networks/model/{k.rpartition('/')[2]}"])
        for k, t in in_memory.items()
        if k.startswith("client-00000:state/")
    )


def test_a_client_that_cannot_be_read_is_the_run_s_failure_and_does_not_begin_anew(tmp_path: Path) -> None:
    made, again = remembering(1), remembering(0)
    saved = made.save(tmp_path)
    again.load(tmp_path, 1, saved)
    pack = tmp_path / saved.packs[0].name
    whole = pack.read_bytes()
    with open(pack, "r+b") as file:
        file.truncate(len(whole) - 100)
        with pytest.raises(RunError, match="is damaged"):
            again.run_round()
        file.write(whole)
    assert same_bits(weights_of(again, 2), weights_of(made, 2))


def test_a_client_for_whom_there_is_no_room_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, again = remembering(2), remembering(1, memory=NONE, folder=tmp_path)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "pwrite", full)
        with pytest.raises(RunError, match="No space left"):
            again.run_round()
    assert same_bits(weights_of(again, 0), weights_of(made, 0))


@pytest.mark.parametrize("workers", [1, 2])
def test_after_a_save_that_failed_the_next_one_has_everything(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = remembering(1, workers=workers)

    def broken(*_: object) -> None:
        raise RunError("cannot read it")

    try:
        first = in_packs(tmp_path, made.save(tmp_path).packs)
        made.run_round()
        with monkeypatch.context() as disk:
            disk.setattr(Packs, "add", broken)
            with pytest.raises(RunError, match="cannot read it"):
                made.save(tmp_path)
        second = in_packs(tmp_path, made.save(tmp_path).packs)
    finally:
        made.engine.close()
    assert same_bits(second, everything_owned(remembering(2)))
    assert not same_bits(first, second)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_nothing_is_left_of_the_file_by_a_process_that_is_killed(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        f = federation("local", clients=3, rounds=1, memory=NONE, folder=tmp_path)
        f.engine.call = lambda *_: signal.pause()  # type: ignore[method-assign]
        (tmp_path / "ready").touch()
        f.run_round()
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    opened = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert [name for name in opened if name.startswith(str(tmp_path))]
    assert [path.name for path in tmp_path.iterdir()] == ["ready"]
