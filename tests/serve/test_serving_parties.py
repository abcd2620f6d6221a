"""`interfuse serve` as a process, with certificates of nodes, and where it must not begin."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import requests
import safetensors.numpy
from small_artefacts import written

from interfuse.cli.service import serve
from interfuse.engines.grpc import make_keys
from interfuse.errors import ConfigError
from interfuse.serve import Access, Service, admission, from_folders, running, tls


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


def test_a_service_ends_when_what_is_under_way_is_answered(tmp_path: Path) -> None:
    """A request whose body is half there when SIGTERM comes."""
    written(tmp_path / "base")
    command = [sys.executable, "-m", "interfuse.cli", "serve", str(tmp_path / "base"), "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        place = re.fullmatch(r"http://(127\.0\.0\.1):(\d+)/v1/blocks/base/1\n", said)
        assert place is not None, said
        body = safetensors.numpy.save({"x": np.ones((2, 3), np.float32)})
        with socket.create_connection((place[1], int(place[2])), timeout=60) as line:
            line.sendall(
                b"POST /v1/blocks/base/1 HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-safetensors\r\n"
                + f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body[:20]
            )
            while not requests.get(f"http://{place[1]}:{place[2]}/ready", timeout=60).ok:
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            line.sendall(body[20:])
            found = b""
            while more := line.recv(65536):
                found += more
        assert found.startswith(b"HTTP/1.1 200 ")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
