"""Late joiners: who trains when, what travels, and that a newcomer's steps are those of plain training by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from worlds import (
    Recorder,
    entries,
    federation,
    in_steps,
    largest_difference,
    linear_head,
    same_bits,
    server_copy,
    tiny_dataset,
    weights_of,
    wide,
)

from interfuse.clients import Clients
from interfuse.errors import ConfigError, ModelError
from interfuse.federation import Federation
from interfuse.method import Method, check_run
from interfuse.methods import find
from interfuse.methods.ifl import IFL
from interfuse.methods.ifl_late_replay import Replay
from interfuse.runs import Given, RunConfig, execute, parse_config
from interfuse.runs.loop import assemble
from interfuse.server import Server

FAST: dict[str, Any] = {"local_steps": 3, "batch_size": 4, "base_lr": 0.1, "modular_lr": 0.1}
WAYS = ["ifl-late-replay", "ifl-late-answers", "ifl-late-published"]
MODELS = ("logistic", linear_head)
every_way = pytest.mark.parametrize("way", WAYS)


def run(way: str, rounds: int, joins_at: int = 3, **settings: Any) -> Federation:
    """Three clients, of which the last comes late."""
    method = find(way)(joins_at=joins_at, **FAST, **settings)
    return federation(method, models=MODELS, clients=3, rounds=rounds, wrap=Recorder)


def all_weights(f: Federation) -> dict[str, Tensor]:
    return {f"{client}:{key}": t for client in f.clients for key, t in weights_of(f, client).items()}


def of_client(weights: dict[str, Tensor], client: int) -> dict[str, Tensor]:
    return {key: t for key, t in weights.items() if key.startswith(f"{client}:")}


def behind(f: Federation, heads: list[dict[str, Tensor]], batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The newcomer's base block after plain SGD, each step behind one of some modular blocks in turn."""
    model = server_copy(f.setup, f.setup.architectures[2], weights_at_the_start(f))
    base = [p for key, p in model.named_parameters() if key in model.tensors("base")]
    for number, (x, y) in enumerate(batches):
        model.load(heads[number % len(heads)])
        gradients = torch.autograd.grad(functional.cross_entropy(model(x), y), base)
        with torch.no_grad():
            for parameter, gradient in zip(base, gradients, strict=True):
                parameter -= 0.1 * gradient
    return model.tensors("base")


def weights_at_the_start(f: Federation) -> dict[str, Tensor]:
    return dict(f.setup.build(f.setup.architectures[2], 2).tensors())


@every_way
def test_until_they_come_it_is_ifl_of_the_incumbents(way: str) -> None:
    f, ifl = run(way, 2), federation(IFL(**FAST), models=MODELS, clients=3)
    method: Any = ifl.method
    for round in (1, 2):
        ifl._enter(round, "training")
        method.round(ifl.server, ifl.clients.only([0, 1]))
        ifl.engine.end_round()
    assert same_bits(all_weights(f), all_weights(ifl))
    assert all(entry.client < 2 for entry in entries(f))


@every_way
def test_from_then_on_nobody_else_trains(way: str) -> None:
    before, after = (all_weights(run(way, rounds)) for rounds in (2, 5))
    for client in (0, 1):
        assert same_bits(of_client(before, client), of_client(after, client))
    assert not same_bits(of_client(before, 2), of_client(after, 2))


@every_way
def test_the_newcomers_base_block_is_trained_behind_a_block_that_does_not_move(way: str) -> None:
    f = run(way, 4)
    kept, model = weights_of(f, 2), f.setup.build(f.setup.architectures[2], 2)
    heads = [{key: weights_of(f, client)[key] for key in model.tensors("modular")} for client in (0, 1)]
    batches = in_steps(f.setup, 2, 12, 4)
    if way == "ifl-late-answers":  # after the steps of a round its own modular block goes through as many
        wanted = behind(f, heads, batches[0:3] + batches[6:9])
    else:
        own = {key: kept[key] for key in model.tensors("modular")}
        assert same_bits(own, heads[0]) == (way == "ifl-late-published")
        wanted = behind(f, [own], batches[:6])
    assert largest_difference({key: kept[key] for key in wanted}, wanted) < 1e-5


def test_the_replay_is_the_pairs_of_the_last_rounds_once() -> None:
    f = run("ifl-late-replay", 6, joins_at=5, retention=3, passes=2)
    recorder = f.engine
    assert isinstance(recorder, Recorder)
    replays = [(r, client, m) for r, client, m in recorder.down if isinstance(m, Replay)]
    ((request, client, replay),) = replays
    assert (request.round, client) == (5, 2)
    sent = [m for r, _, m in recorder.up if r.round in (2, 3, 4)]
    assert [len(kept.pairs) for kept in replay.rounds] == [2, 2, 2]
    pairs = [pair for kept in replay.rounds for pair in kept.pairs]
    for pair, other in zip(pairs, sent, strict=True):
        assert torch.equal(pair.z, other.z)  # type: ignore[attr-defined]
        assert torch.equal(pair.y, other.y)  # type: ignore[attr-defined]
    assert not f.server.state.rounds  # the server forgets them
    # by hand: two passes of plain steps on them
    model = f.setup.build(f.setup.architectures[2], 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for pair in pairs * 2:
        optimizer.zero_grad()
        functional.cross_entropy(model.modular(pair.z), pair.y.long()).backward()
        optimizer.step()
    modular = model.tensors("modular")
    assert largest_difference({key: weights_of(f, 2)[key] for key in modular}, modular) < 1e-5


@pytest.mark.parametrize(("retention", "passes", "kept"), [(1, 1, 1), (3, 2, 3), (9, 3, 4)])
def test_the_replay_takes_the_steps_of_the_rounds_that_were_kept(retention: int, passes: int, kept: int) -> None:
    """Two incumbents: two steps on a round's pairs; four rounds come before the newcomer."""
    f = run("ifl-late-replay", 4, joins_at=5, retention=retention, passes=passes)
    taken = f.exchange.steps.total()
    f.run_round()
    assert f.exchange.steps.total() - taken == kept * passes * 2 + FAST["local_steps"]


@pytest.mark.parametrize(
    ("way", "kinds"),
    [
        ("ifl-late-replay", {"Replay": 1}),
        ("ifl-late-answers", {"Question": 12, "Reply": 12}),  # up to the server and down from it, six steps
        ("ifl-late-published", {"Published": 2}),
    ],
)
def test_each_way_is_metered_under_kinds_of_its_own(way: str, kinds: dict[str, int]) -> None:
    f = run(way, 4)
    found = Counter(entry.kind for entry in entries(f) if entry.round >= 3)
    assert found == kinds
    totals = f.exchange.ledger.totals().by_kind
    pair = 4 * (4 * 8 + 1)
    sizes = {"Replay": 2 * 2 * pair, "Question": pair, "Reply": 4 * 4 * 8, "Published": 4 * (8 * 3 + 3)}
    for kind, count in kinds.items():
        assert totals[kind].uplink.raw + totals[kind].downlink.raw == count * sizes[kind]


def test_what_cannot_work_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(ConfigError, match="newcomers = 3: of 3 clients none is there from the start"):
        federation(find("ifl-late-published")(newcomers=3), clients=3)
    with pytest.raises(ModelError, match=r"client 2 \(wide\) cannot use the modular block of client 0 \(logistic\)"):
        federation(find("ifl-late-published")(), models=["logistic", "logistic", wide])
    for way in ("ifl-late-published", "ifl-late-answers"):
        with pytest.raises(
            ConfigError, match="teacher = 2: not there from the start; name one of .* incumbents, 0 to 1"
        ):
            federation(find(way)(teacher=2), clients=3, rounds=1)


@every_way
def test_who_would_come_after_the_last_round_is_refused_before_anything_runs(way: str, tmp_path: Path) -> None:
    def config(**settings: Any) -> RunConfig:
        return parse_config(
            {
                "method": way,
                "data": "in-memory:tiny",
                "clients": 3,
                "models": ["logistic"],
                "fusion_width": 8,
                "rounds": 4,
                "beside": [],
                "settings": settings,
            }
        )

    given = Given(dataset=tiny_dataset())
    assert assemble(config(joins_at=4), given)
    refused: dict[str, dict[str, Any]] = {
        r"joins_at = 5: a run of 4 rounds .* in round 4 or earlier, or have 5 rounds": {"joins_at": 5},
        r"joins_at = 100: ": {},
        r"newcomers = 3: of 3 clients none": {"joins_at": 2, "newcomers": 3},
    }
    if way != "ifl-late-replay":
        refused[r"teacher = 2: .*incumbents, 0 to 1"] = {"joins_at": 2, "teacher": 2}
    for text, settings in refused.items():
        with pytest.raises(ConfigError, match=text):
            execute(config(**settings), tmp_path / "run", given=given)
    assert not (tmp_path / "run").exists()


@dataclass(frozen=True)
class Around(Method):
    """A method around another."""

    inner: Method

    def round(self, server: Server, clients: Clients) -> None:
        self.inner.round(server, clients)


def test_what_is_wrapped_is_checked_too() -> None:
    method = Around(find("ifl-late-answers")(joins_at=9))
    with pytest.raises(ConfigError, match="joins_at = 9"):
        check_run(method, range(3), 8)
    check_run(method, range(3), 9)
