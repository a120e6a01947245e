"""What a log in Redis with a spool says: log lines at each change, `/readyz`, metrics, how full both are.

Not here: what happens (`redis_spool.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from emp_pipe.buffers.redis_spool_store import DRAIN
from emp_pipe.component import Context
from emp_pipe.errors import EmpPipeError
from emp_pipe.log.protocol import GroupUsage, Usage
from emp_pipe.logs import RateLimitedLogger, get_logger

if TYPE_CHECKING:
    from emp_pipe.buffers.redis_spool import SpooledLog

STATES = ("off", "idle", "spooling", "draining")
NO_SPOOL = (
    "while Redis is away nothing is acknowledged: senders wait; where this disk outlives the process, name it (--data-dir, EMP_DATA_DIR) "
    "or set buffer.spool.enabled (EMP_BUFFER_REDIS_SPOOL) to true, and what is received is kept there meanwhile"
)
_log = get_logger("spool")
_limited = RateLimitedLogger(_log)


class Says(Collector):
    """The voice of one `SpooledLog`."""

    def __init__(self, log: SpooledLog, context: Context) -> None:
        self._of = log
        self._clock = context.clock
        self._since_s = 0.0
        self._drained_before = 0
        self.unchecked_chunks = 0
        self.spooled_records = 0
        context.metrics.registry.register(self)

    # changes

    def left_over(self, entries: int, meant_for: str, name: str) -> None:
        of = self._of
        assert of.spool is not None
        _log.warning(
            "the spool in %s holds %d appends of an earlier run: they drain into %s%s%s",
            of.spool.directory,
            entries,
            name,
            "" if meant_for in ("", name) else f", though they were meant for {meant_for}: what that one has got already comes twice",
            "" if of.spools else "; nothing new goes there (buffer.spool.enabled)",
        )

    def not_here(self, error: EmpPipeError, *, first: bool) -> None:
        """It could not be opened. `first`: receivers begin now all the same."""
        of = self._of
        if getattr(error, "passing", False) and not first:
            _limited.warning("not here", "%s", error)
        elif not first:
            _limited.log(40, "not usable", "%s It is tried again; emp-pipe goes on without it.", error)
        elif of.spools and of.spool is not None:
            _log.warning("%s Until it comes what is received is kept in %s and acknowledged from there.", error, of.spool.directory)
        else:
            _log.warning("%s Until it comes nothing is acknowledged: senders wait.", error)

    def came(self) -> None:
        of = self._of
        _log.warning("Redis came: %s", of.remote.durability)
        for warning in of.remote.warnings:
            _log.warning("%s", warning)

    def spooling(self, why: str) -> None:
        of = self._of
        assert of.spool is not None
        self._since_s = self._clock.monotonic_s()
        self._drained_before = self._counted("drained") + self._counted("known") + self._counted("repeats")
        _log.warning(
            "%s cannot be used (%s): what is received is kept in %s and acknowledged from there", of.place, why, of.spool.directory
        )

    def emptied(self) -> None:
        drained = self._counted("drained") + self._counted("known") + self._counted("repeats") - self._drained_before
        _log.warning("the spool is empty: %d records went to %s; what is received goes there at once again", drained, self._of.place)

    # standing

    @property
    def state(self) -> str:
        of = self._of
        if of.spool is None or (not of.spools and not of.spool.holds_something):
            return "off"
        if of.away:
            return "spooling" if of.spools else "draining"
        return "draining" if of.spool.holds_something else "idle"

    @property
    def standing(self) -> str:
        of = self._of
        if of.spool is None or not of.admitting:
            return ""
        if of.away and of.spools:
            return f"records are taken, into the spool: {of.place} cannot be used ({of.away})"
        return "records are taken; the spool drains" if of.spool.holds_something else ""

    @property
    def durability(self) -> str:
        of = self._of
        remote = of.remote.durability
        if not of.spools or of.spool is None:
            return f"{remote}; while it is away senders wait"
        return f"{remote}; while it is away SQLite in {of.spool.directory}, synced with every commit"

    @property
    def warnings(self) -> Sequence[str]:
        of = self._of
        found = list(of.remote.warnings)
        if not of.spools:
            found.append(NO_SPOOL)
        return found

    @property
    def details(self) -> Mapping[str, Any]:
        of = self._of
        about: dict[str, Any] = {"state": self.state}
        if of.spool is not None and of.drain is not None:
            drain = self._drain_usage()
            about |= {
                "directory": str(of.spool.directory),
                "held_appends": of.spool.entries,
                "held_records": drain.held_records,
                "held_bytes": of.spool.held_bytes,
                "limit_bytes": of.spool.config.max_bytes,
                "oldest_age_s": round(self._age_s(drain.oldest_append_unix_nano), 3),
                "trouble": of.spool.broken or (of.drain.trouble if of.spool.holds_something else ""),
            }
        return {**of.remote.details, "away": of.away, "spool": about}

    def _drain_usage(self) -> GroupUsage:
        assert self._of.spool is not None
        found = [group for group in self._of.spool.usage().groups if group.spec.name == DRAIN.name]
        return found[0] if found else GroupUsage(DRAIN, 0, 0, 0, None, 0)

    def _age_s(self, unix_nano: int | None) -> float:
        return 0.0 if unix_nano is None else max(self._clock.unix_nano() - unix_nano, 0) / 1e9

    def usage(self) -> Usage:
        of = self._of
        usage = of.remote.usage()
        reason = usage.reason
        if not of.opened.is_set():
            reason = of.away
        if of.spool is None:
            return replace(usage, admitting=of.admitting, reason="" if of.admitting else reason)
        spooled = of.spool.usage()
        oldest = [one for one in (usage.oldest_append_unix_nano, spooled.oldest_append_unix_nano) if one is not None]
        if of.spools and (of.away or of.spool.holds_something) and not of.full:
            reason = spooled.reason or ("" if of.spool.admitting else "the spool is full")
            reason = f"{of.place} cannot be used, and the spool: {reason}" if reason and of.away else reason
        return replace(
            usage,
            held_bytes=usage.held_bytes + of.spool.held_bytes,
            limit_bytes=usage.limit_bytes + (spooled.limit_bytes if of.spools else 0),
            admitting=of.admitting,
            reason="" if of.admitting else reason,
            oldest_append_unix_nano=min(oldest) if oldest else None,
            groups=[*usage.groups, *spooled.groups],
        )

    # metrics

    def _counted(self, what: str) -> int:
        return getattr(self._of.drain.counts, what, 0) if self._of.drain is not None else 0

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        of = self._of
        state = GaugeMetricFamily("emp_pipe_spool_state", "What the spool for a Redis that is away does: 1 at its state.", labels=["state"])
        for name in STATES:
            state.add_metric([name], float(name == self.state))
        yield state
        yield GaugeMetricFamily("emp_pipe_redis_away", "1: Redis cannot be written to.", value=float(bool(of.away)))
        if of.spool is None:
            return
        drain = self._drain_usage()
        gauges: list[tuple[str, str, Callable[[], float]]] = [
            ("held_blocks", "Blocks in the spool.", lambda: drain.held_blocks),
            ("held_appends", "Appends in the spool.", lambda: of.spool.entries if of.spool else 0),
            ("held_records", "Records of blocks in the spool.", lambda: drain.held_records),
            ("held_bytes", "What the spool holds.", lambda: of.spool.held_bytes if of.spool else 0),
            ("oldest_age_seconds", "Age of the oldest block in the spool.", lambda: self._age_s(drain.oldest_append_unix_nano)),
        ]
        for name, help, read in gauges:
            yield GaugeMetricFamily(f"emp_pipe_spool_{name}", help, value=read())
        records = CounterMetricFamily(
            "emp_pipe_spool_records",
            "Received records that went through the spool, by what became of them: spooled; drained into Redis; known there already; "
            "repeats, which were left out; unproven, which Redis may have twice.",
            labels=["outcome"],
        )
        records.add_metric(["spooled"], self.spooled_records)
        for what in ("drained", "known", "repeats", "unproven"):
            records.add_metric([what], self._counted(what))
        yield records
        yield CounterMetricFamily(
            "emp_pipe_spool_unchecked_chunks",
            "Chunks that only Redis, which was away, could have known for repeats.",
            value=self.unchecked_chunks,
        )
