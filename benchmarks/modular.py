"""IFL's modular phase at one client as clients grow: a step for each pair, one joint step, ten mixed ones.

Milliseconds of one core, the mean of the four default models (fusion width 432, 32 rows a pair, Adam), each the best of
some calls.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import torch

import common
from interfuse import Dataset
from interfuse.engines import local
from interfuse.families.fusion import FusionOutputs, FusionPairs
from interfuse.families.fusion_rows import divided, rows_of
from interfuse.federation import Federation
from interfuse.methods.ifl import IFL
from interfuse.runs import Given, parse_config
from interfuse.runs.loop import assemble

SIZES, ROWS, STEPS = (4, 64, 1000), 32, 10


def pairs_of(clients: int, width: int, noise: torch.Generator) -> FusionPairs:
    """Made pairs of so many clients."""
    made = (
        (torch.rand(ROWS, width, generator=noise), torch.randint(10, (ROWS,), generator=noise).byte())
        for _ in range(clients)
    )
    return FusionPairs(tuple(FusionOutputs(z, y) for z, y in made))


def seconds(federation: Federation, method: IFL, given: FusionPairs, repetitions: int) -> float:
    """Of a processor, in the modular phase of a client on what it is given, mean over the clients."""
    best = []
    for client in federation.clients:
        taken = []
        for _ in range(repetitions):
            began = time.process_time()
            federation.clients.only([client]).call(method.train_modular, given)
            taken.append(time.process_time() - began)
        best.append(min(taken))
    return sum(best) / len(best)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    given = common.arguments(__doc__ or "", argv)
    torch.set_num_threads(1)
    noise, method = torch.Generator().manual_seed(0), IFL(optimizer="adam")
    x, y = torch.rand(80, 28, 28, generator=noise), torch.arange(80) % 10
    config = parse_config(
        {"method": "ifl", "beside": [], "data": "in-memory:made", "validation": 0, "test": 0}, "benchmark"
    )
    setup = assemble(config, Given(method=method, dataset=Dataset.from_arrays("made", x, y, x[:10], y[:10])))
    federation, rows = Federation(setup, local(setup, 1)), []
    for clients in (2, 8) if given.smoke else SIZES:
        pairs = pairs_of(clients, setup.dims["d"], noise)
        pool = rows_of(pairs)
        ways = {
            "a step for each pair": pairs,
            "joint": divided(pool, 1, len(pool.y), noise),
            "ten steps, all rows": divided(pool, STEPS, len(pool.y), noise),
            "ten steps of 32 rows": divided(pool, STEPS, STEPS * ROWS, noise),
        }
        taken = {name: 1e3 * seconds(federation, method, way, given.repetitions) for name, way in ways.items()}
        rows.append({"clients": clients} | taken)
    columns = {"clients": "pairs of"} | {name: f"{name}, ms" for name in rows[0] if name != "clients"}
    parameters = {"rows": ROWS, "steps": STEPS, "repetitions": given.repetitions}
    common.publish("modular", given, parameters, {"IFL's modular phase": common.table(rows, columns)}, {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
