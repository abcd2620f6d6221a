"""What two sides compare before they begin."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from pydantic import ValidationError

from interfuse.client import Client
from interfuse.coordination.driver import Public, make_contract
from interfuse.engines.parties.contract import Contract, JoinError, interface, method_of
from interfuse.handler import on_client
from interfuse.messages import Features, Message, Precision
from interfuse.method import Method
from interfuse.runs import parse_config

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


@pytest.mark.parametrize("everybody", [True, False])
def test_no_schedule_travels_and_none_is_loaded(everybody: bool, tmp_path: Path) -> None:
    file = tmp_path / "strange.py"
    file.write_text("raise SystemExit('code of a stranger ran')", encoding="utf-8")
    own: dict[str, Any] = {"lr": f"{file}:rate"}
    config = parse_config({"method": "fedavg", **({"settings": own} if everybody else {"client": {1: own}})})
    public = Public(2, ["a", "b"], torch.zeros(4, dtype=torch.int64), None)
    contract = make_contract(config, config.make_method(), "run", public)
    with pytest.raises(
        JoinError, match=r"lr: expected a value that interfuse itself knows, .* found .*strange.py:rate"
    ):
        method_of(contract)
    assert not any(name.startswith("strange") for name in sys.modules)
