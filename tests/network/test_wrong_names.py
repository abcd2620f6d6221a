"""A certificate for another name is said on both sides, once; a proxy of the environment is none of a vendor's file."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from parties import parties

from interfuse.engines.grpc import Listener, dial, make_keys
from interfuse.engines.parties import LineError, Link, MisnamedError, Peer, StrangeError, Vendor, participation
from interfuse.engines.parties.frames import Begin, Cancel, frames
from interfuse.engines.parties.node import RefusedError
from interfuse.engines.parties.participation import take_part


def test_a_certificate_for_another_name_ends_the_try_and_stands_in_both_logs(tmp_path: Path) -> None:
    with parties(tmp_path, ("ant", "bee")) as two:
        two.prepare({"evaluation": "own", "rounds": 1}, ["logistic"])
        shutil.rmtree(tmp_path / "keys" / "coordinator")
        make_keys(tmp_path / "keys", two.names, ["elsewhere.example", "localhost"])
        coordinator = two.coordinate("--classes", "3")
        coordinator.says("listens")
        node = two.node("ant")
        assert node.wait() == 2
        assert "has a certificate for elsewhere.example, localhost" in node.text()
        assert "dial that name" in node.text()
        coordinator.says("refused by the node")
        told = "name in the coordinator's certificate: expected 127.0.0.1, found elsewhere.example, localhost"
        assert told in coordinator.text()
        assert told in str(two.events())
        assert "name in the coordinator's certificate" in (tmp_path / "ant/state/audit.jsonl").read_text()
        assert "connects again" not in node.text()


class Line:
    """A line on which somebody else answers, or the run ends."""

    def __init__(self, error: Exception | None) -> None:
        self.error, self.told = error, list[str]()

    def received(self) -> Iterator[bytes]:
        if self.error is not None:
            raise self.error
        yield from frames(Begin(attempt=1, client=0, clients=1, d=None))
        raise LineError("broken")

    def tell(self, found: str, frames: Iterable[bytes]) -> None:
        self.told.append(found)

    def send(self, frame: bytes) -> None: ...

    def finish(self) -> None: ...


class Node:
    """A node that answers nothing."""

    def __init__(self) -> None:
        self.events, self.said = self, list[str]()
        self.vendor = Vendor.model_validate(
            {"name": "ant", "model": {}, "data": {"source": "x"}, "allow": {"methods": [], "disclosures": []}}
        )

    def add(self, event: str, **facts: Any) -> None:
        self.said.append(f"{event} {facts}")

    def hello(self) -> tuple[Cancel, bytes]:
        return Cancel(attempt=0, number=0), b""

    def misnamed(self, found: object) -> tuple[Cancel, bytes]:
        return self.hello()

    def answer(self, *asked: object) -> Iterator[Any]:
        yield from ()


MISNAMED, STRANGE, BROKEN = MisnamedError("another name", ["elsewhere"]), StrangeError("no key"), LineError("nobody")


def tries(monkeypatch: pytest.MonkeyPatch, *errors: Exception | None) -> tuple[int, str, list[Line]]:
    """How often a node dials before it gives up, and why, where lines end so; after the last one there is nobody."""
    monkeypatch.setattr(participation, "SHORTEST", 0.0)
    lines = [Line(error) for error in errors]
    left = iter(lines)

    @contextmanager
    def dial() -> Iterator[Line]:
        if (line := next(left, None)) is None:
            raise KeyboardInterrupt
        yield line

    node: Any = Node()
    try:
        take_part(node, dial)
    except RefusedError as error:
        return len(lines) - len(list(left)), str(error), lines
    except KeyboardInterrupt:
        return len(lines), "it goes on", lines
    raise AssertionError


def test_who_was_never_in_the_run_gives_up_where_somebody_else_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    count, why, lines = tries(monkeypatch, BROKEN, MISNAMED, MISNAMED)
    assert (count, why, lines[1].told) == (2, "another name", ["elsewhere"])
    count, why, _ = tries(monkeypatch, STRANGE, STRANGE, BROKEN, *[STRANGE] * 9)
    assert (count, why) == (8, "no key (5 tries)")


def test_who_was_in_the_run_goes_on_trying_whoever_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    count, why, lines = tries(monkeypatch, None, MISNAMED, MISNAMED, *[STRANGE] * 9)
    assert (count, why) == (12, "it goes on")
    assert not any(line.told for line in lines)


@pytest.mark.parametrize(("key", "authority"), [("one", "two"), ("two", "one"), ("two", "two")])
def test_keys_of_another_authority_are_told_from_a_coordinator_that_is_away(
    tmp_path: Path, key: str, authority: str
) -> None:
    for place in ("one", "two"):
        make_keys(tmp_path / place, ["ant"], ["127.0.0.1"])
    listener = Listener("127.0.0.1:0", tmp_path / "one" / "coordinator")
    listener.open(2, lambda link, incoming, peer: link.end())
    files = tmp_path / key / "ant"
    vendor = Vendor.model_validate(
        {
            "name": "ant", "coordinator": listener.address, "model": {}, "data": {"source": "x"},
            "allow": {"methods": [], "disclosures": []},
            "keys": {
                "key": files / "ant.key", "certificate": files / "ant.crt", "authority": tmp_path / authority / "ca.crt"
            },
        }
    )  # fmt: skip
    try:
        with dial(vendor, insecure=False) as line, pytest.raises(StrangeError) as error:
            next(iter(line.received()))
    finally:
        listener.close()
    wanted = "does not take this node's certificate" if authority == "one" else "has no certificate of this node's"
    assert wanted in str(error.value)
    with dial(vendor, insecure=False) as line, pytest.raises(LineError) as away:
        next(iter(line.received()))
    assert not isinstance(away.value, StrangeError)


@pytest.mark.parametrize("name", ["https_proxy", "http_proxy", "grpc_proxy", "HTTPS_PROXY"])
def test_a_proxy_of_the_environment_is_not_obeyed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens there: a node that obeyed would reach nothing."""
    for other in ("no_grpc_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    heard: list[bytes] = []
    arrived = threading.Event()

    def join(link: Link, incoming: Iterator[bytes], peer: Peer) -> None:
        def read() -> None:
            heard.append(next(incoming))
            arrived.set()
            link.end()

        threading.Thread(target=read, daemon=True).start()

    listener = Listener("127.0.0.1:0", None)
    listener.open(1, join)
    values: dict[str, Any] = {
        "name": "ant",
        "coordinator": listener.address,
        "model": {},
        "data": {"source": "digits"},
        "allow": {"methods": ["ifl"], "disclosures": []},
    }
    try:
        with dial(Vendor.model_validate(values), insecure=True) as line:
            line.send(b"hello")
            assert arrived.wait(20)
        assert heard == [b"hello"]
    finally:
        listener.close()
