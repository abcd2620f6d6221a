"""What a service takes, in bytes, rows, seconds and connections."""

from __future__ import annotations

from dataclasses import dataclass

STALE = 300.0
"""Seconds for which a registry or a file of keys that cannot be read is believed as it was."""


@dataclass(frozen=True)
class ServiceLimits:
    """Of one service. What goes beyond is refused with a code of its own, and disturbs nobody else.

    Attributes:
        body: Bytes of a request's body.
        json_body: The same for JSON, whose numbers take many times their text in memory.
        rows: Samples in a request, and in one computation, which may have those of several requests.
        waiting: Requests to one block that wait for it.
        memory: Bytes of all bodies together that are read or waiting.
        connections: At a time. Twice as many are told that there are too many; more are cut off.
        head: Seconds for a request's line and headers.
        body_time: Seconds for its body.
        wait: Seconds until its computation begins.
        compute: Seconds for the computation that it goes into.
        request: Seconds for all of it, the answer's way included: more than for its body, the queue and the computation
            together, so that who waits too long is told so.
        idle: Seconds that a connection is kept between two requests.
        drain: Seconds for what is under way when the service is asked to end.
    """

    body: int = 8 << 20
    json_body: int = 2 << 20
    rows: int = 512
    waiting: int = 64
    memory: int = 256 << 20
    connections: int = 256
    head: float = 10.0
    body_time: float = 20.0
    wait: float = 10.0
    compute: float = 60.0
    request: float = 100.0
    idle: float = 30.0
    drain: float = 30.0
