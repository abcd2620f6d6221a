"""What a federation left for a client that comes when it is over: gradient steps on a task that nobody had.

Of every run of a comparison a new client of each architecture learns the unseen task alone, by
:meth:`.Result.adaptation`. It begins as a new model, as the method welcomes it, or with the model of a client of its
architecture. Appends a line a run to ``newcomers.jsonl``, goes on where it was broken off, and prints a table in
Markdown: scores by steps, means over runs, and the gain over a new model of the same run, with half its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interfuse import load_run
from interfuse.evaluation import STEPS
from interfuse.runs.differences import difference

Curves = Mapping[str, Sequence[float]]


def by_kind(curves: Mapping[str, Sequence[float]]) -> dict[str, dict[str, list[float]]]:
    """Curves by architecture, then by start: those of clients are their mean, since a newcomer cannot know the best."""
    found: dict[str, dict[str, list[Sequence[float]]]] = {}
    for name, curve in curves.items():
        start, _, kind = name.removesuffix(")").partition(" (")  # such as "client 3 (vqa-s)"
        found.setdefault(kind, {}).setdefault("a client's" if start.startswith("client ") else start, []).append(curve)
    return {
        kind: {start: [statistics.mean(point) for point in zip(*several, strict=True)] for start, several in of.items()}
        for kind, of in found.items()
    }


def table(lines: Sequence[Mapping[str, Any]], steps: Sequence[int]) -> str:
    heads = [f"after {step}" for step in steps]
    gains = [f"gain after {step}" for step in steps]
    shown = ["| entry | architecture | start | " + " | ".join([*heads, *gains]) + " | runs |"]
    shown.append("|" + " --- |" * (4 + 2 * len(steps)))
    for entry in dict.fromkeys(line["entry"] for line in lines):
        runs = [by_kind(line["curves"]) for line in lines if line["entry"] == entry]
        for kind in [*runs[0], "all"]:
            of = [run[kind] if kind != "all" else mean_over(run) for run in runs]
            for start in of[0]:
                means = [f"{100 * statistics.mean(run[start][at] for run in of):.1f}" for at in range(len(steps))]
                told = [gain([run[start][at] - run["new"][at] for run in of]) for at in range(len(steps))]
                told = [""] * len(steps) if start == "new" else told
                shown.append(f"| {entry} | {kind} | {start} | {' | '.join([*means, *told])} | {len(of)} |")
    return "\n".join(shown)


def mean_over(run: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """The mean over architectures, each counted once."""
    kinds = list(run.values())
    return {start: [statistics.mean(at) for at in zip(*(of[start] for of in kinds), strict=True)] for start in kinds[0]}


def gain(values: Sequence[float]) -> str:
    found = difference([100 * value for value in values])
    return f"{found.mean:+.1f} ± {found.half:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path, help="folder of a comparison that has ended")
    parser.add_argument("--entries", nargs="+", help="of these entries alone")
    parser.add_argument("--data", default="easy-vqa-unseen")
    parser.add_argument("--task", default="opposite/colour")
    parser.add_argument("--rows", type=int, default=30, help="training rows of the new client")
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--out", type=Path, default=Path("newcomers.jsonl"), help="what was measured, a line a run")
    arguments = parser.parse_args()
    lines = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    there = {(line["entry"], line["seed"]) for line in lines}
    for folder in sorted(arguments.comparison.glob("runs/*/seed-*")):
        entry, seed = folder.parent.name, int(folder.name.removeprefix("seed-"))
        if (entry, seed) in there or entry not in (arguments.entries or [entry]):
            continue
        found = load_run(folder).adaptation(
            arguments.data, task=arguments.task, rows=arguments.rows, steps=arguments.steps, seed=seed
        )
        lines.append({"entry": entry, "seed": seed, "curves": {name: list(c) for name, c in found.curves.items()}})
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(lines[-1]) + "\n")
        print(f"{entry}, seed {seed}\n{found}", flush=True)
    print(f"\n{table(lines, arguments.steps)}")


if __name__ == "__main__":
    main()
