"""Averaging adapters among clients whose models are alike: who averages with whom, and what clients answer with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.errors import Notice
from interfuse.families.adapters import Adapters, AdapterTraining
from interfuse.families.averaging import Global, GroupMeans, merged, of_each_architecture, under
from interfuse.families.holdings import HeldMean, WeightRule, one_a_round, one_of_each_architecture
from interfuse.handler import on_client
from interfuse.messages import NamedTensors
from interfuse.method import ALL, Fraction
from interfuse.models.adapters import BASIS, OWN, Adapted, LoRALinear
from interfuse.server import Server

Answers = Literal["trained", "averaged"]
"""What a client answers with of adapters that travel: those that it trained last, or the mean of all."""


@dataclass(frozen=True)
class SharedAdapters(AdapterTraining):
    """Methods whose server has adapters for each architecture. A client's model has LoRA adapters, all of which travel,
    unless a method says otherwise."""

    origin = "FedMosaic's release"
    shared: ClassVar[str] = OWN
    """The group of keys that travels."""

    participation: Fraction = 1.0  # fraction of the clients drawn for a round [interfuse]

    def adapter(self, layer: int, layers: int, linear: str, base: nn.Linear) -> Adapted:
        return LoRALinear(base, self.rank, self.scale, self.dropout)

    def start(self, server: Server[Any], clients: Clients) -> Global:
        return Global(self.initial(server, clients, self.shared))

    def initial(self, server: Server[Any], clients: Clients, group: str) -> NamedTensors:
        """Initial values of a group of keys, of one new model of each architecture."""
        return merged(
            {
                prefix: server.new_model(one_of_each_architecture(some)[0].architecture).tensors([group])
                for prefix, some in of_each_architecture(clients)
            }
        )

    def adapters(self, weights: NamedTensors, clients: Clients) -> dict[ClientId, Adapters]:
        """A message for each client with the adapters of its architecture: the very same one for all of these."""
        found: dict[ClientId, Adapters] = {}
        for prefix, some in of_each_architecture(clients):
            found |= dict.fromkeys(some, Adapters(under(prefix, weights)))
        return found

    def notice(self, profiles: Mapping[ClientId, Profile]) -> Notice | None:
        return one_a_round(profiles, self.participation)


@dataclass(frozen=True)
class AdapterAveraging(SharedAdapters):
    """Methods of which these are the mean of what clients send; between models that differ nothing goes over. Who is
    alone with its model averages with itself."""

    origin = "FedMosaic's release"

    weights: WeightRule = "uniform"  # clients count alike in a mean, or by their samples

    def means(self, weights: NamedTensors, clients: Clients) -> GroupMeans:
        """What takes up the clients' adapters one by one, each into the mean of its architecture."""
        groups = [(prefix, some, under(prefix, weights)) for prefix, some in of_each_architecture(clients)]
        means = {prefix: HeldMean(own, some.profiles, self.weights) for prefix, some, own in groups}
        return GroupMeans(weights, means, {client: means[prefix] for prefix, some, _ in groups for client in some})

    def learn(self, client: Client[Any], received: Adapters) -> NamedTensors:
        """A client's training of a round; returns what travels."""
        client.model.load(received.tensors)
        self.fit(client, client.loss)
        return cloned(client.model.tensors([self.shared]))

    def notice(self, profiles: Mapping[ClientId, Profile]) -> Notice | None:
        if 1 < len(profiles) == len({profile.architecture for profile in profiles.values()}):
            return Notice(
                "No two clients have one architecture, so every mean of adapters is over one client.",
                "Give several clients one backbone.",
            )
        return super().notice(profiles)


@dataclass(frozen=True)
class AveragingAdapters(AdapterAveraging):
    """Of these methods a round is one exchange: adapters go to clients, which train them, and their mean comes back."""

    def round(self, server: Server[Global], clients: Clients) -> None:
        chosen, weights = clients.sample(self.participation), server.state.weights
        mean = self.means(weights, chosen)
        messages = self.adapters(weights, chosen)
        chosen.call(self.train, messages, each=lambda client, sent: mean.take(client, sent.tensors))
        server.state = Global(mean.result())

    @on_client
    def train(self, client: Client[Any], received: Adapters) -> Adapters:
        return Adapters(self.learn(client, received))


@dataclass(frozen=True)
class AnsweringAverages(AdapterAveraging):
    """Of these methods a client answers with adapters that travel, alone or beside its own."""

    origin = "FedMosaic's release"

    answers: Answers = "trained"  # with adapters as the client trained them last, or with the newest mean

    def keeps(self) -> frozenset[str]:
        return ALL if self.answers == "trained" else frozenset({OWN, BASIS}) - {self.shared}

    def deployed(self, server: Server[Any], clients: Clients) -> Mapping[ClientId, Adapters] | None:
        return None if self.answers == "trained" else self.adapters(server.state.weights, clients)

    @on_client
    def deploy(self, client: Client[Any], message: Adapters) -> None:
        client.model.load(message.tensors)


def cloned(tensors: Mapping[str, Tensor]) -> NamedTensors:
    """Copies, which stay when the model goes on."""
    return {key: tensor.clone() for key, tensor in tensors.items()}
