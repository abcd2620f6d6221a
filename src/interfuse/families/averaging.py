"""Averaging models: who averages with whom, what travels, what clients answer with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal
from urllib.parse import quote

from torch import Tensor

from interfuse.aggregation import BufferPolicy, at_least_two, use_batch_statistics
from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.data import Inputs
from interfuse.data.inputs import each, rows_of
from interfuse.errors import ConfigError, Notice
from interfuse.families.holdings import (
    HeldMean,
    Holding,
    WeightRule,
    by_key,
    held,
    initial_weights,
    nothing_in_common,
    one_a_round,
)
from interfuse.families.own_training import OwnTraining
from interfuse.handler import on_client
from interfuse.messages import NamedTensors, State, Weights
from interfuse.method import BUFFERS, NOTHING, Fraction, Predictor, whole
from interfuse.models import SplitModel
from interfuse.server import Server
from interfuse.training import Objective


class Global(State):
    """The server's model: every tensor that some client holds, or one model for each group of clients."""

    weights: NamedTensors


@dataclass(frozen=True, eq=False)
class GroupMeans:
    """The means of all groups of clients: of one group, or of each architecture."""

    weights: NamedTensors
    means: Mapping[str, HeldMean]
    by_client: Mapping[ClientId, HeldMean]

    def take(self, client: ClientId, tensors: Mapping[str, Tensor]) -> None:
        """Add what a client sent."""
        self.by_client[client].take(client, tensors)

    def result(self) -> NamedTensors:
        """The server's model; what nobody sent stays as it was."""
        return self.weights | merged({prefix: mean.result() for prefix, mean in self.means.items()})


def of_each_architecture(clients: Clients) -> Iterator[tuple[str, Clients]]:
    """The clients of each architecture, and what stands before the keys of their tensors where all have one place."""
    return _groups(clients, {client: profile.architecture for client, profile in clients.profiles.items()})


def of_each_backbone(clients: Clients) -> Iterator[tuple[str, Clients]]:
    """Likewise the clients of each backbone, whatever their own settings made of it."""
    return _groups(clients, {client: profile.backbone for client, profile in clients.profiles.items()})


def _groups(clients: Clients, names: Mapping[ClientId, str]) -> Iterator[tuple[str, Clients]]:
    for name in dict.fromkeys(names.values()):
        yield f"{quote(name, safe='')}:", clients.only(client for client in names if names[client] == name)


def by_batch_statistics(model: SplitModel, x: Inputs) -> Tensor:
    """What a model answers that normalises by the batch it is given."""
    with use_batch_statistics(model):
        together: Tensor = model(each(at_least_two, x))
        return together[: rows_of(x)]


@dataclass(frozen=True)
class Averaging(OwnTraining):
    """Methods whose server has a model that clients train and that is averaged; clients keep nothing of it.

    With nested depths every tensor is averaged over the clients that hold its key (FedIN, arXiv:2304.00759, eq. 19), or
    the clients of each architecture are a federation of their own (eq. 20 and 21). The state has ``weights``.
    """

    usual: ClassVar[Mapping[str, Any]] = {"local_epochs": 1, "keep_optimizer": False}

    participation: Fraction = 1.0  # fraction of the clients drawn for a round
    weights: WeightRule = "samples"  # clients count by their samples, or uniform
    aggregation: Literal["layerwise", "group"] = "layerwise"  # over all who hold a key, or in each architecture apart
    buffers: BufferPolicy = BufferPolicy.AGGREGATE  # aggregate, local, batch-statistics or recalibrate

    def keeps(self) -> frozenset[str]:
        return frozenset({BUFFERS}) if self.buffers is BufferPolicy.LOCAL else NOTHING

    def start(self, server: Server[Any], clients: Clients) -> Global:
        return Global(self.initial(server, clients))

    def initial(self, server: Server[Any], clients: Clients) -> NamedTensors:
        """The server's model before the first round."""
        return merged({prefix: initial_weights(server, some, self.buffers) for prefix, some in self.groups(clients)})

    def groups(self, clients: Clients) -> Iterator[tuple[str, Clients]]:
        """Clients that average with each other, and what the server puts before the keys of their tensors."""
        return iter([("", clients)]) if self.aggregation == "layerwise" else of_each_architecture(clients)

    def models(self, weights: NamedTensors, clients: Clients, holding: Holding = by_key) -> dict[ClientId, Weights]:
        """A message for each client with what it holds of the model of its group."""
        found: dict[ClientId, Weights] = {}
        for prefix, some in self.groups(clients):
            found |= held(under(prefix, weights), some, holding)
        return found

    def means(self, weights: NamedTensors, clients: Clients, holding: Holding = by_key) -> GroupMeans:
        """What takes up the clients' models one by one, each into the mean of its group."""
        found = {
            prefix: (some, HeldMean(under(prefix, weights), some.profiles, self.weights, holding))
            for prefix, some in self.groups(clients)
        }
        by_client = {client: mean for some, mean in found.values() for client in some}
        return GroupMeans(weights, {prefix: mean for prefix, (_, mean) in found.items()}, by_client)

    def mean(
        self,
        weights: NamedTensors,
        sent: Mapping[ClientId, Mapping[str, Tensor]],
        clients: Clients,
        holding: Holding = by_key,
    ) -> NamedTensors:
        """The server's model after the clients sent theirs; what nobody sent stays as it is in ``weights``."""
        means = self.means(weights, clients, holding)
        for client, tensors in sent.items():
            means.take(client, tensors)
        return means.result()

    def holding(self, round: int) -> Holding:
        """What a client holds of the server's model in a round, counted from 1: the tensors that its model has."""
        return by_key

    def deployed(self, server: Server[Any], clients: Clients) -> Mapping[ClientId, Weights]:
        return self.models(server.state.weights, clients, self.holding(server.round))

    @on_client
    def deploy(self, client: Client[Any], message: Weights) -> None:
        client.model.load(message.tensors)
        if self.buffers is BufferPolicy.RECALIBRATE:
            client.recalibrate(self.batch_size)

    def predictor(self) -> Predictor:
        return by_batch_statistics if self.buffers is BufferPolicy.BATCH_STATISTICS else whole

    def check_buffers(self, clients: Clients, *allowed: BufferPolicy) -> None:
        """Check that models in evaluation mode have statistics, which some policies neither send nor keep.

        Raises:
            ConfigError: a client's model has statistics, and the policy is none of those allowed.
        """
        if self.buffers not in allowed and any(profile.buffers for profile in clients.profiles.values()):
            named = ", ".join(allowed)
            raise ConfigError(
                f"buffers = {self.buffers.value!r} leaves models without the running statistics that "
                f"{type(self).__name__} needs: take {named}, or models without batch normalisation"
            )

    def notice(self, profiles: Mapping[ClientId, Profile]) -> Notice | None:
        common = nothing_in_common(profiles, apart=self.aggregation == "group")
        return common or one_a_round(profiles, self.participation)


@dataclass(frozen=True)
class AveragingModels(Averaging):
    """Averaging whose clients send the models that they trained, all of them tensors of the server's."""

    def round(self, server: Server[Any], clients: Clients) -> None:
        server.state = Global(self.trained(server, clients.sample(self.participation)))

    def trained(self, server: Server[Any], chosen: Clients) -> NamedTensors:
        """The server's model after these clients trained it."""
        weights, holding = server.state.weights, self.holding(server.round)
        means = self.means(weights, chosen, holding)
        chosen.call(self.train, self.models(weights, chosen, holding), each=lambda c, r: means.take(c, r.tensors))
        return means.result()

    @on_client
    def train(self, client: Client[Any], received: Weights) -> Weights:
        client.model.load(received.tensors)
        self.fit(client, self.objective(client, received))
        return Weights(client.tensors(buffers=self.buffers))

    def objective(self, client: Client[Any], received: Weights) -> Objective:
        """What clients minimise: the task's loss."""
        return client.loss


def merged(groups: Mapping[str, NamedTensors]) -> NamedTensors:
    """The tensors of all groups, each under its prefix and key."""
    return {prefix + key: tensor for prefix, weights in groups.items() for key, tensor in weights.items()}


def under(prefix: str, weights: NamedTensors) -> NamedTensors:
    """The tensors of one group by key."""
    return {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
