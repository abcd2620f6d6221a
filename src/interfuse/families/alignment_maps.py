"""The mathematics of FedMosaic's alignment (arXiv:2506.11024): matrices A and B of a model from what another one does
with the same tokens.

Rows are tokens. h are the inputs of a linear layer; A ``[rank, in]`` reads them, B ``[out, rank]`` writes its outputs.
All is computed in float64.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

GAMMA = 1e-4
"""Added to the diagonal of second moments before they are whitened, as in FedMosaic's release."""

_NOTHING = 1e-30
"""In the place of the mean variance of what is always 0, of which every map is 0."""


def polar(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """U Vᵀ of the singular value decomposition U Σ Vᵀ: the nearest matrix with orthonormal rows, or columns."""
    u, _, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    found: Tensor = u @ vt
    return found


def shares(answers: Float[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    """Weights of tokens, of which some (1) are an answer's: those of answers and all together count alike; sum 1.

    Source: ours; FedMosaic takes all tokens of equal tokenizers, and answers alone else.
    """
    weights = torch.full_like(answers, 1 / len(answers), dtype=torch.float64)
    of_answers = answers.double() / answers.double().sum().clamp(min=1)
    found = weights + of_answers
    return found / found.sum()


def least_squares(
    x: Float[Tensor, "tokens m"], y: Float[Tensor, "tokens n"], weights: Float[Tensor, "tokens"], ridge: float
) -> Float[Tensor, "m n"]:
    """T that makes Σ w‖y − x T‖² + ρ‖T‖² least, with ρ the ridge times the mean of the variances of x."""
    return _solved(_damped(x, weights, ridge), _weighted(x, weights).T @ y.double())


def aligned_reading(
    inputs: Float[Tensor, "tokens in"],
    projected: Float[Tensor, "tokens rank"],
    weights: Float[Tensor, "tokens"],
    ridge: float,
) -> Float[Tensor, "rank in"]:
    """A with A h ≈ what the other model reads of the same tokens, and orthonormal rows: the minimum of FedMosaic's L2
    loss in closed form (its release takes an epoch of AdamW towards it), then the polar factor."""
    return polar(least_squares(inputs, projected, weights, ridge).T)


def coordinates(
    outputs: Float[Tensor, "tokens out"], B: Float[Tensor, "out rank"], weights: Float[Tensor, "tokens"], ridge: float
) -> Float[Tensor, "tokens rank"]:
    """w x (XᵀWX + ρ)⁻¹ B for each token x: with it another model finds T B, for T the least-squares map from these
    outputs to its own, and is told neither the outputs nor B. See :func:`mapped_writing`."""
    return _weighted(outputs, weights) @ _solved(_damped(outputs, weights, ridge), B.double())


def mapped_writing(
    outputs: Float[Tensor, "tokens out"], coordinates: Float[Tensor, "tokens rank"]
) -> Float[Tensor, "out rank"]:
    """B = T B_s for T the least-squares map from the other model's outputs to these, from its :func:`coordinates`."""
    return outputs.double().T @ coordinates.double()


def whitening_map(
    source: Float[Tensor, "tokens m"], target: Float[Tensor, "tokens n"], gamma: float = GAMMA
) -> Float[Tensor, "n m"]:
    """S_t^½ R S_s^−½ of centred rows, with R the polar factor of S_t^−½ S_ts S_s^−½ and γ on the diagonals of S_s, S_t:
    FedMosaic's "CCA", of which the correlations are not used.

    Of LoRA outputs B A h it is B_t · (the map of the A h) · B_sᵀ, for orthonormal B_s and B_t: so B_t times the map of
    the A h is what the release makes of B_s, in a space of ``rank`` dimensions.
    """
    x, y = (rows.double() - rows.double().mean(0) for rows in (source, target))
    root_x, root_y = _root(x.T @ x, gamma), _root(y.T @ y, gamma)
    between = _solved(root_y, _solved(root_x, x.T @ y).T)
    return root_y @ _solved(root_x, polar(between).T).T


def _root(moments: Float[Tensor, "n n"], gamma: float) -> Float[Tensor, "n n"]:
    """The symmetric square root of second moments with γ on their diagonal."""
    values, vectors = torch.linalg.eigh(moments)
    found: Tensor = (vectors * (values.clamp(min=0) + gamma).sqrt()) @ vectors.T
    return found


def _solved(matrix: Float[Tensor, "n n"], right: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    found: Tensor = torch.linalg.solve(matrix, right)
    return found


def _weighted(x: Float[Tensor, "tokens m"], weights: Float[Tensor, "tokens"]) -> Float[Tensor, "tokens m"]:
    return weights.double()[:, None] * x.double()


def _damped(x: Float[Tensor, "tokens m"], weights: Float[Tensor, "tokens"], ridge: float) -> Float[Tensor, "m m"]:
    """XᵀWX with the ridge, times the mean of its diagonal, on the diagonal."""
    moments = x.double().T @ _weighted(x, weights)
    mean = moments.diagonal().mean().clamp(min=_NOTHING)
    return moments + ridge * mean * torch.eye(len(moments), dtype=moments.dtype, device=x.device)
