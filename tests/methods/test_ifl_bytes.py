"""IFL with fewer bytes: a replay window, a sketch as fusion layer, product quantisation with kept codebooks."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from worlds import Recorder, entries, everything_owned, federation, linear_head, live_model, resident, same_bits, wide

import interfuse
from interfuse.artefacts import composed
from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.data import load
from interfuse.engines.parties.limits import rows_of
from interfuse.errors import ArtefactError, ClientError, MessageError, ModelError
from interfuse.evaluation import compose
from interfuse.families.fusion import FusionOutputs, FusionPairs
from interfuse.families.product_quantisation import (
    Codebook,
    CodedOutputs,
    decoded,
    fitted,
    pieces_of,
    places,
)
from interfuse.families.replay import joined
from interfuse.federation import Federation
from interfuse.handler import on_client
from interfuse.messages import Disclosure
from interfuse.method import retained
from interfuse.methods.ifl import IFL
from interfuse.methods.ifl_quantised import IFLQuantised
from interfuse.methods.ifl_replay import IFLReplay
from interfuse.methods.ifl_sketch import IFLSketch
from interfuse.models import SplitModel
from interfuse.models.sketching import directions
from interfuse.randomness import generator
from interfuse.server import Server

FAST: dict[str, Any] = {"local_steps": 2, "batch_size": 6, "base_lr": 0.1, "modular_lr": 0.1}
MIXED = ("logistic", wide, linear_head)


def weights(f: Federation) -> dict[str, Tensor]:
    return {f"{c}/{key}": t.clone() for c in f.clients for key, t in live_model(f, c).tensors().items()}


def test_a_window_of_one_round_is_ifl() -> None:
    plain = federation(IFL(**FAST), models=MIXED, rounds=3)
    one = federation(IFLReplay(**FAST, window=1), models=MIXED, rounds=3)
    assert same_bits(weights(one), weights(plain))
    assert [e.wire for e in entries(one)] == [e.wire for e in entries(plain)]
    assert retained(IFLReplay(window=1)) == frozenset()
    assert retained(IFLReplay()) == {Disclosure.FEATURES, Disclosure.LABELS}


def test_a_step_is_on_what_one_place_sent_in_the_window() -> None:
    f = federation(IFLReplay(**FAST, window=3), models=MIXED, wrap=Recorder, rounds=4)
    assert isinstance(f.engine, Recorder)
    given = [m for _, c, m in f.engine.down if c == 0 and isinstance(m, FusionPairs)]
    assert same_rounds(resident(f, 0).state.rounds, given[-2:])
    batches = joined(tuple(given[-3:]))
    assert len(batches) == 3
    for place, batch in enumerate(batches):
        assert torch.equal(batch.features, torch.cat([fused.pairs[place].z for fused in given[:0:-1]]))
        assert torch.equal(batch.y, torch.cat([fused.pairs[place].y for fused in given[:0:-1]]))
    # as many steps and bytes as IFL, which learns otherwise
    plain = federation(IFL(**FAST), models=MIXED, rounds=4)
    assert f.exchange.steps == plain.exchange.steps
    assert [e.wire for e in entries(f)] == [e.wire for e in entries(plain)]
    assert not same_bits(weights(f), weights(plain))


def same_rounds(a: tuple[FusionPairs, ...], b: list[FusionPairs]) -> bool:
    pairs = zip(itertools.chain(*(r.pairs for r in a)), itertools.chain(*(r.pairs for r in b)), strict=True)
    return all(torch.equal(x.z, y.z) and torch.equal(x.y, y.y) for x, y in pairs)


def test_directions_are_orthonormal_and_the_seeds_alone() -> None:
    for count, width in ((1, 8), (5, 8), (8, 8), (32, 432)):
        along = directions(count, width, 0)
        assert torch.allclose(along @ along.T, torch.eye(count), atol=1e-5)
        assert torch.equal(along, directions(count, width, 0))
        assert not torch.equal(along, directions(count, width, 1))


def test_blocks_meet_in_a_sketch_and_nothing_of_it_is_trained_sent_or_kept() -> None:
    f = federation(IFLSketch(**FAST, directions=3), models=MIXED, wrap=Recorder, rounds=2, seed=4)
    assert f.setup.dims["d"] == 3
    assert {p.fusion_width for p in f.setup.profiles.values()} == {3}
    along = directions(3, 8, 4)
    assert isinstance(f.engine, Recorder)
    for _, client, sent in f.engine.up:
        assert isinstance(sent, FusionOutputs)
        assert sent.z.shape == (6, 3)
        model = live_model(f, client)
        assert not any("along" in key for key in model.state_dict())
        base = dict(model.named_modules())
        sketches = [m for name, m in base.items() if name.endswith((".down", ".up"))]
        assert len(sketches) == 2
        assert all(torch.equal(m.along, along) for m in sketches)
    plain = federation(IFL(**FAST), models=MIXED, rounds=0, seed=4)
    for client in f.clients:  # the blocks beside it are those of the same seed without it
        x = f.setup.dataset.x_test
        fresh = federation(IFLSketch(**FAST, directions=3), models=MIXED, rounds=0, seed=4)
        mine, its = live_model(fresh, client).eval(), live_model(plain, client).eval()
        with torch.no_grad():
            assert torch.allclose(mine.base(x), its.base(x) @ along.T, atol=1e-6)
            assert torch.allclose(mine(x), its.modular(its.base(x) @ along.T @ along), atol=1e-5)
    scores = compose(f, 0, 2, f.setup.dataset.x_test)
    with torch.no_grad():
        z = live_model(f, 0).eval().base(f.setup.dataset.normalise(f.setup.dataset.x_test))
        assert torch.allclose(scores, live_model(f, 2).eval().modular(z), atol=1e-5)


def test_more_directions_than_there_are_are_refused() -> None:
    with pytest.raises(ModelError, match="at most 8 directions exist"):
        federation(IFLSketch(directions=9))


def test_no_more_directions_are_drawn_than_take_a_second() -> None:
    with pytest.raises(ModelError, match="at most 64 can be drawn; take fewer"):
        federation(IFLSketch(**FAST, directions=65_536), width=65_536, start=False)


def test_a_codebook_counts_as_rows_and_as_kept() -> None:
    """With a piece as long as a row and as many codewords as rows it is these rows."""
    whole = IFLQuantised(length=8, codewords=24, fitted_rows=24, batch_size=6, window=1)
    f = federation(whole, models=MIXED, wrap=Recorder, rounds=1)
    assert isinstance(f.engine, Recorder)
    sent = [m for _, _, m in f.engine.up if isinstance(m, CodedOutputs)]
    assert {rows_of(m) for m in sent} == {24}
    assert whole.rows_of_an_upload(100) == {"encode": 24}
    assert retained(whole) == {Disclosure.FEATURES}


def test_features_that_diverged_are_refused_as_where_they_travel_as_they_are() -> None:
    for value in (2e9, float("inf"), float("nan")):
        with pytest.raises(MessageError, match="where training diverged, try a lower learning rate"):
            pieces_of(torch.tensor([[1.0, value]]), 2)


def test_given_parts_and_groups_stay_around_a_sketch() -> None:
    stages = {"a": torch.nn.Linear(3, 4), "b": torch.nn.Linear(4, 2)}
    model = SplitModel(stages, {"base": ("a",), "modular": ("b",)}, groups={"some": ["b.bias"]}, given=["base"])
    made = model.crossed_by(torch.nn.Identity(), torch.nn.Identity())
    assert made.given_keys == {"a.inner.weight", "a.inner.bias"}
    assert made.keys_of("some") == ["b.inner.bias"]
    x = torch.randn(2, 3)
    assert torch.equal(made(x), model(x))
    assert torch.equal(made.base(x), model.base(x))
    with pytest.raises(ModelError, match="a stage each"):
        SplitModel({"a": torch.nn.Linear(3, 4)}).crossed_by(torch.nn.Identity(), torch.nn.Identity())


def test_what_is_decoded_is_the_nearest_of_all_centroids() -> None:
    z = torch.randn(7, 10, generator=generator(0)).relu()
    book = fitted(pieces_of(z, 4), 5, 3, None, generator(1))
    codes = places(z, book)
    assert codes.shape == (7, 3)
    assert book.numbers.dtype == torch.int8
    back = decoded(codes, book, 10)
    padded = torch.cat([z, torch.zeros(7, 2)], 1)
    for row in range(7):
        for piece in range(3):
            wanted = padded[row, 4 * piece : 4 * piece + 4]
            distances = [float((wanted - c).square().sum()) for c in book.centroids]
            assert distances[int(codes[row, piece])] <= min(distances) + 1e-5
    assert torch.equal(places(torch.cat([back, torch.zeros(7, 2)], 1)[:, :12], book), codes)
    # as many centroids as pieces there are: nothing is lost but what eight bits lose
    exact = fitted(pieces_of(z, 4), 21, 3, None, generator(1))
    assert float((decoded(places(z, exact), exact, 10) - z).abs().max()) <= float(z.max()) / 127 + 1e-6


def test_sweeps_only_improve_and_go_on_from_the_last_codebook() -> None:
    pieces = torch.randn(400, 4, generator=generator(2))

    def error(book: Codebook) -> float:
        codes = places(pieces, replace(book))
        return float((decoded(codes, book, 4) - pieces).square().mean())

    errors = [error(fitted(pieces, 16, sweeps, None, generator(3))) for sweeps in (0, 1, 4, 16)]
    assert errors == sorted(errors, reverse=True)
    kept = fitted(pieces, 16, 4, None, generator(3))
    warm, cold = fitted(pieces, 16, 1, kept, generator(4)), fitted(pieces, 16, 1, None, generator(4))
    assert error(warm) < error(cold)
    counts = torch.bincount(places(pieces, warm).flatten().long(), minlength=16)
    assert float(counts[:8].sum()) > float(counts[8:].sum())  # in the order of their use


def uploads(f: Federation) -> dict[int, list[CodedOutputs]]:
    assert isinstance(f.engine, Recorder)
    found: dict[int, list[CodedOutputs]] = {}
    for _, client, message in f.engine.up:
        assert isinstance(message, CodedOutputs)
        found.setdefault(client, []).append(message)
    return found


QUANTISED: dict[str, Any] = FAST | {"length": 3, "codewords": 8, "refresh": 3, "fitted_rows": 10, "sweeps": 2}


def test_codebooks_travel_now_and_then_and_what_goes_down_is_what_they_say() -> None:
    f = federation(IFLQuantised(**QUANTISED), models=MIXED, wrap=Recorder, rounds=7)
    sent = uploads(f)
    for client, messages in sent.items():
        assert [len(m.books) for m in messages] == [1, 0, 0, 1, 0, 0, 1]
        book = [m.books[0] for m in messages if m.books]
        assert torch.equal(resident(f, client).state.books[0].numbers, book[-1].numbers)
        assert torch.equal(f.server.state.books[client].numbers, book[-1].numbers)
    assert isinstance(f.engine, Recorder)
    for number, (_, _, down) in enumerate(f.engine.down[::3]):
        assert isinstance(down, FusionPairs)
        for client, pair in enumerate(down.pairs):
            book_then = sent[client][number - number % 3].books[0]
            assert torch.equal(pair.z, decoded(sent[client][number].codes, book_then, 8))
            assert torch.equal(pair.y, sent[client][number].y)


def test_who_is_away_keeps_its_codebook_and_so_does_a_resume(tmp_path: Path) -> None:
    """Half of the clients in a round: a codebook counts its own client's uploads, and newcomers begin with one."""
    method = IFLQuantised(**QUANTISED, participation=0.5)
    once = federation(method, clients=4, wrap=Recorder, rounds=8)
    sent = uploads(once)
    assert any(len(messages) not in (0, 8) for messages in sent.values())
    for messages in sent.values():
        assert [len(m.books) for m in messages] == [int(n % 3 == 0) for n in range(len(messages))]
    begun = federation(method, clients=4, workers=2, rounds=5)
    try:
        saved = begun.save(tmp_path)
        resumed = Federation(begun.setup, begun.engine)
        resumed.load(tmp_path, 5, saved)
        for _ in range(3):
            resumed.run_round()
        assert same_bits(everything_owned(resumed), everything_owned(once))
    finally:
        begun.engine.close()


class Failing(IFLQuantised):
    """Client 1 fails when it has sent its new codebook's first codes, and is put back; the others go on."""

    def round(self, server: Server[Any], clients: Clients) -> None:
        sent = clients.call(self.encode, minimum=1)
        books = dict(server.state.books) | {c: m.books[0] for c, m in sent.items() if m.books}
        server.state = replace(server.state, books=books)
        pairs = tuple(FusionOutputs(decoded(m.codes, books[c], 8), m.y) for c, m in sent.items())
        clients.call(self.train_modular, FusionPairs(pairs))

    @on_client
    def encode(self, client: Client[Any]) -> CodedOutputs:
        found = IFLQuantised.encode.function(self, client)
        if client.id == 1 and client.round in (1, 4):
            raise ValueError("away")
        return found


def test_a_client_whose_upload_was_lost_sends_its_codebook_again() -> None:
    f = federation(Failing(**QUANTISED), wrap=Recorder, rounds=6)
    sent = uploads(f)
    assert [len(m.books) for m in sent[0]] == [1, 0, 0, 1, 0, 0]
    assert [len(m.books) for m in sent[1]] == [1, 0, 0, 1]  # of rounds 2, 3, 5, 6
    assert resident(f, 1).state.uploads == 4


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (lambda m: replace(m, books=()), "its first outputs need one"),
        (lambda m: replace(m, books=m.books * 2), "sent 2 codebooks"),
        (lambda m: replace(m, codes=m.codes + 8), "below 8"),
        (lambda m: replace(m, codes=m.codes[:, :1]), "3 a row"),
        (lambda m: replace(m, books=(replace(m.books[0], numbers=m.books[0].numbers[:4]),)), r"shape \(4, 3\)"),
        (lambda m: replace(m, books=(replace(m.books[0], exponent=torch.tensor(23, dtype=torch.int8)),)), r"2\^23"),
    ],
)
def test_what_cannot_be_decoded_is_its_senders_fault(lie: Any, reason: str) -> None:
    class Lying(IFLQuantised):
        @on_client
        def encode(self, client: Client[Any]) -> CodedOutputs:
            found: CodedOutputs = IFLQuantised.encode.function(self, client)
            return lie(found) if client.id == 2 else found

    with pytest.raises(ClientError, match=reason) as refused:
        federation(Lying(**QUANTISED), rounds=1)
    assert refused.value.client == 2


@pytest.mark.usefixtures("no_report")
def test_artefacts_of_a_sketch_compose_and_fit_no_others(tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "data": "digits", "clients": 2, "models": ["logistic", "mlp"], "fusion_width": 12, "rounds": 1, "eval_every": 1,
        "workers": 1, "progress": interfuse.Silent(),
    }  # fmt: skip
    small = {"local_steps": 1, "batch_size": 8}
    run = interfuse.run("ifl-sketch", settings=small | {"directions": 5}, out=tmp_path / "run", **common)
    assert run.summary.uplink_bytes.raw == 2 * 8 * (4 * 5 + 1)
    base, modular = (run.export(tmp_path / part, i, part) for i, part in ((0, "base"), (1, "modular")))
    x = load("digits").x_test[:20]
    assert torch.allclose(composed(base, [modular], x), run.compose(0, 1)(x), atol=1e-5)
    assert base.manifest.fusion.features["x"].shape == (5,)
    other = interfuse.run("ifl", settings=small, out=tmp_path / "other", **common)
    with pytest.raises(ArtefactError, match="do not fit"):
        composed(base, [other.export(tmp_path / "wide", 1, "modular")], x)
