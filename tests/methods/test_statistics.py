"""Running statistics: who needs them, and rows that are alone, which have no variance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from worlds import federation, fitting, resident, shares_of, tiny_dataset

from interfuse.aggregation import BufferPolicy, at_least_two, use_batch_statistics
from interfuse.errors import ConfigError
from interfuse.evaluation import evaluate
from interfuse.method import Method
from interfuse.methods.fedavg import FedAvg
from interfuse.methods.fedet import FedET
from interfuse.methods.fedgen import FedGen
from interfuse.methods.fedin import FedIN
from interfuse.methods.fedin_ablations import FedINAblations
from interfuse.methods.heterofl import HeteroFL
from interfuse.methods.moon import MOON

POINTS = ["resnet10-narrow@0.25"]
"""On 4x4 images the last maps of it are points."""
IMAGES = tiny_dataset(rows=50, shape=(1, 4, 4))
UNEVEN = shares_of(range(0, 17), range(17, 34), range(34, 50))
LITTLE: dict[str, Any] = {"local_steps": 2, "batch_size": 16, "lr": 0.01}


@pytest.mark.parametrize(
    ("kind", "sound"),
    [
        (MOON, {BufferPolicy.AGGREGATE, BufferPolicy.LOCAL}),
        (FedIN, {BufferPolicy.AGGREGATE, BufferPolicy.LOCAL}),
        (FedET, {BufferPolicy.AGGREGATE}),
        (FedGen, {BufferPolicy.AGGREGATE}),
        (FedAvg, set(BufferPolicy)),
    ],
)
@pytest.mark.parametrize("policy", BufferPolicy)
def test_who_evaluates_models_in_training_needs_statistics(
    kind: type[Method], sound: set[BufferPolicy], policy: BufferPolicy
) -> None:
    def begun(models: list[str]) -> None:
        method = kind.configure(LITTLE | {"buffers": policy.value})
        federation(method, models=fitting(kind, models), dataset=IMAGES, shares=UNEVEN, rounds=1)

    if policy in sound:
        begun(["cnn-bn"])
    else:
        with pytest.raises(ConfigError, match=f"buffers = '{policy.value}'.*needs: take aggregate"):
            begun(["cnn-bn"])
        begun(["cnn"])  # has no statistics


@pytest.mark.parametrize("policy", [BufferPolicy.RECALIBRATE, BufferPolicy.BATCH_STATISTICS])
def test_a_row_that_is_left_over_alone(policy: BufferPolicy) -> None:
    # 17 rows in batches of 16, and 65 test rows in chunks of 64
    data = tiny_dataset(rows=50, shape=(1, 4, 4), test_rows=65)
    f = federation(FedAvg(**LITTLE, buffers=policy), models=POINTS, dataset=data, shares=UNEVEN, rounds=2)
    found = evaluate(f, full=True)
    assert len(found.common) == 3
    assert all(0 <= accuracy <= 1 for accuracy in found.common)


def test_a_client_of_one_row_keeps_its_statistics() -> None:
    shares = shares_of(range(0, 1), range(1, 50))
    f = federation(
        FedAvg(**LITTLE, buffers=BufferPolicy.RECALIBRATE), models=POINTS, dataset=IMAGES, shares=shares, rounds=1
    )
    with f.evaluating():
        norms = [
            next(m for m in resident(f, client).model.modules() if isinstance(m, nn.BatchNorm2d)) for client in (0, 1)
        ]
        variances = [norm.running_var for norm in norms if norm.running_var is not None]
        assert torch.equal(variances[0], torch.ones_like(variances[0]))
        assert not torch.equal(variances[1], torch.ones_like(variances[1]))


@pytest.mark.parametrize("normalisation", ["eval", "batch", "train"])
def test_in_training_on_a_single_row(normalisation: Any) -> None:
    method = FedINAblations(local_steps=2, batch_size=16, in_normalisation=normalisation)
    shares = shares_of(range(0, 1), range(1, 50))
    f = federation(method, models=POINTS, dataset=IMAGES, shares=shares, rounds=3)
    assert all(tensor.isfinite().all() for tensor in f.server.state.weights.values())


def test_one_row_twice_has_its_own_statistics() -> None:
    norm, x = nn.BatchNorm2d(3), torch.randn(1, 3, 4, 4)
    with use_batch_statistics(norm):
        torch.testing.assert_close(norm(at_least_two(x))[:1], norm(x))
    assert at_least_two(torch.cat([x, x, x])).shape == (3, 3, 4, 4)


def test_widths_with_statistics_of_the_batch() -> None:
    method = HeteroFL(**LITTLE, buffers=BufferPolicy.BATCH_STATISTICS)
    f = federation(method, models=[*POINTS, "resnet10-narrow@0.5"], dataset=IMAGES, shares=UNEVEN, rounds=2)
    assert not any("running" in key for key in f.server.state.weights)
    x = IMAGES.normalise(IMAGES.x_test)
    with f.evaluating():
        for client in f.clients:
            assert f.method.predict(resident(f, client), x).isfinite().all()
