"""Gaussians by class: moments of features, exactly pooled over clients, and what is drawn from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from interfuse.client import Client, ClientId
from interfuse.data import Batch
from interfuse.errors import ClientError
from interfuse.families.prototypes import CountedMeans, by_class, class_means, fused_share
from interfuse.messages import Disclosure

Covariance = Literal["full", "diagonal"]


class ClassMoments(CountedMeans):
    """Mean features of the classes that a client has, and their unbiased covariances ``[present d d]``, or only the
    variances ``[present d]``; of one sample they are 0."""

    covariance: Annotated[Float32[Tensor, "present d ..."], Disclosure.STATISTICS]


def moments_of(client: Client[Any], covariance: Covariance) -> ClassMoments:
    """The moments of each class of the client's training share at the fusion layer, in evaluation mode."""
    return class_moments(fused_share(client), client.dims["classes"], covariance)


def class_moments(rows: Batch, classes: int, covariance: Covariance) -> ClassMoments:
    """The moments of the rows of each class, in the order of classes."""
    exact = Batch(rows.features.double(), rows.y)
    means = class_means(exact, classes)
    apart = exact.features - by_class(means, classes)[0][rows.y]
    scatter = torch.stack([_scatter(apart[rows.y == c], covariance) for c in means.y])
    return ClassMoments(means.mean, means.y, means.count, scatter / _over(means.count - 1, scatter).clamp(min=1))


class PooledMoments:
    """The moments of the union of all samples, from the moments of its parts, added one by one.

    It holds one table, however many clients are added. Its :meth:`take` is for ``clients.call(..., each=)``.
    """

    def __init__(self, classes: int, d: int, covariance: Covariance) -> None:
        self._covariance: Covariance = covariance
        self._device = torch.device("cpu")
        self.count = torch.zeros(classes, dtype=torch.float64)
        self.mean = torch.zeros(classes, d, dtype=torch.float64)
        self._scatter = torch.zeros(classes, *self._shape(), dtype=torch.float64)

    def _shape(self) -> tuple[int, ...]:
        return (self.mean.shape[1],) * (2 if self._covariance == "full" else 1)

    def take(self, client: ClientId, sent: ClassMoments) -> None:
        """Add what a client sent.

        Raises:
            ClientError: it is no table of moments.
        """
        self._check(client, sent)
        self._device = sent.mean.device
        y, n = sent.y.long().cpu(), sent.count.double().cpu()
        before = self.count[y]
        apart = sent.mean.double().cpu() - self.mean[y]
        between = _outer(apart, self._covariance)
        within = sent.covariance.double().cpu()
        self.count[y] += n
        self.mean[y] += apart * (n / self.count[y])[:, None]
        self._scatter[y] += within * _over(n - 1, within) + between * _over(before * n / self.count[y], between)

    def _check(self, client: ClientId, sent: ClassMoments) -> None:
        problems = {
            f"covariances of shape {tuple(sent.covariance.shape[1:])}, not {self._shape()}": (
                tuple(sent.covariance.shape[1:]) != self._shape()
            ),
            "a class twice": len(set(sent.y.tolist())) < len(sent.y),
            "a class of less than one sample": bool((sent.count < 1).any()),
        }
        for problem, found in problems.items():
            if found:
                raise ClientError(f"client {client} sent {problem}; take this client out of the run", client)

    def covariance(self, ridge: float) -> Float64[Tensor, "classes d ..."]:
        """Unbiased covariances or variances, of no sample and of one 0; of fewer samples than features plus ``ridge``
        times their mean variance in every direction, since they know nothing of most directions."""
        found = self._scatter / _over(self.count - 1, self._scatter).clamp(min=1)
        variances = found.diagonal(dim1=1, dim2=2) if self._covariance == "full" else found
        few = (self.count < self.mean.shape[1]) * ridge * variances.mean(1)
        return found + _over(few, found) * (torch.eye(found.shape[1]) if self._covariance == "full" else 1.0)

    def drawn(self, number: int, ridge: float, generator: torch.Generator) -> Batch:
        """So many features of each class that somebody has, ``[present * number, d]``, and their classes."""
        present, covariances = self.count.nonzero().flatten(), self.covariance(ridge)
        noise = torch.randn(len(present), number, self.mean.shape[1], generator=generator, dtype=torch.float64)
        made = [
            mean + (own @ _root(covariance) if self._covariance == "full" else own * covariance.clamp(min=0).sqrt())
            for own, mean, covariance in zip(noise, self.mean[present], covariances[present], strict=True)
        ]
        y = present.repeat_interleave(number)
        return Batch(torch.cat(made).float().to(self._device), y.to(self._device))


def _scatter(apart: Float64[Tensor, "n d"], covariance: Covariance) -> Float64[Tensor, "d ..."]:
    return apart.T @ apart if covariance == "full" else apart.square().sum(0)


def _outer(apart: Float64[Tensor, "present d"], covariance: Covariance) -> Float64[Tensor, "present d ..."]:
    return apart[:, :, None] * apart[:, None] if covariance == "full" else apart.square()


def _over(factors: Float64[Tensor, "classes"], table: Float64[Tensor, "classes ..."]) -> Float64[Tensor, "classes ..."]:
    """One factor a class, for all that a table has of it."""
    return factors.view(-1, *(1,) * (table.dim() - 1))


def _root(covariance: Float64[Tensor, "d d"]) -> Float64[Tensor, "d d"]:
    """R with RᵀR = Σ, where Σ has negative eigenvalues, as of rounding, that with 0 in their place."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    root: Tensor = values.clamp(min=0).sqrt()[:, None] * vectors.T
    return root
