"""What receivers share that read something by themselves, with checkpoints: the kernel's ring, the journal, containers.

    source → records → hand_over(batch, checkpoints) ── durable ──▶ read on
                            └─ the log cannot take it: the same again, until it can or the receiver stops

Nothing is read on before what was read is durable, so the source keeps what the log has no room for. A source that is away or broken is
said once, counted, and asked again; its end is said too. Not here: what is read and how (the receivers).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from emp_pipe.component import Arrival, ComponentConfig, Context, Intake
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.event_records import event_batch
from emp_pipe.log.protocol import DeadLetter, DeadReason
from emp_pipe.logs import RateLimitedLogger, get_logger

if TYPE_CHECKING:
    from emp_pipe._core import Batch

_AGAIN_S = 1.0
_MOST_DEAD_BYTES = 64 << 10


class Troubles:
    """What is wrong with a source: each said when it begins and when it is over, and counted every time it is met."""

    def __init__(self, id: str, context: Context) -> None:
        self._logger = get_logger(id)
        self._counter = context.metrics.counter(
            "source_troubles",
            unit="times",
            help="How often a source that a receiver reads by itself could not be read as it should, by reason.",
            labels=["component", "reason"],
        )
        self._id = id
        self._known: dict[str, str] = {}

    def met(self, reason: str, what: str, *arguments: object, of: str = "") -> None:
        """Count a trouble; say it where it was not there before. `of`: which of several sources."""
        self._counter.labels(self._id, reason).inc()
        if self._known.get(of) != reason:
            self._known[of] = reason
            self._logger.warning(what, *arguments)

    def over(self, what: str = "", *arguments: object, of: str = "") -> None:
        """The source can be read; say so where it could not."""
        if self._known.pop(of, None) is not None and what:
            self._logger.info(what, *arguments)


class ReadingReceiver(ABC):
    """A receiver that reads by itself. `read` runs until it is cancelled; what it hands over is durable when `hand_over` returns."""

    def __init__(self, id: str, config: ComponentConfig, context: Context) -> None:
        self.id = id
        self.context = context
        self.logger = get_logger(id)
        self.limited = RateLimitedLogger(self.logger)
        self.troubles = Troubles(id, context)
        self._intake: Intake | None = None
        self._task: asyncio.Task[None] | None = None
        self._handing: set[asyncio.Future[None]] = set()

    @abstractmethod
    async def read(self) -> None:
        """Read, and `hand_over`, until cancelled. Troubles of the source are its own to meet; it raises nothing for them."""

    async def run(self, intake: Intake, started: asyncio.Event) -> None:
        self._intake = intake
        self._task = asyncio.create_task(self._reading(), name=f"{self.id} reads")
        started.set()
        try:
            await asyncio.wait([self._task])
        finally:
            self._task.cancel()

    async def stop(self, deadline_monotonic_s: float) -> None:
        """Let what is on its way become durable, read no more."""
        if self._handing:
            await asyncio.wait(self._handing, timeout=max(deadline_monotonic_s - self.context.clock.monotonic_s(), 0.0))
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _reading(self) -> None:
        while True:
            try:
                await self.read()
            except Exception as error:  # a mistake of ours ends neither the process nor the receiver
                self.troubles.met("unexpected", "reading failed (%s: %s); it begins anew in %g s", type(error).__name__, error, _AGAIN_S)
                self.limited.exception(type(error).__name__, "the receiver begins anew")
            await self.context.clock.sleep(_AGAIN_S)

    # with the log

    def checkpoint_name(self, what: str) -> str:
        """Return the name of a checkpoint: this receiver's on this machine, for several may share a log."""
        return f"{self.id}@{self.context.machine_id}/{what}"

    async def checkpoint(self, what: str) -> bytes | None:
        """Return a checkpoint; wait where the log cannot say now: to begin without it would repeat everything."""
        assert self._intake is not None
        while True:
            try:
                return await self._intake.checkpoint_get(self.checkpoint_name(what))
            except LogError as error:
                self.limited.warning("checkpoint", "its position cannot be asked for: %s", error)
                await self.context.clock.sleep(_AGAIN_S)

    def batch_of(self, records: Sequence[Mapping[str, Any]], *, tag: str, resource: Mapping[str, str | int] | None = None) -> Batch | None:
        """Return records as a batch, normalised by this process's rules."""
        context = self.context
        now = context.clock.unix_nano()
        return event_batch(records, normalizer=context.normalizer, tag=tag, now_unix_nano=now, resource=resource)

    async def hand_over(self, batch: Batch | None, checkpoints: Mapping[str, bytes], *, dead: Sequence[DeadLetter] = ()) -> None:
        """Return when rows and checkpoints are durable, in one commit. A stop ends the waiting; then nothing of it counts."""
        assert self._intake is not None
        rows = batch.record_count if batch is not None else 0
        named = {self.checkpoint_name(what): value for what, value in checkpoints.items()}
        while True:
            await self._intake.wait_admitting()
            invalid = sum(letter.records for letter in dead)
            arrival = Arrival(self.id, batch, received=rows + invalid, invalid=invalid, dead=dead, checkpoints=named)
            future = self._intake.submit(arrival)
            self._handing.add(future)
            future.add_done_callback(self._handing.discard)
            try:
                await asyncio.shield(future)
            except LogError as error:
                if error.kind is not ErrorKind.LOG_CLOSED:
                    self.limited.warning("log", "%s rows wait and are tried again: %s", f"{rows:,}", error)
            else:
                return
            await self.context.clock.sleep(_AGAIN_S)

    def dead_letter(self, data: bytes, detail: str, *, reason: DeadReason = DeadReason.ENTRY_INVALID) -> DeadLetter:
        """Return bytes that are no record, as they are kept: bounded."""
        return DeadLetter(self.id, reason, detail, data[:_MOST_DEAD_BYTES], time_unix_nano=self.context.clock.unix_nano())
