"""IFL beside Local and Pooled on Fashion-MNIST: rates chosen on validation, then three seeds.

    INTERFUSE_DATA=... python examples/fashion_mnist_table.py [FOLDER]

Every finished run stays in the folder, and an unfinished one goes on, so the script can be stopped and started at will.
It ends in a table, also written to FOLDER/table.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import interfuse
from interfuse.methods.ifl import IFL
from interfuse.methods.local import Local
from interfuse.methods.pooled import Pooled

SEEDS = (0, 1, 2)
ROUNDS, TUNING_ROUNDS = 200, 50
RATES = (0.0003, 0.001, 0.003, 0.01)
PARTITIONS = {
    "IID": interfuse.IID(),
    "Dirichlet 0.5": interfuse.Dirichlet(0.5),
    "Dirichlet 0.1": interfuse.Dirichlet(0.1),
}


def method(name: str, rate: float) -> interfuse.Method:
    """The method with one rate for both blocks; the references take the same steps as IFL."""
    ifl = IFL(optimizer="adam", base_lr=rate, modular_lr=rate)
    steps = {"optimizer": "adam", "lr": rate, "modular_lr": rate, "modular_steps": "clients"}
    return {"ifl": ifl, "local": Local(**steps), "pooled": Pooled(**steps)}[name]


def result(folder: Path, name: str, rate: float, partition: str, seed: int, rounds: int) -> interfuse.Result:
    """A finished run: found, resumed or made."""
    out = folder / f"{name}-{partition.replace(' ', '-').lower()}-lr{rate}-rounds{rounds}-seed{seed}"
    if (out / "config.toml").exists():
        return interfuse.resume(out)
    print(out.name, flush=True)
    return interfuse.run(
        method(name, rate), data="fashion-mnist", partition=PARTITIONS[partition], rounds=rounds, seed=seed, beside=(),
        out=out,
    )  # fmt: skip


def tuned(folder: Path, name: str, partition: str) -> float:
    """The rate with the best mean validation accuracy after a quarter of the rounds."""
    reached = {}
    for rate in RATES:
        _, validation = result(folder, name, rate, partition, SEEDS[0], TUNING_ROUNDS).curve("validation")
        reached[rate] = float(np.nanmean(validation[-1]))
    return max(reached, key=lambda rate: reached[rate])


def cell(values: list[float]) -> str:
    return f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}"


def main(folder: Path) -> None:
    rows = []
    for partition in PARTITIONS:
        for name in ("ifl", "local", "pooled"):
            rate = tuned(folder, name, partition)
            summaries = [result(folder, name, rate, partition, seed, ROUNDS).summary for seed in SEEDS]
            cells = []
            for where in (summaries, [s.best for s in summaries if s.best]):
                cells.append(cell([s.own_accuracy.mean for s in where]))
                cells.append(cell([s.global_accuracy.mean for s in where]))
                cells.append(cell([s.mean_composition for s in where]))
            uplink = np.mean([s.uplink_bytes.raw + s.start_bytes.uplink.raw for s in summaries]) / 1e6
            rows.append(f"| {partition} | {name} | {rate:g} | {' | '.join(cells)} | {uplink:.1f} |")
            text = "\n".join(
                [
                    f"Mean ± standard deviation over seeds {', '.join(map(str, SEEDS))}, percent; {ROUNDS} rounds.",
                    "",
                    "| partition | method | rate | own, last | global, last | compositions, last "
                    "| own, best | global, best | compositions, best | uplink, MB |",
                    "|---|---|---|---|---|---|---|---|---|---|",
                    *rows,
                    "",
                ]
            )
            (folder / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/fashion-mnist-table"))
