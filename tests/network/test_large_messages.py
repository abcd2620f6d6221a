"""Messages of several frames: written down before they leave, with a digest that is known before their last piece."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import Coordinator, changed, contract_of, refusal
from blake3 import blake3
from parties import rows

from interfuse.engines.parties import audit, frames, session
from interfuse.engines.parties.architectures import Architectures
from interfuse.engines.parties.audit import verify
from interfuse.engines.parties.budget import Budget
from interfuse.engines.parties.contract import Facts, JoinError, Shapes
from interfuse.engines.parties.frames import Call, Reply
from interfuse.errors import MessageError, RunError
from interfuse.messages import Weights
from interfuse.messages.encoding import encoded
from interfuse.methods import find
from interfuse.wire import Arriving, Pieces

PIECE = 100


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Coordinator]:
    """A coordinator whose node's replies take several frames."""
    for module in (audit, frames, session):
        monkeypatch.setattr(module, "CHUNK", PIECE)
    found = Coordinator(tmp_path, "\n[limits]\nanswers = 2\n")
    with closing(found.node):
        yield found


def lines(one: Coordinator, file: str = "audit.jsonl") -> list[Any]:
    (path,) = (one.folder / "state").glob(f"**/{file}")
    return [json.loads(line) for line in path.read_text().splitlines()]


def question(one: Coordinator, number: int, value: float = 0.0, attempt: int = 1) -> tuple[Call, Pieces]:
    """A call of FedAvg's training, with a model of such values."""
    call = Call(
        attempt=attempt, number=number, ended=0, program="method", handler="train", heading="training", round=1,
        index=0, recoverable=False, message=True,
    )  # fmt: skip
    return call, encoded(Weights({key: torch.full_like(zero, value) for key, zero in one.zeros.items()}))


def answered(one: Coordinator, number: int, value: float = 0.0) -> str | None:
    """The digest of the node's answer, none where it fails."""
    ((reply, payload),) = one.node.answer(*question(one, number, value, one.attempt))
    assert isinstance(reply, Reply)
    return None if reply.failure else blake3(bytes(payload)).hexdigest()


def test_line_then_message_then_digest_then_the_last_piece(one: Coordinator) -> None:
    before = len(lines(one))
    for envelope, payload in one.node.answer(*question(one, 1)):
        assert [line["digest"] for line in lines(one)[before:]] == [None]
        sent, states = [], []
        for frame in frames.frames(envelope, payload):
            sent.append(frame)
            states.append(len(lines(one)) - before)
        assert len(sent) > 5
        assert states == [1] * (len(sent) - 1) + [2]
        wanted = blake3(bytes(payload)).hexdigest()
    begun, known = lines(one)[before:]
    assert (begun["what"], begun["bytes"], begun["repeated"]) == ("reply", len(payload), False)
    assert (known["what"], known["digest"], known["bytes"]) == ("digest", wanted, 0)
    assert known["facts"] == {"line": before + 1}
    assert not [text for text in verify(one.folder / "state" / "audit.jsonl").unknown if "digests" in text]
    assert answered(one, 1) == wanted  # once more, after a break
    assert [(line["repeated"], line["digest"]) for line in lines(one)[before + 2 :]] == [(True, wanted)]
    assert one.node.audit.sent("run") == len(payload)


def test_a_stream_that_breaks_leaves_the_digest_of_the_whole(one: Coordinator) -> None:
    for envelope, payload in one.node.answer(*question(one, 1)):
        next(frames.frames(envelope, payload))
        break
    assert lines(one)[-1]["digest"] == blake3(bytes(payload)).hexdigest()


def test_the_same_answer_is_one_and_others_are_counted(one: Coordinator) -> None:
    first = answered(one, 1)
    assert first is not None
    one.begin()
    assert answered(one, 1) == first
    one.begin()
    assert answered(one, 1, 1.0) not in (None, first)
    one.begin()
    assert answered(one, 1, 2.0) is None
    assert lines(one)[-1]["facts"]["failure"] == "limit-calls"
    one.begin()
    assert answered(one, 1) == first


def test_an_answer_whose_node_was_killed_on_its_way_counts(one: Coordinator) -> None:
    answers = next((one.folder / "state").glob("*/answers.jsonl"))
    answered(one, 1)
    one.begin()
    sending = one.node.answer(*question(one, 1, 1.0, one.attempt))
    next(sending)
    begun, limits = answers.read_bytes(), one.node.vendor.limits
    log = (one.folder / "state" / "audit.jsonl").read_bytes()
    sending.close()
    call, _ = question(one, 1)
    answers.write_bytes(begun)
    assert not Budget(answers, limits).claim(call, 1)
    answers.write_bytes(begun[: begun.rindex(b"[")])
    assert Budget(answers, limits).claim(call, 1)
    (one.folder / "log" / "audit.jsonl").parent.mkdir()
    (one.folder / "log" / "audit.jsonl").write_bytes(log)
    assert any("digests of what lines" in text for text in verify(one.folder / "log" / "audit.jsonl").unknown)


@pytest.mark.parametrize("file", ["audit.jsonl", "answers.jsonl"])
def test_without_room_for_the_digest_the_last_piece_stays(
    one: Coordinator, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for envelope, payload in one.node.answer(*question(one, 1)):
        monkeypatch.setattr(f"interfuse.engines.parties.{'audit' if 'audit' in file else 'budget'}.add_whole", full)
        sent = list[bytes]()
        with pytest.raises(RunError, match="nothing may leave"):
            sent.extend(frames.frames(envelope, payload))
        assert len(sent) == -(-len(payload) // PIECE) - 1
        monkeypatch.undo()
        break


def test_a_message_beyond_the_vendors_limit_is_answered_and_nothing_of_it_kept(one: Coordinator) -> None:
    call, payload = question(one, 1)
    for limit in (len(payload) - 1, 5):
        assembler, found = frames.Assembler(limit, ends=False), None
        for frame in frames.frames(call, payload):
            found = assembler.feed(frame)
        assert found is not None
        assert isinstance(found[1], Arriving)
        with pytest.raises(MessageError, match=f"at most {limit} bytes"):
            found[1].opened()
    ((reply, _),) = one.node.answer(*found)
    assert isinstance(reply, Reply)
    assert reply.failure == "bad-message"
    assert any(f"at most {limit} bytes" in text for text in one.said)


def test_where_parameters_travel_a_model_has_to_go_into_a_message_of_either_side(tmp_path: Path) -> None:
    rows(tmp_path, "rows", 0)
    contract = contract_of(tmp_path, "fedavg")
    found = refusal(tmp_path, contract, "\n[limits]\nmessage_bytes = 100\n")
    assert "[limits] message_bytes: expected at least" in found
    assert "found 100" in found
    assert "--largest of the coordinator: expected at least" in refusal(tmp_path, changed(contract, message_bytes=100))
    features = contract_of(tmp_path, "ifl", rounds=1)
    with pytest.raises(AssertionError):  # nothing is refused
        refusal(tmp_path, features, "\n[limits]\nmessage_bytes = 100\n")


def test_tensors_that_are_given_never_travel_and_do_not_count(tmp_path: Path) -> None:
    rows(tmp_path, "rows", 0)
    contract = contract_of(tmp_path, "fedavg")
    shapes = Shapes(
        sample=(2,), keys={"frozen": (1000, 1000), "own": (5, 5)}, cuts={}, stages=("base", "modular"), buffers=()
    )
    facts = Facts(
        architecture="mine",
        classes=3,
        fusion_width=8,
        samples=5,
        test_labels="",
        class_names="",
        given="",
        shapes=shapes,
    )
    frozen = facts.model_copy(update={"shapes": shapes.model_copy(update={"given": ("frozen",)})})
    check = Architectures(contract, find("fedavg")(), {}, 1000).check
    check(frozen, {})
    with pytest.raises(JoinError, match="expected at least 4000100"):
        check(facts, {})
    with pytest.raises(JoinError, match="at most"):
        check(
            facts.model_copy(update={"shapes": shapes.model_copy(update={"given": ("frozen",), "sample": (300,)})}), {}
        )
