"""Linear CKA against its other formula, and what it is of."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from worlds import Recorder, everything_owned, federation, live_model, same_bits, tiny_dataset, wide

from interfuse.evaluation import features_by_group, groups_of_stages, linear_cka, similarity, similarity_by_group
from interfuse.models import resolve


def random(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def by_features(a: Tensor, b: Tensor) -> float:
    """‖BᵀA‖² / (‖AᵀA‖ ‖BᵀB‖) of centred features: the form without Gram matrices (Kornblith et al., eq. 4)."""
    a, b = a.double() - a.double().mean(0), b.double() - b.double().mean(0)
    return float((b.T @ a).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm()))


@given(st.integers(2, 30), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_both_formulas_agree(rows: int, widths: list[int], seed: int) -> None:
    outputs = [random(rows, width, seed + place) for place, width in enumerate(widths)]
    found = linear_cka(outputs)
    for i, a in enumerate(outputs):
        for j, b in enumerate(outputs):
            assert float(found[i, j]) == pytest.approx(by_features(a, b), abs=1e-9)


def test_rotation_scale_and_shift_do_not_matter_and_all_else_does() -> None:
    z = random(50, 6, 0)
    turned = 3.0 * z @ torch.linalg.qr(random(6, 6, 1))[0] + 5.0
    stretched = z * torch.tensor([1.0, 9.0, 1.0, 1.0, 1.0, 1.0])
    found = linear_cka([z, turned, stretched, random(50, 6, 2)])
    assert float(found[0, 1]) == pytest.approx(1.0, abs=1e-6)
    assert found[0, 2] < 0.8
    assert found[0, 3] < 0.4
    assert math.isnan(float(linear_cka([z, torch.ones(50, 2)])[0, 1]))


def test_it_is_of_the_base_blocks_on_the_common_test_set_and_changes_nothing() -> None:
    f = federation("ifl", models=["logistic", wide], rounds=2, wrap=Recorder)
    before = everything_owned(f)
    found = similarity(f)
    assert found is not None
    x = f.setup.dataset.normalise(f.setup.dataset.x_test)
    with torch.no_grad():
        outputs = [live_model(f, client).base(x) for client in f.clients]
    # the curve's rows are all 24, in some order, which does not matter
    for i, a in enumerate(outputs):
        assert found[i] == pytest.approx([by_features(a, b) for b in outputs], abs=1e-5)
    assert same_bits(everything_owned(f), before) or before
    f.run_round()
    again = federation("ifl", models=["logistic", wide], rounds=3)
    assert same_bits(everything_owned(f), everything_owned(again))


def test_there_is_none_without_common_test_rows_or_for_too_many() -> None:
    assert similarity(federation("ifl", dataset=tiny_dataset(test_rows=0))) is None
    assert similarity(federation("local", clients=33)) is None


def test_models_of_two_depths_group_by_group() -> None:
    shallow, deep = (resolve(name)((3, 32, 32), 10, 128) for name in ("resnet10-narrow", "resnet26-narrow"))
    x = random(6, 3 * 32 * 32, 0).view(6, 3, 32, 32)
    assert groups_of_stages(deep)["layer3"] == "layer3.2"
    found = features_by_group(deep, x)
    assert {group: tuple(t.shape) for group, t in found.items()} == {
        "stem": (6, 16 * 64), "layer1": (6, 16 * 64), "layer2": (6, 32 * 16), "layer3": (6, 64 * 4),
        "layer4": (6, 128), "pool": (6, 128), "fc": (6, 10),
    }  # fmt: skip
    with deep.evaluating():
        assert torch.equal(found["fc"], deep(x))
        assert torch.equal(found["pool"], deep.base(x))
    matrices = similarity_by_group([shallow, deep, shallow], x)
    assert list(matrices) == ["stem", "layer1", "layer2", "layer3", "layer4", "pool", "fc"]
    for matrix in matrices.values():
        assert torch.allclose(matrix, matrix.T)
        assert torch.allclose(matrix.diagonal(), torch.ones(3, dtype=torch.float64))
        assert float(matrix[0, 2]) == pytest.approx(1)
        assert float(matrix[0, 1]) < 0.9999
