"""A generator of features: the server trains it on the clients' heads, all clients learn from it, whatever is averaged.

FedGen (Zhu et al., ICML 2021). Its objectives are in :mod:`.feature_generators`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float32
from torch import Tensor

from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.families.checks import check_counts
from interfuse.families.feature_generators import generating, labelled, network, regularised
from interfuse.families.holdings import one_of_each_architecture
from interfuse.families.own_training import OwnTraining
from interfuse.messages import ClassCounts, Dims, Disclosure, Message, NamedTensors, Parameters
from interfuse.method import ALL, NOTHING, Count, Network, NonNegative, Steps
from interfuse.models import SplitModel
from interfuse.server import Server
from interfuse.training import Exponential, LearningRate, Objective, Optimizer

GENERATOR_LR = Exponential(3e-4, 0.98)
FeatureGenerator = dict[str, Annotated[Float32[Tensor, "..."], Disclosure.PARAMETERS]]
"""Tensors by key of the generator, which the server trains and no client: it has seen heads alone, no sample."""


class WeightsAndGenerator(Message):
    """What a client holds of what is averaged, the generator (nothing in the first round), and how often to draw each
    label."""

    weights: Parameters
    generator: FeatureGenerator
    counts: ClassCounts


class WeightsAndCounts(Message):
    """What a client trained of what is averaged, its modular block in any case, and how often it has each label."""

    weights: Parameters
    counts: ClassCounts


class Heads:
    """The clients' modular blocks and label counts, one by one; of the rest of what they sent nothing is held.

    Attributes:
        head: The module that all of them are; its own values play no part.
    """

    def __init__(self, head: SplitModel) -> None:
        self.head = head
        self.heads: list[NamedTensors] = []
        self.counts: list[ClassCounts] = []

    def take(self, client: ClientId, reply: WeightsAndCounts) -> None:
        """Add what a client sent, the keys of which are those that it holds.

        Raises:
            ClientError: as :func:`.check_counts`.
        """
        check_counts(client, reply.counts)
        self.heads.append(self.head.frozen({key: reply.weights[key] for key in self.head.tensors()}).tensors())
        self.counts.append(reply.counts)


@dataclass(frozen=True)
class LearningFromGenerator(OwnTraining):
    """The generator is trained until every client's head recognises the label, each counting for a label by its part of
    the samples that have it. Clients learn from its features from the second round on. All modular blocks are alike."""

    origin = "FedGen's code"

    alpha: NonNegative = 10.0  # weight of the loss on generated features, a mean over as many as the batch has rows
    beta: NonNegative = 10.0  # weight of the divergence from the head's answer to a feature of the own label, a mean
    labels: Literal["uniform", "samples"] = "uniform"  # drawn for features: all that are there alike, or as often
    regularised_steps: Steps | None = 20  # steps of a round, the first ones, that learn from the generator; none: all
    decay: NonNegative = 0.98  # of both weights in a round, down to 0.0001
    generator_steps: Steps = 50  # steps of the generator in a round, each of batch_size features
    generator_lr: LearningRate = GENERATOR_LR  # learning rate of the generator, by Adam
    generator_weight_decay: NonNegative = 1e-2  # of the generator
    diversity: NonNegative = 1.0  # eta: weight of the generator's diversity loss
    noise: Count = 32  # inputs of the generator beside the label
    hidden: Count = 256  # width of the generator

    def networks(self, owner: Profile | None, dims: Dims) -> Mapping[str, Network]:
        """The server owns the generator, clients borrow it."""
        build = partial(network, dims["classes"], dims["d"], self.noise, self.hidden)
        return {"generator": Network(build, ALL if owner is None else NOTHING)}

    def generator(self, server: Server[Any]) -> NamedTensors:
        """The generator as clients get it: nothing is to be learnt from one that is as it was made."""
        trained = server.round > 1 and self.generator_steps
        return server.network("generator").tensors() if trained else {}

    def heads(self, server: Server[Any], clients: Clients) -> Heads:
        """What takes up the heads that clients send."""
        first, *_ = one_of_each_architecture(clients)
        return Heads(server.scratch_model("head", first.architecture).only("modular"))

    def train_generator(self, server: Server[Any], sent: Heads) -> Float32[Tensor, "classes"]:
        """min_G of how badly the clients' heads recognise G(y), plus η times the diversity loss.

        Returns how many samples of each class these clients have together.
        """
        counts = torch.stack(sent.counts)
        loss = partial(generating, head=sent.head, heads=sent.heads, counts=counts, diversity=self.diversity)
        batches = self.drawn(self.chances(counts.sum(0)), server.generator)
        adam = Optimizer("adam", weight_decay=self.generator_weight_decay)
        server.fit(loss, batches, network="generator", lr=self.generator_lr, optimizer=adam, keep_optimizer="generator")
        return counts.sum(0)

    def chances(self, counts: Float32[Tensor, "classes"]) -> Float32[Tensor, "classes"]:
        """How often each label is drawn, up to a factor."""
        return counts if self.labels == "samples" else (counts > 0).to(counts)

    def drawn(self, counts: Float32[Tensor, "classes"], generator: torch.Generator) -> Iterator[Batch]:
        rows = max(2, self.batch_size)  # one label has no variance to normalise by
        for _ in range(self.generator_steps):
            drawn = torch.multinomial(counts.cpu(), rows, replacement=True, generator=generator)
            y = drawn.to(counts.device)
            yield Batch(labelled(y, len(counts), self.noise, generator), y)

    def learn(self, client: Client[Any], received: WeightsAndGenerator) -> ClassCounts:
        """What a client does in a round; its label counts."""
        client.model.load(received.weights)
        self.fit(client, self.loss(client, received))
        return torch.bincount(client.data.labels(), minlength=client.dims["classes"]).float()

    def loss(self, client: Client[Any], received: WeightsAndGenerator) -> Objective:
        client.network("generator").load(received.generator)
        generator = client.network("generator").tensors() if received.generator else {}
        decayed = ((weight, weight * self.decay ** (client.round - 1)) for weight in (self.alpha, self.beta))
        alpha, beta = (min(weight, max(1e-4, now)) for weight, now in decayed)
        steps = sys.maxsize if self.regularised_steps is None else self.regularised_steps
        bound = partial(regularised, generator=generator, counts=received.counts)
        return partial(bound, alpha=alpha, beta=beta, steps=steps)
