"""IFL with a bank of centroids of the clients' own images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch

from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.errors import ClientError
from interfuse.families.bank_images import check_images, to_keep, to_learn
from interfuse.families.banks import Images, SharingWithSentBank
from interfuse.families.clusters import k_means
from interfuse.handler import on_client
from interfuse.method import Count
from interfuse.server import Server


@dataclass(frozen=True)
class IFLBankCentroids(SharingWithSentBank):
    """IFL under label skew, with centroids of others' images in the bank. Not from a paper; it discloses nearly data.

    Before the first round every client sends, once, the means of clusters of its images of each class, each of
    ``smallest_cluster`` images at least: a mean of few may be one of them. Of a class with fewer images it sends
    nothing, so others never see it, unless somebody else has more.
    """

    centroids: Count = 20  # of each class and client, at most
    smallest_cluster: Count = 10  # images in a cluster, at least

    def start(self, server: Server, clients: Clients) -> None:
        classes = server.dims["classes"]
        sent = clients.call(self.cluster)
        chosen = partial(self.chosen, profiles=clients.profiles, classes=classes, generator=server.generator)
        self.hand_out(clients, sent, chosen, lambda own: own.x.dtype == torch.uint8)

    @on_client
    def cluster(self, client: Client) -> Images:
        (rows, pixels), labels = to_learn(client.data), client.data.labels()
        classes = torch.bincount(labels).nonzero().flatten()
        of_class = [rows[labels == y].flatten(1) for y in classes]
        found = [k_means(own, self.centroids, self.smallest_cluster, client.generator) for own in of_class]
        x = torch.cat(found).reshape(-1, *rows.shape[1:])
        sizes = torch.tensor([len(own) for own in found], device=classes.device)
        return Images(to_keep(x, pixels), classes.repeat_interleave(sizes))

    def chosen(
        self,
        sent: Mapping[ClientId, Images],
        profiles: Mapping[ClientId, Profile],
        classes: int,
        generator: torch.Generator,
    ) -> Images:
        """The bank: all centroids; of a class of which there are more than ``bank_rows``, so many of them."""
        for client, images in sent.items():
            check_images(images.x, profiles[client].sample, f"client {client}", client)
            if len(images.y) and int(torch.bincount(images.y.long()).max()) > self.centroids:
                raise ClientError(f"client {client} sent more than {self.centroids} images of a class", client)
        x, y = (torch.cat(parts) for parts in zip(*((images.x, images.y) for images in sent.values()), strict=True))
        order = torch.randperm(len(y), generator=generator).to(y.device)
        kept = [order[y[order] == label][: self.bank_rows] for label in range(classes)]
        places = torch.cat([order[:0], *kept]).sort().values
        return Images(x[places], y[places])
