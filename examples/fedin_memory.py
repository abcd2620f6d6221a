"""Memory that training takes at a client, by method (FedIN, Table 2).

    python examples/fedin_memory.py [RECIPE] [--small|--smoke]

For each entry of a recipe (fedin-table2 unless said otherwise), and each of its architectures, one client trains alone
for two rounds of two steps. Printed is, for the second round and as the mean over architectures: the model, what the
client keeps from round to round beside it (SCAFFOLD's control variate, MOON's previous model), what it receives, and
the largest sum of all tensors that its training has alive at a time, by PyTorch's profiler. All of it is bytes of
tensors: the interpreter, the data set and what the allocator holds back are the same for all.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory

from torch.profiler import ProfilerActivity, profile

from interfuse import comparison, recipes
from interfuse.client import ClientId
from interfuse.clients import Answer, Request
from interfuse.comparison.recipe import read
from interfuse.engines import InProcess
from interfuse.federation import Federation
from interfuse.messages import Message, flatten
from interfuse.runs import Given, RunConfig
from interfuse.runs.loop import assemble
from interfuse.setup import Setup
from interfuse.wire import open_pack

BRIEF = {"local_steps": 2, "participation": 1.0, "server_steps": 2, "generator_steps": 2}
"""More steps take no more memory."""


@dataclass(frozen=True)
class Bytes:
    """Of one call: what was there before it, and the most that it added."""

    model: int
    kept: int
    received: int
    training: int

    @property
    def peak(self) -> int:
        return self.model + self.kept + self.received + self.training


class Measured(InProcess):
    """Clients in this process whose training is measured."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.found: list[Bytes] = []
        self._kept = 0

    def call(self, request: Request, messages: Mapping[ClientId, Message | None]) -> list[Answer]:
        if request.heading != "training":
            return super().call(request, messages)
        answers = []
        for client, message in messages.items():
            shapes = self.profiles[client].keys.values()
            before = (4 * sum(map(math.prod, shapes)), self.kept(), size(message))
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
                answers += super().call(request, {client: message})
            self.found.append(Bytes(*before, peak(profiler)))
        return answers

    def kept(self) -> int:
        """Bytes that the clients own beside their models."""
        with TemporaryDirectory() as folder:
            for record in self.save(Path(folder), "kept", ()):
                for part in open_pack(Path(folder) / record.name).values():
                    beside = [t for key, t in part.tensors().items() if not key.startswith("networks/model/")]
                    self._kept = sum(tensor.nbytes for tensor in beside)
        return self._kept


def size(message: Message | None) -> int:
    return 0 if message is None else sum(tensor.nbytes for tensor in flatten(message).values())


def peak(profiler: profile) -> int:
    """The largest sum of what was allocated and not yet given back."""
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return most


def measured(config: RunConfig, given: Given, model: str) -> Bytes:
    """The most that a client with this model needed in a call of the second round."""
    settings = {f.name: BRIEF[f.name] for f in fields(config.make_method()) if f.name in BRIEF}
    changes = {"clients": 1, "models": (model,), "settings": {**config.settings, **settings}, "rounds": 2}
    setup = assemble(RunConfig.model_validate(config.model_dump() | changes), given)
    engine = Measured(setup)
    federation = Federation(setup, engine)
    federation.start()
    federation.run_round()
    engine.found.clear()
    federation.run_round()
    return max(engine.found, key=lambda found: found.peak)


def table(name: str, how: str | None) -> Iterator[tuple[str, Bytes]]:
    """By entry, the mean over its architectures."""
    path = recipes.find(name)
    recipe = read(path if path is not None else Path(name))
    plan = comparison.resolve(comparison.quicker(recipe, how) if how else recipe)
    for entry in plan.entries:
        config, given = entry.run({}, 0), plan.given(entry)
        given = Given(dataset=list(given.dataset or ())[:1] or None)
        found = [measured(config, given, model) for model in config.models]
        yield entry.name, Bytes(*(sum(getattr(b, f.name) for b in found) // len(found) for f in fields(Bytes)))


def main(name: str = "fedin-table2", how: str | None = None) -> list[tuple[str, Bytes]]:
    found = []
    print("| entry | model, MB | kept | received | training | peak, MB |\n| --- |" + " ---: |" * 5)
    for entry, b in table(name, how):
        numbers = [b.model, b.kept, b.received, b.training, b.peak]
        print(f"| {entry} | " + " | ".join(f"{number / 1e6:.1f}" for number in numbers) + " |", flush=True)
        found.append((entry, b))
    return found


def arguments(given: Sequence[str]) -> tuple[str, str | None]:
    names = [word for word in given if not word.startswith("--")]
    sizes = [word.removeprefix("--") for word in given if word in ("--small", "--smoke")]
    return (names or ["fedin-table2"])[0], (sizes or [None])[0]


if __name__ == "__main__":
    main(*arguments(sys.argv[1:]))
