"""The derivers of one process: how they are told from other processors, how they hang together, and in which order they drain.

A deriver stands under `processors:` like any processor; it is known by its `take` and `tick`. It reads the log as a group of its own name.
Not here: the loop that runs one (`delivery/derive.py`), start, stop and reload of the whole (`pipeline.py`, `reload.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from emp_pipe.component import ComponentConfig, Wiring
from emp_pipe.delivery.derive import DeriveLoop
from emp_pipe.errors import ConfigError, EmpPipeError, ErrorKind
from emp_pipe.log.protocol import GroupSpec, Log, Topic
from emp_pipe.logs import get_logger
from emp_pipe.registry import type_of

_HAND_ON_BYTES = 4 << 20
_BEFORE = ".in"
_logger = get_logger("pipeline")


@dataclass(slots=True)
class DeriverSlot:
    """A deriver's loop, what it was built with, and its task; `failure` is set when it ended by an error."""

    loop: DeriveLoop
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


async def hand_on(log: Log, slots: Iterable[DeriverSlot], read: frozenset[Topic]) -> None:
    """Hand what derivers that leave have not ended to those who read what they wrote: unsampled, unmerged, and not lost.

    `read`: the topics that will be read. Where another deriver reads the same, it finds itself what this one had not taken."""
    for slot in slots:
        group, others_read = slot.loop.group, bool(slot.group.topics & read)
        while deliveries := await log.read(group, _HAND_ON_BYTES):
            ours = [one for one in deliveries if not others_read or one.offset <= slot.loop.drained_through]
            outputs = [delivery.block.with_topic(delivery.topic.removesuffix(_BEFORE)) for delivery in ours]
            await log.commit(group, acks=ours, outputs=outputs)
            if ours:
                _logger.warning("%s: handed on %d blocks that it had not come to", group, len(ours))
            if len(ours) < len(deliveries):
                break


async def stop(slots: Iterable[DeriverSlot], deadline_monotonic_s: float) -> None:
    await asyncio.gather(*(slot.loop.stop(deadline_monotonic_s) for slot in slots))
