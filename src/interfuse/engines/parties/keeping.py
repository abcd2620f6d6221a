"""What a node keeps of a run on its disk: its secret, how far the coordinator was, and which states it saved."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from interfuse.data import DRAWN_BEFORE
from interfuse.engines.parties.contract import Contract, JoinError, same
from interfuse.errors import RunError
from interfuse.opening import content as content_of
from interfuse.wire import sync_folder
from interfuse.wire.sealed import seal_of, sealed
from interfuse.writing import write_whole

RUN_FILE = "run.json"
STATES_FILE = "states.json"
ANSWERS_FILE = "answers.jsonl"
BYTES_OF_SECRET = 32


class RunFile(BaseModel):
    """What a node remembers of a run: how far the coordinator was, with which data it began, and what was agreed.

    ``clients`` and ``d`` are as in :class:`.frames.Begin`.
    """

    attempt: int
    client: int
    data: str
    contract: Contract
    clients: int
    d: int | None


class StatesFile(BaseModel):
    """After which round each saved state was taken, by its digest."""

    rounds: dict[str, int]


def secret_of(folder: Path) -> int:
    """What only this node knows in a run. Kept on its disk: after a restart it draws the same again.

    Raises:
        JoinError: the run began with one that is not there any more; or the disk is full or broken.
    """
    path = folder / "secret"
    with _room():
        if not path.exists():
            if (folder / RUN_FILE).exists():  # another one would give every sample a second report
                raise JoinError("state", "the secret that the run began with", "none")
            put(path, secrets.token_bytes(BYTES_OF_SECRET))
        found = content_of(path, follow=False)
    if len(found) != BYTES_OF_SECRET:
        raise JoinError("state", f"a secret of {BYTES_OF_SECRET} bytes", f"one of {len(found)}")
    return int.from_bytes(found, "little")


def begin_answers(folder: Path) -> None:
    """Make the file that counts what left in a run, where the run begins.

    Raises:
        JoinError: the run began with one that is not there any more; or the disk is full or broken.
    """
    with _room():
        if not (folder / ANSWERS_FILE).exists():
            if (folder / RUN_FILE).exists():  # a new one would give all calls back
                raise JoinError("state", "the count of what left in the run", "none")
            put(folder / ANSWERS_FILE, b"")


def remember(folder: Path, now: RunFile) -> None:
    """Write down how far the coordinator is.

    Raises:
        JoinError: it was further already, or the run began with other data; or the disk is full or broken.
    """
    path = folder / RUN_FILE
    if path.exists():
        try:
            before = read_run(path)
        except (OSError, ValueError, RunError):
            raise JoinError("state", "what the node remembers of the run", f"{path.name} that cannot be read") from None
        if now.attempt < before.attempt:
            raise JoinError("attempt", f"{before.attempt} or later", f"stale attempt {now.attempt}")
        same("client number", before.client, now.client)
        if now.data != before.data:
            raise JoinError("data", "those that the run began with", "others")
    with _room():
        put(path, sealed(now.model_dump(mode="json")).encode())


def read_run(path: Path) -> RunFile:
    """What a node remembers of a run.

    Raises:
        OSError, ValueError: it cannot be read.
        RunError: it was changed since it was written.
    """
    data = content_of(path, follow=False)
    seal_of(data)
    return RunFile.model_validate(_completed(json.loads(data)))


def _completed(values: Any) -> Any:
    """What an earlier version wrote, which drew rows from the seed and did not say so."""
    if isinstance(values, dict) and isinstance(contract := values.get("contract"), dict):
        sampling = contract.get("sampling", {})
        return values | {"contract": contract | {"sampling": {"draws_from": DRAWN_BEFORE} | sampling}}
    return values


@contextmanager
def _room() -> Iterator[None]:
    """Errors of the disk, without their text, which is the node's own."""
    try:
        yield
    except (OSError, RunError):
        raise JoinError("disk", "room for the node's state", "none; its log says more") from None


def put(path: Path, data: bytes) -> None:
    """Write a file of the node's state, which is nobody else's to read; the disk has it then, and its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data, private=True)
    sync_folder(path.parent)


def runs_in(states: Path) -> list[str]:
    """The runs that a node began, by name."""
    return sorted(path.parent.name for path in states.glob(f"*/{RUN_FILE}"))


def states_of(folder: Path) -> dict[str, int]:
    """After which round each state that lies in a run's folder was taken, by its digest; of older states it is not
    known.

    Raises:
        RunError: the file that says so cannot be read.
    """
    path = folder / STATES_FILE
    try:
        if not path.exists():
            return {}
        data = content_of(path, follow=False)
        seal_of(data)
        return StatesFile.model_validate_json(data).rounds
    except (OSError, ValueError, RunError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def remember_state(folder: Path, digest: str, round: int, keep: Collection[str]) -> str:
    """Write down after which round a state was taken, and forget those that nobody can ask for again.

    Returns:
        Why earlier ones are forgotten, too, where what was written down of them cannot be read; empty where it can.

    Raises:
        OSError: it cannot be written.
    """
    before, lost = dict[str, int](), ""
    try:
        before = states_of(folder)
    except RunError as error:
        lost = str(error)
    now = StatesFile(rounds={name: at for name, at in before.items() if name in keep} | {digest: round})
    put(folder / STATES_FILE, sealed(now.model_dump(mode="json")).encode())
    return lost
