"""Flower on this machine for the programs beside this one: a SuperLink, SuperNodes with a node each, and apps on them.

Everything listens on loopback, without TLS: what is looked at here is what a run does, not who may take part.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import tomli_w

from network import free_port

SCRIPTS = Path(sys.executable).parent
"""Where Flower's commands are."""
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
OURS = "trial"
"""What the SuperLink is called in Flower's configuration."""


@dataclass
class Flower:
    """A SuperLink and all that was started beside it; everything ends with it."""

    folder: Path
    simulated: int = 0
    port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        path = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"  # Flower starts commands of its own by name
        own = {"FLWR_HOME": str(self.folder / "home"), "RAY_TMPDIR": str(self.folder)}  # no cluster of others is joined
        return os.environ | QUIET | own | {"PATH": path}

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a process in a group of its own, whose words go to NAME.log."""
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, env=self.environment, start_new_session=True
            )
        return self.processes[name]

    def superlink(self) -> None:
        """Start the SuperLink, and name it in Flower's configuration."""
        home = self.folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        known = {"superlink": {"default": OURS, OURS: {"address": f"127.0.0.1:{self.port}", "insecure": True}}}
        (home / "config.toml").write_text(tomli_w.dumps(known))
        kind = ["--simulation"] if self.simulated else []
        self.start(
            "superlink", str(SCRIPTS / "flower-superlink"), "--insecure", "--host", "127.0.0.1",
            "--port", str(self.port), "--disable-runtime-dependency-installation", *kind,
        )  # fmt: skip
        end = time.monotonic() + 60
        while not self._listens():
            if time.monotonic() > end:
                raise SystemExit(f"the SuperLink did not start; {self.folder / 'superlink.log'} says why")
            time.sleep(0.1)

    def supernode(self, name: str, place: Path | None) -> None:
        """Start a SuperNode whose node answers at a socket."""
        config = "" if place is None else f'interfuse="{place}"'
        self.start(
            f"supernode-{name}", str(SCRIPTS / "flower-supernode"), "--insecure", "--superlink",
            f"127.0.0.1:{self.port}", "--port", str(free_port()), "--node-config", config or "none=0",
        )  # fmt: skip

    def node(self, name: str, vendor: Path, *, secure: bool = False) -> Path:
        """Start a node of ours; returns its socket."""
        place, how = self.folder / f"{name}.sock", () if secure else ("--insecure",)
        command = ("-m", "interfuse.cli", "node", str(vendor), "--socket", str(place), *how)
        self.start(f"node-{name}", sys.executable, *command)
        return place

    def run(self, app: Path, **config: object) -> tuple[int, str]:
        """Carry an app out; its exit code, and what it said."""
        with self.running(app, **config) as process:
            said = process.communicate()[0].decode(errors="replace")
        return process.returncode, said

    @contextmanager
    def running(self, app: Path, **config: object) -> Iterator[subprocess.Popen[bytes]]:
        """An app that is being carried out, and followed."""
        words = " ".join(
            f'{key}="{value}"' if isinstance(value, str | Path) else f"{key}={value}" for key, value in config.items()
        )
        command = [str(SCRIPTS / "flwr"), "run", str(app), OURS, "--stream"]
        if words:
            command += ["--run-config", words]
        if self.simulated:
            command += ["--federation-config", f"num-supernodes={self.simulated} client-resources-num-cpus=1"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self.environment, cwd=self.folder
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()

    def end(self, name: str, how: signal.Signals = signal.SIGKILL) -> None:
        """End a process with all that it started."""
        process = self.processes.pop(name)
        if process.poll() is None:
            os.killpg(process.pid, how)
        process.wait(30)

    def _listens(self) -> bool:
        with socket.socket() as line:
            return line.connect_ex(("127.0.0.1", self.port)) == 0


@contextmanager
def flower(folder: Path, *, simulated: int = 0) -> Iterator[Flower]:
    """Flower with a SuperLink, for a simulation of so many clients or, with 0, for SuperNodes that are started."""
    made = Flower(folder, simulated)
    try:
        made.superlink()
        yield made
    finally:
        for name in list(made.processes):
            made.end(name)


def write_vendor(
    folder: Path, name: str, rows: Path, model: str, methods: Sequence[str], more: Mapping[str, object] = {}
) -> Path:
    """A vendor's file that allows whatever these methods do."""
    values = {
        "name": name, "state": f"state-{name}",
        "model": {"build": model, "architecture": model, "public": True},
        "data": {"source": str(rows), "test": str(rows), **more},
        "allow": {
            "methods": list(methods), "evaluation": "shared", "draws_from": "seed", "retention": True,
            "disclosures": [
                "features", "labels", "logits", "statistics", "prototypes", "adapters", "generators", "gradients",
                "parameters",
            ],
        },
    }  # fmt: skip
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps(values))
    return path
