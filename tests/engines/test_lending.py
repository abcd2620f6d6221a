"""What a host lends: modules go from client to client, given tensors are there once, clients are their tensors."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import pytest
import torch
from jaxtyping import Int64
from torch import Tensor, nn
from worlds import (
    everything_owned,
    federation,
    in_process,
    live_model,
    llama2,
    resident,
    same_bits,
    tiny,
    tiny_dataset,
    wide,
)

from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.data import Batch
from interfuse.errors import ClientError, ConfigError, ModelError
from interfuse.federation import Federation
from interfuse.handler import on_client
from interfuse.messages import Dims, Disclosure, Message, Parameters, State, Weights
from interfuse.method import NOTHING, Method, Network
from interfuse.methods import built_in
from interfuse.models import SplitModel
from interfuse.server import Server
from interfuse.training import cross_entropy

WIDE = 300


def with_backbone(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """A frozen first stage with normalisation, common to all clients of the architecture, and a head of one's own."""
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(5, WIDE), nn.BatchNorm1d(WIDE), nn.Dropout(0.5), nn.ReLU())
    stages = {"backbone": backbone, "adapter": nn.Linear(WIDE, width), "classifier": nn.Linear(width, classes)}
    return SplitModel(stages, given=("backbone",))


def on_models(method: str, **settings: Any) -> Federation:
    return federation(built_in()[method].configure(settings), models=[with_backbone], clients=5)


@pytest.mark.parametrize("method", ["local", "fedavg", "ifl", "lg-fedavg", "splitfed-v1"])
def test_a_given_backbone_is_in_memory_once_never_changes_and_is_in_no_commit(method: str, tmp_path: Path) -> None:
    f = on_models(method)
    first = f.setup.build("with_backbone", "another")
    before = {key: tensor.clone() for key, tensor in first.live(first.given_keys).items()}
    for _ in range(2):
        f.run_round()
    places = {tensor.data_ptr() for c in f.clients for tensor in given_in(resident(f, c).model).values()}
    assert places == {tensor.data_ptr() for tensor in given_in(first).values()}
    assert len(places) == len(before) == 7
    assert same_bits(before, given_in(first))
    owned = everything_owned(f)
    assert owned
    assert not [key for key in owned if "backbone" in key]
    assert not [key for profile in f.clients.profiles.values() for key in profile.keys if "backbone" in key]


def given_in(model: SplitModel) -> dict[str, Tensor]:
    return model.live(sorted(model.given_keys))


def addresses(model: SplitModel) -> list[int]:
    return [tensor.data_ptr() for tensor in given_in(model).values()]


@pytest.mark.parametrize("method", ["sft", "fedmosaic"])
def test_what_is_below_adapters_is_in_memory_once(method: str) -> None:
    f = federation(tiny(method, local_steps=1), models=[llama2], clients=8, rounds=1)
    once = addresses(f.setup.build("llama2", "another"))
    assert len(once) > 10
    assert all(addresses(resident(f, client).model) == once for client in f.clients)


class Places(Message):
    pid: int
    memory: Annotated[Int64[Tensor, "tensors"], Disclosure.STATISTICS]


@dataclass(frozen=True)
class Where(Method):
    """Clients say in which process they are, and where what is given lies in its memory."""

    @on_client
    def where(self, client: Client) -> Places:
        return Places(os.getpid(), torch.tensor(addresses(client.model)))


def test_workers_make_no_backbone_of_their_own() -> None:
    """They are forked when it is there: the same addresses are the same pages, as long as nobody writes to them."""
    f = federation(Where(), models=[with_backbone], clients=5, workers=2, start=False)
    try:
        replies = f.clients.call(cast(Where, f.method).where)
        assert len({reply.pid for reply in replies.values()}) == 2
        once = addresses(f.setup.build("with_backbone", "another"))
        assert all(reply.memory.tolist() == once for reply in replies.values())
    finally:
        f.engine.close()


@pytest.mark.parametrize("method", ["local", "fedavg", "ifl"])
def test_a_run_on_a_given_backbone_has_equal_bits_after_a_resume_and_on_any_engine(method: str, tmp_path: Path) -> None:
    kind = built_in()[method].configure({})
    settings: dict[str, Any] = {"models": [with_backbone], "clients": 5}
    wanted = everything_owned(federation(kind, rounds=3, **settings))
    begun = federation(kind, rounds=1, **settings)
    saved = begun.save(tmp_path)
    for workers in (1, 3):
        again = federation(kind, workers=workers, **settings)
        try:
            again.load(tmp_path, 1, saved)
            for _ in range(2):
                again.run_round()
            found = everything_owned(again)
            assert same_bits(found, {key: wanted[key] for key in found})
            assert {key for key in wanted if key.startswith("client")} <= found.keys()
        finally:
            again.engine.close()


@dataclass(frozen=True)
class Counting(Method):
    """FedAvg's exchange, whose clients count the models that are alive in their process."""

    participants: int = 3

    def keeps(self) -> frozenset[str]:
        return NOTHING

    def round(self, server: Server, clients: Clients) -> None:
        start = Weights(server.new_model("wide").tensors())
        chosen = clients.only(clients.ids[: self.participants])
        counts: list[int] = []
        chosen.call(self.train, start, each=lambda client, reply: counts.append(reply.models))
        server.scratch["most"] = max(counts)

    @on_client
    def train(self, client: Client, received: Weights) -> Alive:
        client.model.load(received.tensors)
        client.fit(cross_entropy, steps=1, lr=0.1)
        return Alive(sum(issubclass(type(found), SplitModel) for found in gc.get_objects()))


class Alive(Message):
    models: int


@pytest.mark.parametrize("participants", [2, 10])
def test_live_models_do_not_follow_the_cohort(participants: int) -> None:
    gc.collect()
    before = sum(issubclass(type(found), SplitModel) for found in gc.get_objects())
    f = federation(Counting(participants), models=[wide], clients=10, rounds=1)
    f.round = 1
    f._enter(2, "training")
    f.method.round(f.server, f.clients)
    assert f.server.scratch["most"] - before <= 2  # one at work, and perhaps one that is about to go


@pytest.mark.parametrize("workers", [1, 2])
def test_each_hands_replies_over_in_the_order_of_clients(workers: int) -> None:
    f = federation("fedavg", clients=7, workers=workers, dataset=tiny_dataset(rows=90))
    seen: list[tuple[ClientId, dict[str, Tensor]]] = []
    try:
        handler, given = cast(Any, f.method).train, Weights(f.server.state.weights)
        f._enter(1, "training")
        folded = f.clients.call(handler, given, each=lambda c, reply: seen.append((c, reply.tensors)))
        assert list(folded.values()) == [None] * 7
        again = federation("fedavg", clients=7, dataset=tiny_dataset(rows=90))
        again._enter(1, "training")
        together = again.clients.call(cast(Any, again.method).train, given)
    finally:
        f.engine.close()
    assert [client for client, _ in seen] == list(range(7))
    assert all(same_bits(tensors, together[client].tensors) for client, tensors in seen)


@dataclass(frozen=True)
class Sending(Method):
    """Answers with live tensors of the model, of which it keeps a part or nothing."""

    kept: frozenset[str] = NOTHING

    def keeps(self) -> frozenset[str]:
        return self.kept

    def round(self, server: Server[Any], clients: Clients) -> None: ...

    @on_client
    def send(self, client: Client) -> Weights:
        for parameter in client.model.parameters_of().values():
            parameter.data.fill_(float(client.id))
        client.scratch["live"] = client.model.live(client.model.keys_of())
        return Weights(client.tensors())


@pytest.mark.parametrize("kept", [NOTHING, frozenset({"modular"})])
def test_a_reply_takes_along_the_memory_of_what_is_not_kept_and_copies_the_rest(kept: frozenset[str]) -> None:
    f = federation(Sending(kept), models=[wide], clients=5, dataset=tiny_dataset(rows=30))
    f._enter(1, "training")
    replies = f.clients.call(cast(Any, f.method).send)
    for client, reply in replies.items():
        live = resident(f, client).scratch["live"]
        keeps = {key for key in live if kept and key.startswith("modular")}
        assert {key for key, t in reply.tensors.items() if t.data_ptr() != live[key].data_ptr()} == keeps
        assert all(bool((tensor == client).all()) for tensor in reply.tensors.values())
    f.clients.call(cast(Any, f.method).send)
    assert all(bool((t == client).all()) for client, reply in replies.items() for t in reply.tensors.values())


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_fold_raises_ends_the_round_and_leaves_the_engine_in_order(workers: int) -> None:
    f = federation("fedavg", clients=7, workers=workers, dataset=tiny_dataset(rows=90))

    def fold(client: ClientId, reply: object) -> None:
        if client == 2:
            raise LookupError("no")

    try:
        handler, given = cast(Any, f.method).train, Weights(f.server.state.weights)
        with pytest.raises(LookupError, match="no"):
            f.clients.call(handler, given, each=fold)
        f.engine.end_round()
        assert len(f.clients.call(handler, given)) == 7
    finally:
        f.engine.close()


# --- further networks -----------------------------------------------------------------------------


def decoder(d: int, inputs: int) -> SplitModel:
    return SplitModel({"hidden": nn.Linear(d, 7), "out": nn.Linear(7, inputs)})


def reconstruct(model: SplitModel, batch: Batch, step: int) -> Tensor:
    return nn.functional.mse_loss(model(batch.x), cast(Tensor, batch.y))


class Counted(State):
    calls: int


@dataclass(frozen=True)
class WithDecoder(Method):
    """A client trains a decoder of its own beside its model, and a scratch one that it must load."""

    def networks(self, owner: Profile | None, dims: Dims) -> Mapping[str, Network]:
        beside = {"decoder": Network(partial(decoder, dims["d"], 5))}
        return beside | ({} if owner is None else {"scratch": Network(partial(decoder, dims["d"], 5), NOTHING)})

    def new_client(self, client: Client[Counted]) -> Counted:
        return Counted(0)

    def start(self, server: Server[Any], clients: Clients) -> None:
        server.scratch["rounds"] = server.rounds

    def round(self, server: Server, clients: Clients) -> None:
        clients.call(self.train)

    @on_client
    def train(self, client: Client[Counted]) -> None:
        client.fit(cross_entropy, steps=2, lr=0.1)
        assert all(t.isnan().all() for t in client.network("scratch").tensors().values())
        batch = client.batch(8)
        with client.model.evaluating():
            z = client.model.base(batch.x)
        pairs = [Batch(z, cast(Any, batch.x))]
        client.fit(reconstruct, pairs, network="decoder", lr=0.1, optimizer="adam", keep_optimizer="decoder")
        client.network("scratch").load(client.network("decoder").tensors())
        client.state = Counted(client.state.calls + 1)

    @on_client.continuing
    def peek(self, client: Client[Counted]) -> Weights:
        return Weights(client.network("scratch").tensors())


def test_a_second_network_is_owned_trained_committed_and_counted(tmp_path: Path) -> None:
    f = federation(WithDecoder(), models=[wide], rounds=1)
    first = {c: {k: t.clone() for k, t in resident(f, c).network("decoder").tensors().items()} for c in f.clients}
    assert not same_bits(first[0], first[1])
    assert f.exchange.steps.total() == 3 * 3
    saved = f.save(tmp_path)
    assert set(f.server.networks) == {"decoder"}
    wanted = everything_owned(federation(WithDecoder(), models=[wide], rounds=3))
    assert {key for key in wanted if "networks/decoder" in key}
    assert not {key for key in wanted if "scratch" in key}
    for workers in (1, 2):
        again = federation(WithDecoder(), models=[wide], workers=workers)
        try:
            again.load(tmp_path, 1, saved)
            for _ in range(2):
                again.run_round()
            found = everything_owned(again)
            assert same_bits(found, {key: wanted[key] for key in found})
            assert {key for key in wanted if key.startswith("client")} <= found.keys()
        finally:
            again.engine.close()


def test_a_continuing_handler_has_what_an_earlier_one_left_and_another_has_not() -> None:
    f = federation(WithDecoder(), models=[wide])
    f._enter(1, "training")
    method = cast(WithDecoder, f.method)
    f.clients.call(method.train)
    host = in_process(f)._host
    modules = {id(host._residents[c].client.networks["scratch"].module) for c in f.clients}
    assert len(modules) == 3  # each needs its own
    left = {c: {k: t.clone() for k, t in resident(f, c).network("decoder").tensors().items()} for c in f.clients}
    with pytest.raises(ClientError, match="unknown key"):  # a decoder is no part of the client's model
        f.clients.call(method.peek)
    assert all(same_bits(left[c], resident(f, c).network("scratch").tensors()) for c in f.clients)


@dataclass(frozen=True)
class Forgetful(Method):
    """Its second handler needs what the first one left, and does not say so."""

    def round(self, server: Server, clients: Clients) -> None:
        clients.call(self.draw)
        clients.call(self.use)

    @on_client
    def draw(self, client: Client) -> None:
        client.scratch["batch"] = client.batch(4)

    @on_client
    def use(self, client: Client) -> None:
        assert client.scratch["batch"]


def test_who_forgets_to_say_that_a_handler_continues_is_told() -> None:
    f = federation(Forgetful())
    with pytest.raises(ClientError, match=r"client 0 failed in use, .*KeyError: 'batch'.*@on_client\.continuing"):
        f.run_round()


def test_clients_of_one_architecture_share_a_module_and_not_their_tensors() -> None:
    f = federation("local", models=[wide], clients=4, rounds=1)
    host = in_process(f)._host
    modules = [host._residents[c].client.networks["model"].module for c in f.clients]
    assert len({id(module) for module in modules} - {id(None)}) == 1
    models = [{k: t.clone() for k, t in live_model(f, c).tensors().items()} for c in f.clients]
    assert not any(same_bits(models[0], other) for other in models[1:])


class Reassigning(nn.Module):
    """Some modules put a new tensor in the place of a buffer, instead of changing it."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen = self.seen + len(x)
        return x


def counting(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    return SplitModel(
        {"base.count": Reassigning(), "base.fc": nn.Linear(5, width), "modular": nn.Linear(width, classes)}
    )


def test_a_buffer_that_is_replaced_stays_with_its_client() -> None:
    f = federation("local", models=[counting], clients=3, rounds=2)
    owned = everything_owned(f)
    seen = [float(owned[f"client-0000{c}:networks/model/base.count.seen"]) for c in f.clients]
    assert seen == [2 * 10 * 16.0] * 3  # a share has 16 rows for training


# --- nothing but tensors of its own goes from client to client --------------------------------------


class Numbers(Message):
    value: float


def norms(f: Federation) -> list[float]:
    return [cast(Numbers, reply).value for reply in f.clients.call(cast(Any, f.method).work).values()]


@dataclass(frozen=True)
class Untidy(Method):
    """Handlers that leave something at their module, each in its own way."""

    def round(self, server: Server, clients: Clients) -> None:
        clients.call(self.work)


@dataclass(frozen=True)
class LeavingGradients(Untidy):
    @on_client
    def work(self, client: Client) -> Numbers:
        client.loss(client.model, client.batch(8), 0).backward()
        gradients = [p.grad.norm() for p in client.model.parameters() if p.grad is not None]
        return Numbers(float(torch.stack(gradients).norm()))


@dataclass(frozen=True)
class LeavingModes(Untidy):
    @on_client
    def work(self, client: Client) -> Numbers:
        found = sum(module.training for module in client.model.modules()) + sum(
            parameter.requires_grad for parameter in client.model.parameters()
        )
        if client.id == 0:
            client.model.eval().requires_grad_(False)
        return Numbers(found)


@dataclass(frozen=True)
class LeavingMessages(Untidy):
    """What a client keeps of a message for a later handler, and changes there, is nobody else's."""

    def round(self, server: Server, clients: Clients) -> None:
        clients.call(self.take, Weights(server.new_model("wide").tensors()))

    @on_client
    def take(self, client: Client, sent: Weights) -> None:
        client.scratch["sent"] = sent.tensors

    @on_client.continuing
    def work(self, client: Client) -> Numbers:
        for tensor in client.scratch["sent"].values():
            tensor.add_(1)
        return Numbers(float(sum(tensor.sum() for tensor in client.scratch["sent"].values())))


@pytest.mark.parametrize("kind", [LeavingGradients, LeavingModes, LeavingMessages])
def test_what_a_handler_leaves_at_a_module_reaches_nobody(kind: type[Method]) -> None:
    found = []
    for workers in (1, 3):
        f = federation(kind(), models=[wide], workers=workers)
        try:
            f._enter(1, "training")
            f.method.round(f.server, f.clients)
            found.append(norms(f))
        finally:
            f.engine.close()
    assert found[0] == found[1]


class Tied(nn.Module):
    """One parameter under two keys."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Linear(width, width)
        self.two = nn.Linear(width, width)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.two(self.one(x).relu()))


def tied(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    base = nn.Sequential(nn.Linear(5, width), Tied(width))
    return SplitModel({"base": base, "modular": nn.Linear(width, classes)})


def test_tied_parameters_stay_tied_after_a_resume(tmp_path: Path) -> None:
    wanted = everything_owned(federation("local", models=[tied], rounds=3))
    saved = federation("local", models=[tied], rounds=1).save(tmp_path)
    again = federation("local", models=[tied])
    again.load(tmp_path, 1, saved)
    for _ in range(2):
        again.run_round()
    found = everything_owned(again)
    assert same_bits(found, {key: wanted[key] for key in found})
    assert "client-00000:networks/model/base.1.one.weight" in found
    assert "client-00000:networks/model/base.1.two.weight" not in found


@dataclass(frozen=True)
class BreaksOnce(Untidy):
    """Client 1's first state cannot be made, once; what was trained on the way is undone."""

    marker: str = ""

    def new_client(self, client: Client[Counted]) -> Counted:
        client.fit(client.loss, steps=1, lr=1.0)
        if client.id == 1 and not Path(self.marker).exists():
            Path(self.marker).touch()
            raise LookupError
        return Counted(0)

    @on_client
    def work(self, client: Client[Counted]) -> Numbers:
        return Numbers(float(torch.stack([p.sum() for p in client.model.parameters()]).sum().detach()))


def test_a_client_whose_first_state_fails_begins_anew(tmp_path: Path) -> None:
    f = federation(BreaksOnce(str(tmp_path / "marker")), models=[wide])
    method = cast(BreaksOnce, f.method)
    f._enter(1, "training")
    assert set(f.clients.call(method.work, minimum=1)) == {0, 2}
    (tmp_path / "spared").touch()
    spared = federation(BreaksOnce(str(tmp_path / "spared")), models=[wide])
    spared._enter(1, "training")
    assert norms(f) == norms(spared)


def test_a_call_inside_a_fold_and_two_models_of_one_name_are_refused() -> None:
    f = federation(Counting(), models=[wide], clients=30, dataset=tiny_dataset(rows=120))
    method = cast(Counting, f.method)
    given = Weights(f.server.new_model("wide").tensors())
    with pytest.raises(ConfigError, match="train is called inside a fold"):
        f.clients.call(method.train, given, each=lambda c, reply: f.clients.call(method.train, given))
    f.server.model("global", "wide")
    with pytest.raises(ModelError, match="the server's model 'global' is a wide, not a narrow"):
        f.server.model("global", "narrow")


@dataclass(frozen=True)
class Doubling(Method):
    """Changes the server's model behind PyTorch's back."""

    def start(self, server: Server[Any], clients: Clients) -> None:
        server.model("global", "wide")

    def round(self, server: Server, clients: Clients) -> None:
        for parameter in server.network("global").parameters():
            parameter.data.mul_(2)


def test_what_was_changed_through_data_is_committed_too(tmp_path: Path) -> None:
    f = federation(Doubling(), models=[wide])
    f.save(tmp_path)
    f.run_round()
    second = f.save(tmp_path)
    assert len(second.packs) == 1  # nothing of the first is needed any more
    again = federation(Doubling(), models=[wide])
    again.load(tmp_path, 1, second)
    assert same_bits(again.server.network("global").tensors(), f.server.network("global").tensors())


@dataclass(frozen=True)
class WithModule(WithDecoder):
    """Its network is a module of PyTorch."""

    def networks(self, owner: Profile | None, dims: Dims) -> Mapping[str, Network]:
        return {} if owner is None else {"decoder": Network(cast(Any, partial(nn.Linear, 8, 5)))}


def test_a_network_that_is_no_split_model_is_refused_with_what_to_write() -> None:
    f = federation(WithModule(), models=[wide])
    with pytest.raises(ClientError, match=r"a network is a SplitModel, but Linear was built: return SplitModel\("):
        f.run_round()


class Twice(Message):
    """The same tensors in two fields."""

    one: Parameters
    two: Parameters


@dataclass(frozen=True)
class Aliasing(Method):
    """Whose clients name one piece of memory more than once."""

    def round(self, server: Server[Any], clients: Clients) -> None: ...

    def keeps(self) -> frozenset[str]:
        return NOTHING

    @on_client
    def send(self, client: Client) -> Twice:
        self.fill(client)
        return Twice(client.tensors(), client.tensors())

    def fill(self, client: Client) -> None:
        for parameter in client.model.parameters_of().values():
            parameter.data.fill_(1.0 + client.id)


def test_memory_that_is_named_twice_is_in_a_reply_once() -> None:
    f = federation(Aliasing(), models=[wide], clients=2, dataset=tiny_dataset(rows=30))
    f._enter(1, "training")
    reply = f.clients.call(cast(Any, f.method).send)[0]
    for tensor in reply.one.values():
        tensor.zero_()
    assert all(bool((tensor == 1).all()) for tensor in reply.two.values())


def with_a_view(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """Two parameters are one piece of memory."""
    front, tail = nn.Linear(5, width), nn.Sequential(nn.Linear(width, width), nn.Linear(width, classes))
    front.bias = nn.Parameter(cast(nn.Linear, tail[0]).bias.data)
    return SplitModel({"base": nn.Sequential(nn.Flatten(), front), "modular": tail})


def test_memory_that_two_tensors_of_a_model_share_is_not_given_away() -> None:
    f = federation(Aliasing(), models=[with_a_view], clients=2, dataset=tiny_dataset(rows=30))
    f._enter(1, "training")
    for client, reply in f.clients.call(cast(Any, f.method).send).items():
        assert all(bool((tensor == 1 + client).all()) for tensor in (*reply.one.values(), *reply.two.values()))
