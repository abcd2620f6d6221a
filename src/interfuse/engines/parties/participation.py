"""How a node takes part in a run: one long-lived stream to its coordinator, made anew for as long as it takes."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from interfuse.engines.parties.carrier import Dial, Line, LineError, MisnamedError, StrangeError
from interfuse.engines.parties.frames import Assembler, Begin, Call, End, FrameError, Order, frames
from interfuse.engines.parties.node import Node, RefusedError
from interfuse.errors import RunError

SHORTEST, LONGEST = 0.1, 10.0
"""Seconds between two attempts to reach the coordinator, before jitter."""
STRANGERS = 5
"""Tries at which a stranger answers, before a node that was never in the run gives up. One that was goes on trying:
whoever can answer in the coordinator's place for a while must not be able to end its part."""


def take_part(node: Node, dial: Dial, *, patience: float | None = None) -> str:
    """Take part in a run to its end; returns the coordinator's last words.

    Args:
        patience: Seconds without a coordinator after which to give up; None: never.

    Raises:
        RefusedError: one of the sides does not agree with the other, or somebody else answers, before the node has ever
            been in the run.
        RunError: no coordinator could be reached within ``patience``, or nothing may leave.
    """
    pause, lost = SHORTEST, time.monotonic()
    ever, strangers = False, 0
    while True:
        reached = False
        with dial() as line:
            try:
                for last in _served(node, line):
                    reached = True
                    if last is not None:
                        node.events.add("ends", reason=last.reason)
                        if not last.finished:
                            raise RefusedError(f"the coordinator ended this node's part: {last.reason}")
                        return last.reason
                reason = "the stream ended"
            except MisnamedError as error:
                if not ever:
                    for found in error.found[:1]:
                        line.tell(found, frames(*node.misnamed(error.found)))
                    raise RefusedError(str(error)) from error
                reason = str(error)
            except StrangeError as error:
                reason, strangers = str(error), strangers + 1
                if not ever and strangers >= STRANGERS:
                    raise RefusedError(f"{reason} ({strangers} tries)") from error
            except LineError as error:
                reason, strangers = str(error), 0
            except FrameError as error:
                reason = f"the coordinator sent no frame of ours: {error}"
            except RefusedError as error:
                line.finish()
                if not error.retry:
                    raise
                reason = str(error)
        if reached:
            ever, strangers = True, 0
            pause, lost = SHORTEST, time.monotonic()
        if patience is not None and time.monotonic() - lost > patience:
            raise RunError(
                f"no coordinator at {node.vendor.coordinator} for {patience:g} seconds; the last try: {reason}"
            )
        node.events.add("connects again", reason=reason, pause=round(pause, 1))
        time.sleep(pause * random.uniform(0.5, 1.5))
        pause = min(2 * pause, LONGEST)


def _served(node: Node, line: Line) -> Iterator[End | None]:
    """Answer until the stream ends. Yields None for every piece of a run's work, and the end if there is one."""
    assembler = Assembler(node.vendor.limits.message_bytes, ends=False)
    for frame in frames(*node.hello()):
        line.send(frame)
    for received in line.received():
        whole = assembler.feed(received)
        if whole is None:
            continue
        if isinstance(whole[0], End):
            yield whole[0]
            return
        for answer in node.answer(*whole):
            for frame in frames(*answer):
                line.send(frame)
            del answer  # it may be large, and the next one is long in coming
        if isinstance(whole[0], Begin | Call | Order):
            yield None
