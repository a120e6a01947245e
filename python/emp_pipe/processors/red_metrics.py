"""RED metrics out of spans, before anything samples them: how many calls, how many failed, how long they took.

Each commit holds the metrics of exactly the blocks that it ends, so a restart counts nothing twice. Where nothing samples, the blocks go
on to `traces` in the same commit, as they lie. Blocks that were counted at an earlier hop (`red_done`) are only passed or ended.
Not here: how spans are counted (the core, `rust/emp-core/src/aggregate/red.rs`), merging to windows (`aggregate.py`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator

from emp_pipe.clock import SteadyClock
from emp_pipe.component import Context, Derived, ProcessorConfig
from emp_pipe.log.protocol import Delivery, Topic
from emp_pipe.logs import RateLimitedLogger, get_logger

_BOUNDS_S = (0.002, 0.004, 0.006, 0.008, 0.01, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.4, 2.0, 5.0, 10.0, 15.0)


class RedMetricsConfig(ProcessorConfig):
    interval_s: Annotated[float, Field(gt=0, le=600)] = Field(
        1.0, description="How often what was counted is written. Traces that nothing samples wait for it too."
    )
    namespace: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_./-]*$")] = Field(
        "traces.span.metrics", description="What the names of the metrics begin with: <namespace>.calls, <namespace>.duration."
    )
    unit: Literal["s", "ms"] = Field("s", description="The unit of durations.")
    histogram: Literal["explicit", "exponential"] = Field("explicit", description="The kind of the duration's histogram.")
    bounds_s: tuple[float, ...] = Field(_BOUNDS_S, description="The explicit histogram's bounds in seconds, whatever the unit.")
    dimensions: tuple[str, ...] = Field(
        (), description="Span attributes that the metrics get too. Each value is a series of its own: never an id."
    )
    max_span_names: Annotated[int, Field(ge=1)] = Field(
        1_000, description="The most span names (with their dimensions) of a resource; more are counted under otel.metric.overflow."
    )
    max_exemplars: Annotated[int, Field(ge=0, le=100)] = Field(5, description="Exemplars of a duration's point: its slowest calls.")
    max_held_bytes: PositiveInt = Field(64 << 20, description="With this much in compressed blocks it is written early.")

    @field_validator("bounds_s")
    @classmethod
    def _increasing(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < one < float("inf") for one in value) or any(one >= other for one, other in pairwise(value)):
            raise ValueError("must be over 0 and increase")
        return value


class RedMetrics:
    """See the module's head. A deriver: from traces.in to metrics, and to traces where no tail sampler runs."""

    def __init__(self, id: str, config: RedMetricsConfig, context: Context) -> None:
        from emp_pipe._core import RedMetrics as Core

        self.id = id
        self.config = config
        self._core = Core(
            namespace=config.namespace,
            unit=config.unit,
            bounds=self._bounds() if config.histogram == "explicit" else None,
            dimensions=config.dimensions,
            max_span_names=config.max_span_names,
            max_exemplars=config.max_exemplars,
        )
        self._codec = context.wiring.codec
        self._max_held_bytes = max(config.max_held_bytes // context.wiring.parts, 1)
        self._passes_traces = not context.wiring.tail_samples
        self._metrics_topic = Topic.METRICS_IN if context.wiring.aggregates else Topic.METRICS
        self._deliveries: list[Delivery] = []
        self._clock = SteadyClock(context.clock)
        self._since_unix_nano = 0
        self._flushes = 0
        self._block_prefix = f"{os.urandom(8).hex()}-"
        self._logger = RateLimitedLogger(get_logger(id))
        self._spans = context.metrics.counter(
            "red_spans",
            unit="spans",
            help="Spans seen, by what became of them: counted, overflowed (counted without a name), unreadable, done before.",
            labels=("component", "outcome"),
        )

    def _bounds(self) -> list[float]:
        # 0.002 * 1000 is 2.0 and 0.0011 * 1000 is not 1.1: rounded to what was meant.
        return [round(bound * 1000, 9) if self.config.unit == "ms" else bound for bound in self.config.bounds_s]

    @property
    def reads(self) -> frozenset[Topic]:
        return frozenset({Topic.TRACES_IN})

    @property
    def writes(self) -> frozenset[Topic]:
        return frozenset({self._metrics_topic, Topic.TRACES} if self._passes_traces else {self._metrics_topic})

    @property
    def tick_s(self) -> float:
        return self.config.interval_s

    @property
    def max_held_bytes(self) -> int:
        return self._max_held_bytes

    def restore(self, state: Mapping[str, bytes]) -> None:
        self._core.reset()
        self._deliveries = []
        self._since_unix_nano = 0

    def close(self) -> None:
        """Nothing outlives it."""

    def take(self, delivery: Delivery, now_unix_nano: int) -> None:
        if delivery.block.red_done:
            self._count("done_before", delivery.block.records)
        else:
            taken = self._core.take(delivery.block, now_unix_nano=now_unix_nano)
            self._count("counted", taken.spans - taken.overflowed)
            self._count("overflowed", taken.overflowed)
            self._count("unreadable", taken.unreadable)
            if taken.overflowed:
                self._logger.warning(
                    "overflow",
                    "%s: a resource has over %d span names: %d spans were counted without theirs",
                    self.id,
                    self.config.max_span_names,
                    taken.overflowed,
                )
        self._deliveries.append(delivery)
        # Points begin where the last ones ended; the first ones with the first span.
        self._since_unix_nano = self._since_unix_nano or now_unix_nano

    def _count(self, outcome: str, spans: int) -> None:
        if spans:
            self._spans.labels(self.id, outcome).inc(spans)

    def tick(self, now_unix_nano: int, *, final: bool) -> Derived | None:
        since_unix_nano, self._since_unix_nano = self._since_unix_nano, now_unix_nano
        if not self._deliveries:
            return None
        # What it is called with is what passed, and what points say is the wall clock's: a window is as long as it was, and ends now.
        set_by_ns = self._clock.set_by_ns()
        outputs = self._core.flush(
            self._codec,
            topic=self._metrics_topic.value,
            block_prefix=f"{self._block_prefix}{self._flushes:x}-",
            start_unix_nano=min(since_unix_nano, now_unix_nano) + set_by_ns,
            end_unix_nano=now_unix_nano + set_by_ns,
        )
        self._flushes += 1
        if self._passes_traces:
            outputs += [delivery.block.with_topic(Topic.TRACES.value).with_flags(red_done=True) for delivery in self._deliveries]
        derived = Derived(acks=self._deliveries, outputs=outputs)
        self._deliveries = []
        return derived


CONFIG = RedMetricsConfig
COMPONENT = RedMetrics
