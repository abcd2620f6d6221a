"""Requests that come while a block is at work are computed together when it is done."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from interfuse.artefacts import Artefact
from interfuse.data.inputs import Inputs, joined, rows_of, split
from interfuse.errors import ArtefactError
from interfuse.serve.faults import ServiceError
from interfuse.serve.limits import ServiceLimits

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Waiting:
    """A request: ``until`` ends its wait, in the queue first and then for the computation."""

    x: Inputs
    rows: int
    answer: asyncio.Future[Inputs]
    until: asyncio.Timeout
    begun: bool = False


class Batches:
    """The queue in front of one block. Nobody waits for company: what is there when the block is free goes in.

    An answer does not depend on what else was computed with it, but for rounding.

    Args:
        turn: Who holds it may use the executor; blocks that share an executor share it, so that what waits for another
            block's computation waits in the queue.
        seen: Told the rows of each computation.
    """

    def __init__(
        self,
        artefact: Artefact,
        limits: ServiceLimits,
        executor: Executor,
        turn: asyncio.Lock,
        seen: Callable[[int], None],
    ) -> None:
        self._artefact, self._limits, self._executor, self._seen = artefact, limits, executor, seen
        self._turn = turn
        self._queue: deque[_Waiting] = deque()
        self._more = asyncio.Event()

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    async def __call__(self, x: Inputs) -> Inputs:
        """What the block makes of checked samples.

        Raises:
            ServiceError: too many wait already, it took too long until their turn or from then on, or the block cannot
                take these.
        """
        if len(self._queue) >= self._limits.waiting:
            raise ServiceError("busy", f"{len(self._queue)} requests wait already: try again", retry=1)
        until = asyncio.timeout(self._limits.wait)
        mine = _Waiting(x, rows_of(x), asyncio.get_running_loop().create_future(), until)
        self._queue.append(mine)
        self._more.set()
        try:
            async with until:
                return await mine.answer
        except TimeoutError:
            why = f"no turn within {self._limits.wait:g} seconds: try again"
            if mine.begun:
                why = f"no answer within {self._limits.compute:g} seconds of computation: send fewer samples"
            raise ServiceError("busy", why, retry=2) from None

    async def work(self) -> None:
        """Compute what comes, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            while not self._queue:
                self._more.clear()
                await self._more.wait()
            async with self._turn:
                if not (batch := self._next()):
                    continue
                self._seen(sum(one.rows for one in batch))
                for one in batch:
                    one.begun = True
                    one.until.reschedule(loop.time() + self._limits.compute)
                try:
                    found = await loop.run_in_executor(self._executor, self._computed, [one.x for one in batch])
                except Exception:  # a block that does what none should ends its batch, and not the service
                    _log.exception("a block failed")
                    found = [ServiceError("internal", "the block failed; the service's log says why") for _ in batch]
            for one, answer in zip(batch, found, strict=True):
                if one.answer.done():
                    continue
                if isinstance(answer, ServiceError):
                    one.answer.set_exception(answer)
                else:
                    one.answer.set_result(answer)

    def _next(self) -> list[_Waiting]:
        """Those that are computed next: as many as fit, the first at least; who waits no more is left out."""
        found: list[_Waiting] = []
        rows = 0
        while self._queue and (not found or rows + self._queue[0].rows <= self._limits.rows):
            one = self._queue.popleft()
            if not one.answer.done():
                found.append(one)
                rows += one.rows
        return found

    def _computed(self, several: list[Inputs]) -> list[Inputs | ServiceError]:
        """The answers to several, or why there is none; where there is none to all together, to each alone."""
        try:
            answer = self._artefact(joined(several))
        except ArtefactError as error:
            if len(several) > 1:
                return [found for one in several for found in self._computed([one])]
            return [ServiceError("impossible", str(error))]
        return list(split(answer, [rows_of(one) for one in several]))
