"""A bank of images of classes beside a client's own rows: under label skew a base block sees what others have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int64, Shaped, UInt
from torch import Tensor

from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.data.inputs import shape_text
from interfuse.families.bank_images import check_images, normalised
from interfuse.families.checks import check_batch, check_counts
from interfuse.families.fusion import FusionOutputs, FusionPairs, SharingInRounds
from interfuse.handler import on_client
from interfuse.messages import Disclosure, Message, State
from interfuse.method import Count, NonNegative
from interfuse.server import Server

Sent = TypeVar("Sent", bound=Message)


class Images(Message):
    """Images of classes to draw from, or signals, or rows of a table; see :mod:`.bank_images`."""

    x: Annotated[Shaped[Tensor, "images ..."], Disclosure.SURROGATES]
    y: Annotated[UInt[Tensor, "images"], Disclosure.LABELS]


class Bank(State):
    """What a client draws from."""

    images: Images


@dataclass(frozen=True)
class SharingWithBank(SharingInRounds):
    """Sharing in rounds in which base batches and uploads have uniform labels, over the classes that exist anywhere.

    A row of class c is the client's own with probability n_c / (n_c + m), where n_c of its rows have that class, and
    else an image of the bank; where the bank has none, it is an own row. So a base block learns of classes that its
    client lacks, and modular blocks learn what each base block makes of every class. Messages are those of IFL.
    """

    m: NonNegative = 50.0  # rows of a class of which half come from the bank where a client has so many
    bank_rows: Count = 300  # images of a class in the bank, of all clients together

    def round(self, server: Server, clients: Clients) -> None:
        chosen = clients.sample(self.participation)
        outputs = self.outputs(chosen)
        chosen.call(self.train_modular, FusionPairs(tuple(outputs.values())))

    def check_pair(self, client: Profile, pair: FusionOutputs) -> None:
        check_batch(client.id, pair.y)  # a minibatch may have more rows than the client's own

    @on_client
    def train_base(self, client: Client[Any]) -> FusionOutputs:
        """tau steps on the base block behind the frozen modular block; then the outputs of one more minibatch."""
        batches = [self.mixed(client) for _ in range(self.local_steps)]
        client.fit(client.loss, batches, **self.how("base", self.base_lr))
        batch = self.mixed(client)
        with client.model.evaluating():
            return FusionOutputs(client.model.base(batch.x), batch.y)

    def mixed(self, client: Client[Any]) -> Batch:
        """A minibatch of uniform labels, of own rows and of images of the bank."""
        own, bank = client.data.labels().cpu(), self.labels_of_bank(client).cpu()
        y, mine = mixture(own, bank, client.dims["classes"], self.batch_size, self.m, client.generator)
        rows = client.data.train(one_of(own, y[mine], client.generator).numpy()).features
        images = self.images_of_bank(client, one_of(bank, y[~mine], client.generator))
        places = torch.cat([mine.nonzero(), (~mine).nonzero()]).flatten().argsort()
        return Batch(torch.cat([rows, images])[places.to(rows.device)], y.to(rows.device))

    def labels_of_bank(self, client: Client[Any]) -> Int64[Tensor, "images"]:
        """The class of each image that the client has to draw from."""
        labels: Tensor = client.state.images.y.long()
        return labels

    def images_of_bank(self, client: Client[Any], places: Int64[Tensor, "n"]) -> Float[Tensor, "n *sample"]:
        """Some of these images, normalised as the client's model takes them."""
        x: Tensor = client.state.images.x
        return normalised(client.data, x[places.to(x.device)])

    def samples_of(self, client: Client[Any], y: Int64[Tensor, "n"]) -> Tensor | None:
        """Images of the bank; None where it lacks a class."""
        bank, wanted = self.labels_of_bank(client).cpu(), y.cpu()
        if not torch.isin(wanted, bank).all():
            return None
        return self.images_of_bank(client, one_of(bank, wanted, client.generator))

    def rows_of_a_step(self, samples: int) -> Mapping[str, int]:
        return {"base": self.batch_size}


@dataclass(frozen=True)
class SharingWithSentBank(SharingWithBank):
    """Those whose bank the server makes, before the first round, of what clients send."""

    def new_client(self, client: Client[Bank]) -> Bank:
        return Bank(Images(client.data.raw().features[:0], torch.zeros(0, dtype=torch.uint8)))

    def hand_out(
        self,
        clients: Clients,
        sent: Mapping[ClientId, Sent],
        bank: Callable[[Mapping[ClientId, Sent]], Images],
        pixels: Callable[[Sent], bool],
    ) -> None:
        """Send all clients whose samples have one shape and are of one kind the bank made of what these clients sent.

        Who says that its samples are of another kind than they are has a bank apart, and spoils nobody's.
        """
        kinds = {client: (shape_text(clients.profiles[client].sample), pixels(own)) for client, own in sent.items()}
        for kind in dict.fromkeys(kinds.values()):
            alike = {client: sent[client] for client in sent if kinds[client] == kind}
            clients.only(alike).call(self.keep, bank(alike))

    @on_client
    def keep(self, client: Client[Bank], images: Images) -> None:
        check_images(images.x, client.profile.sample, "the server")
        client.state = Bank(images)


def mixture(
    own: Int64[Tensor, "rows"],
    bank: Int64[Tensor, "images"],
    classes: int,
    count: int,
    m: float,
    generator: torch.Generator,
) -> tuple[Int64[Tensor, "count"], Bool[Tensor, "count"]]:
    """So many labels, uniform over the classes of own rows and of the bank, and which of them are to be own rows."""
    held, drawn = (torch.bincount(labels, minlength=classes) for labels in (own, bank))
    known = (held + drawn).nonzero().flatten()
    y = known[torch.randint(len(known), (count,), generator=generator)]
    chance = torch.where(drawn > 0, held.double() / (held + m).clamp(min=1), 1.0)  # below 1 only where both are 0
    return y, torch.rand(count, dtype=torch.float64, generator=generator) < chance[y]


def one_of(
    labels: Int64[Tensor, "rows"], y: Int64[Tensor, "count"], generator: torch.Generator
) -> Int64[Tensor, "count"]:
    """For each class the place of a row that has it, of all of them with equal probability."""
    counts = torch.bincount(labels, minlength=int(y.max()) + 1 if len(y) else 0)
    first, order = counts.cumsum(0) - counts, labels.argsort(stable=True)
    among = (torch.rand(len(y), dtype=torch.float64, generator=generator) * counts[y]).long()
    return order[first[y] + torch.minimum(among, counts[y] - 1)]


def apportioned(counts: Mapping[ClientId, Float[Tensor, "classes"]], total: int) -> dict[ClientId, Int64[Tensor, "n"]]:
    """By client the classes that it contributes, of each ``total`` in all, in proportion to the clients' counts; those
    who contribute none are left out.

    Whole numbers by largest remainders, ties in the order of clients.

    Raises:
        ClientError: as :func:`.check_counts`.
    """
    for client, own in counts.items():
        check_counts(client, own)
    table = torch.stack([own.cpu().double() for own in counts.values()])
    quota = total * table / table.sum(0).clamp(min=1e-300)
    shares = quota.floor()
    left = (total * (table.sum(0) > 0) - shares.sum(0)).long()
    ranks = (shares - quota).argsort(dim=0, stable=True).argsort(dim=0)
    shares = (shares + (ranks < left)).long()
    labels = torch.arange(shares.shape[1])
    return {c: labels.repeat_interleave(own) for c, own in zip(counts, shares, strict=True) if own.any()}
