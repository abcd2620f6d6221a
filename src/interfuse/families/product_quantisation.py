"""Product quantisation: features as places in a codebook, a piece of them at a time (Jégou, Douze and Schmid, 2011).

A row of d numbers is cut into pieces of equal length; one codebook serves all of them, as in FedLite
(arXiv:2201.11865) with one group. Centroids are whole numbers of eight bits times a power of two, so that a codebook
takes a byte a number and decoding rounds nothing.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from jaxtyping import Float32, Int8, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from interfuse.errors import MessageError
from interfuse.messages import Disclosure, Message, Rows, Targets
from interfuse.messages.delivery import LARGEST

Subvectors = Float32[Tensor, "pieces length"]
_LARGEST = 127
"""Of a number of eight bits with a sign, in size."""
EXPONENTS = (-100, 22)
"""Of the powers of two: decoded numbers are ordinary ones, below a billion in size."""


class Codebook(Message):
    """Centroids: ``numbers`` times two to the power of ``exponent``."""

    # features and not prototypes: with few rows or a long piece a centroid is a row of the client's own
    numbers: Annotated[Int8[Tensor, "centroids length"], Disclosure.FEATURES]
    exponent: Annotated[Int8[Tensor, ""], Disclosure.FEATURES]

    @property
    def centroids(self) -> Float32[Tensor, "centroids length"]:
        """What the numbers stand for."""
        return torch.ldexp(self.numbers.float(), self.exponent.to(torch.int32))


class CodedOutputs(Message):
    """One minibatch of a client at the fusion layer as places in its codebook, and a codebook that is new."""

    codes: Annotated[UInt8[Tensor, "batch pieces"], Disclosure.FEATURES]
    y: Annotated[Targets, Rows.UNORDERED]
    books: tuple[Codebook, ...]


def pieces_of(z: Float32[Tensor, "batch d"], length: int) -> Subvectors:
    """The rows in pieces of a length, one row's after another's; the last of a row is filled up with zeros.

    Raises:
        MessageError: a value could not travel as it is: codes would hide that.
    """
    if z.numel() and not (largest := float(z.abs().max())) <= LARGEST:
        raise MessageError(
            "CodedOutputs",
            "codes",
            f"features up to {LARGEST:g} in size",
            f"{largest:g}; where training diverged, try a lower learning rate",
        )
    return functional.pad(z, (0, -z.shape[1] % length)).reshape(-1, length)


def places(z: Float32[Tensor, "batch d"], book: Codebook) -> UInt8[Tensor, "batch pieces"]:
    """The nearest centroid of each piece, of equally near ones the first."""
    nearest = _nearest(pieces_of(z, book.numbers.shape[1]), book.centroids)[0]
    return nearest.reshape(len(z), -1).to(torch.uint8)


def decoded(codes: UInt8[Tensor, "batch pieces"], book: Codebook, width: int) -> Float32[Tensor, "batch d"]:
    """The rows that codes stand for."""
    return book.centroids[codes.long()].reshape(len(codes), -1)[:, :width].contiguous()


def fitted(
    pieces: Subvectors, count: int, sweeps: int, before: Codebook | None, generator: torch.Generator
) -> Codebook:
    """A codebook of at most 256 centroids for these pieces, by Lloyd's sweeps.

    Args:
        before: Where the sweeps begin; None: with pieces drawn by k-means++.
    """
    centroids = _drawn(pieces, count, generator) if before is None else before.centroids
    for _ in range(sweeps):
        nearest, distances = _nearest(pieces, centroids)
        sizes = torch.bincount(nearest, minlength=count)
        means = torch.zeros_like(centroids).index_add_(0, nearest, pieces) / sizes.clamp(min=1)[:, None]
        centroids = torch.where(sizes[:, None] > 0, means, centroids)
        # who stands for nothing goes to a piece that is stood for worst
        idle = (sizes == 0).nonzero().flatten()[: len(pieces)]
        centroids[idle] = pieces[distances.argsort(descending=True, stable=True)[: len(idle)]]
    # in the order of their use: small codes are then frequent, which entropy coding can tell in fewer bytes
    sizes = torch.bincount(_nearest(pieces, centroids)[0], minlength=count)
    return _rounded(centroids[sizes.argsort(descending=True, stable=True)])


def _nearest(pieces: Subvectors, centroids: Subvectors) -> tuple[Int64[Tensor, "pieces"], Float32[Tensor, "pieces"]]:
    """Each piece's nearest centroid, and half its squared distance less a part that is the same for all."""
    distances = centroids.square().sum(1) / 2 - pieces @ centroids.T
    found = distances.min(1)
    return found.indices, found.values + pieces.square().sum(1) / 2


def _drawn(pieces: Subvectors, count: int, generator: torch.Generator) -> Subvectors:
    """k-means++: each next one with a probability that goes with its squared distance to those before."""
    chosen = [int(torch.randint(len(pieces), (1,), generator=generator))]
    distances = (pieces - pieces[chosen[0]]).square().sum(1)
    while len(chosen) < count:
        weights = distances.cpu() if float(distances.sum()) > 0 else torch.ones(len(pieces))
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
        distances = distances.minimum((pieces - pieces[chosen[-1]]).square().sum(1))
    return pieces[chosen]


def _rounded(centroids: Subvectors) -> Codebook:
    largest = float(centroids.abs().max())
    exponent = math.ceil(math.log2(largest / _LARGEST)) if largest > 0 else 0
    exponent = min(max(exponent, EXPONENTS[0]), EXPONENTS[1])
    numbers = torch.ldexp(centroids, torch.tensor(-exponent)).round().clamp(-_LARGEST, _LARGEST)
    return Codebook(numbers.to(torch.int8), torch.tensor(exponent, dtype=torch.int8))
