"""The one retry loop: a shipment is sent again, split or dead-lettered until every row in it has ended.

    send → ok              → acked (rows refused in a partial success are counted, never sent again)
         → LATER           → again after a full-jitter wait, or when the destination said so; in halves where the time was too short twice
         → AFTER_CONFIG…   → again at the breaker's slow pace; stays buffered meanwhile
         → SMALLER         → halves, down to the row; a row that is refused alone becomes a dead letter, its neighbours do not
         → NEVER           → dead letter

Rows of split pieces that passed are not sent again within this process. Cancelled, it raises and the caller defers. Next: `gate.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, TypeVar

from emp_pipe import failpoints
from emp_pipe._core import CoreError
from emp_pipe.component import Exporter, Parcel, Sent
from emp_pipe.delivery.backoff import Backoff
from emp_pipe.delivery.breaker import BreakerState
from emp_pipe.delivery.gate import Gate
from emp_pipe.delivery.metrics import DeliveryMetrics
from emp_pipe.delivery.prepare import Preparer
from emp_pipe.delivery.shipment import Piece, Shipment
from emp_pipe.errors import DeliveryError, ErrorKind, Retry
from emp_pipe.log.protocol import DeadReason
from emp_pipe.logs import RateLimitedLogger

if TYPE_CHECKING:
    from emp_pipe.clock import Clock

_T = TypeVar("_T")

INLINE_BELOW_BYTES = 64 << 10
"""Work over so many bytes goes to a thread."""
_DOUBTFUL_FAILURES = 3
"""So many failures of one piece while others passed, and the data is to blame."""
_MOST_PAUSE_S = 600.0
"""No destination may silence us for longer, whatever it writes into Retry-After."""
_LEAST_SPLIT_BYTES = 64 << 10
_TIME_OUTS_TO_SPLIT = 2
_SLOW_SHARE, _QUICK_SHARE = 0.25, 0.0625
"""A request that goes alone and takes more of its time than the first share is too large for the destination; less than the second, and
requests may grow again."""
_DEAD_REASONS = {
    ErrorKind.TOO_LARGE: DeadReason.TOO_LARGE,
    ErrorKind.EXPIRED: DeadReason.EXPIRED,
    ErrorKind.BLOCK_INVALID: DeadReason.BLOCK_INVALID,
}


async def in_pool(size_bytes: int, work: Callable[[], _T]) -> _T:
    """Return what `work` returns: done here where it is small, else in a thread."""
    if size_bytes < INLINE_BELOW_BYTES:
        return work()
    return await asyncio.get_running_loop().run_in_executor(None, work)


class Abandoned(Exception):
    """emp-pipe stops, and the shipment has not ended: defer it."""


class Shipper:
    """Sends shipments of one exporter. `sending` are the tasks that wait for an answer right now."""

    def __init__(
        self,
        exporter: Exporter,
        preparer: Preparer,
        gate: Gate,
        clock: Clock,
        metrics: DeliveryMetrics,
        random: Random,
        logger: logging.Logger,
    ) -> None:
        self._exporter = exporter
        self._preparer = preparer
        self._gate = gate
        self._clock = clock
        self._metrics = metrics
        self._log = RateLimitedLogger(logger)
        config = exporter.config
        self._timeout_s = config.timeout_s
        self._most_request_bytes = preparer.max_request_bytes
        self._is_slow = False
        self._backoff = Backoff(random, initial_s=config.retry_initial_s, most_s=config.retry_max_s)
        self.sending: set[asyncio.Task[None] | None] = set()
        self.stopping = False
        self.last_error: DeliveryError | None = None
        self.last_success_monotonic_s: float | None = None

    async def ship(self, shipment: Shipment) -> None:
        """Return when every part of the shipment has ended; what ended how is in its endings."""
        if shipment.piece is None:
            return
        pieces = deque([shipment.piece])
        while pieces:
            piece = pieces.popleft()
            if piece.block.uncompressed_bytes > self._preparer.max_request_bytes and self._exporter.merges:
                parts = await self._split(piece)
                if parts != [piece]:
                    pieces.extendleft(reversed(parts))
                    continue
            left = await self._until_ended(piece, shipment.order, alone=not pieces)
            if left == [piece]:
                pieces.append(piece)
            else:
                pieces.extendleft(reversed(left))

    async def _until_ended(self, piece: Piece, order: int, *, alone: bool) -> list[Piece]:
        """Return what is left to do of a piece: nothing, the pieces it was split into, or itself where its siblings go first."""
        while True:
            if piece.attempts and self._preparer.is_stale(piece):
                limited = await in_pool(piece.block.uncompressed_bytes, lambda one=piece: self._preparer.limit_again(one))  # type: ignore[misc]
                if limited is None:
                    return []
                piece = limited
            error = await self._attempt(piece, order)
            if error is None:
                return []
            retry = self._verdict(piece, error)
            if retry is Retry.NEVER:
                return self._give_up(piece, error)
            if retry is Retry.SMALLER:
                if error.kind is ErrorKind.TOO_LARGE and len(piece.parts) > 1:
                    self._learn_too_large(piece.block.uncompressed_bytes)
                parts = await self._split(piece)
                return self._give_up(piece, error) if parts == [piece] else parts
            if self.stopping:
                raise Abandoned
            self._metrics.retried(error.kind)
            if self._gate.breaker.state is BreakerState.CLOSED:
                await self._gate.rest(self._backoff.wait_s(piece.attempts))
            if self._takes_too_long(piece, error) and (parts := await self._split(piece)) != [piece]:
                return parts
            if piece.doubtful_failures and not alone:
                return [piece]

    async def _attempt(self, piece: Piece, order: int) -> DeliveryError | None:
        """Make one attempt; return what went wrong."""
        attempt = await self._gate.enter(order, piece.attempts)
        piece.attempts += 1
        self._metrics.attempts.inc()
        parcel = Parcel(piece.block, piece.attempts, attempt.started_s + self._timeout_s)
        task = asyncio.current_task()
        self.sending.add(task)
        try:
            async with asyncio.timeout(self._timeout_s):
                sent = await self._exporter.send(parcel)
        except DeliveryError as raised:
            error = raised
        except TimeoutError:
            error = DeliveryError(ErrorKind.TIMED_OUT, place=self._exporter.id, detail=f"no answer within timeout_s = {self._timeout_s:g}")
        except asyncio.CancelledError:
            self._gate.abandoned()
            raise
        except Exception as raised:
            self._log.exception(f"unexpected {type(raised).__name__}", "%s: the exporter failed unexpectedly", self._exporter.id)
            error = DeliveryError(
                ErrorKind.SERVER_ERROR, place=self._exporter.id, detail=f"{type(raised).__name__}: {raised}", maybe_poisoned=True
            )
        else:
            self._succeeded(piece, sent)
            self._learn_speed(piece.block.uncompressed_bytes, self._clock.monotonic_s() - attempt.started_s)
            self._gate.succeeded(attempt, piece.block.payload_bytes)
            return None
        finally:
            self.sending.discard(task)
        piece.time_outs += error.kind is ErrorKind.TIMED_OUT
        if error.retry in (Retry.SMALLER, Retry.NEVER):
            self._gate.refused()
        else:
            self.last_error = error
            slow = error.retry is Retry.AFTER_CONFIG_CHANGE
            pause_s = min(error.retry_after_s, _MOST_PAUSE_S) if error.retry_after_s else None
            self._gate.failed(attempt, slow=slow, pause_s=pause_s, lost=error.kind is ErrorKind.UNREACHABLE and not slow)
            more = "stays buffered and is tried again slowly" if slow else "is tried again"
            self._log.warning(
                error.kind, "block %s (%d %s) %s: %s", piece.block.block_id, piece.block.records, piece.block.signal, more, error
            )
        return error

    def _succeeded(self, piece: Piece, sent: Sent) -> None:
        failpoints.hit("delivery.send")
        block = piece.block
        self.last_success_monotonic_s = self._clock.monotonic_s()
        self.last_error = None
        self._metrics.sent(block.signal, block.records - sent.rejected_records, block.payload_bytes)
        if sent.rejected_records:
            self._metrics.rejected(block.signal, sent.rejected_records)
            self._log.warning(
                "partial",
                "%s: the destination rejected %d of %d records: %s",
                self._exporter.id,
                sent.rejected_records,
                block.records,
                sent.message,
            )
        elif sent.message:
            self._log.warning("partial", "%s: the destination warns: %s", self._exporter.id, sent.message)

    def _verdict(self, piece: Piece, error: DeliveryError) -> Retry:
        """Return what to do; a failure that may be the data's fault is held against it only while other data passes."""
        if error.retry is Retry.LATER and error.fields.get("maybe_poisoned"):
            others_passed = self._gate.successes > piece.successes_at_failure >= 0
            if others_passed or not piece.doubtful_failures:
                piece.doubtful_failures += 1
                piece.successes_at_failure = self._gate.successes
            if others_passed and piece.doubtful_failures > _DOUBTFUL_FAILURES:
                return Retry.SMALLER
        return error.retry

    async def _split(self, piece: Piece) -> list[Piece]:
        size_bytes = piece.block.uncompressed_bytes
        try:
            parts = await in_pool(size_bytes, lambda: self._preparer.split(piece))
        except CoreError as error:
            self._preparer.letters(piece, DeadReason.BLOCK_INVALID, str(error))
            return []
        for part in parts:
            if part is not piece and piece.doubtful_failures:
                part.doubtful_failures = piece.doubtful_failures
                part.successes_at_failure = piece.successes_at_failure
        return parts

    def _give_up(self, piece: Piece, error: DeliveryError) -> list[Piece]:
        reason = _DEAD_REASONS.get(error.kind, DeadReason.REFUSED)
        self._log.warning(
            f"dead:{reason}", "%d %s become dead letters (%s): %s", piece.block.records, piece.block.signal, reason.value, error
        )
        self._preparer.letters(piece, reason, str(error))
        return []

    def _takes_too_long(self, piece: Piece, error: DeliveryError) -> bool:
        """Whether a request would never come to its end within its time, as over a thin line."""
        too_often = error.kind is ErrorKind.TIMED_OUT and piece.time_outs >= _TIME_OUTS_TO_SPLIT
        return too_often and self._exporter.merges and piece.block.uncompressed_bytes > _LEAST_SPLIT_BYTES

    def _learn_speed(self, size_bytes: int, took_s: float) -> None:
        """Merge less for a destination that needs long for a request that goes alone, and more again when it does not."""
        most_bytes = self._preparer.max_request_bytes
        if took_s > self._timeout_s * _SLOW_SHARE and self._gate.adaptive.limit == 1:
            self._preparer.max_request_bytes = max(min(most_bytes, size_bytes // 2), min(most_bytes, _LEAST_SPLIT_BYTES))
            self._is_slow = True
        elif self._is_slow and took_s < self._timeout_s * _QUICK_SHARE and size_bytes > most_bytes // 2:
            self._preparer.max_request_bytes = min(2 * most_bytes, self._most_request_bytes)

    def _learn_too_large(self, size_bytes: int) -> None:
        """The destination refused a merged request for its size: merge less from now on."""
        self._most_request_bytes = self._preparer.max_request_bytes = max(
            min(self._preparer.max_request_bytes, size_bytes // 2), _LEAST_SPLIT_BYTES
        )
