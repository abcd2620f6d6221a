"""How a run is watched from outside: metrics for Prometheus, gRPC's health service, the status; and revocation."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from parties import free_port, parties, until

from interfuse.engines.processes import fork


def ask_health(port: int, answer: Path) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        reply = stub.Check(health_pb2.HealthCheckRequest(service="interfuse.Federation"), timeout=10)
        try:  # a stream that waits for changes has no end, and is not there
            next(stub.Watch(health_pb2.HealthCheckRequest(), timeout=10))
            watched = "WATCHED"
        except grpc.RpcError as error:
            watched = error.code().name
        answer.write_text(f"{health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)} {watched}")


def test_metrics_health_and_status_of_a_waiting_coordinator(tmp_path: Path) -> None:
    with parties(tmp_path, ("ant", "bee"), secure=False) as two:
        two.prepare({"settings": {"local_steps": 1, "batch_size": 8}}, ["logistic"])
        port = free_port()
        coordinator = two.coordinate("--metrics", f"127.0.0.1:{port}")
        coordinator.says("listens")
        nodes = [two.node("ant")]
        coordinator.says("there=1/2")
        asked = fork(ask_health, two.port, tmp_path / "health", name="health")
        asked.join(20)
        assert (tmp_path / "health").read_text() == "SERVING UNIMPLEMENTED"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as found:
            text = found.read().decode()
        assert 'interfuse_node_connected{node="ant"} 1.0' in text
        assert "interfuse_round 0.0" in text
        status = json.loads((two.run / "status.json").read_text())
        assert status["state"] == "waiting for nodes"
        assert [(node["name"], node["connected"]) for node in status["nodes"]] == [("ant", True)]
        nodes.append(two.node("bee"))
        assert coordinator.wait() == 0, two.everything()
        assert [node.wait() for node in nodes] == [0, 0]
        status = json.loads((two.run / "status.json").read_text())
        payload = sum(e["wire"] for e in map(json.loads, (two.run / "ledger.jsonl").read_text().splitlines()) if
                      e["direction"] == "up")  # fmt: skip
        assert sum(node["payload_up"] for node in status["nodes"]) == payload
        assert all(node["frames_up"] > node["payload_up"] for node in status["nodes"])


def test_a_key_that_is_revoked_in_the_middle_of_a_run_is_out(tmp_path: Path) -> None:
    with parties(tmp_path, ("ant", "bee", "cat")) as three:
        three.prepare({"settings": {"local_steps": 1, "batch_size": 8}, "rounds": 400, "eval_every": 400}, ["logistic"])
        port = free_port()
        coordinator = three.coordinate("--minimum", "2", "--commit-every", "400", "--metrics", f"127.0.0.1:{port}")
        nodes = [three.node(name) for name in ("ant", "bee", "cat")]
        until(lambda: three.rounds_done() >= 2, 40, three.everything)
        folder = tmp_path / "keys" / "coordinator"
        (folder / "revoked" / "half.crt").write_bytes(b"-----BEGIN")
        coordinator.says("cannot check keys")
        (folder / "revoked" / "half.crt").unlink()
        (folder / "revoked" / "cat.crt").write_bytes((folder / "nodes" / "cat.crt").read_bytes())
        coordinator.says("goes on without node=cat")
        assert nodes[2].wait() == 2
        assert "its key was revoked" in nodes[2].text()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as found:
            assert 'interfuse_failures_total{kind="bad",node="cat"} 1.0' in found.read().decode()
        assert coordinator.process.is_alive()
