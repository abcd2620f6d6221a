"""LG-FedAvg: clients keep their base blocks, the modular block is averaged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from interfuse.client import Client, ClientId
from interfuse.clients import Clients
from interfuse.errors import ModelError
from interfuse.families.holdings import ONE_HEAD, HeldMean, WeightRule, held, initial_weights
from interfuse.families.own_training import OwnTraining
from interfuse.handler import on_client
from interfuse.messages import NamedTensors, State, Weights
from interfuse.method import Fraction
from interfuse.server import Server


class Global(State):
    """The averaged modular block: every tensor of it that some client holds."""

    modular: NamedTensors


@dataclass(frozen=True)
class LGFedAvg(OwnTraining):
    """Local representations, a global head (Liang et al., arXiv:2001.01523): FedAvg of the modular block alone.

    Both blocks train together. Every tensor of the modular block is averaged over the clients that hold its key.
    """

    participation: Fraction = 1.0  # fraction of the clients drawn for a round
    weights: WeightRule = "samples"  # clients count by their samples, or uniform

    def keeps(self) -> frozenset[str]:
        return frozenset({"base"})

    def start(self, server: Server[Global], clients: Clients) -> Global:
        modular = initial_weights(server, clients, parts=["modular"])
        check_shared(modular, clients)
        return Global(modular)

    def round(self, server: Server[Global], clients: Clients) -> None:
        chosen, modular = clients.sample(self.participation), server.state.modular
        mean = HeldMean(modular, chosen.profiles, self.weights)
        chosen.call(self.train, held(modular, chosen), each=lambda client, reply: mean.take(client, reply.tensors))
        server.state = Global(mean.result())

    @on_client
    def train(self, client: Client, received: Weights) -> Weights:
        client.model.load(received.tensors)
        self.fit(client, client.loss)
        return Weights(client.tensors("modular"))

    def deployed(self, server: Server[Global], clients: Clients) -> Mapping[ClientId, Weights]:
        return held(server.state.modular, clients)


def check_shared(modular: NamedTensors, clients: Clients) -> None:
    """Check that some tensor of the modular block has two holders.

    Raises:
        ModelError: none has; names the clients' modular blocks.
    """
    profiles = clients.profiles.values()
    holders = Counter(key for profile in profiles for key in modular if key in profile.keys)
    if len(profiles) > 1 and max(holders.values(), default=0) < 2:
        blocks = "; ".join(
            f"client {p.id} ({p.architecture}): {', '.join(key for key in modular if key in p.keys)}" for p in profiles
        )
        raise ModelError(
            "no two clients have a tensor of the modular block in common, so LG-FedAvg would average nothing: "
            f"{blocks}. Give them models with one head, for instance --models {ONE_HEAD}"
        )
