"""From deliveries to requests: what goes as it lies, what is opened, what is merged.

`plan` only reads headers and runs in the event loop. A block goes as it lies when its header proves that neither selection nor a limit of
the destination applies and its codec is the exporter's. `build` opens, selects, limits, merges and compresses; call it in a thread when
`plan.size_bytes` is large. Merged requests are fixed within a process; after a restart the same rows come again block by block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from emp_pipe import _core
from emp_pipe._core import CoreError
from emp_pipe.clock import Clock
from emp_pipe.delivery.metrics import DeliveryMetrics
from emp_pipe.delivery.shipment import Ending, Part, Piece, Plan, Shipment
from emp_pipe.done import Done
from emp_pipe.log.protocol import DeadLetter, DeadReason, Delivery

if TYPE_CHECKING:
    from emp_pipe._core import Batch, Block, DestinationLimits, Selection
    from emp_pipe.component import Exporter

# A request costs some 0.2 ms on each side; to inflate and compress again costs 4 ns a byte with gzip, 2 with zstd, to copy next to nothing.
_MERGE_BELOW_BYTES = {"none": 256 << 10, "zstd": 96 << 10, "gzip": 48 << 10}
_MERGE_BELOW_WHEN_SATURATED_BYTES = 256 << 10
"""When requests wait for one another, fewer of them are worth more."""
_MOST_OPENED_BYTES = 1 << 20


class Preparer:
    """Plans and builds the requests of one exporter."""

    def __init__(self, exporter: Exporter, selection: Selection | None, clock: Clock, metrics: DeliveryMetrics) -> None:
        self._exporter = exporter
        self._selection = selection
        self._clock = clock
        self._metrics = metrics
        self._order = 0
        self.max_request_bytes = exporter.config.max_request_bytes

    def is_little(self, deliveries: Sequence[Delivery]) -> bool:
        """Return whether it is better to send the deliveries with others than now."""
        if not self._exporter.merges or self._exporter.ordered:
            return False
        size_bytes = sum(delivery.block.uncompressed_bytes for delivery in deliveries)
        return size_bytes < _MERGE_BELOW_BYTES[deliveries[0].block.codec]

    def plan(self, deliveries: Iterable[Delivery], *, saturated: bool) -> list[Plan]:
        """Return what to send, in the order of the log."""
        now_unix_nano = self._clock.unix_nano()
        plans: list[Plan] = []
        joinable: dict[tuple[str, bool, Done], Plan] = {}
        for delivery in deliveries:
            block = delivery.block
            opened = not self._goes_as_it_lies(block, now_unix_nano)
            size_bytes = block.uncompressed_bytes
            key = (delivery.topic, opened, Done.of(block))  # a request has one line that says what was done
            plan = joinable.get(key)
            small = self._exporter.merges and size_bytes < self._merge_below(block, opened, saturated)
            most_bytes = min(self.max_request_bytes, _MOST_OPENED_BYTES) if opened else self.max_request_bytes
            if plan is not None and small and plan.size_bytes + size_bytes <= most_bytes:
                plan.deliveries.append(delivery)
                plan.size_bytes += size_bytes
                continue
            plan = Plan(self._order, [delivery], opened, size_bytes)
            self._order += 1
            plans.append(plan)
            if self._exporter.ordered:
                joinable.clear()
            if small:
                joinable[key] = plan
        return plans

    def needs_work(self, plan: Plan) -> bool:
        """Return whether `build` has to touch payloads."""
        return plan.opened or len(plan.deliveries) > 1 or not self._codec_fits(plan.deliveries[0].block)

    def build(self, plan: Plan) -> Shipment:
        """Return the plan carried out. Runs in any thread."""
        endings = [Ending(delivery) for delivery in plan.deliveries]
        parts: list[Part] = []
        for ending in endings:
            block: Block | None = ending.delivery.block
            if plan.opened:
                codec = "none" if len(endings) > 1 else self._codec(ending.delivery.block)
                block = self._open(ending, ending.delivery.block, codec, select=True)
            if block is not None:
                parts.append(Part(ending, block))
        return Shipment(plan.order, endings, self.join(parts))

    def join(self, parts: Sequence[Part]) -> Piece | None:
        """Return one request out of parts; a part that cannot be read becomes a dead letter."""
        if not parts:
            return None
        if len(parts) == 1 and self._codec_fits(parts[0].block):
            return Piece(parts, parts[0].block)
        first = parts[0].block
        block_id = first.block_id if len(parts) == 1 else f"{first.block_id}+{len(parts) - 1}"
        try:
            return Piece(parts, _core.merge_blocks([part.block for part in parts], self._codec(first), block_id=block_id))
        except CoreError as error:
            readable = [part for part in parts if self._readable(part)]
            if len(readable) < len(parts):
                return self.join(readable)
            for part in parts:  # each can be read, and yet they cannot be joined: keep the bytes rather than loop
                self._letter(part.ending, part.block, DeadReason.BLOCK_INVALID, str(error), 0)
            return None

    def is_stale(self, piece: Piece) -> bool:
        """Return whether rows have become too old for the destination while they waited."""
        limits = self._limits
        return limits is not None and not limits.block_passes(piece.block, self._clock.unix_nano())

    def limit_again(self, piece: Piece) -> Piece | None:
        """Return the piece without the rows that have become too old; they become dead letters."""
        if len(piece.parts) == 1:
            part = piece.parts[0]
            block = self._open(part.ending, piece.block, self._codec(piece.block), select=False)
            return None if block is None else Piece(piece.parts, block, piece.attempts, piece.doubtful_failures, piece.successes_at_failure)
        kept: list[Part] = []
        for part in piece.parts:
            block = self._open(part.ending, part.block, "none", select=False)
            if block is not None:
                kept.append(Part(part.ending, block))
        again = self.join(kept)
        if again is not None:
            again.attempts = piece.attempts
        return again

    def split(self, piece: Piece) -> list[Piece]:
        """Return two pieces with half the parts or rows each; the piece itself where it cannot be split."""
        if len(piece.parts) > 1:
            middle = len(piece.parts) // 2
            halves = (self.join(piece.parts[:middle]), self.join(piece.parts[middle:]))
            return [half for half in halves if half is not None]
        block_id = piece.block.block_id
        halved = piece.block.halve((f"{block_id}.0", f"{block_id}.1"))
        return [piece] if halved is None else [Piece(piece.parts, half) for half in halved]

    def letters(self, piece: Piece, reason: DeadReason, detail: str) -> None:
        """Make dead letters of all that is in the piece."""
        if len(piece.parts) == 1:
            self._letter(piece.parts[0].ending, piece.block, reason, detail, piece.attempts)
            return
        for part in piece.parts:
            self._letter(part.ending, part.block, reason, detail, piece.attempts)

    @property
    def _limits(self) -> DestinationLimits | None:
        return self._exporter.limits

    def _goes_as_it_lies(self, block: Block, now_unix_nano: int) -> bool:
        if self._selection is not None and self._selection.of_block(block) != "all":
            return False
        return self._limits is None or self._limits.block_passes(block, now_unix_nano)

    def _codec_fits(self, block: Block) -> bool:
        return self._exporter.codec in ("any", block.codec)

    def _codec(self, block: Block) -> Any:
        codec = self._exporter.codec
        return block.codec if codec == "any" else codec

    def _merge_below(self, block: Block, opened: bool, saturated: bool) -> int:
        if opened or not self._codec_fits(block):
            return self.max_request_bytes  # it is compressed again anyhow
        return _MERGE_BELOW_WHEN_SATURATED_BYTES if saturated else _MERGE_BELOW_BYTES[block.codec]

    def _open(self, ending: Ending, block: Block, codec: Any, *, select: bool) -> Block | None:
        """Return the rows of a block that are to be sent, or None; what is left out is entered in the ending."""
        if select and self._selection is not None and self._selection.of_block(block) == "none":
            self._skip(ending, block.records)
            return None
        try:
            batch: Batch | None = block.decode()
        except CoreError as error:
            self._letter(ending, block, DeadReason.BLOCK_INVALID, str(error), 0)
            return None
        assert batch is not None
        if select and self._selection is not None:
            before = batch.record_count
            batch = self._selection.apply(batch)
            self._skip(ending, before - (batch.record_count if batch is not None else 0))
            if batch is None:
                return None
        if self._limits is not None and (batch := self._limited(ending, block, batch, self._limits)) is None:
            return None
        reopened = batch.to_block(codec, topic=block.topic, block_id=block.block_id)
        return reopened.with_flags(decided=block.decided, red_done=block.red_done, aggregated=block.aggregated)

    def _limited(self, ending: Ending, block: Block, batch: Batch, limits: DestinationLimits) -> Batch | None:
        """Return the rows of a batch as the destination takes them, or None; those that it would refuse become dead letters."""
        now_unix_nano = self._clock.unix_nano()
        try:
            limited = limits.apply(batch, now_unix_nano)
        except CoreError:  # a row of another emp-pipe's block may be broken where only limits look
            sound = self._sound(ending, block, batch, limits)
            if not sound:
                return None
            limited = limits.apply(_core.encode_block(sound, "none", topic=block.topic, block_id="").decode(), now_unix_nano)
        for batch_apart, reason, detail in (
            (limited.expired, DeadReason.EXPIRED, "older (or further ahead) than the destination accepts"),
            (limited.trace_too_large, DeadReason.TRACE_TOO_LARGE, "past the spans of a trace that the destination accepts"),
        ):
            if batch_apart is not None:
                self._letter_of(ending, block, batch_apart, reason, detail)
        for limit, values in limited.truncated.items():
            self._metrics.truncated(limit, values)
        return limited.batch

    def _sound(self, ending: Ending, block: Block, batch: Batch, limits: DestinationLimits) -> list[Batch]:
        """Return the parts of a batch that limits can be applied to; the rows that break them, found by halving, become dead letters."""
        try:
            limits.apply(batch, self._clock.unix_nano())
        except CoreError as error:
            if len(batch) > 1:
                middle = len(batch) // 2
                halves = (batch.slice(0, middle), batch.slice(middle, len(batch)))
                return [part for half in halves for part in self._sound(ending, block, half, limits)]
            self._letter_of(ending, block, batch, DeadReason.BLOCK_INVALID, str(error))
            return []
        return [batch]

    def _letter_of(self, ending: Ending, block: Block, rows: Batch, reason: DeadReason, detail: str) -> None:
        """Make a dead letter of some rows of a block."""
        apart = rows.to_block(self._codec(block), topic=block.topic, block_id=f"{block.block_id}.{reason.value}")
        self._letter(ending, apart, reason, detail, 0)

    def _readable(self, part: Part) -> bool:
        try:
            part.block.decode()
        except CoreError as error:
            self._letter(part.ending, part.block, DeadReason.BLOCK_INVALID, str(error), 0)
            return False
        return True

    def _skip(self, ending: Ending, records: int) -> None:
        if records:
            ending.skipped_records += records
            self._metrics.skipped(ending.delivery.block.signal, records)

    def _letter(self, ending: Ending, block: Block, reason: DeadReason, detail: str, attempts: int) -> None:
        ending.letters.append(
            DeadLetter(
                component=self._exporter.id,
                reason=reason,
                detail=detail,
                payload=bytes(memoryview(block)),
                header=block.header,
                records=block.records,
                attempts=attempts,
                time_unix_nano=self._clock.unix_nano(),
            )
        )
        self._metrics.dead(block.signal, block.records, reason)
