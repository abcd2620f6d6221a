"""IFL with a bank of images that decoders draw, which clients trained at home."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from jaxtyping import Float32
from torch import Tensor

from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.families.bank_images import check_images, outputs_of, to_keep, to_learn
from interfuse.families.banks import Images, SharingWithSentBank, apportioned
from interfuse.handler import on_client
from interfuse.messages import ClassCounts, Dims, Disclosure, Message
from interfuse.method import NOTHING, Count, Network, Steps
from interfuse.models.autoencoders import autoencoder, codes, lower_bound
from interfuse.server import Server
from interfuse.training import LearningRate


class TrainedDecoder(Message):
    """What draws images like a client's own, and how many own rows of each class it has."""

    decoder: dict[str, Annotated[Float32[Tensor, "..."], Disclosure.GENERATORS]]
    counts: ClassCounts
    pixels: bool  # the decoder makes pixels, or else normalised values


@dataclass(frozen=True)
class IFLBank(SharingWithSentBank):
    """IFL under label skew, with images of classes that a client lacks. Not from a paper.

    Before the first round every client trains a conditional variational autoencoder (Sohn et al., NeurIPS 2015) on its
    own rows and sends the decoder, once; the encoder never leaves and is gone. The server draws with the decoders, of
    each class from those that have it, in proportion to their rows, and sends what it drew to everybody.
    """

    latent: Count = 16  # width of the latent code
    decoder_steps: Steps = 500  # steps of an autoencoder
    decoder_batch_size: Count = 64  # samples of such a step
    decoder_lr: LearningRate = 0.002  # learning rate of autoencoders, by Adam

    def networks(self, owner: Profile | None, dims: Dims) -> Mapping[str, Network]:
        if owner is None or not isinstance(owner.sample, tuple):
            return {}
        return {"autoencoder": Network(partial(autoencoder, owner.sample, dims["classes"], self.latent), NOTHING)}

    def start(self, server: Server, clients: Clients) -> None:
        classes = server.dims["classes"]
        decoders = clients.call(self.train_decoder)
        drawn = partial(self.drawn, profiles=clients.profiles, classes=classes, generator=server.generator)
        self.hand_out(clients, decoders, drawn, lambda own: own.pixels)

    @on_client
    def train_decoder(self, client: Client) -> TrainedDecoder:
        (x, pixels), labels, classes = to_learn(client.data), client.data.labels(), client.dims["classes"]
        network = client.network("autoencoder")
        network.load(self.networks(client.profile, client.dims)["autoencoder"].build().tensors())
        bound = partial(lower_bound, classes=classes, pixels=pixels)
        batches = self.noisy(Batch(x, labels), client.generator)
        client.fit(bound, batches, network="autoencoder", lr=self.decoder_lr, optimizer="adam")
        counts = torch.bincount(labels, minlength=classes).float()
        return TrainedDecoder(network.tensors("decoder"), counts, pixels)

    def noisy(self, rows: Batch, generator: torch.Generator) -> Iterator[Batch]:
        """Batches of rows, drawn with repetition, with the noise of their codes."""
        for _ in range(self.decoder_steps):
            places = torch.randint(len(rows.y), (self.decoder_batch_size,), generator=generator).to(rows.y.device)
            noise = torch.randn(len(places), self.latent, generator=generator).to(rows.y.device)
            yield Batch({"x": rows.features[places], "noise": noise}, rows.y[places])

    def drawn(
        self,
        sent: Mapping[ClientId, TrainedDecoder],
        profiles: Mapping[ClientId, Profile],
        classes: int,
        generator: torch.Generator,
    ) -> Images:
        """The bank: of each class so many images, of each decoder in proportion to its client's rows of the class."""
        shares = apportioned({client: reply.counts for client, reply in sent.items()}, self.bank_rows)
        x = []
        for client, y in shares.items():
            network = self.networks(profiles[client], {"classes": classes})["autoencoder"]
            inputs = codes(y, classes, self.latent, generator)
            made = outputs_of(network, "decoder", sent[client].decoder, inputs, client)
            check_images(made, profiles[client].sample, f"client {client}", client)
            x.append(to_keep(made.sigmoid(), True) if sent[client].pixels else to_keep(made, False))
        return Images(torch.cat(x), torch.cat(list(shares.values())))
