"""Hostile requests to a service: its answers are typed, its memory stays, and an honest client notices nothing.

    python benchmarks/serving_fuzz.py                      # 100,000 requests of mutations, a service as a process
    python benchmarks/serving_fuzz.py --requests 2000

Every answer must be one of the service's own: 200, or an error whose body has a code that its OpenAPI document lists,
500 not among them. Meanwhile an honest client asks again and again, and compares. With schemathesis, in an environment
of its own, beside it:

    interfuse serve FOLDER --listen 127.0.0.1:8080
    schemathesis run http://127.0.0.1:8080/openapi.json
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import torch
from torch import nn

from interfuse.artefacts import (
    Answers,
    Artefact,
    Fusion,
    Manifest,
    Origin,
    Owner,
    TensorForm,
    composed,
    export_program,
    load,
    write,
)
from interfuse.serve import Code, ServiceClient
from interfuse.serve.bodies import JSON, SAFETENSORS, as_safetensors

PIXELS, WIDTH, CLASSES = 64, 32, 10
CODES = {*get_args(Code)}
METHODS = ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW", "post")
KINDS = (SAFETENSORS, JSON, "", "text/plain", "application/json; charset=utf-16", "multipart/form-data", "*/*", "\xff")
CODECS = (
    "int8",
    "fp16",
    "zstd",
    "topk:0.5",
    "int8+ef",
    "topk:1e999",
    "none+none",
    "int8:tensor:x",
    "zstd:99",
    "é",
    "%00",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1e308,
    -1e-320,
    2**63,
    2**70,
    "x",
    "",
    [],
    {},
    [[]],
    "\u0000",
    "\u202e",
    [1, [2]],
    {"x": {}},
)
HEADERS = (
    ("Content-Encoding", "gzip"), ("Content-Encoding", "identity"), ("Expect", "100-continue"), ("Authorization", "x"),
    ("Authorization", "Bearer " + "x" * 500), ("X-Forwarded-For", "1.2.3.4"), ("Accept", "image/png"),
    ("Upgrade", "websocket"), ("Upgrade", "h2c"), ("Range", "bytes=0-1"), ("Origin", "http://evil.example"),
    ("Host", "evil.example"), ("Cookie", "a" * 4000), ("Transfer-Encoding", "gzip, chunked"),
)  # fmt: skip


@dataclass
class Found:
    """What came back.

    Attributes:
        wrong: Answers that no service may give, the first of them.
    """

    codes: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    closed: int = 0
    wrong: list[str] = field(default_factory=list)

    def take(self, status: int, body: bytes, what: str, *, bodiless: bool = False) -> None:
        """Count an answer, and judge it."""
        self.statuses[status] += 1
        if status == 200 or bodiless:
            self.codes["ok" if status == 200 else "no body"] += 1
            good = status < 500
        else:
            try:
                said = json.loads(body)
                good = {*said} == {"code", "message", "field"} and said["code"] in CODES
                self.codes[said["code"]] += 1
            except (ValueError, TypeError):
                good = False
        if not good or 300 <= status < 400 or status in (500, 501, 502):
            self.wrong.append(f"{what}: {status} {body[:200]!r}")


@dataclass
class Honest:
    """A client that asks what it may, and compares."""

    answers: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def ask(self, address: str, folder: Path, stop: threading.Event) -> None:
        """Until told to stop."""
        base, modular = load(folder / "base"), load(folder / "modular")
        x = torch.randint(0, 256, (4, PIXELS), dtype=torch.uint8)
        expected = composed(base, [modular], x)
        with ServiceClient(address) as client:
            while not stop.is_set():
                begun = time.monotonic()
                try:
                    found = client.scores("modular/1", client.features("base/1", x))
                    if not torch.allclose(found, expected, atol=1e-5):
                        self.wrong.append("other scores")
                except Exception as error:  # whatever it is, it was not to be
                    self.wrong.append(f"{type(error).__name__}: {error}")
                self.seconds.append(time.monotonic() - begun)
                self.answers += 1
                time.sleep(0.02)


class Reading(nn.Module):
    """Bytes to numbers, as a task's reading does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(PIXELS, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z: torch.Tensor = self.layer(x.float() / 255)
        return z.relu()


def blocks(folder: Path) -> tuple[Artefact, Artefact]:
    """A base block from bytes to features, and a modular block."""
    torch.manual_seed(0)
    origin = Origin(interfuse="0", torch="0", architecture="mlp", client=0, state="last", disclosed=())
    fusion = Fusion(run="fuzz", method="ifl", round=1, features={"x": TensorForm(dtype="float32", shape=(WIDTH,))})
    inputs = {"x": TensorForm(dtype="uint8", shape=(PIXELS,))}
    answers = Answers(task="classification", classes=tuple("0123456789"), shape=(CLASSES,))
    owner = Owner(name="a trial")
    base = Manifest(part="base", inputs=inputs, fusion=fusion, answers=None, origin=origin, owner=owner)
    modular = Manifest(part="modular", inputs=None, fusion=fusion, answers=answers, origin=origin, owner=owner)
    write(folder / "base", base, export_program(Reading(), torch.zeros(2, PIXELS, dtype=torch.uint8)))
    write(folder / "modular", modular, export_program(nn.Linear(WIDTH, CLASSES), torch.zeros(2, WIDTH)))
    return load(folder / "base"), load(folder / "modular")


@contextmanager
def service(folder: Path) -> Iterator[tuple[str, int]]:
    """The service of both blocks as a process: its address and its process id."""
    command = [sys.executable, "-u", "-m", "interfuse.cli", "serve", str(folder / "base"), str(folder / "modular")]
    with subprocess.Popen([*command, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            parts = urlsplit(process.stdout.readline().strip())
            yield f"http://{parts.netloc}", process.pid
        finally:
            process.terminate()
            process.wait(60)


def resident(pid: int) -> float:
    """MB of a process that lie in memory."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1000


@dataclass(frozen=True)
class Sent:
    """A request."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    def with_body(self, body: bytes, kind: str | None = None) -> Sent:
        """The same with another body, perhaps of another type."""
        return replace(
            self, body=body, headers=self.headers if kind is None else {**self.headers, "Content-Type": kind}
        )


class Mutations:
    """Requests that are nearly good, and others."""

    def __init__(self, seed: int, contract: str) -> None:
        self.draw, self._contract = random.Random(seed), contract
        x, z = torch.zeros(2, PIXELS, dtype=torch.uint8), torch.zeros(2, WIDTH)
        tensor = {"dtype": "uint8", "shape": [2, PIXELS], "data": [0] * 2 * PIXELS}
        self._plain: dict[str, Any] = {"contract": None, "tensors": {"x": tensor}}
        good = (
            ("/v1/blocks/base/1", SAFETENSORS, as_safetensors({"x": x}, {})),
            ("/v1/blocks/modular/1", SAFETENSORS, as_safetensors({"x": z}, {"contract": contract})),
            ("/v1/blocks/base/1", JSON, json.dumps(self._plain).encode()),
        )
        self._good = [Sent("POST", path, {"Content-Type": kind}, body) for path, kind, body in good]
        flip, in_json = self._flip, self._in_json
        self._changes: Sequence[Callable[[Sent], Sent]] = (
            flip, flip, self._cut, self._splice, in_json, in_json, self._tensors, self._head, self._where, self._verb
        )  # fmt: skip

    def request(self) -> Sent:
        """A good one with one change or two."""
        found = self.draw.choice(self._good)
        for change in self.draw.sample(self._changes, self.draw.choice((1, 1, 1, 2))):
            found = change(found)
        return found

    def _flip(self, sent: Sent) -> Sent:
        changed = bytearray(sent.body)
        for _ in range(self.draw.choice((1, 1, 3, 20)) if changed else 0):
            changed[self.draw.randrange(len(changed))] = self.draw.randrange(256)
        return sent.with_body(bytes(changed))

    def _cut(self, sent: Sent) -> Sent:
        return sent.with_body(sent.body[: self.draw.randrange(len(sent.body) + 1)])

    def _splice(self, sent: Sent) -> Sent:
        more = self.draw.choice((b"[" * 5000, b"{}", self.draw.randbytes(99), sent.body))
        at = self.draw.randrange(len(sent.body) + 1)
        return sent.with_body(sent.body[:at] + more + sent.body[at:])

    def _in_json(self, sent: Sent) -> Sent:
        plain = json.loads(json.dumps(self._plain))
        places = [(plain, "contract"), (plain, "tensors"), (plain["tensors"], "x"), (plain, "more")]
        places += [(plain["tensors"]["x"], name) for name in ("dtype", "shape", "data", "more")]
        where, name = self.draw.choice(places)
        where[name] = self.draw.choice((*VALUES, [self.draw.choice(VALUES)] * self.draw.randrange(4)))
        return sent.with_body(json.dumps(plain).encode(), JSON)

    def _tensors(self, sent: Sent) -> Sent:
        noise = torch.frombuffer(bytearray(self.draw.randbytes(200)), dtype=torch.uint8)
        full, rows = torch.full((1, WIDTH), torch.nan), torch.zeros(600, WIDTH)
        tensor = self.draw.choice((torch.zeros(2, WIDTH), full, torch.zeros(2, 9), rows[:0], noise, noise[:26], rows))
        key, value = self.draw.choice(("contract", "codec", "more")), self.draw.choice((*CODECS, "x" * 300))
        said = {"contract": self._contract} if self.draw.random() < 0.7 else {}
        name = self.draw.choice(("x", "x", "x", "y", "é" * 100))
        path = self.draw.choice(("/v1/blocks/modular/1", "/v1/blocks/base/1"))
        return replace(sent, path=path).with_body(as_safetensors({name: tensor}, said | {key: value}), SAFETENSORS)

    def _head(self, sent: Sent) -> Sent:
        name, value = self.draw.choice((*HEADERS, ("Content-Type", self.draw.choice(KINDS))))
        return replace(sent, headers={**sent.headers, name: value})

    def _where(self, sent: Sent) -> Sent:
        letters = "".join(self.draw.choice("abc/.%0Aéÿ?&=1-_~") for _ in range(self.draw.randrange(1, 40)))
        path = self.draw.choice((
            f"{sent.path}?codec={self.draw.choice(CODECS)}", f"/v1/blocks/{letters}", f"/v1/blocks/base/{letters}",
            f"/{letters}", f"/v1/blocks/base/{9**20}", "/v1/blocks/base/-1", "/metrics", "/ready", "/v1/blocks",
            "/openapi.json", sent.path + "?" + "a=b&" * 500,
        ))  # fmt: skip
        return replace(sent, path=path)

    def _verb(self, sent: Sent) -> Sent:
        return replace(sent, method=self.draw.choice(METHODS))


def send(line: socket.socket, sent: Sent) -> None:
    """Send a request as it is, without what a library would mend."""
    target = "".join(sign if 32 < ord(sign) < 127 else f"%{ord(sign) % 256:02X}" for sign in sent.path)
    said = {"Host": "x", "Content-Length": str(len(sent.body)), **sent.headers}
    head = f"{sent.method} {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in said.items())
    line.sendall(f"{head}\r\n".encode("latin-1", "replace") + sent.body)


def attack(address: str, mutations: Mutations, count: int, found: Found) -> None:
    """Send so many requests over connections that are kept while the service keeps them."""
    parts = urlsplit(address)
    line: socket.socket | None = None
    for _ in range(count):
        sent = mutations.request()
        what = f"{sent.method} {sent.path[:100]}"
        if line is None:
            line = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=30)
        try:
            send(line, sent)
            answer = http.client.HTTPResponse(line, method=sent.method)
            answer.begin()
            found.take(answer.status, answer.read(), what, bodiless=sent.method == "HEAD")
            closes = answer.will_close
        except TimeoutError:
            found.wrong.append(f"{what}: no answer within 30 seconds")
            closes = True
        except (ConnectionError, http.client.HTTPException):
            found.closed += 1
            closes = True
        if closes:
            line.close()
            line = None
    if line is not None:
        line.close()


def crowd(address: str, count: int) -> int:
    """Open many connections that send half a head and wait. Returns how many the service took."""
    parts = urlsplit(address)
    lines = []
    for _ in range(count):
        try:
            line = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=5)
            line.sendall(b"POST /v1/blocks/base/1 HTTP/1.1\r\nHost: x\r\n")
            lines.append(line)
        except OSError:
            break
    time.sleep(1)
    for line in lines:
        line.close()
    return len(lines)


def measure(requests: int, seed: int) -> tuple[Found, Honest, list[float]]:
    """Answers to hostile requests, what the honest client saw, and the service's memory in MB over time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, _ = blocks(folder)
        assert base.manifest.fusion is not None
        mutations, found, honest = Mutations(seed, base.manifest.fusion.key), Found(), Honest()
        with service(folder) as (address, pid):
            stop = threading.Event()
            asking = threading.Thread(target=honest.ask, args=(address, folder, stop))
            asking.start()
            memory = [resident(pid)]
            steps = 20
            for step in range(steps):
                attack(address, mutations, requests // steps + (step < requests % steps), found)
                if step == steps // 2:
                    crowd(address, 150)
                memory.append(resident(pid))
            stop.set()
            asking.join()
        return found, honest, memory


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what came back; 1 where something did that may not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    begun = time.monotonic()
    found, honest, memory = measure(given.requests, given.seed)
    seconds = time.monotonic() - begun
    print(f"{sum(found.statuses.values())} answers and {found.closed} closed connections in {seconds:.0f} s")
    for status, count in sorted(found.statuses.items()):
        print(f"  {status}: {count}")
    for code, count in found.codes.most_common():
        print(f"  {code}: {count}")
    late = sorted(honest.seconds)
    took = f"median {1000 * late[len(late) // 2]:.1f} ms, longest {1000 * late[-1]:.0f} ms"
    print(f"honest client: {honest.answers} compositions, {len(honest.wrong)} wrong, {took}")
    print("memory of the service, MB: " + " ".join(f"{megabytes:.0f}" for megabytes in memory))
    for text in (*found.wrong[:20], *honest.wrong[:20]):
        print(f"WRONG: {text}")
    return 1 if found.wrong or honest.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
