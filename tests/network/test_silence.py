"""A stream lasts while nobody says anything: a call may take hours."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from interfuse.engines.grpc import Listener, dialling, listening
from interfuse.engines.parties import Link, Peer, Vendor
from interfuse.engines.parties.frames import End

Options = tuple[tuple[str, int], ...]
FASTER = 50
SILENCE = 4.5


def faster(options: Options) -> Options:
    """The same where questions come faster; who is slow to answer has as long as ever."""
    of_questions = ("keepalive_time_ms", "min_ping_interval_without_data_ms")
    return tuple((name, value // FASTER if name.endswith(of_questions) else value) for name, value in options)


def test_a_coordinator_that_has_nothing_to_say_is_not_asked_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is silent while its node asks more often than gRPC allows where nobody says so."""
    monkeypatch.setattr(dialling, "OPTIONS", faster(dialling.OPTIONS))
    strict = ("grpc.http2.max_ping_strikes", 1)
    monkeypatch.setattr(listening, "SERVER", (*faster(listening.SERVER), strict))

    def join(link: Link, incoming: Iterator[bytes], peer: Peer) -> None:
        def later() -> None:
            link.send(End(reason="done", finished=True))
            link.end()

        threading.Timer(SILENCE, later).start()

    with closing(Listener("127.0.0.1:0", None)) as listener:
        listener.open(1, join)
        vendor = Vendor.model_validate(
            {
                "name": "ant",
                "coordinator": listener.address,
                "model": {"build": "mlp"},
                "data": {"source": "digits"},
                "allow": {"methods": [], "disclosures": []},
                "folder": Path(),
            }
        )
        with dialling.dial(vendor, insecure=True) as line:
            line.send(b"hello")
            assert b"".join(line.received())
