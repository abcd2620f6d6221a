"""Modular steps whose number does not grow: on all rows at once, on all rows mixed, on some of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional
from worlds import (
    Recorder,
    entries,
    federation,
    largest_difference,
    linear_head,
    server_copy,
    shares_of,
    tiny_dataset,
    weights_of,
    wide,
)

from interfuse.families.fusion import FusionOutputs, FusionPairs
from interfuse.federation import Federation
from interfuse.methods.ifl_capped import IFLCapped
from interfuse.methods.ifl_fixed_steps import IFLFixedSteps

FAST: dict[str, Any] = {"local_steps": 1, "batch_size": 4, "base_lr": 0.1, "modular_lr": 0.2}
make = partial(IFLFixedSteps, **FAST)


def messages(f: Federation) -> tuple[list[FusionOutputs], dict[int, FusionPairs]]:
    """What was sent up, and what came down by client."""
    recorder = f.engine
    assert isinstance(recorder, Recorder)
    up = [m for _, _, m in recorder.up if isinstance(m, FusionOutputs)]
    return up, {client: m for _, client, m in recorder.down if isinstance(m, FusionPairs)}


def rows(pairs: Iterable[FusionOutputs]) -> list[tuple[bytes, int]]:
    """Rows of features with their labels, sorted."""
    return sorted((z.numpy().tobytes(), int(y)) for pair in pairs for z, y in zip(pair.z, pair.y, strict=True))


def test_the_joint_step_goes_down_the_mean_gradient_over_pairs() -> None:
    """Uneven pairs of 2, 4 and 3 rows: each counts by its rows, as autograd has it pair by pair."""
    shares = shares_of(range(2), range(2, 20), range(20, 23))
    f = federation(make(modular_steps=1), models=[wide, linear_head], shares=shares, wrap=Recorder)
    before = {client: weights_of(f, client) for client in f.clients}
    f.run_round()
    sent, _ = messages(f)
    assert [len(pair.y) for pair in sent] == [2, 4, 3]
    for client in f.clients:
        model = server_copy(f.setup, f.setup.architectures[client], before[client])
        block = model.parameters_of("modular")
        total = dict.fromkeys(block, torch.zeros(()))
        for pair in sent:
            loss = functional.cross_entropy(model.modular(pair.z), pair.y.long())
            slopes = torch.autograd.grad(loss, list(block.values()))
            total = {key: total[key] + len(pair.y) / 9 * g for key, g in zip(block, slopes, strict=True)}
        expected = {key: (before[client][key] - 0.2 * total[key]).detach() for key in block}
        assert largest_difference(expected, weights_of(f, client, "modular")) < 1e-6
        assert largest_difference({key: before[client][key] for key in block}, expected) > 1e-3


@pytest.mark.parametrize(("clients", "size", "seen"), [(4, 0, 16), (4, 3, 16), (12, 0, 48), (100, 3, 18)])
def test_steps_do_not_grow_with_the_clients(clients: int, size: int, seen: int) -> None:
    """Six of them, on all rows or on eighteen, the same for everybody, none twice, mixed over clients."""
    method = make(local_steps=0, modular_steps=6, modular_batch_size=size, optimizer="sgd")
    f = federation(method, clients=clients, dataset=tiny_dataset(rows=4 * clients), wrap=Recorder, rounds=1)
    sent, given = messages(f)
    assert f.exchange.steps.total() == 6 * clients
    assert len({id(pairs) for pairs in given.values()}) == 1
    assert len(given) == clients
    batches = given[0].pairs
    there, offered = rows(batches), rows(sent)
    least, more = divmod(seen, 6)
    assert sorted(len(batch.y) for batch in batches) == [least] * (6 - more) + [least + 1] * more
    assert (Counter(there) == Counter(offered)) if seen == 4 * clients else (Counter(there) < Counter(offered))
    owner = {row: client for client, pair in enumerate(sent) for row in rows([pair])}
    assert all(len({owner[row] for row in rows([batch])}) > 1 for batch in batches)
    down = sum(entry.raw for entry in entries(f) if entry.direction == "down" and entry.client == 0)
    assert down == len(there) * (4 * 8 + 1)


def test_other_rows_go_together_in_each_round() -> None:
    f = federation(make(modular_steps=2), wrap=Recorder, rounds=1)
    _, first = messages(f)
    recorder = f.engine
    assert isinstance(recorder, Recorder)
    f.run_round()
    _, second = messages(f)
    sizes = f.setup.dims["clients"] * 4
    assert sum(len(batch.y) for batch in first[0].pairs) == sizes == sum(len(batch.y) for batch in second[0].pairs)
    assert rows(first[0].pairs[:1]) != rows(second[0].pairs[:1])


def test_with_as_many_rows_it_is_the_capped_downlink_in_steps() -> None:
    """Both draw eight of twelve rows; the steps on them differ by the order of rows in a sum alone."""
    capped = IFLCapped(**FAST, downlink_rows=8)
    one, other = (federation(m, models=[wide], rounds=3) for m in (make(modular_steps=2, modular_batch_size=4), capped))
    assert max(largest_difference(weights_of(one, c), weights_of(other, c)) for c in one.clients) < 1e-5
