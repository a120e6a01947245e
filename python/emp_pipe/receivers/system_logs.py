"""The files in which syslog keeps what the kernel says and who logged in: `/var/log/kern.log`, `/var/log/auth.log`.

For machines without a journal that can be read. They are read by the file tail; which stream a file is its name says, and NVIDIA's Xid
messages in the kernel's become error events. Not here: reading (`tail.py`), the journal (`journald.py`), the ring (`kmsg.py`).
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial

from pydantic import Field

from emp_pipe import xid
from emp_pipe.component import Arrival, ComponentConfig, Context, Intake
from emp_pipe.receivers.container_files import ResourceTail

_KERNEL = ("/var/log/kern.log",)
_AUTH = ("/var/log/auth.log", "/var/log/secure")


class SystemLogsConfig(ComponentConfig):
    """Settings of the receiver of syslog's files."""

    kernel: tuple[str, ...] = Field(_KERNEL, description="Globs of files in which the kernel's messages are.")
    auth: tuple[str, ...] = Field(_AUTH, description="Globs of files in which logins are.")


class _KernelIntake:
    """Makes Xid messages error events on their way."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def submit(self, arrival: Arrival) -> asyncio.Future[None]:
        if arrival.batch is not None:
            arrival = replace(arrival, batch=xid.marked(arrival.batch))
        return self._intake.submit(arrival)

    @property
    def admitting(self) -> bool:
        return self._intake.admitting

    async def wait_admitting(self) -> None:
        await self._intake.wait_admitting()

    async def checkpoint_get(self, name: str) -> bytes | None:
        return await self._intake.checkpoint_get(name)


class SystemLogsReceiver:
    """See the module's head."""

    def __init__(self, id: str, config: SystemLogsConfig, context: Context) -> None:
        self.id = id
        self.config = config
        # A tail each: that of the kernel's files alone may make events. Their positions have names of their own.
        streams = {"kernel": config.kernel, "auth": config.auth}
        self._tails = {
            stream: ResourceTail(f"{id}:{stream}", globs, f"syslog.{stream}", context, partial(_resource, stream))
            for stream, globs in streams.items()
            if globs
        }

    async def run(self, intake: Intake, started: asyncio.Event) -> None:
        begun = {stream: asyncio.Event() for stream in self._tails}
        async with asyncio.TaskGroup() as tasks:
            for stream, tail in self._tails.items():
                own = _KernelIntake(intake) if stream == "kernel" else intake
                tasks.create_task(tail.run(own, begun[stream]), name=f"{self.id} {stream}")
            for event in begun.values():
                await event.wait()
            started.set()

    async def stop(self, deadline_monotonic_s: float) -> None:
        await asyncio.gather(*(tail.stop(deadline_monotonic_s) for tail in self._tails.values()))


def _resource(stream: str, path: str) -> dict[str, str]:
    return {"log.stream": stream, **({"service.name": "kernel"} if stream == "kernel" else {})}


CONFIG = SystemLogsConfig
COMPONENT = SystemLogsReceiver
