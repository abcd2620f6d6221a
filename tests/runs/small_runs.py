"""Runs of a second or less, what they leave behind, and an engine that breaks off where it is told to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from worlds import in_packs, same_bits, tiny_dataset

from interfuse.client import ClientId
from interfuse.clients import Answer, Engine, Request
from interfuse.engines import Room, local
from interfuse.messages import Message
from interfuse.runs import Execution, Given, RunConfig, parse_config
from interfuse.runs.folder import RunFolder
from interfuse.setup import Setup
from interfuse.wire import FileRecord, Part

GIVEN = Given(dataset=tiny_dataset(), public=tiny_dataset())
IMAGES = Given(dataset=tiny_dataset(shape=(1, 4, 4)))


def config_of(
    method: str = "ifl",
    *,
    commit_rounds: int | None = 1,
    workers: int | None = 1,
    memory: int | None = None,
    **values: Any,
) -> RunConfig:
    """A run of three clients and three rounds on data that is given in memory."""
    defaults: dict[str, Any] = {
        "method": method, "data": "in-memory:tiny", "clients": 3, "models": ["logistic"], "fusion_width": 8,
        "rounds": 3, "eval_every": 1, "beside": [],
        "execution": Execution(workers=workers, commit_rounds=commit_rounds, client_memory=memory).model_dump(),
    }  # fmt: skip
    return parse_config(defaults | values)


@dataclass
class Outcome:
    """What two equal runs have in common: everything but seconds and the folder's name."""

    tensors: dict[str, Tensor]
    ledger: bytes
    metrics: list[dict[str, Any]]
    summary: dict[str, Any]


def outcome(path: Path) -> Outcome:
    """What a finished run left behind."""
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    return Outcome(committed(path), (path / "ledger.jsonl").read_bytes(), lines(path / "metrics.jsonl"), summary)


def committed(path: Path) -> dict[str, Tensor]:
    """All tensors of the last commit and of its best round, read with their SHA-256."""
    folder = RunFolder(path)
    commit = folder.last_commit()
    assert commit is not None
    found = {"round": torch.tensor(commit.round)}
    for part, saved in {"last": commit.saved, "best": commit.best and commit.best.saved}.items():
        tensors = in_packs(folder.commits, saved.packs) if saved else {}
        found |= {f"{part}:{name}": tensor for name, tensor in tensors.items()}
    return found


def assert_same(found: Outcome, wanted: Outcome) -> None:
    """Equal bits, equal bytes, equal numbers."""
    assert same_bits(found.tensors, wanted.tensors)
    assert found.ledger == wanted.ledger
    assert timeless(found.metrics) == timeless(wanted.metrics)
    assert timeless(found.summary) == timeless(wanted.summary)


def timeless(value: Any) -> Any:
    """Without what may differ between two equal runs: seconds, and where the folder is. NaN became null before."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "seconds_by_phase", "run")}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def snapshot(path: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


class Killed(BaseException):
    """The process is gone: no handler of errors may catch this."""


@dataclass
class Fuse:
    """Burns a step with everything an engine does, and ends the process at the chosen number or name of a step."""

    limit: int = -1
    at: str | None = None
    burnt: int = 0
    names: list[str] = field(default_factory=list)

    def step(self, name: str) -> None:
        self.burnt += 1
        self.names.append(name)
        if self.burnt == self.limit or name == self.at:
            raise Killed(name)

    def engine(self, setup: Setup, workers: int | None, room: Room) -> Engine:
        """An engine factory for ``execute`` and ``resume``."""
        return Fused(local(setup, workers, room), self)


@dataclass
class Watched(Fuse):
    """Ends nothing, but keeps the folder of a run as a kill after each step would leave it, once where it is equal."""

    run: Path = field(kw_only=True)
    left: list[Path] = field(default_factory=list)
    last: dict[str, bytes] = field(default_factory=dict)

    def step(self, name: str) -> None:
        super().step(name)
        now = snapshot(self.run)
        if now != self.last:
            self.last = now
            self.left.append(self.run.with_name(f"{self.burnt} {name}"))
            shutil.copytree(self.run, self.left[-1])


class Fused:
    """An engine whose steps are the first and the last answer of a call, the end of a round, a save, a load."""

    def __init__(self, inner: Engine, fuse: Fuse) -> None:
        self.inner, self.fuse, self.profiles, self.round = inner, fuse, inner.profiles, 0

    def call(self, request: Request, messages: Mapping[ClientId, Message | None]) -> Iterator[Answer]:
        self.round = request.round
        for number, answer in enumerate(self.inner.call(request, messages), 1):
            yield answer
            if number == len(messages) or (number == 1 and request.heading != "evaluation"):
                self.fuse.step(f"{request.heading} {request.round} {request.handler} {number}")

    def undo(self, clients: Sequence[ClientId]) -> None:
        self.inner.undo(clients)
        self.fuse.step("undo")

    def end_round(self) -> None:
        self.inner.end_round()
        self.fuse.step("end_round")

    def save(self, folder: Path, stem: str, again: Collection[ClientId]) -> list[FileRecord]:
        found = self.inner.save(folder, stem, again)
        self.fuse.step(f"save {self.round:06d}")
        return found

    def restore(self, parts: Mapping[ClientId, Part]) -> None:
        self.inner.restore(parts)
        self.fuse.step("load")

    def close(self) -> None:
        self.inner.close()


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
