"""A coordinator that asks one node for anything, without a stream between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from parties import CLASSES, rows

from interfuse.coordination.driver import Public, make_contract
from interfuse.engines.parties.contract import Contract
from interfuse.engines.parties.frames import (
    Accept,
    Begin,
    Call,
    Cancel,
    Done,
    Envelope,
    Offer,
    Order,
    Payload,
    Reply,
)
from interfuse.engines.parties.logs import Events
from interfuse.engines.parties.node import Node, RefusedError
from interfuse.engines.parties.vendor import read_vendor
from interfuse.messages import Message
from interfuse.messages.encoding import encoded
from interfuse.runs import parse_config
from interfuse.wire import Heading

VENDOR = """
name = "ant"
[model]
build = "logistic"
public = true
[data]
source = "rows.npz"
[allow]
methods = ["fedavg", "ifl", "ifl-private-labels", "scaffold"]
disclosures = ["parameters", "features", "labels"]
evaluation = "own"
"""


def contract_of(folder: Path, method: str, **recipe: Any) -> Contract:
    """The contract of a small run on the rows in a folder."""
    values = {
        "method": method, "data": str(folder / "rows.npz"), "models": ["logistic"], "clients": 1, "rounds": 3,
        "evaluation": "own", "beside": [], "fusion_width": 8,
    }  # fmt: skip
    config = parse_config(values | recipe)
    public = Public(CLASSES, list(map(str, range(CLASSES))), torch.zeros(0, dtype=torch.int64), None)
    return make_contract(config, config.make_method(), "run", public)


class Coordinator:
    """One that has a node take a contract, and asks it.

    Args:
        more: What stands at the end of the vendor's file.
        recipe: Of the run: ``method``, ``settings`` and others.
    """

    def __init__(self, folder: Path, more: str = "", **recipe: Any) -> None:
        if not (folder / "rows.npz").exists():
            rows(folder, "rows", 0)
        (folder / "vendor.toml").write_text(VENDOR + more)
        self.folder, self.said = folder, list[str]()
        self.contract = contract_of(folder, **({"method": "fedavg"} | recipe))
        self.attempt = 0
        self.start()

    def start(self) -> None:
        """Start the node (again), and begin an attempt."""
        self.node = Node(read_vendor(self.folder / "vendor.toml"), Events(None, self.said.append))
        ((accepted, _),) = self.node.answer(Offer(contract=self.contract), b"")
        assert isinstance(accepted, Accept)
        assert accepted.facts.shapes is not None
        self.keys = accepted.facts.shapes.keys
        self.zeros = {key: torch.zeros(shape) for key, shape in self.keys.items()}
        self.sizes = {"classes": CLASSES, "clients": 1, "sums": 2}
        self.begin()

    def begin(self) -> None:
        """Begin an attempt."""
        self.attempt, self._number, self.ended = self.attempt + 1, 0, 0
        tuple(self.node.answer(Begin(attempt=self.attempt, client=0, clients=1, d=None), b""))

    def ask(
        self, handler: str, message: Message | None, heading: Heading = "training", *, program: str = "method",
        round: int | None = None, index: int = 0, recoverable: bool = False,
    ) -> tuple[Reply, Payload]:  # fmt: skip
        """What the node answers to a call."""
        self._number += 1
        call = Call(
            attempt=self.attempt, number=self._number, ended=self.ended, program=program, handler=handler,
            heading=heading, round=heading != "start" if round is None else round, index=index, recoverable=recoverable,
            message=message is not None,
        )  # fmt: skip
        ((reply, payload),) = self.node.answer(call, b"" if message is None else bytes(encoded(message)))
        assert isinstance(reply, Reply)
        assert reply.failure is None or not payload
        return reply, payload

    def failure(self, *asked: Any, **how: Any) -> str | None:
        """The code with which a call fails, if it does."""
        return self.ask(*asked, **how)[0].failure

    def undo(self) -> None:
        """Have the node go back to before the last call."""
        tuple(self.node.answer(Cancel(attempt=self.attempt, number=self._number), b""))

    def order(self, do: Any, digest: str | None = None, keep: tuple[str, ...] = ()) -> Done:
        """Have the node save, or go back."""
        self._number += 1
        asked = Order(attempt=self.attempt, number=self._number, ended=0, do=do, digest=digest, keep=keep)
        ((done, _),) = self.node.answer(asked, b"")
        assert isinstance(done, Done)
        return done


def refusal(folder: Path, contract: Contract, more: str = "") -> str:
    """In which words a node refuses a contract."""
    (folder / "vendor.toml").write_text(VENDOR + more)
    node = Node(read_vendor(folder / "vendor.toml"), Events(None, lambda text: None))
    found: list[Envelope] = []
    try:
        found += [envelope for envelope, _ in node.answer(Offer(contract=contract), b"")]
    except RefusedError as error:
        return str(error)
    finally:
        node.close()
    raise AssertionError(found)


def changed(contract: Contract, **values: Any) -> Contract:
    """The contract with other values."""
    return contract.model_copy(update=values)
