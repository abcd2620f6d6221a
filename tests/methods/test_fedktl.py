"""FedKTL: the frame's identity, ArcFace by angles, MMD by sums; what travels, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from by_hand import skewed
from torch.nn import functional
from worlds import Recorder, entries, federation, resident, same_bits

from interfuse.errors import ConfigError
from interfuse.evaluation import evaluate
from interfuse.families.knowledge import arc_margin, cosines, mmd, simplex
from interfuse.methods.fedktl import FedKTL, Knowledge

OPTIONS: dict[str, Any] = {"local_steps": 2, "batch_size": 4, "generator_steps": 3, "server_epochs": 2, "latent": 5}


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_a_frame_is_equiangular(classes: int) -> None:
    frame = simplex(classes, torch.Generator().manual_seed(0)).double()
    expected = classes / (classes - 1) * (torch.eye(classes).double() - 1 / classes)
    torch.testing.assert_close(frame.T @ frame, expected, rtol=1e-5, atol=1e-5)


def test_arcface_is_the_cross_entropy_with_a_wider_angle() -> None:
    noise = torch.Generator().manual_seed(0)
    cosine, y = torch.rand(6, 4, generator=noise) * 1.8 - 0.9, torch.tensor([0, 1, 2, 3, 0, 1])
    angles = cosine.arccos()
    angles[torch.arange(6), y] += 0.5
    expected = functional.cross_entropy(64 * angles.cos(), y)
    torch.testing.assert_close(arc_margin(cosine, y, 64.0, 0.5), expected, rtol=1e-4, atol=1e-4)
    at_the_end = torch.eye(2).requires_grad_()
    arc_margin(at_the_end, torch.tensor([0, 1]), 64.0, 0.5).backward()  # type: ignore[no-untyped-call]
    assert at_the_end.grad is not None
    assert at_the_end.grad.isfinite().all()
    assert cosines(torch.zeros(1, 3), simplex(3, torch.Generator())).tolist() == [[0.0, 0.0, 0.0]]


def test_mmd_is_a_mean_over_pairs_and_0_of_equal_sets() -> None:
    a, b = torch.randn(4, 3), torch.randn(4, 3) + 1

    def kernel(one: Any, other: Any) -> float:
        squares = [float(((x - y) ** 2).sum()) for x in one for y in other]
        return sum(math.exp(-0.5 * r / h) for r in squares for h in (10, 15, 20, 50)) / len(squares)

    assert float(mmd(a, b)) == pytest.approx(kernel(a, a) + kernel(b, b) - 2 * kernel(a, b), abs=1e-5)
    assert float(mmd(a, a)) == pytest.approx(0, abs=1e-6)


def test_samples_and_latents_of_classes_that_somebody_has_go_down_and_directions_up() -> None:
    f = federation(FedKTL(**OPTIONS), wrap=Recorder, rounds=3, **skewed())
    assert isinstance(f.engine, Recorder)
    known = [m for _, _, m in f.engine.down if isinstance(m, Knowledge)]
    assert [len(m.images) for m in known] == [0, 0, 0, 3, 3, 3, 3, 3, 3]  # class 3 is nobody's
    assert {tuple(m.images.shape[1:]) for m in known} == {(5,)}
    up = [entry.raw for entry in entries(f) if entry.direction == "up"]
    assert up == [held * (4 * 4 + 1) for held in (2, 1, 2)] * 3
    with torch.no_grad():
        lengths = f.server.state.knowledge.latents.norm(dim=1)
    assert (lengths > 0).all()
    frames = [resident(f, client).state.frame for client in f.clients]
    assert all(torch.equal(frames[0], other) for other in frames)
    assert all(0 <= accuracy <= 1 for accuracy in evaluate(f, full=True).common)


def test_the_generator_is_trained_once_on_public_data_and_then_rests() -> None:
    f = federation(FedKTL(**OPTIONS), **skewed())
    first = {key: tensor.clone() for key, tensor in f.server.state.decoder.items()}
    f.run_round()
    assert same_bits(first, f.server.state.decoder)
    untrained = federation(FedKTL(**OPTIONS | {"generator_steps": 0}), **skewed())
    assert not same_bits(first, untrained.server.state.decoder)


def test_a_run_without_public_data_is_refused_and_any_says_which_generator_it_has() -> None:
    f = federation(FedKTL(**OPTIONS), start=False)
    f.server._public = None
    with pytest.raises(ConfigError, match=r"uses public data, but the run has none: name a data set with public ="):
        f.start()
    notice = FedKTL().notice({})
    assert notice is not None
    assert "trained on the run's public data" in notice.text
