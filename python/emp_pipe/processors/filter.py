"""Leaves out rows by rule before the log: below a level, by tag, service, attribute or expression; or keeps one in so many of them.

What a rule names is left out, errors and events too; what no rule names is kept. For users: `docs/filters.md`. By chance rows are left out
by `sample`, by rate by `rate_limit`. Not here: the work (Rust core, `filter/`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from emp_pipe.component import Context, ProcessorConfig
from emp_pipe.errors import ConfigError, ErrorKind
from emp_pipe.selecting import RowRule

if TYPE_CHECKING:
    from emp_pipe._core import Batch

_BELOW = {"debug": "trace", "info": "debug", "warn": "info", "error": "warn", "fatal": "error"}


class FilterRule(RowRule):
    """One rule: without a condition it is for all rows."""

    action: Literal["drop", "keep"] = Field("drop", description="`keep`: none of the later rules is asked.")
    keep_one_in: PositiveInt | None = Field(
        None, description="In place of dropping all of them keep the first of each N that the rule sees, since emp-pipe started."
    )

    @model_validator(mode="after")
    def _is_one_or_the_other(self) -> FilterRule:
        if self.action == "keep" and self.keep_one_in is not None:
            raise ValueError("keep_one_in is for what is dropped: with `action: keep` all are kept")
        return self


class FilterConfig(ProcessorConfig):
    """Leaves nothing out unless told to. Rules go first, in their order: the first that matches a row decides."""

    rules: tuple[FilterRule, ...] = Field((), description="The first that matches counts.")
    min_severity: Literal["debug", "info", "warn", "error", "fatal"] | None = Field(
        None, description="What is below this level is left out; rows without a level are kept."
    )

    def to_core(self) -> list[dict[str, Any]]:
        """Return the rules as the core reads them."""
        out = [
            {
                "name": rule.name or f"rules[{at}]",
                "where": rule.where(),
                "keep_one_in": 1 if rule.action == "keep" else rule.keep_one_in or 0,
            }
            for at, rule in enumerate(self.rules)
        ]
        if self.min_severity is not None:
            out.append({"name": "min_severity", "where": {"max_severity": _BELOW[self.min_severity]}, "keep_one_in": 0})
        return out


class Filter:
    """The processor; see the module's head."""

    def __init__(self, id: str, config: FilterConfig, context: Context) -> None:
        from emp_pipe._core import CoreError
        from emp_pipe._core import Filter as CoreFilter

        self.id = id
        rules = config.to_core()
        try:
            self._filter = CoreFilter(json.dumps(rules))
        except CoreError as error:
            detail = " ".join(str(error).removesuffix(" at byte 0").split())
            raise ConfigError(ErrorKind.CONFIG_INVALID, place=f"processors.{id}", detail=detail) from error
        dropped = context.metrics.counter(
            "filter_dropped", unit="records", help="Records that were left out, by the rule that says so.", labels=["component", "reason"]
        )
        self._dropped = {rule["name"]: dropped.labels(id, rule["name"]) for rule in rules}

    def process(self, batch: Batch) -> Batch | None:
        filtered = self._filter.apply(batch)
        for rule, records in filtered.dropped.items():
            self._dropped[rule].inc(records)
        return filtered.batch


CONFIG = FilterConfig
COMPONENT = Filter
