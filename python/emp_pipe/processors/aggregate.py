"""Adds metrics up: one point per stream and window, by default of 30 seconds.

A window is what was read since the last tick; a tick emits all of it and ends exactly the blocks that it came from, in one commit.
Nothing is carried from one window to the next, so a restart reads the same blocks again and neither loses nor doubles anything.
Not here: what joins what (the core, `rust/emp-core/src/aggregate/`), reading and committing (`delivery/derive.py`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveInt

from emp_pipe.component import Context, Derived, ProcessorConfig
from emp_pipe.log.protocol import DeadLetter, DeadReason, Delivery, Rejection, Topic
from emp_pipe.logs import RateLimitedLogger, get_logger
from emp_pipe.self_metrics import ComponentGauges

if TYPE_CHECKING:
    from emp_pipe._core import Rejected

_MOST_NAMES = 100
_OTHER_NAMES = "(other)"


class AggregateConfig(ProcessorConfig):
    interval_s: Annotated[float, Field(gt=0, le=600)] = Field(30.0, description="The length of a window.")
    max_streams: Annotated[int, Field(ge=2)] = Field(
        2_000,
        description="The most streams (sets of attributes) of a metric of one resource, as OpenTelemetry's SDKs have it. More go to one "
        "stream with the attribute otel.metric.overflow, and are counted.",
    )
    max_exemplars: Annotated[int, Field(ge=0, le=100)] = Field(5, description="The most exemplars of a point.")
    max_held_bytes: PositiveInt = Field(
        64 << 20, description="With this much in compressed blocks, or four times as much in memory, a window ends early."
    )


class Aggregate:
    """See the module's head. A deriver: from metrics.in to metrics."""

    def __init__(self, id: str, config: AggregateConfig, context: Context) -> None:
        from emp_pipe._core import Aggregator

        self.id = id
        self.config = config
        self._core = Aggregator(max_streams=config.max_streams, max_exemplars=config.max_exemplars)
        self._codec = context.wiring.codec
        self._max_held_bytes = max(config.max_held_bytes // context.wiring.parts, 1)
        self._deliveries: list[Delivery] = []
        self._skipped: dict[int, int] = {}
        self._rejections: dict[int, Rejection] = {}
        self._blocks_made = 0
        self._block_prefix = f"{os.urandom(8).hex()}-"
        self._logger = RateLimitedLogger(get_logger(id))
        self._names: set[str] = set()
        self._overflowed = context.metrics.counter(
            "aggregate_overflow_points",
            unit="points",
            help="Data points of streams past the limit of a metric, by metric.",
            labels=("component", "metric"),
        )
        self._points = context.metrics.counter(
            "aggregate_points", unit="points", help="Data points read and written.", labels=("component", "direction")
        )
        self._gauges = ComponentGauges(context.metrics, id)

    @property
    def reads(self) -> frozenset[Topic]:
        return frozenset({Topic.METRICS_IN})

    @property
    def writes(self) -> frozenset[Topic]:
        return frozenset({Topic.METRICS})

    @property
    def tick_s(self) -> float:
        return self.config.interval_s

    @property
    def max_held_bytes(self) -> int:
        # What a block becomes in memory is not known from its compressed size: a full core is told as full deliveries.
        return 1 if self._deliveries and self._memory_is_full else self._max_held_bytes

    @property
    def _memory_is_full(self) -> bool:
        return self._core.size_bytes > 4 * self._max_held_bytes

    def restore(self, state: Mapping[str, bytes]) -> None:
        self._core.reset()
        self._forget()
        for name, unit, help_text, read in (
            ("aggregate_streams", "streams", "Streams that are known, the idle ones included.", lambda: float(self._core.stream_count)),
            ("aggregate_memory", "bytes", "What the streams and their points take, about.", lambda: float(self._core.size_bytes)),
        ):
            self._gauges.add(name, unit=unit, help=help_text, read=read)

    def close(self) -> None:
        self._gauges.close()

    def _forget(self) -> None:
        self._deliveries = []
        self._skipped = {}
        self._rejections = {}

    def take(self, delivery: Delivery, now_unix_nano: int) -> None:
        taken = self._core.take(delivery.block)
        self._points.labels(self.id, "in").inc(taken.points)
        self._deliveries.append(delivery)
        if taken.skipped:
            self._skipped[delivery.offset] = taken.skipped
        if unreadable := taken.unreadable:
            letters = [self._letter(rejected, now_unix_nano) for rejected in unreadable]
            self._rejections[delivery.offset] = Rejection(delivery, letters)

    def _letter(self, rejected: Rejected, now_unix_nano: int) -> DeadLetter:
        return DeadLetter(
            self.id,
            DeadReason.BODY_INVALID,
            rejected.detail,
            rejected.data,
            records=rejected.records,
            offset=rejected.offset,
            time_unix_nano=now_unix_nano,
        )

    def tick(self, now_unix_nano: int, *, final: bool) -> Derived | None:
        if not self._deliveries:
            return None
        flushed = self._core.flush(self._codec, topic=Topic.METRICS.value, block_prefix=f"{self._block_prefix}{self._blocks_made:x}-")
        self._blocks_made += 1
        self._points.labels(self.id, "out").inc(flushed.points)
        for name, points in flushed.overflowed.items():
            self._count_overflow(name, points)
        derived = Derived(
            acks=[delivery for delivery in self._deliveries if delivery.offset not in self._rejections],
            skipped_records=self._skipped,
            rejections=list(self._rejections.values()),
            outputs=flushed.blocks,
        )
        self._forget()
        if self._memory_is_full:
            self._core.shrink()
        return derived

    def _count_overflow(self, name: str, points: int) -> None:
        if name not in self._names and len(self._names) >= _MOST_NAMES:
            name = _OTHER_NAMES  # names come from outside
        self._names.add(name)
        self._overflowed.labels(self.id, name).inc(points)
        self._logger.warning(
            name,
            "%s: metric %s has over %d streams: %d points went to its overflow stream, or were left out",
            self.id,
            name,
            self.config.max_streams,
            points,
        )


CONFIG = AggregateConfig
COMPONENT = Aggregate
