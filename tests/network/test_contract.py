"""What two sides compare before they begin."""

from __future__ import annotations

from typing import Annotated

import pytest

from interfuse.client import Client
from interfuse.engines.grpc.contract import interface
from interfuse.handler import on_client
from interfuse.message import Features, Message, Precision
from interfuse.method import Method

Sparse = Annotated[Features, Precision.SPARSE]
Rounded = Annotated[Features, Precision.ROUNDED]
Exact = Annotated[Features, Precision.EXACT]


def digest(field: object) -> str:
    """Of a method whose clients send one message with one field of this annotation."""
    message = type("Sent", (Message,), {"__annotations__": {"z": field}})

    def send(self: Method, client: Client) -> None: ...

    send.__annotations__ |= {"return": message}
    return interface(type("Mine", (Method,), {"send": on_client(send)})())


@pytest.mark.parametrize("field", [Rounded, Exact])
def test_messages_that_codecs_treat_differently_are_different_interfaces(field: object) -> None:
    assert digest(field) != digest(Features)
    assert digest(field) == digest(field)


def test_what_goes_without_saying_may_be_said() -> None:
    assert digest(Sparse) == digest(Features)
