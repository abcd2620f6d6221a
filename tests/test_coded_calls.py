"""Codecs of a federation: in simulation everybody gets what the bytes on a wire would bring."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
import zstandard
from jaxtyping import Float32
from torch import Tensor
from worlds import (
    Recorder,
    entries,
    everything_owned,
    federation,
    fitting,
    resident,
    same_bits,
    setup_of,
    tiny,
    tiny_dataset,
    wide,
)

from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.errors import ConfigError, MessageError
from interfuse.evaluation import evaluate
from interfuse.families.fusion import FusionPairs
from interfuse.federation import Federation
from interfuse.handler import on_client
from interfuse.messages import (
    Change,
    Disclosure,
    Features,
    Labels,
    Message,
    Parameters,
    Precision,
    Weights,
    flatten,
    leaves,
)
from interfuse.messages.encoding import decode, encode, rounded, sizes
from interfuse.method import Method
from interfuse.methods import built_in, find
from interfuse.methods.fedavg import FedAvg
from interfuse.methods.fedbuff import FedBuff
from interfuse.methods.fednova import FedNova, Normalised
from interfuse.methods.ifl import IFL
from interfuse.randomness import generator
from interfuse.server import Server
from interfuse.wire import Codecs, Limits

SETTINGS: dict[str, Any] = {"models": [wide], "clients": 3}
SMALL = {"local_steps": 2, "batch_size": 4}
CODECS = ({"default": "int4+zstd"}, {"default": "int8+ef"}, {"default": "fp16"}, {"default": "zstd"},
          {"default": "topk:0.3+int8+ef"}, {"default": "topk:0.3+zstd"})  # fmt: skip


METHODS = sorted(built_in())
PAIRS = [
    pytest.param(name, codecs, id=f"{name}-{codecs['default']}")
    for i, name in enumerate(METHODS)
    for j, codecs in enumerate(CODECS)
    if name in ("ifl", "fedavg") or j % 3 == i % 3
]
"""Codecs go by what a field is, whatever the method: two for each method, all for the two that are used most."""


@pytest.mark.parametrize(("name", "codecs"), PAIRS)
def test_every_message_is_what_its_bytes_bring_and_the_ledger_counts_those(name: str, codecs: dict[str, str]) -> None:
    method = tiny(name)
    f = federation(method, rounds=2, wrap=Recorder, codecs=codecs, clients=3, models=fitting(method, [wide]))
    assert isinstance(f.engine, Recorder)
    rules, counted = Codecs.parse(codecs), {}
    for request, client, message in (*f.engine.down, *f.engine.up):
        data = encode(message, rules)
        keys = f.setup.profiles[client].keys
        assert same_bits(flatten(decode(data, type(message), f.setup.dims, keys, codecs=rules)), flatten(message))
        again = rounded(message, rules, generator(99))
        assert same_bits(flatten(again), flatten(message))
        counted.setdefault((request.round, request.handler, client, type(message).__name__), []).append(len(data))
    found: dict[Any, list[int]] = {}
    for e in entries(f):
        found.setdefault((e.round, e.handler, e.client, e.kind), []).append(e.wire)
    assert {place: sorted(sent) for place, sent in counted.items()} == {p: sorted(sent) for p, sent in found.items()}


@pytest.mark.parametrize("method", [IFL(**SMALL), FedAvg(**SMALL)], ids=["ifl", "fedavg"])  # type: ignore[arg-type]
def test_equal_bits_for_any_workers_any_evaluation_and_after_a_resume(method: Method, tmp_path: Path) -> None:
    codecs = {"default": "int4+ef+zstd"}
    f = federation(method, rounds=4, codecs=codecs, **SETTINGS)
    once = everything_owned(f)
    counted = [(e.round, e.client, e.direction, e.wire) for e in entries(f)]
    if isinstance(method, FedAvg):
        assert any("feedback/Weights" in name for name in once)
    for workers in (1, 2):
        begun = federation(method, workers=workers, rounds=2, codecs=codecs, **SETTINGS)
        try:
            evaluate(begun, full=False)
            saved = begun.save(tmp_path)
            resumed = Federation(begun.setup, begun.engine)
            resumed.load(tmp_path, 2, saved)
            resumed.run_round()
            evaluate(resumed, full=False)
            resumed.run_round()
            assert same_bits(everything_owned(resumed), once)
            tail = [(e.round, e.client, e.direction, e.wire) for e in entries(resumed) if e.heading == "training"]
            assert tail == [line for line in counted if line[0] > 2]
        finally:
            begun.engine.close()


def test_the_seed_decides_the_rounding_and_nothing_else_of_a_message() -> None:
    sent = Weights({"w": torch.linspace(-1, 1, 60).reshape(2, 30), "b": torch.linspace(0, 1, 7)})
    rules = Codecs.parse({"default": "int2"})
    a, b, c = (rounded(sent, rules, generator(seed)).tensors for seed in (0, 1, 0))
    assert same_bits(a, c)
    assert not torch.equal(a["w"], b["w"])
    assert torch.equal(a["b"], sent.tensors["b"])  # a bias


def test_without_codecs_a_message_is_the_very_same_object() -> None:
    sent = Weights({"w": torch.ones(2)})
    assert rounded(sent, Codecs(), generator(0)) is sent
    assert encode(sent, Codecs()) == encode(sent)
    assert encode(sent, Codecs.parse({"default": "none"})) == encode(sent)


def test_raw_bytes_stay_and_those_on_the_wire_are_exact() -> None:
    """One upload: 8 rows of 8 numbers and labels. int4: 10 bytes of head, 8 · 3 of scales, 8 · 4 of codes."""

    def uplink(codecs: Mapping[str, str]) -> tuple[int, int, int]:
        method = IFL(local_steps=1, batch_size=8)
        f = federation(method, rounds=1, wrap=Recorder, codecs=codecs, **SETTINGS)
        assert isinstance(f.engine, Recorder)
        first = next(e for e in entries(f) if e.direction == "up")
        return first.raw, first.wire, len(encode(f.engine.up[0][2]))

    raw, wire, plain = uplink({})
    assert (raw, wire) == (8 * 8 * 4 + 8, plain)
    raw, wire, plain = uplink({"FusionOutputs.z": "int4"})
    frame, batch, d, rank_and_type = 1 + 4, 1, 1, 2
    assert raw == 8 * 8 * 4 + 8
    assert wire in {frame + batch + d + (24 + 32) + rank_and_type + 1 + labels for labels in (1, 2)}  # of two or three


class Constant(Message):
    """Always the same."""

    tensors: Parameters


@dataclass(frozen=True)
class Repeats(Method):
    """Clients send the same numbers in every round."""

    def round(self, server: Server, clients: Clients) -> None:
        clients.call(self.send)

    @on_client
    def send(self, client: Client) -> Constant:
        return same_numbers()


def same_numbers() -> Constant:
    return Constant({"classifier.weight": torch.linspace(-1, 1, 24).reshape(3, 8) * 0.7})


@pytest.mark.parametrize("values", ["int2", "int4"])
def test_with_error_feedback_the_sum_of_all_that_was_sent_is_off_by_one_rounding(values: str) -> None:
    rounds, wanted = 30, same_numbers().tensors["classifier.weight"]
    off = {}
    for codec in (values, f"{values}+ef"):
        f = federation(Repeats(), rounds=rounds, wrap=Recorder, clients=1, codecs={"default": codec})
        assert isinstance(f.engine, Recorder)
        total = torch.stack([m.tensors["classifier.weight"].double() for _, _, m in f.engine.up]).sum(0)  # type: ignore[attr-defined]
        off[codec] = float((total - rounds * wanted.double()).abs().max())
        lost = resident(f, 0).feedback
        if codec.endswith("ef"):
            kept = lost["Constant/tensors/classifier.weight"].double()
            assert torch.allclose(total + kept, rounds * wanted.double(), atol=1e-4)
        else:
            assert lost == {}
    assert off[f"{values}+ef"] < off[values] / 2


@dataclass(frozen=True)
class HandsOut(Repeats):
    """The server sends them too, to each client a copy of its own, or one to all."""

    alike: bool = False

    def round(self, server: Server, clients: Clients) -> None:
        super().round(server, clients)
        one = same_numbers()
        clients.call(self.take, one if self.alike else {client: same_numbers() for client in clients})

    @on_client
    def take(self, client: Client, received: Constant) -> None: ...


def travelled(rounds: int, *, alike: bool = False) -> tuple[Tensor, Tensor]:
    """What arrived, at the server and at the clients: round, client, and the rows of the tensor."""
    f = federation(HandsOut(alike), rounds=rounds, wrap=Recorder, codecs={"default": "int4"})
    assert isinstance(f.engine, Recorder)

    def in_order(moved: Any) -> Tensor:
        found = {(r.round, client): message.tensors["classifier.weight"] for r, client, message in moved}
        return torch.stack([torch.stack([found[round + 1, c] for c in f.clients]) for round in range(rounds)])

    return in_order(f.engine.up), in_order(f.engine.down)


def test_every_client_and_round_has_rounding_noise_of_its_own_and_its_mean_is_right() -> None:
    rounds, wanted = 200, same_numbers().tensors["classifier.weight"]
    grid = torch.where(wanted.amin(1) < 0, 7, 15)  # a row without negative numbers has all steps above 0
    step = (wanted.abs().amax(1) / grid)[:, None]
    for arrived in travelled(rounds):
        # some coincide, as many numbers lie near the grid; with one noise for all clients at most a third would differ
        assert len({rows.numpy().tobytes() for of_round in arrived for rows in of_round}) > rounds * 3 / 2
        # a number is rounded to either of two neighbours, a step apart, so by Hoeffding's inequality the mean of so
        # many is off by more than this many steps with a probability below 1e-6 for all numbers of all clients together
        most = math.sqrt(math.log(2e6 * arrived[0].numel()) / (2 * rounds))
        assert most < 0.25
        off = (arrived.double().mean(0) - wanted).abs() / step
        assert float(off.max()) < most + 1e-3  # a scale has 16 bits
        assert float(((arrived[0] - wanted).abs() / step).max()) > 3 * most


def test_one_message_for_all_is_rounded_once() -> None:
    _, arrived = travelled(3, alike=True)
    assert all(torch.equal(of_round[0], rows) for of_round in arrived for rows in of_round)
    assert not torch.equal(arrived[0], arrived[1])


MEANT: list[Message] = []
"""What clients meant to send, before any codec."""


class WatchedFedBuff(FedBuff):
    @on_client
    def train(self, client: Client, received: Weights) -> Change:
        MEANT.append(FedBuff.train.function(self, client, received))
        return MEANT[-1]  # type: ignore[return-value]


class WatchedFedNova(FedNova):
    @on_client
    def train(self, client: Client, received: Weights) -> Normalised:
        MEANT.append(FedNova.train.function(self, client, received))
        return MEANT[-1]  # type: ignore[return-value]


@pytest.mark.parametrize("codec", ["topk:0.1", "topk:0.1+int8"])
@pytest.mark.parametrize(
    ("method", "field"), [(WatchedFedBuff, "Change.change"), (WatchedFedNova, "Normalised.change")]
)
def test_of_thinned_out_changes_the_sum_that_was_sent_is_that_which_was_meant_but_for_one_residual(
    method: type[Method], field: str, codec: str
) -> None:
    name, _, part = field.partition(".")
    for text in (codec, f"{codec}+ef"):
        MEANT.clear()
        f = federation(
            method(local_steps=3, lr=0.1), rounds=12, wrap=Recorder, clients=1, models=[wide],
            codecs={field: text},
        )  # type: ignore[call-arg]  # fmt: skip
        assert isinstance(f.engine, Recorder)
        sent = [flatten(message) for _, _, message in f.engine.up]
        meant, lost = [flatten(message) for message in MEANT], resident(f, 0).feedback
        assert len(sent) == len(meant) >= 12
        for path in (path for path in sent[0] if path.startswith(f"{part}/") and sent[0][path].ndim == 2):
            assert all(m[path].count_nonzero() <= len(m[path]) * math.ceil(0.1 * m[path].shape[1]) for m in sent)
            off = sum(a[path].double() - b[path].double() for a, b in zip(meant, sent, strict=True))
            assert isinstance(off, Tensor)
            largest = max(float(m[path].abs().max()) for m in meant)
            if text == codec:
                assert lost == {}
                assert float(off.abs().max()) > largest
            else:
                assert torch.allclose(off, lost[f"{name}/{path}"].double(), atol=1e-5 * largest)
        biases = {path for path in sent[0] if path.startswith(part) and sent[0][path].ndim == 1}
        assert biases
        assert all(torch.equal(a[path], b[path]) for a, b in zip(meant, sent, strict=True) for path in biases)


def test_the_default_leaves_out_what_a_field_forbids_and_does_the_rest() -> None:
    """Of ``topk:0.1+int8+ef`` FedAvg's parameters are rounded only, FedNova's changes are thinned out too."""
    rules = {"default": "topk:0.1+int8+ef"}
    f = federation(FedAvg(**SMALL), rounds=2, wrap=Recorder, codecs=rules, **SETTINGS)  # type: ignore[arg-type]
    assert isinstance(f.engine, Recorder)
    for _, _, message in (*f.engine.down, *f.engine.up):
        matrices = [tensor for tensor in flatten(message).values() if tensor.ndim == 2]
        assert all(int(tensor.count_nonzero()) > 0.5 * tensor.numel() for tensor in matrices)
        assert all(len(row.unique()) <= 255 for tensor in matrices for row in tensor)
        assert len(encode(message, Codecs.parse(rules))) == len(encode(message, Codecs.parse({"default": "int8"})))
    assert resident(f, 0).feedback
    unthinned = federation(FedAvg(**SMALL), rounds=2, codecs={"default": "int8+ef"}, **SETTINGS)  # type: ignore[arg-type]
    assert same_bits(everything_owned(f), everything_owned(unthinned))
    g = federation(FedNova(**SMALL), rounds=1, wrap=Recorder, codecs=rules, **SETTINGS)  # type: ignore[arg-type]
    assert isinstance(g.engine, Recorder)
    sent = [tensor for path, tensor in flatten(g.engine.up[0][2]).items() if path.startswith("change/")]
    assert all(
        int((row != 0).sum()) <= math.ceil(0.1 * len(row)) for tensor in sent if tensor.ndim == 2 for row in tensor
    )
    with pytest.raises(ConfigError, match="nothing that FedAvg sends may be thinned out"):
        federation(FedAvg(**SMALL), codecs={"default": "topk:0.1+ef"}, **SETTINGS)  # type: ignore[arg-type]


def test_windows_that_roll_get_nothing_back() -> None:
    """Under a key of FedRolex other channels travel in each round: what rounding lost of some is not owed to others."""
    models = ["resnet10-narrow@0.25", "resnet10-narrow@0.5"]
    for name, keeps in (("heterofl", True), ("fedrolex", False)):
        method = find(name).configure({"local_epochs": 1, "batch_size": 20})
        dataset = tiny_dataset(shape=(1, 8, 8))
        f = federation(method, rounds=1, clients=2, models=models, dataset=dataset, codecs={"default": "int4+ef"})
        assert bool(resident(f, 0).feedback) is keeps
        setup_of(method, clients=2, models=models, dataset=dataset, codecs={"TrainedOnClasses.tensors": "int4"})


class Mixed(Message):
    """A field of every kind."""

    z: Features
    y: Labels
    count: int
    exact: Annotated[Features, Precision.EXACT]
    thin: Annotated[Parameters, Precision.SPARSE]
    weights: Parameters
    counts: Annotated[Float32[Tensor, "classes"], Disclosure.STATISTICS]


def test_what_a_codec_may_do_follows_from_the_annotation() -> None:
    assert {leaf.field.partition(".")[2]: leaf.precision.value for leaf in leaves(Mixed)} == {
        "z": "sparse", "y": "exact", "count": "exact", "exact": "exact", "thin": "sparse", "weights": "rounded",
        "counts": "exact",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "codecs", "reason"),
    [
        ("ifl", {"FusionOutputs.y": "int4"}, "FusionOutputs.y has to arrive exactly"),
        ("ifl", {"FusionOutput.z": "int4"}, "did you mean 'FusionOutputs.z'"),
        ("ifl", {"FusionOutputs.z": "int4+ef"}, "something new each time"),
        ("ifl", {"Weights": "int4"}, "the method sends no 'Weights'"),
        ("fedavg", {"Weights.tensors": "topk:0.1"}, "may be rounded, but not thinned out"),
        ("fedavg", {"Weights": "topk:0.1+ef"}, "may be rounded, but not thinned out"),
        ("fednova", {"Normalised.statistics": "topk:0.1"}, "may be rounded, but not thinned out"),
        ("fedbuff", {"Weights.tensors": "topk:0.1"}, "may be rounded, but not thinned out"),
        ("fedrolex", {"TrainedOnClasses.tensors": "int4+ef"}, "something new each time"),
        ("fedrolex", {"TrainedOnClasses": "int4+ef"}, "something new each time"),
    ],
)
def test_a_codec_that_a_field_forbids_is_refused(method: str, codecs: dict[str, str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        setup_of(find(method)(), codecs=codecs, **SETTINGS)


def test_labels_may_travel_by_zstd_and_a_kind_may_be_left_alone() -> None:
    codecs = {"FusionOutputs.y": "zstd", "default": "int4", "FusionPairs": "none"}
    f = federation(IFL(local_steps=1, batch_size=8), rounds=1, wrap=Recorder, codecs=codecs, **SETTINGS)
    assert isinstance(f.engine, Recorder)
    down = next(message for _, _, message in f.engine.down)
    assert isinstance(down, FusionPairs)
    data = encode(down, Codecs.parse(codecs))
    for pair in down.pairs:
        assert zstandard.ZstdCompressor().compress(pair.y.numpy().tobytes()) in data
        assert pair.z.numpy().tobytes() in data


def test_a_message_by_another_codec_is_refused() -> None:
    dims, keys = {"classes": 3, "d": 4}, {"w": (2, 3)}
    sent = Weights({"w": torch.ones(2, 3)})
    texts = ("none", "zstd", "fp16", "bf16", "int8", "int8:tensor", "int4+zstd")
    for a in texts:
        for b in texts:
            theirs = Codecs.parse({"default": a})
            data = encode(rounded(sent, theirs, generator(0)), theirs)
            rules = Codecs.parse({"default": b})
            if a == b:
                found = decode(data, Weights, dims, keys, codecs=rules).tensors
                assert same_bits(found, rounded(sent, rules, generator(0)).tensors)
            else:
                with pytest.raises(MessageError):
                    decode(data, Weights, dims, keys, codecs=rules)
    with pytest.raises(MessageError, match="round it first"):
        encode(Weights({"w": torch.tensor([[1.0, 0.3]])}), Codecs.parse({"default": "int4"}))


def test_all_tensors_of_a_message_together_stay_within_the_limit() -> None:
    rules = Codecs.parse({"default": "int2+zstd"})
    sent = Weights({str(i): torch.zeros(100, 100) for i in range(10)})
    data = encode(sent, rules)
    assert len(data) < 4000
    limits = Limits(max_bytes=10 * 40_000)
    assert len(decode(data, Weights, {}, limits=limits, codecs=rules).tensors) == 10
    with pytest.raises(MessageError, match="at most"):
        decode(data, Weights, {}, limits=Limits(max_bytes=10 * 40_000 - 1), codecs=rules)


def test_measurements_travel_as_they_are() -> None:
    f = federation(IFL(local_steps=1), rounds=1, wrap=Recorder, codecs={"default": "int2"}, **SETTINGS)
    assert isinstance(f.engine, Recorder)
    f.engine.up.clear()
    f.exchange.ledger.drain()
    evaluate(f, full=True)
    measured = [(e.wire, e.kind) for e in entries(f) if e.direction == "up"]
    assert "FusedTest" in {kind for _, kind in measured}
    assert measured == [(sizes(message)[1], type(message).__name__) for _, _, message in f.engine.up]
