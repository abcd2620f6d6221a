"""Which classes a client of FedVTC matches when it trains its generator."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from worlds import federation, shares_of, tiny_dataset

from interfuse.methods import fedvtc
from interfuse.methods.fedvtc import FedVTC

LABELS = tiny_dataset(rows=60).y_train
OF = [torch.nonzero(LABELS.eq(c)).flatten().tolist() for c in range(3)]


@pytest.mark.parametrize(("match_to", "classes"), [("own", [2, 1]), ("global", [3, 3])])
def test_a_client_matches_the_classes_that_it_has_seen(
    match_to: Literal["own", "global"], classes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[tuple[int, ...], list[int]] = {}
    draw = fedvtc.learning_to_draw

    def recording(model: Any, batch: Any, step: int, *, means: Tensor, spread: Tensor, **bound: Any) -> Tensor:
        assert len(spread) == len(means)
        assert len(bound["targets"]) == len(means)
        if match_to == "own":  # nothing that looks like its rows could have other means in its features
            with torch.no_grad():
                z = bound["extractor"].base(batch.x)
            for target, y in zip(bound["targets"], batch.y.unique(), strict=False):
                torch.testing.assert_close(target, z[batch.y == y].mean(0))
        else:
            assert torch.equal(bound["targets"], means)
        found.setdefault(tuple(batch.y.unique().tolist()), []).append(len(means))
        return draw(model, batch, step, means=means, spread=spread, **bound)

    monkeypatch.setattr(fedvtc, "learning_to_draw", recording)
    method = FedVTC(local_steps=1, batch_size=60, generator_steps=1, channels=4, latents=0, match_to=match_to)
    federation(method, models=["logistic"], shares=shares_of(OF[0] + OF[1], OF[2]), rounds=2)
    assert found == {(0, 1): [0, classes[0]], (2,): [0, classes[1]]}  # before the second round nothing is known
