"""FedKTL: a generator at the server hands clients a sample and its latent for each class, as their prototypes say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from jaxtyping import Float32, UInt
from torch import Tensor
from torch.nn import functional

from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.data import Batch, Inputs
from interfuse.errors import Notice
from interfuse.families.checks import rows_of_all
from interfuse.families.class_tables import mean_table
from interfuse.families.heads import shuffled
from interfuse.families.knowledge import (
    MODEL,
    PROJECTOR,
    cosines,
    mapper,
    mapping,
    projector,
    simplex,
    trained_decoder,
    transferred,
)
from interfuse.families.own_training import OwnTraining
from interfuse.families.prototypes import share_through
from interfuse.handler import on_client
from interfuse.messages import Dims, Disclosure, Message, NamedTensors, State
from interfuse.method import Count, Fraction, Network, NonNegative, Steps
from interfuse.models.autoencoders import autoencoder
from interfuse.server import Server
from interfuse.training import Rate

CLIP = 100.0
MAPPER = "mapper"


class Frame(Message):
    """The head of all: a direction for each class, in a column."""

    columns: Annotated[Float32[Tensor, "classes classes"], Disclosure.PROTOTYPES]


class Directions(Message):
    """The mean direction of the outputs for each class that a client has."""

    mean: Annotated[Float32[Tensor, "present classes"], Disclosure.PROTOTYPES]
    y: Annotated[UInt[Tensor, "present"], Disclosure.LABELS]


class Knowledge(Message):
    """A generated sample for each class that somebody has, and its latent; none before there are prototypes."""

    images: Annotated[Float32[Tensor, "present ..."], Disclosure.SURROGATES]
    latents: Annotated[Float32[Tensor, "present latent"], Disclosure.SURROGATES]


class Own(State):
    """The frame, as the client got it in the beginning."""

    frame: Float32[Tensor, "classes classes"]


class Global(State):
    """The generator, and what it says of the prototypes that came last."""

    decoder: NamedTensors
    knowledge: Knowledge


@dataclass(frozen=True)
class FedKTL(OwnTraining):
    """Knowledge transfer from a generator (Zhang et al., CVPR 2024, arXiv:2403.15760), after HtFLlib, with another one.

    Outputs of all models are directions, and a frame of equiangular ones, which nobody trains, says which is whose
    class. Clients train on ArcFace, and send the mean direction of each class. The server learns to map these to
    latents of its generator, so that they look as drawn for it and those of a class are near each other, and sends what
    the generator makes of each class's mean latent. With these clients also train their base block, behind a
    projector of their own, to find the latent of a sample.

    The authors' generators are StyleGANs and Stable Diffusion, trained on millions of images, which are not to be had
    here. This one is the decoder of a small autoencoder that the server trains on the run's public data in the
    beginning: no figure of this method is one of the published.
    """

    origin = "HtFLlib's code"
    usual = {"local_epochs": 1, "batch_size": 10, "optimizer": "sgd", "lr": 0.01}

    participation: Fraction = 1.0  # fraction of the clients drawn for a round
    s: Rate = 64.0  # scale of cosines
    m: NonNegative = 0.5  # margin of the right class's angle, in radians
    mu: NonNegative = 50.0  # weight of the distance between projected features and latents, a mean
    lam: NonNegative = 1.0  # lambda: weight of the distance between latents and their class means, a mean
    server_lr: Rate = 0.01  # learning rate of the mapper, by Adam
    server_epochs: Steps = 100  # epochs of the mapper in a round
    server_batch_size: Count = 100  # prototypes of a step of the mapper
    latent: Count = 64  # width of latents [interfuse]
    generator_steps: Steps = 1000  # steps of the generator, before the first round [interfuse]
    generator_batch_size: Count = 64  # public rows of a step of the generator [interfuse]
    generator_lr: Rate = 0.001  # learning rate of the generator, by Adam [interfuse]

    def networks(self, owner: Profile | None, dims: Dims) -> Mapping[str, Network]:
        if owner is None:
            return {MAPPER: Network(partial(mapper, dims["classes"], self.latent))}
        return {PROJECTOR: Network(partial(projector, owner.fusion_width or 1, self.latent))}

    def new_client(self, client: Client[Own]) -> Own:
        return Own(torch.zeros(client.dims["classes"], client.dims["classes"]))

    def start(self, server: Server[Global], clients: Clients) -> Global:
        shape = tuple(server.public.rows(torch.zeros(1, dtype=torch.int64)).features.shape[1:])
        how = (self.generator_steps, self.generator_batch_size, self.generator_lr)
        decoder = trained_decoder(server.public, shape, self.latent, *how, server.generator, server.device)
        clients.call(self.begin, Frame(simplex(server.dims["classes"], server.generator)))
        return Global(decoder.tensors(), Knowledge(torch.zeros(0, *shape), torch.zeros(0, self.latent)))

    @on_client
    def begin(self, client: Client[Own], frame: Frame) -> None:
        client.state = Own(frame.columns.clone())

    def round(self, server: Server[Global], clients: Clients) -> None:
        rows = rows_of_all(clients.sample(self.participation).call(self.train, server.state.knowledge))
        server.state = Global(server.state.decoder, self.knowledge(server, rows))

    def knowledge(self, server: Server[Global], rows: Batch) -> Knowledge:
        """What the generator makes of the mean latent of each class."""
        classes, network = server.dims["classes"], server.network(MAPPER)
        batches = shuffled(rows, self.server_batch_size, self.server_epochs, server.generator)
        loss = partial(mapping, classes=classes, lam=self.lam)
        server.fit(loss, batches, network=MAPPER, lr=self.server_lr, optimizer="adam", clip=CLIP)
        shape = tuple(server.state.knowledge.images.shape[1:])
        decoder = (
            autoencoder(shape, 1, self.latent).only("decoder").frozen(server.state.decoder).to(rows.features.device)
        )
        with network.evaluating():
            means = mean_table(Batch(network(rows.features), rows.y), classes)
            latents = means.rows[means.y]
            return Knowledge(decoder(torch.cat([latents, torch.ones_like(latents[:, :1])], 1)), latents)

    @on_client
    def train(self, client: Client[Own], known: Knowledge) -> Directions:
        loss = partial(transferred, frame=client.state.frame, images=known.images, latents=known.latents)
        loss = partial(loss, s=self.s, m=self.m, mu=self.mu)
        self.fit(client, loss, network=(MODEL, PROJECTOR), clip=CLIP)
        rows = share_through(client, client.model)
        means = mean_table(Batch(functional.normalize(rows.features), rows.y), client.dims["classes"])
        return Directions(functional.normalize(means.rows[means.y]), means.y)

    def predict(self, client: Client[Own], x: Inputs) -> Tensor:
        return cosines(client.model(x), client.state.frame)

    def notice(self, profiles: Mapping[ClientId, Profile]) -> Notice | None:
        return Notice(
            "FedKTL's generator is a small one, trained on the run's public data: the authors' pretrained ones are not "
            "to be had here.",
            "Compare it with no published figure of FedKTL.",
        )
