"""Which rows a rule of `filter` or `rate_limit` is for, as the configuration says it and as the core reads it.

Not here: what is done with them (`processors/`), how they are found (Rust core, `filter/condition.rs`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from emp_pipe.component import ComponentConfig, Signal


class RowRule(ComponentConfig):
    """A rule for the rows that meet every condition given; within one condition any value will do."""

    name: str = Field("", max_length=100, description="What left-out records are counted under. Default: `rules[<its place>]`.")
    signals: tuple[Signal, ...] = Field((), description="logs, traces, metrics.")
    tags: tuple[str, ...] = Field((), description="Fluent tags; `*` matches within a part, `**` any number of parts.")
    services: tuple[str, ...] = Field((), description="`service.name`s; `*` stands for any characters.")
    min_severity: str | None = Field(None, description="From this level; rows without one do not match.")
    max_severity: str | None = Field(None, description="Up to this level, such as debug; rows without one do not match.")
    attributes: Mapping[str, str] = Field(
        default_factory=dict, description="Attribute of the row, else of its resource, to its value as text; `*` stands for any characters."
    )
    matches: Mapping[str, str] = Field(
        default_factory=dict,
        description="`body`, or an attribute, to a regular expression (of Rust's `regex`) that is found in its text.",
    )

    def where(self) -> dict[str, Any]:
        """Return the conditions as the core reads them."""
        return self.model_dump(mode="json", include=set(RowRule.model_fields) - {"name"})
