"""FedIN: intermediate layers learn from one batch of another client's features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from jaxtyping import Float32
from torch import Tensor

from interfuse.aggregation import BufferPolicy
from interfuse.client import Client, ClientId
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.families.averaging import WeightRule
from interfuse.families.heads import check_same_cuts
from interfuse.families.imitation import Normalisation, Rule, alleviated, imitation, noisy, noisy_cross_entropy, stacked
from interfuse.handler import on_client
from interfuse.messages import Disclosure, Message, NamedTensors, Parameters, State
from interfuse.method import Count, Method, NonNegative, Steps
from interfuse.methods.fedavg import Averaging
from interfuse.server import Server
from interfuse.training import Gradients, LearningRate, Objective, OptimizerName, proximal, total

PARTS = ("extractor", "intermediate", "classifier")


class FeaturePair(Message):
    """One batch of a client in front of its intermediate layers (s_in) and behind them (s_out)."""

    s_in: Annotated[Float32[Tensor, "batch ..."], Disclosure.FEATURES]
    s_out: Annotated[Float32[Tensor, "batch ..."], Disclosure.FEATURES]


class ModelAndFeatures(Message):
    """A client's part of the model: up with a batch of its own features, down with those of others."""

    weights: Parameters
    features: tuple[FeaturePair, ...]


class Global(State):
    """The server's model, and the features that the clients of the last round sent."""

    weights: NamedTensors
    pool: dict[int, FeaturePair]


@dataclass(frozen=True)
class FedIN(Averaging, Method):
    """Intermediate layers learning (Chan et al., arXiv:2304.00759), with its experiments' settings.

    Models have three parts, ``extractor``, ``intermediate`` and ``classifier``, and features of one shape between them.
    Clients train on their data with a proximal term, and their intermediate layers also on imitating what another
    client's made of its features: the mean squared error over a batch S received with the model. They send their
    models and one new batch of features each, drawn at random and taken in evaluation mode; labels never travel.
    """

    local_epochs: Steps = 5  # E: epochs of a client in a round
    batch_size: Count = 16  # B: samples of a step, and of the features that a client sends
    lr: LearningRate = 0.001  # learning rate
    optimizer: OptimizerName = "adam"  # sgd, adam or adamw; starts anew each round
    weights: WeightRule = "uniform"  # eq. 19 and 20; by samples in eq. 21
    mu: NonNegative = 0.1  # weight of the proximal term to the received model; 0 is without
    imitation: bool = True  # IN training; False leaves the proximal term alone, and sends the same
    gradient: Rule = "simplified"  # eq. 13, exact (eq. 12), sum (without alleviation), or projected (local plus exact)
    lam: NonNegative = 1.0  # lambda of the simplified rule
    per_tensor: bool = False  # apply the rule to each tensor by itself, not to the intermediate layers as a whole
    in_weight: NonNegative = 1.0  # factor before the IN loss
    in_order: Literal["interleaved", "after", "before"] = "interleaved"  # with local steps; or E steps apart, no rule
    in_normalisation: Normalisation = "eval"  # IN training by running, or the batch's statistics
    received_batches: Count = 1  # batches of features that a client receives for a round; a step takes one of them
    noise: NonNegative = 0.0  # standard deviation of noise on features, in units of theirs; FedIN (+Noise) has 0.8
    noise_where: Literal["upload", "forward", "both"] = "upload"  # on features sent, in local training, or on both

    def start(self, server: Server[Global], clients: Clients) -> Global:
        self.check_buffers(clients, BufferPolicy.AGGREGATE, BufferPolicy.LOCAL)
        check_same_cuts(clients, PARTS)
        return Global(self.initial(server, clients), {})

    def round(self, server: Server[Global], clients: Clients) -> None:
        chosen, old = clients.sample(self.participation), server.state
        models = self.models(old.weights, chosen)
        given = {c: ModelAndFeatures(models[c].tensors, self.draw(old.pool, c, server.generator)) for c in chosen}
        replies = chosen.call(self.train, given)
        weights = self.mean(old.weights, {c: reply.weights for c, reply in replies.items()}, chosen)
        server.state = Global(weights, {c: reply.features[0] for c, reply in replies.items()})

    def draw(
        self, pool: Mapping[ClientId, FeaturePair], client: ClientId, generator: torch.Generator
    ) -> tuple[FeaturePair, ...]:
        """Batches of others for a client, without repetition; its own only where there is no other."""
        others = [pair for owner, pair in pool.items() if owner != client] or list(pool.values())
        order = torch.randperm(len(others), generator=generator).tolist()
        return tuple(others[place] for place in order[: self.received_batches])

    @on_client
    def train(self, client: Client, received: ModelAndFeatures) -> ModelAndFeatures:
        client.model.load(received.weights)
        local = total(self.local_loss(), partial(proximal, anchor=received.weights, mu=self.mu))
        features = received.features if self.imitation else ()
        if features and self.in_order == "before":
            self.train_apart(client, features)
        if features and self.in_order == "interleaved":
            self.fit(client, {"local": local, "in": self.imitating(features)}, combine=self.combine)
        else:
            self.fit(client, local)
        if features and self.in_order == "after":
            self.train_apart(client, features)
        return ModelAndFeatures(client.tensors(buffers=self.buffers), (self.features(client),))

    def local_loss(self) -> Objective:
        """Cross entropy of the whole model; where the noise is in the forward pass, with noise at both cuts."""
        return partial(noisy_cross_entropy, noise=self.noise_at("forward"))

    def imitating(self, features: tuple[FeaturePair, ...]) -> Objective:
        """The IN loss on the batches received."""
        s_in, s_out = (stacked([getattr(pair, side) for pair in features]) for side in ("s_in", "s_out"))
        return partial(imitation, s_in=s_in, s_out=s_out, normalisation=self.in_normalisation, weight=self.in_weight)

    def combine(self, gradients: Mapping[str, Gradients], parameters: Mapping[str, Tensor]) -> Gradients:
        """The local gradient on extractor and classifier, Z on the intermediate layers."""
        local, foreign = gradients["local"], gradients["in"]
        z: Gradients = {}
        for keys in ([key] for key in foreign) if self.per_tensor else [list(foreign)]:
            own, others = ({key: g[key] for key in keys} for g in (local, foreign))
            z |= alleviated(own, others, self.gradient, self.lam)
        return local | z

    def train_apart(self, client: Client, features: tuple[FeaturePair, ...]) -> None:
        """IN training by itself, as many times over the features as the local training goes over the data."""
        steps = len(features) * (self.local_steps or self.local_epochs)
        some = Batch(features[0].s_in, torch.zeros(len(features[0].s_in), dtype=torch.int64))  # only counted
        client.fit(
            self.imitating(features), batches=[some] * steps, train="intermediate", lr=self.lr, optimizer=self.stepper()
        )  # fmt: skip

    def features(self, client: Client) -> FeaturePair:
        """One batch of the client's features under its model as it is now."""
        batch = client.batch(self.batch_size)
        with client.model.evaluating():
            s_in = client.model.run(batch.x, "extractor")
            s_out = client.model.run(s_in, "intermediate")
        noise = self.noise_at("upload")
        return FeaturePair(noisy(s_in, noise), noisy(s_out, noise))

    def noise_at(self, where: Literal["upload", "forward"]) -> float:
        return self.noise if self.noise_where in (where, "both") else 0.0
