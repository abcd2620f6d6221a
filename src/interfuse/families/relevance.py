"""How much the knowledge of each client is worth to each other one, by the gradients of a probe (RELA).

FedMosaic: Seo et al., ICLR 2026, arXiv:2506.11024. In matrices of clients a row is who receives, a column from whom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Gt
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.data.task import UNITS
from interfuse.errors import ClientError
from interfuse.families.checks import check_size
from interfuse.families.probes import (
    PROBE,
    Jacobian,
    Rows,
    Unit,
    frozen_probe,
    kept_rows,
    mean_of,
    probe_gradient,
    probed_weight,
    sanitised,
)
from interfuse.families.weighing import Matrix, Similarity, effective_sources, relevance, weights
from interfuse.messages import Dims, Disclosure, Message, State
from interfuse.method import NOTHING, Count, Fraction, Method, Network, NonNegative
from interfuse.server import Server


class ProbeGradient(Message):
    """A client's gradient of the probe, made coarse."""

    gradient: Annotated[Float32[Tensor, "rows columns"], Disclosure.GRADIENTS]


class Relevance(State):
    """What the server knows of its clients' data.

    Attributes:
        gradients: Of each client, smoothed over the rounds; 0 where it has sent none.
        matrix: How alike they are; NaN where one of two is unknown.
        scores: What the softmax is of; NaN likewise.
    """

    gradients: Float32[Tensor, "clients rows columns"]
    matrix: Float32[Tensor, "clients clients"]
    scores: Float32[Tensor, "clients clients"]

    @property
    def known(self) -> Bool[Tensor, "clients"]:
        """Who has sent one."""
        return ~self.matrix.diagonal().isnan()


@dataclass(frozen=True)
class RelevanceGuided(Method):
    """Methods whose clients get more from those whose data do the same to the probe."""

    origin = "FedMosaic's release"
    agreed: ClassVar[tuple[str, ...]] = ("probe", "kept", "rows", "jacobian")

    probe: str = "vqa-s"  # W_s: the small frozen network, a model of the zoo [interfuse]
    temperature: Annotated[float, Gt(0)] = 0.5  # tau: of the softmax over relevances
    similarity: Similarity = "columns"  # mean cosine of the gradients' columns; or flat, of all values (paper)
    gradient_every: Count = 10  # m: one of so many steps of a round has its batch's gradient taken
    jacobian: Jacobian = "exact"  # of the probe's last normalisation; the release has diagonal [the chain rule]
    kept: Fraction = 0.4  # fraction of the gradient's rows that is sent
    rows: Rows = "first"  # which: the first, or random ones, the same for all clients (paper)
    noise: NonNegative = 1e-4  # mu: standard deviation of noise on each gradient
    noise_unit: Unit = "absolute"  # or relative: in standard deviations of the gradient [interfuse]
    gradient_momentum: Fraction = 0.5  # alpha: share of a round's mean gradient in the moving average

    def networks(self, owner: Profile | None, dims: Dims) -> Mapping[str, Network]:
        if owner is None:
            return super().networks(owner, dims)
        outputs = next(dims[unit] for unit in UNITS if unit in dims)
        build = partial(frozen_probe, self.probe, owner.sample, outputs, dims.get("d", 64))
        return {**super().networks(owner, dims), PROBE: Network(build, NOTHING)}

    def nothing_known(self, server: Server[Any], clients: Clients) -> Relevance:
        """The state in the beginning, which says of what shape a gradient is."""
        probe = self.networks(next(iter(clients.profiles.values())), server.dims)[PROBE].build()
        d, columns = probe.parameters_of()[probed_weight(probe)].shape
        count = server.dims["clients"]
        one = self.packed(torch.zeros(len(kept_rows(d, self.kept, self.rows)), columns))
        empty = torch.zeros(count, *one.shape)
        unknown = torch.full((count, count), torch.nan)
        return Relevance(empty.to(server.device), unknown.to(server.device), unknown.to(server.device))

    def probed(self, client: Client[Any], positions: Sequence[np.ndarray]) -> ProbeGradient:
        """What some of the batches at these places of a client's share do to the probe, as it is sent.

        Args:
            positions: Of the batches that it trains on in the round, in order.
        """
        probe, task = client.network(PROBE), client.task
        key = probed_weight(probe)
        shape = probe.parameters_of()[key].shape
        index = kept_rows(shape[0], self.kept, self.rows)
        found = (
            sanitised(
                probe_gradient(probe, batch, task, key, self.jacobian), index, self.noise, self.noise_unit,
                client.generator,
            )
            for batch in client.data.batches(positions[:: self.gradient_every])
        )  # fmt: skip
        return ProbeGradient(self.packed(mean_of(found, (len(index), shape[1]))))

    def packed(self, gradient: Float[Tensor, "kept hidden"]) -> Float[Tensor, "rows columns"]:
        """A round's gradient as it is sent."""
        return gradient

    def informed(self, server: Server[Any], old: Relevance, sent: Mapping[ClientId, ProbeGradient]) -> Relevance:
        """What the server knows once these clients have sent theirs.

        Raises:
            ClientError: one sent what is no gradient of the probe; names it.
        """
        gradients, known = old.gradients.clone(), old.known.clone()
        for client, message in sent.items():
            new = message.gradient
            if new.shape != gradients.shape[1:]:
                shapes = f"of shape {tuple(new.shape)}, expected {tuple(gradients.shape[1:])}"
                raise ClientError(f"client {client} sent a gradient {shapes}", client)
            check_size(client, new, "a gradient")
            alpha = self.gradient_momentum if known[client] else 1.0
            gradients[client] = torch.lerp(gradients[client], new.to(gradients), alpha)
            known[client] = True
        pairs = known[:, None] & known
        matrix = torch.where(pairs, relevance(gradients, self.similarity), torch.nan)
        return Relevance(gradients, matrix, torch.where(pairs, self.scores(server, matrix), torch.nan))

    def scores(self, server: Server[Any], matrix: Matrix) -> Matrix:
        """What the softmax is of: relevances. Controls have others."""
        return matrix

    def mixture(self, known: Relevance, among: Bool[Tensor, "clients clients"] | None = None) -> Matrix:
        """What share each client gets of each other one's; see :func:`weights`."""
        return weights(known.scores, self.temperature, among)

    def with_newcomer(self, known: Relevance, sent: ProbeGradient) -> Relevance:
        """What the server would know with one client more, the last. It is weighed by relevance, also where a control
        weighs others otherwise."""
        gradients = torch.cat([known.gradients, sent.gradient[None].to(known.gradients)])
        there = torch.cat([known.known, known.known.new_ones(1)])
        matrix = torch.where(there[:, None] & there, relevance(gradients, self.similarity), torch.nan)
        return Relevance(gradients, matrix, matrix)

    def seen(self, known: Relevance) -> dict[str, Tensor]:
        """What there is to show: see :meth:`.Method.shown`."""
        sources = effective_sources(self.mixture(known))
        return {"relevance": known.matrix, "effective sources e^H": torch.where(known.known, sources, torch.nan)}
