"""Gaussians by class: what a client sends of its features, and what is drawn from what became of all."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from interfuse.client import Client
from interfuse.data import Batch
from interfuse.families.class_tables import ClassTable, mean_table, variances
from interfuse.families.prototypes import CountedMeans, fused_share
from interfuse.messages import Disclosure

Covariance = Literal["full", "diagonal"]


class ClassMoments(CountedMeans):
    """Mean features of the classes that a client has, and their covariances ``[present d d]``, or only the variances
    ``[present d]``, divided by n."""

    covariance: Annotated[Float32[Tensor, "present d ..."], Disclosure.STATISTICS]


def moments_of(client: Client[Any], covariance: Covariance) -> ClassMoments:
    """The moments of each class of the client's training share at the fusion layer, in evaluation mode."""
    rows = fused_share(client)
    exact = Batch(rows.features.double(), rows.y)
    means = mean_table(exact, client.dims["classes"])
    found = variances(exact, means, covariance)
    return ClassMoments(means.rows[means.y], means.y, means.count[means.y], found[means.y])


def unbiased(means: ClassTable, covariance: Float[Tensor, "classes d ..."], ridge: float) -> Float64[Tensor, "..."]:
    """Covariances, or variances, of the Gaussians that samples with these moments are from.

    Divided by n - 1 and not by n, and of one sample 0. Those of fewer samples than features know nothing of most
    directions: ``ridge`` times the mean variance is added in each.
    """
    full, n = covariance.dim() == 3, means.count.double()
    found = covariance.double() * _over(n / (n - 1).clamp(min=1), covariance)
    scale = (found.diagonal(dim1=1, dim2=2) if full else found).mean(1)
    added = _over(torch.where(n < means.rows.shape[1], ridge * scale, 0), covariance)
    return found + added * (torch.eye(found.shape[1]).to(found) if full else 1)


def drawn(
    means: ClassTable, covariance: Float[Tensor, "classes d ..."], number: int, generator: torch.Generator
) -> Batch:
    """So many features of each class that is present, ``[present * number, d]``, and their classes."""
    rows = means.rows.double()
    noise = torch.randn(len(means.y), number, rows.shape[1], generator=generator, dtype=torch.float64).to(rows)
    made = [mean + _scaled(own, of) for own, mean, of in zip(noise, rows[means.y], covariance[means.y], strict=True)]
    return Batch(torch.cat(made).float(), means.y.repeat_interleave(number))


def _scaled(noise: Float64[Tensor, "n d"], covariance: Float64[Tensor, "d ..."]) -> Float64[Tensor, "n d"]:
    """Noise with a covariance R where RᵀR = Σ; negative eigenvalues, as of rounding, count as 0."""
    if covariance.dim() == 1:
        return noise * covariance.clamp(min=0).sqrt()
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    found: Tensor = noise @ (values.clamp(min=0).sqrt()[:, None] * vectors.T)
    return found


def _over(factors: Float64[Tensor, "classes"], table: Float[Tensor, "classes ..."]) -> Float64[Tensor, "classes ..."]:
    """One factor a class, for all that a table has of it."""
    return factors.view(-1, *(1,) * (table.dim() - 1))
