"""A vendor that lies to its coordinator, and a coordinator that asks a node for whatever there is: for `soak.py`."""

from __future__ import annotations

import json
import random
import shutil
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interfuse.coordination.driver import Public, make_contract
from interfuse.engines.grpc import dial
from interfuse.engines.parties import Line, LineError, Vendor
from interfuse.engines.parties.contract import LIBRARY, WIRE, Contract
from interfuse.engines.parties.frames import (
    PROTOCOL,
    Assembler,
    Begin,
    Call,
    Cancel,
    Done,
    Envelope,
    FrameError,
    Hello,
    Offer,
    Order,
    Ready,
    Reply,
    frames,
)
from interfuse.engines.parties.logs import Events
from interfuse.engines.parties.machine import bound_memory
from interfuse.engines.parties.node import Node
from interfuse.engines.parties.participation import take_part
from interfuse.engines.parties.vendor import read_vendor
from interfuse.errors import InterfuseError
from interfuse.runs import parse_config

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**53, 2**63, 10**40, 0.5, 1e308, float("nan"), "", "zz", "0" * 64, "\x1b[2J", "a\nb",
    "\ud800", "x" * 10_000, "../../../etc", [], {}, [2**20, 2**20, 2**20], [[[[1]]]], {"../a": [1]},
)  # fmt: skip
MEMORY = 3 << 29
"""Bytes that a node which is asked may take."""
VENDOR = """
name = "fly"
[model]
build = "logistic"
public = true
[data]
source = "rows.npz"
[allow]
methods = ["fedavg", "ifl"]
disclosures = ["parameters", "features", "labels"]
evaluation = "own"
[limits]
seconds = 1
fusion_width = 64
classes = 10
"""


# --- a vendor that lies


class _Wrong:
    """A line on which what a handler answers is no number."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self.received, self.tell, self.finish = line.received, line.tell, line.finish

    def send(self, frame: bytes) -> None:
        if b'"kind":"reply"' in frame and b'"message":true' in frame:
            frame = frame[:-32] + b"\xff" * 32
        self._line.send(frame)


def lie(vendor: Path, counts: Path) -> None:
    """Take part, until what it answers has it sent away; then try to come back in whatever way, for ever."""
    given = read_vendor(vendor)

    @contextmanager
    def wrongly() -> Iterator[Line]:
        with dial(given, insecure=False) as line:
            yield _Wrong(line)

    with closing(Node(given, Events(None, lambda text: None))) as node, suppress(InterfuseError):
        take_part(node, wrongly)
    draws, done = random.Random(0), 0
    while True:
        with suppress(LineError, FrameError):
            _come_back(given, draws)
        done += 1
        counts.write_text(str(done))
        time.sleep(0.2)


def _come_back(vendor: Vendor, draws: random.Random) -> None:
    """Begin a stream with something that no honest node says, and see what comes."""
    name = draws.choice([vendor.name, "ant", "nobody"])
    hello = Hello(protocol=PROTOCOL, library=LIBRARY, wire=WIRE, name=name, incarnation="x")
    early: list[Envelope] = [
        hello, Ready(attempt=1), Reply(attempt=1, number=1, message=True), Done(attempt=1, number=1),
    ]  # fmt: skip
    said = draws.choice(early)
    noise = draws.randbytes(100)
    with dial(vendor, insecure=False) as line:
        for frame in draws.choice([[lied(said, draws)], list(frames(said, noise)), [noise]]):
            line.send(frame)
        assembler = Assembler()
        for received in line.received():
            whole = assembler.feed(received)
            if whole is None or not isinstance(whole[0], Offer):
                return
            line.send(lied(Ready(attempt=1), draws))


def lied(envelope: Envelope, draws: random.Random) -> bytes:
    """An envelope as a frame, with one of its fields, at any depth, otherwise."""
    values: Any = envelope.model_dump(mode="json") | {"size": 0}
    inner = values
    while True:
        key = draws.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
        if isinstance(inner[key], dict | list) and inner[key] and draws.random() < 0.8:
            inner = inner[key]
            continue
        inner[key] = draws.choice(VALUES)
        header = json.dumps(values).encode()
        return struct.pack("<I", len(header)) + header


# --- a coordinator that asks for whatever there is


def ask(folder: Path, count: int) -> int:
    """Have a new node asked so often; returns how often it answered. Nothing may come of it but errors with a name."""
    bound_memory(MEMORY)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "fly.toml").write_text(VENDOR)
    x, y = np.random.default_rng(0).normal(size=(60, 1, 4, 4)).astype(np.float32), np.arange(60) % 3
    np.savez(folder / "rows.npz", x_train=x, y_train=y, x_test=x[:6], y_test=y[:6])
    config = parse_config(
        {
            "method": "fedavg", "data": str(folder / "rows.npz"), "models": ["logistic"], "clients": 1, "rounds": 3,
            "evaluation": "own", "beside": [], "fusion_width": 8,
        }
    )  # fmt: skip
    public = Public(3, ["0", "1", "2"], torch.zeros(0, dtype=torch.int64), None)
    contract = make_contract(config, config.make_method(), "run", public)
    draws, answered = random.Random(count), 0
    with closing(Node(read_vendor(folder / "fly.toml"), Events(None, lambda text: None))) as node:
        for number in range(count):
            honest = number % 10 < 2
            for frame in _asked(contract, number, draws, honest=honest):
                with suppress(InterfuseError):
                    whole = Assembler(1 << 20).feed(frame)
                    answered += 0 if whole is None else sum(1 for _ in node.answer(*whole))
    shutil.rmtree(folder)
    return answered


def _asked(contract: Contract, number: int, draws: random.Random, *, honest: bool) -> Iterable[bytes]:
    """An envelope of a coordinator, with something in it otherwise; honest ones begin an attempt."""
    if honest:
        begin = Begin(attempt=number + 1, client=0, clients=1, d=None)
        return [*frames(Offer(contract=contract)), *frames(begin)]
    call = Call(
        attempt=number // 10 * 10 + 2, number=1, ended=0, program="method", handler=draws.choice(["train", "deploy"]),
        heading=draws.choice(["training", "evaluation", "start"]), round=1, index=0, recoverable=True, message=False,
    )  # fmt: skip
    asked: list[Envelope] = [
        Offer(contract=contract), Begin(attempt=number, client=0, clients=1, d=None), call,
        Order(attempt=number, number=1, ended=0, do="save"), Cancel(attempt=number, number=1),
    ]  # fmt: skip
    return [lied(draws.choice(asked), draws)]
