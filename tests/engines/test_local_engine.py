"""The local engine: the same bits however many processes carry the clients, and a clean end whatever happens."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

import pytest
import torch
from jaxtyping import Float32
from torch import Tensor
from worlds import (
    Backwards,
    everything_owned,
    federation,
    fitting,
    of_each_state,
    same_bits,
    setup_of,
    tiny,
    tiny_dataset,
)

from interfuse.client import Client
from interfuse.clients import Clients, Engine
from interfuse.engines import InProcess, local
from interfuse.engines.local import Workers
from interfuse.engines.placement import Move, Placement, Unit
from interfuse.engines.processes import available_cores
from interfuse.errors import ClientError, ConfigError, RunError
from interfuse.evaluation import evaluate
from interfuse.federation import Federation
from interfuse.handler import on_client
from interfuse.messages import Disclosure, Message, State
from interfuse.method import Method
from interfuse.methods import built_in
from interfuse.methods.local import Local
from interfuse.models import Builder
from interfuse.server import Server

MODELS: Mapping[str, list[str]] = {
    "ifl": ["logistic", "mlp"],
    "local": ["mlp", "logistic"],
    "pooled": ["logistic", "mlp"],
}
SETTINGS: Mapping[str, dict[str, Any]] = {
    "ifl": {"optimizer": "adam"}, "local": {"optimizer": "adam"}, "pooled": {"optimizer": "adam"},
    "fedavg": {"participation": 0.6, "buffers": "local"}, "scaffold": {"participation": 0.6},
    "splitfed-v1": {"optimizer": "adam", "local_steps": 2},
    "splitfed-v2": {"optimizer": "adam", "local_steps": 2, "average_clients": False},
    "ifl-bank": {"decoder_steps": 3}, "ifl-bank-vtc": {"vtc_steps": 3},
    "splitfed-local": {"optimizer": "adam"}, "lg-fedavg": {"optimizer": "adam", "participation": 0.6},
}  # fmt: skip


class Payload(Message):
    """Any tensor."""

    x: Annotated[Float32[Tensor, "..."], Disclosure.STATISTICS]


class Number(Message):
    value: int


@dataclass(frozen=True)
class Probe(Method):
    """Handlers that show where they run and go wrong on request."""

    victim: int = 1  # the client that goes wrong

    def round(self, server: Server, clients: Clients) -> None:
        clients.call(self.die)

    @on_client
    def where(self, client: Client) -> Number:
        return Number(os.getpid())

    @on_client
    def echo(self, client: Client, sent: Payload) -> Payload:
        return Payload(sent.x * 2 + client.id)

    @on_client
    def threads(self, client: Client) -> Number:
        return Number(torch.get_num_threads())

    @on_client
    def fail(self, client: Client) -> None:
        if client.id == self.victim:
            raise LookupError("no such thing: ümläut")

    @on_client
    def die(self, client: Client) -> None:
        if client.id == self.victim:
            os.kill(os.getpid(), signal.SIGKILL)

    @on_client
    def leave(self, client: Client) -> None:
        if client.id == self.victim:
            os._exit(7)

    @on_client
    def wait(self, client: Client) -> None:
        time.sleep(60)


@pytest.fixture
def probe() -> Iterator[Federation]:
    """Four clients in two workers: 0 and 2 in one, 1 and 3 in the other."""
    made = federation(Probe(), workers=2, clients=4, start=False)
    yield made
    made.engine.close()


def workers_of(made: Federation) -> Workers:
    assert isinstance(made.engine, Workers)
    return made.engine


def alive(made: Federation) -> list[bool]:
    processes = [worker.process for worker in workers_of(made)._workers]
    return [process is not None and process.is_alive() for process in processes]


# -------------------------------------------------------------------------------------------------------- equal bits


def with_more_to_take_along(name: str) -> tuple[Method, Sequence[str | Builder]]:
    """A method with few steps, and where it can with optimizers, buffers and shares of clients; and models for it."""
    method = replace(tiny(name), **SETTINGS.get(name, {}))
    return method, fitting(method, MODELS.get(name, ["cnn-bn" if name in ("fedavg", "scaffold") else "logistic"]))


@pytest.mark.parametrize("method", sorted(SETTINGS))
def test_equal_bits_for_any_number_of_workers_and_any_order(method: str) -> None:
    """With settings and models that give clients more to take along; all methods: with the tests of every method."""
    kind, models = with_more_to_take_along(method)
    dataset = tiny_dataset(rows=90, shape=(1, 4, 4))
    reference: tuple[Any, ...] | None = None
    for workers, wrap in ((1, None), (1, Backwards), (2, Backwards)):
        made = federation(
            kind, workers=workers, rounds=3, clients=5, models=models, dataset=dataset,
            **({} if wrap is None else {"wrap": wrap}),
        )  # fmt: skip
        try:
            owned, accuracies = everything_owned(made), evaluate(made, full=True)
            ledger = made.exchange.ledger.drain()
        finally:
            made.engine.close()
        if reference is None:
            reference = (owned, accuracies, ledger)
            assert len(owned) > 5
        assert same_bits(owned, reference[0]), (workers, wrap)
        assert accuracies == reference[1]
        assert ledger == reference[2]


class Wandering(Placement):
    """Everybody moves on to the next worker in every round, whatever it costs."""

    def arrange(self, units: Iterable[Unit]) -> list[Move]:
        moves = []
        for (client,) in units:
            if client not in self._of_round:
                source, target = self.home[client], (self.home[client] + 1) % self._workers
                self.home[client] = target
                moves.append(Move(client, source, target))
        return moves


@pytest.mark.parametrize("method", sorted({*of_each_state(), *SETTINGS}))
def test_clients_that_move_from_worker_to_worker_lose_nothing(
    method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kind, models = with_more_to_take_along(method)
    dataset = tiny_dataset(rows=90, shape=(1, 4, 4))
    found = []
    for workers in (1, 3):
        monkeypatch.setattr(sys.modules["interfuse.engines.local"], "Placement", Wandering)
        made = federation(kind, workers=workers, rounds=2, clients=5, models=models, dataset=dataset)
        try:
            saved = made.save(tmp_path)
            made.run_round()
            made.save(tmp_path)  # only what changed: the flag has moved along
            made.load(tmp_path, 2, saved)
            made.run_round()
            made.run_round()
            found.append((everything_owned(made), evaluate(made, full=True)))
        finally:
            made.engine.close()
    assert same_bits(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_freed_memory_is_kept_where_glibc_is() -> None:
    """Steps of a small convolutional network have their pages already, instead of from the system once more."""
    program = (
        "import resource, torch\n"
        "from interfuse.engines.allocator import keep_freed_memory\n"
        "torch.set_num_threads(1)\n"
        "layers = [torch.nn.Conv2d(1, 32, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Conv2d(32, 32, 3)]\n"
        "model, x = torch.nn.Sequential(*layers), torch.randn(32, 1, 28, 28)\n"
        "def use(): [model(x).sum().backward() for _ in range(5)]\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def more():\n"
        "    use()\n"
        "    before = faults()\n"
        "    use()\n"
        "    return faults() - before\n"
        "print(more(), int(keep_freed_memory()), more())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    before, kept, after = map(int, done.stdout.split())
    if not kept:
        pytest.skip("no glibc")
    assert 5 * after < before


def test_one_worker_is_this_process_and_more_are_others(probe: Federation) -> None:
    method = cast(Probe, probe.method)
    places = [reply.value for reply in probe.clients.call(method.where).values()]
    assert places[0] == places[2] != places[1] == places[3]
    assert os.getpid() not in places
    alone = federation(Probe(), workers=1, clients=2, start=False)
    assert {r.value for r in alone.clients.call(cast(Probe, alone.method).where).values()} == {os.getpid()}
    assert isinstance(alone.engine, InProcess)


def test_no_more_workers_than_clients_and_none_below_one() -> None:
    setup = setup_of("local", clients=3)
    engine = local(setup, 50)
    assert isinstance(engine, Workers)
    assert len(engine._workers) == 3
    engine.close()
    with pytest.raises(ConfigError, match="workers = 0: at least 1"):
        local(setup, 0)
    chosen = local(setup, None)
    assert isinstance(chosen, InProcess if min(3, available_cores()) == 1 else Workers)
    chosen.close()


def test_several_workers_need_a_system_that_can_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = setup_of("local", clients=3)
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(ConfigError, match="workers = 2: .* use 1"):
        local(setup, 2)
    assert isinstance(local(setup, None), InProcess)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_handler_has_one_thread(workers: int) -> None:
    made = federation(Probe(), workers=workers, clients=2, start=False)
    try:
        assert [r.value for r in made.clients.call(cast(Probe, made.method).threads).values()] == [1, 1]
    finally:
        made.engine.close()


def test_a_state_saved_by_one_engine_is_loaded_by_another(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"clients": 3, "models": ["logistic", "mlp"]}
    method = built_in()["ifl"].configure({"optimizer": "adam"})
    source = federation(method, workers=3, rounds=2, **settings)
    saved = source.save(tmp_path)
    source.run_round()
    wanted = everything_owned(source)
    source.engine.close()
    for workers in (1, 2):
        target = federation(method, workers=workers, rounds=1, **settings)
        target.load(tmp_path, 2, saved)
        target.run_round()
        found = everything_owned(target)
        target.engine.close()
        assert len(found) > 10
        assert same_bits(found, {key: wanted[key] for key in found})
        assert {key for key in wanted if key.startswith("client")} <= found.keys()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_missing_pack_is_named(workers: int, tmp_path: Path) -> None:
    made = federation("ifl", workers=workers, rounds=1)
    try:
        saved = made.save(tmp_path)
        (tmp_path / saved.packs[0].name).unlink()
        with pytest.raises(RunError, match=f"cannot read .*{saved.packs[0].name}"):
            made.load(tmp_path, 1, saved)
    finally:
        made.engine.close()


# --------------------------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize("workers", [1, 2])
def test_messages_of_no_size_and_of_fifty_megabytes(workers: int) -> None:
    made = federation(Probe(), workers=workers, clients=3, start=False)
    echo = cast(Probe, made.method).echo
    try:
        for count in (0, 3, 50 * 2**20 // 4, 1, 0, 2**18 + 1):
            sent = torch.arange(float(count))
            for client, reply in made.clients.call(echo, Payload(sent)).items():
                assert torch.equal(reply.x, sent * 2 + client)
        empty = made.clients.call(echo, Payload(torch.empty(4, 0, 2)))
        assert [tuple(reply.x.shape) for reply in empty.values()] == [(4, 0, 2)] * 3
        each = {c: Payload(torch.full((c * 1000,), float(c))) for c in made.clients}
        assert [r.x.shape[0] for r in made.clients.call(echo, each).values()] == [0, 1000, 2000]
        assert torch.equal(made.clients.call(echo, each)[2].x, torch.full((2000,), 6.0))
    finally:
        made.engine.close()


AFTER_THREADS = """
import sys
import torch
sys.path[:0] = sys.argv[1:]
from test_local_engine import Payload, Probe
from worlds import federation
torch.set_num_threads(2)
big = torch.ones(2**20)  # 4 MB
for _ in range(3):
    total = float((torch.ones(700, 700) @ torch.ones(700, 700)).sum() + (big * 2).exp().sum())
made = federation(Probe(), workers=2, clients=4, start=False)
for _ in range(2):
    for client, reply in made.clients.call(made.method.echo, Payload(big)).items():
        assert torch.equal(reply.x, big * 2 + client)
    big = (big * 2).sin()
made.engine.close()
print("done", torch.get_num_threads())
"""


def test_threads_of_this_process_are_no_trouble_to_its_workers() -> None:
    """A forked process inherits a pool of threads that are not there: whoever waits for them waits for ever."""
    here = Path(__file__)
    found = subprocess.run(
        [sys.executable, "-c", AFTER_THREADS, str(here.parent), str(here.parents[1])],
        env=os.environ | {"OMP_NUM_THREADS": "2"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert found.stdout == "done 2\n", found.stderr


def test_replies_of_one_call_outlive_the_next(probe: Federation) -> None:
    echo = cast(Probe, probe.method).echo
    first = probe.clients.call(echo, Payload(torch.ones(100)))
    probe.clients.call(echo, Payload(torch.zeros(100_000)))
    assert [reply.x.unique().tolist() for reply in first.values()] == [[2.0], [3.0], [4.0], [5.0]]


# --------------------------------------------------------------------------------------------------- what goes wrong


def test_the_text_of_an_error_crosses_the_process(probe: Federation) -> None:
    fail = cast(Probe, probe.method).fail
    with pytest.raises(ClientError) as caught:
        probe.clients.call(fail)
    text = str(caught.value)
    assert "client 1 failed in fail, round 0: LookupError: no such thing: ümläut" in text
    assert "test_local_engine.py, line" in text
    assert alive(probe) == [True, True]
    assert len(probe.clients.call(fail, minimum=3)) == 3


@pytest.mark.parametrize(("handler", "code"), [("die", -signal.SIGKILL), ("leave", 7)])
def test_a_worker_that_ends_is_named_with_its_clients(handler: str, code: int, probe: Federation) -> None:
    with pytest.raises(RunError, match=rf"worker 1 \(clients 1 and 3\) ended with exit code {code}; .* resumed"):
        probe.clients.call(getattr(probe.method, handler))
    assert alive(probe) == [True, False]
    with pytest.raises(RunError, match="worker 1"):
        probe.clients.call(cast(Probe, probe.method).where)


def test_a_worker_killed_from_outside_between_calls(probe: Federation) -> None:
    process = workers_of(probe)._workers[0].process
    assert process is not None
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with pytest.raises(RunError, match=r"worker 0 \(clients 0 and 2\) ended with exit code -9"):
        probe.clients.call(cast(Probe, probe.method).where)


@dataclass(frozen=True)
class DiesOnce(Local):
    """Local, but the process of client 1 is killed in round 2 unless there is a file that says it was."""

    marker: str = ""

    @on_client
    def train(self, client: Client) -> None:
        if client.id == 1 and client.round == 2 and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        super_train = cast(Any, Local.train)
        super_train.function(self, client)


def test_a_run_whose_worker_was_killed_can_be_resumed(tmp_path: Path) -> None:
    from interfuse.runs import Given, execute, parse_config, resume

    def run(path: Path, marker: Path) -> Any:
        method = DiesOnce(local_steps=2, optimizer="adam", marker=str(marker))
        values = {
            "method": "test_local_engine:DiesOnce", "data": "in-memory:tiny", "clients": 3, "models": ["logistic"],
            "fusion_width": 8, "rounds": 3, "eval_every": 1, "beside": [],
            "execution": {"workers": 2, "commit_rounds": 1},
        }  # fmt: skip
        given = Given(dataset=tiny_dataset(), method=method)
        if marker.exists():
            return execute(parse_config(values), path, given=given)
        with pytest.raises(RunError, match=r"worker \d \(clients? [\d, and]+\) ended with exit code -9"):
            execute(parse_config(values), path, given=given)
        return resume(path, given=Given(dataset=given.dataset))

    (tmp_path / "already").touch()
    wanted = run(tmp_path / "whole", tmp_path / "already")
    found = run(tmp_path / "killed", tmp_path / "marker")
    assert (tmp_path / "marker").exists()
    ledgers = [(tmp_path / name / "ledger.jsonl").read_bytes() for name in ("whole", "killed")]
    assert ledgers[0] == ledgers[1]
    for key in ("global_accuracy", "own_accuracy", "composition_matrix", "best"):
        assert getattr(found, key) == getattr(wanted, key)


# ------------------------------------------------------------------------------------------------------------ the end


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(sys.platform != "linux", reason="counts the entries of /proc/self/fd")
def test_many_engines_leave_no_descriptor_and_no_process() -> None:
    setup = setup_of(Probe(), clients=4)

    def use() -> None:
        engine = local(setup, 3)
        made = Federation(setup, engine)
        made.clients.call(cast(Probe, setup.method).echo, Payload(torch.ones(3)))
        engine.close()

    use()
    before = descriptors()
    for _ in range(4):
        use()
    assert descriptors() == before
    assert not [child for child in multiprocessing.active_children() if child.name.startswith("interfuse-")]


@pytest.mark.skipif(sys.platform != "linux", reason="counts the entries of /proc/self/fd")
def test_an_engine_whose_worker_was_killed_closes_as_well() -> None:
    before: int | None = None
    for _ in range(4):
        made = federation(Probe(), workers=2, clients=4, start=False)
        with pytest.raises(RunError):
            made.clients.call(cast(Probe, made.method).die)
        made.engine.close()
        assert not any(alive(made))
        before = before or descriptors()
    assert descriptors() == before


def test_engines_live_side_by_side_and_close_at_once() -> None:
    """A later engine's workers hold copies of the earlier one's connections; closing must not wait for them."""
    engines: list[Engine] = [local(setup_of(Probe(), clients=2), 2) for _ in range(3)]
    began = time.monotonic()
    for engine in engines:
        engine.close()
    processes = [worker.process for engine in engines for worker in cast(Workers, engine)._workers]
    assert [process.exitcode for process in processes if process is not None] == [0] * 6, time.monotonic() - began


def test_interrupting_a_call_ends_it_and_closing_ends_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C reaches the whole group of processes; only this one may answer to it."""
    made = federation(Probe(), workers=2, clients=2, start=False)
    processes = [worker.process for worker in workers_of(made)._workers]
    pids = [process.pid for process in processes if process is not None and process.pid is not None]
    made.clients.call(cast(Probe, made.method).where)

    answered = threading.Event()

    def interrupted(number: int, frame: object) -> None:
        if not answered.is_set():  # a second one may be under way
            raise KeyboardInterrupt

    def control_c() -> None:
        for pid in pids:
            os.kill(pid, signal.SIGINT)
        time.sleep(0.5)  # time to die of it
        for _ in range(20):  # as people do: on a busy machine the first can come where Python ignores it
            if all(alive(made)) and not answered.is_set():
                os.kill(os.getpid(), signal.SIGINT)
            answered.wait(0.5)

    timer = threading.Timer(0.2, control_c)
    before = signal.signal(signal.SIGINT, interrupted)  # tests in the background of a shell would ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            try:
                made.clients.call(cast(Probe, made.method).wait)
            finally:
                answered.set()
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert alive(made) == [True, True], "a worker died of an interrupt that was meant for this process"
    for worker in workers_of(made)._workers:  # the handlers would take a minute; close waits for seconds only
        assert worker.process is not None
        join = worker.process.join
        monkeypatch.setattr(worker.process, "join", lambda timeout=None, join=join: join(timeout and 0.1))
    made.engine.close()
    assert not any(alive(made))


class Kernel(State):
    """Something with the layout of a convolution's weight."""

    weight: Annotated[Float32[Tensor, "..."], Disclosure.STATISTICS]


@dataclass(frozen=True)
class Norms(Method):
    """A method that looks at its state as a whole: such sums depend on the layout in memory."""

    def new_client(self, client: Client) -> Kernel:
        key = next(key for key, t in client.model.tensors().items() if t.ndim == 4 and t.shape[1] > 1)
        return Kernel(client.model.tensors()[key].clone())

    def round(self, server: Server, clients: Clients) -> None:
        clients.call(self.strides)

    @on_client
    def strides(self, client: Client[Kernel]) -> Payload:
        weight = client.state.weight
        client.state = Kernel(weight.contiguous(memory_format=torch.channels_last) * 2)
        return Payload(torch.tensor(weight.stride(), dtype=torch.float32))


@pytest.mark.parametrize("placement", [Placement, Wandering])
def test_a_state_has_the_same_layout_wherever_it_was_carried(
    placement: type[Placement], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["interfuse.engines.local"], "Placement", placement)
    dataset = tiny_dataset(rows=90, shape=(1, 8, 8))
    made = federation(Norms(), workers=2, clients=2, rounds=2, models=["cnn"], dataset=dataset)
    try:
        found = made.clients.call(cast(Norms, made.method).strides)
        weight = next(iter(found.values())).x
        assert all(torch.equal(reply.x, weight) for reply in found.values())
        assert weight.tolist() == sorted(weight.tolist(), reverse=True)  # contiguous
    finally:
        made.engine.close()
