"""Decides whole traces after the log: every error, a consistent part of the rest, and what else its policies keep.

    traces.in ─▶ take: a summary of each trace; the blocks stay compressed ─▶ tick: decisions ─▶ rows of kept traces ─▶ traces

What it remembers is in one commit with what it sends, so a restart loses no trace that is not decided and sends none twice. How it does
that: `docs/decisions/005-tail-sampling.md`; for users: `docs/sampling.md`. Not here: the decisions themselves (Rust core, `sampling/`), the
loop (`delivery/derive.py`), sampling before the log (`sample.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ByteSize, Field, field_validator, model_validator

from emp_pipe.component import ComponentConfig, Context, Derived, ProcessorConfig
from emp_pipe.log.protocol import DeadLetter, DeadReason, Delivery, Rejection, Topic
from emp_pipe.self_metrics import ComponentGauges, Metrics

if TYPE_CHECKING:
    from emp_pipe._core import Block, TailTick

_STATE = "decisions/0/"
"""What the keys of the state begin with. The 0 is fixed: each shard of a log keeps a state of its own."""
_STATE_TTL_S = 7 * 86_400.0
"""Values are deleted when they are of no use any more; this is for those of a sampler that never came back."""
_OWN_KEYS: dict[str, frozenset[str]] = {
    "always": frozenset(),
    "error": frozenset(),
    "slow": frozenset({"min_duration_s", "max_duration_s"}),
    "attribute": frozenset({"key", "where", "values", "min", "max", "is_true"}),
    "probability": frozenset({"percent"}),
    "rate_limit": frozenset({"spans_per_s", "traces_per_s"}),
    "and": frozenset({"policies"}),
    "or": frozenset({"policies"}),
    "not": frozenset({"policy"}),
}
_MUST_HAVE = {"slow": "min_duration_s", "attribute": "key", "probability": "percent", "and": "policies", "or": "policies", "not": "policy"}

Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class PolicyConfig(ComponentConfig):
    """One reason to keep a trace."""

    type: Literal["always", "error", "slow", "attribute", "probability", "rate_limit", "and", "or", "not"] = Field(
        description="What it looks at; `error`: a span's status."
    )
    name: str = Field("", max_length=100, description="What its decisions are counted under. Default: its type.")
    min_duration_s: Seconds | None = Field(None, description="`slow`: from the earliest start to the latest end at least this.")
    max_duration_s: Seconds | None = Field(None, description="`slow`: and at most this.")
    key: str | None = Field(None, min_length=1, description="`attribute`: which one. Without a condition on the value any value will do.")
    where: Literal["any", "span", "resource"] = Field("any", description="`attribute`: where it is looked for.")
    values: tuple[str, ...] = Field((), description="`attribute`: strings; `*` stands for any characters.")
    min: Number | None = Field(None, description="`attribute`: numbers from here.")
    max: Number | None = Field(None, description="`attribute`: numbers to here.")
    is_true: bool | None = Field(None, description="`attribute`: a bool, and which.")
    percent: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = Field(
        None, description="`probability`: so much, the same traces on every machine."
    )
    spans_per_s: Rate | None = Field(None, description="`rate_limit`: spans of kept traces, or")
    traces_per_s: Rate | None = Field(None, description="`rate_limit`: kept traces.")
    policies: tuple[PolicyConfig, ...] = Field((), description="`and`, `or`: policies of which all, or any, must match.")
    policy: PolicyConfig | None = Field(None, description="`not`: the policy that must not match.")

    @model_validator(mode="after")
    def _has_what_its_type_needs(self) -> PolicyConfig:
        fields = PolicyConfig.model_fields.items()
        given = {name for name, field in fields if getattr(self, name) != field.default} - {"type", "name"}
        if unfit := sorted(given - _OWN_KEYS[self.type]):
            known = ", ".join(sorted(_OWN_KEYS[self.type])) or "no settings of its own"
            raise ValueError(f"a policy of type {self.type} has no {unfit[0]!r}; it has {known}")
        needed = _MUST_HAVE.get(self.type)
        if needed is not None and not getattr(self, needed) and getattr(self, needed) != 0:
            raise ValueError(f"a policy of type {self.type} needs {needed!r}")
        if self.type == "rate_limit" and (self.spans_per_s is None) == (self.traces_per_s is None):
            raise ValueError("a policy of type rate_limit needs either 'spans_per_s' or 'traces_per_s'")
        return self

    def to_core(self, parts: int = 1) -> dict[str, Any]:
        """Return the policy as the core reads it, for one of so many samplers that share its rates: they see equally many traces."""
        out: dict[str, Any] = {"type": self.type, "name": self.name or self.type}
        if self.type == "slow":
            assert self.min_duration_s is not None
            out["min_duration_ns"] = _ns(self.min_duration_s)
            out["max_duration_ns"] = None if self.max_duration_s is None else _ns(self.max_duration_s)
        elif self.type in ("and", "or"):
            out["policies"] = [policy.to_core(parts) for policy in self.policies]
        elif self.type == "not":
            assert self.policy is not None
            out["policy"] = self.policy.to_core(parts)
        else:
            own = self.model_dump(mode="json")
            out |= {key: own[key] for key in _OWN_KEYS[self.type]}
            if self.type == "rate_limit":
                out |= {key: rate / parts for key in ("spans_per_s", "traces_per_s") if (rate := out[key]) is not None}
        return out


_FLEET = (
    PolicyConfig.model_validate({"type": "error", "name": "errors"}),
    PolicyConfig.model_validate({"type": "probability", "name": "normal", "percent": 10.0}),
)


class TailSampleConfig(ProcessorConfig):
    """Keeps every trace that some policy keeps: by default all with an error, and 10 % of the others."""

    policies: tuple[PolicyConfig, ...] = Field(
        _FLEET,
        min_length=1,
        description="Tried in order; the first that matches is the reason. Default: every error, 10 % of the rest.",
    )
    decision_wait_s: Annotated[float, Field(gt=0, le=86_400)] = Field(
        30.0, description="From a trace's first span to its decision. Traces that last longer are decided by what came until then."
    )
    decide_on_error: bool = Field(True, description="Decide a trace at the first error that keeps it, without waiting.")
    decide_after_root_s: Seconds | None = Field(
        None,
        description="Decide a trace so long after its root came, which means that it has ended. Unset: after `decision_wait_s`.",
    )
    max_trace_spans: Annotated[int, Field(gt=0, lt=1 << 32)] = Field(
        20_000, description="A trace with so many spans is decided at once; what still comes follows the decision."
    )
    late_spans_s: Annotated[float, Field(gt=0, le=86_400)] = Field(
        300.0, description="How long after its decision a trace's late spans follow it. After that they begin a new trace."
    )
    memory_bytes: Annotated[ByteSize, Field(ge=1 << 20)] = Field(
        ByteSize(256 << 20),
        description="For traces that are not decided and for decisions. When it is full the oldest traces are decided: nothing is lost.",
    )

    @field_validator("policies")
    @classmethod
    def _names_are_unique(cls, policies: tuple[PolicyConfig, ...]) -> tuple[PolicyConfig, ...]:
        names = [policy.name or policy.type for policy in policies]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two policies are called {name!r}; give each a `name` of its own")
        return policies

    @model_validator(mode="after")
    def _a_root_is_not_waited_for_longer_than_everything(self) -> TailSampleConfig:
        if self.decide_after_root_s is not None and self.decide_after_root_s > self.decision_wait_s:
            raise ValueError("decide_after_root_s must not be more than decision_wait_s")
        return self


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


class TailSampleDeriver:
    """The group of the log that samples whole traces; see the module's head."""

    def __init__(self, id: str, config: TailSampleConfig, context: Context) -> None:
        from emp_pipe._core import TailSampler

        self.id = id
        self.config = config
        self._codec = context.wiring.codec
        memory_bytes = int(config.memory_bytes) // context.wiring.parts
        self._max_held_bytes = memory_bytes * 5 // 8
        settings = {
            "policies": [policy.to_core(context.wiring.parts) for policy in config.policies],
            "decision_wait_ns": _ns(config.decision_wait_s),
            "decide_on_error": config.decide_on_error,
            "decide_after_root_ns": None if config.decide_after_root_s is None else _ns(config.decide_after_root_s),
            "max_trace_spans": config.max_trace_spans,
            "late_ns": _ns(config.late_spans_s),
            "max_held_bytes": self._max_held_bytes,
            "max_open_bytes": memory_bytes // 4,
            "max_decided_bytes": memory_bytes // 8,
            "red_done": context.wiring.red_runs,
        }
        self._sampler = TailSampler(json.dumps(settings))
        self._deliveries: dict[int, Delivery] = {}
        self._id_prefix = f"{context.clock.unix_nano() // 1_000_000:012x}{os.urandom(6).hex()}"
        self._made = 0
        self._counted = _Counted(id, context.metrics, self._sampler.policy_names)

    @property
    def reads(self) -> frozenset[Topic]:
        return frozenset({Topic.TRACES_IN})

    @property
    def writes(self) -> frozenset[Topic]:
        return frozenset({Topic.TRACES})

    @property
    def tick_s(self) -> float:
        waits = [self.config.decision_wait_s, self.config.decide_after_root_s or 4.0]
        return max(min(1.0, *(wait / 4 for wait in waits)), 0.02)

    @property
    def max_held_bytes(self) -> int:
        return self._max_held_bytes

    def restore(self, state: Mapping[str, bytes]) -> None:
        self._deliveries.clear()
        self._sampler.restore([value for key, value in state.items() if key.startswith(_STATE)])
        self._counted.open()

    def close(self) -> None:
        self._counted.close()

    def take(self, delivery: Delivery, now_unix_nano: int) -> None:
        self._sampler.take(delivery.offset, delivery.block, now_unix_nano)
        self._deliveries[delivery.offset] = delivery

    def tick(self, now_unix_nano: int, *, final: bool) -> Derived | None:
        tick = self._sampler.tick(now_unix_nano, at_once=final, codec=self._codec, id_prefix=self._id_prefix, first_number=self._made)
        self._counted.update(self._sampler.counts, self._sampler.open_traces, self._sampler.memory_bytes)
        if tick is None:
            return None
        outputs = tick.outputs
        self._made += len(outputs)
        return self._derived(tick, outputs, now_unix_nano)

    def _derived(self, tick: TailTick, outputs: Sequence[Block], now_unix_nano: int) -> Derived:
        ended = [self._deliveries.pop(offset) for offset in tick.acks]
        broken = tick.broken
        puts = {} if tick.state is None else {_key(tick.state[0]): tick.state[1]}
        return Derived(
            acks=[delivery for delivery in ended if delivery.offset not in broken],
            skipped_records=tick.skipped,
            rejections=[
                self._rejection(delivery, broken[delivery.offset], now_unix_nano) for delivery in ended if delivery.offset in broken
            ],
            outputs=outputs,
            state_puts=puts,
            state_ttl_s=_STATE_TTL_S,
            state_deletes=[_key(number) for number in tick.deletes],
        )

    def _rejection(self, delivery: Delivery, records: int, now_unix_nano: int) -> Rejection:
        """Return the end of a block of which some rows cannot be read: they are in the letter, the others went their way."""
        block = delivery.block
        letter = DeadLetter(
            self.id,
            DeadReason.BLOCK_INVALID,
            f"{records} of its {block.records} spans cannot be read",
            bytes(memoryview(block)),
            block.header,
            records,
            time_unix_nano=now_unix_nano,
        )
        return Rejection(delivery, [letter])


def _key(number: int) -> str:
    return f"{_STATE}{number:016x}"


class _Counted:
    """The sampler's own counts as metrics."""

    def __init__(self, id: str, metrics: Metrics, policies: Sequence[str]) -> None:
        traces = metrics.counter(
            "tail_sample_traces",
            unit="traces",
            help="Traces decided, by the policy that kept them; dropped: none did.",
            labels=["component", "policy"],
        )
        spans = metrics.counter("tail_sample_spans", unit="spans", help="Their spans until the decision.", labels=["component", "policy"])
        decided = metrics.counter(
            "tail_sample_decisions",
            unit="traces",
            help="Traces decided, by what made it time: decision_wait, root, error, max_trace_spans, memory.",
            labels=["component", "cause"],
        )
        late = metrics.counter(
            "tail_sample_late", unit="spans", help="Spans that came after their trace's decision.", labels=["component", "verdict"]
        )
        odd = metrics.counter(
            "tail_sample_odd",
            unit="spans",
            help="Spans passed on without a trace id; spans whose malformed tracestate was left as it is.",
            labels=["component", "reason"],
        )
        self._counters = {f"policy.{name}.traces": traces.labels(id, name) for name in policies}
        self._counters |= {f"policy.{name}.spans": spans.labels(id, name) for name in policies}
        self._counters |= {"dropped.traces": traces.labels(id, "dropped"), "dropped.spans": spans.labels(id, "dropped")}
        self._counters |= {
            f"why.{cause}": decided.labels(id, cause) for cause in ("decision_wait", "root", "error", "max_trace_spans", "memory")
        }
        self._counters |= {f"late.{verdict}": late.labels(id, verdict) for verdict in ("kept", "dropped")}
        self._counters |= {reason: odd.labels(id, reason) for reason in ("without_trace_id", "malformed_tracestate")}
        self._gauges = ComponentGauges(metrics, id)
        self._open_traces = self._memory_bytes = 0  # as of the last tick
        self._seen: dict[str, int] = {}

    def open(self) -> None:
        """Say where the gauges' values are read."""
        for name, unit, help_text, read in (
            ("tail_sample_open", "traces", "Traces that are not decided yet.", lambda: self._open_traces),
            ("tail_sample_memory", "bytes", "What summaries and decisions take, blocks not counted.", lambda: self._memory_bytes),
        ):
            self._gauges.add(name, unit=unit, help=help_text, read=read)

    def close(self) -> None:
        self._gauges.close()

    def update(self, counts: Mapping[str, int], open_traces: int, memory_bytes: int) -> None:
        for name, count in counts.items():
            if more := count - self._seen.get(name, 0):
                self._counters[name].inc(more)
                self._seen[name] = count
        self._open_traces, self._memory_bytes = open_traces, memory_bytes


CONFIG = TailSampleConfig
COMPONENT = TailSampleDeriver
