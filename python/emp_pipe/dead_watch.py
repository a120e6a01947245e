"""Says in time that dead letters are about to be deleted for want of space, and loudly when some were: nobody may be reading metrics.

Not here: the limits (each buffer's settings), what can be done about it (`docs/dead-letters.md`).
"""

from __future__ import annotations

import logging
from typing import Any

from emp_pipe.log.ledger import DEAD_READER
from emp_pipe.log.protocol import Log, LossReason
from emp_pipe.logs import RateLimitedLogger, get_logger

_WARN_SHARE = 0.8
_WHAT_TO_DO = "look at them with `emp-pipe dlq list`, then `retry` or `drop` them, or raise `dead_max_bytes` of the buffer"


class DeadLetterWatch:
    """Looks at what a log keeps of dead letters. `warning` is what to tell now, "" where all is well."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._logger = RateLimitedLogger(get_logger("dead letters"))
        self._gone_before: int | None = None
        self.gone_records = 0
        """Records of dead letters that went by their limits since emp-pipe was started."""
        self.warning = ""

    async def look(self) -> None:
        """Look once; say what is new."""
        usage = self._log.usage()
        if not usage.dead and self._gone_before is not None and not self.warning:
            return
        gone = sum(
            books.dropped.get(LossReason.DEAD_LIMIT.value, 0) for books in await self._log.group_books() if books.group == DEAD_READER
        )
        if self._gone_before is None:
            self._gone_before = gone
        if gone - self._gone_before > self.gone_records:
            self.gone_records = gone - self._gone_before
            self._logger.log(
                logging.ERROR,
                "gone",
                "dead letters with %s records were deleted by their limits since the start, the oldest first (counted as dead_limit): %s",
                f"{self.gone_records:,}",
                _WHAT_TO_DO,
            )
        limit = usage.dead_limit_bytes
        share = usage.dead_bytes / limit if limit else 0.0
        self.warning = ""
        if share >= _WARN_SHARE:
            filled = f"{usage.dead_bytes:,} of {limit:,} bytes ({share:.0%})"
            self.warning = f"dead letters take {filled}; at the limit the oldest are deleted: {_WHAT_TO_DO}"
            self._logger.warning("filling", "%s", self.warning)
        elif self.gone_records and usage.dead:
            self.warning = f"dead letters with {self.gone_records:,} records were deleted by their limits since the start"

    def state(self) -> dict[str, Any]:
        """Return what `/readyz` says of dead letters."""
        usage = self._log.usage()
        return {
            "letters": sum(count.letters for count in usage.dead),
            "records": sum(count.records for count in usage.dead),
            "bytes": usage.dead_bytes,
            "limit_bytes": usage.dead_limit_bytes,
            "gone_records": self.gone_records,
            "warning": self.warning,
        }
