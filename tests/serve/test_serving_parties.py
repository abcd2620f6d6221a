"""`interfuse serve` as a process, with certificates of nodes, and where it must not begin."""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
import safetensors.numpy
import torch
from small_artefacts import written

from interfuse.artefacts import composed
from interfuse.cli.service import serve
from interfuse.data.inputs import named, together
from interfuse.engines.grpc import make_keys
from interfuse.errors import ConfigError
from interfuse.serve import (
    Access,
    Service,
    ServiceClient,
    ServiceError,
    UnreachableError,
    admission,
    from_folders,
    running,
    tls,
)

APPLICATION = Path(__file__).parents[2] / "examples" / "serving" / "application.py"


def test_nodes_ask_with_their_certificates_until_these_are_revoked(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", ["ant", "bee"], ["127.0.0.1"], ["blocks"])
    make_keys(tmp_path / "strangers", ["ant"], ["127.0.0.1"])
    folder, service = tmp_path / "keys" / "blocks", Service(
        from_folders([written(tmp_path / "base").path]), Access(certificates=admission(tmp_path / "keys" / "blocks"))
    )  # fmt: skip

    def listed(keys: Path, name: str) -> requests.Response:
        shown = str(keys / name / f"{name}.crt"), str(keys / name / f"{name}.key")
        return requests.get(f"{address}/v1/blocks", cert=shown, verify=str(folder / "ca.crt"), timeout=9)

    (folder / "nodes" / "bee.crt").unlink()
    with running(service, tls(folder, certificates=True)) as address:
        assert listed(tmp_path / "keys", "ant").status_code == 200
        assert listed(tmp_path / "keys", "bee").json()["code"] == "unauthorised"  # nobody knows it here
        for stranger in (tmp_path / "strangers",):
            with pytest.raises(requests.exceptions.ConnectionError):
                listed(stranger, "ant")
        with pytest.raises(requests.exceptions.ConnectionError):
            requests.get(f"{address}/v1/blocks", verify=str(folder / "ca.crt"), timeout=9)
        shutil.copy(folder / "nodes" / "ant.crt", folder / "revoked")
        until = time.monotonic() + 20
        while listed(tmp_path / "keys", "ant").status_code == 200 and time.monotonic() < until:
            time.sleep(0.1)
        assert "revoked" in listed(tmp_path / "keys", "ant").json()["message"]
    with pytest.raises(ConfigError, match="needs keys.key"):
        tls(tmp_path / "keys", certificates=True)


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", ":::0", "192.0.2.1:0", "example.org:0"])
def test_nobody_else_is_served_without_keys(listen: str) -> None:
    with pytest.raises(ConfigError, match="reached by other machines"):
        serve(["nothing"], listen=listen)


@contextmanager
def served(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`interfuse serve` of one block as a process, and the block's address."""
    command = [sys.executable, "-m", "interfuse.cli", "serve", str(folder), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_two_vendors_services_and_an_application_of_requests_and_numpy(tmp_path: Path) -> None:
    """What it prints is what the composition in one process says; then a service is told to end."""
    base, modular = written(tmp_path / "base"), written(tmp_path / "modular", "modular")
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    expected = composed(base, [modular], torch.from_numpy(x)).argmax(1)
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(APPLICATION.read_text()))
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    }
    assert imported - sys.stdlib_module_names == {"numpy", "requests"}
    with served(base.path) as (process, at), served(modular.path) as (_, other):
        command = [sys.executable, "-I", str(APPLICATION), at, other, str(tmp_path / "x.npy")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert done.stdout.split() == [modular.manifest.answers.classes[best] for best in expected]
        refused = subprocess.run(
            [*command[:-3], other, other, command[-1]], capture_output=True, text=True, timeout=100
        )
        assert refused.stderr.startswith(f"{other}: wrong_contract: ")
        ends_when_all_is_answered(process, at)


def ends_when_all_is_answered(process: subprocess.Popen[str], at: str) -> None:
    """A request whose body is half there when SIGTERM comes."""
    place = urlsplit(at)
    body = safetensors.numpy.save({"x": np.ones((2, 3), np.float32)})
    with socket.create_connection((place.hostname, place.port), timeout=60) as line:
        head = f"POST {place.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-safetensors\r\n"
        line.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:20])
        assert requests.get(f"http://{place.netloc}/ready", timeout=60).ok
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        line.sendall(body[20:])
        found = b""
        while more := line.recv(65536):
            found += more
    assert found.startswith(b"HTTP/1.1 200 ")
    assert process.wait(60) == 0


def test_the_client_of_python_asks_as_the_blocks_are(tmp_path: Path) -> None:
    base, modular = written(tmp_path / "base"), written(tmp_path / "modular", "modular")
    other = written(tmp_path / "other", "modular", round=4)
    x = torch.randn(5, 3)
    with (
        running(Service(from_folders([tmp_path / n for n in ("base", "modular", "other")]))) as at,
        ServiceClient(at) as client,
    ):
        features = client.features("base/1", x)
        assert torch.equal(together(named(features.tensors)), base(x))
        assert torch.equal(client.scores("modular/1", features), composed(base, [modular], x))
        coded = client.features("base/1", x, "int8")
        assert len(coded.file) < len(features.file)
        assert float((named(coded.tensors)["x"] - named(features.tensors)["x"]).abs().max()) < 0.05
        assert client.scores("modular/1", coded).shape == (5, 2)
        assert client.blocks()["other/1"].contract == other.manifest.fusion.key
        with pytest.raises(ServiceError, match="are needed") as refused:
            client.scores("other/1", features)
        assert refused.value.fault.code == "wrong_contract"
        with pytest.raises(ConfigError, match="has no block cat/1, but base/1, modular/1, other/1"):
            client.features("cat/1", x)
    with pytest.raises(UnreachableError, match="does not answer"):
        client.blocks()
    for wrong in ("127.0.0.1:8080", "ftp://x", "http://x/y", "http://"):
        with pytest.raises(ConfigError, match="no address of a service"):
            ServiceClient(wrong)


@contextmanager
def answering(*answers: bytes) -> Iterator[str]:
    """A service that takes a connection for each answer, and ends it after that; then it is gone."""
    with socket.create_server(("127.0.0.1", 0)) as at:

        def serve() -> None:
            for answer in answers:
                line, _ = at.accept()
                with line:
                    line.recv(65536)
                    line.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{at.getsockname()[1]}"
        thread.join(10)
        assert not thread.is_alive()  # all were asked for


LISTING = b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"blocks":[]}'


def test_a_connection_that_was_ended_while_idle_is_opened_again_once() -> None:
    with answering(LISTING, LISTING, LISTING) as address, ServiceClient(address) as client:
        assert [client.blocks() for _ in range(3)] == [{}, {}, {}]
    with answering(b"", LISTING) as address, ServiceClient(address) as client:
        with pytest.raises(UnreachableError, match="does not answer"):
            client.blocks()  # a new connection that is ended is no idle one: not asked again
        assert client.blocks() == {}
    with answering(LISTING, b"", LISTING) as address, ServiceClient(address) as client:
        client.blocks()
        with pytest.raises(UnreachableError, match="does not answer"):
            client.blocks()  # asked again once
        client.blocks()


def test_the_python_of_the_page_on_serving_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (APPLICATION.parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    exec(compile("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), "serving.md", "exec"), names)
    coded, scores = names["coded"], names["scores"]
    assert isinstance(coded, torch.Tensor)
    assert isinstance(scores, torch.Tensor)
    assert 0 < float((coded - scores).abs().max()) < 0.2  # int8 rounds
