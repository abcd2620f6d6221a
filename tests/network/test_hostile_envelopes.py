"""A coordinator that lies in any field of any envelope: a node refuses it in words that can be printed, and stays."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from asking import Coordinator
from hostile_values import lies
from hostile_vendor import SENT

from interfuse.engines.parties.frames import (
    Assembler,
    Begin,
    Call,
    Cancel,
    End,
    Envelope,
    FrameError,
    Offer,
    Order,
    Refusal,
)
from interfuse.engines.parties.node import RefusedError
from interfuse.families.fusion import FusionOutputs
from interfuse.messages.encoding import encoded

ASKED = (Offer, Refusal, Begin, Call, Order, Cancel, End)
"""What a coordinator sends."""


def test_all_envelopes_are_one_sides_or_the_others() -> None:
    assert {*ASKED, *SENT} == set(get_args(Envelope))


def test_no_field_of_a_coordinators_ends_a_node(tmp_path: Path) -> None:
    one = Coordinator(tmp_path, method="ifl", settings={"batch_size": 4, "local_steps": 1})
    assert one.failure("train_base", None) is None
    call = Call(
        attempt=1, number=2, ended=0, program="method", handler="train_base", heading="training", round=1, index=1,
        recoverable=True, message=False,
    )  # fmt: skip
    envelopes: list[Envelope] = [
        Offer(contract=one.contract), Refusal(field="a", expected="b", found="c"),
        Begin(attempt=1, client=0, clients=1, d=8), call, Order(attempt=1, number=2, ended=0, do="save"),
        Order(attempt=1, number=2, ended=0, do="load", digest="ab" * 32, keep=("cd" * 32,)),
        Cancel(attempt=1, number=1), End(reason="over", finished=True),
    ]  # fmt: skip
    assert {type(envelope) for envelope in envelopes} == set(ASKED)
    tries = taken = 0
    reasons: list[str] = []
    for envelope in envelopes:
        for words, frame in lies(envelope, bytes(encoded(pair())) if isinstance(envelope, Call) else b""):
            tries += 1
            try:
                whole = Assembler(1 << 20).feed(frame)
                if whole is None or isinstance(whole[0], End):
                    continue
                taken += 1
                for answer, _ in one.node.answer(*whole):
                    assert answer.model_dump_json().isprintable(), words
            except (FrameError, RefusedError) as error:
                reasons.append(str(error))
    assert tries > 1500
    assert taken > 100
    assert all(text.isprintable() for text in (*one.said, *reasons))
    one.node.close()
    one.attempt = 2**53 - 1  # one of them was a late attempt
    one.start()
    assert one.failure("train_base", None, index=2) is None
    one.node.close()


def pair() -> FusionOutputs:
    return FusionOutputs(torch.zeros(4, 8), torch.zeros(4, dtype=torch.uint8))


@pytest.mark.parametrize("d", [None, 8])
def test_the_right_sizes_are_taken(tmp_path: Path, d: int | None) -> None:
    one = Coordinator(tmp_path, method="ifl")
    one.attempt += 1
    assert [e.kind for e, _ in one.node.answer(Begin(attempt=one.attempt, client=0, clients=3, d=d), b"")] == ["ready"]
    one.node.close()
