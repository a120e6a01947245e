"""Keeps so many records a second of each source, tag or service, before the log: one that runs wild does not fill the buffer for all.

A bucket of tokens for each; what finds none is left out, counted by rule, and said at once and then once a minute, the last of it when no
batch comes any more too. For users: `docs/filters.md`. Not here: the buckets (Rust core, `filter/rate.rs`).
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from emp_pipe.component import Context, ProcessorConfig
from emp_pipe.errors import ConfigError, ErrorKind
from emp_pipe.logs import get_logger
from emp_pipe.selecting import RowRule

if TYPE_CHECKING:
    from emp_pipe._core import Batch

_SAID_EVERY_S = 60.0


class RateLimitRule(RowRule):
    """One limit: without a condition it is for all rows."""

    by: Literal["source", "tag", "service", "all"] = Field(
        "source",
        description="What has a limit of its own. `source`: one sender's (resource's) one tag; `all`: all rows of the rule together.",
    )
    records_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(description="So many are kept a second, in the long run.")
    burst: PositiveFloat | None = Field(None, description="So many are kept at once. Default: those of ten seconds.")
    spare_errors: bool = Field(True, description="Errors and operational events pass, and take nothing of the limit.")


class RateLimitConfig(ProcessorConfig):
    """Limits nothing unless told to. The first rule that matches a row is its limit."""

    rules: tuple[RateLimitRule, ...] = Field((), description="The first that matches counts.")
    max_sources: PositiveInt = Field(
        10_000,
        description="So many sources, tags and services are told apart; beyond it those whose limit is not in use are forgotten first.",
    )

    def to_core(self) -> list[dict[str, Any]]:
        """Return the rules as the core reads them."""
        return [
            {
                "name": rule.name or f"rules[{at}]",
                "where": rule.where(),
                "by": rule.by,
                "records_per_s": rule.records_per_s,
                "burst": rule.burst or max(1.0, 10 * rule.records_per_s),
                "spare_errors": rule.spare_errors,
            }
            for at, rule in enumerate(self.rules)
        ]


class RateLimit:
    """The processor; see the module's head."""

    def __init__(self, id: str, config: RateLimitConfig, context: Context) -> None:
        from emp_pipe._core import CoreError, RateLimiter

        self.id = id
        self._clock = context.clock
        rules = config.to_core()
        try:
            self._limiter = RateLimiter(json.dumps(rules), config.max_sources)
        except CoreError as error:
            detail = " ".join(str(error).removesuffix(" at byte 0").split())
            raise ConfigError(ErrorKind.CONFIG_INVALID, place=f"processors.{id}", detail=detail) from error
        dropped = context.metrics.counter(
            "rate_limit_dropped", unit="records", help="Records above a limit, by the rule that says so.", labels=["component", "reason"]
        )
        self._dropped = {rule["name"]: dropped.labels(id, rule["name"]) for rule in rules}
        self._unsaid: Counter[str] = Counter()
        self._said_at_s: float | None = None
        self._saying = threading.Lock()
        """Batches come in a thread, `speak` in another."""
        self._logger = get_logger(id)

    def process(self, batch: Batch) -> Batch | None:
        limited = self._limiter.apply(batch, int(self._clock.monotonic_s() * 1e9))
        if limited.dropped:
            for rule, records in limited.dropped.items():
                self._dropped[rule].inc(records)
            with self._saying:
                self._unsaid.update(limited.dropped)
            self.speak()
        return limited.batch

    def speak(self, *, last: bool = False) -> None:
        with self._saying:
            now_s = self._clock.monotonic_s()
            passed_s = None if self._said_at_s is None else now_s - self._said_at_s
            if self._unsaid and (last or passed_s is None or passed_s >= _SAID_EVERY_S):
                since = "" if passed_s is None else f" in the last {passed_s:.0f} s"
                what = ", ".join(f"{records:,} by {rule}" for rule, records in sorted(self._unsaid.items()))
                self._logger.warning(
                    "records above a limit were left out%s: %s; emp_pipe_rate_limit_dropped_records_total counts them", since, what
                )
                self._unsaid.clear()
                self._said_at_s = now_s
            if last:
                self._said_at_s = None  # of a batch that is under way still it is said at once


CONFIG = RateLimitConfig
COMPONENT = RateLimit
