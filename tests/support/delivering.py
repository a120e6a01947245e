"""A memory log, an exporter that does as a script says, and the loop between them: what the tests of delivery stand on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from emp_pipe.buffers.memory import MemoryConfig, MemoryLog
from emp_pipe.clock import Clock
from emp_pipe.component import Context, Exporter, ExporterConfig, Parcel, Sent
from emp_pipe.delivery.loop import DeliveryLoop
from emp_pipe.log.protocol import Append, DeadLetter, GroupBooks, GroupSpec, Topic
from tests.support.context import make_context

if TYPE_CHECKING:
    from emp_pipe._core import Block, DestinationLimits

GROUP = "out"


class ScriptedExporter:
    """Sends as `behave(parcel)` does; remembers every parcel."""

    limits: DestinationLimits | None = None

    def __init__(
        self,
        behave: Callable[[Parcel], Awaitable[Sent]] | None = None,
        *,
        merges: bool = False,
        ordered: bool = False,
        codec: str = "any",
        **settings: Any,
    ) -> None:
        self.id = "scripted"
        self.config = ExporterConfig(**settings)
        self.merges = merges
        self.ordered = ordered
        self.codec = codec
        self.behave = behave
        self.parcels: list[Parcel] = []
        self.delivered: list[Parcel] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.opened = 0
        self.closed = 0

    async def open(self) -> None:
        self.opened += 1

    async def send(self, parcel: Parcel) -> Sent:
        self.parcels.append(parcel)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            sent = await self.behave(parcel) if self.behave is not None else Sent()
        finally:
            self.in_flight -= 1
        self.delivered.append(parcel)
        return sent

    async def close(self, deadline_monotonic_s: float) -> None:
        self.closed += 1

    @property
    def bodies(self) -> list[str]:
        """The bodies of all delivered log records, in order of delivery."""
        return [body for parcel in self.delivered for body in bodies_of(parcel.block)]


def bodies_of(block: Block) -> list[str]:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    request = ExportLogsServiceRequest()
    request.ParseFromString(block.payload("none"))
    return [row.body.string_value for resource in request.resource_logs for scope in resource.scope_logs for row in scope.log_records]


class Delivering:
    """A log with one group and the loop that delivers it."""

    def __init__(self, exporter: Exporter, context: Context, random: Random) -> None:
        self.exporter = exporter
        self.context = context
        self.log = MemoryLog("memory", MemoryConfig(), context)
        self.loop = DeliveryLoop(exporter, self.log, GROUP, context, random=random)

    async def append(self, blocks: Sequence[Block]) -> None:
        await self.log.append(Append(blocks=blocks))

    async def until_done(self, timeout_s: float = 20.0) -> None:
        """Return when the log holds nothing for the group any more."""
        await self.until(lambda: not self.log.usage().groups[0].held_blocks, timeout_s)

    async def until(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Return when a condition holds; it is looked at every other millisecond."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                await self.context.clock.sleep(0.002)

    async def books(self) -> GroupBooks:
        """Return the group's books over all topics, checked."""
        total = GroupBooks("all", GROUP)
        for books in await self.log.group_books():
            if books.group != GROUP:
                continue
            assert books.balanced, books
            total.appended += books.appended
            total.acked += books.acked
            total.dead += books.dead
            total.skipped += books.skipped
            total.held += books.held
        return total

    async def dead(self) -> list[DeadLetter]:
        return [letter for _, letter in await self.log.dead_letters(limit=10_000)]

    def metric(self, name: str, **labels: str) -> float:
        value = self.context.metrics.registry.get_sample_value(f"emp_pipe_{name}", {"component": self.exporter.id, **labels})
        return 0.0 if value is None else value

    @property
    def now_s(self) -> float:
        return self.context.clock.monotonic_s()


@contextlib.asynccontextmanager
async def delivering(
    exporter: Exporter,
    *,
    clock: Clock | None = None,
    random: Random | None = None,
    data_dir: Path = Path("unused"),
    context: Context | None = None,
) -> AsyncIterator[Delivering]:
    """A running loop; stopped at the end, with a moment for what is under way."""
    subject = Delivering(exporter, context or make_context(clock, data_dir), random or Random(1))
    await subject.log.open([GroupSpec(GROUP, frozenset(Topic))])
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(subject.loop.run(), name="delivery")
        try:
            yield subject
        finally:
            await subject.loop.stop(subject.now_s + 1.0)
