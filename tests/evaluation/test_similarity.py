"""Linear CKA: what it does not see, its definition by features, and models stage by stage."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from interfuse.evaluation import features_by_group, groups_of_stages, linear_cka, similarity
from interfuse.models import resolve


def drawn(seed: int, rows: int, width: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 100), st.floats(0.01, 100))
def test_rotation_scale_and_shift_are_not_seen(seed: int, scale: float) -> None:
    x, y = drawn(seed, 12, 5), drawn(seed + 1000, 12, 7)
    rotation, _ = torch.linalg.qr(drawn(seed + 2000, 5, 5))
    assert linear_cka(x, x) == pytest.approx(1, abs=1e-6)
    assert linear_cka(x, scale * x @ rotation + 3) == pytest.approx(1, abs=1e-4)
    assert linear_cka(scale * x @ rotation + 3, y) == pytest.approx(linear_cka(x, y), abs=1e-4)


@given(st.integers(0, 100))
def test_the_definition_by_features(seed: int) -> None:
    """‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖), both centred."""
    x, y = drawn(seed, 9, 4), drawn(seed + 1000, 9, 6)
    a, b = ((t - t.mean(0)).double() for t in (x, y))
    expected = (b.T @ a).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm())
    assert linear_cka(x, y) == pytest.approx(float(expected), abs=1e-9)
    assert 0 <= linear_cka(x, y) == pytest.approx(linear_cka(y, x), abs=1e-12)


def test_features_that_are_all_the_same_have_no_similarity() -> None:
    assert math.isnan(linear_cka(torch.ones(4, 3), drawn(0, 4, 3)))


def test_models_of_two_depths_group_by_group() -> None:
    shallow, deep = (resolve(name)((3, 32, 32), 10, 128) for name in ("resnet10-narrow", "resnet26-narrow"))
    x = drawn(0, 6, 3 * 32 * 32).view(6, 3, 32, 32)
    assert groups_of_stages(deep)["layer3"] == "layer3.2"
    found = features_by_group(deep, x)
    assert {group: tuple(t.shape) for group, t in found.items()} == {
        "stem": (6, 16 * 64), "layer1": (6, 16 * 64), "layer2": (6, 32 * 16), "layer3": (6, 64 * 4),
        "layer4": (6, 128), "pool": (6, 128), "fc": (6, 10),
    }  # fmt: skip
    with deep.evaluating():
        assert torch.equal(found["fc"], deep(x))
        assert torch.equal(found["pool"], deep.base(x))
    matrices = similarity([shallow, deep, shallow], x)
    assert list(matrices) == ["stem", "layer1", "layer2", "layer3", "layer4", "pool", "fc"]
    for matrix in matrices.values():
        assert torch.allclose(matrix, matrix.T)
        assert torch.allclose(matrix.diagonal(), torch.ones(3, dtype=torch.float64))
        assert float(matrix[0, 2]) == pytest.approx(1)
        assert float(matrix[0, 1]) < 0.9999
