"""Leaves out a part of logs and spans before the log, the same part on every machine; errors and events are kept, and so are all metrics.

Traces are sampled here only where they are not sampled as a whole after the log (`tail_sample`) and no RED metrics are made of them
(`red_metrics`), which would count too little. For users: `docs/sampling.md`. Not here: the decisions (Rust core, `sampling/head.rs`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from emp_pipe.component import ComponentConfig, Context, ProcessorConfig
from emp_pipe.errors import ConfigError, ErrorKind

if TYPE_CHECKING:
    from emp_pipe._core import Batch

_FLEET_TRACES_PERCENT = 10.0

Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
_NO_METRICS = (
    "metrics are never sampled, for the sum of a part is wrong: `aggregate` makes fewer points, `except:` of an exporter leaves some out"
)


def _refuse_metrics(values: Any) -> Any:
    if isinstance(values, Mapping) and "metrics_percent" in values:
        raise ValueError(_NO_METRICS)
    return values


class ServiceSampling(ComponentConfig):
    """What is kept of one service."""

    logs_percent: Percent | None = Field(None, description="Of its logs. Unset: as of all.")
    traces_percent: Percent | None = Field(None, description="Of its traces. Unset: as of all.")

    _metrics = model_validator(mode="before")(_refuse_metrics)


class SampleRule(ComponentConfig):
    """One rule: what meets all of its conditions is kept by its percentage."""

    name: str = Field("", max_length=100, description="What left-out records are counted under. Default: `rules[<its place>]`.")
    signal: Literal["logs", "traces"] | None = Field(None, description="logs or traces. Unset: both.")
    services: tuple[str, ...] = Field((), description="`service.name`s; `*` stands for any characters.")
    max_severity: str | None = Field(None, description="Logs up to this level, such as debug; those without a level do not match.")
    percent: Percent = Field(description="What is kept.")

    @field_validator("signal", mode="before")
    @classmethod
    def _is_not_metrics(cls, value: Any) -> Any:
        if value == "metrics":
            raise ValueError(_NO_METRICS)
        return value

    @model_validator(mode="after")
    def _levels_are_those_of_logs(self) -> SampleRule:
        if self.max_severity is not None and self.signal == "traces":
            raise ValueError("spans have no level: max_severity is for logs")
        return self


class SampleConfig(ProcessorConfig):
    """Keeps all logs and 10 % of traces unless told otherwise. Rules go first, in their order, then services, then what is for all."""

    logs_percent: Percent = Field(100.0, description="Of logs below error that are no events. By trace id where they have one.")
    traces_percent: Percent | None = Field(
        None, description="Of spans that are no errors, by trace id. Default: 10; all where `tail_sample` or `red_metrics` runs."
    )
    services: Mapping[str, ServiceSampling] = Field(
        default_factory=dict, description="`service.name`, with `*` for any characters, to `logs_percent` and `traces_percent`."
    )
    rules: tuple[SampleRule, ...] = Field((), description="The first that matches counts.")

    _metrics = model_validator(mode="before")(_refuse_metrics)

    @property
    def names_traces(self) -> bool:
        """Return whether it was asked for a part of traces."""
        return (
            self.traces_percent is not None
            or any(service.traces_percent is not None for service in self.services.values())
            or any(rule.signal == "traces" for rule in self.rules)
        )

    def to_core(self, *, traces: bool) -> list[dict[str, Any]]:
        """Return the rules as the core reads them."""
        signals = ("logs", "traces") if traces else ("logs",)
        out: list[dict[str, Any]] = []

        def add(name: str, signal: str, percent: float, services: list[str], max_severity: str | None = None) -> None:
            if signal in signals and (signal == "logs" or max_severity is None):
                out.append({"name": name, "signal": signal, "services": services, "max_severity": max_severity, "percent": percent})

        for at, rule in enumerate(self.rules):
            for signal in (rule.signal,) if rule.signal else ("logs", "traces"):
                add(rule.name or f"rules[{at}]", signal, rule.percent, list(rule.services), rule.max_severity)
        for pattern, service in self.services.items():
            for signal, percent in (("logs", service.logs_percent), ("traces", service.traces_percent)):
                if percent is not None:
                    add(f"services.{pattern}", signal, percent, [pattern])
        add("logs_percent", "logs", self.logs_percent, [])
        add("traces_percent", "traces", _FLEET_TRACES_PERCENT if self.traces_percent is None else self.traces_percent, [])
        return out


class Sample:
    """The processor; see the module's head."""

    samples = True
    """Blocks of another emp-pipe that are decided pass it by."""

    def __init__(self, id: str, config: SampleConfig, context: Context) -> None:
        from emp_pipe._core import CoreError, Sampler

        self.id = id
        after_the_log = context.wiring.tail_samples or context.wiring.red_runs
        if after_the_log and config.names_traces:
            raise ConfigError(
                ErrorKind.CONFIG_INVALID,
                place=f"processors.{id}",
                detail="it is told to sample traces, which `tail_sample` or `red_metrics` must see whole",
                advice="remove its settings for traces and set the policies of `tail_sample`",
            )
        rules = config.to_core(traces=not after_the_log)
        try:
            self._sampler = Sampler(json.dumps(rules))
        except CoreError as error:
            detail = str(error).removesuffix(" at byte 0")
            raise ConfigError(ErrorKind.CONFIG_INVALID, place=f"processors.{id}", detail=detail) from error
        dropped = context.metrics.counter(
            "sample_dropped", unit="records", help="Records that were left out, by the rule that says so.", labels=["component", "reason"]
        )
        self._dropped = {rule["name"]: dropped.labels(id, rule["name"]) for rule in rules}
        self._malformed = context.metrics.counter(
            "sample_odd",
            unit="spans",
            help="Spans whose malformed tracestate was left as it is.",
            labels=["component", "reason"],
        ).labels(id, "malformed_tracestate")

    def process(self, batch: Batch) -> Batch | None:
        sampled = self._sampler.apply(batch)
        for reason, rows in sampled.dropped.items():
            self._dropped[reason].inc(rows)
        if sampled.malformed_tracestate:
            self._malformed.inc(sampled.malformed_tracestate)
        return sampled.batch


CONFIG = SampleConfig
COMPONENT = Sample
