"""The loop of a deriver: a group of the log on one side, the same log on the other, and one commit that ends and files at once.

    restore ← state of the last commit
    log.read → take … take → tick → log.commit(acks, rejections, outputs, state) → take …

The deriver is called by one thread, one call at a time. What it gave is committed before it is called again, and repeated until it is; so
whatever ends the process, the log and the deriver agree on the last commit, and the same deliveries come again after it. When they do not
agree any more (a commit is stale, a call raised) the deliveries go back and the deriver begins anew from the state of its last commit.
Not here: what is derived (`processors/`), which derivers run and in which order they drain (`deriving.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from emp_pipe import failpoints
from emp_pipe._core import CoreError
from emp_pipe.clock import SteadyClock
from emp_pipe.component import Context, Derived, Deriver
from emp_pipe.delivery.backoff import Backoff
from emp_pipe.delivery.derive_metrics import DeriveMetrics
from emp_pipe.delivery.derived import merged, rejection
from emp_pipe.delivery.first_of import first_of
from emp_pipe.delivery.lag import Lag
from emp_pipe.delivery.loop import DeliveryStatus
from emp_pipe.errors import EmpPipeError, ErrorKind, LogError
from emp_pipe.log.protocol import Delivery, Log
from emp_pipe.logs import RateLimitedLogger, get_logger

if TYPE_CHECKING:
    from emp_pipe._core import Block

_T = TypeVar("_T")

_READ_BYTES = 4 << 20
_PACE_S = 0.02
"""Reads begin at least so far apart where little comes; what comes meanwhile goes with the next one."""
_MOST_TAKES = 3
"""A block on which the deriver fails so often is set aside: the others go on."""
_AGES_NS = 7 * 86_400 * 1_000_000_000
_RETRY_INITIAL_S = 0.1
_RETRY_MOST_S = 5.0


@dataclass(slots=True)
class _Taken:
    """How a number of deliveries was taken: `unreadable` have ended, at `failed` the deriver gave up."""

    unreadable: list[tuple[Delivery, str]]
    failed: tuple[Delivery, Exception] | None = None


class DeriveLoop:
    """Runs a deriver over its group; see the module's head. `watch` is shown every output once it is in the log."""

    def __init__(
        self,
        deriver: Deriver,
        log: Log,
        context: Context,
        *,
        random: Random | None = None,
        watch: Callable[[Block], None] | None = None,
    ) -> None:
        self.deriver = deriver
        self.id = self.group = deriver.id
        self._log = log
        self._clock = SteadyClock(context.clock)  # what it waits for comes neither sooner nor later when the wall clock is set
        self._lag = Lag(log, self.group, context.clock)
        self._watch = watch
        self._logger = RateLimitedLogger(get_logger(deriver.id))
        self._backoff = Backoff(random or Random(), initial_s=_RETRY_INITIAL_S, most_s=_RETRY_MOST_S)
        self._held: dict[int, Delivery] = {}
        self._held_bytes = 0
        self._metrics = DeriveMetrics(context.metrics, deriver.id)
        self._begun = False
        self._through = 0
        self._pending: Derived | None = None
        self._more_wanted = False
        self._next_tick_s = 0.0
        self._early_tick_done = False
        self._failed_takes: dict[int, int] = {}
        self._failures = 0
        self._last_error: Exception | None = None
        self._last_success_s: float | None = None
        self._draining = False
        self._leaving = False
        self._blocks_to_drain = 0
        self.drained_through = 0
        """Once ended: what lies behind this offset has not been taken, what lies before and is still held could not be ended."""
        self._final_done = False
        self._stopping = False
        self._wake = asyncio.Event()
        self._readable: asyncio.Task[None] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._task: asyncio.Task[Any] | None = None
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Derive until `stop`, or until a `drain` is done. Raises EmpPipeError where the deriver fails and `on_error` is stop."""
        self._task = asyncio.current_task()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=self.id)
        self._metrics.open(held_blocks=lambda: float(len(self._held)), held_bytes=lambda: float(self._held_bytes))
        try:
            while not self._stopping and await self._step_guarded():
                pass
        finally:
            if self._readable is not None:
                self._readable.cancel()
            self.drained_through = self._through
            self._log.defer(list(self._held.values()))
            self._forget()
            self._metrics.close()
            self._thread.submit(self._close)  # after a call that a stop did not wait for
            self._thread.shutdown(wait=False)
            self._ended.set()

    def _close(self) -> None:
        try:
            self.deriver.close()
        except Exception as error:  # a deriver may raise anything; nobody waits for this call
            self._logger.warning("close", "%s: it could not be closed: %r", self.id, error)

    async def drain(self, deadline_monotonic_s: float, *, leaving: bool = False) -> bool:
        """Take what is there now, tick for the last time, commit, end; return whether the group holds nothing then.

        What comes later, or what the deriver cannot end yet, stays in the log for who comes next. `leaving`: nobody of its name does, and
        what it would still wait for is ended as if the time for it had come."""
        if self._task is not None and not self._ended.is_set():
            self._draining, self._leaving = True, leaving
            self._blocks_to_drain = self._lag.held_blocks - len(self._held)
            self._wake.set()
            await first_of(self._clock.sleep(max(deadline_monotonic_s - self._clock.monotonic_s(), 0.0)), self._ended.wait())
        return not self._lag.held_records

    async def stop(self, deadline_monotonic_s: float) -> None:
        """Take nothing more, let a commit under way end before the deadline, give the rest back."""
        self._stopping = True
        self._wake.set()
        if self._task is not None and not self._ended.is_set():
            await first_of(self._clock.sleep(max(deadline_monotonic_s - self._clock.monotonic_s(), 0.0)), self._ended.wait())
            if not self._ended.is_set():
                self._task.cancel()
                await self._ended.wait()

    def look(self) -> None:
        """Look anew at whose the log is."""
        self._wake.set()

    def status(self) -> DeliveryStatus:
        """Return how the deriver fares, in the words of a destination: what it holds is in flight."""
        state = "retrying" if self._last_error is not None else "deriving" if self._held else "idle"
        return DeliveryStatus(
            component=self.id,
            group=self.group,
            state=state,
            error=str(self._last_error) if self._last_error is not None else "",
            concurrency_limit=1,
            in_flight=len(self._held),
            waiting=0,
            unsettled=len(self._pending.acks) if self._pending is not None else 0,
            held_records=self._lag.held_records,
            lag_s=self._lag.seconds,
            seconds_since_success=None if self._last_success_s is None else self._clock.monotonic_s() - self._last_success_s,
        )

    # one step

    async def _step_guarded(self) -> bool:
        """Make a step; where it fails wait for a while. False: there is nothing left to do."""
        try:
            return await self._step()
        except LogError as error:
            if error.kind is ErrorKind.LOG_CLOSED:
                return False
            if error.kind is ErrorKind.LOG_STALE:
                self._begun = False
                if not self._log.ours:
                    return True  # it waits until it is
            self._more_wanted = error.kind is ErrorKind.LOG_FULL
            await self._failed(error, error.kind)
        except Exception as error:  # a deriver may raise anything
            failure = EmpPipeError(
                ErrorKind.PROCESSOR_FAILED,
                place=self.id,
                detail=f"{type(error).__name__}: {error}",
                advice="it begins anew from its last commit; what it had taken stays in the buffer",
            )
            if self.deriver.config.on_error == "stop":
                raise failure from error
            self._begun = False
            await self._failed(failure, failure.kind)
        return True

    async def _failed(self, error: EmpPipeError, kind: str) -> None:
        self._last_error = error
        self._failures += 1
        self._metrics.failed(kind)
        self._logger.warning(kind, "%s: %s", self.id, error)
        await first_of(self._clock.sleep(self._backoff.wait_s(self._failures)), self._wake.wait())

    async def _step(self) -> bool:
        self._wake.clear()
        if self._stopping:
            return False
        self._begun = self._begun and self._log.ours  # else another replica goes on from the last commit
        if not self._begun and not await self._begin():
            return False
        if self._pending is not None:
            if self._more_wanted:
                await self._tick(final=self._draining)
            await self._commit(self._pending)
            return True
        full = self._held_bytes >= self.deriver.max_held_bytes
        if self._draining:
            if not full and self._blocks_to_drain > 0 and await self._take_some():
                self._final_done = False
            elif self._final_done and self._leaving and self._held:
                self._leaving = False
                await self._tick(final=True, ahead_ns=_AGES_NS)
            elif self._final_done:
                return False
            else:
                self._final_done = True
                await self._tick(final=True)
            return True
        if self._clock.monotonic_s() >= self._next_tick_s or (full and not self._early_tick_done):
            await self._tick(final=False)
            self._early_tick_done = full
        elif full or not await self._take_some():
            await self._wait(for_input=not full)
        return True

    async def _begin(self) -> bool:
        """Give back what is held, and let the deriver begin from the state of its last commit. False: it ends before the log is ours."""
        self._log.defer(list(self._held.values()))
        self._forget()
        if (state := await self._state()) is None:
            return False
        self._blocks_to_drain = self._lag.held_blocks
        await self._call(lambda: self.deriver.restore(state))
        self._begun = True
        self._next_tick_s = self._clock.monotonic_s() + self.deriver.tick_s
        return True

    async def _state(self) -> dict[str, bytes] | None:
        """Return the state of the last commit, for which the log has to be ours; None where a drain or a stop comes first."""
        reading = asyncio.ensure_future(self._log.state_items(self.group))
        try:
            while not reading.done():
                if (self._draining or self._stopping) and not self._log.ours:
                    return None
                await first_of(asyncio.wait([reading]), self._wake.wait())
                self._wake.clear()
            return reading.result()
        finally:
            reading.cancel()

    def _forget(self) -> None:
        self._held.clear()
        self._held_bytes = 0
        self._through = 0
        self._pending = None
        self._more_wanted = self._early_tick_done = self._final_done = False

    # taking

    async def _take_some(self) -> bool:
        """Read and take what there is; return whether there was anything."""
        room_bytes = self.deriver.max_held_bytes - self._held_bytes
        deliveries = await self._log.read(self.group, min(_READ_BYTES, room_bytes), self.id)
        if self._draining:  # exactly what was there, so that derivers of one topic end at the same block
            self._log.defer(deliveries[self._blocks_to_drain :])
            del deliveries[self._blocks_to_drain :]
        if not deliveries:
            return False
        if deliveries[0].offset <= self._through:  # the group was reset: the deriver has seen these already
            self._log.defer(deliveries)
            self._begun = False
            return True
        for delivery in deliveries:
            self._held[delivery.offset] = delivery
            self._held_bytes += delivery.block.payload_bytes
        self._blocks_to_drain -= len(deliveries)
        self._through = deliveries[-1].offset
        self._early_tick_done = False
        now_unix_nano = self._clock.unix_nano()
        taken = await self._call(lambda: self._take_all(deliveries, now_unix_nano))
        if taken.unreadable:
            self._reject(taken.unreadable)
        if taken.failed is not None:
            delivery, error = taken.failed
            self._failed_takes[delivery.offset] = self._failed_takes.get(delivery.offset, 0) + 1
            raise error
        if sum(delivery.block.payload_bytes for delivery in deliveries) < _READ_BYTES // 4 and not self._draining:
            await first_of(self._clock.sleep(min(_PACE_S, self.deriver.tick_s)), self._wake.wait())
        return True

    def _take_all(self, deliveries: Sequence[Delivery], now_unix_nano: int) -> _Taken:
        """Runs in the deriver's thread."""
        taken = _Taken([])
        for delivery in deliveries:
            if self._failed_takes.get(delivery.offset, 0) >= _MOST_TAKES:
                taken.unreadable.append((delivery, f"{self.id} failed on it {_MOST_TAKES} times"))
                continue
            try:
                self.deriver.take(delivery, now_unix_nano)
            except CoreError as error:
                taken.unreadable.append((delivery, str(error)))
            except Exception as error:  # its own to mend; which block it was must be known
                taken.failed = (delivery, error)
                break
        return taken

    def _reject(self, unreadable: Sequence[tuple[Delivery, str]]) -> None:
        """Let blocks end as dead letters with the next commit, which comes at once."""
        now_unix_nano = self._clock.unix_nano() + self._clock.set_by_ns()
        rejections = [rejection(self.id, delivery, detail, now_unix_nano) for delivery, detail in unreadable]
        self._add(Derived(rejections=rejections))

    # ticks and commits

    async def _tick(self, *, final: bool, ahead_ns: int = 0) -> None:
        started_s = self._clock.monotonic_s()
        now_unix_nano = self._clock.unix_nano() + ahead_ns
        self._more_wanted = False
        derived = await self._call(lambda: self.deriver.tick(now_unix_nano, final=final))
        self._metrics.tick_s.observe(self._clock.monotonic_s() - started_s)
        self._next_tick_s = started_s + self.deriver.tick_s
        if derived is not None:
            self._add(derived)

    def _add(self, derived: Derived) -> None:
        self._pending = derived if self._pending is None else merged(self._pending, derived)

    async def _commit(self, derived: Derived) -> None:
        outputs = self._read_by_somebody(derived.outputs)
        failpoints.hit("derive.commit")
        await self._log.commit(
            self.group,
            acks=derived.acks,
            skipped_records=derived.skipped_records or None,
            rejections=derived.rejections,
            outputs=outputs,
            state_puts=derived.state_puts or None,
            state_ttl_s=derived.state_ttl_s,
            state_deletes=derived.state_deletes,
        )
        failpoints.hit("derive.committed")
        self._pending = None
        for delivery in [*derived.acks, *(rejected.delivery for rejected in derived.rejections)]:
            if self._held.pop(delivery.offset, None) is not None:
                self._held_bytes -= delivery.block.payload_bytes
            self._failed_takes.pop(delivery.offset, None)
        for rejected in derived.rejections:
            for letter in rejected.letters:
                self._metrics.dead(letter.records)
                self._logger.warning("dead", "%s: %d records became a dead letter: %s", self.id, letter.records, letter.detail)
        self._failures = 0
        self._last_error = None
        self._last_success_s = self._clock.monotonic_s()
        self._metrics.commits.inc()
        for block in outputs:
            self._metrics.filed(block.topic, block.records)
            if self._watch is not None:
                self._watch(block)

    def _read_by_somebody(self, outputs: Sequence[Block]) -> list[Block]:
        """Return those outputs that some group reads; the others would only be encoded to be forgotten."""
        if not outputs:
            return []
        read = {topic for usage in self._log.usage().groups for topic in usage.spec.topics}
        kept = []
        for block in outputs:
            if block.topic not in self.deriver.writes:
                raise ValueError(f"it made a block of the topic {block.topic}, which it does not write")
            if block.topic in read:
                kept.append(block)
            else:
                self._metrics.unread(block.topic, block.records)
        return kept

    # waiting

    async def _call(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _wait(self, *, for_input: bool) -> None:
        """Return at the next tick, when there is something to read, or when a drain or a stop is asked for."""
        waits: list[Any] = [self._clock.sleep(max(self._next_tick_s - self._clock.monotonic_s(), 0.0)), self._wake.wait()]
        if for_input:
            if self._readable is None or self._readable.done():
                self._readable = asyncio.ensure_future(self._log.wait_readable(self.group))
            waits.append(asyncio.wait([self._readable]))
        await first_of(*waits)
