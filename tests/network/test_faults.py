"""What goes wrong between parties, each with real processes: the run goes on, or stops with a clear message."""

from __future__ import annotations

import itertools
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from parties import assert_equal_to_local, parties, states, until

from interfuse.engines.grpc.keys import make_keys
from interfuse.engines.parties import node, participation, session
from interfuse.engines.parties.frames import Reply, frames
from interfuse.evaluation.accuracy import Counted, FusedTest
from interfuse.families.factors import Factored
from interfuse.families.fusion import FusionOutputs
from interfuse.families.priors import Statistics
from interfuse.messages import Message

M = TypeVar("M", bound=Message)
THREE = ("ant", "bee", "cat")
RECIPE = {"method": "ifl", "settings": {"local_steps": 1, "batch_size": 8}}


def in_rounds(change: Callable[[Reply, bytes], Iterator[bytes]]) -> Callable[[], None]:
    """A node whose replies with a message are changed on their way out."""

    def lie() -> None:
        def frames_of(envelope: Any, payload: bytes = b"") -> Iterator[bytes]:
            if isinstance(envelope, Reply) and envelope.message and envelope.number > 6:
                return change(envelope, payload)
            return frames(envelope, payload)

        participation.frames = frames_of  # type: ignore[assignment]

    return lie


def in_messages(change: Callable[[M], M], kind: type[M]) -> Callable[[], None]:
    """A node that sends other values or shapes than its handler returned."""

    def lie() -> None:
        honest = session.encoded
        session.encoded = lambda m, *rest: honest(  # type: ignore[assignment]
            change(m) if isinstance(m, kind) else m, *rest
        )

    return lie


def silent() -> None:
    """A node that never answers a call."""
    session.Session._call = lambda *_: time.sleep(1000)  # type: ignore[method-assign,assignment,return-value]


def of_another_version() -> None:
    node.LIBRARY = "0.0.1"  # type: ignore[attr-defined]


def replayed(reply: Reply, payload: bytes) -> Iterator[bytes]:
    """Under the number of a call that was answered long ago."""
    return frames(reply.model_copy(update={"number": 3}), payload)


def from_the_future(reply: Reply, payload: bytes) -> Iterator[bytes]:
    """Under the number of a call that was not asked."""
    return frames(reply.model_copy(update={"number": reply.number + 5}), payload)


def half(reply: Reply, payload: bytes) -> Iterator[bytes]:
    """Half of what the header announces, and nothing after it."""
    return (frame[: len(frame) - len(payload) // 2] for frame in frames(reply, payload))


def twice(reply: Reply, payload: bytes) -> Iterator[bytes]:
    """More answers than were asked for."""
    return itertools.chain(frames(reply, payload), frames(reply, payload), frames(reply, payload))


LIES = {
    "wrong shape": (in_messages(lambda m: FusionOutputs(m.z[:, :3], m.y), FusionOutputs), "expected d = 8"),
    "not finite": (
        in_messages(lambda m: FusionOutputs(m.z * float("nan"), m.y), FusionOutputs),
        "expected finite values",
    ),
    "too few rows": (in_messages(lambda m: FusedTest(m.z[:5]), FusedTest), "z: expected 24 rows, found 5"),
    "impossible sums": (
        in_messages(lambda m: Counted(m.own, m.validation * 1e300, m.common), Counted),
        "validation: expected a part",
    ),
    "replayed reply": (in_rounds(replayed), "no answer in time"),
    "reply from the future": (in_rounds(from_the_future), "which it was not asked"),
    "random bytes": (in_rounds(lambda reply, payload: iter([b"\x07" + os.urandom(200)])), "header"),
    "half a chunk": (in_rounds(half), "no answer in time"),
    "too many replies": (in_rounds(twice), "an answer to nothing that was asked"),
    "never answers": (silent, "no answer in time"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_run_goes_on_without_a_node_that_lies(name: str, tmp_path: Path) -> None:
    lie, reason = LIES[name]
    with parties(tmp_path, THREE) as three:
        three.prepare(RECIPE, ["logistic"])
        coordinator = three.coordinate("--minimum", "2", "--back", "2", "--answer", "2")
        honest = [three.node(vendor) for vendor in ("ant", "bee")]
        three.node("cat", lie=lie)
        assert coordinator.wait() == 0, three.everything()
        assert [process.wait() for process in honest] == [0, 0], three.everything()
        gone = next(e for e in three.events() if e["event"] == "goes on without")
        assert gone["node"] == "cat"
        assert reason in gone["reason"], gone
        assert three.rounds_done() == 4
        last = json.loads((three.run / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["accuracy"]["evaluated"] == [0, 1]
        assert len(last["accuracy"]["own"]) == 2
        assert None not in last["accuracy"]["own"]
        if lie is not silent:  # which does not come to reading why
            until(lambda: any(e["event"] in ("ends", "connects again") for e in three.events("cat")), 15)


LIES_OF_METHODS: dict[str, tuple[dict[str, Any], Callable[[], None], str]] = {
    "fedvtc": (
        {"local_steps": 1, "generator_steps": 1, "channels": 4, "finetune_epochs": 1, "latents": 1, "batch_size": 8},
        in_messages(lambda m: replace(m, count=-m.count), Statistics),
        "client 2 sent counts that are not above 0",
    ),
    "fedkd": (
        {"local_steps": 1, "batch_size": 8},
        in_messages(lambda m: replace(m, whole={}, factors={}), Factored),
        "client 2 sent what is not its meme",
    ),
}


@pytest.mark.parametrize("method", LIES_OF_METHODS)
def test_so_it_does_where_the_method_finds_the_lie(method: str, tmp_path: Path) -> None:
    """What is well formed is judged at the server. All fields of all methods are in test_hostile_replies."""
    settings, lie, reason = LIES_OF_METHODS[method]
    with parties(tmp_path, THREE, secure=False) as three:
        three.prepare({"method": method, "settings": settings, "rounds": 2}, ["logistic"])
        coordinator = three.coordinate("--minimum", "2", "--back", "2")
        honest = [three.node(vendor) for vendor in ("ant", "bee")]
        three.node("cat", lie=lie)
        assert coordinator.wait() == 0, three.everything()
        assert [process.wait() for process in honest] == [0, 0], three.everything()
        gone = [e for e in three.events() if e["event"] == "goes on without"]
        assert [e["node"] for e in gone] == ["cat"]
        assert reason in gone[0]["reason"], gone
        assert three.rounds_done() == 3
        assert all(t.isfinite().all() for t in states(three.run, {}).values() if t.is_floating_point())


def test_a_run_stops_below_its_minimum_and_goes_on_once_the_node_is_mended(tmp_path: Path) -> None:
    with parties(tmp_path, THREE) as three:
        config = three.prepare(RECIPE, ["logistic"])
        coordinator = three.coordinate("--answer", "2")
        nodes = [three.node(vendor) for vendor in ("ant", "bee")]
        bad = three.node("cat", lie=LIES["not finite"][0])
        assert coordinator.wait() == 2, three.everything()
        assert "2 nodes remain, at least 3 are needed" in coordinator.text()
        bad.kill()
        nodes.append(three.node("cat"))
        again = three.coordinate()
        assert again.wait() == 0, three.everything()
        assert [process.wait() for process in nodes] == [0, 0, 0], three.everything()
        assert_equal_to_local(three, config)


def test_a_node_that_is_killed_and_started_again_changes_nothing(tmp_path: Path) -> None:
    with parties(tmp_path, THREE) as three:
        config = three.prepare(RECIPE | {"rounds": 12}, ["logistic"])
        coordinator = three.coordinate("--commit-every", "4")
        nodes = [three.node(vendor) for vendor in THREE]
        until(lambda: three.rounds_done() >= 6, 40, three.everything)
        nodes[1].kill()
        nodes[1] = three.node("bee")
        assert coordinator.wait() == 0, three.everything()
        assert [process.wait() for process in nodes] == [0, 0, 0], three.everything()
        assert_equal_to_local(three, config)


def test_a_coordinator_that_is_killed_goes_on_with_the_same_command(tmp_path: Path) -> None:
    with parties(tmp_path, THREE) as three:
        config = three.prepare(RECIPE | {"rounds": 12}, ["logistic"])
        coordinator = three.coordinate("--commit-every", "4")
        nodes = [three.node(vendor) for vendor in THREE]
        until(lambda: three.rounds_done() >= 6, 40, three.everything)
        coordinator.kill()
        again = three.coordinate("--commit-every", "4")
        assert again.wait() == 0, three.everything()
        assert [process.wait() for process in nodes] == [0, 0, 0], three.everything()
        assert_equal_to_local(three, config)


def test_who_may_not_join(tmp_path: Path) -> None:
    """No key, the wrong authority, an unknown key, a revoked key, another's name, a key that is in use."""
    names = (*THREE, "bare", "alien", "unknown", "revoked", "liar")
    with parties(tmp_path, names) as many:
        config = many.prepare(RECIPE, ["logistic"])
        many.names = THREE
        known = tmp_path / "keys" / "coordinator"
        (known / "nodes" / "unknown.crt").unlink()
        (known / "revoked" / "revoked.crt").write_bytes((known / "nodes" / "revoked.crt").read_bytes())
        make_keys(tmp_path / "elsewhere", ["alien"], ["127.0.0.1"])
        data = tmp_path / "ant.npz"
        for name, folder, key in (("alien", "elsewhere", "alien"), ("liar", "keys", "bee")):
            place = tmp_path / folder / key
            files = {"key": f"{place}/{key}.key", "certificate": f"{place}/{key}.crt", "authority": f"{place}/ca.crt"}
            many.vendor(name, data, "logistic", keys=files)
        twin = many.vendor("twin", data, "logistic")
        twin.write_text((tmp_path / "bee" / "vendor.toml").read_text())
        coordinator = many.coordinate()
        bee = many.node("bee")
        coordinator.says("there=1/3")
        refused = {name: many.node(name, "--patience", "1") for name in ("unknown", "revoked", "liar", "alien")}
        refused["bare"] = many.node("bare", "--insecure", "--patience", "1")
        refused["twin"] = many.node("twin", "--patience", "1")
        assert {name: process.wait() for name, process in refused.items()} == dict.fromkeys(refused, 2)
        assert "unknown key" in refused["unknown"].text()
        assert "unknown key" in coordinator.text()
        assert "revoked key" in refused["revoked"].text()
        assert "revoked key" in coordinator.text()
        assert "name: expected that of the certificate" in refused["liar"].text()
        assert "has no certificate of this node's authority" in refused["alien"].text()
        assert "UNAVAILABLE" in refused["bare"].text()
        assert "a key that is not in use" in refused["twin"].text()
        assert "who is here" in coordinator.text()
        others = [many.node("ant"), many.node("cat")]
        assert coordinator.wait() == 0, many.everything()
        assert [process.wait() for process in (bee, *others)] == [0, 0, 0]
        assert config.clients == len(names)


def test_contracts_that_do_not_fit_are_refused_by_name_in_both_logs(tmp_path: Path) -> None:
    names = ("version", "method", "labels", "evaluation", "rounds", "classes", "test")
    with parties(tmp_path, names, secure=False) as many:
        many.prepare(RECIPE, ["logistic"])
        data = tmp_path / "version.npz"
        many.vendor("method", data, "logistic", allow={"methods": ["fedavg"]})
        many.vendor("labels", data, "logistic", allow={"disclosures": ["features"]})
        many.vendor("evaluation", data, "logistic", allow={"evaluation": "own"})
        many.vendor("rounds", data, "logistic", limits={"rounds": 2})
        many.vendor("classes", data, "logistic", data={"source": "digits", "test": "digits"})
        arrays = dict(np.load(data))
        np.savez(tmp_path / "other.npz", **(arrays | {"y_test": arrays["y_test"][::-1]}))
        many.vendor("test", data, "logistic", data={"test": str(tmp_path / "other.npz")})
        coordinator = many.coordinate()
        expected = {
            "version": "library version: expected", "method": "method: expected one of fedavg, found ifl",
            "labels": "discloses: expected at most features, found labels",
            "evaluation": "evaluation: expected at most own, found shared",
            "rounds": "rounds: expected at most 2, found 3", "classes": "classes: expected 3, found 10",
            "test": "labels of the public test set: expected",
        }  # fmt: skip
        nodes = {name: many.node(name, lie=of_another_version if name == "version" else None) for name in names}
        assert {name: process.wait() for name, process in nodes.items()} == dict.fromkeys(names, 2)
        for name, text in expected.items():
            assert text in nodes[name].text(), nodes[name].text()
            assert text in coordinator.text(), coordinator.text()


def test_a_node_sends_no_more_than_its_vendor_allows(tmp_path: Path) -> None:
    with parties(tmp_path, THREE) as three:
        three.prepare(RECIPE, ["logistic"])
        three.vendor("cat", tmp_path / "cat.npz", "logistic", limits={"bytes": 1500})
        coordinator = three.coordinate("--minimum", "2")
        nodes = [three.node(vendor) for vendor in THREE]
        assert coordinator.wait() == 0, three.everything()
        assert nodes[2].wait() == 2
        assert "limit-bytes" in coordinator.text()
        assert "of 1500 bytes are sent already" in nodes[2].text()
        sent = [json.loads(line) for line in (tmp_path / "cat" / "state" / "audit.jsonl").read_text().splitlines()]
        assert sum(line["bytes"] for line in sent) <= 1500


def test_a_coordinator_takes_no_larger_message_than_it_said(tmp_path: Path) -> None:
    with parties(tmp_path, THREE) as three:
        three.prepare(RECIPE | {"fusion_width": 2000}, ["logistic"])
        coordinator = three.coordinate("--largest", "1000")
        for vendor in THREE:
            three.node(vendor)
        assert coordinator.wait() == 2, three.everything()
        assert "at most 1000 are taken" in coordinator.text()


def test_a_full_disk_at_a_node(tmp_path: Path) -> None:
    with parties(tmp_path, THREE) as three:
        three.prepare(RECIPE, ["logistic"])
        coordinator = three.coordinate("--minimum", "2", "--back", "2")
        honest = [three.node(vendor) for vendor in ("ant", "bee")]
        full = three.node("cat", largest_file=6000)
        assert coordinator.wait() == 0, three.everything()
        assert [process.wait() for process in honest] == [0, 0]
        assert any(e["event"] == "goes on without" and e["node"] == "cat" for e in three.events()), three.everything()
        assert "File too large" in full.text() or "disk" in full.text(), full.text()


def test_a_full_disk_at_the_coordinator(tmp_path: Path) -> None:
    with parties(tmp_path, THREE) as three:
        config = three.prepare(RECIPE | {"rounds": 8}, ["logistic"])
        coordinator = three.coordinate(largest_file=6000)
        nodes = [three.node(vendor) for vendor in THREE]
        assert coordinator.wait() == 2, three.everything()
        assert "cannot write" in coordinator.text()
        again = three.coordinate()
        assert again.wait() == 0, three.everything()
        assert [process.wait() for process in nodes] == [0, 0, 0]
        assert_equal_to_local(three, config)


def test_200_idle_connections_keep_nobody_out(tmp_path: Path) -> None:
    with parties(tmp_path, THREE) as three:
        three.prepare(RECIPE, ["logistic"])
        coordinator = three.coordinate()
        coordinator.says("listens")
        idle = [socket.create_connection(("127.0.0.1", three.port)) for _ in range(200)]
        nodes = [three.node(vendor) for vendor in THREE]
        assert coordinator.wait() == 0, three.everything()
        assert [process.wait() for process in nodes] == [0, 0, 0]
        for connection in idle:
            connection.close()
