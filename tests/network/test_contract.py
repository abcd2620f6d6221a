"""What two sides compare before they begin."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import ValidationError

from interfuse.client import Client
from interfuse.engines.parties.contract import Contract, interface
from interfuse.handler import on_client
from interfuse.messages import Features, Message, Precision
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


@pytest.mark.parametrize("name", ["", "..", "../other", "/etc", "a/b", "a\\b", "run\n", "a" * 65, "run.1"])
def test_the_name_of_a_run_is_no_path(name: str) -> None:
    def errors(name: str) -> list[str]:
        with pytest.raises(ValidationError) as raised:  # all other fields are missing
            Contract.model_validate({"run": name})
        return [error["type"] for error in raised.value.errors() if error["loc"] == ("run",)]

    assert errors("3f2a-b_C") == []
    assert errors(name) == ["string_pattern_mismatch"]
