"""What can be seen of a running pipeline: the HTTP port, the control socket, the metrics, and the lines that start-up says.

Not here: how they are served (`http_server.py`, `control.py`), what the metrics of components are (each component).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from emp_pipe import __version__
from emp_pipe.config import PipelineConfig
from emp_pipe.control import ControlServer, json_line
from emp_pipe.dead_watch import DeadLetterWatch
from emp_pipe.deriving import DeriverSlot
from emp_pipe.dlq import DeadLetterDesk
from emp_pipe.errors import EmpPipeError, ErrorKind
from emp_pipe.http_server import HttpServer, Readiness, watch_event_loop_delay
from emp_pipe.log_metrics import LogMetrics
from emp_pipe.logs import RateLimitedLogger, get_logger
from emp_pipe.pipeline import ExporterSlot, Pipeline
from emp_pipe.registry import type_of
from emp_pipe.self_metrics_export import SelfMetricsExport

_DELAY_BUCKETS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_MOST_TAP_ROWS_PER_S = 10_000


class Observer:
    """Serves a pipeline's state while it is entered; `run` belongs to the process's TaskGroup."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._log_metrics = LogMetrics(pipeline.log, pipeline.clock, pipeline.metrics)
        self._dead_letters = DeadLetterWatch(pipeline.log)
        self._http = HttpServer(pipeline.config.http, self, pipeline.clock, pipeline.metrics) if pipeline.config.http.enabled else None
        self._control = ControlServer(
            pipeline.config.data_dir,
            {
                "identity": self._identity,
                "tap": self._tap,
                "groups list": self._groups_list,
                "groups reset": self._groups_reset,
                "groups drop": self._groups_drop,
                **dict.fromkeys(("dlq list", "dlq show", "dlq count", "dlq retry", "dlq drop"), self._dlq),
            },
        )
        self._delay = pipeline.metrics.histogram(
            "event_loop_delay", unit="seconds", help="By how much the event loop was late.", buckets=_DELAY_BUCKETS_S
        )

    async def __aenter__(self) -> Observer:
        if self._http is not None:
            await self._http.start()
        await self._control.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._control.stop()
        if self._http is not None:
            await self._http.stop()

    def read_key(self, config: PipelineConfig) -> Callable[[], None]:
        """Read the HTTP port's key again, where it says that it is kept in the same place; what is returned puts it to use.

        Raises ConfigError; then nothing has changed."""
        if self._http is None or config.http != self._pipeline.config.http:  # another port's settings wait for a restart, key and all
            return lambda: None
        return self._http.read_key(config.http)

    async def run(self) -> None:
        """Measure the event loop's delay, and send own metrics where a destination is set."""
        settings = self._pipeline.config.self_metrics
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watch_event_loop_delay(self._delay.observe))
            tasks.create_task(self._say_what_nobody_asks())
            if settings.otlp_endpoint:
                export = SelfMetricsExport(settings, self._pipeline.context, self._log_metrics.refresh)
                tasks.create_task(export.run())

    async def _say_what_nobody_asks(self) -> None:
        """One line when the buffer takes nothing new and one when it does again: `/readyz` says so too, but nobody may be asking.

        Once a second, as whoever else has to say something when nothing happens any more: the watch of dead letters, the processors."""
        pipeline = self._pipeline
        log = RateLimitedLogger(get_logger("buffer"))
        waited = False
        await pipeline.started.wait()
        while True:
            usage = pipeline.log.usage()
            if not usage.admitting:
                log.warning("waiting", "receivers wait and acknowledge nothing: %s", usage.reason)
            elif waited:
                log.log(logging.INFO, "going on", "receivers go on")
            waited = not usage.admitting
            with contextlib.suppress(EmpPipeError):  # a log that is closing
                await self._dead_letters.look()
            pipeline.intake.speak()
            await pipeline.clock.sleep(1.0)

    # the HTTP port

    def readiness(self) -> Readiness:
        pipeline = self._pipeline
        if pipeline.state != "running":
            return Readiness(False, f"emp-pipe is {pipeline.state}{': ' if pipeline.waiting_for else ''}{pipeline.waiting_for}")
        failures = [slot.failure for slot in pipeline.receivers.values()]
        failures += [slot.failure for slot in self._readers.values()]
        for failure in failures:
            if failure is not None:
                return Readiness(False, str(failure))
        if not pipeline.intake.admitting:
            return Readiness(False, pipeline.log.usage().reason or "the processors are behind")
        return Readiness(True, getattr(pipeline.log, "standing", "") or "records are taken")

    async def state(self) -> dict[str, Any]:
        pipeline = self._pipeline
        usage = pipeline.log.usage()
        return {
            "state": pipeline.state,
            "version": __version__,
            "role": pipeline.config.role,
            "machine_id": pipeline.config.machine_id,
            "durability": pipeline.log.durability,
            "buffer": {
                "held_bytes": usage.held_bytes,
                "limit_bytes": usage.limit_bytes,
                "dead_bytes": usage.dead_bytes,
                "admitting": usage.admitting,
                "reason": usage.reason,
                "oldest_age_s": self._age_s(usage.oldest_append_unix_nano),
                **getattr(pipeline.log, "details", {}),  # a log that stands on a server tells of it
            },
            "dead_letters": self._dead_letters.state(),
            "components": self._components(),
            "groups": self._groups(),
        }

    async def metrics_text(self) -> bytes:
        if self._pipeline.state != "starting":
            with contextlib.suppress(EmpPipeError):  # a log that is closing: the books of the last scrape
                await self._log_metrics.refresh()
        return self._pipeline.metrics.text()

    def _components(self) -> list[dict[str, Any]]:
        pipeline = self._pipeline
        found = [
            {"id": name, "kind": "receiver", "state": "failed" if slot.failure else "running" if slot.started.is_set() else "starting"}
            for name, slot in pipeline.receivers.items()
        ]
        for name in pipeline.config.processors:
            deriver = pipeline.derivers.get(name)
            found.append({"id": name, "kind": "processor", "state": "running"} if deriver is None else _reader(name, "processor", deriver))
        return found + [_reader(name, "exporter", slot) for name, slot in pipeline.exporters.items()]

    @property
    def _readers(self) -> dict[str, DeriverSlot | ExporterSlot]:
        """By the names of the log's groups."""
        return {**self._pipeline.derivers, **self._pipeline.exporters}

    def _groups(self) -> list[dict[str, Any]]:
        return [
            {
                "group": group.spec.name,
                "required": group.spec.required,
                "topics": sorted(group.spec.topics),
                "held_records": group.held_records,
                "held_blocks": group.held_blocks,
                "held_bytes": group.held_bytes,
                "quota_bytes": group.spec.quota_bytes,
                "in_flight_blocks": group.in_flight_blocks,
                "oldest_age_s": self._age_s(group.oldest_append_unix_nano),
            }
            for group in self._pipeline.log.usage().groups
        ]

    def _age_s(self, append_unix_nano: int | None) -> float:
        if append_unix_nano is None:
            return 0.0
        return round(max(self._pipeline.clock.unix_nano() - append_unix_nano, 0) / 1e9, 3)

    # the control socket

    async def _tap(self, asked: dict[str, Any]) -> AsyncIterator[bytes]:
        config = self._pipeline.config
        known = [*config.receivers, *config.processors, *config.exporters]
        component = str(asked.get("component"))
        if component not in known:
            raise EmpPipeError(
                ErrorKind.CONFIG_INVALID, place=component, detail="there is no such component here", advice=f"there are {', '.join(known)}"
            )
        rows_per_s = max(1, min(int(asked.get("rows_per_s", 1000)), _MOST_TAP_ROWS_PER_S))
        with self._pipeline.taps.watch(component, rows_per_s) as watcher:
            yield json_line(tapped=component)
            told = 0
            async for lines in watcher.lines():
                yield lines
                if watcher.left_out_rows != told:
                    told = watcher.left_out_rows
                    yield json_line(tap_left_out_rows=told)

    async def _identity(self, asked: dict[str, Any]) -> AsyncIterator[bytes]:
        """Who this process is, and where applications on this machine reach it: `emp-pipe exec` asks."""
        listening = {}
        for id, slot in self._pipeline.receivers.items():
            tls = getattr(getattr(slot.receiver, "config", None), "tls", None) is not None
            listening[id] = {"addresses": getattr(slot.receiver, "addresses", []), "tls": tls}
        config = self._pipeline.config
        yield json_line(machine_id=config.machine_id, role=config.role, listening=listening)

    async def _groups_list(self, asked: dict[str, Any]) -> AsyncIterator[bytes]:
        of_the_log = getattr(self._pipeline.log, "group_states", {})
        for group in self._groups():
            slot = self._readers.get(group["group"])
            status = slot.loop.status() if slot is not None else None
            state = status.state if status else of_the_log.get(group["group"], "")
            yield json_line(**group, state=state, error=status.error if status else "")

    async def _groups_reset(self, asked: dict[str, Any]) -> AsyncIterator[bytes]:
        start = asked.get("start")
        if start not in ("oldest", "newest"):
            raise EmpPipeError(ErrorKind.CONFIG_INVALID, place="groups reset", detail="start must be oldest or newest")
        await self._pipeline.log.reset_group(self._known_group(asked), start)
        yield json_line(done=True)

    async def _groups_drop(self, asked: dict[str, Any]) -> AsyncIterator[bytes]:
        group = self._known_group(asked)
        if group in self._readers:
            what = "an exporter" if group in self._pipeline.exporters else "a processor"
            raise EmpPipeError(
                ErrorKind.CONFIG_INVALID,
                place=group,
                detail=f"{what} of this configuration reads this group",
                advice=f"remove {group} from the configuration and reload, or use `emp-pipe groups reset`",
            )
        await self._pipeline.log.drop_group(group)
        yield json_line(done=True)

    def _known_group(self, asked: dict[str, Any]) -> str:
        known = [group.spec.name for group in self._pipeline.log.usage().groups]
        group = str(asked.get("group"))
        if group not in known:
            raise EmpPipeError(
                ErrorKind.CONFIG_INVALID, place=group, detail="there is no such group", advice=f"there are {', '.join(known)}"
            )
        return group

    async def _dlq(self, asked: dict[str, Any]) -> AsyncIterator[bytes]:
        async for answer in DeadLetterDesk(self._pipeline.log, self._pipeline.redactor).answer(asked):
            yield json_line(**answer)

    # start-up

    def start_up_lines(self) -> list[str]:
        """Return what start-up says: what listens where, where records go, what a power cut loses, where to look."""
        config = self._pipeline.config
        lines = [f"emp-pipe {__version__} {config.role} on {config.machine_id}, data in {config.data_dir.absolute()}"]
        lines += [f"receives: {name}{_source(slot.config)}" for name, slot in self._pipeline.receivers.items()]
        for name, slot in self._pipeline.exporters.items():
            lines.append(f"sends to: {name}{self._target(name, slot.config)}")
        lines.append(f"buffer: {self._pipeline.log.durability}")
        if self._http is not None:
            lines.append(f"health: {self._http.url}/readyz")
        return lines

    def warnings(self) -> list[str]:
        """Return what start-up warns of: settings that work and are probably not what was meant."""
        config = self._pipeline.config
        found = [*getattr(self._pipeline.log, "warnings", ()), *self._left_over()]
        for name, settings in config.receivers.items():
            if getattr(settings, "shared_key", None) and getattr(settings, "tls", ()) is None:
                found.append(
                    f"{name}: a shared key without TLS: strangers cannot send, but can read what is sent; set `tls` or EMP_TLS_CERT_FILE"
                )
            if getattr(settings, "token", None) and getattr(settings, "tls", ()) is None:
                found.append(f"{name}: a token without TLS: whoever sees the traffic has the token; set `tls`, or let a proxy speak TLS")
        if config.role == "central" and not any(getattr(settings, "shared_key", None) for settings in config.receivers.values()):
            found.append("no receiver for edges on other machines: set FLUENTD_SHARED_KEY (and EMP_TLS_CERT_FILE, EMP_TLS_KEY_FILE)")
        return found

    def _left_over(self) -> Iterator[str]:
        """What a log in Redis left on this disk, where the log is not there any more."""
        spool = self._pipeline.context.data_dir / "spool"
        if self._pipeline.config.buffer_type == "redis" or not spool.is_dir():
            return
        from emp_pipe.buffers.redis_spool_store import left_in

        if appends := left_in(spool):
            yield (
                f"the spool in {spool} holds {appends} appends that were acknowledged while Redis was away, and nobody delivers them: "
                "start once with the buffer as it was (buffer.type: redis, the same url), until `emp-pipe groups list` shows that `drain` "
                "holds nothing"
            )

    def _target(self, name: str, settings: Any) -> str:
        if type_of(name) == "file":
            return f" in {_where(settings, 'directory') or self._pipeline.context.data_dir / 'records'}"
        address = _where(settings, "endpoint", "logs_endpoint") or _where(settings, "preset")
        return f" at {address}" if address else ""


def _reader(name: str, kind: str, slot: DeriverSlot | ExporterSlot) -> dict[str, Any]:
    status = slot.loop.status()
    return {"id": name, "kind": kind, "state": "failed" if slot.failure else status.state, "error": str(slot.failure or status.error)}


def _source(settings: Any) -> str:
    """Return where a receiver listens, or what it reads; nothing where its name says it."""
    if address := _where(settings, "listen", "udp"):
        return f" on {address}"
    read = _where(settings, "include")
    return f" from {read}" if read else ""


def _where(settings: Any, *names: str) -> str:
    for name in names:
        value = getattr(settings, name, None)
        if value:
            return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
    return ""
