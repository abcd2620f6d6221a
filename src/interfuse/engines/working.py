"""What a worker makes of a call, and what its engine makes of the answers, whatever carries them between the two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from interfuse.client import ClientId
from interfuse.clients import Answer, Failure, Request
from interfuse.engines.groups import run_group
from interfuse.engines.host import Host
from interfuse.handler import handlers
from interfuse.messages import Message, flatten, unflatten
from interfuse.setup import Setup

Numbered = tuple[ClientId, int | None]
"""A client, and the number of the message that it gets."""


def worked(
    host: Host,
    setup: Setup,
    request: Request,
    groups: Sequence[Sequence[Numbered]],
    read: Callable[[int], Mapping[str, Tensor]],
    write: Callable[[Mapping[str, Tensor]], Any],
) -> list[list[Any]]:
    """Run a handler on groups of clients, inside :meth:`.Host.working`; what of each is told to :func:`heard`.

    Args:
        read: From the number of a message to its tensors, which belong to this worker.
        write: From the tensors of a reply, which may be others with the next group, to what is carried of them.
    """
    program = setup.programs_of(groups[0][0][0])[request.program]
    expected = handlers(type(program))[request.handler].message_type
    told: list[list[Any]] = []
    received: dict[int, Message] = {}  # clients with one message have the very same
    last = {number: place for place, group in enumerate(groups) for _, number in group}
    for place, group in enumerate(groups):
        for _, number in group:
            if number is not None and number not in received and expected is not None:
                received[number] = unflatten(expected, read(number))
        tasks = [(client, None if number is None else received.get(number)) for client, number in group]
        for answer in run_group(host, setup.numerics, request, tasks):
            failed = answer.reply if isinstance(answer.reply, Failure) else None
            sent = write(flatten(answer.reply)) if isinstance(answer.reply, Message) else None
            reason = None if failed is None else failed.reason
            work = (answer.seconds, answer.steps, answer.size, answer.left_out, answer.training)
            told.append([answer.client, sent, reason, *work])
        for _, number in group:
            if number is not None and last[number] == place:
                received.pop(number, None)
    return told


def reply_type_of(setup: Setup, request: Request) -> type[Message] | None:
    """What the handler of a request answers with."""
    program = setup.programs_of(next(iter(setup.profiles)))[request.program]
    return handlers(type(program))[request.handler].reply_type


def heard(told: Sequence[Any], reply_type: type[Message] | None, read: Callable[[Any], Mapping[str, Tensor]]) -> Answer:
    """What a worker has told of one client.

    Args:
        read: From what was carried of a reply to its tensors.
    """
    client, sent, reason, seconds, steps, (raw, wire), left_out, training = told
    if reason is not None:
        return Answer(client, Failure(client, reason), seconds)
    if sent is None or reply_type is None:
        return Answer(client, None, seconds, steps, left_out=left_out, training=training)
    return Answer(client, unflatten(reply_type, read(sent)), seconds, steps, (raw, wire), left_out, training)
