"""Replies to the evaluation that no honest client gives: who sent them is named, and nobody else fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import pytest
import torch
from worlds import Recorder, federation, wide

from interfuse.client import ClientId
from interfuse.clients import Answer, Engine, Request
from interfuse.errors import ClientError
from interfuse.evaluation import evaluate, similarity
from interfuse.evaluation.accuracy import Composition, Counted, FusedTest
from interfuse.federation import Federation
from interfuse.messages import Message


class Changed(Recorder):
    """An engine whose client 1 answers otherwise."""

    def __init__(self, inner: Engine, change: Callable[[Message], Message]) -> None:
        super().__init__(inner)
        self.change, self.asked = change, list[str]()

    def call(self, request: Request, messages: Mapping[ClientId, Message | None]) -> Iterator[Answer]:
        self.asked.append(request.handler)
        for answer in super().call(request, messages):
            other = answer.client == 1 and isinstance(answer.reply, Message)
            yield replace(answer, reply=self.change(answer.reply)) if other else answer  # type: ignore[arg-type]


def lying(change: Callable[[Message], Message]) -> Federation:
    return federation("ifl", models=[wide], wrap=lambda engine: Changed(engine, change))


def fewer_rows(message: Message) -> Message:
    return FusedTest(message.z[:5]) if isinstance(message, FusedTest) else message


@pytest.mark.parametrize("measure", [lambda f: evaluate(f, full=True), similarity])
def test_a_wrong_number_of_fusion_outputs_is_the_failure_of_who_sent_them(
    measure: Callable[[Federation], object],
) -> None:
    found = lying(fewer_rows)
    with pytest.raises(ClientError, match=r"client 1 failed in fused, round 0: .*z: expected 24 rows, found 5") as info:
        measure(found)
    assert info.value.client == 1
    assert isinstance(found.engine, Changed)
    assert "composed" not in found.engine.asked  # nobody else gets them


def test_so_is_a_wrong_number_of_compositions() -> None:
    found = lying(lambda m: Composition(m.by_base[:2]) if isinstance(m, Composition) else m)
    with pytest.raises(ClientError, match=r"client 1 failed in composed, round 0: .*by_base: expected 3 rows, found 2"):
        evaluate(found, full=True)


@pytest.mark.parametrize("field", ["own", "validation", "common"])
def test_so_are_sums_that_no_answers_have(field: str) -> None:
    sums = torch.tensor([1e308, 1e-308], dtype=torch.float64)
    found = lying(lambda m: replace(m, **{field: sums}) if isinstance(m, Counted) else m)
    with pytest.raises(ClientError, match=rf"client 1 failed in count, round 0: {field}: expected .*, found \[1e\+308"):
        evaluate(found, full=False)
    # the common test set is known to have 24 rows
    many = lying(lambda m: replace(m, **{field: torch.full_like(m.own, 25)}) if isinstance(m, Counted) else m)
    if field == "common":
        with pytest.raises(ClientError, match="of at most 24, found"):
            evaluate(many, full=False)
    else:
        assert evaluate(many, full=False).own[0] >= 0


def test_so_are_those_behind_one_base() -> None:
    def change(message: Message) -> Message:
        if isinstance(message, Composition):
            message.by_base[2, 1] = 0.5
        return message

    with pytest.raises(ClientError, match="client 1 failed in composed, round 0: by_base, base 2: expected a part"):
        evaluate(lying(change), full=False)
