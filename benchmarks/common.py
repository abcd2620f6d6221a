"""What all benchmarks share: contenders side by side, interleaved rounds, memory of process trees, tables."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import runpy
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import IO, Any

import torch

from driver import Cohort, descendants, end_with_parent

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BENCH = ROOT / ".bench"
"""Environments of the peers."""
LOGS = BENCH / "logs"
"""What contenders print."""

OUR_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 31)}
"""glibc keeps freed memory: tensors of a step do not fault their pages in anew at every step."""

_PATIENCE = 300.0  # seconds that a contender may take for anything
# Settings of the caller's shell that would decide for a contender
_DECIDED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", *OUR_MALLOC)


@dataclass(frozen=True)
class Contender:
    """Somebody who takes part.

    Attributes:
        script: Of this folder, run as a child process; see :mod:`driver`.
        options: Its only argument, as JSON.
        python: The interpreter of its environment.
        environment: Variables set for it.
        note: What a reader of the table should know.
    """

    name: str
    script: str
    options: Mapping[str, Any]
    python: Path = Path(sys.executable)
    environment: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


class ContenderError(Exception):
    """A contender ended, or did not answer."""


class Child:
    """A contender under way."""

    def __init__(self, contender: Contender, log: IO[str], *, forked: bool = False) -> None:
        self.contender = contender
        began = time.perf_counter()
        same_code = contender.python == Path(sys.executable) and "PYTHONPATH" not in contender.environment
        begin = _fork if forked and same_code else _start
        self.pid, self._requests, self._answers = begin(contender, log)
        self._answer()
        self.start_seconds = time.perf_counter() - began

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            ContenderError: it ended, or did not answer in time.
        """
        try:
            print(json.dumps(dict(request)), file=self._requests, flush=True)
        except OSError as error:
            raise self._lost("ended") from error
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        ready, _, _ = select.select([self._answers], [], [], _PATIENCE)
        line = self._answers.readline() if ready else ""
        if not line:
            raise self._lost("ended" if ready else f"did not answer for {_PATIENCE:.0f} seconds")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _lost(self, how: str) -> ContenderError:
        self.close()
        return ContenderError(f"{self.contender.name} {how}; its output is in {LOGS}")

    def memory(self) -> dict[str, float]:
        """See :func:`memory_of`."""
        return memory_of(self.pid)

    def close(self) -> None:
        """Let it end, and make it and all that it started where they do not."""
        everybody = [self.pid, *descendants(self.pid)]
        with contextlib.suppress(OSError):
            print(json.dumps({"do": "stop"}), file=self._requests, flush=True)
            self._requests.close()
        until = time.monotonic() + 20
        while not self._ended() and time.monotonic() < until:
            time.sleep(0.02)
        for pid in everybody:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._answers.close()

    def _ended(self) -> bool:
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] != 0
        except ChildProcessError:
            return True


def _start(contender: Contender, log: IO[str]) -> tuple[int, IO[str], IO[str]]:
    """A new interpreter: its number, where requests go, where answers come from."""
    process = subprocess.Popen(
        [str(contender.python), str(HERE / contender.script), json.dumps(dict(contender.options))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, preexec_fn=end_with_parent,
        env=undecided() | {"PYTHONPATH": search_path(ROOT)} | dict(contender.environment),
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    return process.pid, process.stdin, process.stdout


def _fork(contender: Contender, log: IO[str]) -> tuple[int, IO[str], IO[str]]:
    """The same from a fork of this process, which has PyTorch loaded already."""
    importlib.import_module("torch._dynamo")  # every child would import it (seconds) with its first optimizer
    (requests, send), (receive, answers) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            end_with_parent()
            torch.set_num_threads(1)  # the pool of threads was inherited, but not the threads
            for ours, standard in ((requests, 0), (answers, 1), (log.fileno(), 2)):
                os.dup2(ours, standard)
            sys.stdin = os.fdopen(0)
            sys.argv = [contender.script, json.dumps(dict(contender.options))]
            runpy.run_path(str(HERE / contender.script), run_name="__main__")
        except BaseException:
            traceback.print_exc(file=log)
        finally:
            os._exit(0)
    os.close(requests)
    os.close(answers)
    return pid, os.fdopen(send, "w"), os.fdopen(receive)


def search_path(checkout: Path) -> str:
    """Where Python finds the benchmarks and the package of a checkout, whichever is installed."""
    return os.pathsep.join(str(checkout / name) for name in ("benchmarks", "src"))


def undecided() -> dict[str, str]:
    """The caller's environment without what would decide on threads or memory."""
    return {name: value for name, value in os.environ.items() if name not in _DECIDED}


def memory_of(pid: int) -> dict[str, float]:
    """MB of a process and its descendants, summed over those that live; empty where that is not known.

    ``peak_memory_mb`` sums what each held resident at its highest, so pages that several share count for each;
    ``shared_once_mb`` sums what each holds now, where a page that n share counts as an n-th (Linux's PSS).
    """
    resident, proportional = 0, 0
    for one in (pid, *descendants(pid)):
        try:
            status, maps = (Path(f"/proc/{one}/{name}").read_text() for name in ("status", "smaps_rollup"))
        except OSError:
            continue
        resident += _kilobytes(status, "VmHWM:")
        proportional += _kilobytes(maps, "Pss:")
    return {"peak_memory_mb": resident * 1.024e-3, "shared_once_mb": proportional * 1.024e-3} if resident else {}


def _kilobytes(text: str, name: str) -> int:
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(name))


@dataclass
class Course:
    """What was seen of a contender: the seconds of its rounds by repetition, and more."""

    contender: Contender
    start_seconds: float = 0.0
    seconds: list[float] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    failure: str = ""


def side_by_side(
    contenders: Sequence[Contender], rounds: Sequence[Cohort], warm_up: int, folder: Path, *, forked: bool = False
) -> list[Course]:
    """Run all contenders at once, one round of each in turn; who begins goes round.

    The speed of a machine drifts; what runs side by side drifts together.

    Args:
        rounds: Who takes part in each round. The first ``warm_up`` are not measured.
        folder: Takes the weights of each at the end, as ``result-<number>.npz``.
        forked: Fork contenders of this interpreter instead of starting it anew: quick, but of no use for figures.
    """
    courses = [Course(contender) for contender in contenders]
    children: dict[int, Child] = {}
    LOGS.mkdir(parents=True, exist_ok=True)

    def drop(number: int, error: ContenderError) -> None:
        courses[number].failure = str(error)
        print(f"  {error}", file=sys.stderr)
        children.pop(number, None)

    try:
        for number, contender in enumerate(contenders):
            with (LOGS / f"{contender.name.replace(' ', '-').replace(',', '')}.log").open("w") as log:
                try:
                    children[number] = Child(contender, log, forked=forked)
                except ContenderError as error:
                    drop(number, error)
                else:
                    courses[number].start_seconds = children[number].start_seconds
        for position, cohort in enumerate(rounds):
            for number in _rotated(sorted(children), position):
                try:
                    answer = children[number].ask({"do": "round", "clients": cohort})
                except ContenderError as error:
                    drop(number, error)
                    continue
                if position >= warm_up:
                    courses[number].seconds.append(answer["seconds"])
                    courses[number].answers.append(answer)
            print(f"  round {position + 1} of {len(rounds)}", file=sys.stderr)
        for number in sorted(children):
            try:
                courses[number].memory = children[number].memory()
                courses[number].result = children[number].ask(
                    {"do": "result", "path": str(folder / f"result-{number}.npz")}
                )
            except ContenderError as error:
                drop(number, error)
    finally:
        for child in children.values():
            child.close()
    return courses


def _rotated(numbers: list[int], by: int) -> list[int]:
    by %= max(1, len(numbers))
    return numbers[by:] + numbers[:by]


def ratio(own: Sequence[float], reference: Sequence[float]) -> float:
    """The median of seconds divided by the reference's in the same repetition, over those that both finished."""
    return median(a / b for a, b in zip(own, reference, strict=False))


@dataclass(frozen=True)
class Target:
    """What a figure should come to.

    Attributes:
        measured: None where it was not measured.
        at_most: The figure should stay below what is wanted, not above.
    """

    what: str
    wanted: float
    measured: float | None
    at_most: bool = False

    @property
    def verdict(self) -> str:
        """``met``, ``missed`` or ``not measured``."""
        if self.measured is None:
            return "not measured"
        met = self.measured <= self.wanted if self.at_most else self.measured >= self.wanted
        return "met" if met else "missed"


def versus(courses: Sequence[Course], slower: str, faster: str) -> float | None:
    """How many times as long the one contender takes as the other; None where one of them is missing."""
    seconds = {course.contender.name: course.seconds for course in courses if not course.failure}
    a, b = seconds.get(slower), seconds.get(faster)
    return ratio(a, b) if a and b else None


def rows_of(courses: Sequence[Course]) -> list[dict[str, Any]]:
    """What was measured, one row a contender; ratios are to the first contender."""
    ours = courses[0].seconds
    rows = []
    for course in courses:
        row: dict[str, Any] = {"name": course.contender.name, "note": course.contender.note}
        if course.failure:
            rows.append(row | {"failure": course.failure})
            continue
        row |= {
            "seconds_a_round": median(course.seconds),
            "ratio_to_ours": ratio(course.seconds, ours) if ours else None,
            "seconds": course.seconds,
            "start_seconds": course.start_seconds,
            **course.memory,
        }
        if "accuracy" in course.result:
            row["accuracy"] = course.result["accuracy"]
        rows.append(row)
    return rows


def disagreements(rows: Sequence[Mapping[str, Any]], tolerance: float) -> list[str]:
    """Who ended at another accuracy than ours, the first: it did not train the same."""
    if "failure" in rows[0]:
        return [f"{rows[0]['name']} failed: {rows[0]['failure']}"]
    expected = rows[0].get("accuracy")
    return [
        f"accuracy of {row['name']} is {row['accuracy']:.3f}, ours {expected:.3f}: not the same training"
        for row in rows
        if "accuracy" in row and expected is not None and abs(row["accuracy"] - expected) > tolerance
    ]


def peer_python(name: str, wanted: bool) -> Path | str:
    """The interpreter of a peer's environment, made by ``peers/<name>.txt`` where it is missing; or why there is none.

    Args:
        wanted: Whether peers take part at all.
    """
    if not wanted:
        return f"{name} is left out: --no-peers"
    pins, folder = HERE / "peers" / f"{name}.txt", BENCH / name
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    if stamp.exists() and stamp.read_text() == pins.read_text():
        return python
    print(f"installing {name} into {folder} (once)", file=sys.stderr)
    BENCH.mkdir(exist_ok=True)
    with (BENCH / f"{name}-install.log").open("w") as log:
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", "-r", str(pins)],
        ):
            if subprocess.run(command, stdout=log, stderr=log, check=False, preexec_fn=end_with_parent).returncode:
                return f"{name} is skipped: it could not be installed, see {log.name}"
    stamp.write_text(pins.read_text())
    return python


def checkout(variable: str) -> Path | str:
    """The checkout that a variable of the environment names; or why there is none."""
    named = os.environ.get(variable, "")
    if not named:
        return f"{variable} is not set to the path of a checkout"
    path = Path(named).resolve()
    return path if path.is_dir() else f"{variable} names no folder: {path}"


def arguments(description: str, argv: Sequence[str] | None = None, **own: Any) -> argparse.Namespace:
    """The arguments that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    meaningless = "seconds instead of minutes; the figures mean nothing, and go to the folder smoke of the results"
    parser.add_argument("--smoke", action="store_true", help=meaningless)
    parser.add_argument("--no-peers", action="store_true", help="install and run nobody else's package")
    parser.add_argument("--repetitions", type=int, default=None, help="measured rounds of each contender (5)")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    for name, values in own.items():
        parser.add_argument(f"--{name}", **values)
    given = parser.parse_args(argv)
    if given.smoke:
        given.out /= "smoke"  # so that nobody, --resume included, takes them for results
    if given.repetitions is None:
        given.repetitions = 2 if given.smoke else 5
    if given.repetitions < 1:
        parser.error("--repetitions: at least 1 is needed")
    return given


_LOAD_BEFORE = os.getloadavg()[0]


def cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def environment() -> dict[str, Any]:
    """What figures depend on."""
    model = ""
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor(),
        "machine": platform.machine(),
        "cores": cores(),
        "load_before": _LOAD_BEFORE,  # others at work make a contender of many threads far slower than it is
        "python": platform.python_version(),
        "torch": version("torch"),
        "interfuse": version("interfuse"),
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def figure(value: object) -> str:
    """A cell of a table."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)


COLUMNS = {
    "name": "", "seconds_a_round": "s a round", "ratio_to_ours": "ratio", "peak_memory_mb": "peak memory, MB",
    "shared_once_mb": "shared pages once, MB", "accuracy": "accuracy", "start_seconds": "start, s",
}  # fmt: skip
"""What every table shows: key of a row -> heading."""


def table(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """A Markdown table.

    Args:
        columns: Key of a row -> heading.
    """
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        if "failure" in row:
            cells = [row["name"], row["failure"], *[""] * (len(columns) - 2)]
        else:
            cells = [figure(row.get(key)) for key in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def judged(target: Target, smoke: bool) -> str:
    """The verdict on a target; there is none where figures mean nothing."""
    return "not judged: smoke" if smoke else target.verdict


def verdicts(targets: Iterable[Target], smoke: bool) -> str:
    """Targets beside what was measured, as a Markdown table."""
    rows = [
        {
            "what": target.what, "wanted": f"{'≤' if target.at_most else '≥'} {target.wanted:g}",
            "measured": target.measured, "verdict": judged(target, smoke),
        }
        for target in targets
    ]  # fmt: skip
    return table(rows, {"what": "target", "wanted": "wanted", "measured": "measured", "verdict": ""})


def publish(
    name: str, given: argparse.Namespace, parameters: Mapping[str, Any], tables: Mapping[str, str],
    results: Mapping[str, Any], notes: Sequence[str] = (), targets: Sequence[Target] = (),
) -> None:  # fmt: skip
    """Print the tables, and write them beside all that was measured.

    Args:
        given: The arguments that every benchmark takes.
        tables: Title -> Markdown.
        results: What goes into the JSON file beside parameters and environment.
        notes: Lines below the tables: who was left out, and what failed a check.
        targets: Go into a table of their own, and into the JSON file.
    """
    tables = dict(tables) | ({"Targets": verdicts(targets, given.smoke)} if targets else {})
    out: Path = given.out
    out.mkdir(parents=True, exist_ok=True)
    facts = environment()
    text = "\n\n".join(f"**{title}**\n\n{markdown}" for title, markdown in tables.items())
    below = "\n".join(f"- {note}" for note in notes)
    head = ", ".join(
        f"{key.replace('_', ' ')} {facts[key]}"
        for key in ("processor", "cores", "load_before", "torch", "interfuse", "time")
    )
    title = f"{name}, smoke: the figures mean nothing" if given.smoke else name
    document = f"# {title}\n\n{head}\n\n{text}\n" + (f"\n{below}\n" if below else "")
    print(document)
    (out / f"{name}.md").write_text(document, encoding="utf-8")
    values = {"benchmark": name, "environment": facts, "parameters": dict(parameters), **results, "notes": list(notes)}
    values["targets"] = [vars(target) | {"verdict": judged(target, given.smoke)} for target in targets]
    (out / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
