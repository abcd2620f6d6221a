"""Intermediate layers that learn from one batch of another client's features: what FedIN and its ablations share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from jaxtyping import Float32
from torch import Tensor

from interfuse.aggregation import BufferPolicy
from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.errors import ClientError, Notice
from interfuse.families.averaging import Averaging
from interfuse.families.averaging import Global as ServersModel
from interfuse.families.checks import check_batch
from interfuse.families.heads import check_same_cuts
from interfuse.families.imitation import Normalisation, imitation, noisy, stacked
from interfuse.handler import on_client
from interfuse.messages import Disclosure, Message, Parameters
from interfuse.method import NonNegative
from interfuse.server import Server
from interfuse.training import Objective, proximal, total

PARTS = ("extractor", "intermediate", "classifier")


class FeaturePair(Message):
    """One batch of a client in front of its intermediate layers (s_in) and behind them (s_out)."""

    s_in: Annotated[Float32[Tensor, "batch ..."], Disclosure.FEATURES]
    s_out: Annotated[Float32[Tensor, "batch ..."], Disclosure.FEATURES]


class ModelAndFeatures(Message):
    """A client's part of the model: up with a batch of its own features, down with those of others."""

    weights: Parameters
    features: tuple[FeaturePair, ...]


class Global(ServersModel):
    """The server's model, and the features that the clients of the last round sent."""

    pool: dict[int, FeaturePair]


def check_features(client: Profile, sent: tuple[FeaturePair, ...]) -> FeaturePair:
    """The one batch of features that a client sent.

    Raises:
        ClientError: there are none or several, of no row or of more than the client has, or of another shape than its
            model's; names the client.
    """
    if len(sent) != 1:
        raise ClientError(f"client {client.id} sent {len(sent)} batches of features, expected 1", client.id)
    (pair,) = sent
    check_batch(client.id, pair.s_in, client.samples)
    for tensor, part in ((pair.s_in, PARTS[0]), (pair.s_out, PARTS[1])):
        if tuple(tensor.shape[1:]) != client.cuts[part]:
            raise ClientError(
                f"client {client.id} sent features of shape {tuple(tensor.shape[1:])}, expected {client.cuts[part]}",
                client.id,
            )
    return pair


@dataclass(frozen=True)
class IntermediateLearning(Averaging):
    """Averaging whose clients send a batch of features with their models, and get others' with the next one.

    Models have three parts, ``extractor``, ``intermediate`` and ``classifier``, and features of one shape between them.
    """

    origin = "FedIN's paper"
    usual = {"local_epochs": 5, "batch_size": 16, "lr": 0.001, "optimizer": "adam", "weights": "uniform"}

    mu: NonNegative = 0.1  # weight of the proximal term (mu/2) ‖w − w̄‖² to the received model; 0 is without
    lam: NonNegative = 1.0  # lambda of the simplified rule: Z is the IN gradient plus lambda/2 times the local one
    in_normalisation: Normalisation = "eval"  # statistics of IN training: running, or the batch's [interfuse]

    def start(self, server: Server[Any], clients: Clients) -> Global:
        self.check_buffers(clients, BufferPolicy.AGGREGATE, BufferPolicy.LOCAL)
        check_same_cuts(clients, PARTS)
        return Global(self.initial(server, clients), {})

    def round(self, server: Server[Global], clients: Clients) -> None:
        chosen, old = clients.sample(self.participation), server.state
        models = self.models(old.weights, chosen)
        given = {c: ModelAndFeatures(models[c].tensors, self.draw(old.pool, c, server.generator)) for c in chosen}
        mean, pool = self.means(old.weights, chosen), dict[ClientId, FeaturePair]()

        def add(client: ClientId, reply: ModelAndFeatures) -> None:
            mean.take(client, reply.weights)
            pool[client] = check_features(chosen.profiles[client], reply.features)

        chosen.call(self.train, given, each=add)
        server.state = Global(mean.result(), pool)

    def notice(self, profiles: Mapping[ClientId, Profile]) -> Notice | None:
        if not any(profile.buffers for profile in profiles.values()):
            return super().notice(profiles)
        return super().notice(profiles) or Notice(
            f'IN training normalises others\' features by in_normalisation = "{self.in_normalisation}". The paper does '
            "not say by what, and the choice moves accuracy by more than most methods differ.",
            "Compare the three: --set in_normalisation=eval, batch and train.",
        )

    def draw(
        self, pool: Mapping[ClientId, FeaturePair], client: ClientId, generator: torch.Generator, batches: int = 1
    ) -> tuple[FeaturePair, ...]:
        """Batches of others for a client, without repetition; its own only where there is no other."""
        others = [pair for owner, pair in pool.items() if owner != client] or list(pool.values())
        order = torch.randperm(len(others), generator=generator).tolist()
        return tuple(others[place] for place in order[:batches])

    @on_client
    def train(self, client: Client[Any], received: ModelAndFeatures) -> ModelAndFeatures:
        client.model.load(received.weights)
        self.learn(client, received)
        return ModelAndFeatures(client.tensors(buffers=self.buffers), (self.features(client),))

    def learn(self, client: Client[Any], received: ModelAndFeatures) -> None:
        """A client's training of a round, on its own data and on others' features."""
        raise NotImplementedError

    def nearby(self, loss: Objective, received: ModelAndFeatures) -> Objective:
        """The loss with a proximal term to the received model (eq. 3)."""
        return total(loss, partial(proximal, anchor=received.weights, mu=self.mu))

    def imitating(self, features: tuple[FeaturePair, ...], weight: float = 1.0) -> Objective:
        """The IN loss on the batches received (eq. 7)."""
        s_in, s_out = stacked([pair.s_in for pair in features]), stacked([pair.s_out for pair in features])
        return partial(imitation, s_in=s_in, s_out=s_out, normalisation=self.in_normalisation, weight=weight)

    def features(self, client: Client[Any], noise: float = 0.0) -> FeaturePair:
        """One batch of the client's features under its model as it is now.

        Its rows are drawn, and not the next in the order of training samples: so with one seed FedIN and FedAvg train
        on the same batches.
        """
        drawn = torch.randperm(client.profile.samples, generator=client.generator)[: self.batch_size]
        batch = client.data.train(drawn.numpy())
        with client.model.evaluating():
            s_in = client.model.run(batch.x, "extractor")
            s_out = client.model.run(s_in, "intermediate")
        return FeaturePair(noisy(s_in, noise), noisy(s_out, noise))
