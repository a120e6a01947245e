"""How operations reach a shard: in order, many in one pipeline, each with a number, so that asking again after a lost answer is exact.

    append(), commit() ── Operation ──▶ queue ──▶ one pipeline at a time ──▶ `told` for each reply, in order

While a pipeline is under way the next one gathers. When an answer is lost nobody knows what took effect: after the connection is back the
same operations are sent again under the same numbers, and the script answers what it did the first time (`answered` in
`redis_script_*.lua`). Not here: what an operation is (`redis_calls.py`), what its reply means (`redis_shard.py`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, NamedTuple

from emp_pipe import failpoints
from emp_pipe.buffers.redis_client import RedisLogError, Trouble, log_error
from emp_pipe.buffers.redis_link import Call, Link
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.logs import RateLimitedLogger, get_logger

_MOST_OPERATIONS = 256
"""In one pipeline; the script keeps the results of four times as many."""
_MOST_BYTES = 8 << 20
_FIRST_WAIT_S = 0.02
_MOST_WAIT_S = 2.0
_PASSING = (Trouble.LOADING, Trouble.READ_ONLY, Trouble.CLUSTER_DOWN, Trouble.DISK, Trouble.CREDENTIALS, Trouble.PERMISSION)
"""Redis did not do it and will not until somebody or time has mended it: the operation waits."""

_limited = RateLimitedLogger(get_logger("redis"), interval_s=10.0)


class Operation:
    """A call that waits for its turn. `build` is asked at each sending, for groups may have changed; `take` is given the reply that says
    it took effect, and returns the result. `patient`: it waits for Redis to come back, however long; others fail after a while."""

    __slots__ = ("asked", "build", "error", "future", "number", "patient", "queued_s", "result", "size_bytes", "take")

    def __init__(
        self, build: Callable[[], Call], take: Callable[[list[Any], Taking], Any], *, size_bytes: int = 0, patient: bool = True
    ) -> None:
        self.build = build
        self.take = take
        self.size_bytes = size_bytes
        self.patient = patient
        self.queued_s = 0.0
        self.number = 0
        self.asked = False
        """Sent, and the answer was lost: it keeps its number."""
        self.result: Any = None
        self.error: Exception | None = None
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def resolve(self) -> None:
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class Taking(NamedTuple):
    """How a reply is to be taken into the ledger."""

    counted: bool = False
    """A snapshot that was loaded meanwhile has it already: only what is in flight is to be forgotten."""
    known_offset: int | None = None
    """Somebody else changed the shard in between: what lies above this offset is counted by the look that follows. None: nobody did."""

    @property
    def complete(self) -> bool:
        """Whether everything that the operation did is to be counted now."""
        return not self.counted and self.known_offset is None


class Queue:
    """Operations of one shard, in order. `told` takes a reply in (False: send it again), `settle` follows each pipeline, `come_back` is
    awaited before anything is sent after trouble."""

    def __init__(
        self,
        link: Link,
        told: Callable[[Operation, list[Any]], bool],
        settle: Callable[[], None],
        come_back: Callable[[], Awaitable[None]],
        patience_s: float,
    ) -> None:
        self._link = link
        self._told = told
        self._settle = settle
        self._come_back = come_back
        self._patience_s = patience_s
        self._waiting: deque[Operation] = deque()
        self._urgent: deque[Operation] = deque()
        """Before all others: a look that the others wait for."""
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._number = 0
        self._random = Random()
        self.queued_bytes = 0
        self.trouble: RedisLogError | None = None
        """Why nothing reaches Redis at the moment."""
        self.trouble_since_s = 0.0

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def put(self, operation: Operation, *, first: bool = False) -> asyncio.Future[Any]:
        operation.queued_s = asyncio.get_running_loop().time()
        self.queued_bytes += operation.size_bytes
        (self._urgent if first else self._waiting).append(operation)
        self._idle.clear()
        self._wanted.set()
        return operation.future

    def suspect(self, error: RedisLogError) -> None:
        """Somebody else met trouble on the way to Redis: look at it before the next operation."""
        if self.trouble is None:
            self._away(error)
        self._wanted.set()

    async def wait_idle(self) -> None:
        await self._idle.wait()

    def fail_all(self, error: Exception) -> None:
        while self._urgent or self._waiting:
            self._fail((self._urgent or self._waiting).popleft(), error)
        self._idle.set()

    def _fail(self, operation: Operation, error: Exception) -> None:
        self.queued_bytes -= operation.size_bytes
        operation.error = error
        operation.resolve()

    def forget_numbers(self) -> None:
        """Nothing that was sent before can take effect any more, or did so in a shard that is gone."""
        for operation in self._waiting:
            operation.asked = False

    async def run(self) -> None:
        while True:
            await self._wanted.wait()
            if self.trouble is not None:
                await self._return()
                continue
            batch = self._next()
            if not batch:
                self._wanted.clear()
                self._idle.set()
                continue
            try:
                await self._flush(batch)
            except RedisLogError as error:
                self._waiting.extendleft(reversed(batch))
                self._away(error)
                self._lose_patience()
            except asyncio.CancelledError:
                self._waiting.extendleft(reversed(batch))
                raise
            except Exception as failure:  # nothing may end this task: everything that comes later would wait for ever
                self._waiting.extendleft(reversed(batch))
                self._away(self._unexpected(failure))
                self._lose_patience()

    def _next(self) -> list[Operation]:
        if self._urgent:
            return [self._urgent.popleft()]
        batch: list[Operation] = []
        size = 0
        while self._waiting and len(batch) < _MOST_OPERATIONS and (not batch or size + self._waiting[0].size_bytes <= _MOST_BYTES):
            operation = self._waiting.popleft()
            size += operation.size_bytes
            batch.append(operation)
        return batch

    async def _flush(self, batch: list[Operation]) -> None:
        commands = []
        for operation in list(batch):
            try:
                call = operation.build()
                if not operation.asked:
                    operation.number = self.next_number()
                commands.append(self._link.command(call, operation.number))
            except Exception as failure:  # a value that cannot be stored, a group that is gone: the others go on without it
                batch.remove(operation)
                self._fail(operation, failure)
        if not commands:
            return
        in_doubt = {id(operation) for operation in batch if operation.asked}
        for operation in batch:
            operation.asked = True
        if any(operation.size_bytes for operation in batch):
            failpoints.hit("log.append")
        replies = await self._link.send(commands, durable=True)
        failpoints.hit("log.commit")
        for operation in batch:
            operation.asked = False
        again: list[Operation] = []
        decided: list[Operation] = []
        trouble: RedisLogError | None = None
        for operation, reply in zip(batch, replies, strict=True):
            if not isinstance(reply, Exception):
                try:
                    (decided if self._told(operation, reply) else again).append(operation)
                except Exception as failure:  # it took effect, and our memory of the shard may lack it: that is loaded anew
                    trouble = self._unexpected(failure)
                    detail = "its answer cannot be understood; it took effect"
                    operation.error = LogError(ErrorKind.LOG_IO, place=self._link.place, detail=detail, unknown=True)
                    decided.append(operation)
                continue
            error = log_error(reply, self._link.place)
            operation.asked = id(operation) in in_doubt  # this time it was not done; the time before it may have been
            if error.trouble in _PASSING or str(reply).startswith("BUSY"):
                trouble = error
                again.append(operation)
            else:
                operation.error = error
                decided.append(operation)
        batch.clear()
        self._waiting.extendleft(reversed(again))
        self.queued_bytes -= sum(operation.size_bytes for operation in decided)
        try:
            self._settle()
        finally:
            for operation in decided:
                operation.resolve()
        if trouble is not None:
            raise trouble

    # trouble

    def _unexpected(self, failure: Exception) -> RedisLogError:
        _limited.exception(f"unexpected {type(failure).__name__}", "%s: an answer could not be taken in", self._link.place)
        return RedisLogError(Trouble.OTHER, place=self._link.place, detail=f"{type(failure).__name__}: {failure}".rstrip("."))

    def _away(self, error: RedisLogError) -> None:
        if self.trouble is None:
            self.trouble_since_s = asyncio.get_running_loop().time()
        self.trouble = error
        _limited.warning(self._link.place, "%s", error)
        self._settle()

    async def _return(self) -> None:
        """Try until Redis takes operations again, ever more rarely; those without patience fail meanwhile."""
        wait_s = _FIRST_WAIT_S
        while self.trouble is not None:
            await asyncio.sleep(self._random.uniform(wait_s / 2, wait_s))
            wait_s = min(wait_s * 2, _MOST_WAIT_S)
            try:
                await self._come_back()
            except RedisLogError as error:
                self._away(error)
            except Exception as error:  # what came back cannot hold the log, or is not ours
                self._away(RedisLogError(Trouble.OTHER, place=self._link.place, detail=str(error).rstrip(".")))
            else:
                self.trouble = None
                self._settle()
                return
            self._lose_patience()

    def _lose_patience(self) -> None:
        now = asyncio.get_running_loop().time()
        kept: deque[Operation] = deque()
        for operation in self._waiting:
            if operation.patient or now - operation.queued_s < self._patience_s:
                kept.append(operation)
                continue
            assert self.trouble is not None
            error = LogError(
                ErrorKind.LOG_IO, place=self._link.place, detail=self.trouble.detail, advice=self.trouble.advice, unknown=operation.asked
            )
            self._fail(operation, error)
        self._waiting = kept
