"""Flower as carrier: equal bits whatever is lost on the way, and every field of what comes read as an adversary's."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shutil
import socket
import ssl
import stat
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")

import asking as asked_of
from every_method import prepared
from flower_grid import FakeGrid, in_a_task
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from parties import Parties, assert_equal_to_local, rows, states, until
from typer.testing import CliRunner
from worlds import same_bits

from interfuse.cli import network
from interfuse.cli.app import app
from interfuse.coordination import Terms, coordinate, driver
from interfuse.coordination.driver import between_parties
from interfuse.engines.flower.carrier import FlowerCarrier, Pace
from interfuse.engines.flower.channel import Plain, Tls, context_of_coordinator, context_of_node
from interfuse.engines.flower.exchange import ANSWER, ASK, GONE, NAME, Head, most_of, opened_whole, received, sent
from interfuse.engines.flower.residence import Residence, reside
from interfuse.engines.grpc import make_keys
from interfuse.engines.parties import Link, Peer
from interfuse.engines.parties.frames import (
    HEADER,
    Assembler,
    Begin,
    Call,
    Cancel,
    End,
    FrameError,
    Hello,
    Ready,
    Reply,
    frames,
)
from interfuse.engines.parties.logs import Events
from interfuse.engines.parties.node import Node
from interfuse.engines.parties.remote import Patience
from interfuse.engines.parties.vendor import read_vendor
from interfuse.errors import ConfigError, InterfuseError, RunError
from interfuse.flower import simulated
from interfuse.flower.server import AppSettings, ray_that_was_there
from interfuse.flower.writing import write_app
from interfuse.messages import Weights
from interfuse.messages.encoding import encoded
from interfuse.report.text import title
from interfuse.runs import RunConfig, Silent, execute, parse_config, read_config
from interfuse.runs.config import to_toml
from interfuse_relay import app as relaying
from interfuse_relay.app import PLACE, client_app
from interfuse_relay.lines import handed_on
from interfuse_relay.records import (
    ACTION,
    BROKEN,
    NOBODY,
    PACKET,
    RECORD,
    UNNAMED,
    content_of,
    failed,
    failure_of,
    packet_of,
)

QUICK = Pace(poll=0.002, look=0.02, shortest=0.02, longest=0.05, closing=10.0)
STREAM = b"s" * NAME


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A folder whose path is short."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def _in_a_task_without_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_task()
    monkeypatch.setattr(driver.report, "write", lambda path: path)


class Living:
    """Nodes that answer at sockets, in threads; one works at a time: PyTorch's global generator is one for all."""

    def __init__(self, two: Parties, sockets: Path) -> None:
        self.two, self.sockets, self.turn = two, sockets, threading.Lock()
        self.said: list[str] = []
        self.ended: dict[str, str] = {}

    def begin(self, name: str, at: str = "") -> Path:
        place, ready = self.sockets / f"{at or name}.sock", threading.Event()

        def live() -> None:
            events, vendor = Events(None, self.said.append), read_vendor(self.two.folder / name / "vendor.toml")
            try:
                with closing(Node(vendor, events)) as node:
                    end = reside(node, place, keys=vendor.key_files(), turn=self.turn, ready=ready.set)
            except InterfuseError as error:
                end = str(error)
            self.ended[name] = end

        threading.Thread(target=live, daemon=True).start()
        assert ready.wait(30)
        return place


def _coordinated(two: Parties, config: RunConfig, grid: FakeGrid, **more: Any) -> list[str]:
    """Carry a run out over a grid; what its operator is told of Flower."""
    notes: list[str] = []
    keys = two.folder / "keys" / "coordinator" if two.secure else None
    terms = Terms(FlowerCarrier(grid, notes.append, keys, pace=QUICK), len(two.names), **more)
    coordinate(config.model_copy(update={"data": str(two.folder / "ant.npz")}), two.run, terms, Silent())
    return notes


@pytest.mark.parametrize(("method", "lost"), [("ifl", 0), ("splitfed-v1", 7)])
def test_a_run_over_flower_has_the_bits_of_a_local_one(method: str, lost: int, tmp_path: Path, sockets: Path) -> None:
    """With keys; also where every seventh answer is lost after the node has done its work: nothing is done twice."""
    two = Parties(tmp_path, ("ant", "bee"), secure=lost > 0)
    config, _ = prepared(two, method)
    living, grid = Living(two, sockets), FakeGrid(lambda count: lost > 0 and count % lost == 0)
    for number, name in enumerate(two.names):
        grid.nodes[number] = (client_app(), {PLACE: str(living.begin(name))})
    notes = _coordinated(two, config, grid)
    until(lambda: len(living.ended) == 2, 10)
    assert_equal_to_local(two, config)
    assert set(living.ended.values()) == {"the run is finished"}
    for name in two.names:  # each exchange takes seconds there: nothing is asked for nothing
        said = [
            json.loads(line)["what"] for line in (tmp_path / name / "state" / "audit.jsonl").read_text().splitlines()
        ]
        assert said.count("ready") == 1 or lost
    left = [event["reason"] for event in two.events() if event["event"] == "left"]
    assert bool(left) == bool(lost)
    assert all("Flower's error 5: Node unavailable" in text for text in (*left, *notes))


def test_a_node_started_anew_goes_back_with_everybody(tmp_path: Path, sockets: Path) -> None:
    two = Parties(tmp_path, ("ant", "bee"), secure=False)
    config, _ = prepared(two, "scaffold")
    living, grid, relay, calls = Living(two, sockets), FakeGrid(), client_app(), []
    places = {name: living.begin(name) for name in two.names}

    def interrupted(message: Message, context: Context) -> Message:
        """In the middle of the run the bee's node ends, and another process is it."""
        calls.append(message)
        if len(calls) == 6:
            _end(places["bee"])
            until(lambda: "bee" in living.ended, 10)
            living.begin("bee")
        return relay(message, context)

    grid.nodes = {0: (relay, {PLACE: str(places["ant"])}), 1: (interrupted, {PLACE: str(places["bee"])})}
    _coordinated(two, config, grid)
    assert_equal_to_local(two, config)
    assert [event["node"] for event in two.events() if event["event"] == "goes back"] == ["bee"]


def _end(place: Path) -> None:
    """What whoever reaches a node's socket can do: end its part."""
    for number, said in enumerate(([], list(frames(End(reason="", finished=True))))):
        handed_on(_packet(ASK, b"o" * NAME, number, said), str(place))


def test_two_nodes_of_one_name_are_refused_by_name(tmp_path: Path, sockets: Path) -> None:
    two = Parties(tmp_path, ("ant", "bee"), secure=False)
    config, _ = prepared(two, "fedavg")
    living, grid = Living(two, sockets), FakeGrid()
    (two.folder / "cat").mkdir()
    liar = (two.folder / "bee" / "vendor.toml").read_text().replace('name = "bee"', 'name = "ant"')
    (two.folder / "cat" / "vendor.toml").write_text(liar)
    grid.nodes = {0: (client_app(), {PLACE: str(living.begin("ant"))})}
    running = threading.Thread(target=lambda: _coordinated(two, config, grid), daemon=True)
    running.start()
    until(lambda: any(event["event"] == "joined" for event in two.events()), 20)
    grid.nodes[1] = (client_app(), {PLACE: str(living.begin("cat"))})
    until(lambda: any("that of ant, who is here" in str(event) for event in two.events()), 20)
    grid.nodes[2] = (client_app(), {PLACE: str(living.begin("bee"))})
    running.join(30)
    until(lambda: "ant" in living.ended, 10)
    assert living.ended["ant"] == "the run is finished"


def test_a_node_that_is_lost_leaves_the_run_or_ends_it_with_its_name(tmp_path: Path, sockets: Path) -> None:
    two = Parties(tmp_path, ("ant", "bee"), secure=False)
    config, _ = prepared(two, "fedavg")
    living, grid, relay, calls = Living(two, sockets), FakeGrid(), client_app(), []

    def lost(message: Message, context: Context) -> Message:
        calls.append(message)
        if len(calls) == 5:
            del grid.nodes[1]
        return relay(message, context) if len(calls) < 5 else _gone(message)

    grid.nodes = {
        0: (relay, {PLACE: str(living.begin("ant"))}), 1: (lost, {PLACE: str(living.begin("bee"))})
    }  # fmt: skip
    with pytest.raises(RunError, match=r"node bee: gone, and not back in time.*the same command goes on"):
        _coordinated(two, config, grid, patience=Patience(back=0.3))
    grid.nodes[2] = (relay, {PLACE: str(sockets / "bee.sock")})  # its SuperNode is another to Flower
    _coordinated(two, config, grid)
    assert_equal_to_local(two, config)


def _gone(message: Message) -> Message:
    return Message(Error(code=5, reason="Node unavailable"), reply_to=message)


# --- what comes to a coordinator


def _reply(content: Any) -> Any:
    return lambda message, context: Message(content(message), reply_to=message)


def _packet(kind: int, stream: bytes, number: int, said: Sequence[bytes] = ()) -> bytes:
    return b"".join((Head(kind, stream, number).packed(), *sent(Plain(), said)))


def _bare(message: Message, **fields: Any) -> bytes:
    """An answer without frames, with other fields than an honest one."""
    asked = packet_of(message.content)
    assert asked is not None
    return opened_whole(asked, (ASK,))[0]._replace(**{"kind": ANSWER} | fields).packed()


def _greeting(**fields: Any) -> Any:
    """A hello, in an answer with other fields than an honest one."""
    said = b"".join(frames(Hello(protocol=1, library="0", wire=1, name="ant", incarnation="1")))
    return lambda message: content_of(_bare(message, **fields) + struct.pack("<I", len(said)) + said)


def _followed(rest: bytes) -> Any:
    return lambda message: content_of(_bare(message) + rest)


def _array(**fields: Any) -> Any:
    whole = {"dtype": "uint8", "shape": (3,), "stype": RECORD, "data": b"abc"} | fields
    return lambda message: RecordDict({RECORD: ArrayRecord({PACKET: Array(**whole)})})


LIES: dict[str, Any] = {
    "another kind": _greeting(kind=ASK), "an unknown kind": _greeting(kind=9), "gone": _greeting(kind=GONE),
    "another stream": _greeting(stream=STREAM), "another number": _greeting(number=7), "no hello": _followed(b""),
    "nothing": lambda message: RecordDict(), "no bytes": _array(data=b""), "few bytes": _array(),
    "bytes of others": _array(stype="numpy.ndarray"), "shapes of others": _array(shape=(2**40,), dtype="object"),
    "another record": lambda message: RecordDict({RECORD: ConfigRecord({PACKET: b"abc"})}),
    "another name": lambda message: RecordDict({RECORD: ArrayRecord({"x": Array(
        dtype="uint8", shape=(1,), stype=RECORD, data=b"a")})}),
    "a word of its own": lambda message: failed("\x1b[31m ant is a liar"),
    "a number for a word": lambda message: RecordDict({RECORD: ConfigRecord({"failure": 3})}),
    "a length beyond": _followed(struct.pack("<I", 2**31) + b"x"), "half a length": _followed(b"xy"),
    "an empty frame": _followed(bytes(4)), "a frame cut short": _followed(struct.pack("<I", 9) + b"x"),
}  # fmt: skip


def test_whatever_a_vendor_answers_concerns_its_stream_alone() -> None:
    grid, notes, joined = FakeGrid(), list[str](), dict[str, Any]()
    for number, lie in enumerate(LIES.values(), 1):
        grid.nodes[number] = (_reply(lie), {})
    grid.nodes[0] = (_reply(_greeting()), {})
    grid.nodes[99] = (_raising, {})

    def join(link: Link, incoming: Iterator[bytes], peer: Peer) -> None:
        joined[peer.place] = incoming

    carrier = FlowerCarrier(grid, notes.append, None, pace=replace(QUICK, closing=0.1))
    carrier.open(200, join)
    until(lambda: len(notes) >= len(LIES) + 1 and joined, 10, lambda: str(notes))
    carrier.close()
    assert list(joined) == ["Flower node 0"]
    (hello, _) = Assembler().feed(next(joined["Flower node 0"])) or (None, b"")
    assert isinstance(hello, Hello)
    told = {text.split(": ")[0] for text in notes}
    assert told == {f"Flower node {number}" for number in (*range(1, len(LIES) + 1), 99)}
    assert not any("\x1b" in text or "liar" in text for text in notes)


def _raising(message: Message, context: Context) -> Message:
    return _gone(message)


def test_a_grid_that_fails_keeps_back_nobody_else() -> None:
    """An answer that Flower itself cannot read, and messages that it does not take."""
    notes, joined = list[str](), list[str]()

    class Failing(FakeGrid):
        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            (message,) = messages
            if message.metadata.dst_node_id == 2:
                raise OSError("413")
            return [] if message.metadata.dst_node_id == 3 else super().push_messages([message])

        def pull_messages(self, names: Iterable[str]) -> list[Message]:
            found = super().pull_messages(names)
            if any(message.metadata.src_node_id == 1 for message in found):
                for message in found:
                    self._replies[message.metadata.reply_to_message_id] = message
                raise ValueError("no message of Flower's")
            return found

    grid = Failing()
    grid.nodes = {number: (_reply(_greeting()), {}) for number in range(4)}
    carrier = FlowerCarrier(grid, notes.append, None, pace=replace(QUICK, closing=0.1))
    carrier.open(10, lambda link, incoming, peer: joined.append(peer.place))
    until(lambda: len(notes) >= 3 and bool(joined), 10, lambda: str(notes))
    carrier.close()
    assert joined == ["Flower node 0"]
    texts = "\n".join(notes)
    for number, reason in ((1, "no message of Flower's"), (2, "413"), (3, "Flower took no message")):
        assert any(text.startswith(f"Flower node {number}: ") and reason in text for text in notes), texts


# --- what comes to a node


@pytest.fixture
def residence(tmp_path: Path) -> Iterator[tuple[Residence, Path]]:
    one = Parties(tmp_path, ("ant",), secure=False)
    one.prepare({"method": "fedavg"}, ["logistic"])
    with closing(Node(read_vendor(tmp_path / "ant" / "vendor.toml"), Events(None, lambda text: None))) as node:
        yield Residence(node), tmp_path / "ant" / "state"


def test_every_field_of_an_exchange_is_looked_at(residence: tuple[Residence, Path]) -> None:
    """Whatever comes is answered, said to be unknown, or refused; the stream that is open goes on."""
    found, state = residence

    def ask(packet: bytes) -> bytes:
        return b"".join(found.answer(io.BytesIO(packet).read, len(packet)))

    ask(_packet(ASK, STREAM, 0))
    for kind in (0, ANSWER, GONE, 255):
        with pytest.raises(FrameError, match="kind"):
            ask(_packet(kind, STREAM, 1))
    for stream, number in ((b"t" * NAME, 1), (STREAM, 2), (STREAM, 2**64 - 1)):
        assert ask(_packet(ASK, stream, number, [b"x" * 9])) == _packet(GONE, stream, number)
    assert ask(_packet(ASK, STREAM, 0)) == _packet(GONE, STREAM, 0)  # nothing is carried out twice
    assert ask(_packet(ASK, STREAM, 1)) == _packet(ANSWER, STREAM, 1)
    assert ask(_packet(ASK, STREAM, 1)) == _packet(GONE, STREAM, 1)
    for size in (*range(25), *range(26, 25 + 13)):  # 25 is one without a frame
        name = bytes([size]) * NAME
        ask(_packet(ASK, name, 0))
        with pytest.raises(FrameError):
            ask(_packet(ASK, name, 1, [b"x" * 9])[:size])
        if size > 25:  # what broke off is over
            assert ask(_packet(ASK, name, 1)) == _packet(GONE, name, 1)
    for frame in (b"\x00\x00\x00\x00 no frame", b"x", struct.pack("<I", 2) + b"{}", next(frames(Ready(attempt=1)))):
        name = frame[:1] * NAME
        with pytest.raises(FrameError, match="before the node has said"):
            ask(_packet(ASK, name, 0, [frame]))
        ask(_packet(ASK, b"1" + name[1:], 0))
        with suppress(FrameError):
            ask(_packet(ASK, b"1" + name[1:], 1, [frame]))
        found.refusal = None
    sent = [json.loads(line)["what"] for line in (state / "audit.jsonl").read_bytes().splitlines()]
    assert set(sent) == {"hello"}  # nothing else left


def test_a_length_alone_takes_no_memory_and_no_room(tmp_path: Path, sockets: Path) -> None:
    one = Parties(tmp_path, ("ant",), secure=False)
    one.prepare({"method": "fedavg"}, ["logistic"])
    living = Living(one, sockets)
    place = living.begin("ant")
    for beginning in (struct.pack("<Q", 2**62), struct.pack("<Q", 2**62) + _packet(ASK, STREAM, 0) + b"\xff" * 8):
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(place))
            line.sendall(beginning)
            line.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError):
                assert line.recv(1) == b""
    head, _ = opened_whole(handed_on(_packet(ASK, b"h" * NAME, 0), str(place)), (ANSWER,))
    assert head.number == 0
    assert sum("an exchange broke off" in text for text in living.said) == 2
    assert stat.S_IMODE(place.stat().st_mode) == 0o660
    with pytest.raises(RunError, match="another process is node ant"):
        Node(read_vendor(tmp_path / "ant" / "vendor.toml"), Events(None, living.said.append))
    _end(place)
    until(lambda: "ant" in living.ended, 10)
    assert not place.exists()


def test_a_socket_in_use_or_with_a_long_path_is_refused(residence: tuple[Residence, Path], sockets: Path) -> None:
    node = residence[0]._node
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(sockets / "taken"))
        other.listen()
        with pytest.raises(ConfigError, match="another node answers there"):
            reside(node, sockets / "taken", keys=None)
    (sockets / "file").write_text("of somebody")
    for place in (sockets / "file", sockets / ("x" * 200)):
        with pytest.raises(ConfigError, match="--socket .*: no socket can be there"):
            reside(node, place, keys=None)
    assert (sockets / "file").read_text() == "of somebody"
    with pytest.raises(RunError, match="nobody asked"):
        reside(
            node, sockets / "taken", keys=None, patience=0.05
        )  # what is left of a node that was killed is in nobody's way


@pytest.mark.parametrize("times", [1, 2, 3, 1000])
def test_one_question_of_an_exchange_is_answered(times: int, tmp_path: Path) -> None:
    """A call that is repeated has its answer kept: thousands in one exchange would all be answered from memory."""
    asking = asked_of.Coordinator(tmp_path)
    found = Residence(asking.node)
    call = Call(
        attempt=1, number=1, ended=0, program="method", handler="train", heading="training", round=1, index=0,
        recoverable=False, message=True,
    )  # fmt: skip
    payload = bytes(encoded(Weights(asking.zeros)))
    cancel = frames(Cancel(attempt=1, number=7))  # is no question
    said = [*cancel, *(frame for _ in range(times) for frame in frames(call, payload))]

    def ask(stream: bytes, number: int, said: Sequence[bytes]) -> list[Any]:
        packet = _packet(ASK, stream, number, said)
        answer = b"".join(found.answer(io.BytesIO(packet).read, len(packet)))
        assembler = Assembler()
        return [assembler.feed(frame) for frame in received(Plain(), opened_whole(answer, (ANSWER,))[1])]

    ask(STREAM, 0, [])
    if times == 1:
        ((reply, _),) = ask(STREAM, 1, said)
        assert isinstance(reply, Reply)
        assert reply.failure is None
    else:
        with pytest.raises(FrameError, match="a second question in one exchange, 'call' after 'call'"):
            ask(STREAM, 1, said)
    lines = [json.loads(line)["what"] for line in (tmp_path / "state" / "audit.jsonl").read_bytes().splitlines()]
    assert lines.count("reply") == 1
    ask(b"t" * NAME, 0, [])  # the stream is over, the node is not: the answer waits in another
    ((again, _),) = ask(b"t" * NAME, 1, list(frames(call, payload)))
    assert (again.number, again.failure) == (1, None)
    asking.node.close()


def test_a_coordinator_asks_one_thing_in_an_exchange() -> None:
    link, cancel, begin = Link(lambda: None), Cancel(attempt=1, number=1), Begin(attempt=2, client=0, clients=1, d=None)
    call = Call(
        attempt=1, number=2, ended=0, program="method", handler="train", heading="training", round=1, index=0,
        recoverable=False, message=True,
    )  # fmt: skip
    payload = b"x" * (3 << 20)
    for envelope, more in ((cancel, b""), (call, payload), (cancel, b""), (begin, b""), (begin, b"")):
        link.send(envelope, more)
    link.end()
    for expected in ([*frames(cancel), *frames(call, payload)], [*frames(cancel), *frames(begin)], [*frames(begin)]):
        assert link.waiting() == (expected, False)
    assert link.waiting() == ([], True)


# --- how much comes


def test_an_answer_beyond_the_largest_message_is_refused_by_its_size() -> None:
    """Whoever sends it is sent away, as over gRPC: it would come again. What fits is read on."""
    largest = 1000
    most = most_of(largest)
    grid, notes, broke = FakeGrid(), list[str](), list[str]()

    def grown(message: Message) -> RecordDict:
        """A hello, and behind it, once it was asked something, too much."""
        asked = packet_of(message.content)
        assert asked is not None
        if opened_whole(asked, (ASK,))[0].number == 0:
            return _greeting()(message)
        return content_of(_bare(message) + bytes(most + 1 - len(_bare(message))))

    def join(link: Link, incoming: Iterator[bytes], peer: Peer) -> None:
        def read() -> None:
            try:
                for _ in incoming:
                    link.send(Begin(attempt=1, client=0, clients=1, d=None))
            except FrameError as error:
                broke.append(str(error))

        threading.Thread(target=read, daemon=True).start()

    def at_once(size: int) -> Any:
        return lambda message: content_of(_bare(message) + bytes(size - len(_bare(message))))

    grid.nodes = {0: (_reply(grown), {}), 1: (_reply(at_once(most + 1)), {}), 2: (_reply(at_once(most)), {})}
    carrier = FlowerCarrier(grid, notes.append, None, largest, replace(QUICK, closing=0.1))
    carrier.open(10, join)
    until(lambda: len(notes) >= 2 and bool(broke), 10, lambda: str(notes))
    carrier.close()
    text = f"an answer of {most + 1} bytes: at most {most} are taken, with messages of 1000 (largest)"
    assert broke[0] == text
    assert f"Flower node 1: {text}" in notes
    assert any(note.startswith("Flower node 2: no answer of ours: a frame of 0 bytes") for note in notes)


@pytest.mark.parametrize("largest", [1, 1 << 20, 20 << 20])
def test_a_largest_message_fits_with_frames_and_tls(largest: int, guarded: tuple[Residence, Path]) -> None:
    channel = Tls(context_of_coordinator(guarded[1] / "keys" / "coordinator"), None)
    _spoken(guarded[0], channel, STREAM)
    said = sent(channel, frames(Reply(attempt=1, number=1, message=True), b"x" * largest))
    assert len(Head(ANSWER, STREAM, 2).packed()) + sum(map(len, said)) < most_of(largest) - HEADER


def test_a_message_beyond_a_vendors_limit_is_let_go_and_answered(tmp_path: Path) -> None:
    """As over gRPC: the coordinator hears why, and none of it was held."""
    asking = asked_of.Coordinator(tmp_path, "[limits]\nmessage_bytes = 5000\n")
    found = Residence(asking.node)
    call = Call(
        attempt=1, number=1, ended=0, program="method", handler="train", heading="training", round=1, index=0,
        recoverable=False, message=True,
    )  # fmt: skip
    answers = []
    for number, said in enumerate(([], list(frames(call, bytes(3 << 20))))):
        packet = _packet(ASK, STREAM, number, said)
        answers.append(b"".join(found.answer(io.BytesIO(packet).read, len(packet))))
    (frame,) = received(Plain(), opened_whole(answers[1], (ANSWER,))[1])
    (reply, _) = Assembler().feed(frame) or (None, b"")
    assert isinstance(reply, Reply)
    assert reply.failure == "bad-message"
    assert any("3145728" in text and "5000" in text for text in asking.said), asking.said
    asking.node.close()


# --- who is at the ends


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[Residence, Path]]:
    """A node with keys, and the folder of all keys; `other` has those of another authority."""
    one = Parties(tmp_path, ("ant", "bee"))
    one.prepare({"method": "fedavg"}, ["logistic"])
    make_keys(tmp_path / "other", ["ant"], ["127.0.0.1"])
    vendor = read_vendor(tmp_path / "ant" / "vendor.toml")
    files = vendor.key_files()
    assert files is not None
    with closing(Node(vendor, Events(None, lambda text: None))) as node:
        yield Residence(node, context_of_node(files)), tmp_path


def wrong_keys(folder: Path) -> None:
    """Keys of the authority of a folder's `keys` that are not the coordinator's: a node's, and one for another host."""
    keys = folder / "keys"
    shutil.copytree(keys / "bee", folder / "bee-as-coordinator")
    for path in (folder / "bee-as-coordinator").glob("bee.*"):
        path.rename(path.with_name(f"coordinator{path.suffix}"))
    (folder / "elsewhere").mkdir()
    for name in ("ca.key", "ca.crt"):
        shutil.copy(keys / name, folder / "elsewhere" / name)
    make_keys(folder / "elsewhere", [], ["coordinator.example.org"])


def _spoken(found: Residence, channel: Tls, stream: bytes) -> list[bytes]:
    """What a node says to a coordinator that has opened a stream."""
    said = list[bytes]()
    for number in range(2):
        packet = b"".join((Head(ASK, stream, number).packed(), *(sent(channel, []) if number else [])))
        answer = b"".join(found.answer(io.BytesIO(packet).read, len(packet)))
        said += received(channel, opened_whole(answer, (ANSWER,))[1])
    return said


def test_a_node_with_keys_speaks_to_its_coordinator_alone(guarded: tuple[Residence, Path]) -> None:
    found, folder = guarded
    keys = folder / "keys"
    assert len(_spoken(found, Tls(context_of_coordinator(keys / "coordinator"), None), STREAM)) == 1
    wrong_keys(folder)
    log = (folder / "ant" / "state" / "audit.jsonl").read_bytes()
    for number, wrong in enumerate(("bee-as-coordinator", "other/coordinator", "elsewhere/coordinator")):
        with pytest.raises(ssl.SSLError):
            _spoken(found, Tls(context_of_coordinator(folder / wrong), None), bytes([number]) * NAME)
    for said in ([], [b"x" * 99]):  # without TLS
        packet = _packet(ASK, b"9" * NAME, 0, said)
        with suppress(ssl.SSLError):
            found.answer(io.BytesIO(packet).read, len(packet))
    assert (folder / "ant" / "state" / "audit.jsonl").read_bytes() == log  # it has said nothing
    packet = _packet(ASK, STREAM, 2)
    answer = b"".join(found.answer(io.BytesIO(packet).read, len(packet)))
    assert opened_whole(answer, (ANSWER,))[0] == (ANSWER, STREAM, 2)  # and the stream that was open still is


@pytest.mark.parametrize(
    ("whose", "said"),
    [
        ("elsewhere", r"for another name than 127.0.0.1, .* have it made for 127.0.0.1 "),
        ("other", r"no certificate of this node's authority \("),
        ("bee-as-coordinator", "not a coordinator's: another node's"),
    ],
)
def test_a_node_says_why_keys_do_not_fit_and_waits_for_others(
    whose: str, said: str, tmp_path: Path, sockets: Path
) -> None:
    """Whoever reaches the SuperLink can ask, so nobody ends a node's part by keys of his own, however often."""
    one = Parties(tmp_path, ("ant", "bee"))
    one.prepare({"method": "fedavg"}, ["logistic"])
    make_keys(tmp_path / "other", ["ant"], ["127.0.0.1"])
    wrong_keys(tmp_path)
    keys = tmp_path / "keys" / "coordinator"
    living = Living(one, sockets)
    place = living.begin("ant")

    def asked(folder: Path, stream: bytes) -> bytes:
        channel = Tls(context_of_coordinator(folder), None)
        answer = b""
        for number in range(2):
            packet = Head(ASK, stream, number).packed() + b"".join(sent(channel, []) if number else [])
            answer = handed_on(packet, str(place))
            list(received(channel, opened_whole(answer, (ANSWER,))[1]))
        return channel.credential

    folder = tmp_path / whose if whose == "bee-as-coordinator" else tmp_path / whose / "coordinator"
    for number in range(7):
        with pytest.raises(OSError, match="too early"):
            asked(folder, bytes([number]) * NAME)
    assert len([line for line in living.said if re.search(said, line)]) == 7
    assert b"CERTIFICATE" in asked(keys, STREAM)
    assert not living.ended


def test_a_byte_that_somebody_changed_ends_the_stream(guarded: tuple[Residence, Path]) -> None:
    found, folder = guarded
    for at in (0, 5, -1):
        channel, stream = Tls(context_of_coordinator(folder / "keys" / "coordinator"), None), bytes([at % 256]) * NAME
        _spoken(found, channel, stream)
        body = bytearray(b"".join(sent(channel, frames(End(reason="", finished=True)))))
        body[at] ^= 1
        packet = Head(ASK, stream, 2).packed() + bytes(body)
        with pytest.raises(OSError, match=r"SSL|TLS"):
            found.answer(io.BytesIO(packet).read, len(packet))
        assert found.last is None


def test_a_coordinator_with_keys_admits_whom_it_knows(tmp_path: Path, sockets: Path) -> None:
    """Not a revoked key, and no key under another's name: the certificate says who a node is."""
    two = Parties(tmp_path, ("ant", "bee"))
    config, _ = prepared(two, "fedavg")
    known = tmp_path / "keys" / "coordinator"
    vendor = tmp_path / "bee" / "vendor.toml"
    (known / "nodes" / "bee.crt").rename(known / "revoked" / "bee.crt")
    living, grid = Living(two, sockets), FakeGrid()
    grid.nodes = {
        number: (client_app(), {PLACE: str(living.begin(name))}) for number, name in enumerate(two.names)
    }  # fmt: skip
    running = threading.Thread(target=lambda: _coordinated(two, config, grid), daemon=True)
    running.start()
    until(lambda: "bee" in living.ended, 20, lambda: str(living.ended))
    assert "revoked key" in living.ended.pop("bee")
    (known / "revoked" / "bee.crt").rename(known / "nodes" / "bee.crt")
    text = vendor.read_text()
    vendor.write_text(text.replace('name = "bee"', 'name = "ant"').replace('state = "state"', "") + "")
    shutil.rmtree(tmp_path / "bee" / "state")
    living.begin("bee")
    until(lambda: "bee" in living.ended, 20, lambda: str(living.ended))
    assert "that of the certificate, 'bee'" in living.ended.pop("bee")
    vendor.write_text(text)
    shutil.rmtree(tmp_path / "bee" / "state")
    living.begin("bee")
    running.join(30)
    until(lambda: len(living.ended) == 2, 10)
    assert set(living.ended.values()) == {"the run is finished"}


# --- what runs at a client


def test_a_relay_says_no_more_than_a_word(sockets: Path) -> None:
    message = Message(content_of(b"x"), 1, "query.interfuse")
    message.metadata.__dict__["_message_id"] = "1"
    deaf = socket.socket(socket.AF_UNIX)
    deaf.bind(str(sockets / "deaf"))
    deaf.listen()
    threading.Thread(target=lambda: deaf.accept()[0].close(), daemon=True).start()
    for place, word in (("", UNNAMED), (str(sockets / "none"), NOBODY), (str(sockets / "deaf"), BROKEN)):
        config = {PLACE: place} if place else {}
        context = Context(run_id=1, node_id=1, node_config=config, state=RecordDict(), run_config={})
        content = client_app()(message, context).content
        assert failure_of(content) == word
        assert packet_of(content) is None
    deaf.close()


def test_what_flower_starts_for_every_message_imports_nothing_large() -> None:
    code = "import sys, interfuse_relay.app; print({'torch', 'interfuse'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_clients_of_a_simulation_are_those_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their shares of one data set, whichever process gets a message: here are two, which share no memory."""
    data = rows(tmp_path, "all", 0, count=90)
    recipe = parse_config({
        "method": "fedavg", "data": str(data), "clients": 2, "models": ["logistic"], "fusion_width": 8, "rounds": 2,
        "eval_every": 2, "beside": [], "partition": {"name": "dirichlet", "alpha": 1.0},
        "sampling": {"draws_from": "seed"}, "execution": {"workers": 1, "commit_rounds": 1},
    })  # fmt: skip
    app_folder, run, local = tmp_path / "app", tmp_path / "run", tmp_path / "local"
    write_app(recipe, app_folder, run, None)
    file = app_folder / "interfuse_app" / "recipe.toml"
    monkeypatch.setattr(relaying, "_in_simulation", lambda: True)
    turn, calls, grid = threading.Lock(), [0], FakeGrid()  # two actors are one process here
    monkeypatch.setattr(simulated.threading, "Lock", lambda: turn)
    homes = [simulated.Homes(file), simulated.Homes(file)]
    monkeypatch.setattr(simulated, "homes_of", lambda recipe: homes[calls[0] % 2])

    def handed(message: Message, context: Context) -> Message:
        calls[0] += 1
        given = Context(9, context.node_id, context.node_config, RecordDict(), {"out": str(run)})
        return client_app(simulated=file)(message, given)

    grid.nodes = {7 - number: (handed, {"partition-id": number, "num-partitions": 2}) for number in range(2)}
    terms = Terms(FlowerCarrier(grid, print, None, pace=QUICK), 2, simulated=True)
    result = coordinate(read_config(file), run, terms, Silent())
    assert title(result.summary) == "fedavg on all, 2 clients at simulated nodes, 2 rounds, seed 0"
    execute(between_parties(recipe, 2), local)
    folders = {f"client-{client:05d}": run / "nodes" / f"client-{client:05d}" for client in range(2)}
    assert same_bits(states(run, folders), states(local, {}))
    assert (run / "ledger.jsonl").read_bytes() == (local / "ledger.jsonl").read_bytes()
    sockets = Path(tempfile.gettempdir()) / "interfuse-9"
    until(lambda: not sockets.exists(), 30, lambda: str(list(sockets.iterdir())))  # the last node takes it away


def test_every_message_in_a_process_finds_the_same_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower sends the ClientApp with each: nodes of several would draw from the one global generator side by side."""
    recipe, found = tmp_path / "recipe.toml", list[simulated.Homes]()
    recipe.write_text(to_toml(parse_config({"clients": 2})))
    monkeypatch.setattr(relaying, "_in_simulation", lambda: True)
    monkeypatch.setattr(simulated.Homes, "place_of", lambda self, context: found.append(self) or "")
    for partition in (0, 1, 0):
        context = Context(9, 7, {"partition-id": partition, "num-partitions": 2}, RecordDict(), {})
        message = Message(content_of(b""), dst_node_id=7, message_type=f"query.{ACTION}")
        client_app(simulated=recipe)(message, context)
    assert len(found) == 3
    assert len(set(map(id, found))) == 1


@pytest.mark.parametrize("put", ["link", "link to nothing", "file", "folder for all", "of another"])
def test_sockets_of_a_simulation_are_in_no_folder_of_others(
    put: str, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can name the folder before could answer in the nodes' place."""
    monkeypatch.setattr(tempfile, "tempdir", str(sockets))
    place = simulated._own_folder(10)
    assert (place, stat.S_IMODE(place.stat().st_mode)) == (sockets / "interfuse-a", 0o700)
    assert simulated._own_folder(10) == place  # another process of the same user
    (sockets / "mine").mkdir(mode=0o700)
    if put == "of another":
        monkeypatch.setattr(simulated.os, "geteuid", lambda: os.getuid() + 1)
    elif put == "folder for all":
        place.chmod(0o770)
    else:
        place.rmdir()
        if put == "file":
            place.write_text("")
        else:
            place.symlink_to(sockets / ("mine" if put == "link" else "nothing"))
    with pytest.raises(ConfigError, match="interfuse-a.*set TMPDIR"):
        simulated._own_folder(10)


def test_a_node_at_a_socket_asks_for_keys_as_over_grpc(tmp_path: Path) -> None:
    one = Parties(tmp_path, ("ant",), secure=False)
    one.prepare({"method": "fedavg"}, ["logistic"])
    with pytest.raises(ConfigError, match=r"names no \[keys\]"):
        network.node(tmp_path / "ant" / "vendor.toml", at_socket=tmp_path / "ant.sock", quiet=True)


def test_an_app_is_a_recipe_and_two_calls(tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["flower-app", "ifl", "--insecure", "--out", str(tmp_path / "app")])
    files = sorted(path for path in (tmp_path / "app").rglob("*") if path.is_file())
    assert sorted(map(str, files)) == sorted(said.stdout.split())
    for path in (path for path in files if path.suffix == ".py"):
        for one in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(one, ast.FunctionDef | ast.ClassDef | ast.Import)
            if isinstance(one, ast.ImportFrom):
                assert one.module in ("pathlib", "interfuse.flower.server", "interfuse_relay.app")
    assert "200 rounds, 4 nodes (as the recipe has clients)" in said.stderr
    assert not AppSettings.read({"out": "/tmp/x", "nodes": 4, "insecure": True}).minimum
    for values, key in (
        ({"nodes": 4}, "out"), ({"out": "x", "nodes": 4}, "absolute"), ({"out": "/x", "nodes": 0}, "nodes"),
        ({"out": "/x", "nodes": 1, "y": 1}, "y"), ({"out": "/x", "nodes": 1}, "either keys"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=key):
            AppSettings.read(values)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("")
    with pytest.raises(ConfigError, match="holds something else"):
        write_app(parse_config({}), tmp_path / "mine", tmp_path / "run", None)
    for run, folder in (("notes", "other"), ("run", "mine/notes"), ("run", "mine/notes/below")):
        with pytest.raises(ConfigError, match=r"is a file; name a folder|Not a directory; name another folder"):
            write_app(parse_config({}), tmp_path / folder, tmp_path / "mine" / run, None)
    with pytest.raises(ConfigError, match="execution.engine = 'ray': between parties every client is at its own node"):
        write_app(parse_config({"execution": {"engine": "ray"}}), tmp_path / "ray", tmp_path / "run", None)


def test_an_app_is_written_with_the_options_of_a_run(tmp_path: Path) -> None:
    words = (
        "flower-app demo --insecure --rounds 3 --patience 2 --seed 4 --set local_steps=2 --data digits --clients 2 "
        "--partition dirichlet --alpha 0.3 --test 0.2 --normalise plain --models mlp,logistic --width 8 "
        "--initial common --codec int8 --order stored --last-batch drop --denormals keep --commit-every 2 "
        "--eval-every 3 --out"
    )
    said = CliRunner().invoke(app, [*words.split(), str(tmp_path / "app"), "--run", str(tmp_path / "mine")])
    assert not said.exit_code, said.output
    assert "ifl, 3 rounds, 2 nodes (as the recipe has clients); the folder of the run" in said.stderr
    assert said.stderr.strip().endswith(str(tmp_path / "mine"))
    found = read_config(tmp_path / "app" / "interfuse_app" / "recipe.toml").model_dump(mode="json")
    expected = {
        "method": "ifl", "rounds": 3, "seed": 4, "data": "digits", "clients": 2, "test": 0.2, "normalise": "plain",
        "models": ["mlp", "logistic"], "fusion_width": 8, "initial": "common", "codecs": {"default": "int8"},
        "eval_every": 3,
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    assert (found["partition"]["name"], found["partition"]["alpha"]) == ("dirichlet", 0.3)
    assert (found["sampling"]["order"], found["sampling"]["last_batch"]) == ("stored", "drop")
    assert (found["settings"]["local_steps"], found["stop"]["patience"]) == (2, 2)
    assert (found["numerics"]["denormals"], found["execution"]["commit_rounds"]) == ("keep", 2)
    assert "nodes = 2\n" in (tmp_path / "app" / "pyproject.toml").read_text()


def test_a_simulation_says_which_ray_it_joins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ray_that_was_there() == ""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.7:6379\n")
    assert ray_that_was_there() == "10.0.0.7:6379"
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert ray_that_was_there() == ""
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert ray_that_was_there() == "head:6379"
