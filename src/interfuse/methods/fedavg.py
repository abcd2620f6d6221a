"""FedAvg: average parameters, key by key over the clients that hold them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from torch import Tensor

from interfuse.aggregation import BufferPolicy, at_least_two, use_batch_statistics
from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.data import Inputs
from interfuse.data.inputs import each, rows_of
from interfuse.errors import ConfigError, Notice
from interfuse.families.averaging import (
    Holding,
    WeightRule,
    averaged,
    by_key,
    held,
    initial_weights,
    nothing_in_common,
    one_of_each_architecture,
)
from interfuse.handler import Program, on_client
from interfuse.messages import NamedTensors, State, Weights
from interfuse.method import BUFFERS, NOTHING, Count, Fraction, Method, NonNegative, Steps
from interfuse.methods.local import Local
from interfuse.server import Server
from interfuse.training import Fitted, LearningRate, Objective, Optimizer, OptimizerName, cross_entropy


class Global(State):
    """The server's model: every tensor that some client holds, or one model for each group of clients."""

    weights: NamedTensors


@dataclass(frozen=True)
class Averaging(Program):
    """The part that methods with an averaged model have in common: who averages with whom, what travels, evaluation.

    With nested depths every tensor is averaged over the clients that hold its key (FedIN, arXiv:2304.00759, eq. 19), or
    the clients of each architecture are a federation of their own (eq. 20 and 21).
    """

    participation: Fraction = 1.0  # fraction of the clients drawn for a round
    local_epochs: Steps = 1  # E: epochs of a client in a round
    local_steps: Steps = 0  # steps instead of local_epochs, where above 0
    batch_size: Count = 32  # B: samples of a step
    lr: LearningRate = 0.01  # learning rate
    optimizer: OptimizerName = "sgd"  # sgd, adam or adamw; starts anew each round
    momentum: NonNegative = 0.0  # of sgd
    weight_decay: NonNegative = 0.0  # of the optimizer
    weights: WeightRule = "samples"  # clients count by their samples, or uniform
    aggregation: Literal["layerwise", "group"] = "layerwise"  # over all who hold a key, or in each architecture apart
    buffers: BufferPolicy = BufferPolicy.AGGREGATE  # aggregate, local, batch-statistics or recalibrate

    def keeps(self) -> frozenset[str]:
        return frozenset({BUFFERS}) if self.buffers is BufferPolicy.LOCAL else NOTHING

    def initial(self, server: Server[Any], clients: Clients) -> NamedTensors:
        """The server's model before the first round."""
        return merged({prefix: initial_weights(server, some, self.buffers) for prefix, some in self.groups(clients)})

    def groups(self, clients: Clients) -> Iterator[tuple[str, Clients]]:
        """Clients that average with each other, and what the server puts before the keys of their tensors."""
        if self.aggregation == "layerwise":
            yield "", clients
            return
        for one in one_of_each_architecture(clients):
            alike = (client for client, p in clients.profiles.items() if p.architecture == one.architecture)
            yield f"{quote(one.architecture, safe='')}:", clients.only(alike)

    def models(self, weights: NamedTensors, clients: Clients, holding: Holding = by_key) -> dict[ClientId, Weights]:
        """A message for each client with what it holds of the model of its group."""
        found: dict[ClientId, Weights] = {}
        for prefix, some in self.groups(clients):
            found |= held(under(prefix, weights), some, holding)
        return found

    def mean(
        self,
        weights: NamedTensors,
        sent: Mapping[ClientId, Mapping[str, Tensor]],
        clients: Clients,
        holding: Holding = by_key,
    ) -> NamedTensors:
        """The server's model after the clients sent theirs; what nobody sent stays as it is in ``weights``."""
        means = {
            prefix: averaged(
                under(prefix, weights), {c: sent[c] for c in some if c in sent}, some.profiles, self.weights, holding
            )
            for prefix, some in self.groups(clients)
        }
        return weights | merged(means)

    def fit(self, client: Client[Any], losses: Objective | Mapping[str, Objective], **options: Any) -> Fitted:
        """A client's training of a round. ``options`` are those of :meth:`.Client.fit`."""
        return client.fit(
            losses, lr=self.lr, batch_size=self.batch_size, optimizer=self.stepper(),
            steps=self.local_steps or None, epochs=None if self.local_steps else self.local_epochs, **options,
        )  # fmt: skip

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

    def stepper(self) -> Optimizer:
        return Optimizer(self.optimizer, self.momentum, self.weight_decay)

    def deployed(self, server: Server[Any], clients: Clients) -> Mapping[ClientId, Weights]:
        return self.models(server.state.weights, clients)

    @on_client
    def deploy(self, client: Client[Any], message: Weights) -> None:
        client.model.load(message.tensors)
        if self.buffers is BufferPolicy.RECALIBRATE:
            client.recalibrate(self.batch_size)

    def predict(self, client: Client[Any], x: Inputs) -> Tensor:
        if self.buffers is not BufferPolicy.BATCH_STATISTICS:
            scores: Tensor = client.model(x)
            return scores
        with use_batch_statistics(client.model):
            together: Tensor = client.model(each(at_least_two, x))
            return together[: rows_of(x)]

    def notice(self, profiles: Mapping[ClientId, Profile]) -> Notice | None:
        return nothing_in_common(profiles, apart=self.aggregation == "group")

    def alone(self) -> Method:
        return Local(
            local_steps=self.local_steps, local_epochs=0 if self.local_steps else self.local_epochs,
            batch_size=self.batch_size, lr=self.lr, optimizer=self.optimizer, keep_optimizer=False,
            participation=self.participation, momentum=self.momentum, weight_decay=self.weight_decay,
        )  # fmt: skip


@dataclass(frozen=True)
class TrainingOnOwnData(Averaging):
    """Averaging whose clients train on cross entropy alone, and send their models."""

    @on_client
    def train(self, client: Client, received: Weights) -> Weights:
        client.model.load(received.tensors)
        self.fit(client, cross_entropy)
        return Weights(client.tensors(buffers=self.buffers))


@dataclass(frozen=True)
class FedAvg(TrainingOnOwnData, Method):
    """Federated averaging (McMahan et al., AISTATS 2017), layer-wise where clients hold different depths of one model.

    With one architecture this is the published method.
    """

    def start(self, server: Server[Global], clients: Clients) -> Global:
        return Global(self.initial(server, clients))

    def round(self, server: Server[Global], clients: Clients) -> None:
        chosen, weights = clients.sample(self.participation), server.state.weights
        replies = chosen.call(self.train, self.models(weights, chosen))
        server.state = Global(self.mean(weights, {c: reply.tensors for c, reply in replies.items()}, chosen))


def merged(groups: Mapping[str, NamedTensors]) -> NamedTensors:
    """The tensors of all groups, each under its prefix and key."""
    return {prefix + key: tensor for prefix, weights in groups.items() for key, tensor in weights.items()}


def under(prefix: str, weights: NamedTensors) -> NamedTensors:
    """The tensors of one group by key."""
    return {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
