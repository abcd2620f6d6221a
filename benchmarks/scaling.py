"""Seconds, memory and disk over 10² to 10⁵ clients: each point is a run in a process of its own.

Points that are in the results already are not measured again, so that a run that was broken off goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import nn

import common
from driver import descendants
from interfuse import SplitModel
from interfuse.models import pair
from interfuse.runs import Callback, Given, Row, Silent, execute, parse_config
from interfuse.runs.folder import RunFolder

FEATURES, CLASSES, ROWS = 8, 4, 10
"""Of the made-up data; rows of a client."""
SAMPLED = 100
"""Clients of a round."""
ROUNDS = 3
MEMORY = 1 << 30
"""Bytes for clients at rest."""


@dataclass(frozen=True)
class Curve:
    """What is run with more and more clients.

    Attributes:
        width: Of the hidden layers: 8 makes a model of a few kB, 750 one of 2.3 MB.
        most: Clients of the last point.
        sampled: Clients of a round; None: all.
    """

    method: str
    width: int = 8
    most: int = 100_000
    sampled: int | None = SAMPLED
    rounds: int = ROUNDS


CURVES = {
    "FedAvg": Curve("fedavg"),
    "SCAFFOLD": Curve("scaffold"),
    "IFL": Curve("ifl", most=10_000),
    "SCAFFOLD, 2.3 MB": Curve("scaffold", 750, 10_000),
    "FedProto, 2.3 MB": Curve("fedproto", 750, 10_000),
    "Local, 2.3 MB, all clients": Curve("local", 750, 10_000, sampled=None, rounds=1),
}
SIZES = (100, 1_000, 10_000, 100_000)


@dataclass(frozen=True)
class Measured:
    """A point: seconds before the first round, and of the median round by part; MB of memory and disk at their peak.

    ``memory`` sums what each process held resident at its highest, ``shared_once`` is the highest sum in which a page
    that several share counts once. ``disk`` is the run folder with the file of clients at rest.
    """

    curve: str
    clients: int
    start: float
    training: float
    evaluation: float
    commit: float
    memory: float
    shared_once: float
    disk: float


COLUMNS = {
    "curve": "", "clients": "clients", "start": "start, s", "training": "training, s", "evaluation": "evaluation, s",
    "commit": "commit, s", "memory": "memory, MB", "shared_once": "shared pages once, MB", "disk": "disk, MB",
}  # fmt: skip


def model(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """Three linear layers: 12 · width + width² parameters, and biases."""
    base = nn.Sequential(nn.Flatten(), nn.Linear(sample_shape[0], width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    return pair(base, nn.Linear(width, classes))


def rows(clients: int, folder: Path) -> Path:
    """A file of made-up rows for so many clients."""
    drawn, path = np.random.default_rng(0), folder / "rows.npz"
    y = drawn.integers(0, CLASSES, clients * ROWS)
    x = (drawn.normal(size=(len(y), FEATURES)) + y[:, None]).astype(np.float32)
    np.savez(path, x_train=x, y_train=y, x_test=x[:200], y_test=y[:200])
    return path


class Watch(Silent, Callback):
    """Looks at this process, its workers and the run folder while a run goes on, and at the clock around commits."""

    def __init__(self, run: Path) -> None:
        self._run, self._over = run, threading.Event()
        self.began, self._written, self.commits = 0.0, 0.0, list[float]()
        self.peaks = dict.fromkeys(("memory", "shared_once", "disk"), 0.0)

    def advance(self, row: Row) -> None:
        self.note_peaks()  # a short run is over within a second
        self._written = time.perf_counter()
        self.began = self.began or self._written

    def on_round(self, row: Row) -> None:
        self.commits.append(row.seconds["commit"] + time.perf_counter() - self._written)

    def note_peaks(self) -> None:
        found = common.memory_of(os.getpid())
        now = {"memory": found["peak_memory_mb"], "shared_once": found["shared_once_mb"], "disk": self._disk() / 1e6}
        self.peaks = {name: max(peak, now[name]) for name, peak in self.peaks.items()}

    def _disk(self) -> int:
        """Bytes: files of the folder, and those without a name that processes have open in it."""
        files = [file.stat() for file in self._run.rglob("*") if file.is_file()]
        places = {file.st_ino: file.st_blocks for file in files}
        for pid in (os.getpid(), *descendants(os.getpid())):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    if os.readlink(link).startswith(str(self._run)):
                        places[link.stat().st_ino] = link.stat().st_blocks
                except OSError:
                    continue
        return 512 * sum(places.values())

    def during(self, work: Callable[[], object]) -> None:
        """Look once a second while the work goes on."""

        def look() -> None:
            while not self._over.wait(1.0):
                try:
                    self.note_peaks()
                except OSError:  # a file or a process went meanwhile
                    continue

        looking = threading.Thread(target=look)
        looking.start()
        try:
            work()
        finally:
            self._over.set()
            looking.join()


def carry_out(name: str, clients: int, workers: int, folder: Path) -> Measured:
    """One run in this process and its workers."""
    began, curve, run = time.perf_counter(), CURVES[name], folder / "run"
    settings: dict[str, float] = {"local_steps": 1, "batch_size": ROWS}
    if curve.sampled is not None:
        settings["participation"] = min(1.0, curve.sampled / clients)
    config = parse_config({
        "method": curve.method, "settings": settings, "data": str(rows(clients, folder)), "clients": clients,
        "models": [f"{Path(__file__).resolve()}:model"], "fusion_width": curve.width, "rounds": curve.rounds,
        "eval_every": curve.rounds, "beside": [], "validation": 0.0, "test": 0.2,
        "execution": {"workers": workers, "commit_rounds": 1, "client_memory": MEMORY},
    })  # fmt: skip
    watch = Watch(run)
    watch.during(lambda: execute(config, run, given=Given(callbacks=[watch]), progress=watch))
    written = [row.seconds for row in RunFolder(run).metrics()]

    def median(*phases: str) -> float:
        return float(np.median([sum(seconds[phase] for phase in phases) for seconds in written[1:]]))

    return Measured(
        name, clients, watch.began - began, median("calls", "server"), written[-1]["evaluation"],
        float(np.median(watch.commits[1:])), **watch.peaks,
    )  # fmt: skip


def draw(points: Sequence[Measured], path: Path) -> None:
    """Three plots over the number of clients: seconds a round, memory, disk."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    titles = {"training": "seconds a round, training", "memory": "memory, MB", "disk": "disk, MB"}
    for axis, (measure, title) in zip(axes, titles.items(), strict=True):
        for name in CURVES:
            own = [point for point in points if point.curve == name]
            axis.plot([p.clients for p in own], [getattr(p, measure) for p in own], marker="o", ms=3, label=name)
        axis.set(xscale="log", yscale="log", xlabel="clients", title=title)
    axes[1].axhline(4 * 1073.741824, color="grey", lw=0.8, ls=":")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    for ending in ("svg", "png"):
        figure.savefig(path.with_suffix(f".{ending}"), dpi=150)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="the smallest point of each curve, to see that it runs")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--curve", choices=CURVES, action="append", help="of these alone; may be given several times")
    parser.add_argument("--most", type=int, default=SIZES[-1], help="clients of the last point")
    parser.add_argument("--anew", action="store_true", help="measure points again that are in the results")
    parser.add_argument("--docs", action="store_true", help="write the picture into docs/results too")
    parser.add_argument("--one", nargs=2, metavar=("CURVE", "CLIENTS"), help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    results = common.ROOT / "benchmarks" / "results" / ("smoke" if given.smoke else "")
    results.mkdir(parents=True, exist_ok=True)
    if given.one is not None:
        with TemporaryDirectory(dir=results) as folder:
            print(json.dumps(asdict(carry_out(given.one[0], int(given.one[1]), given.workers, Path(folder)))))
        return 0
    file = results / "scaling.jsonl"
    known = [] if given.anew or not file.exists() else map(json.loads, file.read_text(encoding="utf-8").splitlines())
    points = {(point["curve"], point["clients"]): Measured(**point) for point in known}
    if given.anew:
        file.unlink(missing_ok=True)
    for name in given.curve or CURVES:
        for clients in SIZES[:1] if given.smoke else SIZES:
            if clients <= min(given.most, CURVES[name].most) and (name, clients) not in points:
                command = [sys.executable, __file__, "--one", name, str(clients), "--workers", str(given.workers)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                points[name, clients] = Measured(**json.loads(done.stdout.splitlines()[-1]))
                with file.open("a", encoding="utf-8") as lines:
                    lines.write(done.stdout.splitlines()[-1] + "\n")
                print(f"{name}, {clients:,} clients: {points[name, clients].training:.3g} s a round", flush=True)
    ordered = [points[name, clients] for name in CURVES for clients in SIZES if (name, clients) in points]
    text = common.table([asdict(point) for point in ordered], COLUMNS)
    text = f"Smoke: the figures mean nothing.\n\n{text}" if given.smoke else text
    file.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    draw(ordered, file.with_suffix(".svg"))
    if given.docs and not given.smoke:
        draw(ordered, common.ROOT / "docs" / "results" / "scaling.svg")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
