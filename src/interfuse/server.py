"""The server as a round sees it: its typed state, its networks, and the same training loop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from interfuse.data import Inputs, PublicData, Task
from interfuse.errors import ModelError
from interfuse.messages import Dims, State
from interfuse.models import SplitModel
from interfuse.party import ALL, NOTHING, Held, Party, S
from interfuse.randomness import generator

Build = Callable[[str, str], SplitModel]
"""From the name of an architecture and a name that seeds the initial values to a new model."""


class Server(Party[S]):
    """What ``round``, ``start`` and ``finish`` may use.

    Attributes:
        generator: Derived for this round.
        device: On which it computes.
        inputs: From samples as stored to normalised inputs of a model, for methods that hand over data.
        architectures: Of the models that the server owns, by name.
    """

    generator: torch.Generator

    def __init__(
        self,
        seed: int,
        dims: Dims,
        build: Build,
        inputs: Callable[[Inputs], Inputs],
        task: Task,
        public: PublicData | None,
        autocast: torch.dtype | None = None,
        state_type: type[State] | None = None,
        rounds: int = 0,
        device: str = "cpu",
    ) -> None:
        super().__init__(dims, task, public, autocast, state_type)
        self.inputs, self._rounds, self._seed, self._build = inputs, rounds, seed, build
        self.rounds_read, self.device = False, device
        self.architectures: dict[str, str] = {}
        self._blanked: set[str] = set()
        self.enter(0)

    @property
    def rounds(self) -> int:
        """Of the whole run. What asks for it depends on it: such a run cannot be extended by further rounds."""
        self.rounds_read = True
        return self._rounds

    def enter(self, round: int, heading: str = "training") -> None:
        """Go to a place in the run."""
        self._blanked.clear()
        self.scratch.clear()
        self.count_anew()
        for held in self.networks.values():
            if held.module is not None:
                held.module.reset()
        self.round, self.generator = round, generator(self._seed, "server", heading, round)

    def model(self, name: str, architecture: str) -> SplitModel:
        """The server's model of that name, built when first asked for. Its tensors are part of what is committed."""
        if self.architectures.setdefault(name, architecture) != architecture:
            raise ModelError(f"the server's model {name!r} is a {self.architectures[name]}, not a {architecture}")
        return self._network(name, architecture, ALL)

    def new_model(self, architecture: str) -> SplitModel:
        """A new model of an architecture, for its initial values; it is not kept."""
        return self._build(architecture, "new")

    def scratch_model(self, name: str, architecture: str) -> SplitModel:
        """A model to work with inside one round. Its parameters are NaN when a round first asks for it."""
        model = self._network(name, architecture, NOTHING)
        if name not in self._blanked:
            self._blanked.add(name)
            model.blank()
        return model

    def _network(self, name: str, architecture: str, keeps: frozenset[str]) -> SplitModel:
        if name not in self.networks:
            self.networks[name] = Held(keeps)
            self.networks[name].own(self._build(architecture, name))
        return self.network(name)

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """All that lasts by the file that holds it: each network by itself, so that a commit writes what changed."""
        found: dict[str, dict[str, Tensor]] = {}
        for path, tensor in self.owned().items():
            kind, _, rest = path.partition("/")
            name = f"server-network-{rest.partition('/')[0]}" if kind == "networks" else "server"
            found.setdefault(name, {})[path] = tensor
        return found
