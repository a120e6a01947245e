"""The derivers of one process: how they are told from other processors, how they hang together, and in which order they drain.

A deriver stands under `processors:` like any processor; it is known by its `take` and `tick`. It reads the log as a group of its own name.
Not here: the loop that runs one (`delivery/derive.py`), start, stop and reload of the whole (`pipeline.py`, `reload.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from emp_pipe.component import ComponentConfig, Wiring
from emp_pipe.delivery.derive_parts import DeriveLoops
from emp_pipe.errors import ConfigError, EmpPipeError, ErrorKind
from emp_pipe.log.protocol import Delivery, GroupSpec, Log, Topic
from emp_pipe.logs import get_logger
from emp_pipe.registry import type_of

_HAND_ON_BYTES = 4 << 20
_UNREADABLE_S = 5.0
_logger = get_logger("pipeline")


@dataclass(slots=True)
class DeriverSlot:
    """A deriver's loop, what it was built with, and its task; `failure` is set when it ended by an error."""

    loop: DeriveLoops
    config: ComponentConfig
    wiring: Wiring
    secrets: tuple[int, ...] = ()
    task: asyncio.Task[None] | None = None
    failure: EmpPipeError | None = None

    @property
    def group(self) -> GroupSpec:
        return GroupSpec(self.loop.group, self.loop.deriver.reads)


def is_deriver(component: Any) -> bool:
    """Return whether a processor's class is a deriver's."""
    return callable(getattr(component, "take", None)) and callable(getattr(component, "tick", None))


def wiring_of(processors: Iterable[str]) -> Wiring:
    """Return what a processor is told of the others, by the ids of all."""
    types = {type_of(name) for name in processors}
    return Wiring("red_metrics" in types, "tail_sample" in types, "aggregate" in types)


def check(slots: Mapping[str, DeriverSlot], exporter_topics: frozenset[Topic], exporters: Iterable[str]) -> None:
    """Raise ConfigError where derivers do not fit together, or make what nobody reads."""
    read = exporter_topics.union(*(slot.loop.deriver.reads for slot in slots.values()))
    for name, slot in slots.items():
        if name in exporters:
            raise _unfit(name, "a processor and an exporter have the same id, and each is a group of the buffer", "rename one of them")
        writes = slot.loop.deriver.writes
        if not writes & read:
            what = " and ".join(sorted({topic.partition(".")[0] for topic in writes}))
            raise _unfit(name, f"it makes {what}, and nothing here takes {what}", f"add an exporter that takes {what}, or remove {name}")
    waves(slots)


def _unfit(name: str, detail: str, advice: str) -> ConfigError:
    return ConfigError(ErrorKind.CONFIG_INVALID, place=f"processors.{name}", detail=detail, advice=advice)


def waves(slots: Mapping[str, DeriverSlot]) -> list[list[DeriverSlot]]:
    """Return the derivers in the order in which they drain: one that reads what another writes comes in a later wave.

    Raises ConfigError where they go round in a circle."""
    left = dict(slots)
    found: list[list[DeriverSlot]] = []
    while left:
        first = [
            name for name, slot in left.items() if not any(other.loop.deriver.writes & slot.loop.deriver.reads for other in left.values())
        ]
        if not first:
            names = ", ".join(sorted(left))
            raise _unfit(next(iter(left)), f"{names} read what they write, in a circle", "let each write a topic that comes later")
        found.append([left.pop(name) for name in first])
    return found


async def drain(slots: Mapping[str, DeriverSlot], deadline_monotonic_s: float, leaving: frozenset[str] = frozenset()) -> None:
    """Let all derivers end what they can, those first whose output others read. `leaving`: those that nobody of their name follows."""
    for wave in waves(slots):
        await asyncio.gather(*(slot.loop.drain(deadline_monotonic_s, leaving=slot.loop.id in leaving) for slot in wave))


def leaving(before: Sequence[GroupSpec], after: Sequence[GroupSpec]) -> list[GroupSpec]:
    """Return the groups of derivers that are not in `after` and that a log must still have for `hand_on`.

    What nobody would read where it is handed on to is left out: it is given up when the log is given its groups, counted and said."""
    names = {spec.name for spec in after}
    read = frozenset(topic for spec in after for topic in spec.topics)
    kept = []
    for spec in before:
        topics = frozenset(topic for topic in spec.topics if topic.derived != topic and topic.derived in read)
        if spec.name not in names and topics:
            kept.append(replace(spec, topics=topics))
    return kept


async def open_log(log: Log, groups: Sequence[GroupSpec], written: Mapping[str, frozenset[Topic]], stopping: Callable[[], bool]) -> bool:
    """Open the log for `groups`; what derivers held that are not among them any more is handed on (`hand_on`) before anything runs.

    Return False where a stop was asked for meanwhile: nothing may be started then, and the next start goes on with it. A log that can go
    on while what it stands on is away (`open_by`) does so later, before it gives anybody anything to read."""
    opening = partial(_open_log, groups=groups, written=written, stopping=stopping)
    open_by = getattr(log, "open_by", None)
    return bool(await (opening(log) if open_by is None else open_by(opening)))


async def _open_log(log: Log, groups: Sequence[GroupSpec], written: Mapping[str, frozenset[Topic]], stopping: Callable[[], bool]) -> bool:
    before: list[GroupSpec] = []

    def with_leaving(stored: Sequence[GroupSpec]) -> list[GroupSpec]:
        before[:] = stored
        return [*groups, *leaving(stored, groups)]

    await log.open(with_leaving)
    if leaving(before, groups):
        if not await hand_on(log, before, groups, written, stopping):
            return False
        await log.set_groups(groups)
    return True


async def hand_on(
    log: Log,
    before: Sequence[GroupSpec],
    after: Sequence[GroupSpec],
    written: Mapping[str, frozenset[Topic]],
    stopping: Callable[[], bool] = lambda: False,
) -> bool:
    """Hand what derivers that leave have not ended to those who read what they wrote: unsampled, unmerged, and not lost.

    The log has the groups `after` and those that are `leaving`. `written`: what the derivers of `after` write; what one of them holds and
    would write there is its to end. Return False where it was cut short by `stopping`: the rest is still there for the next start."""
    for part in [log] if len(log.parts) == 1 else [part for part in log.parts if part.ours]:
        for spec in leaving(before, after):
            heirs = {other.name for other in after for topic in other.topics & spec.topics if topic.derived in written.get(other.name, ())}
            if any(spec.name in (by := _carriers(before, topic)) and not by & heirs for topic in spec.topics):
                red = {other.name for other in before if type_of(other.name) == "red_metrics" and other.topics & spec.topics} - {spec.name}
                await _hand_on_of(part, spec.name, heirs, red, stopping)
    return not stopping()


async def _hand_on_of(log: Log, group: str, heirs: set[str], red: set[str], stopping: Callable[[], bool]) -> None:
    """Hand on what one deriver left in one part of a log."""
    left, handed = _held_blocks(log, group), 0  # what comes meanwhile is others': under traffic it never ends
    while left > 0 and not stopping() and (deliveries := await _next(log, group)):
        offsets = [delivery.offset for delivery in deliveries]
        inherited = await _held_by(log, heirs, offsets)
        uncounted = set(offsets) if not red else await _held_by(log, red, offsets)
        outputs = [
            one.block.with_topic(Topic(one.topic).derived.value).with_flags(red_done=one.block.red_done or one.offset not in uncounted)
            for one in deliveries
            if one.offset not in inherited
        ]
        await log.commit(group, acks=deliveries, outputs=outputs)
        left -= len(deliveries)
        handed += len(outputs)
    if handed:
        _logger.warning("%s: handed on %d blocks that it had not come to", group, handed)


def written_by(slots: Mapping[str, DeriverSlot]) -> dict[str, frozenset[Topic]]:
    return {name: slot.loop.deriver.writes for name, slot in slots.items()}


def _carriers(groups: Sequence[GroupSpec], topic: Topic) -> frozenset[str]:
    """Return who passes on what lies under a topic: the sampler, or where there is none, all who read it."""
    readers = frozenset(spec.name for spec in groups if topic in spec.topics)
    return frozenset(name for name in readers if type_of(name) == "tail_sample") or readers


def _held_blocks(log: Log, group: str) -> int:
    return next((usage.held_blocks for usage in log.usage().groups if usage.spec.name == group), 0)


async def _held_by(log: Log, groups: Iterable[str], offsets: Sequence[int]) -> set[int]:
    held: set[int] = set()
    for group in groups:
        held |= await log.held_by(group, offsets)
    return held


async def _next(log: Log, group: str) -> list[Delivery]:
    """Return blocks of a group; a read may give none though there are more, where all that it met cannot be read."""
    while _held_blocks(log, group):
        if deliveries := await log.read(group, _HAND_ON_BYTES):
            return deliveries
        try:
            async with asyncio.timeout(_UNREADABLE_S):
                await log.wait_readable(group)
        except TimeoutError:
            break
    return []


async def stop(slots: Iterable[DeriverSlot], deadline_monotonic_s: float) -> None:
    await asyncio.gather(*(slot.loop.stop(deadline_monotonic_s) for slot in slots))
