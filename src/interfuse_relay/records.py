"""How bytes lie in a Flower message, and what is there in their place."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

ACTION = "interfuse"
"""What is asked: messages have the type ``query.interfuse``."""
RECORD, PACKET, FAILURE = "interfuse", "packet", "failure"
"""Where bytes lie in a Flower message, and the word that is there in their place."""
UNNAMED, NOBODY, BROKEN = "no-socket-named", "no-node", "broken-off"
"""All that leaves of a failure here: no path, and no exception's text."""


def content_of(packet: bytes) -> RecordDict:
    """Bytes as the content of a Flower message; Flower cuts arrays into pieces that its transport takes."""
    array = Array(dtype="uint8", shape=(len(packet),), stype=RECORD, data=packet)
    return RecordDict({RECORD: ArrayRecord({PACKET: array})})


def packet_of(content: RecordDict) -> bytes | None:
    """The bytes in a Flower message; None where there are none."""
    arrays = content.array_records.get(RECORD)
    array = None if arrays is None else arrays.get(PACKET)
    return bytes(array.data) if array is not None and array.stype == RECORD else None


def failure_of(content: RecordDict) -> str:
    """The word for which there are no bytes in a Flower message; empty where there is none of ours."""
    words = content.config_records.get(RECORD)
    word = "" if words is None else words.get(FAILURE, "")
    return word if word in (UNNAMED, NOBODY, BROKEN) else ""


def failed(word: str) -> RecordDict:
    """Such a word as the content of a Flower message."""
    return RecordDict({RECORD: ConfigRecord({FAILURE: word})})
