"""What goes over a stream: envelopes with a payload, cut into frames.

A frame is a length (u32, little-endian), a header of that length in JSON, and a piece of the payload. The first frame
of a message has the header; a frame whose length is 0 goes on with the payload before it. All pieces but the last have
the full length. A payload is one message in interfuse's wire form, or nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Annotated, Literal

from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from interfuse.engines.parties.contract import MESSAGE, Contract, Facts
from interfuse.engines.parties.words import Digest, Name, Sentence, printable
from interfuse.errors import InterfuseError
from interfuse.wire import Arriving, Heading, Limits, Pieces

PROTOCOL = 1
CHUNK = 1 << 20
"""Payload bytes of a frame at most."""
HEADER = 1 << 20
"""Header bytes of a frame at most: the keys of a model with ten thousand tensors fit."""
LARGEST_FRAME = CHUNK + HEADER + 4
CLIENTS = 100_000
"""Clients of a run at most."""

Natural = Annotated[int, Ge(0), Le(2**53)]
Count = Annotated[int, Ge(0), Le(10**12)]
"""Of steps or rows: no node makes more, and sums of them stay exact."""
Seconds = Annotated[float, Ge(0), Le(10**7), Field(allow_inf_nan=False)]
"""Of work: no run waits for months."""
Code = Literal[
    "handler-error",
    "bad-message",
    "not-allowed",
    "limit-bytes",
    "limit-rounds",
    "limit-rows",
    "limit-calls",
    "limit-seconds",
    "stale",
    "disk",
    "wrong-state",
]
"""All that a node says of a failure."""


class FrameError(InterfuseError):
    """The other side sent something that is no frame of ours; the text says what."""


class _Envelope(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    size: Natural = 0
    """Bytes of payload that follow."""


class Hello(_Envelope):
    """Node: who it is. ``incarnation`` is drawn when its process starts: what it holds in memory is gone with it."""

    kind: Literal["hello"] = "hello"
    protocol: Natural
    library: Name
    wire: Natural
    name: Name
    incarnation: Name


class Offer(_Envelope):
    """Coordinator: what is to be run."""

    kind: Literal["offer"] = "offer"
    contract: Contract


class Accept(_Envelope):
    """Node: it agrees; what the coordinator may know of it."""

    kind: Literal["accept"] = "accept"
    facts: Facts


class Refusal(_Envelope):
    """Either side: it does not agree, and in what. The stream ends after it."""

    kind: Literal["refusal"] = "refusal"
    field: Name
    expected: Sentence
    found: Sentence
    retry: bool = False
    """The same may work later."""


class Begin(_Envelope):
    """Coordinator: an attempt begins. What was done since the last commit in an earlier one is to be forgotten."""

    kind: Literal["begin"] = "begin"
    attempt: Natural
    client: Natural
    clients: Annotated[int, Ge(1), Le(CLIENTS)]
    d: Natural | None


class Ready(_Envelope):
    """Node: it stands at the beginning of the attempt."""

    kind: Literal["ready"] = "ready"
    attempt: Natural


class Call(_Envelope):
    """Coordinator: run a handler. ``number`` counts calls and orders to this node in an attempt from 1; what is asked
    next acknowledges the answer before it. ``ended`` counts the rounds and evaluations that are over: what the client
    was lent for them is to be forgotten."""

    kind: Literal["call"] = "call"
    attempt: Natural
    number: Natural
    ended: Natural
    program: Name
    handler: Name
    heading: Heading
    round: Natural
    index: Natural
    recoverable: bool
    message: bool
    """The payload is a message; otherwise the handler takes none."""


class Reply(_Envelope):
    """Node: how a call ended. ``message`` as in :class:`Call`."""

    kind: Literal["reply"] = "reply"
    attempt: Natural
    number: Natural
    seconds: Seconds = 0.0
    steps: Count = 0
    left_out: Count = 0
    message: bool = False
    failure: Code | None = None


class Order(_Envelope):
    """Coordinator: save the owned state, or go back to a saved one. ``number`` and ``ended`` as in :class:`Call`.

    ``keep`` names the saved states that may be asked for again; ``digest`` is None for the state before the first call.
    """

    kind: Literal["order"] = "order"
    attempt: Natural
    number: Natural
    ended: Natural
    do: Literal["save", "load"]
    digest: Digest | None = None
    keep: tuple[Digest, ...] = ()


class Done(_Envelope):
    """Node: how an order ended. ``digest`` and ``bytes`` are those of the saved state; None where nothing changed.

    ``audit`` is a mark of the node's audit log before this: how many lines it has, and the digest of the last.
    """

    kind: Literal["done"] = "done"
    attempt: Natural
    number: Natural
    failure: Code | None = None
    digest: Digest | None = None
    bytes: Natural = 0
    audit: Annotated[str, Field(pattern=r"^[0-9]{1,12}:[0-9a-f]{64}$")] | None = None


class Cancel(_Envelope):
    """Coordinator: the reply to a call came too late for its round: put the client back to before it."""

    kind: Literal["cancel"] = "cancel"
    attempt: Natural
    number: Natural


class End(_Envelope):
    """Coordinator: the run is over for this node, and why."""

    kind: Literal["end"] = "end"
    reason: Sentence
    finished: bool


Question = Offer | Begin | Call | Order
"""What a node answers, each with one envelope. A coordinator asks a node one thing after the other."""
Envelope = Hello | Offer | Accept | Refusal | Begin | Ready | Call | Reply | Order | Done | Cancel | End
_ENVELOPE: TypeAdapter[Envelope] = TypeAdapter(Annotated[Envelope, Field(discriminator="kind")])
_LENGTH = struct.Struct("<I")
Payload = bytes | Pieces
Incoming = Payload | Arriving
"""A payload that came: one of several frames is in its tensors already and its bytes are gone, unless it is compact."""


def frames(envelope: Envelope, payload: Payload = b"") -> Iterator[bytes]:
    """The frames of an envelope and its payload."""
    header = envelope.model_copy(update={"size": len(payload)}).model_dump_json().encode()
    if len(header) > HEADER:
        raise FrameError(f"a header of {len(header)} bytes: at most {HEADER} can be sent")
    pieces = Pieces.of(payload)
    begin = _LENGTH.pack(len(header)) + header
    for piece in pieces.cut(CHUNK):
        yield b"".join((begin, *piece.parts))
        begin = _LENGTH.pack(0)


class Assembler:
    """Puts frames of one stream together again. Nothing is allocated that was not announced within the limit, and of a
    message of several frames no frame is held, unless it is compact: what is in it is copied to where it will stay.

    Args:
        limit: Payload bytes of a message at most.
        ends: A larger one ends the stream. Otherwise what is in it is let go, and whoever opens it hears why.
    """

    def __init__(self, limit: int = MESSAGE, *, ends: bool = True) -> None:
        self.limit, self._ends = limit, ends
        self._envelope: Envelope | None = None
        self._arriving: Arriving | None = None
        self._came = 0
        self._short: int | None = None

    def feed(self, frame: bytes) -> tuple[Envelope, Incoming] | None:
        """The message that this frame completes, or None.

        Raises:
            FrameError: the frame is malformed, or too large.
        """
        if len(frame) < _LENGTH.size:
            raise FrameError(f"a frame of {len(frame)} bytes")
        (length,) = _LENGTH.unpack_from(frame)
        view = memoryview(frame)[_LENGTH.size :]
        if length == 0:
            return self._go_on(view)
        if self._envelope is not None:
            raise FrameError("a new message inside another")
        if length > min(HEADER, len(view)):
            raise FrameError(f"a header of {length} bytes in a frame of {len(frame)}")
        envelope, piece = _parse(bytes(view[:length])), view[length:]
        if envelope.size > self.limit and self._ends:
            raise FrameError(f"{envelope.kind}: {envelope.size} bytes of payload, at most {self.limit} are taken")
        if len(piece) == envelope.size <= self.limit:
            return envelope, Pieces([piece])
        self._envelope, self._came, self._short = envelope, 0, None
        self._arriving = Arriving(envelope.size, Limits(max_bytes=self.limit))
        return self._go_on(piece)

    def _go_on(self, piece: memoryview) -> tuple[Envelope, Incoming] | None:
        envelope, arriving = self._envelope, self._arriving
        if envelope is None or arriving is None or not piece:
            raise FrameError("a piece of payload that belongs to no message")
        if self._short is not None:  # what frames cost beside their payload is bounded
            raise FrameError(f"a piece of {self._short} bytes in the middle of a payload")
        if self._came + len(piece) > envelope.size:
            raise FrameError(f"{envelope.kind}: more payload than the {envelope.size} bytes announced")
        self._short = len(piece) if len(piece) < CHUNK else None
        arriving.feed(piece)
        self._came += len(piece)
        if self._came < envelope.size:
            return None
        self._envelope = self._arriving = None
        return envelope, arriving


def _parse(header: bytes) -> Envelope:
    try:
        return _ENVELOPE.validate_json(header)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:80]
        raise FrameError(f"a header that is none of ours: {place!a}: {printable(first['msg'], 120)}") from None
