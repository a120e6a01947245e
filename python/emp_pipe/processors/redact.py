"""Masks secrets in every row before the log: by names of keys and by what values look like. On in both roles. Errors and events too.

Bytes that could not be read never become rows: dead letters are masked by `dead_letters.redact`, which is on by default.
Not here: what a secret is (`emp_pipe/redaction.py`), the work (Rust core, `redact/`). For users: `docs/redaction.md`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emp_pipe.component import Context, ProcessorConfig
from emp_pipe.redaction import RedactRules

if TYPE_CHECKING:
    from emp_pipe._core import Batch


class RedactConfig(ProcessorConfig, RedactRules):
    """Masks passwords, tokens, keys and cookies unless told otherwise."""


class Redact:
    def __init__(self, id: str, config: RedactConfig, context: Context) -> None:
        self.id = id
        self._redactor = config.compiled(f"processors.{id}")
        self._masked = context.metrics.counter(
            "redact_masked", unit="values", help="Values that were masked, by the rule that says so.", labels=["component", "reason"]
        )

    def process(self, batch: Batch) -> Batch | None:
        redacted = self._redactor.batch(batch)
        for rule, values in redacted.counts.items():
            self._masked.labels(self.id, rule).inc(values)
        return redacted.batch


CONFIG = RedactConfig
COMPONENT = Redact
