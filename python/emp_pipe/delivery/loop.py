"""The one delivery loop: a group of the log on one side, an exporter on the other.

    log.read → plan → [slot] shipment task: build → gate → send … until ended → settle → log.commit

`run` is owned by the pipeline's TaskGroup and owns everything below it. It ends after `stop`, which hands on one absolute deadline: what
is not acknowledged by then is deferred and stays in the buffer; so is a shipment that ends without a word, by an error or a cancellation.
Not here: what is merged (`prepare.py`), when to retry (`attempts.py`), how many at once (`gate.py`), acks (`settle.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from emp_pipe import _core
from emp_pipe.component import Context, Exporter, ExporterConfig
from emp_pipe.delivery.adaptive import AdaptiveLimit
from emp_pipe.delivery.attempts import Abandoned, Shipper, in_pool
from emp_pipe.delivery.backoff import Backoff
from emp_pipe.delivery.breaker import Breaker, BreakerState
from emp_pipe.delivery.gate import Gate
from emp_pipe.delivery.lag import Lag
from emp_pipe.delivery.metrics import DeliveryMetrics
from emp_pipe.delivery.prepare import Preparer
from emp_pipe.delivery.settle import Settler
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.protocol import Delivery, Log
from emp_pipe.logs import RateLimitedLogger, get_logger

if TYPE_CHECKING:
    from emp_pipe.delivery.shipment import Plan

_READ_BYTES = 4 << 20
_MOST_DRAIN_FAILURES = 3
_MOST_GATHER_S = 0.1
_PACE_S = 0.005
"""Small requests begin at least so far apart; what comes meanwhile goes with the next one."""
_MOST_UNSETTLED = 1024
"""Reading pauses while the log owes so many acks."""


@dataclass(frozen=True, slots=True)
class DeliveryStatus:
    """How a destination fares: for `/readyz` and `emp-pipe groups list`. `state` is what to show; `error` says why and what to do."""

    component: str
    group: str
    state: str
    """"idle", "sending", "retrying", "down" (only probed), "key_refused"."""
    error: str
    concurrency_limit: int
    in_flight: int
    waiting: int
    unsettled: int
    held_records: int
    lag_s: float
    seconds_since_success: float | None


def selection_of(config: ExporterConfig) -> _core.Selection | None:
    """Return the compiled `only` / `except` of an exporter, None where it takes everything."""
    if config.only is None and config.except_ is None:
        return None
    only, except_ = (rule.model_dump_json() if rule is not None else None for rule in (config.only, config.except_))
    return _core.Selection(only=only, except_=except_)


class DeliveryLoop:
    """Delivers a group's blocks to an exporter; see the module's head."""

    def __init__(self, exporter: Exporter, log: Log, group: str, context: Context, *, random: Random | None = None) -> None:
        self.exporter = exporter
        self.group = group
        self._log = log
        self._clock = context.clock
        self._lag = Lag(log, group, context.clock)
        self._logger = get_logger(exporter.id)
        self._limited_logger = RateLimitedLogger(self._logger)
        config = exporter.config
        random = random or Random()
        self._backoff = backoff = Backoff(random, initial_s=config.retry_initial_s, most_s=config.retry_max_s)
        self._slots = 1 if exporter.ordered else config.max_concurrency
        self.gate = Gate(context.clock, AdaptiveLimit(self._slots, patience_s=config.timeout_s), Breaker(backoff))
        self._metrics = metrics = DeliveryMetrics(context.metrics, exporter.id)
        self._preparer = Preparer(exporter, selection_of(config), context.clock, metrics)
        self._shipper = Shipper(exporter, self._preparer, self.gate, context.clock, metrics, random, self._logger)
        self._settler = Settler(log, group, context.clock, backoff, self._logger, self._settler_moved)
        self._shipments: set[asyncio.Task[None]] = set()
        self._room = asyncio.Event()
        self._quiet = asyncio.Event()
        self._answered = asyncio.Event()
        self._last_start_s = float("-inf")
        self._reader: asyncio.Task[None] | None = None
        self._idle = False
        self._stopping = False
        self._started = False
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Deliver until `stop`."""
        self._started = True
        self._metrics.open(
            concurrency_limit=lambda: self.gate.adaptive.limit,
            in_flight=lambda: self.gate.in_flight,
            breaker_open=lambda: float(self.gate.breaker.state is not BreakerState.CLOSED),
            lag_records=lambda: self._lag.held_records,
            lag_seconds=lambda: self._lag.seconds,
        )
        try:
            await self.exporter.open()
            async with asyncio.TaskGroup() as tasks:
                timer = tasks.create_task(self.gate.run(), name=f"{self.exporter.id} gate")
                settling = tasks.create_task(self._settler.run(), name=f"{self.exporter.id} settle")
                self._reader = tasks.create_task(self._read(tasks), name=f"{self.exporter.id} read")
                await asyncio.wait([self._reader])
                while self._shipments:
                    await asyncio.wait(self._shipments)
                settled = tasks.create_task(self._settler.wait_settled())
                await asyncio.wait([settled, settling], return_when=asyncio.FIRST_COMPLETED)
                for task in (timer, settling, settled):
                    task.cancel()
        finally:
            self._metrics.close()
            self._ended.set()

    async def drain(self, deadline_monotonic_s: float) -> bool:
        """Go on until the group holds nothing; return whether it does by the deadline.

        A destination that is thought dead gets one more probe, any other three tries in a row; then the rest stays in the buffer. Where it
        asked for a pause that ends after the deadline, the rest stays there at once."""
        breaker = self.gate.breaker
        openings, failures, successes = breaker.openings, breaker.failures_in_row, self.gate.successes
        self.gate.probe_now()
        while not self._ended.is_set():
            if not self._lag.held_records and not self._shipments and not self._settler.backlog:
                return True
            now_s = self._clock.monotonic_s()
            hopeless = breaker.state is BreakerState.OPEN and breaker.openings > openings
            hopeless |= self.gate.successes == successes and breaker.failures_in_row >= failures + _MOST_DRAIN_FAILURES
            hopeless |= not self.gate.in_flight and self.gate.paused_until_s >= deadline_monotonic_s
            if now_s >= deadline_monotonic_s or hopeless:
                return False
            self._quiet.clear()
            await self._sleep_or(self._quiet, min(deadline_monotonic_s - now_s, 0.25))
        return not self._lag.held_records

    async def stop(self, deadline_monotonic_s: float) -> None:
        """Read nothing more, let what is under way end before the deadline, defer the rest, write the acks, close the exporter."""
        self._stopping = True
        self._room.set()
        self._answered.set()
        if self._idle and self._reader is not None:
            self._reader.cancel()
        self._shipper.stopping = True
        for task in self._shipments - self._shipper.sending:
            task.cancel()  # it waits for its turn or its next try; only answers are worth waiting for
        if self._started and not self._ended.is_set():
            await self._sleep_or(self._ended, max(deadline_monotonic_s - self._clock.monotonic_s(), 0.0))
            for task in self._shipments:
                task.cancel()
            await self._ended.wait()
        await self.exporter.close(deadline_monotonic_s)

    def status(self) -> DeliveryStatus:
        """Return how the destination fares."""
        error = self._shipper.last_error
        state = "sending" if self._shipments else "idle"
        if error is not None:
            state = "key_refused" if error.kind is ErrorKind.UNAUTHENTICATED else "retrying"
            if state == "retrying" and self.gate.breaker.state is not BreakerState.CLOSED:
                state = "down"
        last_s = self._shipper.last_success_monotonic_s
        return DeliveryStatus(
            component=self.exporter.id,
            group=self.group,
            state=state,
            error=str(error) if error is not None else "",
            concurrency_limit=self.gate.adaptive.limit,
            in_flight=self.gate.in_flight,
            waiting=self.gate.waiting,
            unsettled=self._settler.backlog,
            held_records=self._lag.held_records,
            lag_s=self._lag.seconds,
            seconds_since_success=None if last_s is None else self._clock.monotonic_s() - last_s,
        )

    async def _read(self, tasks: asyncio.TaskGroup) -> None:
        """Read, plan and start shipments until the stop."""
        while not self._stopping:
            if len(self._shipments) >= self._slots or self._settler.backlog >= _MOST_UNSETTLED or self._is_dead():
                self._room.clear()
                await self._room.wait()
                continue
            deliveries = await self._read_some()
            if not deliveries:
                await self._wait_readable()
                continue
            if self._preparer.is_little(deliveries):
                deliveries = await self._gather(deliveries)
            await self._start(tasks, self._preparer.plan(deliveries, saturated=self.gate.saturated))

    def _is_dead(self) -> bool:
        """While a destination is thought dead nothing more is read than what its probes need."""
        return self.gate.breaker.state is not BreakerState.CLOSED and bool(self._shipments)

    async def _gather(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Return a little data with what came after it: it waits for the answer under way, and for the pace of small requests."""
        if self._shipments:
            self._answered.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_MOST_GATHER_S):
                    await self._answered.wait()
        wait_s = self._last_start_s + _PACE_S - self._clock.monotonic_s()
        if wait_s > 0 and not self._stopping:
            await self._clock.sleep(wait_s)
        return deliveries + await self._read_some()

    async def _start(self, tasks: asyncio.TaskGroup, plans: Sequence[Plan]) -> None:
        for index, plan in enumerate(plans):
            while len(self._shipments) >= self._slots and not self._stopping:
                self._room.clear()
                await self._room.wait()
            if self._stopping:
                self._log.defer([delivery for left in plans[index:] for delivery in left.deliveries])
                return
            self._last_start_s = self._clock.monotonic_s()
            task = tasks.create_task(self._ship(plan), name=f"{self.exporter.id} ship")
            self._shipments.add(task)
            task.add_done_callback(self._shipment_ended)

    async def _ship(self, plan: Plan) -> None:
        """See one plan to its end; dropped without a word, its deliveries are deferred."""
        settled = False
        try:
            if self._preparer.needs_work(plan):
                shipment = await in_pool(plan.size_bytes, lambda: self._preparer.build(plan))
            else:
                shipment = self._preparer.build(plan)
            await self._shipper.ship(shipment)
            self._settler.settle(list(shipment.endings))
            settled = True
        except Abandoned:
            pass
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        except Exception as error:
            what = "%s: a shipment failed unexpectedly and stays buffered"
            self._limited_logger.exception(f"unexpected {type(error).__name__}", what, self.exporter.id)
            await self._clock.sleep(self._backoff.wait_s(plan.deliveries[0].attempts + 1))
        finally:
            if not settled:
                self._log.defer(plan.deliveries)

    def _shipment_ended(self, task: asyncio.Task[None]) -> None:
        self._shipments.discard(task)
        self._room.set()
        self._answered.set()
        if not self._shipments:
            self._quiet.set()

    def _settler_moved(self) -> None:
        self._room.set()
        self._quiet.set()

    async def _read_some(self) -> list[Delivery]:
        """Return deliveries; a cancellation while the log reads gives back what it then returns."""
        reading = asyncio.ensure_future(self._log.read(self.group, _READ_BYTES, self.exporter.id))
        try:
            return await asyncio.shield(reading)
        except asyncio.CancelledError:
            reading.add_done_callback(self._give_back)
            raise
        except LogError as error:
            if error.kind is ErrorKind.LOG_CLOSED:
                self._stopping = True
                return []
            self._limited_logger.warning(error.kind, "%s: cannot read the buffer: %s", self.exporter.id, error)
            await self._clock.sleep(self.exporter.config.retry_initial_s)
            return []

    def _give_back(self, reading: asyncio.Future[list[Delivery]]) -> None:
        if not reading.cancelled() and reading.exception() is None:
            self._log.defer(reading.result())

    async def _wait_readable(self) -> None:
        """Return when there may be something to read, or at the stop, which cancels this wait."""
        if self._stopping:
            return
        self._idle = True
        try:
            await self._log.wait_readable(self.group)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._stopping or task is None or task.uncancel():
                raise
        except LogError:
            self._stopping = True
        finally:
            self._idle = False

    async def _sleep_or(self, event: asyncio.Event, duration_s: float) -> None:
        """Return after a while, or as soon as the event is set."""
        waits = [asyncio.ensure_future(self._clock.sleep(duration_s)), asyncio.ensure_future(event.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await wait
