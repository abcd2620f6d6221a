"""HeteroFL: narrower clients hold the first channels of every layer, and every element is averaged over its holders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional

from interfuse.aggregation import Plan
from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.families.averaging import Holding, WeightRule, by_width, largest_weights
from interfuse.handler import on_client
from interfuse.messages import Disclosure, Message, NamedTensors, Parameters, Weights
from interfuse.method import Count, Method, NonNegative, Steps
from interfuse.methods.fedavg import Averaging, Global, merged
from interfuse.models import SplitModel
from interfuse.models.plans import with_rows
from interfuse.server import Server
from interfuse.training import LearningRate, Rate


class TrainedOnClasses(Message):
    """A trained sub-model, and which classes it was trained on."""

    tensors: Parameters
    present: Annotated[Bool[Tensor, "classes"], Disclosure.STATISTICS]


def masked_cross_entropy(model: SplitModel, batch: Batch, step: int, *, present: Bool[Tensor, "classes"]) -> Tensor:
    """Mean cross entropy with the logits of absent classes at 0, so that training does not push these away."""
    return functional.cross_entropy(model(batch.x).masked_fill(~present, 0), batch.y)


@dataclass(frozen=True)
class SubModels(Averaging):
    """Averaging where clients hold slices of the server's model, which is that of the largest client."""

    weights: WeightRule = "uniform"  # clients count all alike, or by their samples

    def initial(self, server: Server[Any], clients: Clients) -> NamedTensors:
        return merged({prefix: largest_weights(server, some, self.buffers) for prefix, some in self.groups(clients)})

    def holding(self, round: int) -> Holding:
        """What a client holds in a round, counted from 1: the first channels of every layer."""
        return by_width

    def deployed(self, server: Server[Global], clients: Clients) -> Mapping[ClientId, Weights]:
        return self.models(server.state.weights, clients, self.holding(server.round))


@dataclass(frozen=True)
class HeteroFL(SubModels, Method):
    """Sub-models of several widths (Diao et al., ICLR 2021): resnet18, resnet18@0.5 and so on, with fixed rates.

    Clients train without the logits of classes they have not, and their rows of the classifier do not count for these.
    What nobody holds stays as it is. The authors' Scaler, activations divided by the rate in training, is left out:
    every layer of the models of several widths is followed by a normalisation, which undoes it in training. Running
    statistics of one width fit no other; the authors compute them anew, of all clients' data, before evaluation. Use
    ``buffers="recalibrate"`` (of a client's own data), or ``"batch-statistics"``, which costs nothing.
    """

    local_epochs: Steps = 5  # E: epochs of a client in a round
    batch_size: Count = 10  # B: samples of a step
    lr: LearningRate = 0.1  # learning rate
    momentum: NonNegative = 0.9  # of sgd
    weight_decay: NonNegative = 5e-4  # of the optimizer
    clip: Rate | None = 1.0  # largest norm of the gradient of a step
    mask: bool = True  # leave out absent classes, in the loss and in the mean of classifiers

    def start(self, server: Server[Global], clients: Clients) -> Global:
        return Global(self.initial(server, clients))

    def round(self, server: Server[Global], clients: Clients) -> None:
        chosen, weights, holding = clients.sample(self.participation), server.state.weights, self.holding(server.round)
        replies = chosen.call(self.train, self.models(weights, chosen, holding))
        rows = {client: reply.present.nonzero().flatten() for client, reply in replies.items()}
        classifiers = {client: classifier(profile) for client, profile in chosen.profiles.items()}

        def trained(weights: Mapping[str, Tensor], profile: Profile) -> Plan:
            return with_rows(holding(weights, profile), classifiers[profile.id], rows[profile.id])

        sent = {c: r.tensors | {key: r.tensors[key][rows[c]] for key in classifiers[c]} for c, r in replies.items()}
        server.state = Global(self.mean(weights, sent, chosen, trained))

    @on_client
    def train(self, client: Client, received: Weights) -> TrainedOnClasses:
        client.model.load(received.tensors)
        counts = torch.bincount(client.data.labels(), minlength=client.dims["classes"])
        present = counts > 0 if self.mask else torch.ones_like(counts, dtype=torch.bool)
        self.fit(client, partial(masked_cross_entropy, present=present), clip=self.clip)
        return TrainedOnClasses(client.tensors(buffers=self.buffers), present)


def classifier(profile: Profile) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of the layer that gives the logits: the last one of the last stage."""
    *_, last = (key for key in profile.keys if key.startswith(f"{profile.stages[-1]}."))
    layer = last.rpartition(".")[0]
    return {key: shape for key, shape in profile.keys.items() if key.rpartition(".")[0] == layer}
