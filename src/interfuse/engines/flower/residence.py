"""A node that stays where Flower's processes come and go: it answers exchanges at a socket of its own machine."""

from __future__ import annotations

import os
import socket
import ssl
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from interfuse.engines.flower.channel import Channel, context_of_node, of_node, why_unfit
from interfuse.engines.flower.exchange import ANSWER, ASK, GONE, opened, received, sent
from interfuse.engines.parties import KeyFiles
from interfuse.engines.parties.frames import Assembler, End, FrameError, Question, frames
from interfuse.engines.parties.node import Node, RefusedError
from interfuse.errors import ConfigError, RunError
from interfuse_relay.lines import announced, exactly, send

WAITING = 16
"""Connections that wait while another is answered."""
SILENCE = 20.0
"""Seconds after which a connection that says nothing, or takes nothing, is ended."""


@dataclass
class _Stream:
    """A stream's end at a node.

    Attributes:
        number: Of its next exchange.
        whole: No exchange of it broke off.
        greeted: Its other end is known, and has heard who this is.
    """

    channel: Channel
    assembler: Assembler
    number: int = 0
    whole: bool = True
    greeted: bool = False


class Residence:
    """A node's end of the streams of exchanges: the last whose other end is known counts, and no exchange of it is
    carried out twice. Whoever does not hear an answer opens another stream, and asks in that as over any carrier.

    Args:
        context: Of the node's keys; None: whoever opens a stream is the coordinator.

    Attributes:
        last: The coordinator's last words, once there are some.
        refusal: Why this node's part is over otherwise, once it is.
    """

    def __init__(self, node: Node, context: ssl.SSLContext | None = None) -> None:
        self._node, self._context = node, context
        self._streams: dict[bytes, _Stream] = {}
        self.last: End | None = None
        self.refusal: RefusedError | None = None

    def answer(self, read: Callable[[int], bytes], size: int) -> list[bytes]:
        """The answer to a packet, in parts.

        Args:
            read, size: As :func:`interfuse.engines.flower.exchange.opened` takes them.

        Raises:
            FrameError: it is none of ours.
            OSError: it broke off, or the other end is not who it should be.
            RunError: the audit log cannot be written, so nothing may leave.
        """
        asked, pieces = opened(read, size, (ASK,))
        if asked.number == 0 and asked.stream not in self._streams:
            self._open(asked.stream)
        stream = self._streams.get(asked.stream)
        if stream is None or not stream.whole or asked.number != stream.number:
            for _ in pieces:  # they are let go, so that whoever sent them hears
                pass
            return [asked._replace(kind=GONE).packed()]
        stream.number, stream.whole = asked.number + 1, False
        answers = list(self._answers(stream, received(stream.channel, pieces)))
        if stream.channel.ready and not stream.greeted:
            self._streams, stream.greeted = {asked.stream: stream}, True
            answers = list(frames(*self._node.hello()))
        stream.whole = self.refusal is None
        return [asked._replace(kind=ANSWER).packed(), *sent(stream.channel, answers)]

    def _open(self, name: bytes) -> None:
        """Begin a stream; those before it go once its other end is known, and those that were begun in vain now."""
        self._streams = {name: one for name, one in self._streams.items() if one.greeted}
        assembler = Assembler(self._node.vendor.limits.message_bytes, ends=False)
        self._streams[name] = _Stream(of_node(self._node.vendor, self._context), assembler)

    def _answers(self, stream: _Stream, came: Iterator[bytes]) -> Iterator[bytes]:
        """Frames of the answer, up to where the coordinator or this node ends it.

        Raises:
            FrameError: more is asked than one thing. An answer may be large, and waits here until the exchange ends.
        """
        asked = ""
        for frame in came:
            if not stream.greeted:
                raise FrameError("frames before the node has said who it is")
            whole = stream.assembler.feed(frame)
            if whole is None:
                continue
            if isinstance(whole[0], End):
                self.last = whole[0]
                return
            if isinstance(whole[0], Question):
                if asked:
                    raise FrameError(
                        f"a second question in one exchange, {whole[0].kind!r} after {asked!r}: a coordinator asks one "
                        "thing at a time"
                    )
                asked = whole[0].kind
            try:
                for answer in self._node.answer(*whole):
                    yield from frames(*answer)
            except RefusedError as error:
                self.refusal = error
                return


def reside(
    node: Node,
    place: Path,
    *,
    keys: KeyFiles | None,
    patience: float | None = None,
    turn: AbstractContextManager[object] | None = None,
    ready: Callable[[], object] = lambda: None,
) -> str:
    """Take part in a run to its end, as one is asked at a socket; returns the coordinator's last words.

    Args:
        keys: With which the node speaks to its coordinator alone; None: it obeys whoever reaches the socket.
        patience: Seconds without being asked after which to give up; None: never.
        turn: Held while the node works, where several live in one process.
        ready: Called once it can be asked.

    Raises:
        RefusedError: one of the sides does not agree with the other.
        ConfigError: there can be no socket at the place.
        RunError: nobody asked within ``patience``, or nothing may leave.
    """
    residence = Residence(node, None if keys is None else context_of_node(keys))
    with _listening(place) as listener:
        node.events.add("answers", socket=place)
        ready()
        while True:
            listener.settimeout(patience)
            try:
                line, _ = listener.accept()
            except TimeoutError:
                raise RunError(f"nobody asked at {place} for {patience:g} seconds") from None
            with line:
                _serve(line, residence, node, turn or nullcontext())
            if (last := residence.last) is not None:
                node.events.add("ends", reason=last.reason)
                if not last.finished:
                    raise RefusedError(f"the coordinator ended this node's part: {last.reason}")
                return last.reason
            if (refusal := residence.refusal) is not None:
                if not refusal.retry:
                    raise refusal
                node.events.add("waits to be asked again", reason=refusal)
                residence.refusal = None


def _serve(line: socket.socket, residence: Residence, node: Node, turn: AbstractContextManager[object]) -> None:
    """Answer one connection; whatever is wrong with it concerns it alone."""
    line.settimeout(SILENCE)
    try:
        size = announced(line)
        with turn:
            answer = residence.answer(partial(exactly, line), size)
        send(line, answer)
    except ssl.SSLCertVerificationError as error:
        node.events.add("an exchange broke off", reason=why_unfit(error, node.vendor))
    except (OSError, FrameError) as error:
        node.events.add("an exchange broke off", reason=error)


@contextmanager
def _listening(place: Path) -> Iterator[socket.socket]:
    """A socket at a place, for this user and its group."""
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            _vacate(place)
            listener.bind(str(place))
            os.chmod(place, 0o660)
            listener.listen(WAITING)
        except OSError as error:
            raise ConfigError(
                f"--socket {place}: no socket can be there: {error.strerror or error}; name a short path in a folder "
                "that this user can write to, and the SuperNode's can enter"
            ) from error
        try:
            yield listener
        finally:
            with suppress(OSError):
                place.unlink()


def _vacate(place: Path) -> None:
    """Take away what a node that was killed has left."""
    if not place.exists() or not stat.S_ISSOCK(place.lstat().st_mode):
        return
    with socket.socket(socket.AF_UNIX) as other:
        if other.connect_ex(str(place)) == 0:
            raise OSError("another node answers there")
    place.unlink()
