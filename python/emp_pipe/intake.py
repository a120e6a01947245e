"""Between receivers and the log: the processors, each guarded so that its failure loses nothing, in the order in which arrivals came.

    receiver → submit → [processors: inline when small, else in one thread] → LogWriter.submit → future done when durable

Without processors `submit` is the writer's own. Not here: what processors do (`processors/`), how blocks are made (`log/writer.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from emp_pipe.component import Arrival, Processor
from emp_pipe.errors import EmpPipeError, ErrorKind, LogError
from emp_pipe.logs import RateLimitedLogger, get_logger
from emp_pipe.self_metrics import Metrics
from emp_pipe.taps import Taps

if TYPE_CHECKING:
    from emp_pipe._core import Batch, Block, Redactor
    from emp_pipe.log.protocol import DeadLetter

_INLINE_BYTES = 65_536
_MOST_WAITING_BYTES = 64 << 20
_TURN_BYTES = 1 << 20
"""What waits goes to the processors' thread by so much at once: a way there and back for each arrival costs more than most processors do,
and hands the writer one at a time what would have been one block."""


class Writer(Protocol):
    """What the intake needs of the log's writer."""

    def submit(self, arrival: Arrival) -> asyncio.Future[None]: ...

    @property
    def admitting(self) -> bool: ...

    async def wait_admitting(self) -> None: ...

    async def checkpoint_get(self, name: str) -> bytes | None: ...


class GuardedProcessor:
    """One processor whose failures are counted and named, and lose nothing."""

    def __init__(self, id: str, processor: Processor, on_error: Literal["pass", "stop"], metrics: Metrics) -> None:
        self.id = id
        self.samples = bool(getattr(processor, "samples", False))
        """It leaves rows out by chance: what has been decided elsewhere is not decided again."""
        self._processor = processor
        self._speak: Callable[..., None] | None = getattr(processor, "speak", None)
        self._on_error = on_error
        self._failed = metrics.counter(
            "processor_failed",
            unit="records",
            help="Records of batches that passed unchanged because a processor failed.",
            labels=["component"],
        ).labels(self.id)
        self._dropped = metrics.counter(
            "processor_dropped", unit="records", help="Records that a processor left out by rule.", labels=["component"]
        ).labels(self.id)
        self._logger = RateLimitedLogger(get_logger(self.id))

    def process(self, batch: Batch) -> Batch | None:
        """Return what the processor made of a batch; the batch itself when it failed. Raises EmpPipeError where `on_error` is stop."""
        try:
            result = self._processor.process(batch)
            if result is not None:
                self._check(batch, result)
        except Exception as error:  # a plugin may raise anything
            self._failed.inc(batch.record_count)
            failure = EmpPipeError(
                ErrorKind.PROCESSOR_FAILED, place=self.id, detail=f"the processor failed on {batch.record_count:,} records ({_what(error)})"
            )
            if self._on_error == "stop":
                failure.advice = "mend the plugin named, or set `on_error: pass`; nothing of the batch was acknowledged"
                raise failure from error
            failure.detail += ", which passed unchanged"
            self._logger.log(logging.ERROR, type(error).__name__, "%s", failure)
            return batch
        left_out = batch.record_count - _records(result)
        if left_out:
            self._dropped.inc(left_out)
        return result

    def speak(self, *, last: bool = False) -> None:
        """Let the processor say what it has kept back; `last`: it is not asked again."""
        if self._speak is None:
            return
        try:
            self._speak(last=last)
        except Exception as error:  # a plugin may raise anything
            self._logger.warning("speak", "the processor could not say what it kept back (%s)", _what(error))

    @staticmethod
    def _check(batch: Batch, result: Any) -> None:
        if type(result) is not type(batch):
            raise TypeError(f"it returned a {type(result).__name__}, not a Batch or None")
        if result.signal != batch.signal:
            raise ValueError(f"it made {result.signal} of {batch.signal}")
        if result.record_count > batch.record_count:
            raise ValueError(f"it made {result.record_count} records of {batch.record_count}")


def _what(error: Exception) -> str:
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__


class PipelineIntake:
    """The `Intake` of a pipeline; `run` belongs to the pipeline's TaskGroup."""

    def __init__(self, writer: Writer, taps: Taps, on_fatal: Callable[[EmpPipeError], None], metrics: Metrics | None = None) -> None:
        self.redactor: Redactor | None = None
        """Masks secrets in bytes that could not be read, before they are kept; processors see rows only."""
        self._masked = (metrics or Metrics()).counter(
            "dead_letter_masked", unit="values", help="Secrets that were masked in unreadable bytes, by rule.", labels=["reason"]
        )
        self._writer = writer
        self._taps = taps
        self._on_fatal = on_fatal
        self._processors: Sequence[GuardedProcessor] = ()
        self._waiting: deque[tuple[Arrival, asyncio.Future[None], int]] = deque()
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._less = asyncio.Event()

    def set_processors(self, processors: Sequence[GuardedProcessor]) -> None:
        """Use these from the next arrival on."""
        self.speak(last=True)
        self._processors = tuple(processors)

    def speak(self, *, last: bool = False) -> None:
        """Let the processors say what they have kept back; `last`: they are not asked again."""
        for processor in self._processors:
            processor.speak(last=last)

    def submit(self, arrival: Arrival) -> asyncio.Future[None]:
        if self._taps:
            self._taps.offer_arrival(arrival)
        if not self._processors and not self._waiting and (self.redactor is None or not arrival.dead):
            return self._writer.submit(arrival)
        size_bytes = _size_bytes(arrival)
        if not self._waiting and size_bytes <= _INLINE_BYTES:
            try:
                return self._writer.submit(self._processed(arrival))
            except EmpPipeError as error:
                return self._refused(asyncio.get_running_loop().create_future(), error)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((arrival, future, size_bytes))
        self._waiting_bytes += size_bytes
        self._wake.set()
        return future

    @property
    def admitting(self) -> bool:
        return self._waiting_bytes < _MOST_WAITING_BYTES and self._writer.admitting

    async def wait_admitting(self) -> None:
        while not self.admitting:
            if self._waiting_bytes >= _MOST_WAITING_BYTES:
                self._less.clear()
                await self._less.wait()
            else:
                await self._writer.wait_admitting()

    async def checkpoint_get(self, name: str) -> bytes | None:
        return await self._writer.checkpoint_get(name)

    async def run(self) -> None:
        """Process what waits in a thread, in its order, so that the sockets go on being read."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="processors") as thread:
            while True:
                while self._waiting:
                    turn = self._next_turn()
                    made = await loop.run_in_executor(thread, self._processed_each, turn)
                    for processed in made:
                        _, future, size_bytes = self._waiting.popleft()
                        if isinstance(processed, EmpPipeError):
                            self._refused(future, processed)
                        else:
                            _follow(self._writer.submit(processed), future)
                        self._waiting_bytes -= size_bytes
                    self._less.set()
                self._wake.clear()
                await self._wake.wait()

    async def drained(self) -> None:
        """Return when every arrival has been handed to the writer."""
        while self._waiting:
            self._less.clear()
            await self._less.wait()

    def _refused(self, future: asyncio.Future[None], error: EmpPipeError) -> asyncio.Future[None]:
        self._on_fatal(error)
        if not future.done():
            future.set_exception(LogError(ErrorKind.LOG_CLOSED, place=error.place, detail=error.detail))
        return future

    def _next_turn(self) -> list[Arrival]:
        """Return the first that wait, up to `_TURN_BYTES`; one at least."""
        turn: list[Arrival] = []
        taken_bytes = 0
        for arrival, _, size_bytes in self._waiting:
            if turn and taken_bytes + size_bytes > _TURN_BYTES:
                break
            turn.append(arrival)
            taken_bytes += size_bytes
        return turn

    def _processed_each(self, arrivals: Sequence[Arrival]) -> list[Arrival | EmpPipeError]:
        made: list[Arrival | EmpPipeError] = []
        for arrival in arrivals:
            try:
                made.append(self._processed(arrival))
            except EmpPipeError as error:
                made.append(error)
        return made

    def _processed(self, arrival: Arrival) -> Arrival:
        processors = self._processors
        dropped = 0
        batch = arrival.batch
        if batch is not None:
            before = batch.record_count
            batch = self._through(_of(processors, arrival.done.decided), batch)
            dropped = before - _records(batch)
        blocks: list[Block] = []
        for block in arrival.blocks:
            try:
                opened = block.decode()
            except ValueError:  # it cannot be read: the delivery loop sets it aside as a dead letter, with its bytes
                blocks.append(block)
                continue
            passed = self._through(_of(processors, block.decided), opened)
            dropped += opened.record_count - _records(passed)
            if passed is opened:
                blocks.append(block)
            elif passed is not None:
                made = passed.to_block(block.codec, topic=block.topic, block_id=block.block_id)
                blocks.append(made.with_flags(decided=block.decided, red_done=block.red_done, aggregated=block.aggregated))
        dead = [self._masked_letter(letter) for letter in arrival.dead]
        return replace(arrival, batch=batch, blocks=blocks, dropped=arrival.dropped + dropped, dead=dead)

    def _masked_letter(self, letter: DeadLetter) -> DeadLetter:
        """Return a dead letter without secrets; one with rows as it is, for they may go back to their destination."""
        if self.redactor is None or letter.header:
            return letter
        masked = self.redactor.bytes(letter.payload)
        for rule, values in masked.counts.items():
            self._masked.labels(rule).inc(values)
        return replace(letter, payload=masked.data, detail=self.redactor.text(letter.detail))

    def _through(self, processors: Sequence[GuardedProcessor], batch: Batch) -> Batch | None:
        passed: Batch | None = batch
        for processor in processors:
            if passed is None:
                return None
            passed = processor.process(passed)
            if self._taps and passed is not None:
                self._taps.offer(processor.id, passed)
        return passed


def _of(processors: Sequence[GuardedProcessor], decided: bool) -> Sequence[GuardedProcessor]:
    """Return the processors that rows go through: where sampling has decided, those that do not sample."""
    return [processor for processor in processors if not processor.samples] if decided else processors


def _records(batch: Batch | None) -> int:
    return batch.record_count if batch is not None else 0


def _size_bytes(arrival: Arrival) -> int:
    size_bytes = sum(block.uncompressed_bytes for block in arrival.blocks) + sum(len(letter.payload) for letter in arrival.dead)
    return size_bytes + (arrival.batch.size_bytes if arrival.batch is not None else 0)


def _follow(source: asyncio.Future[None], follower: asyncio.Future[None]) -> None:
    def settle(done: asyncio.Future[None]) -> None:
        if follower.done():
            return
        if done.cancelled():
            follower.cancel()
        elif (error := done.exception()) is not None:
            follower.set_exception(error)
        else:
            follower.set_result(None)

    source.add_done_callback(settle)
