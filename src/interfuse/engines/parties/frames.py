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

from interfuse.engines.parties.contract import Contract, Facts
from interfuse.engines.parties.words import Digest, Name, Sentence, printable
from interfuse.errors import InterfuseError
from interfuse.wire import Heading, Pieces

PROTOCOL = 1
CHUNK = 1 << 20
"""Payload bytes of a frame at most."""
HEADER = 1 << 20
"""Header bytes of a frame at most: the keys of a model with ten thousand tensors fit."""
LARGEST_FRAME = CHUNK + HEADER + 4
MESSAGE = 1 << 30
"""Payload bytes of a message at most, unless a side says otherwise."""
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


Envelope = Hello | Offer | Accept | Refusal | Begin | Ready | Call | Reply | Order | Done | Cancel | End
_ENVELOPE: TypeAdapter[Envelope] = TypeAdapter(Annotated[Envelope, Field(discriminator="kind")])
_LENGTH = struct.Struct("<I")
Payload = bytes | Pieces


def frames(envelope: Envelope, payload: Payload = b"") -> Iterator[bytes]:
    """The frames of an envelope and its payload."""
    header = envelope.model_copy(update={"size": len(payload)}).model_dump_json().encode()
    if len(header) > HEADER:
        raise FrameError(f"a header of {len(header)} bytes: at most {HEADER} can be sent")
    pieces = Pieces.of(payload)
    yield b"".join((_LENGTH.pack(len(header)), header, *pieces[:CHUNK].parts))
    for start in range(CHUNK, len(pieces), CHUNK):
        yield b"".join((_LENGTH.pack(0), *pieces[start : start + CHUNK].parts))


class Assembler:
    """Puts frames of one stream together again. Nothing is allocated that was not announced within the limit.

    Args:
        limit: Payload bytes of a message at most.
    """

    def __init__(self, limit: int = MESSAGE) -> None:
        self.limit = limit
        self._envelope: Envelope | None = None
        self._pieces: list[memoryview] = []
        self._held = 0

    def feed(self, frame: bytes) -> tuple[Envelope, Payload] | None:
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
        if envelope.size > self.limit:
            raise FrameError(f"{envelope.kind}: {envelope.size} bytes of payload, at most {self.limit} are taken")
        if len(piece) == envelope.size:
            return envelope, Pieces([piece])
        self._envelope = envelope
        return self._go_on(piece)

    def _go_on(self, piece: memoryview) -> tuple[Envelope, Payload] | None:
        envelope = self._envelope
        if envelope is None or not piece:
            raise FrameError("a piece of payload that belongs to no message")
        if self._pieces and len(self._pieces[-1]) < CHUNK:  # what frames cost beside their payload is bounded
            raise FrameError(f"a piece of {len(self._pieces[-1])} bytes in the middle of a payload")
        if self._held + len(piece) > envelope.size:
            raise FrameError(f"{envelope.kind}: more payload than the {envelope.size} bytes announced")
        self._pieces.append(piece)
        self._held += len(piece)
        if self._held < envelope.size:
            return None
        payload = Pieces(self._pieces)
        self._envelope, self._pieces, self._held = None, [], 0
        return envelope, payload


def _parse(header: bytes) -> Envelope:
    try:
        return _ENVELOPE.validate_json(header)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:80]
        raise FrameError(f"a header that is none of ours: {place!a}: {printable(first['msg'], 120)}") from None
