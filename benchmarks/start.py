"""How long a federation of 4 clients takes to start: in Python, and from the shell.

Every repetition is a process of its own, from its start to the end of the first round of IFL on the shipped digits.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import common
from driver import end_with_parent

CODE = """
import json, sys, time
began = time.perf_counter()
import interfuse
from interfuse.engines import local
from interfuse.federation import Federation
from interfuse.runs import parse_config
from interfuse.runs.loop import assemble
imported = time.perf_counter()
setup = assemble(parse_config({"method": "ifl", "data": "digits", "clients": 4}, "benchmark"))
made = time.perf_counter()
federation = Federation(setup, local(setup))
federation.start()
started = time.perf_counter()
federation.run_round()
done = time.perf_counter()
federation.engine.close()
print(json.dumps({
    "import": imported - began, "data and models": made - imported, "engine and start": started - made,
    "first round": done - started, "from setup to first round": done - made,
}))
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    given = common.arguments(__doc__ or "", argv)
    seen: dict[str, list[float]] = {}
    contenders: dict[str, Callable[[], dict[str, float]]] = {
        "import torch": _import_torch, "in Python": _in_python, "from the shell": _from_the_shell,
    }  # fmt: skip
    if given.smoke:
        given.repetitions, contenders = 1, {"in Python": _in_python}
    for _ in range(given.repetitions):
        for measure in contenders.values():
            for name, seconds in measure().items():
                seen.setdefault(name, []).append(seconds)
    rows: list[dict[str, Any]] = [
        {"name": name, "seconds_median": median(seconds), "seconds": seconds} for name, seconds in seen.items()
    ]
    columns = {"name": "", "seconds_median": "seconds"}
    tables = {"Start of 4 clients, IFL on digits": common.table(rows, columns)}
    common.publish("start", given, {"clients": 4, "repetitions": given.repetitions}, tables, {"rows": rows})
    return 0


def _import_torch() -> dict[str, float]:
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", "import torch"], check=True, env=common.undecided(), preexec_fn=end_with_parent
    )
    return {"python -c 'import torch', for comparison": time.perf_counter() - began}


def _in_python() -> dict[str, float]:
    began = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-c", CODE],
        check=True, env=common.undecided(), stdout=subprocess.PIPE, text=True, preexec_fn=end_with_parent,
    )  # fmt: skip
    parts: dict[str, float] = json.loads(ran.stdout)
    return parts | {"process, in Python": time.perf_counter() - began}


def _from_the_shell() -> dict[str, float]:
    """Until the line of the first round is in ``metrics.jsonl``, and until the command ends."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        command = [
            sys.executable, "-m", "interfuse.cli", "run", "ifl", "--data", "digits", "--clients", "4", "--rounds", "1",
            "--beside", "none", "--out", str(folder),
        ]  # fmt: skip
        began = time.perf_counter()
        process = subprocess.Popen(
            command, env=common.undecided(), stdout=subprocess.DEVNULL, preexec_fn=end_with_parent
        )
        metrics, first = folder / "metrics.jsonl", 0.0
        while process.poll() is None:
            if not first and metrics.exists() and metrics.read_bytes().count(b"\n") >= 2:
                first = time.perf_counter() - began
            time.sleep(0.005)
        whole = time.perf_counter() - began
    if process.returncode or not first:
        raise SystemExit(f"the command ended with {process.returncode}: {' '.join(command)}")
    return {"shell to first round, evaluated and written": first, "shell to report": whole}


if __name__ == "__main__":
    sys.exit(main())
