"""Alignment of A and B: closed forms against NumPy, and the invariants of Co-LoRA that rest on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from interfuse.families.alignment_maps import (
    aligned_reading,
    coordinates,
    least_squares,
    mapped_writing,
    polar,
    shares,
    whitening_map,
)

TOKENS, SMALL, LARGE, RANK = 200, 12, 20, 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def even(tokens: int = TOKENS) -> Tensor:
    return torch.full((tokens,), 1 / tokens, dtype=torch.float64)


def close(a: Tensor, b: Tensor, within: float = 1e-9) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() < within)


def root_of(matrix: np.ndarray, power: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    found: np.ndarray = (vectors * values**power) @ vectors.T
    return found


def by_the_release(x_s: Tensor, x_l: Tensor, b_s: Tensor, gamma: float) -> Tensor:
    """S_ll^½ U Vᵀ S_ss^−½ B_s, step by step and in NumPy."""
    x, y = (np.asarray(rows - rows.mean(0)) for rows in (x_s, x_l))
    s, t = x.T @ x + gamma * np.eye(x.shape[1]), y.T @ y + gamma * np.eye(y.shape[1])
    u, _, vt = np.linalg.svd(root_of(t, -0.5) @ (y.T @ x) @ root_of(s, -0.5), full_matrices=False)
    return torch.from_numpy(root_of(t, 0.5) @ u @ vt @ root_of(s, -0.5) @ np.asarray(b_s))


def test_least_squares_is_numpys_with_the_ridge_as_further_rows() -> None:
    x, y = normal(TOKENS, SMALL), normal(TOKENS, RANK, seed=1)
    weights = normal(TOKENS, seed=2).abs()
    found = least_squares(x, y, weights, 0.3)
    ridge = 0.3 * float((weights[:, None] * x**2).sum() / SMALL)
    rows = np.concatenate([np.asarray(weights.sqrt()[:, None] * x), np.sqrt(ridge) * np.eye(SMALL)])
    wanted = np.concatenate([np.asarray(weights.sqrt()[:, None] * y), np.zeros((SMALL, RANK))])
    assert close(found, torch.from_numpy(np.linalg.lstsq(rows, wanted, rcond=None)[0]))
    assert close(least_squares(10 * x, y, weights, 0.3), found / 10)  # the ridge goes by the scale of x


def test_of_what_is_always_0_every_map_is_0() -> None:
    assert not least_squares(torch.zeros(TOKENS, SMALL), normal(TOKENS, RANK), even(), 1e-2).any()


def test_answers_and_all_tokens_count_alike() -> None:
    weights = shares(torch.tensor([0.0, 1, 0, 0, 1]))
    assert torch.allclose(weights, torch.tensor([0.1, 0.35, 0.1, 0.1, 0.35], dtype=torch.float64))
    assert torch.allclose(shares(torch.zeros(4)), torch.full((4,), 0.25, dtype=torch.float64))


def test_e7_p_spans_r_squared_dimensions_and_keeps_its_norm() -> None:
    A, B = polar(normal(RANK, SMALL)), polar(normal(LARGE, RANK, seed=1))
    updates = torch.einsum("oi,jk->ijok", B, A).reshape(RANK**2, -1)  # B E_ij A
    assert int(torch.linalg.matrix_rank(updates)) == RANK**2
    P = normal(RANK, RANK, seed=2)
    assert abs((B @ P @ A).norm() - P.norm()) < 1e-12
    skewed = B @ (torch.eye(RANK, dtype=torch.float64) + 0.5)
    assert abs((skewed @ P @ A).norm() - P.norm()) > 0.1  # not for a B whose columns are no longer orthonormal


def test_e8_aligned_a_has_orthonormal_rows() -> None:
    h = normal(TOKENS, LARGE)
    A = aligned_reading(h, h @ normal(LARGE, RANK, seed=1), even(), 1e-2)
    assert A.shape == (RANK, LARGE)
    assert close(A @ A.T, torch.eye(RANK, dtype=torch.float64))


def test_e8_the_released_map_never_leaves_the_start_of_b() -> None:
    h_s, h_l = normal(TOKENS, SMALL), normal(TOKENS, LARGE, seed=1)
    h_l[:, :SMALL] += h_s
    A_s, A_l = polar(normal(RANK, SMALL, seed=2)), polar(normal(RANK, LARGE, seed=3))
    B_s, B_l = polar(normal(SMALL, RANK, seed=4)), polar(normal(LARGE, RANK, seed=5))
    read_s, read_l = h_s @ A_s.T, h_l @ A_l.T
    gamma = 1e-4

    released = B_l @ whitening_map(read_s, read_l, gamma)
    assert close(released, by_the_release(read_s @ B_s.T, read_l @ B_l.T, B_s, gamma), 1e-8)
    assert close(B_l @ B_l.T @ released, released)  # the columns of B are where they were
    assert not close(released, B_l, 0.1)  # A was not aligned
    assert close(B_l @ whitening_map(read_s, read_s, gamma), B_l)  # A aligned: nothing is done


def test_e9_a_copy_of_a_model_finds_its_a_and_b() -> None:
    h, W = normal(TOKENS, LARGE), normal(LARGE, LARGE, seed=1)
    A, B, other = polar(normal(RANK, LARGE, seed=2)), polar(normal(LARGE, RANK, seed=3)), polar(normal(LARGE, RANK))
    outputs, weights = h @ W.T, shares((normal(TOKENS, seed=4) > 0).double())
    assert close(aligned_reading(h, h @ A.T, weights, 0), A)
    assert close(mapped_writing(outputs, coordinates(outputs, B, weights, 0)), B)
    assert close(whitening_map(outputs, outputs) @ B, B)  # FedMosaic's map, of base outputs instead of the adapter's
    released = other @ whitening_map(h @ A.T, h @ A.T)
    assert close(released, other)  # what the release finds is its own start
    P = normal(RANK, RANK, seed=5)
    cosine = torch.nn.functional.cosine_similarity((released @ P @ A).flatten(), (B @ P @ A).flatten(), dim=0)
    assert cosine < 0.5


def test_e9_outputs_wider_than_inputs_give_b_inside_their_span() -> None:
    h, W = normal(TOKENS, SMALL), normal(LARGE, SMALL, seed=1)
    B = polar(normal(LARGE, RANK, seed=2))
    found = mapped_writing(h @ W.T, coordinates(h @ W.T, B, even(), 1e-8))
    inside = polar(W)
    assert close(found, inside @ inside.T @ B, 1e-5)


def test_mapped_writing_is_the_least_squares_map_of_outputs_applied_to_b() -> None:
    x_s, x_l, B_s = normal(TOKENS, SMALL), normal(TOKENS, LARGE, seed=1), polar(normal(SMALL, RANK, seed=2))
    weights = shares((normal(TOKENS, seed=3) > 1).double())
    found = mapped_writing(x_l, coordinates(x_s, B_s, weights, 1e-2))
    assert close(found, least_squares(x_s, x_l, weights, 1e-2).T @ B_s)


def test_e10_coordinates_may_be_turned_and_p_of_other_coordinates_does_not_add_up() -> None:
    A, B, R = polar(normal(RANK, SMALL)), polar(normal(LARGE, RANK, seed=1)), polar(normal(RANK, RANK, seed=2))
    P, Q, h = normal(RANK, RANK, seed=3), normal(RANK, seed=4), normal(TOKENS, SMALL, seed=5)

    def update(A: Tensor, B: Tensor, P: Tensor, Q: Tensor) -> Tensor:
        return (h @ A.T @ P.T + Q) @ B.T

    turned = (R @ A, B @ R.T, R @ P @ R.T, R @ Q)
    assert close(update(*turned), update(A, B, P, Q))
    averaged = update(A, B, (P + turned[2]) / 2, (Q + turned[3]) / 2)
    assert (averaged - update(A, B, P, Q)).norm() / update(A, B, P, Q).norm() > 0.5


@pytest.mark.parametrize("shape", [(RANK, LARGE), (LARGE, RANK), (RANK, RANK)])
def test_the_polar_factor_is_the_nearest_with_orthonormal_rows_or_columns(shape: tuple[int, int]) -> None:
    matrix = normal(*shape)
    found = polar(matrix)
    short = found if shape[0] <= shape[1] else found.T
    assert close(short @ short.T, torch.eye(RANK, dtype=torch.float64))
    for seed in range(5):
        assert (matrix - found).norm() <= (matrix - polar(normal(*shape, seed=seed + 1))).norm()
