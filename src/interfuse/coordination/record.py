"""What a run between parties leaves in its folder beside the files of any run."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ValidationError

from interfuse.engines.parties.contract import Facts
from interfuse.errors import RunError
from interfuse.opening import content
from interfuse.runs import NETWORK_FILE
from interfuse.wire.sealed import seal_of, sealed
from interfuse.writing import write_whole

STATUS_FILE = "status.json"


class Participant(BaseModel):
    """A node that began the run; ``gone`` says why it no longer takes part.

    ``audit`` is the last mark of its audit log: how many lines it had, and the digest of the last.
    """

    client: int
    facts: Facts
    gone: str | None = None
    audit: str | None = None


class Record(BaseModel):
    """``network.json``: what has to be known to go on with a run. ``run`` keys what nodes keep on their disks;
    ``simulated``: they are clients of a simulation of Flower's."""

    run: str
    attempt: int = 0
    classes: int
    simulated: bool = False
    nodes: dict[str, Participant] = {}

    def write(self, folder: Path) -> None:
        """Write it so that it is there whole or not at all.

        Raises:
            RunError: it cannot be written.
        """
        try:
            write_whole(folder / NETWORK_FILE, sealed(self.model_dump(mode="json")))
        except OSError as error:
            raise RunError(f"cannot write {folder / NETWORK_FILE}: {error.strerror}") from error

    def there(self) -> dict[str, Participant]:
        """Nodes that take part."""
        return {name: node for name, node in self.nodes.items() if node.gone is None}


def read_record(folder: Path) -> Record | None:
    """The record of a run, or None where there is none yet.

    Raises:
        RunError: it cannot be read, or was changed. One without a digest was edited on purpose, or is an earlier
            version's.
    """
    path = folder / NETWORK_FILE
    if not path.exists():
        return None
    try:
        data = content(path, follow=False)
        seal_of(data)
        return Record.model_validate_json(data)
    except RunError as error:
        raise RunError(f"{path}: {error}; put it back, or if that was meant, take its line `digest` away too") from None
    except (OSError, ValidationError) as error:
        raise RunError(f"cannot read {path}: {error}") from error


class NodeStatus(BaseModel):
    """A node as an operator sees it; bytes and seconds are of this process of the coordinator."""

    name: str
    client: int | None
    connected: bool
    gone: str | None = None
    audit: str | None = None
    payload_up: int = 0
    payload_down: int = 0
    frames_up: int = 0
    frames_down: int = 0
    waited: float = 0.0


class Status(BaseModel):
    """``status.json``: how a run between parties stands."""

    time: str
    state: str
    round: int
    rounds: int
    attempt: int
    address: str
    nodes: list[NodeStatus]


def read_status(folder: Path) -> Status:
    """How a run stands, as its coordinator wrote last.

    Raises:
        RunError: there is nothing to read.
    """
    try:
        return Status.model_validate_json(content(folder / STATUS_FILE, follow=False))
    except (OSError, ValidationError) as error:
        raise RunError(f"{folder} holds no status of a run between parties: {error}") from error
