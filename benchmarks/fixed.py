"""What a client and round cost beyond the steps: FedAvg of 10 of 100 clients in one process, 1 and 10 steps a round.

Beside it the same by hand: copy the weights, take the steps, add up. Both take turns; times are those of the processor.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import common
import ours
import problems
import workload
from common import Target
from interfuse.engines import local
from interfuse.federation import Federation

CLIENTS, COHORT, LR = 100, 10, 0.01
MOST = {1: 1.3, 10: 1.1}
"""Times the loop by hand, by steps of a client in a round."""
BATCHES = {"cnn": 32, "mlp": 10, "large_mlp": 32}
WIDTHS = {"cnn": 150, "mlp": 200, "large_mlp": 880}


def rounds(folder: Path, name: str, steps: int) -> dict[str, Callable[[], None]]:
    """A round by hand and one of interfuse, on the same amount of work."""
    batch, samples = BATCHES[name], 2 * BATCHES[name]
    data, _ = problems.images(folder, CLIENTS * samples)
    settings = {"participation": COHORT / CLIENTS, "batch_size": batch, "lr": LR, "local_steps": steps}
    config = {
        "method": "fedavg", "data": data, "clients": CLIENTS, "models": [f"{ours.HERE}:{name}"], "settings": settings,
        "fusion_width": WIDTHS[name], "validation": 0, "test": 0,
    }  # fmt: skip
    setup = ours.setup_of(config)
    federation = Federation(setup, local(setup, 1))
    federation.start()
    ours.write_problem(setup, folder, epochs=1)
    problem = workload.Problem.read(folder, "channels_last")
    model = workload.pool_first(workload.MODELS[name]())
    model.load_state_dict(problem.initial())
    move: Any = model.to  # PyTorch's stubs do not know the layout
    move(memory_format=torch.channels_last)
    parameters: list[Tensor] = list(model.parameters())
    weights = [parameter.detach().clone() for parameter in parameters]
    sums = [torch.empty_like(weight) for weight in weights]

    def by_hand() -> None:
        torch._foreach_zero_(sums)
        for client in range(COHORT):
            with torch.no_grad():
                torch._foreach_copy_(parameters, weights)
            for step in range(steps):
                rows = problem.rows[client][problem.order[client, 0][step % 2 * batch :][:batch]]
                loss = functional.cross_entropy(model(problem.x[rows]), problem.y[rows])
                gradients = torch.autograd.grad(loss, parameters)
                with torch.no_grad():
                    torch._foreach_add_(parameters, gradients, alpha=-LR)
            with torch.no_grad():
                torch._foreach_add_(sums, parameters)
        for weight, total in zip(weights, sums, strict=True):
            weight.copy_(total / COHORT)

    def by_interfuse() -> None:
        federation.run_round()
        federation.exchange.ledger.drain()

    return {"by hand": by_hand, "interfuse": by_interfuse}


def measured(name: str, steps: int, repetitions: int) -> dict[str, Any]:
    """Microseconds a client and round of both, and the median of their ratios."""
    with tempfile.TemporaryDirectory() as folder:
        both = rounds(Path(folder), name, steps)
        found: dict[str, list[float]] = {kind: [] for kind in both}
        for repetition in range(-3, repetitions):
            for kind, carry_out in both.items():
                began = time.process_time()
                carry_out()
                if repetition >= 0:
                    found[kind].append((time.process_time() - began) / COHORT * 1e6)
    hand, mine = found.values()
    ratio = statistics.median(b / a for a, b in zip(hand, mine, strict=True))
    return {"model": name, "steps": steps, "ratio": ratio} | {k: statistics.median(v) for k, v in found.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    given = common.arguments(__doc__ or "", argv)
    repetitions = 2 if given.smoke else 3 * given.repetitions
    cases = [("mlp", 1)] if given.smoke else [(name, steps) for name in ("cnn", "mlp") for steps in (1, 10)]
    cases += [] if given.smoke else [("large_mlp", 1)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    rows = [measured(name, steps, repetitions) for name, steps in cases]
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)
    columns = {"model": "model", "steps": "steps", "by hand": "by hand, µs a client and round"}
    columns |= {"interfuse": "interfuse", "ratio": "ratio"}
    targets = [
        Target(
            f"{row['model']}, {row['steps']} steps: interfuse / by hand", MOST[row["steps"]], row["ratio"], at_most=True
        )
        for row in rows
    ]
    parameters = {"clients": CLIENTS, "cohort": COHORT, "lr": LR, "repetitions": repetitions}
    title = "Processor time of a client and round, in one process"
    tables = {title: common.table(rows, columns)}
    common.publish("fixed", given, parameters, tables, {"rows": rows}, targets=targets)
    return 0


if __name__ == "__main__":
    sys.exit(main())
