"""FedGen: a generator of features, trained at the server on the clients' heads, teaches all clients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from jaxtyping import Float32
from torch import Tensor

from interfuse.aggregation import BufferPolicy
from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.families.averaging import Averaging
from interfuse.families.averaging import Global as ServersModel
from interfuse.families.generators import generating, labelled, network, regularised
from interfuse.families.heads import check_common_head
from interfuse.families.holdings import by_architecture, one_of_each_architecture
from interfuse.handler import on_client
from interfuse.messages import ClassCounts, Dims, Disclosure, Message, NamedTensors, Parameters
from interfuse.method import ALL, NOTHING, Count, Network, NonNegative, Steps
from interfuse.models import SplitModel
from interfuse.server import Server
from interfuse.training import Exponential, LearningRate, Objective, Optimizer

CLIENT_LR, GENERATOR_LR = Exponential(0.01, 0.99), Exponential(3e-4, 0.98)
GeneratorTensors = dict[str, Annotated[Float32[Tensor, "..."], Disclosure.PARAMETERS]]


class ModelAndGenerator(Message):
    """A client's part of the model, the generator (nothing in the first round), and how often to draw each label."""

    weights: Parameters
    generator: GeneratorTensors
    counts: ClassCounts


class ModelAndCounts(Message):
    """A client's model, and how often it has each label."""

    weights: Parameters
    counts: ClassCounts


class Global(ServersModel):
    """The server's model, and the label counts of those who took part last."""

    counts: Float32[Tensor, "classes"]


@dataclass(frozen=True)
class FedGen(Averaging):
    """Data-free distillation (Zhu et al., ICML 2021), with the defaults of the authors' code.

    All models are averaged; their modular blocks must be alike, since the generator makes features of the fusion layer.
    The server trains it until every client's head recognises the label, each counting for a label by its part of the
    samples that have it. Clients learn from its features from the second round on.
    """

    origin = "FedGen's code"
    usual = {"local_steps": 20, "batch_size": 32, "optimizer": "sgd", "lr": CLIENT_LR, "weights": "samples"}

    alpha: NonNegative = 10.0  # weight of the loss on generated features, a mean over as many as the batch has rows
    beta: NonNegative = 10.0  # weight of the divergence from the head's answer to a feature of the own label, a mean
    labels: Literal["uniform", "samples"] = "uniform"  # drawn for features: all that are there alike, or as often
    regularised_steps: Steps = 20  # steps of a round, the first ones, that learn from the generator
    decay: NonNegative = 0.98  # of both weights in a round, down to 0.0001
    generator_steps: Steps = 50  # steps of the generator in a round, each of batch_size features
    generator_lr: LearningRate = GENERATOR_LR  # learning rate of the generator, by Adam
    generator_weight_decay: NonNegative = 1e-2  # of the generator
    diversity: NonNegative = 1.0  # eta: weight of the generator's diversity loss
    noise: Count = 32  # inputs of the generator beside the label
    hidden: Count = 256  # width of the generator

    def start(self, server: Server[Global], clients: Clients) -> Global:
        self.check_buffers(clients, BufferPolicy.AGGREGATE)
        check_common_head(server, clients)
        weights, classes = self.initial(server, clients), server.dims["classes"]
        return Global(weights, torch.zeros(classes, device=next(iter(weights.values())).device))

    def networks(self, owner: Profile | None, dims: Dims) -> Mapping[str, Network]:
        """The server owns the generator, clients borrow it."""
        build = partial(network, dims["classes"], dims["d"], self.noise, self.hidden)
        return {"generator": Network(build, ALL if owner is None else NOTHING)}

    def round(self, server: Server[Global], clients: Clients) -> None:
        chosen, old = clients.sample(self.participation), server.state
        trained = server.round > 1 and self.generator_steps  # there is nothing to learn from one that is as it was made
        generator = server.network("generator").tensors() if trained else {}
        models, labels = self.models(old.weights, chosen), self.chances(old.counts)
        given = by_architecture(chosen, lambda p: ModelAndGenerator(models[p.id].tensors, generator, labels))
        first, *_ = one_of_each_architecture(clients)
        head = server.scratch_model("head", first.architecture).only("modular")
        mean, heads, counts = self.means(old.weights, chosen), list[NamedTensors](), list[Tensor]()

        def add(client: ClientId, reply: ModelAndCounts) -> None:
            mean.take(client, reply.weights)
            heads.append(head.frozen({key: reply.weights[key] for key in head.tensors()}).tensors())
            counts.append(reply.counts)

        chosen.call(self.train, given, each=add)
        self.train_generator(server, head, heads, torch.stack(counts))
        server.state = Global(mean.result(), torch.stack(counts).sum(0))

    def train_generator(
        self,
        server: Server[Global],
        head: SplitModel,
        heads: Sequence[NamedTensors],
        counts: Float32[Tensor, "k classes"],
    ) -> None:
        """min_G of how badly the clients' heads recognise G(y), plus η times the diversity loss."""
        loss = partial(generating, head=head, heads=heads, counts=counts, diversity=self.diversity)
        batches = self.drawn(self.chances(counts.sum(0)), server.generator)
        adam = Optimizer("adam", weight_decay=self.generator_weight_decay)
        server.fit(loss, batches, network="generator", lr=self.generator_lr, optimizer=adam, keep_optimizer="generator")

    def chances(self, counts: Float32[Tensor, "classes"]) -> Float32[Tensor, "classes"]:
        """How often each label is drawn, up to a factor."""
        return counts if self.labels == "samples" else (counts > 0).to(counts)

    def drawn(self, counts: Float32[Tensor, "classes"], generator: torch.Generator) -> Iterator[Batch]:
        rows = max(2, self.batch_size)  # one label has no variance to normalise by
        for _ in range(self.generator_steps):
            drawn = torch.multinomial(counts.cpu(), rows, replacement=True, generator=generator)
            y = drawn.to(counts.device)
            yield Batch(labelled(y, len(counts), self.noise, generator), y)

    @on_client
    def train(self, client: Client, received: ModelAndGenerator) -> ModelAndCounts:
        client.model.load(received.weights)
        self.fit(client, self.loss(client, received))
        counts = torch.bincount(client.data.labels(), minlength=client.dims["classes"]).float()
        return ModelAndCounts(client.tensors(buffers=self.buffers), counts)

    def loss(self, client: Client, received: ModelAndGenerator) -> Objective:
        client.network("generator").load(received.generator)
        generator = client.network("generator").tensors() if received.generator else {}
        decayed = ((weight, weight * self.decay ** (client.round - 1)) for weight in (self.alpha, self.beta))
        alpha, beta = (min(weight, max(1e-4, now)) for weight, now in decayed)
        return partial(
            regularised,
            generator=generator,
            counts=received.counts,
            alpha=alpha,
            beta=beta,
            steps=self.regularised_steps,
        )
