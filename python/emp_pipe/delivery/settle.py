"""How deliveries end in the log: acks and dead letters gather for a moment and while a commit runs, and one commit takes them all.

Nobody waits for an ack, and a commit costs a sync of the disk. An ending waits here, in memory, until the log has it on stable storage; a
crash before that sends its rows once more, and loses nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from emp_pipe.clock import Clock
from emp_pipe.delivery.backoff import Backoff
from emp_pipe.delivery.shipment import Ending
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.protocol import Log, Rejection
from emp_pipe.logs import RateLimitedLogger

_MOST_PER_COMMIT = 512
_GATHER_S = 0.002
"""How long the first ending of a commit waits for others: a part of the time whose deliveries a crash repeats. While a commit runs the
next one gathers anyhow, and the store lets acks wait for an append where such have come lately."""


class Settler:
    """Commits endings; `backlog` counts those that the log does not have yet."""

    def __init__(self, log: Log, group: str, clock: Clock, backoff: Backoff, logger: logging.Logger, moved: Callable[[], None]) -> None:
        self._log = log
        self._group = group
        self._clock = clock
        self._backoff = backoff
        self._moved = moved
        self._logger = RateLimitedLogger(logger)
        self._endings: list[Ending] = []
        self._committing = 0
        self._wanted = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()
        self.failures = 0

    @property
    def backlog(self) -> int:
        return len(self._endings) + self._committing

    def settle(self, endings: list[Ending]) -> None:
        """Take endings over; they are committed in this order."""
        if endings:
            self._endings.extend(endings)
            self._settled.clear()
            self._wanted.set()

    async def wait_settled(self) -> None:
        """Return when the log has all of them."""
        await self._settled.wait()

    async def run(self) -> None:
        """Commit until cancelled, or until the log is closed."""
        while True:
            await self._wanted.wait()
            await self._clock.sleep(_GATHER_S)
            self._wanted.clear()
            while self._endings:
                batch = self._endings[:_MOST_PER_COMMIT]
                del self._endings[:_MOST_PER_COMMIT]
                self._committing = len(batch)
                if not await self._commit(batch):
                    return
                self._committing = 0
                self._moved()
            self._settled.set()

    async def _commit(self, batch: list[Ending]) -> bool:
        """Return True when the log has the batch, False when it never will: it is closed."""
        acks = [ending.delivery for ending in batch if not ending.letters]
        rejections = [Rejection(ending.delivery, ending.letters) for ending in batch if ending.letters]
        skipped = {ending.delivery.offset: ending.skipped_records for ending in batch if ending.skipped_records}
        while True:
            try:
                await self._log.commit(self._group, acks=acks, skipped_records=skipped or None, rejections=rejections)
            except LogError as error:
                self.failures += 1
                self._logger.warning(error.kind, "%s: the acks of %d blocks are not in the log yet: %s", self._group, len(batch), error)
                if error.kind is ErrorKind.LOG_CLOSED:
                    return False
                await self._clock.sleep(self._backoff.wait_s(self.failures))
            else:
                self.failures = 0
                return True
