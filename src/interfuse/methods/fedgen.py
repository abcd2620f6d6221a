"""FedGen: a generator of features, trained at the server on the clients' heads, teaches all clients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Annotated

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn
from torch.nn import functional

from interfuse.aggregation import BufferPolicy
from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.families.averaging import by_architecture, one_of_each_architecture
from interfuse.families.heads import check_common_head
from interfuse.handler import on_client
from interfuse.messages import ClassCounts, Disclosure, Message, NamedTensors, Parameters, State
from interfuse.method import Count, Method, NonNegative, Steps
from interfuse.methods.fedavg import Averaging
from interfuse.models import SplitModel
from interfuse.server import Server
from interfuse.training import Exponential, LearningRate, Objective, Optimizer

GENERATOR_LR = Exponential(3e-4, 0.98)
GeneratorTensors = dict[str, Annotated[Float32[Tensor, "..."], Disclosure.PARAMETERS]]


class ModelAndGenerator(Message):
    """A client's part of the model, the generator (nothing in the first round), and how often each label is there."""

    weights: Parameters
    generator: GeneratorTensors
    counts: ClassCounts


class ModelAndCounts(Message):
    """A client's model, and how often it has each label."""

    weights: Parameters
    counts: ClassCounts


class Global(State):
    """The server's model and generator, and the label counts of those who took part last."""

    weights: NamedTensors
    generator: NamedTensors
    counts: Float32[Tensor, "classes"]


def network(classes: int, d: int, noise: int, hidden: int) -> SplitModel:
    """G: noise and the one-hot label, side by side ``[batch, noise + classes]``, to features ``[batch, d]``."""
    inner = nn.Sequential(nn.Linear(noise + classes, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
    return SplitModel({"hidden": inner, "features": nn.Linear(hidden, d)})


def alike(noise: Float[Tensor, "batch n"], z: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
    """exp(− mean over pairs of (mean squared distance of noise · mean absolute distance of features)): 1 where all
    features are the same, and the less the more these follow the noise."""
    of_noise = (noise[:, None] - noise[None]).square().mean(2)
    of_features = (z[:, None] - z[None]).abs().mean(2)
    return torch.exp(-(of_noise * of_features).mean())


def recognised(
    z: Float[Tensor, "batch d"],
    y: Int64[Tensor, "batch"],
    heads: Sequence[SplitModel],
    counts: Float32[Tensor, "k classes"],
) -> Float[Tensor, ""]:
    """Σ_k mean_i ω_k(y_i) CE(h_k(z_i), y_i), with ω_k(y) the part of client k in all samples that have label y."""
    omega = counts / counts.sum(0).clamp(min=1)
    losses = [functional.cross_entropy(head(z), y, reduction="none") for head in heads]
    return (omega[:, y] * torch.stack(losses)).sum(0).mean()


@dataclass(frozen=True)
class FedGen(Averaging, Method):
    """Data-free distillation (Zhu et al., ICML 2021), with the authors' defaults.

    All models are averaged; their modular blocks must be alike, since the generator makes features of the fusion layer.
    The server trains it until every client's head recognises the label, each counting for a label by its part of the
    samples that have it. Clients learn from its features from the second round on.
    """

    discloses = frozenset({Disclosure.PARAMETERS, Disclosure.STATISTICS})

    local_steps: Steps = 20  # steps of a client in a round, instead of local_epochs where above 0
    alpha: NonNegative = 10.0  # weight of generated features, for labels drawn as they are there over all
    beta: NonNegative = 10.0  # weight of the head's answer to a generated feature of the sample's own label
    regularised_steps: Steps = 20  # steps of a round, the first ones, that learn from the generator
    decay: NonNegative = 0.98  # of both weights in a round, down to 0.0001
    generator_steps: Steps = 50  # steps of the generator in a round
    generator_lr: LearningRate = GENERATOR_LR  # learning rate of the generator, by Adam
    generator_weight_decay: NonNegative = 1e-2  # of the generator
    diversity: NonNegative = 1.0  # eta: weight of the generator's diversity loss
    noise: Count = 32  # inputs of the generator beside the label
    hidden: Count = 256  # width of the generator

    def start(self, server: Server[Global], clients: Clients) -> Global:
        self.check_buffers(clients, BufferPolicy.AGGREGATE)
        check_common_head(server, clients)
        weights, classes = self.initial(server, clients), server.dims["classes"]
        device = next(iter(weights.values())).device
        return Global(weights, self.generator(server.dims, device).tensors(), torch.zeros(classes, device=device))

    def generator(self, dims: Mapping[str, int], device: torch.device) -> SplitModel:
        return network(dims["classes"], dims["d"], self.noise, self.hidden).to(device)

    def round(self, server: Server[Global], clients: Clients) -> None:
        chosen, old = clients.sample(self.participation), server.state
        generator = old.generator if server.round > 1 else {}
        models = self.models(old.weights, chosen)
        given = by_architecture(chosen, lambda p: ModelAndGenerator(models[p.id].tensors, generator, old.counts))
        replies = chosen.call(self.train, given)
        sent = list(replies.values())
        counts = torch.stack([reply.counts for reply in sent])
        weights = self.mean(old.weights, {c: reply.weights for c, reply in replies.items()}, chosen)
        server.state = Global(weights, self.train_generator(server, clients, sent, counts), counts.sum(0))

    def train_generator(
        self, server: Server[Global], clients: Clients, sent: list[ModelAndCounts], counts: Float32[Tensor, "k classes"]
    ) -> NamedTensors:
        """min_G of how badly the clients' heads recognise G(y), plus η times the diversity loss."""
        generator, (first, *_) = self.generator(server.dims, counts.device), one_of_each_architecture(clients)
        generator.load(server.state.generator)
        head = server.scratch_model("head", first.architecture).only("modular")
        heads = [head.frozen({key: reply.weights[key] for key in head.tensors()}) for reply in sent]

        def loss(model: SplitModel, batch: Batch) -> Tensor:
            z = model(batch.x)
            return recognised(z, batch.y, heads, counts) + self.diversity * alike(batch.x[:, : self.noise], z)

        batches = self.drawn(counts.sum(0), server.generator)
        adam = Optimizer("adam", weight_decay=self.generator_weight_decay)
        server.fit(generator, loss, batches, lr=self.generator_lr, optimizer=adam, keep_optimizer="generator")
        return generator.tensors()

    def drawn(self, counts: Float32[Tensor, "classes"], generator: torch.Generator) -> Iterator[Batch]:
        for _ in range(self.generator_steps):
            drawn = torch.multinomial(counts.cpu(), self.batch_size, replacement=True, generator=generator)
            y = drawn.to(counts.device)
            yield Batch(self.inputs(y, len(counts), generator), y)

    def inputs(
        self, y: Int64[Tensor, "batch"], classes: int, generator: torch.Generator | None = None
    ) -> Float32[Tensor, "batch inputs"]:
        """Uniform noise and the one-hot label."""
        noise = torch.rand(len(y), self.noise, generator=generator)
        return torch.cat([noise.to(y.device), functional.one_hot(y, classes).float()], 1)

    @on_client
    def train(self, client: Client, received: ModelAndGenerator) -> ModelAndCounts:
        client.model.load(received.weights)
        self.fit(client, self.loss(client, received))
        counts = torch.bincount(client.data.labels(), minlength=client.dims["classes"]).float()
        return ModelAndCounts(client.tensors(buffers=self.buffers), counts)

    def loss(self, client: Client, received: ModelAndGenerator) -> Objective:
        """CE(f(x), y) + α_t CE(h(G(ỹ)), ỹ) + β_t KL(h(G(y)) ‖ f(x)), with the client's head h as it is now."""
        generator = self.generator(client.dims, received.counts.device).frozen(received.generator)
        decayed = ((weight, weight * self.decay ** (client.round - 1)) for weight in (self.alpha, self.beta))
        alpha, beta = (min(weight, max(1e-4, now)) for weight, now in decayed)
        steps = count()

        def loss(model: SplitModel, batch: Batch) -> Tensor:
            logits = model(batch.x)
            entropy = functional.cross_entropy(logits, batch.y)
            if not received.generator or next(steps) >= self.regularised_steps:
                return entropy
            y = torch.multinomial(received.counts, len(batch.y), replacement=True)
            generated = functional.cross_entropy(model.modular(generator(self.inputs(y, len(received.counts)))), y)
            with torch.no_grad():
                teacher = model.modular(generator(self.inputs(batch.y, len(received.counts)))).softmax(1)
            distance = functional.kl_div(logits.log_softmax(1), teacher, reduction="batchmean")
            return entropy + alpha * generated + beta * distance

        return loss
