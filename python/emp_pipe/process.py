"""The process: data directory, log lines, event loop, signals, and the few lines that start-up says.

SIGTERM and SIGINT stop in order under one deadline, a second one at once; SIGHUP reloads. Exit code 0 after a stop, 1 after a failure.
Not here: the components and their order (`pipeline.py`), how systemd is told of all this (`service_manager.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from emp_pipe import config_secrets, data_dir, hangups, log_lines
from emp_pipe.clock import SystemClock
from emp_pipe.config import PipelineConfig
from emp_pipe.config_layer import Layer
from emp_pipe.errors import EmpPipeError
from emp_pipe.logs import get_logger
from emp_pipe.observe import Observer
from emp_pipe.pipeline import Pipeline
from emp_pipe.reload import reload
from emp_pipe.self_metrics import Metrics
from emp_pipe.service_manager import ServiceManager

Load = Callable[[], tuple[PipelineConfig, Layer]]
Say = Callable[[PipelineConfig], Sequence[str]]
_logger = get_logger("pipeline")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT_BYTES, _MAPPED_FROM_BYTES, _ARENAS = 8 << 20, 4 << 20, 2
_AFTER_DEADLINE_S = 5.0
"""What a stop may take past its own deadline, before a service manager may end it."""


def run_until_stopped(config: PipelineConfig, layer: Layer, load: Load, what_is_read: Say = lambda _: ()) -> int:
    """Run a pipeline until a signal stops it; return the exit code. Raises EmpPipeError when it cannot start.

    `what_is_read`: lines that are said before anything else, and again after a reload that changes them."""
    keep_freed_memory()
    log_lines.set_up(config.log_level, machine_id=config.machine_id, role=config.role)
    reads = _Said(what_is_read)
    reads.say(config)
    _warn_of_secrets(config, layer)
    with data_dir.owned(config.data_dir), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            return runner.run(_Process(config, load, reads).run())
        except BaseExceptionGroup as group:
            ours, others = group.split(EmpPipeError)
            if ours is None or others is not None:
                raise
            raise next(_leaves(ours)) from None


class _Said:
    """Lines that are said when they are not what was said last."""

    def __init__(self, lines: Say) -> None:
        self._lines = lines
        self._last: Sequence[str] = ()

    def say(self, config: PipelineConfig) -> None:
        lines = self._lines(config)
        for line in lines if lines != self._last else ():
            _logger.info("%s", line)
        self._last = lines


def _warn_of_secrets(config: PipelineConfig, layer: Layer) -> None:
    for warning in config_secrets.written_out(config, layer):
        _logger.warning("%s", warning)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _leaves(group: BaseExceptionGroup[Any]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def leave_out_of_collections() -> None:
    """Let Python's garbage collector look only at what comes from now on, and less often.

    What start-up made stays until the end. Walking it again and again took up to a tenth of the CPU under load."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def keep_freed_memory() -> bool:
    """Let the C allocator keep some of what is freed for what comes next; return whether it does (glibc only).

    By default every request's buffers went back to the system and were faulted in again, page by page: a quarter to a third of the CPU at
    400 kB a request. Two arenas keep it, however many threads there are. Who sets MALLOC_… knows better."""
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    options = ((_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES), (_M_TRIM_THRESHOLD, _KEPT_BYTES), (_M_ARENA_MAX, _ARENAS))
    return all([bool(mallopt(option, value)) for option, value in options])


class _Process:
    def __init__(self, config: PipelineConfig, load: Load, reads: _Said) -> None:
        self._load = load
        self._reads = reads
        clock = SystemClock()
        self._manager = ServiceManager(os.environ, os.getpid(), clock)
        self._pipeline = Pipeline(config, clock, Metrics())
        self._observer = Observer(self._pipeline)
        self._running: asyncio.Task[None] | None = None
        self._reload_asked = asyncio.Event()
        self._stops_asked = 0

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop, signal.Signals(number).name)
        loop.add_signal_handler(signal.SIGHUP, self._reload_asked.set)
        if hangups.came():
            self._reload_asked.set()
        async with self._observer, asyncio.TaskGroup() as tasks:
            self._running = tasks.create_task(self._pipeline.run(), name="pipeline")
            helpers = [
                tasks.create_task(self._say_when_started()),
                tasks.create_task(self._reload_when_asked()),
                tasks.create_task(self._feed_watchdog()),
                tasks.create_task(self._tell_when_stopping()),
                tasks.create_task(self._observer.run()),
            ]
            try:
                await asyncio.wait([self._running])
            finally:
                for task in helpers:
                    task.cancel()
        if self._stops_asked > 1:
            _logger.warning("stopped at once; what was not delivered stays in the buffer")
        else:
            _logger.info("stopped")
        return 0

    def _asked_to_stop(self, name: str) -> None:
        self._stops_asked += 1
        if self._stops_asked == 1:
            _logger.info("%s: stopping within %g s; a second signal stops at once", name, self._pipeline.config.shutdown.deadline_s)
            self._pipeline.stop()
        elif self._running is not None:
            self._running.cancel()

    async def _say_when_started(self) -> None:
        await self._pipeline.started.wait()
        await self._manager.tell("READY=1")
        for line in self._observer.start_up_lines():
            _logger.info("%s", line)
        for line in self._observer.warnings():
            _logger.warning("%s", line)
        leave_out_of_collections()

    async def _reload_when_asked(self) -> None:
        await self._pipeline.started.wait()
        while True:
            await self._reload_asked.wait()
            self._reload_asked.clear()
            await self._manager.tell_reloading()
            status = ""
            try:
                config, layer = self._load()
                _warn_of_secrets(config, layer)
                use_key = self._observer.read_key(config)
                await reload(self._pipeline, config)
                use_key()
                self._reads.say(config)
            except EmpPipeError as error:
                status = f"the configuration was not reloaded, the one before stays: {error}"
                _logger.error("%s", status)
            await self._manager.tell("READY=1", f"STATUS={status}")

    async def _feed_watchdog(self) -> None:
        await self._pipeline.started.wait()
        await self._manager.feed_watchdog(self._log_answers)

    async def _log_answers(self) -> None:
        with contextlib.suppress(EmpPipeError):  # a disk that refuses is said elsewhere, and a restart mends none
            await self._pipeline.log.answers()

    async def _tell_when_stopping(self) -> None:
        await self._pipeline.stopping()
        await self._manager.tell_stopping(self._pipeline.config.shutdown.deadline_s + _AFTER_DEADLINE_S)
