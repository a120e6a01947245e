"""A reload: the running pipeline becomes what a new configuration says. Components whose settings are the same stay up.

Everything new is built before anything old is stopped, so that a configuration that cannot be built changes nothing. What cannot change
while running (data_dir, buffer, HTTP port …) is named in the log and waits for a restart. Not here: reading the file again (`process.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from emp_pipe import deriving
from emp_pipe.component import ComponentConfig
from emp_pipe.config import PipelineConfig, revealed_secrets
from emp_pipe.deriving import DeriverSlot
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.protocol import GroupSpec, Topic
from emp_pipe.logs import get_logger
from emp_pipe.pipeline import Pipeline

_RESTART_ONLY = ("role", "data_dir", "machine_id", "http", "buffer_type", "buffer", "self_metrics")
_STOPPING_S = 5.0
_NOT_WITHOUT_BUFFER = "exporters and derivers are groups of it, which cannot be changed while it is away: reload again when it is here"
_logger = get_logger("pipeline")


async def reload(pipeline: Pipeline, config: PipelineConfig) -> None:
    """Make the pipeline what `config` says. Raises ConfigError, without effect, when a new component cannot be built, and LogError when
    groups would change in a buffer that is away."""
    before = pipeline.config
    waiting = [name for name in _RESTART_ONLY if getattr(before, name) != getattr(config, name)]
    if waiting:
        _logger.warning("a change of %s takes effect after a restart", ", ".join(waiting))
    config = config.model_copy(update={name: getattr(before, name) for name in waiting})
    redactor = config.dead_letters.redactor()
    renormalized = before.normalize != config.normalize
    old_context = pipeline.context
    pipeline.context = pipeline.make_context(config)
    rewired = pipeline.context.wiring != old_context.wiring
    try:
        processors = None
        stateless = _stateless(pipeline, config)
        if renormalized or (rewired and stateless) or _stateless(pipeline, before) != stateless:
            processors = pipeline.build_processors(config)
        new_receivers = {
            name: pipeline.build_receiver(name, settings)
            for name, settings in config.receivers.items()
            if renormalized or _differs(name, pipeline.receivers.get(name), settings, keys_can_be_read_again=True)
        }
        new_exporters = {
            name: pipeline.build_exporter(name, settings)
            for name, settings in config.exporters.items()
            if _differs(name, pipeline.exporters.get(name), settings)
        }
        exporters = {name: new_exporters.get(name) or pipeline.exporters[name] for name in config.exporters}
        derivers = pipeline.build_derivers(config, pipeline.derivers, exporters)
        gone_receivers = [name for name in pipeline.receivers if name in new_receivers or name not in config.receivers]
        gone_exporters = [name for name in pipeline.exporters if name in new_exporters or name not in config.exporters]
        gone_derivers = {name: slot for name, slot in pipeline.derivers.items() if derivers.get(name) is not slot}
        new_derivers = {name: slot for name, slot in derivers.items() if pipeline.derivers.get(name) is not slot}
        regrouped = bool(gone_exporters or new_exporters or gone_derivers or new_derivers)
        if regrouped and (away := getattr(pipeline.log, "away", "")):
            raise LogError(ErrorKind.LOG_IO, place="the buffer", detail=away, advice=_NOT_WITHOUT_BUFFER)
        for name, slot in pipeline.receivers.items():
            if name not in new_receivers and name in config.receivers and slot.secrets != (now := revealed_secrets(slot.config, name)):
                await getattr(slot.receiver, "reload")()  # noqa: B009 — not every receiver has keys to read again
                slot.secrets = now
    except BaseException:
        pipeline.context = old_context
        raise
    deadline_s = pipeline.clock.monotonic_s() + min(_STOPPING_S, config.shutdown.deadline_s)
    for name in gone_receivers:
        await pipeline.receivers.pop(name).receiver.stop(deadline_s)
    read_before, groups_before = pipeline.topics(), pipeline.groups()
    for name in gone_exporters:
        await pipeline.exporters.pop(name).loop.stop(deadline_s)
    pipeline.config = config
    pipeline.redactor = pipeline.intake.redactor = redactor
    if processors is not None:
        pipeline.intake.set_processors(processors)
    pipeline.exporters.update(new_exporters)
    pipeline.derivers = derivers
    if gone_derivers:
        await _flush(pipeline, gone_derivers, read_before & pipeline.topics(), groups_before, deadline_s)
    if regrouped:
        await pipeline.log.set_groups(pipeline.groups())
        pipeline.writer.set_topics(pipeline.topics(), pipeline.codecs())
    for deriver in new_derivers.values():
        pipeline.start_deriver(deriver, contained=True)
    for exporter in new_exporters.values():
        pipeline.start_exporter(exporter, contained=True)
    pipeline.receivers.update(new_receivers)
    for receiver in new_receivers.values():
        pipeline.start_receiver(receiver, contained=True)
        await receiver.started.wait()
    _tell(
        before,
        config,
        {*gone_receivers, *new_receivers, *gone_exporters, *new_exporters, *gone_derivers, *new_derivers},
        processors is not None,
    )


def _stateless(pipeline: Pipeline, config: PipelineConfig) -> list[tuple[str, ComponentConfig]]:
    return [(name, settings) for name, settings in config.processors.items() if not pipeline.is_deriver(name)]


async def _flush(
    pipeline: Pipeline, gone: Mapping[str, DeriverSlot], read: frozenset[Topic], before: Sequence[GroupSpec], deadline_s: float
) -> None:
    """Let derivers that leave end what they hold, with nothing new on its way to them. `read`: topics that are read before and after."""
    pipeline.writer.set_topics(read)
    await pipeline.writer.routed()
    await deriving.drain(gone, deadline_s, frozenset(gone) - pipeline.derivers.keys())
    await deriving.stop(gone.values(), deadline_s)
    after = pipeline.groups()
    if leaving := deriving.leaving(before, after):
        await pipeline.log.set_groups([*after, *leaving])
        await deriving.hand_on(pipeline.log, before, after, deriving.written_by(pipeline.derivers))


def _tell(before: PipelineConfig, after: PipelineConfig, touched: set[str], processors_changed: bool) -> None:
    was = {*before.receivers, *before.processors, *before.exporters}
    now = {*after.receivers, *after.processors, *after.exporters}
    parts = [
        f"{word} {', '.join(sorted(names))}"
        for word, names in (("started", touched & (now - was)), ("stopped", touched & (was - now)), ("changed", touched & was & now))
        if names
    ]
    if processors_changed:
        parts.append("changed the processors")
    _logger.info("reloaded: %s", "; ".join(parts) if parts else "no component changed")


def _differs(name: str, slot: Any, settings: ComponentConfig, *, keys_can_be_read_again: bool = False) -> bool:
    """Return whether a component must be built anew: new, other settings, a secret that has changed where it is kept, or it has failed."""
    if slot is None or slot.failure is not None or slot.config != settings:
        return True
    if keys_can_be_read_again and hasattr(slot.receiver, "reload"):
        return False
    return bool(slot.secrets != revealed_secrets(settings, name))
