"""A certificate for another name is said on both sides, once; a proxy of the environment is none of a vendor's file."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from parties import parties

from interfuse.engines.grpc import Listener, dial, make_keys
from interfuse.engines.parties import Link, Peer, Vendor


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
