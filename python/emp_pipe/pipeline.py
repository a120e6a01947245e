"""One process's components, wired: builds them from a `PipelineConfig`, starts and stops them in order, and swaps them on a reload.

    start: log → exporters' loops → derivers → intake and processors → receivers → ready
    stop:  receivers → intake → writer → drain the derivers → drain the loops → loops → log, all under one absolute deadline

One TaskGroup owns every task. Not here: signals and start-up lines (`process.py`), what the HTTP port and the control socket answer
(`observe.py`), what may differ between two configurations (`reload.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from emp_pipe import deriving, failpoints
from emp_pipe._core import Normalizer
from emp_pipe.clock import Clock
from emp_pipe.component import ComponentConfig, Context, Exporter, ExporterConfig, ProcessorConfig, Receiver
from emp_pipe.config import PipelineConfig, revealed_secrets
from emp_pipe.delivery.derive_parts import DeriveLoops
from emp_pipe.delivery.loop import DeliveryLoop
from emp_pipe.deriving import DeriverSlot
from emp_pipe.environment import OTLP_LISTEN
from emp_pipe.errors import ConfigError, EmpPipeError, ErrorKind, LogError
from emp_pipe.intake import GuardedProcessor, PipelineIntake
from emp_pipe.log.protocol import GroupSpec, Log, Topic
from emp_pipe.log.writer import LogWriter
from emp_pipe.logs import RateLimitedLogger, get_logger
from emp_pipe.registry import Kind, find, type_of
from emp_pipe.self_metrics import Metrics
from emp_pipe.taps import TappedExporter, Taps

_NEVER_REQUIRED_BESIDE_OTHERS = frozenset({"file", "stdout", "noop", "error"})
_CLOSING_S = 1.0
_REOPEN_EVERY_S = 1.0
_EXPORTERS_SHARE = 0.5
"""Of the time to drain what is kept for exporters, should a deriver not come to its end."""
_SIGNAL_TOPICS = {"logs": Topic.LOGS, "traces": Topic.TRACES, "metrics": Topic.METRICS}

_logger = get_logger("pipeline")


@dataclass(slots=True)
class ReceiverSlot:
    """A receiver and its task; `failure` is set when it could not start or ended by an error."""

    receiver: Receiver
    config: ComponentConfig
    secrets: tuple[int, ...] = ()
    started: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    failure: EmpPipeError | None = None


@dataclass(slots=True)
class ExporterSlot:
    """An exporter, its delivery loop and its task."""

    loop: DeliveryLoop
    config: ExporterConfig
    secrets: tuple[int, ...] = ()
    task: asyncio.Task[None] | None = None
    failure: EmpPipeError | None = None


class Pipeline:
    """See the module's head. `run` returns when everything has stopped."""

    def __init__(self, config: PipelineConfig, clock: Clock, metrics: Metrics) -> None:
        self.config = config
        self.clock = clock
        self.metrics = metrics
        self.taps = Taps(clock)
        self.context = self.make_context(config)
        buffer = find(Kind.BUFFERS, config.buffer_type)
        self.log: Log = buffer.component("buffer", config.buffer, self.context)
        self.exporters = {name: self.build_exporter(name, settings) for name, settings in config.exporters.items()}
        self.derivers = self.build_derivers(config, {})
        self.writer = LogWriter(self.log, topics=self.topics(), codec=self.codec(self.exporters), codecs=self.codecs(), clock=clock)
        self.intake = PipelineIntake(self.writer, self.taps, self._fail, metrics)
        self.intake.set_processors(self.build_processors(config))
        self.redactor = config.dead_letters.redactor()
        self.intake.redactor = self.redactor
        self.receivers = {name: self.build_receiver(name, settings) for name, settings in config.receivers.items()}
        self.state = "starting"
        self.waiting_for = ""
        """Why it has not started yet."""
        self.started = asyncio.Event()
        self._stop = asyncio.Event()
        self._fatal: EmpPipeError | None = None
        self._tasks: asyncio.TaskGroup | None = None

    def make_context(self, config: PipelineConfig) -> Context:
        """Return what components are given, with the configuration's rules for records."""
        rules = config.normalize
        normalizer = Normalizer(stamp=dict(rules.stamp), unfold=rules.unfold, aliases=dict(rules.aliases))
        data_dir, wiring = config.data_dir.absolute(), deriving.wiring_of(config.processors)
        return Context(self.clock, self.metrics, data_dir, config.machine_id, config.role, normalizer, wiring, self._log_name)

    def _log_name(self) -> str:
        return str(getattr(self.log, "shared_name", ""))

    # building

    def _built(self, kind: Kind, component_id: str, config: ComponentConfig, context: Context | None = None) -> Any:
        try:
            return find(kind, type_of(component_id)).component(component_id, config, context or self.context)
        except EmpPipeError:
            raise
        except Exception as error:  # a plugin may raise anything; its name must be in what the user reads
            detail = f"the {str(kind)[:-1]} cannot be built ({type(error).__name__}: {error})"
            raise ConfigError(ErrorKind.CONFIG_INVALID, place=component_id, detail=detail) from error

    def build_receiver(self, component_id: str, config: ComponentConfig) -> ReceiverSlot:
        receiver: Receiver = self._built(Kind.RECEIVERS, component_id, config)
        return ReceiverSlot(receiver, config, revealed_secrets(config, component_id))

    def build_exporter(self, component_id: str, config: ComponentConfig) -> ExporterSlot:
        exporter: Exporter = self._built(Kind.EXPORTERS, component_id, config)
        tapped: Any = TappedExporter(exporter, self.taps)
        assert isinstance(config, ExporterConfig)
        return ExporterSlot(DeliveryLoop(tapped, self.log, component_id, self.context), config, revealed_secrets(config, component_id))

    def build_processors(self, config: PipelineConfig) -> list[GuardedProcessor]:
        guarded = []
        for component_id, settings in config.processors.items():
            if self.is_deriver(component_id):
                continue
            processor = self._built(Kind.PROCESSORS, component_id, settings)
            on_error = settings.on_error if isinstance(settings, ProcessorConfig) else "pass"
            guarded.append(GuardedProcessor(component_id, processor, on_error, self.metrics))
        return guarded

    @staticmethod
    def is_deriver(component_id: str) -> bool:
        return deriving.is_deriver(find(Kind.PROCESSORS, type_of(component_id)).component)

    def build_derivers(
        self, config: PipelineConfig, known: Mapping[str, DeriverSlot], exporters: Mapping[str, ExporterSlot] | None = None
    ) -> dict[str, DeriverSlot]:
        """Return the derivers of a configuration: those of `known` that it leaves as they are, and the others anew.

        `exporters`: what will read what they make. Raises ConfigError where they do not fit together."""
        exporters = self.exporters if exporters is None else exporters
        wiring = replace(self.context.wiring, codec=self.codec(exporters))
        context = replace(self.context, wiring=wiring)
        slots: dict[str, DeriverSlot] = {}
        for component_id, settings in config.processors.items():
            if not self.is_deriver(component_id):
                continue
            secrets = revealed_secrets(settings, component_id)
            slot = known.get(component_id)
            if slot is None or slot.failure or (slot.config, slot.wiring, slot.secrets) != (settings, wiring, secrets):
                make = partial(self._build_deriver, component_id, settings, context)
                watch = partial(self._derived, component_id)
                slot = DeriverSlot(DeriveLoops(make, self.log, context, watch=watch), settings, wiring, secrets)
            slots[component_id] = slot
        if slots:
            topics = frozenset(topic for spec in _groups(exporters) for topic in spec.topics)
            deriving.check(slots, topics, exporters)
        return slots

    def _build_deriver(self, component_id: str, config: ComponentConfig, context: Context, parts: int) -> Any:
        """Return a deriver, one of so many of its name here."""
        return self._built(Kind.PROCESSORS, component_id, config, replace(context, wiring=replace(context.wiring, parts=parts)))

    def _derived(self, component_id: str, block: Any) -> None:
        if self.taps:
            self.taps.offer_block(component_id, block)

    def groups(self) -> list[GroupSpec]:
        """Return one group per exporter, required or best effort as the configuration says, else as its type is; and one per deriver."""
        return [*_groups(self.exporters), *(slot.group for slot in self.derivers.values())]

    def topics(self) -> frozenset[Topic]:
        """Return the topics that some group reads: of the others nothing is written."""
        return frozenset(topic for spec in self.groups() for topic in spec.topics)

    def codecs(self) -> dict[Topic, Any]:
        """Return the codecs of topics that have another one: traces that are held for a decision are held compressed, whatever is sent."""
        return {Topic.TRACES_IN: "zstd"} if any(slot.wiring.tail_samples for slot in self.derivers.values()) else {}

    @staticmethod
    def codec(exporters: Mapping[str, ExporterSlot]) -> Any:
        """Return the codec of the log's blocks: the first required exporter's, so that most blocks go out as they lie."""
        required = {spec.name for spec in _groups(exporters) if spec.required}
        for name, slot in exporters.items():
            if name in required or not required:
                codec = slot.loop.exporter.codec
                return codec if codec != "any" else "gzip" if type_of(name) == "forward" else "zstd"
        return "gzip"

    # running

    def stop(self) -> None:
        """Stop in order; `run` returns when done."""
        self._stop.set()

    async def stopping(self) -> None:
        """Return when it is to stop, asked or by a failure."""
        await self._stop.wait()

    def _fail(self, error: EmpPipeError) -> None:
        if self._fatal is None:
            self._fatal = error
        self._stop.set()

    async def run(self) -> None:
        """Run until `stop`. Raises what made it impossible to start, or what made it stop."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                if await self._open_log():
                    await self._start(tasks)
                    await self._stop.wait()
                    await self._wind_down()
        finally:
            self.state = "stopped"
            with contextlib.suppress(EmpPipeError):
                await self.log.close(self.clock.monotonic_s() + _CLOSING_S)
        if self._fatal is not None:
            raise self._fatal

    async def _open_log(self) -> bool:
        """Open the log; one that is elsewhere, such as a Redis that starts at the same time, is waited for, and nothing listens meanwhile.

        Return False where a stop was asked for. Raises what waiting does not mend."""
        said = RateLimitedLogger(_logger)
        while not self._stop.is_set():
            try:
                opened = await deriving.open_log(self.log, self.groups(), deriving.written_by(self.derivers), self._stop.is_set)
            except LogError as error:
                if not getattr(error, "passing", False):
                    raise
                self.waiting_for = str(error)
                said.warning("the buffer", "%s Nothing is received before it answers; it is tried again every second.", error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), _REOPEN_EVERY_S)
            else:
                self.waiting_for = ""
                return opened
        return False

    async def _start(self, tasks: asyncio.TaskGroup) -> None:
        self._background = [tasks.create_task(self.intake.run(), name="intake")]
        for exporter in self.exporters.values():
            self.start_exporter(exporter)
        for deriver in self.derivers.values():
            self.start_deriver(deriver)
        for receiver in self.receivers.values():
            self.start_receiver(receiver)
        for receiver in self.receivers.values():
            await receiver.started.wait()
        self.state = "running"
        self.started.set()

    def start_exporter(self, slot: ExporterSlot, *, contained: bool = False) -> None:
        """Start a loop; `contained`: its failure is told and does not end the process."""
        assert self._tasks is not None

        async def deliver() -> None:
            try:
                await slot.loop.run()
            except EmpPipeError as error:
                slot.failure = error
                if not contained:
                    raise
                _logger.error("%s", error)

        slot.task = self._tasks.create_task(deliver(), name=slot.loop.exporter.id)

    def start_deriver(self, slot: DeriverSlot, *, contained: bool = False) -> None:
        """Start a deriver's loop; `contained`: its failure is told and does not end the process."""
        assert self._tasks is not None

        async def derive() -> None:
            try:
                await slot.loop.run()
            except EmpPipeError as error:
                slot.failure = error
                if not contained:
                    raise
                _logger.error("%s", error)

        slot.task = self._tasks.create_task(derive(), name=slot.loop.id)

    def start_receiver(self, slot: ReceiverSlot, *, contained: bool = False) -> None:
        """Start a receiver; `contained`: its failure is told and does not end the process."""
        assert self._tasks is not None

        async def receive() -> None:
            try:
                await slot.receiver.run(self.intake, slot.started)
            except EmpPipeError as error:
                slot.failure = _advised(error, slot.receiver.id)
                if not contained:
                    raise
                _logger.error("%s", error)
                slot.started.set()

        slot.task = self._tasks.create_task(receive(), name=slot.receiver.id)

    async def _wind_down(self) -> None:
        deadline_s = self.clock.monotonic_s() + self.config.shutdown.deadline_s
        drain_until_s = deadline_s - min(_CLOSING_S, self.config.shutdown.deadline_s / 4)
        self.state = "stopping"
        await asyncio.gather(*(slot.receiver.stop(drain_until_s) for slot in self.receivers.values()))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.intake.drained(), max(drain_until_s - self.clock.monotonic_s(), 0.0))
        self.intake.speak(last=True)
        await self.writer.close(drain_until_s)
        failpoints.hit("pipeline.drain")
        derivers = self.derivers
        left_s = max(drain_until_s - self.clock.monotonic_s(), 0.0)
        leave = getattr(self.log, "leave", None)
        if leave is not None:  # other replicas go on with it at once, while what is held never ends under their traffic
            await leave(self.clock.monotonic_s() + left_s / 2)
        await deriving.drain(derivers, drain_until_s - left_s * _EXPORTERS_SHARE)
        await deriving.stop(derivers.values(), drain_until_s - left_s * _EXPORTERS_SHARE / 2)
        loops = [slot.loop for slot in self.exporters.values()]
        drained = await asyncio.gather(*(loop.drain(drain_until_s) for loop in loops))
        await asyncio.gather(*(loop.stop(deadline_s) for loop in loops))
        for task in self._background:
            task.cancel()
        undrained = [loop.status() for loop, is_drained in zip(loops, drained, strict=True) if not is_drained]
        undrained += [status for slot in derivers.values() if (status := slot.loop.status()).held_records]
        for status in undrained:
            _logger.warning("%s: %s records stay in the buffer for the next start", status.group, f"{status.held_records:,}")


def _advised(error: EmpPipeError, receiver_id: str) -> EmpPipeError:
    """Return an error with what to do on a machine where an older collector still has the usual ports."""
    _, variable = OTLP_LISTEN.get(type_of(receiver_id), ("", ""))
    if error.kind is ErrorKind.ADDRESS_IN_USE and variable:
        error.advice = (
            f"if that is an OpenTelemetry Collector, stop it: emp-pipe takes its place; or set another `listen` ({variable}=host:port), "
            f"or none ({variable}=off)"
        )
    return error


def _groups(exporters: Mapping[str, ExporterSlot]) -> list[GroupSpec]:
    others = any(type_of(name) not in _NEVER_REQUIRED_BESIDE_OTHERS for name in exporters)
    return [_group(name, slot, required_by_default=not others) for name, slot in exporters.items()]


def _group(name: str, slot: ExporterSlot, *, required_by_default: bool) -> GroupSpec:
    config = slot.config
    required = config.required
    if required is None:
        required = type_of(name) not in _NEVER_REQUIRED_BESIDE_OTHERS or required_by_default
    topics: frozenset[Topic] = getattr(slot.loop.exporter, "topics", frozenset(_SIGNAL_TOPICS.values()))
    if config.only is not None and config.only.signals:
        unwanted = {topic for signal, topic in _SIGNAL_TOPICS.items() if signal not in config.only.signals}
        topics = topics - unwanted
    start: Any = config.start
    return GroupSpec(name, topics, required, config.quota_bytes, config.quota_age_s, start)
