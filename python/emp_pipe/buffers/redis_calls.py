"""What each operation asks the script: its arguments, keys and payloads. The other half of `redis_script_*.lua`, name by name.

Numbers that may pass 2^53 (times, offsets) go as text: Lua's are doubles. Not here: what follows from the replies (`redis_effects.py`),
how they get there (`redis_queue.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgpack  # type: ignore[import-untyped]

from emp_pipe.buffers.redis_keys import Keys, View, render_spec
from emp_pipe.buffers.redis_link import Call
from emp_pipe.log.group_ledger import Ending, Entry
from emp_pipe.log.protocol import Append, ChunkKey, DeadLetter, GroupSpec, Revival

if TYPE_CHECKING:
    from emp_pipe._core import Block

_BOOKS = ("received", "appended", "invalid", "refused", "dropped", "duplicate")


@dataclass(frozen=True, slots=True)
class DeadLimits:
    """What dead letters may take before the oldest go."""

    max_bytes: int
    max_age_s: float

    def arguments(self, now: int) -> dict[str, Any]:
        return {"dead_max_bytes": self.max_bytes, "dead_oldest": str(now - int(self.max_age_s * 1e9))}


class Calls:
    """Builds calls for one shard as its view is at that moment."""

    def __init__(self, keys: Keys, view: View, dead_limits: Callable[[], DeadLimits]) -> None:
        self.keys = keys
        self.view = view
        self.dead_limits = dead_limits

    def _common(self, now: int, **arguments: Any) -> dict[str, Any]:
        return {"now": str(now), "version": self.view.groups_version, **self.dead_limits().arguments(now), **arguments}

    def _all_keys(self) -> list[str]:
        return [*self.keys.streams, *self.keys.of_groups(self.view.specs)]

    def _blocks(self, blocks: Iterable[Block]) -> tuple[list[dict[str, Any]], list[bytes | memoryview]]:
        described: list[dict[str, Any]] = []
        payloads: list[bytes | memoryview] = []
        for block in blocks:
            header = block.header
            described.append(
                {
                    "topic": block.topic,
                    "size": len(header) + block.payload_bytes,
                    "records": block.records,
                    "groups": self.view.readers[block.topic],
                }
            )
            payloads += [header, memoryview(block)]
        return described, payloads

    def read_blocks(self, blocks: Iterable[Block]) -> list[Block]:
        """Return the blocks that some group reads: only they are written."""
        return [block for block in blocks if self.view.readers.get(block.topic)]

    def append(self, append: Append, now: int, checkpoint_epoch: int, once: Mapping[str, ChunkKey] | None = None) -> Call:
        """`once`: by block id, under which key a block is remembered, so that it is filed once."""
        once = once or {}
        blocks = self.read_blocks(append.blocks)
        described, payloads = self._blocks(blocks)
        letters, more = _letters([(0, letter) for letter in append.dead], now)
        seen = [self.keys.chunk(chunk) for chunk in append.chunks]
        keys = self._all_keys()
        known = [self.keys.chunk(once[block.block_id]) for block in blocks if block.block_id in once]
        numbers = iter(range(len(self.keys.fixed) + len(keys) + len(seen) + 1, 1 << 30))
        for block, about in zip(blocks, described, strict=True):
            if block.block_id in once:
                about["once"] = next(numbers)
        arguments = self._common(
            now,
            blocks=described,
            letters=letters,
            books=[[one.receiver, what, number] for one in append.books for what in _BOOKS if (number := getattr(one, what))],
            checkpoints=dict(append.checkpoints),
            checkpoint_epoch=checkpoint_epoch,
            first_chunk=len(self.keys.fixed) + len(keys) + 1,
            chunks=len(seen),
        )
        return Call("append", arguments, [*keys, *seen, *known], [*payloads, *more])

    def commit(
        self,
        group: str,
        now: int,
        endings: Sequence[Ending],
        outputs: Sequence[Block],
        state_puts: Mapping[str, bytes],
        expires: int | None,
        state_deletes: Sequence[str],
    ) -> Call:
        described, payloads = self._blocks(self.read_blocks(outputs))
        letters, more = _letters([(place, letter) for place, ending in enumerate(endings, 1) for letter in ending.letters], now)
        arguments = self._common(
            now,
            epoch=self.view.epoch,
            group=group,
            derives=bool(outputs or state_puts or state_deletes),
            endings=[_ending(ending) for ending in endings],
            blocks=described,
            letters=letters,
            puts=[part for pair in state_puts.items() for part in pair],
            expires=str(expires or 0),
            deletes=list(state_deletes),
            readers={ending.entry.topic: self.view.readers.get(ending.entry.topic, []) for ending in endings},
        )
        return Call("commit", arguments, self._all_keys(), [*payloads, *more])

    # groups

    def groups(self, wanted: Sequence[GroupSpec], now: int, retire_after_s: float) -> Call:
        """Name the groups of the configuration. Without the lease nobody is retired."""
        known, names = self.view.specs, {spec.name: spec for spec in wanted}
        readers: dict[str, list[str]] = {}
        places = self.view.places | {
            name: place
            for place, name in enumerate((name for name in names if name not in known), max(self.view.places.values(), default=0) + 1)
        }
        for name in known.keys() | names.keys():
            for topic in {*_topics(known.get(name)), *_topics(names.get(name))}:
                readers.setdefault(topic, []).append(name)

        def described(name: str, spec: GroupSpec | None) -> dict[str, Any]:
            before, now_read = _topics(known.get(name)), _topics(spec)
            removed = sorted(before - now_read)
            return {
                "name": name,
                "spec": render_spec(spec, places[name]) if spec is not None else "",
                "oldest": spec is not None and spec.start == "oldest",
                "added": sorted(now_read - before),
                "removed": removed,
                "heirs": {topic: [heir for heir, its in names.items() if _inherits(topic, its, known.get(heir))] for topic in removed},
            }

        arguments = self._common(
            now,
            wanted=[described(name, spec) for name, spec in names.items()],
            absent=[described(name, None) for name in known if name not in names],
            readers=readers,
        )
        if self.view.epoch:
            arguments |= {"epoch": self.view.epoch, "retire_after": retire_after_s * 1e9}
        return Call("groups", arguments, [*self.keys.streams, *self.keys.of_groups(known.keys() | names.keys())])

    def reset(self, group: str, now: int, *, oldest: bool, up_to: str) -> Call:
        return self._of_group("reset", group, now, oldest=oldest, up_to=up_to)

    def drop(self, group: str, now: int) -> Call:
        return self._of_group("drop", group, now)

    def _of_group(self, name: str, group: str, now: int, **more: Any) -> Call:
        topics = sorted(_topics(self.view.specs[group]))
        arguments = self._common(now, epoch=self.view.epoch, group=group, topics=topics, readers=self.view.readers, **more)
        return Call(name, arguments, self._all_keys())

    # space

    def trim(self, group: str, now: int, in_flight: Iterable[int], quota_bytes: int, limit: int) -> Call:
        spec = self.view.specs[group]
        oldest = 0 if spec.quota_age_s is None else now - int(spec.quota_age_s * 1e9)
        arguments = self._common(
            now,
            epoch=self.view.epoch,
            group=group,
            in_flight=[str(offset) for offset in in_flight],
            quota_bytes=quota_bytes,
            oldest=str(oldest),
            limit=limit,
            readers={topic.value: self.view.readers[topic.value] for topic in spec.topics},
        )
        return Call("trim", arguments, self._all_keys())

    def relieve(self, now: int, in_flight: Iterable[int], wanted_bytes: int, after: str, limit: int) -> Call:
        arguments = self._common(
            now,
            epoch=self.view.epoch,
            in_flight=[str(offset) for offset in in_flight],
            wanted=wanted_bytes,
            after=after,
            limit=limit,
            required=[name for name, spec in self.view.specs.items() if spec.required],
            optional=[name for name, spec in self.view.specs.items() if not spec.required],
            readers=self.view.readers,
        )
        return Call("relieve", arguments, self._all_keys())

    # dead letters, upkeep

    def delete_dead(self, ids: Sequence[int], now: int) -> Call:
        return Call("delete_dead", self._common(now, ids=[str(id) for id in ids]))

    def revive(self, revivals: Sequence[Revival], now: int) -> Call:
        usable = [one for one in revivals if one.group in self.view.readers.get(one.block.topic, ())]
        described, payloads = self._blocks(one.block for one in usable)
        for one, block in zip(usable, described, strict=True):
            block |= {"id": str(one.id), "group": one.group}
        return Call("revive", self._common(now, blocks=described), self._all_keys(), payloads)

    def expire(self, now: int) -> Call:
        return Call("expire", self._common(now, epoch=self.view.epoch, groups=list(self.view.specs)), self._all_keys())

    # reads

    def look(self, after: int | None, limit: int) -> Call:
        arguments: dict[str, Any] = {
            "known_version": self.view.groups_version,
            "names": list(self.view.specs),
            "readers": self.view.readers,
        }
        if after is not None:
            arguments |= {"after": str(after), "limit": limit}
        return Call("look", arguments, self._all_keys())

    def fetch(self, group: str, offsets: Sequence[int], after: int, up_to: int, max_bytes: int) -> Call:
        arguments = {
            "epoch": self.view.epoch,
            "group": group,
            "offsets": [str(offset) for offset in offsets],
            "after": str(after),
            "up_to": str(up_to),
            "max_bytes": max_bytes,
        }
        return Call("fetch", arguments, [*self.keys.streams, self.keys.held(group)])


def _topics(spec: GroupSpec | None) -> set[str]:
    return {topic.value for topic in spec.topics} if spec is not None else set()


def _inherits(topic: str, heir: GroupSpec, before: GroupSpec | None) -> bool:
    """Return whether what another group leaves of a topic is not lost while this one holds it: it has just begun to read the topic, or
    it is a deriver like the other."""
    return topic in _topics(heir) and (topic.endswith(".in") or topic not in _topics(before))


def _ending(ending: Ending) -> dict[str, Any]:
    entry: Entry = ending.entry
    return {
        "offset": str(entry.offset),
        "topic": entry.topic,
        "size": entry.size_bytes,
        "records": entry.records,
        "skipped": ending.skipped,
        "dead": ending.dead,
    }


def _letters(letters: Iterable[tuple[int, DeadLetter]], now: int) -> tuple[list[dict[str, Any]], list[bytes | memoryview]]:
    described: list[dict[str, Any]] = []
    payloads: list[bytes | memoryview] = []
    for ending, letter in letters:
        about = [letter.component, letter.reason.value, letter.detail, letter.records, letter.peer, letter.offset, letter.attempts]
        fields = (letter.count.size_bytes, letter.records, now, letter.time_unix_nano, letter.reason.value, letter.component)
        described.append(
            {
                "ending": ending,
                "about": msgpack.packb([*about, letter.time_unix_nano]),
                "fields": "\x1f".join(str(field) for field in fields),
            }
        )
        payloads += [letter.header, letter.payload]
    return described, payloads
