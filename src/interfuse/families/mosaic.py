"""FedMosaic's exchange: each client gets a mixture of the others' adapters of its own, by relevance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Gt
from jaxtyping import Bool
from torch import Tensor

from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.errors import ClientError, Notice
from interfuse.families.adapters import (
    Adapters,
    AdapterTraining,
    BlockAdapters,
    check_cores,
    load_cores,
    own_cores,
    received,
)
from interfuse.families.holdings import one_a_round
from interfuse.families.relevance import ProbeGradient, Relevance, RelevanceGuided
from interfuse.families.weighing import alike, mixed
from interfuse.handler import on_client
from interfuse.messages import Message, State
from interfuse.method import Fraction
from interfuse.models import SplitModel
from interfuse.models.adapters import BASIS, CORES, OWN, RECEIVED, GateName
from interfuse.server import Server


class Mixture(Message):
    """Adapters of a client, or for one: P and Q of the layers that carry them, and A and B of all others by key."""

    cores: BlockAdapters
    others: Adapters


class Upload(Message):
    """What a client sends after its training of a round."""

    adapters: Mixture
    gradient: ProbeGradient


class Mosaic(State):
    """What the server holds: the last adapters that each client has sent, and how alike the clients' data are."""

    sent: dict[int, Mixture]
    relevance: Relevance


@dataclass(frozen=True)
class MosaicLearning(RelevanceGuided, AdapterTraining):
    """Methods whose clients train adapters beside frozen ones, which the server mixes for each of them by relevance.

    There is no global model. A client's optimizer is kept from round to round, and so is what it received.
    """

    origin = "FedMosaic's release"
    agreed: ClassVar[tuple[str, ...]] = (*RelevanceGuided.agreed, "rank", "linears")
    shaping: ClassVar[tuple[str, ...]] = (*AdapterTraining.shaping, "gate")
    usual: ClassVar[Mapping[str, Any]] = {"local_steps": 94}

    participation: Fraction = 1.0  # fraction of the clients drawn for a round [interfuse]
    core_scale: Annotated[float, Gt(0)] = 2.5  # learning rate of P and Q: so many times that of A and B
    gate: GateName = "scalar"  # a number a layer; input: a number a sample, with noise (release); half: fixed [paper]

    @property
    def core_shape(self) -> tuple[int, int, int]:
        """Blocks that carry P and Q, linear layers in each, rank."""
        return 0, len(self.linears), self.rank

    def carriers_of(self, client: Client[Any]) -> list[list[str]]:
        """The paths of the modules that carry P and Q, by block and linear layer."""
        return []

    def start(self, server: Server[Any], clients: Clients) -> Mosaic:
        return Mosaic({}, self.nothing_known(server, clients))

    def round(self, server: Server[Mosaic], clients: Clients) -> None:
        known, chosen = server.state, clients.sample(self.participation)
        uploads = chosen.call(self.train, self.mixtures(known, clients.profiles, chosen))
        server.state = self.taken(server, clients.profiles, uploads)

    def taken(
        self, server: Server[Mosaic], profiles: Mapping[ClientId, Profile], sent: Mapping[ClientId, Upload]
    ) -> Mosaic:
        """What the server holds once these clients have sent theirs.

        Raises:
            ClientError: one sent other adapters than its model has, or no gradient of the probe; names it.
        """
        known = server.state
        for client, upload in sent.items():
            check_cores(client, upload.adapters.cores, self.core_shape)
            self.check_others(profiles[client], upload.adapters.others)
        gradients = {client: upload.gradient for client, upload in sent.items()}
        adapters = {**known.sent, **{client: upload.adapters for client, upload in sent.items()}}
        return replace(known, sent=adapters, relevance=self.informed(server, known.relevance, gradients))

    def shown(self, server: Server[Any]) -> Mapping[str, Tensor]:
        return self.seen(server.state.relevance)

    @on_client
    def train(self, client: Client[Any], mixture: Mixture) -> Upload:
        paths, model = self.carriers_of(client), client.model
        model.load(received(mixture.others.tensors))
        load_cores(model, paths, mixture.cores)
        taken = self.positions(client)
        batches = client.data.batches(taken)
        self.fit(client, client.loss, batches=batches, steps=None, epochs=None, scales={CORES: self.core_scale})
        own = model.tensors(OWN)
        others = {key: own[key] for key in self.others_of(client.profile)}
        return Upload(Mixture(own_cores(model, paths, self.core_shape), Adapters(others)), self.probed(client, taken))

    def mixtures(
        self, known: Mosaic, profiles: Mapping[ClientId, Profile], clients: Iterable[ClientId]
    ) -> dict[ClientId, Mixture]:
        """What each of these clients gets: P and Q of all others, A and B of those with a model like its own; its own
        where there are none. Who has sent nothing begins with nothing."""
        relevance, same = known.relevance, alike(profiles, len(known.relevance.matrix))
        of_all, of_alike = self.mixture(relevance, self.sharers(same)), self.mixture(relevance, same)
        cores = {client: {"P": sent.cores.P, "Q": sent.cores.Q} for client, sent in known.sent.items()}
        others = {client: sent.others.tensors for client, sent in known.sent.items()}
        zero = {"P": torch.zeros(*self.core_shape, self.rank), "Q": torch.zeros(self.core_shape)}
        return {
            client: Mixture(
                BlockAdapters(**mixed(of_all[client], cores, zero)), Adapters(mixed(of_alike[client], others, {}))
            )
            for client in clients
        }

    def welcome(
        self, server: Server[Mosaic], client: Client[Any], peer: SplitModel, profiles: Mapping[ClientId, Profile]
    ) -> None:
        """A newcomer lets the probe see as many batches as in a round, and begins with the mixture that the server has
        for it by that, as its own and as what it received: so it answers with the mixture, whatever its gate. From
        there it trains its own, as all do. A and B of carriers are those of its architecture."""
        state, number, place = server.state, len(server.state.relevance.gradients), client.order.saved()
        gradient = self.probed(client, self.positions(client))
        client.order.restore(place)
        known = replace(state, relevance=self.with_newcomer(state.relevance, gradient))
        everybody = {**profiles, number: replace(client.profile, id=number)}
        found, paths, model = self.mixtures(known, everybody, [number])[number], self.carriers_of(client), client.model
        model.load(peer.tensors([BASIS]) | found.others.tensors | received(found.others.tensors))
        for group in (OWN, RECEIVED):
            load_cores(model, paths, found.cores, group)

    def sharers(self, same: Bool[Tensor, "clients clients"]) -> Bool[Tensor, "clients clients"] | None:
        """Who gets P and Q of whom; None: all of all.

        Args:
            same: Who has a model of whose architecture.
        """
        return None

    def others_of(self, profile: Profile) -> list[str]:
        """The keys of what a client sends beside P and Q, for those with a model like its own: A and B."""
        return sorted(key for key in profile.keys if f".{OWN}." in key and key.endswith((".A", ".B")))

    def check_others(self, profile: Profile, others: Adapters) -> None:
        """Check that a client sent just these.

        Raises:
            ClientError: it did not; names it.
        """
        wanted = {*self.others_of(profile)}
        if wanted != others.tensors.keys():
            missing = ", ".join(sorted(wanted - others.tensors.keys())[:3]) or "none"
            text = f"client {profile.id} sent {len(others.tensors)} adapters of {len(wanted)}; missing: {missing}"
            raise ClientError(text, profile.id)

    def notice(self, profiles: Mapping[ClientId, Profile]) -> Notice | None:
        return one_a_round(profiles, self.participation)
