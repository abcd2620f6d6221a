"""Networks that draw samples: sizes, the way to normalised samples, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from worlds import tiny_dataset

from interfuse.data import Batch, Dataset, Normalisation
from interfuse.errors import DataError, ModelError
from interfuse.models import SplitModel
from interfuse.models.generators import as_samples, vtc
from interfuse.randomness import seeded
from interfuse.training import fit


@pytest.mark.parametrize(
    ("shape", "parameters"), [((1, 28, 28), 1_642_240), ((3, 32, 32), 2_135_744)], ids=["28x28", "32x32"]
)
def test_parameters_are_those_of_the_reconstruction(shape: tuple[int, ...], parameters: int) -> None:
    made = vtc(512, shape)
    assert sum(p.numel() for p in made.parameters()) == parameters
    assert made(torch.zeros(2, 512)).shape == (2, *shape)


SHAPES = [(1, 16, 16), (1, 6, 6), (3, 5, 9), (2, 1, 3), (9, 128), (4, 13), (5,), (1,)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_samples_of_any_shape_learn_what_they_are_to_be(shape: tuple[int, ...]) -> None:
    noise = torch.Generator().manual_seed(0)
    v, wanted = torch.randn(2, 6, generator=noise), torch.randn(2, *shape, generator=noise)
    with seeded(0):
        made = vtc(6, shape, channels=8)

    def apart(model: SplitModel, batch: Batch, step: int) -> Tensor:
        return (model(batch.x) - wanted).square().mean()

    batch = Batch(v, torch.zeros(2))
    before = apart(made, batch, 0)
    fit(made, apart, [batch] * 60, lr=0.05, optimizer="adam")
    assert made(v).shape == (2, *shape)
    assert apart(made, batch, 0) < 0.7 * before


def test_no_buffers_so_that_a_mean_over_clients_is_of_parameters_alone() -> None:
    made = vtc(6, (1, 8, 8))
    assert made.tensors().keys() == dict(made.named_parameters()).keys()


@pytest.mark.parametrize(
    ("shape", "channels", "words"),
    [
        ({"a": (3,), "b": (4,)}, 8, "a 3, b 4; take another"),
        ((1, 2, 3, 4), 8, "1x2x3x4; take another"),
        ((1, 8, 8), 5, "5 channels"),
        ((1, 8, 8), 0, "0 channels"),
    ],
)
def test_what_cannot_be_drawn_is_refused(shape: Any, channels: int, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        vtc(6, shape, channels)


def test_outputs_lie_between_the_ends_of_what_is_stored() -> None:
    """By channel: 0 and 255 as the data set normalises them; an output of 0 lies in the middle."""
    colours = {"x": Normalisation(255.0, (0.1, 0.5), (0.2, 0.3))}
    data = replace(tiny_dataset(shape=(2, 4, 4), dtype=torch.uint8), normalisation=colours)
    ends = data.normalise(torch.stack([torch.zeros(2, 4, 4), torch.full((2, 4, 4), 255.0)]))
    assert isinstance(ends, Tensor)
    drawn = as_samples(torch.stack([torch.full((2, 4, 4), value) for value in (-50.0, 50.0, 0.0)]), data.bounds)
    torch.testing.assert_close(drawn[:2], ends)
    torch.testing.assert_close(drawn[2], ends.mean(0))


def test_quantities_without_bounds_are_outputs_as_they_are() -> None:
    output = torch.randn(3, 5)
    assert tiny_dataset().bounds is None
    assert torch.equal(as_samples(output, tiny_dataset().bounds), output)


def test_tokens_and_several_inputs_have_no_bounds() -> None:
    y = [0, 1] * 5
    several = {"a": torch.rand(10, 3), "b": torch.rand(10, 4)}
    for x, words in ((torch.randint(0, 9, (10, 6)), "samples are tokens"), (several, "samples are the inputs a, b")):
        data = Dataset.from_arrays("odd", x, y, x, y, task="classification")
        with pytest.raises(DataError, match=words):
            _ = data.bounds
