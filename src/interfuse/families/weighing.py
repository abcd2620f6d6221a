"""From gradients of clients to how much each client gets from each other one, and to what it gets.

FedMosaic: Seo et al., ICLR 2026, arXiv:2506.11024. In matrices of clients a row is who receives, a column from whom.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interfuse.client import ClientId, Profile
from interfuse.messages import NamedTensors

Similarity = Literal["columns", "flat"]
"""The mean cosine of the columns of two gradients (FedMosaic's release), or the cosine of all their values."""
Matrix = Float[Tensor, "clients clients"]


def relevance(gradients: Float[Tensor, "clients rows columns"], similarity: Similarity = "columns") -> Matrix:
    """How alike gradients are, from -1 to 1; the scale of each does not matter. Columns (with ``flat``: gradients) that
    are all 0 have no direction, and do not count; a client that has no others is 0 to all."""
    largest = gradients.abs().amax((1, 2), keepdim=True)
    scaled = gradients / torch.where(largest > 0, largest, 1)  # squares of the smallest values would be 0
    columns = scaled if similarity == "columns" else scaled.flatten(1).unsqueeze(2)
    norms = torch.linalg.vector_norm(columns, dim=1, keepdim=True)
    unit = (columns / torch.where(norms > 0, norms, 1)).flatten(1)
    there = (norms.squeeze(1) > 0).to(unit)
    found: Tensor = unit @ unit.T / (there @ there.T).clamp(min=1)
    return found


def weights(
    matrix: Matrix,
    temperature: float | Float[Tensor, "clients 1"],
    among: Bool[Tensor, "clients clients"] | None = None,
) -> Matrix:
    """softmax over j of S_ij / τ, without j = i: rows sum to 1. Who has nobody has itself.

    Args:
        matrix: NaN where nothing is known, which weighs nothing.
        among: Who may get something from whom; None: all from all.
    """
    others = ~torch.eye(len(matrix), dtype=torch.bool, device=matrix.device) & ~matrix.isnan()
    allowed = others if among is None else others & among.to(matrix.device)
    best = torch.where(allowed, matrix, -torch.inf).amax(1, keepdim=True)
    logits = (matrix - best).double() / temperature  # in float32 the smallest temperatures would be 0
    found = torch.where(allowed, logits, -torch.inf).softmax(1).to(matrix)
    return torch.where(allowed.any(1, keepdim=True), found, torch.eye(len(matrix)).to(matrix))


def calibrated(
    matrix: Matrix, sources: float, among: Bool[Tensor, "clients clients"] | None = None
) -> Float[Tensor, "clients 1"]:
    """For each row the temperature at which :func:`weights` have so many effective sources, by bisection: they rise
    with it, from the number of largest relevances to that of all others. Beyond these it is one of the ends."""
    low, high = (torch.full((len(matrix), 1), end, dtype=torch.float64, device=matrix.device) for end in (-20.0, 20.0))
    for _ in range(60):
        middle = (low + high) / 2
        few = (effective_sources(weights(matrix, middle.exp(), among)) < sources)[:, None]
        low, high = torch.where(few, middle, low), torch.where(few, high, middle)
    return ((low + high) / 2).exp()


def effective_sources(of: Matrix) -> Float[Tensor, "clients"]:
    """e^H of each row of weights: from how many clients it gets, if all gave alike."""
    entropy: Tensor = torch.special.entr(of)
    return entropy.sum(1).exp()


def alike(profiles: Mapping[ClientId, Profile], clients: int) -> Bool[Tensor, "clients clients"]:
    """Who has a model of whose architecture."""
    found = torch.zeros(clients, clients, dtype=torch.bool)
    for one in profiles.values():
        for other in profiles.values():
            found[one.id, other.id] = one.architecture == other.architecture
    return found


def mixed(
    shares: Tensor, tensors: Mapping[ClientId, NamedTensors], nothing: NamedTensors | None = None
) -> NamedTensors:
    """Σ_j w_j x_j over the clients of which there are tensors and a share is had, in their order; ``nothing`` where
    there are none."""
    taken = [(client, float(shares[client])) for client in sorted(tensors) if shares[client] > 0]
    if not taken:
        return nothing or {}
    first = tensors[taken[0][0]]
    found: NamedTensors = {key: torch.zeros_like(tensor) for key, tensor in first.items()}
    for client, share in taken:
        for key, tensor in tensors[client].items():
            found[key] = found[key].add(tensor, alpha=share)
    return found
