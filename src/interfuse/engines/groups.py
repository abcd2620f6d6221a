"""Clients of one architecture that work side by side in one process: what they train can be computed together."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Unpack

import torch
from torch import nn

from interfuse.client import ClientId, Profile
from interfuse.clients import Answer, Request
from interfuse.data import Batch
from interfuse.engines.host import Host
from interfuse.engines.stacked import LAYERS, FitCall, NotTogetherError, alike, fit_together
from interfuse.messages import Message
from interfuse.models import SplitModel
from interfuse.numerics import Numerics
from interfuse.randomness import standing
from interfuse.training import FitOptions, Fitted, Objective, OptimizerState, fit

Task = tuple[ClientId, Message | None]

A_MOMENT = 1.0
"""Seconds that a handler which nobody waits for any more is given to end, before its thread is left to itself."""


class Groups:
    """Who works with whom: of the clients of a call, those of one architecture in their order, so many at a time.

    Nothing but the calls of the round decides it. Who met in an earlier call of the round stays together.
    """

    def __init__(self, profiles: Mapping[ClientId, Profile], size: int) -> None:
        self._profiles, self._size = profiles, size
        self._group: dict[ClientId, int] = {}
        self._groups = 0

    def of(self, request: Request, clients: Iterable[ClientId]) -> list[list[ClientId]]:
        """The clients of a call by group, in the order of each group's first."""
        called = list(clients)
        if self._size == 1 or request.heading != "training":
            return [[client] for client in called]
        new: dict[str, list[ClientId]] = defaultdict(list)
        for client in called:
            if client not in self._group:
                new[self._profiles[client].architecture].append(client)
        for same in new.values():
            for start in range(0, len(same), self._size):
                self._groups += 1
                self._group.update(dict.fromkeys(same[start : start + self._size], self._groups))
        found: dict[int, list[ClientId]] = defaultdict(list)
        for client in called:
            found[self._group[client]].append(client)
        return list(found.values())

    def end_round(self) -> None:
        """The next round's calls form groups of their own."""
        self._group.clear()


def run_group(host: Host, numerics: Numerics, request: Request, tasks: Sequence[Task]) -> list[Answer]:
    """Run a handler on each client of a group, inside :meth:`.Host.working`. The seconds of each are an equal share.

    A handler has a thread of its own, and one of them works at a time: each until it calls ``fit``, where it waits.
    When all wait or are done, calls that are alike are carried out together, and the others by their own handlers.
    """
    if len(tasks) == 1:
        return [host.run(request, *task) for task in tasks]
    began = time.perf_counter()
    layers = LAYERS[numerics.layers_together]
    handlings = [_Handling(partial(_run, host, numerics, request, *task)) for task in tasks]
    answers: dict[int, Answer] = {}
    waiting: dict[int, FitCall] = {}

    def go_on(place: int, result: Fitted | Exception | None) -> None:
        reached = handlings[place].go_on(result)
        if isinstance(reached, FitCall):
            waiting[place] = reached
        else:
            answers[place] = reached

    try:
        for place in range(len(tasks)):
            go_on(place, None)
        while waiting:
            calls = dict(waiting)
            waiting.clear()
            for place, result in _carried_out(calls, layers).items():
                go_on(place, result)
    finally:
        for handling in handlings:
            handling.leave()
    seconds = (time.perf_counter() - began) / len(tasks)
    return [_with_share(answers[place], seconds, len(tasks)) for place in range(len(tasks))]


def _with_share(answer: Answer, seconds: float, clients: int) -> Answer:
    """An answer with its share of what the group took: while one trains, the others wait in their ``fit``."""
    training = {network: waited / clients for network, waited in answer.training.items()}
    return replace(answer, seconds=seconds, training=training)


def _carried_out(
    calls: Mapping[int, FitCall], layers: Collection[type[nn.Module]]
) -> dict[int, Fitted | Exception | None]:
    """What becomes of calls, together where that can be; None: a handler has to carry it out itself."""
    results: dict[int, Fitted | Exception | None] = dict.fromkeys(calls)
    for members in alike(calls, layers):
        try:
            results.update(zip(members, fit_together([calls[place] for place in members], layers), strict=True))
        except NotTogetherError:
            continue
        except Exception as error:  # an objective is foreign code: its clients fail with what it raises
            results.update(dict.fromkeys(members, error))
    return results


def _run(
    host: Host, numerics: Numerics, request: Request, client: ClientId, message: Message | None, handling: _Handling
) -> Answer:
    with numerics.applied():  # a thread has settings of its own
        return host.run(request, client, message, handling.fit)


class _LeftError(BaseException):
    """Nobody waits for this handler any more, since another one, or the user, has ended the process."""


class _Handling:
    """A handler's work in a thread of its own, which only goes on while :meth:`go_on` waits for it."""

    def __init__(self, work: Callable[[_Handling], Answer]) -> None:
        self._work = work
        self._results: SimpleQueue[Fitted | Exception | _LeftError | None] = SimpleQueue()
        self._reached: SimpleQueue[FitCall | Answer | BaseException] = SimpleQueue()
        self._thread = Thread(target=self._live, daemon=True)

    def go_on(self, result: Fitted | Exception | None) -> FitCall | Answer:
        """Have it work, with the result of what it waits for, until it waits again or is done. None: it has to carry
        that out itself."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._results.put(result)
        reached = self._reached.get()
        if isinstance(reached, BaseException):
            raise reached
        return reached

    def leave(self) -> None:
        """Have it end where it waits, so that it gives back what it holds; nothing, where it is done."""
        if self._thread.is_alive():
            self._results.put(_LeftError())
            self._thread.join(A_MOMENT)

    def _live(self) -> None:
        try:
            self._reached.put(self._work(self))
        except BaseException as error:
            self._reached.put(error)

    def fit(
        self,
        model: SplitModel,
        losses: Objective | Mapping[str, Objective],
        batches: Iterable[Batch],
        *,
        slots: OptimizerState | None = None,
        round: int = 0,
        autocast: torch.dtype | None = None,
        **options: Unpack[FitOptions],
    ) -> Fitted:
        """:func:`interfuse.training.fit`, with others where that can be."""
        call = FitCall(model, losses, batches, {} if slots is None else slots, round, autocast, options)
        put_back = standing()
        self._reached.put(call)
        result = self._results.get()
        if isinstance(result, _LeftError):
            raise result
        put_back()
        if isinstance(result, Exception):
            raise result
        if result is None:
            return fit(model, losses, call.batches, slots=slots, round=round, autocast=autocast, **options)
        return result
