"""What a group of the log still holds, as the loops tell it: how many records, and how old the oldest block is."""

from __future__ import annotations

from emp_pipe.clock import Clock
from emp_pipe.log.protocol import GroupUsage, Log


class Lag:
    """One group's backlog, asked of the log's memory."""

    def __init__(self, log: Log, group: str, clock: Clock) -> None:
        self._log = log
        self._group = group
        self._clock = clock

    @property
    def held_blocks(self) -> int:
        usage = self._usage()
        return usage.held_blocks if usage is not None else 0

    @property
    def held_records(self) -> int:
        usage = self._usage()
        return usage.held_records if usage is not None else 0

    @property
    def seconds(self) -> float:
        """Return the age of the oldest block held; 0 where none is."""
        usage = self._usage()
        if usage is None or usage.oldest_append_unix_nano is None:
            return 0.0
        return max(self._clock.unix_nano() - usage.oldest_append_unix_nano, 0) / 1e9

    def _usage(self) -> GroupUsage | None:
        return next((usage for usage in self._log.usage().groups if usage.spec.name == self._group), None)
