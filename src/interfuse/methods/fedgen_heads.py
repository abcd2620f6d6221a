"""FedGen where models differ: heads are averaged, and a generator of features teaches them what others have."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

from interfuse.client import Client, ClientId
from interfuse.clients import Clients
from interfuse.families.heads import check_common_head
from interfuse.families.holdings import HeldMean, WeightRule, initial_weights
from interfuse.families.learning_from_generators import LearningFromGenerator, WeightsAndCounts, WeightsAndGenerator
from interfuse.handler import on_client
from interfuse.messages import NamedTensors, State, Weights
from interfuse.method import Fraction
from interfuse.server import Server


class Global(State):
    """The averaged modular block, and the label counts of those who took part last."""

    head: NamedTensors
    counts: Float32[Tensor, "classes"]


@dataclass(frozen=True)
class FedGenHeads(LearningFromGenerator):
    """FedGen as HtFLlib (arXiv:2506.03954) has it, with the defaults of its script: clients keep their base blocks.

    A round hands the averaged modular block and the generator to clients, which train on their samples and the modular
    block on generated features too; the block is averaged, and the generator trained as in ``fedgen``, of which this
    shares all but what is averaged. Its own method since every other default differs: no divergence from answers to
    generated features, no diversity loss, no decay, labels as often as they are there, all steps.

    In HtFLlib the generator learns from the mean of all heads' answers, not from each by its part of the label, and
    what it learnt is never stored, so clients get it as it was made: neither is taken over.
    """

    origin = "HtFLlib's code"
    usual = {
        "local_epochs": 1,
        "batch_size": 10,
        "optimizer": "sgd",
        "lr": 0.01,
        "alpha": 1.0,
        "beta": 0.0,
        "labels": "samples",
        "regularised_steps": None,
        "decay": 1.0,
        "generator_steps": 100,
        "generator_lr": 0.1,
        "generator_weight_decay": 0.0,
        "diversity": 0.0,
        "noise": 32,
        "hidden": 512,
    }

    participation: Fraction = 1.0  # fraction of the clients drawn for a round
    weights: WeightRule = "samples"  # clients count by their samples, or uniform

    def keeps(self) -> frozenset[str]:
        return frozenset({"base"})

    def start(self, server: Server[Global], clients: Clients) -> Global:
        check_common_head(server, clients)
        head, classes = initial_weights(server, clients, parts=["modular"]), server.dims["classes"]
        return Global(head, torch.zeros(classes, device=next(iter(head.values())).device))

    def round(self, server: Server[Global], clients: Clients) -> None:
        chosen, old, heads = clients.sample(self.participation), server.state, self.heads(server, clients)
        mean = HeldMean(old.head, chosen.profiles, self.weights)

        def add(client: ClientId, reply: WeightsAndCounts) -> None:
            mean.take(client, reply.weights)
            heads.take(client, reply)

        given = WeightsAndGenerator(old.head, self.generator(server), self.chances(old.counts))
        chosen.call(self.train, given, each=add)
        server.state = Global(mean.result(), self.train_generator(server, heads))

    @on_client
    def train(self, client: Client, received: WeightsAndGenerator) -> WeightsAndCounts:
        counts = self.learn(client, received)
        return WeightsAndCounts(client.tensors("modular"), counts)

    def deployed(self, server: Server[Global], clients: Clients) -> Weights:
        return Weights(server.state.head)
