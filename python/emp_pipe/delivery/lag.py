"""What a group of the log still holds here, as the loops tell it: how many records, and how old the oldest block is.

Of a log that several replicas share it is what lies in the parts that this process reads: all of them together are the whole."""

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
        return sum(usage.held_blocks for usage in self._usages())

    @property
    def held_records(self) -> int:
        return sum(usage.held_records for usage in self._usages())

    @property
    def seconds(self) -> float:
        """Return the age of the oldest block held; 0 where none is."""
        oldest = min((time for usage in self._usages() if (time := usage.oldest_append_unix_nano) is not None), default=None)
        return 0.0 if oldest is None else max(self._clock.unix_nano() - oldest, 0) / 1e9

    def _usages(self) -> list[GroupUsage]:
        ours = [part for part in self._log.parts if part.ours]
        return [usage for part in ours for usage in part.usage().groups if usage.spec.name == self._group]
