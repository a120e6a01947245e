"""Containers of this machine's Docker: their logs with what is known of each, and their starts, ends and memory that ran out as events.

    <containers>/<id>/<id>-json.log ──▶ the file tail, positions with the rows ─────────────┐
    socket: list, inspect ──▶ names, images, labels of both ways                            ├──▶ log
            logs?follow  ──▶ only of containers whose log is in no file that we can read ───┤
            events       ──▶ service_started, service_stopped, error_oom ───────────────────┘

A daemon that is away, hangs or talks nonsense is said once and counted; files are read on without it. Why files rather than the socket:
docs/decisions/020-containers-and-journal.md. HTTP: `docker_api.py`; meanings: `docker_containers.py`; frames: `docker_logs.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from fnmatch import fnmatch, fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat

from emp_pipe.component import ComponentConfig, Context, Intake
from emp_pipe.own_reading import ReadingReceiver
from emp_pipe.receivers.container_files import ResourceTail, container_of_log
from emp_pipe.receivers.docker_api import DockerApi, DockerError
from emp_pipe.receivers.docker_containers import (
    Container,
    Event,
    EventPlace,
    container_of,
    event_record,
    is_container_id,
    of_inspect,
    read_event,
)
from emp_pipe.receivers.docker_logs import LogCutter, LogLine, NoFrames, Place, as_file_line, fresh_lines

_ACTIONS = ("start", "die", "oom")
_FIRST_PAUSE_S = 1.0
_FLUSH_S = 5.0
_MOST_STREAMS = 512
_MOST_CONTAINERS = 4096
_MOST_EVENT_BYTES = 1 << 20
_READABLE_BY_SOCKET = frozenset({"json-file", "local", ""})
_EVENTS = "events"
_EXCLUDE_LABEL = "emp-pipe.exclude"


class DockerConfig(ComponentConfig):
    """Settings of the Docker receiver."""

    socket: Path = Field(Path("/var/run/docker.sock"), description="The daemon's Unix socket.")
    containers_directory: Path = Field(
        Path("/var/lib/docker/containers"), description="Where the daemon keeps the log files of the json-file driver."
    )
    logs: Literal["auto", "files", "socket", "off"] = Field(
        "auto", description="Where logs are read: files; the socket; `auto`: the socket only for those in no file that can be read here."
    )
    include: tuple[str, ...] = Field(("*",), min_length=1, description="Names of the containers that are read; `*` matches any text.")
    exclude: tuple[str, ...] = Field(
        (), description="Names of containers of which neither logs nor events are read; so does the label `emp-pipe.exclude=true` on one."
    )
    events: bool = Field(True, description="Whether starts, ends and memory that ran out become operational events.")
    labels: tuple[str, ...] = Field(("*",), description="Which labels become resource attributes; `*` matches any text.")
    timeout_s: PositiveFloat = Field(10.0, description="How long the daemon may take for an answer.")
    poll_s: PositiveFloat = Field(30.0, description="How often the list of containers is asked for, also to notice a daemon that hangs.")
    retry_s: PositiveFloat = Field(30.0, description="The longest wait before a daemon that cannot be asked is tried again.")


class DockerReceiver(ReadingReceiver):
    """See the module's head."""

    def __init__(self, id: str, config: DockerConfig, context: Context) -> None:
        super().__init__(id, config, context)
        self.config = config
        self._api = DockerApi(config.socket, config.timeout_s)
        self._known: dict[str, Container] = {}
        self._attended: set[str] = set()
        self._streams: dict[str, asyncio.Task[None]] = {}
        self._left_out: set[str] = set()
        self._is_read: dict[str, bool] = {}
        self._tail: ResourceTail | None = None
        if config.logs in ("auto", "files"):
            self._tail = ResourceTail(
                id, (f"{config.containers_directory}/*/*-json.log",), "docker", context, self._resource_of_file, self._reads_file
            )

    async def run(self, intake: Intake, started: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as tasks:
            if self._tail is not None:
                tasks.create_task(self._tail.run(intake, asyncio.Event()), name=f"{self.id} files")
            tasks.create_task(super().run(intake, started), name=f"{self.id} socket")

    async def stop(self, deadline_monotonic_s: float) -> None:
        stops = [super().stop(deadline_monotonic_s)]
        if self._tail is not None:
            stops.append(self._tail.stop(deadline_monotonic_s))
        await asyncio.gather(*stops)

    # the daemon

    async def read(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            errors: list[DockerError] = []
            began_s = self.context.clock.monotonic_s()
            try:
                await self._session()
            except* DockerError as group:
                errors = [error for error in _leaves(group) if isinstance(error, DockerError)]
            for error in errors[:1]:
                what = "Docker at %s cannot be asked (%s); log files are read on without it; it is tried again within %g s"
                self.troubles.met(error.reason, what, self.config.socket, error, self.config.retry_s)
            if self.context.clock.monotonic_s() - began_s > self.config.retry_s:
                pause_s = _FIRST_PAUSE_S
            await self.context.clock.sleep(min(pause_s, self.config.retry_s))
            pause_s *= 2

    async def _session(self) -> None:
        """Follow events and logs until the daemon can no more be asked. Raises DockerError, in a group or alone."""
        self._api.forget_version()
        place, since = await self._event_place()
        found = await self._list()
        self.troubles.over("Docker at %s answers again", self.config.socket)
        self._attended.clear()
        self._streams.clear()
        async with asyncio.TaskGroup() as tasks:
            if self.config.events or self.config.logs != "off":
                tasks.create_task(self._follow_events(place, since, tasks), name=f"{self.id} events")
            while True:
                for container in found:
                    self._attend(container, tasks)
                await self.context.clock.sleep(self.config.poll_s)
                found = await self._list()

    async def _list(self) -> list[Container]:
        """Return the containers that there are; each is asked for once, and again when it has another name."""
        said = await self._api.get("/containers/json", all=1)
        if not isinstance(said, list):
            raise DockerError("garbage", "the list of containers is none")
        found: dict[str, Container] = {}
        for one in said[:_MOST_CONTAINERS]:
            id = one.get("Id") if isinstance(one, dict) else None
            if not isinstance(id, str) or not is_container_id(id):
                continue
            known = self._known.get(id)
            names = one.get("Names")
            runs = one.get("State") == "running"
            if known is None or known.runs != runs or (isinstance(names, list) and f"/{known.name}" not in names):
                known = await self._inspect(id)
            if known is not None:
                found[id] = known
        self._known = found
        self._left_out &= found.keys()
        self._attended &= found.keys()
        self._streams = {id: stream for id, stream in self._streams.items() if id in found or not stream.done()}
        return list(found.values())

    async def _inspect(self, id: str) -> Container | None:
        try:
            container = of_inspect(await self._api.get(f"/containers/{id}/json"))
        except DockerError as error:
            if error.status == 404:  # gone since
                return None
            raise
        if container is not None and len(self._known) < _MOST_CONTAINERS:
            self._known[id] = container
        return container

    # what is known

    def _resource(self, container: Container) -> dict[str, str]:
        prefix = "container.label."
        wanted = self.config.labels
        resource = container.resource()
        if wanted == ("*",):
            return resource
        return {
            key: value
            for key, value in resource.items()
            if not key.startswith(prefix) or any(fnmatch(key.removeprefix(prefix), pattern) for pattern in wanted)
        }

    def _resource_of_file(self, path: str) -> dict[str, str]:
        """Return what is known of the container that a log file is of; called in the tail's thread."""
        return self._resource(self._container_of_file(path))

    def _container_of_file(self, path: str) -> Container:
        return self._known.get(os.path.basename(os.path.dirname(path))) or container_of_log(path)

    def _wants(self, container: Container) -> bool:
        """Return whether the settings and the container's own label let it be read."""
        if (container.labels or {}).get(_EXCLUDE_LABEL, "").lower() == "true":
            return False
        included = any(fnmatchcase(container.name, pattern) for pattern in self.config.include)
        return included and not any(fnmatchcase(container.name, pattern) for pattern in self.config.exclude)

    def _reads_file(self, path: str) -> bool:
        """Return whether a log file is of a container that is wanted, decided once it has a name; called in the tail's thread."""
        id = os.path.basename(os.path.dirname(path))
        if id not in self._is_read:
            container = self._container_of_file(path)
            if not container.name:
                return self._wants(container)
            if len(self._is_read) >= _MOST_CONTAINERS:
                self._is_read.clear()
            self._is_read[id] = self._wants(container)
        return self._is_read[id]

    def _say_left_out(self, container: Container, why: str) -> None:
        if container.id not in self._left_out:
            self._left_out.add(container.id)
            self.logger.info("%s: %s", container.called, why)

    # events

    async def _event_place(self) -> tuple[EventPlace, str]:
        """Return the last event that is durable, and from when on events are asked for; at the very first start from now on."""
        stored = await self.checkpoint(_EVENTS)
        try:
            known: Any = json.loads(stored or b"{}")
            place = EventPlace(int(known["time_unix_nano"]), tuple(str(key) for key in known["keys"]))
        except (ValueError, KeyError, TypeError):
            place = EventPlace()
        since = place.time_unix_nano or self.context.clock.unix_nano()
        return place, f"{since // 10**9}.{since % 10**9:09d}"

    async def _follow_events(self, place: EventPlace, since: str, tasks: asyncio.TaskGroup) -> None:
        filters = json.dumps({"type": ["container"], "event": list(_ACTIONS)})
        rest = ""
        async with self._api.stream("/events", since=since, filters=filters) as answer:
            while piece := await answer.read():
                rest += piece.decode("utf-8", "replace")
                said, rest = _objects(rest)
                for one in said:
                    try:
                        event = read_event(one)
                    except ValueError as error:
                        raise DockerError("garbage", f"an event is none ({error})") from error
                    if event is not None and not place.knows(event):
                        place = place.behind(event)
                        await self._happened(event, place, tasks)
        raise DockerError("closed", "the stream of events has ended")

    async def _happened(self, event: Event, place: EventPlace, tasks: asyncio.TaskGroup) -> None:
        known = self._known.get(event.container_id)
        if event.action == "start" or known is None:
            known = await self._inspect(event.container_id) or known
        container = known or container_of(event)
        if not self._wants(container):
            return
        if event.action == "start" and known is not None:
            self._attend(known, tasks)
        record = event_record(event, container) if self.config.events else None
        if record is None:
            return
        said = json.dumps({"time_unix_nano": place.time_unix_nano, "keys": place.keys}).encode()
        batch = self.batch_of([record], tag="docker.events", resource=self._resource(container))
        await self.hand_over(batch, {_EVENTS: said})

    # logs by the socket

    def _attend(self, container: Container, tasks: asyncio.TaskGroup) -> None:
        """Read a container's log by the socket, where no file is read: also what one that has ended wrote last."""
        stream = self._streams.get(container.id)
        if (stream is not None and not stream.done()) or (container.id in self._attended and not container.runs):
            return
        if not self._reads_by_socket(container):
            return
        if sum(not one.done() for one in self._streams.values()) >= _MOST_STREAMS:
            self.troubles.met(
                "too_many", "over %d logs at once by the socket: that of %s waits", _MOST_STREAMS, container.called, of="many"
            )
            return
        self._attended.add(container.id)
        self._streams[container.id] = tasks.create_task(self._follow_log(container), name=f"{self.id} log of {container.called}")

    def _reads_by_socket(self, container: Container) -> bool:
        if not self._wants(container):
            self._say_left_out(container, "it is left out, by its name or its label")
            return False
        if self.config.logs not in ("auto", "socket"):
            return False
        if container.log_driver not in _READABLE_BY_SOCKET:
            self._say_left_out(container, f"its log goes elsewhere (driver {container.log_driver}), and is not read here")
            return False
        if self.config.logs == "socket" or container.log_driver != "json-file":
            return True
        directory = self.config.containers_directory
        if Path(container.log_path).parent.parent == directory and os.access(container.log_path, os.R_OK):
            return False
        self.limited.warning(
            "no file", "%s: its log file cannot be read here, it is read by the socket, where kills may repeat lines", container.called
        )
        return True

    async def _follow_log(self, container: Container) -> None:
        try:
            await self._log_of(container)
        except DockerError as error:
            if error.status == 404:  # removed
                self.troubles.over(of=container.id)
            else:
                what = "%s: its log cannot be read by the socket (%s); it is tried again within %g s"
                self.troubles.met(f"log_{error.reason}", what, container.called, error, self.config.poll_s, of=container.id)

    async def _log_of(self, container: Container) -> None:
        from emp_pipe._core import LineParser, Normalizer

        name = f"log/{container.id}"
        place = Place.decode(await self.checkpoint(name))
        again = place
        query: dict[str, str | int] = {"follow": 1, "stdout": 1, "stderr": 1, "timestamps": 1, "tail": "all"}
        if place.time:
            query["since"] = _seconds(place.time)
        normalizer = self.context.normalizer or Normalizer()
        parser = LineParser(normalizer, "docker", resource=self._resource(container))
        cutter = LogCutter(has_terminal=container.has_terminal)
        async with self._api.stream(f"/containers/{container.id}/logs", **query) as answer:
            reading: asyncio.Task[bytes] | None = None
            ended = False
            try:
                while not ended:
                    reading = reading or asyncio.create_task(answer.read())
                    await asyncio.wait([reading], timeout=_FLUSH_S if parser.pending_bytes else None)
                    now = self.context.clock.unix_nano()
                    if reading.done():
                        piece, reading = reading.result(), None
                        ended = not piece
                        fresh, place, again = fresh_lines(_cut(cutter, piece), place, again)
                        parser.feed(b"".join(as_file_line(line) for line in fresh), now)
                    if ended or reading is not None:  # nothing more comes, or not soon
                        parser.flush(now, at_end=ended)
                    batch = parser.take()
                    if batch is not None:
                        self.troubles.over(of=container.id)
                        whole = not parser.pending_bytes and not cutter.pending
                        await self.hand_over(batch, {name: place.encode()} if whole else {})
            finally:
                if reading is not None:
                    reading.cancel()


def _cut(cutter: LogCutter, piece: bytes) -> list[LogLine]:
    try:
        return cutter.feed(piece) if piece else cutter.end()
    except NoFrames as error:
        raise DockerError("garbage", f"its log is none ({error})") from error


def _objects(text: str) -> tuple[list[Any], str]:
    """Return the JSON values at the beginning of a text, one after another, and what is left of it. Raises DockerError."""
    decoder = json.JSONDecoder()
    found: list[Any] = []
    rest = text.lstrip()
    while rest:
        try:
            value, end = decoder.raw_decode(rest)
        except ValueError as error:
            if not rest.startswith("{") or len(rest) > _MOST_EVENT_BYTES or "\n" in rest.rstrip("\n"):
                raise DockerError("garbage", "the stream of events is no JSON") from error
            break
        except RecursionError as error:
            raise DockerError("garbage", "an event is nested too deep") from error
        found.append(value)
        rest = rest[end:].lstrip()
    return found, rest


def _seconds(time: str) -> str:
    """Return an RFC 3339 time as the API takes it: Unix seconds with nine digits behind the point."""
    whole, _, fraction = time.removesuffix("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    return f"{seconds}.{fraction:0<9}"


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


CONFIG = DockerConfig
COMPONENT = DockerReceiver
