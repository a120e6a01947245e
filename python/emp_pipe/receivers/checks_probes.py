"""One look at a service: by HTTP, by TCP, at its process, at ComfyUI. A probe says whether it is up, and measures what it tells of itself.

Whatever is on the other side, a probe is bounded: who asks limits its time, an answer is read to 64 KiB, no redirect is followed, and
what is no answer is a service that is down. Redis: `checks_redis.py`. Who asks, and what becomes of the answer: `checks.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeGuard

from emp_pipe.component import Context
from emp_pipe.delivery.dial import dial
from emp_pipe.delivery.http_client import HttpClient, Target
from emp_pipe.delivery.http_link import MOST_BODY_BYTES, Reply
from emp_pipe.errors import DeliveryError, ErrorKind
from emp_pipe.readings import Attributes, Readings, clean
from emp_pipe.tls import WatchedContext

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_MOST_DEVICES = 64
_ERRORS = {ErrorKind.UNREACHABLE: "unreachable", ErrorKind.TIMED_OUT: "timeout", ErrorKind.SERVER_ERROR: "protocol"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a probe found. `error` is one word of a few (docs/checks.md), `why` is for people; both empty where it is up."""

    error: str = ""
    why: str = ""
    status_code: int | None = None

    @property
    def is_up(self) -> bool:
        return not self.error


UP = Outcome()


@asynccontextmanager
async def _client(place: str, context: Context, tls: WatchedContext | None, server_name: str | None) -> AsyncIterator[HttpClient]:
    """A client for one look: a connection that was kept would not tell that no new one can be made."""
    client = HttpClient(place, context, max_connections=1, tls=tls, server_name=server_name)
    try:
        yield client
    finally:
        await client.close()


@dataclass(frozen=True, slots=True)
class HttpProbe:
    """A GET whose answer is as expected. Without `statuses` every status below 400 is: a redirect is an answer, and is not followed."""

    url: str
    headers: Mapping[str, str]
    statuses: tuple[int, ...]
    body: str | None
    place: str
    context: Context
    tls: WatchedContext | None = None
    server_name: str | None = None

    async def look(self, readings: Readings, of: Attributes) -> Outcome:
        target = Target.of(self.url, self.headers, self.place, method="GET")
        async with _client(self.place, self.context, self.tls, self.server_name) as client:
            reply = await client.post(target, memoryview(b""))
        if (reply.status not in self.statuses) if self.statuses else reply.status >= HTTPStatus.BAD_REQUEST:
            return Outcome("status", f"it answers HTTP {reply.status}", reply.status)
        if self.body is not None and self.body.encode() not in reply.body:
            return Outcome("body", f"its answer (HTTP {reply.status}) does not hold {self.body!r}", reply.status)
        return Outcome(status_code=reply.status)


@dataclass(frozen=True, slots=True)
class TcpProbe:
    """A connection that is accepted, and closed at once."""

    host: str
    port: int

    async def look(self, readings: Readings, of: Attributes) -> Outcome:
        (await dial(self.host, self.port)).close()
        return UP


@dataclass(frozen=True, slots=True)
class ComfyUiProbe:
    """ComfyUI answers `/system_stats` and `/queue` as itself: memory of its devices, prompts that run and wait."""

    url: str
    headers: Mapping[str, str]
    place: str
    context: Context
    tls: WatchedContext | None = None
    server_name: str | None = None

    async def look(self, readings: Readings, of: Attributes) -> Outcome:
        async with _client(self.place, self.context, self.tls, self.server_name) as client:
            stats = await self._get(client, "/system_stats")
            if isinstance(stats, Outcome):
                return stats
            _put_devices(readings, of, stats)
            queue = await self._get(client, "/queue", or_cut=True)
            if queue is None:  # each prompt that waits stands in it with its whole workflow
                queue = await self._get(client, "/prompt")
            if isinstance(queue, Outcome):
                return queue
            return _put_queue(readings, of, queue)

    async def _get(self, client: HttpClient, path: str, *, or_cut: bool = False) -> Any:
        """Return the object that a path answers with, or what is wrong; `or_cut`: None where the answer is longer than is read."""
        target = Target.of(self.url.rstrip("/") + path, self.headers, self.place, method="GET")
        reply: Reply = await client.post(target, memoryview(b""))
        if reply.status != HTTPStatus.OK:
            return Outcome("status", f"{path} answers HTTP {reply.status}", reply.status)
        body = reply.body
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            if or_cut and len(body) >= MOST_BODY_BYTES:
                return None
            return Outcome("protocol", f"{path} answers with something that is no JSON: is this ComfyUI?", reply.status)
        if not isinstance(found, dict):
            return Outcome("protocol", f"{path} does not answer as ComfyUI does", reply.status)
        return found


def _put_devices(readings: Readings, of: Attributes, stats: Mapping[str, Any]) -> None:
    system = stats.get("system")
    if isinstance(system, dict):
        _put_memory(readings, "comfyui.memory", of, system.get("ram_total"), system.get("ram_free"))
    devices = stats.get("devices")
    for number, device in enumerate(devices[:_MOST_DEVICES] if isinstance(devices, list) else ()):
        if not isinstance(device, dict):
            continue
        index = device.get("index")
        on = {**of, "comfyui.device.index": index if isinstance(index, int) and 0 <= index < 1 << 16 else number}
        if isinstance(name := device.get("name"), str):
            on["comfyui.device.name"] = clean(name)[:128]
        _put_memory(readings, "comfyui.vram", on, device.get("vram_total"), device.get("vram_free"))
        _put_memory(readings, "comfyui.torch_vram", on, device.get("torch_vram_total"), device.get("torch_vram_free"))


def _put_memory(readings: Readings, name: str, of: Attributes, total: Any, free: Any) -> None:
    """Put what is used and free of a memory, where both are numbers that fit together."""
    if _is_number(total) and _is_number(free) and 0 <= free <= total < 1 << 62:
        readings.up_down_counter(f"{name}.usage", int(total) - int(free), "By", {**of, "comfyui.memory.state": "used"})
        readings.up_down_counter(f"{name}.usage", int(free), "By", {**of, "comfyui.memory.state": "free"})
        readings.up_down_counter(f"{name}.limit", int(total), "By", of)


def _put_queue(readings: Readings, of: Attributes, queue: Mapping[str, Any]) -> Outcome:
    """Put how many prompts there are: by state, or in all where the queue is too long to be read."""
    counts = {state: value for state in ("running", "pending") if isinstance(value := queue.get(f"queue_{state}"), list)}
    for state, prompts in counts.items():
        readings.up_down_counter("comfyui.queue.depth", len(prompts), "{prompt}", {**of, "comfyui.queue.state": state})
    if counts:
        readings.up_down_counter("comfyui.queue.remaining", sum(map(len, counts.values())), "{prompt}", of)
        return UP
    info = queue.get("exec_info")
    remaining = info.get("queue_remaining") if isinstance(info, dict) else None
    if _is_number(remaining) and 0 <= remaining < 1 << 53:
        readings.up_down_counter("comfyui.queue.remaining", int(remaining), "{prompt}", of)
        return UP
    return Outcome("protocol", "its queue is not what ComfyUI answers with")


def _is_number(value: Any) -> TypeGuard[int | float]:
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and math.isfinite(value))


def outcome_of(error: Exception, timeout_s: float) -> Outcome | None:
    """Return what an exception of a probe means; None where it means nothing of the service."""
    if isinstance(error, TimeoutError):
        return Outcome("timeout", f"no answer within {timeout_s:g} s")
    if isinstance(error, DeliveryError):
        return Outcome(_ERRORS.get(error.kind, "unreachable"), clean(error.detail)[:300])
    if isinstance(error, (OSError, EOFError)):
        return Outcome("unreachable", clean(str(error.strerror or error) if isinstance(error, OSError) else str(error))[:300])
    return None
