"""``@on_client``: types read off annotations, inheritance, wrapped programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from worlds import entries, everything_owned, federation, same_bits

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.handler import Handler, Program, handlers, on_client, programs
from interfuse.messages import Features, Labels, Message
from interfuse.method import Method
from interfuse.methods.fedavg import FedAvg
from interfuse.methods.ifl import IFL
from interfuse.methods.local import Local
from interfuse.server import Server


class Ask(Message):
    z: Features


class Tell(Message):
    y: Labels


class Plain(Program):
    @on_client
    def both(self, client: Client, ask: Ask) -> Tell:
        """What it does."""
        return Tell(torch.zeros(len(ask.z), dtype=torch.int64))

    @on_client
    def neither(self, client: Client) -> None: ...

    def helper(self) -> None: ...


class Derived(Plain):
    @on_client
    def neither(self, client: Client) -> Tell:  # type: ignore[override]
        return Tell(torch.ones(1, dtype=torch.int64))

    @on_client
    def more(self, client: Client, tell: Tell) -> None: ...


def test_types_are_read_off_the_annotations() -> None:
    assert (Plain.both.message_type, Plain.both.reply_type) == (Ask, Tell)
    assert (Plain.neither.message_type, Plain.neither.reply_type) == (None, None)
    assert Plain.both.__doc__ == "What it does."


def test_a_handler_of_a_program_can_be_called_without_an_engine() -> None:
    program = Plain()
    handler = program.both
    assert isinstance(handler, Handler)
    assert (handler.program, handler.name) == (program, "both")
    client: Any = None
    assert handler(client, Ask(torch.zeros(3, 2))).y.tolist() == [0, 0, 0]
    assert program.neither(client) is None


def test_inherited_handlers_are_found_and_the_nearest_counts() -> None:
    assert set(handlers(Plain)) == {"both", "neither"}
    found = handlers(Derived)
    assert set(found) == {"both", "neither", "more"}
    assert found["neither"].reply_type is Tell
    assert found["both"] is handlers(Plain)["both"]


class Unannotated(Program):
    @on_client
    def handler(self, client, ask): ...  # type: ignore[no-untyped-def]


class NoReply(Program):
    @on_client
    def handler(self, client: Client, ask: Ask): ...  # type: ignore[no-untyped-def]


class NoMessage(Program):
    @on_client
    def handler(self, client: Client, ask) -> None: ...  # type: ignore[no-untyped-def]


class TwoMessages(Program):
    @on_client  # type: ignore[arg-type]
    def handler(self, client: Client, ask: Ask, tell: Tell) -> None: ...


class NoClient(Program):
    @on_client  # type: ignore[arg-type]
    def handler(self) -> None: ...


class RawReply(Program):
    @on_client  # type: ignore[type-var]
    def handler(self, client: Client) -> torch.Tensor:
        return torch.zeros(1)


class Either(Program):
    @on_client
    def handler(self, client: Client, ask: Ask | Tell) -> None: ...


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (Unannotated, "a handler takes a client and at most one message, and says what it returns"),
        (NoReply, "a handler takes a client and at most one message, and says what it returns"),
        (TwoMessages, "a handler takes a client and at most one message, and says what it returns"),
        (NoClient, "a handler takes a client and at most one message, and says what it returns"),
        (NoMessage, "None is not a message; annotate with a subclass of interfuse.Message"),
        (RawReply, "torch.Tensor'> is not a message; annotate with a subclass of interfuse.Message"),
        (Either, "is not a message; annotate with a subclass of interfuse.Message"),
    ],
)
def test_an_incomplete_declaration_is_an_error_that_names_the_handler(program: Any, said: str) -> None:
    with pytest.raises(TypeError) as caught:
        _ = program.handler.reply_type
    assert str(caught.value).startswith(f"{program.__name__}.handler: ")
    assert said in str(caught.value)


# --- a method around another ----------------------------------------------------------------------


INNER = IFL(local_steps=2, batch_size=4)
PLAIN = Plain()


@dataclass(frozen=True)
class Twice(Method):
    """Two rounds of a method for one, with a call of its own between them."""

    base: Method = INNER

    def round(self, server: Server, clients: Clients) -> None:
        self.base.round(server, clients)
        clients.call(self.between)
        self.base.round(server, clients)

    @on_client
    def between(self, client: Client) -> None: ...


TWICE = Twice()


@dataclass(frozen=True)
class Outer(Method):
    inner: Method = TWICE
    other: Program = PLAIN
    number: int = 3


def test_wrapped_programs_are_found_by_path() -> None:
    outer = Outer()
    found = programs(outer, "method")
    assert list(found) == ["method", "method.inner", "method.inner.base", "method.other"]
    assert found["method.inner.base"] is outer.inner.base  # type: ignore[attr-defined]
    assert programs(Local(), "x").keys() == {"x"}


@dataclass(frozen=True)
class Once(Method):
    """Nothing but a method inside."""

    base: Method = INNER

    def round(self, server: Server, clients: Clients) -> None:
        self.base.round(server, clients)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_wrapped_method_is_called_by_its_path(workers: int) -> None:
    f = federation(Twice(), rounds=2, workers=workers)
    calls = [entry.handler for entry in entries(f) if entry.client == 0 and entry.direction == "up"]
    owned = everything_owned(f)
    f.engine.close()
    assert calls == ["train_base"] * 4
    assert same_bits(owned, everything_owned(federation(Twice(), rounds=2)))


def test_a_wrapped_method_is_the_very_object_that_was_given() -> None:
    inner = IFL(local_steps=2)
    assert Once(inner).base is inner
    assert Once(base=FedAvg()).base == FedAvg()


def test_a_wrapped_method_moves_the_bytes_it_would_alone() -> None:
    wrapped, alone = federation(Once(), rounds=2), federation(IFL(local_steps=2, batch_size=4), rounds=2)
    assert entries(wrapped) == entries(alone)
