"""FedGen: a generator of features, trained at the server on the clients' heads, teaches all clients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

from interfuse.aggregation import BufferPolicy
from interfuse.client import Client, ClientId
from interfuse.clients import Clients
from interfuse.families.averaging import Averaging
from interfuse.families.averaging import Global as ServersModel
from interfuse.families.heads import check_common_head
from interfuse.families.holdings import by_architecture
from interfuse.families.learning_from_generators import LearningFromGenerator, WeightsAndCounts, WeightsAndGenerator
from interfuse.handler import on_client
from interfuse.server import Server
from interfuse.training import Exponential

CLIENT_LR = Exponential(0.01, 0.99)


class Global(ServersModel):
    """The server's model, and the label counts of those who took part last."""

    counts: Float32[Tensor, "classes"]


@dataclass(frozen=True)
class FedGen(Averaging, LearningFromGenerator):
    """Data-free distillation (Zhu et al., ICML 2021), with the defaults of the authors' code.

    All models are averaged; their modular blocks must be alike, since the generator makes features of the fusion layer.
    The server trains it until every client's head recognises the label, each counting for a label by its part of the
    samples that have it. Clients learn from its features from the second round on. ``fedgen-heads`` averages heads
    alone, for models that differ.
    """

    origin = "FedGen's code"
    usual = {"local_steps": 20, "batch_size": 32, "optimizer": "sgd", "lr": CLIENT_LR, "weights": "samples"}

    def start(self, server: Server[Global], clients: Clients) -> Global:
        self.check_buffers(clients, BufferPolicy.AGGREGATE)
        check_common_head(server, clients)
        weights, classes = self.initial(server, clients), server.dims["classes"]
        return Global(weights, torch.zeros(classes, device=next(iter(weights.values())).device))

    def round(self, server: Server[Global], clients: Clients) -> None:
        chosen, old = clients.sample(self.participation), server.state
        generator, labels = self.generator(server), self.chances(old.counts)
        models, mean = self.models(old.weights, chosen), self.means(old.weights, chosen)
        heads = self.heads(server, clients)

        def add(client: ClientId, reply: WeightsAndCounts) -> None:
            mean.take(client, reply.weights)
            heads.take(client, reply)

        given = by_architecture(chosen, lambda p: WeightsAndGenerator(models[p.id].tensors, generator, labels))
        chosen.call(self.train, given, each=add)
        server.state = Global(mean.result(), self.train_generator(server, heads))

    @on_client
    def train(self, client: Client, received: WeightsAndGenerator) -> WeightsAndCounts:
        counts = self.learn(client, received)
        return WeightsAndCounts(client.tensors(buffers=self.buffers), counts)
