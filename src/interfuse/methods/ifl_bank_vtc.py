"""IFL with a bank of images that FedVTC's generator draws from class statistics of features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.families.bank_images import check_images, outputs_of, pixel_bounds, to_keep
from interfuse.families.banks import Images, SharingWithSentBank, apportioned
from interfuse.families.checks import check_statistics
from interfuse.families.class_statistics import ClassStatistics, KnownVariances
from interfuse.families.class_tables import placed
from interfuse.families.drawing import latents_of, learning_to_draw, own_rows
from interfuse.families.priors import VTC, Statistics
from interfuse.families.prototypes import fused_share
from interfuse.handler import on_client
from interfuse.messages import Dims
from interfuse.method import NOTHING, Count, Network, NonNegative, Steps
from interfuse.models.generators import vtc
from interfuse.server import Server
from interfuse.training import LearningRate


class TrainedGenerator(Statistics):
    """What draws images of features, and what features of each class are like."""

    pixels: bool  # the generator makes pixels, or else normalised values


@dataclass(frozen=True)
class IFLBankVTC(SharingWithSentBank):
    """IFL under label skew, with images of FedVTC's generator (arXiv:2508.01669) in the bank. Not from a paper.

    Before the first round every client takes class means and variances of what its base block, as it begins, makes of
    its rows, trains a generator to make each row of its features plus noise, and sends all three, once. The server
    draws features of each class as they are at each client, images of these, and sends the images to everybody.
    """

    channels: Count = 16  # of the generator, an even number: its first maps; the next are half as many
    vtc_steps: Steps = 500  # steps of a generator
    vtc_batch_size: Count = 64  # samples of such a step
    vtc_lr: LearningRate = 0.001  # learning rate of generators, by Adam
    noise: NonNegative = 1.0  # of features in the generator's training, in standard deviations of a class

    def networks(self, owner: Profile | None, dims: Dims) -> Mapping[str, Network]:
        if owner is None:
            return {}
        return {VTC: Network(partial(vtc, dims["d"], owner.sample, self.channels), NOTHING)}

    def start(self, server: Server, clients: Clients) -> None:
        sent = clients.call(self.train_vtc)
        drawn = partial(self.drawn, profiles=clients.profiles, dims=server.dims, generator=server.generator)
        self.hand_out(clients, sent, drawn, lambda own: own.pixels)

    @on_client
    def train_vtc(self, client: Client) -> TrainedGenerator:
        own = ClassStatistics.of(fused_share(client), client.dims["classes"], "diagonal")
        network, ends = client.network(VTC), pixel_bounds(client.data)
        network.load(self.networks(client.profile, client.dims)[VTC].build().tensors())
        loss = partial(
            learning_to_draw,
            extractor=client.model,
            tensors=client.model.tensors(),
            deviations=self.noise * own.deviations,
            means=own.means.rows[:0],
            spread=own.deviations[:0],
            targets=own.means.rows[:0],
            bounds=ends,
            latents=0,
            weights=(1.0, 0.0),
        )
        rows = own_rows(client, self.vtc_batch_size, steps=self.vtc_steps)
        client.fit(loss, rows, network=VTC, lr=self.vtc_lr, optimizer="adam")
        return TrainedGenerator(*own.travelling, network.tensors(), ends is not None)

    def drawn(
        self,
        sent: Mapping[ClientId, TrainedGenerator],
        profiles: Mapping[ClientId, Profile],
        dims: Dims,
        generator: torch.Generator,
    ) -> Images:
        """The bank: of each class so many images, of each generator in proportion to its client's rows of the class."""
        counts, x = {}, list[Tensor]()
        for client, own in sent.items():
            check_statistics(client, own.mean, own.y, own.count, own.variance, (len(own.y), dims["d"]))
            counts[client] = placed(own.mean, own.y, dims["classes"], own.count).count
        shares = apportioned(counts, self.bank_rows)
        for client, y in shares.items():
            own = sent[client]
            known = ClassStatistics.told(KnownVariances(own.mean, own.y, own.variance), dims["classes"], "diagonal")
            network, v = self.networks(profiles[client], dims)[VTC], latents_of(y, known, generator)
            made = outputs_of(network, "all", own.generator, torch.split(v, 500), client)
            check_images(made, profiles[client].sample, f"client {client}", client)
            x.append(to_keep((made.tanh() + 1) / 2, True) if own.pixels else to_keep(made, False))
        return Images(torch.cat(x), torch.cat(list(shares.values())))
