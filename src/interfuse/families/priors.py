"""Methods whose clients share what features of each class are like, and a generator of samples of such features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxtyping import Float32, Int64
from torch import Tensor

from interfuse.aggregation import Mean
from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.data.inputs import shape_text
from interfuse.errors import ModelError
from interfuse.families.checks import check_tensors
from interfuse.families.class_merging import Merging, Rule
from interfuse.families.class_statistics import ClassStatistics, CountedVariances, Kind, KnownVariances
from interfuse.families.class_tables import ClassTable
from interfuse.families.drawing import GeneratorTensors, latents_of, load_generator
from interfuse.families.own_training import OwnTraining
from interfuse.handler import on_client
from interfuse.messages import Dims, State
from interfuse.method import ALL, NOTHING, Count, Fraction, Network
from interfuse.models.generators import as_samples, vtc
from interfuse.server import Server

VTC = "vtc"
"""The generator among a client's networks."""


class Statistics(CountedVariances):
    """Means and variances of a client's features by class, and its generator, where generators are shared."""

    generator: GeneratorTensors


class Prior(KnownVariances):
    """What features of each class are like at all clients together, and the mean of their generators."""

    generator: GeneratorTensors


class Global(State):
    """The prior as tables by class, and the generator; what it has of a class that nobody has is 0."""

    means: Float32[Tensor, "classes d"]
    count: Float32[Tensor, "classes"]
    variance: Float32[Tensor, "rows columns"]
    generator: dict[str, Tensor]


@dataclass(frozen=True)
class SharedPrior(OwnTraining):
    """The part that such methods have in common: what travels, how it is merged, and how samples are drawn.

    A method defines :meth:`learn`. Of a class that no client of a round has, all stays as it was. The generators' mean
    counts each client of a round the same; all begin with one.
    """

    origin = "third-party code"

    participation: Fraction = 1.0  # fraction of the clients drawn for a round [interfuse]
    variance: Kind = "shared"  # σ², one for each: feature (shared), class and feature (diagonal), class [paper notes]
    merge: Rule = "total"  # of variances: total (that of the union), sq-weight (as the paper, perhaps), or pooled
    share_vtc: bool = True  # generators travel and are averaged; or each stays with its client [public reviews]
    channels: Count = 64  # of the generator, an even number: its first maps; the next are half as many

    def networks(self, owner: Profile | None, dims: Dims) -> Mapping[str, Network]:
        """Clients have the generator: for good, or borrowed, where the server has the mean."""
        if owner is None:
            return {}
        build = partial(vtc, dims["d"], owner.sample, self.channels)
        return {VTC: Network(build, NOTHING if self.share_vtc else ALL)}

    def start(self, server: Server[Global], clients: Clients) -> Global:
        classes, d = server.dims["classes"], server.dims["d"]
        table, variance = Merging(classes, d, self.variance).result()
        sample, *others = {shape_text(p.sample): p.sample for p in clients.profiles.values()}.values()
        if others and self.share_vtc:
            raise ModelError(
                f"samples have the shapes {shape_text(sample)} and {shape_text(others[0])}, so no generator is for all "
                "clients: --set share_vtc=false leaves each its own"
            )
        generator = vtc(d, sample, self.channels).to(server.device).tensors() if self.share_vtc else {}
        return Global(table.rows, table.count, variance, generator)

    def known(self, state: Global) -> ClassStatistics:
        """What the server knows of classes."""
        return ClassStatistics(ClassTable(state.means, state.count), state.variance, self.variance)

    def prior(self, server: Server[Global]) -> Prior:
        """What all clients are told."""
        means, y, _, variance = self.known(server.state).travelling
        return Prior(means, y, variance, server.state.generator)

    def round(self, server: Server[Global], clients: Clients) -> None:
        old = server.state
        classes, d = old.means.shape
        merging, mean = Merging(classes, d, self.variance, self.merge), Mean(old.generator)

        def add(client: ClientId, sent: Statistics) -> None:
            check_tensors(client, sent.generator, old.generator, "its generator")
            merging.add(client, sent.mean, sent.y, sent.count, sent.variance)
            mean.add(sent.generator)

        clients.sample(self.participation).call(self.train, self.prior(server), each=add)
        new = self.known(old).renewed(ClassStatistics(*merging.result(), self.variance))
        server.state = Global(new.means.rows, new.means.count, new.variance, mean.result())

    @on_client
    def train(self, client: Client, prior: Prior) -> Statistics:
        own = self.learn(client, self.receive(client, prior))
        return Statistics(*own.travelling, client.network(VTC).tensors() if self.share_vtc else {})

    def learn(self, client: Client, known: ClassStatistics) -> ClassStatistics:
        """A client's training of a round, of model and generator; returns the statistics of its features after it."""
        raise NotImplementedError

    def receive(self, client: Client[Any], prior: Prior) -> ClassStatistics:
        """Put the generator that came in place; the prior as tables by class."""
        if self.share_vtc:
            load_generator(client.network(VTC), prior.generator)
        return ClassStatistics.told(prior, client.dims["classes"], self.variance)

    def draw(self, client: Client[Any], known: ClassStatistics, y: Int64[Tensor, "n"]) -> Tensor:
        """Samples of these classes: of the prior, by the generator."""
        with client.network(VTC).evaluating():
            v = latents_of(y, known, client.generator)
            return as_samples(client.network(VTC)(v), client.data.bounds)

    def deployed(self, server: Server[Global], clients: Clients) -> Prior:
        return self.prior(server)

    @on_client
    def deploy(self, client: Client, message: Prior) -> None:
        client.scratch["prior"] = message

    def samples_of(self, client: Client[Any], y: Int64[Tensor, "n"]) -> Tensor | None:
        known = self.receive(client, client.scratch["prior"])
        return self.draw(client, known, y) if known.means.present[y].all() else None
