"""The file tail: lines of files as records, through rotations and restarts, none twice and none missing.

    thread: Reader.round ──▶ arrivals ──▶ intake ──▶ durable, the positions in the same transaction ──▶ the next round is handed over
               ▲ inotify, or a look every now and then            (which was read meanwhile)

Reading and looking happen in one thread, for any of it may wait for a disk. Where reading goes on after a restart the log says
(`Intake.checkpoint_get`). Settings are in `tail_settings.py`; which file is whose turn: `tail_reader.py`; lines: the core (`lines/`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections.abc import Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from emp_pipe.component import Arrival, Context, Intake
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.line_settings import make_parser
from emp_pipe.logs import RateLimitedLogger, get_logger
from emp_pipe.receivers.tail_position import Position, decode
from emp_pipe.receivers.tail_reader import Reader
from emp_pipe.receivers.tail_report import Report
from emp_pipe.receivers.tail_scan import Patterns
from emp_pipe.receivers.tail_settings import TailConfig
from emp_pipe.receivers.tail_watch import Watcher
from emp_pipe.self_metrics import ComponentGauges

if TYPE_CHECKING:
    from emp_pipe._core import LineParser, Normalizer

_AGAIN_S = 1.0


class TailReceiver:
    """Reads files. See the module's head."""

    def __init__(self, id: str, config: TailConfig, context: Context) -> None:
        self.id = id
        self.config = config
        self.context = context
        self._log = RateLimitedLogger(get_logger(id))
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._from_name = {key: re.compile(pattern) for key, pattern in config.from_name.items()}
        self._normalizer: Normalizer | None = None

    async def run(self, intake: Intake, started: asyncio.Event) -> None:
        from emp_pipe._core import Normalizer

        self._normalizer = self.context.normalizer or Normalizer()
        watcher = Watcher(self.config.watch)
        patterns = Patterns(self.config.include, self.config.exclude, self.reads)
        reader = Reader(self.id, self.config, patterns, watcher, Report(self.id, self.context.metrics), self._make_parser)
        gauges = ComponentGauges(self.context.metrics, self.id)
        gauges.add("tail_followed", unit="files", help="Files that are read.", read=lambda: reader.followed)
        gauges.add("tail_leaving", unit="files", help="Rotated files that are read to their end.", read=lambda: reader.leaving)
        gauges.add("tail_unfinished", unit="bytes", help="What is kept of lines without an end.", read=lambda: reader.held_bytes)
        pool = ThreadPoolExecutor(1, thread_name_prefix="tail")
        loop = asyncio.get_running_loop()
        try:
            stored = await self._stored(reader, intake)
            now_s = self.context.clock.monotonic_s()
            ended = {key: await self._positions(intake, reader.ended_name(key), key) for key in stored or ()}
            await loop.run_in_executor(pool, partial(reader.start, stored or {}, now_s, is_first=stored is None, ended=ended))
            started.set()
            await self._follow(reader, watcher, intake, pool)
        finally:
            started.set()
            gauges.close()
            if watcher.descriptor is not None:
                loop.remove_reader(watcher.descriptor)
            await loop.run_in_executor(pool, reader.close)
            pool.shutdown(wait=False)
            self._ended.set()

    async def stop(self, deadline_monotonic_s: float) -> None:
        self._stopping.set()
        self._wake.set()
        left_s = max(deadline_monotonic_s - self.context.clock.monotonic_s(), 0.0)
        try:
            await asyncio.wait_for(self._ended.wait(), left_s)
        except TimeoutError:
            self._log.log(logging.WARNING, "stop", "what was read last is not durable yet: it is read again at the next start")

    # the way of a round

    async def _follow(self, reader: Reader, watcher: Watcher, intake: Intake, pool: ThreadPoolExecutor) -> None:
        clock, loop = self.context.clock, asyncio.get_running_loop()
        handed_over: asyncio.Task[bool] | None = None
        try:
            while not self._stopping.is_set():
                if not intake.admitting and not await self._first_of(intake.wait_admitting()):
                    break
                round = await loop.run_in_executor(pool, reader.round, clock.monotonic_s(), clock.unix_nano())
                if handed_over is not None and not await handed_over:
                    return
                handed_over = None
                if round.chains:
                    handed_over = asyncio.create_task(self._hand_over(intake, round.chains), name=f"{self.id} hands over")
                if not round.more:
                    await self._wait(watcher, round.due_s - clock.monotonic_s())
            if handed_over is not None:
                await handed_over
        finally:
            if handed_over is not None and not handed_over.done():
                handed_over.cancel()

    async def _hand_over(self, intake: Intake, chains: Sequence[list[Arrival]]) -> bool:
        """Return when all is durable; what the log refuses is offered again. False: the log is closed.

        Of a chain each arrival goes when the one before it is durable: a position that is told before its rows are would lose them."""
        while chains:
            futures = [intake.submit(chain[0]) for chain in chains]
            refused = False
            for chain, future in zip(chains, futures, strict=True):
                try:
                    await future
                except LogError as error:
                    if error.kind is ErrorKind.LOG_CLOSED:
                        return False
                    refused = True
                    self._log.warning(str(error.kind), "reading waits: %s", error)
                else:
                    del chain[0]
            chains = [chain for chain in chains if chain]
            if refused:
                await self._first_of(self.context.clock.sleep(_AGAIN_S))
                if not intake.admitting and not await self._first_of(intake.wait_admitting()):
                    return False
                if self._stopping.is_set():
                    return False
        return True

    async def _wait(self, watcher: Watcher, due_in_s: float) -> None:
        """Wait until something changes, or is due."""
        loop = asyncio.get_running_loop()
        descriptor = watcher.descriptor
        self._wake.clear()
        if self._stopping.is_set():
            return
        if descriptor is not None:
            loop.add_reader(descriptor, self._wake.set)
        try:
            async with asyncio.timeout(max(due_in_s, 0.0) if due_in_s != float("inf") else None):
                await self._wake.wait()
        except TimeoutError:
            pass
        finally:
            if descriptor is not None:
                loop.remove_reader(descriptor)

    async def _first_of(self, waited: Awaitable[object]) -> bool:
        """Wait for something, or for the stop; False: it was the stop."""
        task, stop = asyncio.ensure_future(waited), asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            return not self._stopping.is_set()
        finally:
            for one in (task, stop):
                one.cancel()

    # positions and parsers

    async def _stored(self, reader: Reader, intake: Intake) -> dict[str, list[Position]] | None:
        """Return the positions of the last run, by path; None: there was none."""
        index = await self._asked(intake, reader.index_name)
        if index is None:
            return None
        try:
            keys = [str(key) for key in json.loads(index)]
        except (ValueError, TypeError):
            self._log.warning("positions", "the list of files that were read cannot be understood: all are new")
            return None
        return {key: await self._positions(intake, reader.name(key), key) for key in keys}

    async def _positions(self, intake: Intake, name: str, key: str) -> list[Position]:
        value = await self._asked(intake, name)
        try:
            return decode(value) if value is not None else []
        except ValueError as error:
            self._log.warning("positions", "%s: a position cannot be understood, it is read from its beginning (%s)", key, error)
            return []

    async def _asked(self, intake: Intake, name: str) -> bytes | None:
        """Return a checkpoint; a log that cannot answer now is asked again."""
        while True:
            try:
                return await intake.checkpoint_get(name)
            except LogError as error:
                if error.kind is ErrorKind.LOG_CLOSED or self._stopping.is_set():
                    raise
                self._log.warning(str(error.kind), "reading waits: %s", error)
                await self._first_of(self.context.clock.sleep(_AGAIN_S))

    def reads(self, path: str) -> bool:
        """Return whether a file that the patterns name is read; called in the reading thread at every look."""
        return True

    def resource_of(self, path: str) -> dict[str, str]:
        """Return the resource attributes that a file's path says; called in the reading thread when its first bytes are read."""
        name = os.path.basename(path)
        resource = {"file.name": name, "file.path": path}
        for key, pattern in self._from_name.items():
            if (found := pattern.search(name)) is not None and (value := found.group(1 if pattern.groups else 0)):
                resource[key] = value
        return resource

    def _make_parser(self, path: str, parts: int) -> LineParser:
        assert self._normalizer is not None
        name = os.path.basename(path)
        resource = {**self.resource_of(path), **self.config.attributes}
        tag = self.config.tag.replace("*", name.rpartition(".")[0] or name)
        return make_parser(
            self.config,
            self._normalizer,
            tag,
            scope="emp-pipe/tail",
            resource=resource,
            max_line_bytes=self.config.max_line_bytes,
            parts=parts,
        )


CONFIG = TailConfig
COMPONENT = TailReceiver
