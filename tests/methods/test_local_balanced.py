"""Local on class-balanced batches: what is drawn, and how much."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from worlds import entries, federation, same_bits, shares_of, tiny_dataset, weights_of

from interfuse.client import Client
from interfuse.data import Batch
from interfuse.methods.local import Local
from interfuse.methods.local_balanced import LocalBalanced
from interfuse.training import Fitted

ROWS = tiny_dataset(rows=120).y_train
OF = [torch.nonzero(c == ROWS).flatten().tolist() for c in range(3)]
FEW = shares_of(OF[0] + OF[1][:3], OF[2])
"""Of class 0 many rows and of class 1 three, of class 2 none; and a client of one class."""


def batches_of(method: LocalBalanced, client: int, monkeypatch: pytest.MonkeyPatch, rounds: int = 1) -> list[Batch]:
    """What a client trains on."""
    found: list[Batch] = []
    train = Client.fit

    def recording(self: Client, losses: Any, batches: Any, **options: Any) -> Fitted:
        given = list(batches)
        found.extend(given if self.id == client else ())
        return train(self, losses, given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Client, "fit", recording)
        federation(method, models=["logistic"], dataset=tiny_dataset(rows=120), shares=FEW, rounds=rounds)
    return found


def test_every_class_of_a_client_is_as_likely_as_any_other_and_every_row_of_a_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = batches_of(LocalBalanced(local_steps=300, batch_size=20), 0, monkeypatch)
    y, x = torch.cat([b.y for b in drawn]), torch.cat([b.features for b in drawn])
    assert [len(b.y) for b in drawn] == [20] * 300
    assert y.unique().tolist() == [0, 1]
    assert abs(float((y == 1).float().mean()) - 0.5) < 4 * (0.25 / 6000) ** 0.5
    _, times = x[y == 1].flatten(1).unique(dim=0, return_counts=True)
    assert len(times) == 3
    assert float((times / times.sum() - 1 / 3).abs().max()) < 4 * (2 / 9 / 3000) ** 0.5
    assert len(x[y == 0].flatten(1).unique(dim=0)) == len(OF[0])


def test_a_client_of_one_class_draws_that(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {int(y) for b in batches_of(LocalBalanced(local_steps=3), 1, monkeypatch) for y in b.y} == {2}


def test_rounds_draw_anew_and_a_run_again_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    first, again = (batches_of(LocalBalanced(local_steps=2, batch_size=8), 0, monkeypatch, 2) for _ in range(2))
    assert all(torch.equal(a.features, b.features) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].features, first[-1].features)


@pytest.mark.parametrize("amount", [{"local_steps": 5}, {"local_epochs": 2}])
def test_steps_and_rows_are_as_many_as_of_local(amount: dict[str, int]) -> None:
    runs = [
        federation(
            kind(batch_size=50, **amount), models=["logistic"], rounds=2, shares=shares_of(range(9), range(9, 60))
        )
        for kind in (Local, LocalBalanced)
    ]
    assert runs[0].exchange.steps == runs[1].exchange.steps
    assert entries(runs[1]) == []
    assert not same_bits(*(weights_of(f, 1) for f in runs))
