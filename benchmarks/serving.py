"""What asking a service costs: beside a bare FastAPI that sends the same bytes back, and beside one process.

    python benchmarks/serving.py                    # p50, p99 and throughput, at 1 and 64 clients
    python benchmarks/serving.py --seconds 1 --clients 1,4

An application asks vendor A's base block, then vendor B's modular block: two services, each a process, on this machine.
The echo takes the same bodies and sends back as many bytes as the blocks do, without reading them: two questions too.
Clients are threads of one more process, each with one connection and one question at a time.
"""

from __future__ import annotations

import argparse
import http.client
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import torch

from common import environment, table
from interfuse.artefacts import Manifest, Origin, Owner, TensorForm, composed, export_program, load, write
from interfuse.artefacts.manifest import Answers, Fusion, Part
from interfuse.models import resolve
from interfuse.serve.bodies import SAFETENSORS, as_safetensors

SHAPE, CLASSES, WIDTH = (1, 28, 28), 10, 432
ECHO = """
import sys, uvicorn
from fastapi import FastAPI, Request, Response

app = FastAPI()

@app.post("/{size}")
async def echo(size: int, request: Request) -> Response:
    body = await request.body()
    return Response(bytes(size), media_type="application/octet-stream")

uvicorn.run(app, port=int(sys.argv[1]), http="h11", loop="asyncio", log_level="error")
"""


def blocks(folder: Path) -> None:
    """The base and the modular block of the zoo's CNN for MNIST, as artefacts."""
    torch.manual_seed(0)
    model, x = resolve("cnn")(SHAPE, CLASSES, WIDTH).eval(), torch.randn(2, *SHAPE)
    fusion = Fusion(run="r", method="ifl", round=1, features={"x": TensorForm(dtype="float32", shape=(WIDTH,))})
    origin = Origin(interfuse="0", torch="0", architecture="cnn", client=0, state="last", disclosed=())
    answers = Answers(task="classification", classes=tuple("0123456789"), shape=(CLASSES,))
    parts: dict[Part, tuple[torch.nn.Module, torch.Tensor]] = {
        "base": (_Part(model.base), x), "modular": (_Part(model.modular), torch.zeros(2, WIDTH)),
    }  # fmt: skip
    for part, (module, example) in parts.items():
        manifest = Manifest(
            part=part, inputs={"x": TensorForm(dtype="float32", shape=SHAPE)} if part == "base" else None,
            fusion=fusion, answers=None if part == "base" else answers, origin=origin, owner=Owner(),
        )  # fmt: skip
        write(folder / part, manifest, export_program(module, example))


class _Part(torch.nn.Module):
    """A part of a model as a module of its own."""

    def __init__(self, part: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(x)


@contextmanager
def process(command: Sequence[str], told: bool) -> Iterator[str]:
    """A server as a process; the line that it prints, where it prints one."""
    with subprocess.Popen([sys.executable, "-u", *command], stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            yield running.stdout.readline().strip() if told else ""
        finally:
            running.terminate()
            running.wait(60)


def asked(questions: Sequence[tuple[str, bytes | None]], until: float, seconds: list[float]) -> None:
    """Ask one after the other, again and again; an answer is the body of the next question where that has none."""
    lines = {}
    for address, _ in questions:
        parts = urlsplit(address)
        lines[address] = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    while (begun := time.perf_counter()) < until:
        answer = b""
        for address, body in questions:
            line = lines[address]
            line.request("POST", urlsplit(address).path, body or answer, {"Content-Type": SAFETENSORS})
            found = line.getresponse()
            answer = found.read()
            if found.status != 200:
                raise SystemExit(f"{address}: {found.status} {answer[:200]!r}")
        seconds.append(time.perf_counter() - begun)


def load_of(questions: Sequence[tuple[str, bytes | None]], clients: int, seconds: float) -> list[float]:
    """Seconds of each composition of so many clients at once."""
    times: list[list[float]] = [[] for _ in range(clients)]
    until = time.perf_counter() + seconds
    threads = [threading.Thread(target=asked, args=(questions, until, mine)) for mine in times]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(second for mine in times for second in mine)


def row(name: str, clients: int, found: list[float], seconds: float) -> dict[str, object]:
    """A line of the table."""
    return {
        "what": name, "clients": clients, "p50": f"{1000 * found[len(found) // 2]:.2f}",
        "p99": f"{1000 * found[int(0.99 * (len(found) - 1))]:.2f}", "rate": f"{len(found) / seconds:.0f}",
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--clients", default="1,64")
    parser.add_argument("--rows", type=int, default=1, help="Samples of a question.")
    parser.add_argument("--port", type=int, default=18181, help="Of the echo.")
    given = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        blocks(folder)
        (folder / "echo.py").write_text(ECHO)
        base, modular = load(folder / "base"), load(folder / "modular")
        x = torch.randn(given.rows, *SHAPE)
        body = as_safetensors({"x": x}, {})
        serve = ["-m", "interfuse.cli", "serve", "--listen", "127.0.0.1:0"]
        places = [stack.enter_context(process([*serve, str(folder / part)], True)) for part in ("base", "modular")]
        stack.enter_context(process([str(folder / "echo.py"), str(given.port)], False))
        time.sleep(3)
        features, scores = 4 * WIDTH * given.rows, 4 * CLASSES * given.rows
        echo = f"http://127.0.0.1:{given.port}"
        bodies = [(f"{echo}/{features + 250}", body), (f"{echo}/{scores + 150}", None)]
        services = [(places[0], body), (places[1], None)]
        for clients in map(int, given.clients.split(",")):
            for what, questions in (("two services", services), ("bare echo, two questions", bodies)):
                load_of(questions, clients, min(1.0, given.seconds))
                rows.append(row(what, clients, load_of(questions, clients, given.seconds), given.seconds))
        for _ in range(20):
            composed(base, [modular], x)
        alone = []
        until = time.perf_counter() + given.seconds
        while (begun := time.perf_counter()) < until:
            composed(base, [modular], x)
            alone.append(time.perf_counter() - begun)
        rows.append(row("one process, no HTTP", 1, sorted(alone), given.seconds))
    columns = {
        "what": "what", "clients": "clients", "p50": "p50, ms", "p99": "p99, ms", "rate": "compositions a second"
    }  # fmt: skip
    print(table(rows, columns))
    facts = environment()
    print(f"\n{given.rows} sample a question, {len(body)} bytes; {facts['processor']}, {facts['cores']} cores")
    return 0


if __name__ == "__main__":
    sys.exit(main())
