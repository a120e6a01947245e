"""What is known of a container, as resource attributes; and what the daemon's events become. Pure: no socket, no file.

The names are those of OpenTelemetry's conventions (`container.*`, `service.*`). Labels are kept as `container.label.<key>`, so many at
most and each of bounded length: whoever builds an image writes what he likes.
Not here: how containers are asked for (`docker_api.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

_MOST_LABELS = 48
_MOST_LABEL_BYTES = 1024
_COMPOSE = "com.docker.compose."
_ID = re.compile(r"[0-9a-f]{12,64}")
_STOPPED_BY_SIGNAL = frozenset({130, 143})
"""SIGINT and SIGTERM: somebody asked for it."""


@dataclass(frozen=True, slots=True)
class Container:
    """A container."""

    id: str
    name: str = ""
    image: str = ""
    image_id: str = ""
    labels: Mapping[str, str] | None = None
    log_driver: str = ""
    log_path: str = ""
    has_terminal: bool = False
    runs: bool = False

    @property
    def called(self) -> str:
        """What a person calls it."""
        return self.name or self.id[:12]

    def resource(self) -> dict[str, str]:
        """Return the attributes of its records' resource."""
        labels = self.labels or {}
        image, tag = split_image(self.image)
        found = {
            "container.id": self.id,
            "container.name": self.name,
            "container.image.name": image,
            "container.image.tag": tag,
            "container.image.id": self.image_id,
            "service.name": labels.get(f"{_COMPOSE}service", "") or self.name,
            "service.namespace": labels.get(f"{_COMPOSE}project", ""),
        }
        for key in sorted(labels)[:_MOST_LABELS]:
            found[f"container.label.{key[:_MOST_LABEL_BYTES]}"] = labels[key][:_MOST_LABEL_BYTES]
        return {key: value for key, value in found.items() if value}


def split_image(image: str) -> tuple[str, str]:
    """Return name and tag of an image's reference: a registry may have a port, a digest is no tag."""
    name, _, digest = image.partition("@")
    if name.startswith("sha256:"):
        return image, ""
    last = name.rpartition("/")[2]
    if ":" in last:
        tag = last.partition(":")[2]
        return name[: -len(tag) - 1], tag
    return name, digest


def is_container_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def of_inspect(said: Any) -> Container | None:
    """Return the container that `/containers/<id>/json` tells of; None where it tells of none."""
    said = _map(said)
    config, state = _map(said.get("Config")), _map(said.get("State"))
    id = said.get("Id")
    if not isinstance(id, str) or not is_container_id(id):
        return None
    return Container(
        id=id,
        name=_text(said.get("Name")).lstrip("/"),
        image=_text(config.get("Image")),
        image_id=_text(said.get("Image")),
        labels=_labels(config.get("Labels")),
        log_driver=_text(_map(_map(said.get("HostConfig")).get("LogConfig")).get("Type")),
        log_path=_text(said.get("LogPath")),
        has_terminal=config.get("Tty") is True,
        runs=state.get("Running") is True,
    )


def of_config_file(data: bytes) -> Container | None:
    """Return the container of a daemon's own `config.v2.json`, which lies beside its log: known without the socket."""
    try:
        said = _map(json.loads(data))
    except (ValueError, RecursionError):
        return None
    return of_inspect({**said, "Id": said.get("ID")})


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str:
    return value[:4096] if isinstance(value, str) else ""


def _labels(value: Any) -> dict[str, str]:
    return {key: text for key, text in _map(value).items() if isinstance(key, str) and isinstance(text, str)}


# events


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a container: when, what happened, and which one; `key` tells it from others of the same time."""

    time_unix_nano: int
    action: str
    container_id: str
    attributes: Mapping[str, str]

    @property
    def key(self) -> str:
        return f"{self.action} {self.container_id}"


class EventPlace(NamedTuple):
    """The last event that is durable, and those of the same time."""

    time_unix_nano: int = 0
    keys: tuple[str, ...] = ()

    def knows(self, event: Event) -> bool:
        return event.time_unix_nano == self.time_unix_nano and event.key in self.keys

    def behind(self, event: Event) -> EventPlace:
        same = self.keys if event.time_unix_nano == self.time_unix_nano else ()
        return EventPlace(event.time_unix_nano, (*same, event.key))


def read_event(said: Any) -> Event | None:
    """Return an event of a container, None for anything else. Raises ValueError where it is no event."""
    said = _map(said)
    actor = _map(said.get("Actor"))
    id, action, time_unix_nano = actor.get("ID"), said.get("Action"), said.get("timeNano")
    if said.get("Type", "container") != "container":
        return None
    if not isinstance(id, str) or not is_container_id(id) or not isinstance(action, str):
        raise ValueError("an event names an action and a container")
    if type(time_unix_nano) is not int or not 0 < time_unix_nano < 1 << 63:
        raise ValueError("an event has a time")
    return Event(time_unix_nano, action, id, _labels(actor.get("Attributes")))


def container_of(event: Event) -> Container:
    """Return what an event says of its container: the daemon puts name, image and labels among its attributes."""
    own = {"name", "image", "exitCode", "execDuration", "signal"}
    labels = {key: value for key, value in event.attributes.items() if key not in own}
    return Container(event.container_id, event.attributes.get("name", ""), event.attributes.get("image", ""), labels=labels)


def event_record(event: Event, container: Container) -> dict[str, Any] | None:
    """Return the operational event of a start, an end, or memory that ran out; None for other actions."""
    record: dict[str, Any] = {"timestamp": event.time_unix_nano, "docker.event.action": event.action}
    name = container.called
    if event.action == "start":
        return {**record, "level": "info", "event_type": "service_started", "message": f"container {name} started"}
    if event.action == "oom":
        message = f"container {name} ran out of memory: the kernel killed one of its processes"
        return {**record, "level": "error", "event_type": "error_oom", "error_type": "memory", "message": message}
    if event.action != "die":
        return None
    code = event.attributes.get("exitCode", "")
    exit_code = int(code) if code.isascii() and code.isdigit() and len(code) < 6 else -1
    asked_for = exit_code == 0 or exit_code in _STOPPED_BY_SIGNAL
    record |= {"level": "info" if asked_for else "error", "event_type": "service_stopped", "container.exit_code": exit_code}
    seconds = event.attributes.get("execDuration", "")
    if seconds.isascii() and seconds.isdigit() and len(seconds) < 12:
        record["duration_ms"] = int(seconds) * 1000
    return {**record, "message": f"container {name} ended with exit code {code or 'unknown'}"}
