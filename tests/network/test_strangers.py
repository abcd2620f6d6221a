"""Strangers, revoked keys and floods at a coordinator's port keep nobody out, and take no more than their share."""

from __future__ import annotations

import importlib.util
import resource
import socket
import ssl
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hostile_vendor import METHOD, contract
from parties import NAMES, assert_equal_to_local, parties, until

from interfuse.engines.grpc import Listener, handshakes, make_keys
from interfuse.engines.grpc.keys import of_node
from interfuse.engines.parties import KeyFiles
from interfuse.engines.parties.carrier import Peer
from interfuse.engines.parties.hub import UNHEARD, Hub
from interfuse.engines.parties.logs import Events
from interfuse.engines.parties.machine import KEPT, bound_memory, raise_descriptors
from interfuse.engines.parties.strangers import AT_ONCE, Strangers
from interfuse.engines.processes import fork


def _attacks() -> ModuleType:
    place = Path(__file__).parents[2] / "benchmarks" / "attacks.py"
    spec = importlib.util.spec_from_file_location("benchmarks_attacks", place)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    return found


attacks = _attacks()
TWO = ("ant", "bee")
RECIPE = {"method": "ifl", "settings": {"local_steps": 1, "batch_size": 8}}


def few_descriptors() -> None:
    """A process that begins with the usual limit of descriptors, and may have more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))


def written(work: Callable[..., int], place: Path, *arguments: object) -> None:
    """Do something in a process of its own, and write down what came of it."""
    place.write_text(str(work(*arguments)))


def descriptors(pid: int | None) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_all_at_once_do_not_keep_two_nodes_from_a_run_with_its_bits(tmp_path: Path) -> None:
    """1,300 connections without a key, half-open handshakes, 40 silent streams of a revoked key, resets and pings."""
    with parties(tmp_path, TWO) as two:
        two.names = (*TWO, "revoked", "flood")
        config = two.prepare(RECIPE, ["logistic"])
        two.names = TWO
        config = config.model_copy(update={"data": config.data[:2], "clients": 2})
        folder = tmp_path / "keys" / "coordinator"
        revoked = folder / "nodes" / "revoked.crt"
        (folder / "revoked" / "revoked.crt").write_bytes(revoked.read_bytes())
        revoked.unlink()
        coordinator = two.coordinate(lie=few_descriptors)
        coordinator.says("listens")
        address = ("127.0.0.1", two.port)
        silent, flooding = (attacks.files_of(tmp_path / "keys", name) for name in ("revoked", "flood"))
        jobs = {
            "idle": (attacks.idle, address, 1300, 8.0), "half": (attacks.half_open, address, 50, 8.0),
            "silent": (attacks.silent, address, silent, 40, 6.0),
            "reset": (attacks.rapid_reset, address, flooding, 20_000),
            "ping": (attacks.ping_flood, address, flooding, 20_000),
        }  # fmt: skip
        running = [fork(written, work, tmp_path / name, *rest, name=name) for name, (work, *rest) in jobs.items()]
        until(lambda: descriptors(coordinator.process.pid) > 1200, 20, two.everything)  # beyond the usual limit
        nodes = two.all_nodes()
        assert coordinator.wait() == 0, two.everything()
        assert [node.wait() for node in nodes] == [0, 0], two.everything()
        for one in running:
            one.join(30)
        found = {name: int((tmp_path / name).read_text()) for name in jobs}
        assert found["silent"] == 0, found  # none of them is given a stream
        assert 1 + AT_ONCE >= sum("revoked key" in str(event) for event in two.events()) >= 1
        assert_equal_to_local(two, config)


def test_a_key_has_its_share_of_streams_and_is_looked_at_in_time(tmp_path: Path) -> None:
    """A node that comes back fifty times, one a version ahead, clocks that are wrong, and one stream too many."""
    with parties(tmp_path, TWO) as two:
        two.prepare(RECIPE, ["logistic"])
        early = attacks.skewed(tmp_path / "keys", "early", timedelta(days=1), timedelta(days=2))
        late = attacks.skewed(tmp_path / "keys", "late", timedelta(days=-2), timedelta(days=-1))
        coordinator = two.coordinate()
        coordinator.says("listens")
        address, bee = ("127.0.0.1", two.port), attacks.files_of(tmp_path / "keys", "bee")
        jobs = {
            "early": (attacks.joins, address, early, attacks.hello("early"), 1),
            "late": (attacks.joins, address, late, attacks.hello("late"), 1),
            "ahead": (attacks.joins, address, bee, attacks.hello("bee", library="99.0", protocol=2), 3),
            "again": (attacks.joins, address, bee, attacks.hello("bee"), 50),
            "silent": (attacks.silent, address, bee, 10, 4.0),
        }  # fmt: skip
        found = {}
        for name, (work, *rest) in jobs.items():
            fork(written, work, tmp_path / name, *rest, name=name).join(60)
            found[name] = int((tmp_path / name).read_text())
        assert found["early"] == found["late"] == 0  # TLS itself refuses them
        assert found["ahead"] == 3  # and is told
        assert found["again"] == 50
        assert found["silent"] <= 2
        assert "protocol version: expected 1, found 2" in coordinator.text()
        assert descriptors(coordinator.process.pid) < 100
        nodes = two.all_nodes()
        assert coordinator.wait() == 0, two.everything()
        assert [node.wait() for node in nodes] == [0, 0], two.everything()


def test_a_stranger_has_few_lines_in_the_log_and_hears_how_many_more_there_were() -> None:
    shown: list[str] = []
    strangers = Strangers(Events(None, shown.append))
    for port in range(500):
        strangers.add("refused", Peer(f"ipv4:10.0.0.1:{port}"), reason="unknown key")
        strangers.add("refused", Peer(f"ipv4:10.0.0.2:{port}", b"key"), reason="revoked key")
    assert len(shown) == 2 * AT_ONCE
    assert len(NAMES) == 4


def limits_of_a_process(place: Path) -> int:
    few_descriptors()
    room = raise_descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert room == soft - KEPT
    assert soft == min(hard, 1 << 16) > 1024
    bound_memory(2 << 30)
    import torch

    try:
        torch.empty(137_000_000_000, dtype=torch.uint8)
    except RuntimeError:
        return 1
    return 0


def test_a_process_has_the_descriptors_it_may_have_and_no_more_memory_than_its_vendor_says(tmp_path: Path) -> None:
    fork(written, limits_of_a_process, tmp_path / "found", tmp_path, name="limits").join(30)
    assert (tmp_path / "found").read_text() == "1"


def handshake(address: tuple[str, int], context: ssl.SSLContext) -> None:
    """Connect with a certificate, and wait until the other side has judged it."""
    with (
        suppress(OSError),
        socket.create_connection(address, 10) as link,
        context.wrap_socket(link, server_hostname="localhost") as line,
    ):
        line.recv(1)
        line.recv(1 << 16)


def test_connections_that_call_nothing_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes, "SETTLED", 0.0)
    keys = {name: tmp_path / name for name in ("ours", "theirs")}
    for folder in keys.values():
        make_keys(folder, ["ant"], ["localhost"])
    listener, said = Listener("127.0.0.1:0", keys["ours"] / "coordinator"), list[str]()
    hub = Hub(contract(), METHOD, 1, listener, Events(None, said.append))
    try:
        address = ("127.0.0.1", int(listener.address.rpartition(":")[2]))
        context = ssl.create_default_context(cafile=str(keys["ours"] / "ant" / "ca.crt"))
        context.load_cert_chain(keys["theirs"] / "ant" / "ant.crt", keys["theirs"] / "ant" / "ant.key")
        for _ in range(3):
            handshake(address, context)
        hub.note_unheard()
        hub.note_unheard()
        assert said == [f"connections that called nothing count=3 reason={UNHEARD}"]
        files = KeyFiles.in_folder(keys["ours"] / "ant", "ant")
        known = grpc.secure_channel(f"localhost:{address[1]}", of_node(files))
        for _ in range(3):
            health_pb2_grpc.HealthStub(known).Check(health_pb2.HealthCheckRequest())
        known.close()
        assert listener.unheard() == 0
    finally:
        hub.close("over", finished=True)


def test_a_connection_is_settled_before_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(handshakes.time, "monotonic", lambda: now[0])
    found = handshakes.Handshakes()
    for _ in range(3):
        found.begins()
    found.calls("ipv4:127.0.0.1:1")
    found.calls("ipv4:127.0.0.1:1")
    assert found.unheard() == 0
    now[0] = handshakes.SETTLED
    assert [found.unheard(), found.unheard()] == [2, 0]


def test_nobody_who_calls_counts_as_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports come again, connections stay, and calls of hours lie behind."""
    now, found = [0.0], handshakes.Handshakes()
    monkeypatch.setattr(handshakes.time, "monotonic", lambda: now[0])
    for beat in range(1_000):
        now[0] += 10.0
        found.begins()  # somebody looks every ten seconds, through one of 200 ports
        found.calls(f"ipv4:127.0.0.1:{beat % 200}")
        found.calls("ipv4:127.0.0.1:999")  # and a connection stays for ever
        assert found.unheard() == 0
    now[0] += 100.0
    assert found.unheard() == 0
    for _ in range(70_000):
        found.begins()
    now[0] += handshakes.SETTLED
    assert found.unheard() == 70_000
