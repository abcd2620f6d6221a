"""What goes down of the pairs of many clients: which rows, how many bytes, and what modular blocks learn from them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from worlds import (
    Recorder,
    alone,
    entries,
    federation,
    live_model,
    run_handler,
    same_bits,
    tiny_dataset,
    weights_of,
    wide,
)

from interfuse.data import IID, Batch
from interfuse.errors import ConfigError
from interfuse.families.fusion import FusionOutputs, FusionPairs
from interfuse.families.fusion_rows import Mixtures, balanced, mixed, rows_of, sampled
from interfuse.method import Method
from interfuse.methods.ifl import IFL
from interfuse.methods.ifl_capped import IFLCapped
from interfuse.methods.pooled import Pooled
from interfuse.randomness import generator

FORMS = ("pairs", "rows", "balanced", "mixed")


def rows(labels: list[int]) -> Batch:
    """Rows whose first feature is their number."""
    return Batch(torch.stack([torch.arange(len(labels)), torch.tensor(labels)], 1).float(), torch.tensor(labels))


def are_rows_of(part: Batch, whole: Batch) -> bool:
    places = part.x[:, 0].long()
    return len(places.unique()) == len(places) and torch.equal(whole.y[places], part.y)


@settings(max_examples=60, deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=40), count=st.integers(1, 45), seed=st.integers(0, 99))
def test_balanced_rows_are_as_even_as_the_classes_allow(labels: list[int], count: int, seed: int) -> None:
    found = balanced(rows(labels), count, generator(seed))
    assert are_rows_of(found, rows(labels))
    assert len(found.y) == min(count, len(labels))
    there, taken = Counter(labels), Counter(found.y.tolist())
    most = max(taken.values())
    assert all(taken[label] >= min(there[label], most - 1) for label in there)


@settings(max_examples=30, deadline=None)
@given(total=st.integers(1, 40), count=st.integers(1, 45), seed=st.integers(0, 99))
def test_sampled_rows_are_different_ones(total: int, count: int, seed: int) -> None:
    labels = [i % 3 for i in range(total)]
    found = sampled(rows(labels), count, generator(seed))
    assert are_rows_of(found, rows(labels))
    assert len(found.y) == min(count, total)


@settings(max_examples=40, deadline=None)
@given(total=st.integers(1, 20), count=st.integers(1, 10), parts=st.integers(1, 5), seed=st.integers(0, 99))
def test_mixtures_are_convex_and_mix_features_like_labels(total: int, count: int, parts: int, seed: int) -> None:
    """The features hold the one-hot labels, so both must be mixed alike."""
    y = torch.arange(total) % 4
    x = functional.one_hot(y, 4).float()
    z, labels = mixed(Batch(x, y), 4, count, parts, generator(seed))
    assert z.shape == labels.shape == (count, 4)
    assert torch.allclose(z, labels, atol=1e-6)
    assert torch.allclose(labels.sum(1), torch.ones(count), atol=1e-6)
    assert bool((labels >= 0).all())
    assert bool(((labels > 0).sum(1) <= parts).all())


def run(downlink: Any, clients: int, **more: Any) -> Any:
    method = IFLCapped(local_steps=1, batch_size=4, downlink=downlink, downlink_rows=8, **more)
    return federation(
        method,
        rounds=2,
        wrap=Recorder,
        clients=clients,
        models=[wide],
        partition=IID(),
        dataset=tiny_dataset(rows=40 * clients),
    )


@pytest.mark.parametrize("downlink", FORMS)
def test_bytes_of_a_client_do_not_grow_with_clients(downlink: str) -> None:
    sizes = set()
    for clients in (4, 16, 64):
        down = [(e.raw, e.wire) for e in entries(run(downlink, clients)) if e.direction == "down"]
        assert len(down) == 2 * clients
        sizes |= set(down)
    assert len(sizes) == 1
    label = 3 * 4 if downlink == "mixed" else 1
    assert next(iter(sizes))[0] == 8 * (8 * 4 + label)


@pytest.mark.parametrize("downlink", ["pairs", "rows", "balanced"])
def test_what_goes_down_is_a_part_of_what_came_up(downlink: str) -> None:
    f = run(downlink, 6)
    up = [m for r, _, m in f.engine.up if r.round == 1 and isinstance(m, FusionOutputs)]
    down = next(m for r, _, m in f.engine.down if r.round == 1)
    assert isinstance(down, FusionPairs)
    sent = {(z.numpy().tobytes(), int(y)) for m in up for z, y in zip(m.z, m.y, strict=True)}
    got = rows_of(down)
    assert {(z.numpy().tobytes(), int(y)) for z, y in zip(got.x, got.y, strict=True)} <= sent
    assert [len(pair.y) for pair in down.pairs] == [4, 4]
    if downlink == "pairs":
        whole = {m.z.numpy().tobytes() for m in up}
        assert all(pair.z.numpy().tobytes() in whole for pair in down.pairs)


def test_the_same_part_goes_to_everybody_so_equal_modular_blocks_stay_equal() -> None:
    for downlink in FORMS:
        f = federation(
            IFLCapped(local_steps=1, batch_size=4, downlink=downlink, downlink_rows=8), models=["logistic"], clients=3
        )
        for client in (1, 2):
            live_model(f, client).load(weights_of(f, 0, "modular"))
        f.run_round()
        assert same_bits(weights_of(f, 0, "modular"), weights_of(f, 1, "modular"))
        assert same_bits(weights_of(f, 0, "modular"), weights_of(f, 2, "modular"))


def test_mixtures_of_one_row_are_rows() -> None:
    """One-hot labels: the loss on mixtures is that on pairs."""
    z, y = torch.randn(8, 8, generator=generator(1)), torch.arange(8) % 3

    def after(handler: str, message: Any) -> dict[str, Tensor]:
        f = federation(IFLCapped(batch_size=4, modular_lr=0.5), models=[wide], clients=1)
        run_handler(f, getattr(f.method, handler), message)
        return weights_of(f, 0, "modular")

    pairs = FusionPairs((FusionOutputs(z[:4], y[:4]), FusionOutputs(z[4:], y[4:])))
    mixtures = Mixtures(z, functional.one_hot(y, 3).float())
    a, b = after("train_modular", pairs), after("train_on_mixtures", mixtures)
    assert all(torch.allclose(a[key], b[key], atol=1e-5) for key in a)
    assert not same_bits(a, weights_of(federation(IFL(), models=[wide], clients=1), 0, "modular"))


def steps(method: Method, clients: int) -> int:
    """Gradient steps of all clients in two rounds; every share fills a batch."""
    dataset = tiny_dataset(rows=20 * clients)
    f = federation(method, rounds=2, clients=clients, models=[wide], partition=IID(), dataset=dataset)
    return f.exchange.steps.total()


@pytest.mark.parametrize(
    ("asked", "clients", "turns"),
    [
        ({"downlink": "pairs", "downlink_rows": 14}, 5, 3),  # not a fourth pair: 16 rows
        ({"downlink": "pairs", "downlink_rows": 14}, 2, 2),
        ({"downlink": "pairs", "downlink_rows": 4}, 5, 1),
        ({"downlink": "rows", "downlink_rows": 14}, 5, 4),  # the last batch has two rows
        ({"downlink": "rows", "downlink_rows": 16}, 2, 2),
        ({"downlink": "rows", "downlink_rows": 3}, 5, 1),
        ({"downlink": "balanced", "downlink_rows": 100}, 3, 3),
        ({"downlink": "mixed", "downlink_rows": 18}, 2, 5),
    ],
)
def test_local_takes_as_many_steps_as_the_method_beside_it(asked: dict[str, Any], clients: int, turns: int) -> None:
    method = IFLCapped(local_steps=2, batch_size=4, **asked)
    taken = steps(method, clients)
    assert taken == 2 * clients * (2 + turns)
    assert steps(alone(method), clients) == taken


@pytest.mark.parametrize("clients", [2, 5])
def test_pooled_is_bounded_like_local(clients: int) -> None:
    asked: dict[str, Any] = {"local_steps": 2, "batch_size": 4, "modular_steps": "clients", "modular_most": 3}
    f = federation(Pooled(**asked), rounds=1, clients=clients, dataset=tiny_dataset(rows=60))
    assert f.server.steps == 2 + min(clients, 3)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(4, 40), batch=st.integers(1, 8), form=st.sampled_from(["pairs", "rows", "balanced"]))
def test_never_more_rows_go_down_than_are_allowed(rows: int, batch: int, form: Any) -> None:
    assume(form != "pairs" or batch <= rows)
    method = IFLCapped(local_steps=0, batch_size=batch, downlink=form, downlink_rows=rows)
    f = federation(method, rounds=1, wrap=Recorder, clients=4, dataset=tiny_dataset(rows=80), partition=IID())
    assert isinstance(f.engine, Recorder)
    sent = {sum(len(pair.y) for pair in m.pairs) for _, _, m in f.engine.down if isinstance(m, FusionPairs)}
    assert sent == {min(4, rows // batch) * batch if form == "pairs" else min(4 * batch, rows)}


def test_a_downlink_that_cannot_be_kept_to_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"downlink_rows = 16: .* not one pair of batch_size = 32 rows may go down"):
        IFLCapped(downlink="pairs", downlink_rows=16)
    IFLCapped(downlink="rows", downlink_rows=16)
