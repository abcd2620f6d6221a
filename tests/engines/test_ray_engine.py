"""The Ray engine: the bits of the local one, whoever carries the clients and whoever is lost; and what it refuses."""

from __future__ import annotations

import copy
import math
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray_in_process import RayInProcess, in_process
from test_local_engine import Payload, Probe, Wandering, with_more_to_take_along
from torch import nn
from worlds import everything_owned, federation, same_bits, setup_of, tiny, tiny_dataset

from interfuse.clients import Request
from interfuse.engines.ray import Joining, cluster, engine, on_ray
from interfuse.engines.ray.packing import packed, unpacked
from interfuse.errors import ConfigError, RunError
from interfuse.evaluation import evaluate
from interfuse.federation import Federation
from interfuse.models import SplitModel
from interfuse.runs import Execution, parse_config
from interfuse.setup import Setup

EIGHT = ("ifl", "fedavg", "scaffold", "splitfed-v1", "fedin", "fedproto", "fedbuff", "fedmosaic")


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[RayInProcess]:
    with in_process(monkeypatch) as made:
        yield made


def probe(workers: int = 2, clients: int = 4, **settings: Any) -> Federation:
    made = setup_of(Probe(), clients=clients, **settings)
    return Federation(made, on_ray(made, workers))


# ---------------------------------------------------------------------------------------------------------- equal bits


@pytest.mark.parametrize("name", EIGHT)
def test_clients_on_two_nodes_that_move_and_go_back_have_the_bits_of_the_local_engine(
    name: str, ray: RayInProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    method, models = with_more_to_take_along(name)
    monkeypatch.setattr(engine, "Placement", Wandering)
    found = []
    for workers in (0, 3):
        wrap = (lambda hosted: on_ray(hosted._host._setup, 3)) if workers else (lambda hosted: hosted)
        made = federation(
            method, rounds=2, clients=5, models=models, dataset=tiny_dataset(rows=90, shape=(1, 4, 4)), wrap=wrap
        )
        saved = made.save(tmp_path)
        made.run_round()
        made.save(tmp_path)
        made.load(tmp_path, 2, saved)
        made.run_round()
        made.run_round()
        found.append((everything_owned(made), evaluate(made, full=True), made.exchange.ledger.drain()))
    assert {handle.node for handle, _ in ray.orders} == {"here", "there"}
    assert {"adopt", "piece", "arrive"} <= {name for _, name in ray.orders} or name in ("fedavg", "splitfed-v1")
    assert same_bits(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]


def test_tensors_cross_as_they_are() -> None:
    sent = {
        "nan": torch.tensor([float("nan"), -0.0, 1e-45]), "half": torch.arange(5, dtype=torch.bfloat16),
        "none": torch.empty(3, 0, 2), "one": torch.tensor(True), "last": torch.arange(24.0).view(1, 2, 3, 4).mT,
    }  # fmt: skip
    found = unpacked(packed(sent), "cpu")
    assert found.keys() == sent.keys()
    for name, tensor in sent.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert found[name].contiguous().view(-1).view(torch.uint8).equal(tensor.contiguous().view(-1).view(torch.uint8))
        assert found[name].data_ptr() % 64 == 0


def test_a_copy_elsewhere_knows_the_models_and_has_their_given_tensors() -> None:
    """What is pickled for another process: nothing is built there to know what models are."""
    built: list[int] = []

    def frozen(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
        built.append(width)
        stages = {"given": nn.Linear(math.prod(sample_shape), 7), "own": nn.Linear(7, width)}
        return SplitModel(stages | {"out": nn.Linear(width, classes)}, given=["given"])

    setup = setup_of("fedavg", models=[frozen])
    architecture, known = setup.profiles[0].architecture, len(built)
    other = copy.copy(setup)
    assert "profiles" not in vars(other)
    assert other.profiles == setup.profiles
    assert len(built) == known
    mine, theirs = (one.build(architecture, "x").live(["given.weight"]) for one in (setup, other))
    assert mine["given.weight"].data_ptr() == theirs["given.weight"].data_ptr()


def test_a_large_message_for_all_is_stored_once(ray: RayInProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    made, stored = probe(workers=3, clients=6), []
    monkeypatch.setattr(ray, "put", lambda value: stored.append(value) or RayInProcess.put(ray, value))
    sent = torch.arange(float(engine.SMALL))
    for client, reply in made.clients.call(made.method.echo, Payload(sent)).items():
        assert torch.equal(reply.x, sent * 2 + client)
    assert len(stored) == 1
    made.clients.call(made.method.echo, Payload(sent[:9]))
    assert len(stored) == 1


@pytest.mark.parametrize(("light", "together"), [(engine.LIGHT, engine.TOGETHER), (11, 1)])
def test_replies_in_order_are_never_far_ahead(
    ray: RayInProcess, monkeypatch: pytest.MonkeyPatch, light: int, together: int
) -> None:
    """Worker 0 has every other client, and answers last."""
    made, heard, asked, ahead = probe(workers=2, clients=60), list[int](), list[int](), list[int]()
    ray.slow = {0}

    def carry_out(handle: Any, name: str, arguments: Any) -> Any:
        if name == "call":
            asked.append(sum(map(len, arguments[1])))
        return RayInProcess.carry_out(ray, handle, name, arguments)

    def take(client: int, reply: Any) -> None:
        heard.append(client)
        ahead.append(sum(asked) - len(heard))

    monkeypatch.setattr(ray, "carry_out", carry_out)
    monkeypatch.setattr(engine, "LIGHT", light)
    made.clients.call(made.method.echo, Payload(torch.ones(3)), each=take)
    assert heard == list(range(60))
    assert max(asked) == together
    assert max(ahead) <= engine.QUEUED * together * (engine.AHEAD + 1) * 2 < 50


def test_a_client_is_put_back_to_where_it_was_before_its_last_call(ray: RayInProcess) -> None:
    made = setup_of(replace(tiny("local"), optimizer="adam"), clients=4)
    f = Federation(made, on_ray(made, 2))
    f.start()
    f.run_round()
    before = everything_owned(f)
    request = Request("method", "train", "training", 2, 0, recoverable=True, undoable=True)
    assert len(list(f.engine.call(request, dict.fromkeys(range(4))))) == 4
    f.engine.undo([1, 2])
    after = everything_owned(f)
    changed = {name.partition(":")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"client-00000", "client-00003"}


# ---------------------------------------------------------------------------------------------------- what is refused


def test_workers_that_do_not_come_up_are_not_waited_for_for_ever(
    ray: RayInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY", 0.0)
    ray.room, said = 1, list[str]()
    setup = setup_of("fedavg")
    with pytest.raises(
        RunError, match="1 of 3 workers came up within 0 s: each needs 1 CPU, and the cluster has 2 nodes with 4 CPU"
    ):
        on_ray(setup, 3, joining=Joining(seconds=0, say=said.append))
    assert said == [
        "Ray: 1 of 3 workers are up; for the others up to 0 s. "
        "Each needs 1 CPU, and the cluster has 2 nodes with 4 CPU (0 free) and 0 GPU (0 free)"
    ]
    assert all(handle.dead for handle in ray.handles)


def test_other_builds_are_refused(ray: RayInProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "build", lambda device: {"interfuse": "9", "processor": "AVX9"})
    with pytest.raises(
        ConfigError, match=r"has interfuse \S+, here 9; processor \S+, here AVX9: .* machines of one kind"
    ):
        on_ray(setup_of("fedavg"), 1)


def with_device(setup: Setup, device: str) -> Setup:
    """The set-up on a device that this machine need not have: its profiles were made without."""
    found = replace(setup, device=device)
    vars(found)["profiles"] = setup.profiles
    return found


@pytest.mark.parametrize(
    ("there", "workers", "gpus", "expected"),
    [
        ({"GPU": 4}, None, None, (4, 1)), ({"GPU": 4}, 6, None, (6, 0.5)), ({"GPU": 1}, 3, None, (3, 1 / 3)),
        ({"GPU": 2}, None, 0.5, (4, 0.5)), ({"GPU": 8}, 100, 0.1, (20, 0.1)), ({}, 2, None, "Ray has no GPU"),
    ],
)  # fmt: skip
def test_gpus_are_divided(there: dict[str, float], workers: int | None, gpus: float | None, expected: Any) -> None:
    setup = with_device(setup_of("fedavg", clients=20), "cuda")
    cluster = RayInProcess(there)
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected):
            engine._shares(cluster, setup, workers, Joining(gpus=gpus))
    else:
        count, each = engine._shares(cluster, setup, workers, Joining(gpus=gpus))
        assert (count, each["GPU"]) == expected


def test_a_gpu_of_a_number_and_gpus_without_one_are_refused() -> None:
    setup = setup_of("fedavg")
    for device, gpus, text in (("cuda:1", None, "set device = 'cuda'"), ("cpu", 0.5, "but device = 'cpu'")):
        with pytest.raises(ConfigError, match=text):
            engine._shares(RayInProcess(), with_device(setup, device), 1, Joining(gpus=gpus))


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install .* '\.\[ray\]'"):
        on_ray(setup_of("fedavg"), 1)


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:port", ":6379"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="is none. The address is HOST:PORT"):
        cluster._check_address(address)


def test_nothing_at_an_address_is_said_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ConfigError, match=r"nothing of Ray answers at 127.0.0.1:\d+: .* refused"):
            cluster._check_address(f"127.0.0.1:{taken.getsockname()[1]}")


def test_a_ray_of_ones_own_that_would_ask_for_no_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray reads whether it is to where it is imported, and a program may have done that before."""
    pretended = SimpleNamespace(is_initialized=lambda: False, init=lambda **given: pytest.fail("it was started"))
    monkeypatch.setitem(sys.modules, "ray", pretended)
    monkeypatch.setattr(cluster, "find_spec", lambda name: name)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(ConfigError, match="RAY_AUTH_MODE=token and RAY_AUTH_TOKEN .* before it is imported"):
        cluster.joined(Joining("local"), 1)


def test_a_cluster_is_the_same_by_whatever_name_its_head_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine joins again for the last evaluation, by the address that was given, which Ray calls otherwise."""
    ids = {"10.0.0.1:6379": "one", "head:6379": "one", "other:6379": "two"}

    class RayError(Exception):
        pass

    def reached(address: str) -> Any:
        if address not in ids:
            raise RayError("timed out")
        return SimpleNamespace(cluster_id=ids[address])

    monkeypatch.setattr(cluster, "_check_address", lambda address: None)
    context = SimpleNamespace(gcs_address="10.0.0.1:6379")
    here = SimpleNamespace(
        get_runtime_context=lambda: context,
        exceptions=SimpleNamespace(RayError=RayError),
        _raylet=SimpleNamespace(GcsClient=reached),
    )
    for same in (None, "auto", "local", "10.0.0.1:6379", "head:6379"):
        cluster._check_same(here, same)
    for another in ("other:6379", "no-ray:6379"):
        with pytest.raises(ConfigError, match=f"connected to Ray at 10.0.0.1:6379, not at {another}"):
            cluster._check_same(here, another)


def test_what_is_for_ray_alone_is_refused_elsewhere() -> None:
    with pytest.raises(ConfigError, match="ray_address and ray_gpus: for engine = 'ray' alone"):
        parse_config({"execution": {"ray_address": "auto", "ray_gpus": 0.5}})
    with pytest.raises(ConfigError, match="execution: engine = 'spark' is impossible"):
        Execution().but({"engine": "spark"})
    assert Execution(workers=3).but({"engine": "ray", "workers": None}) == Execution(workers=3, engine="ray")
