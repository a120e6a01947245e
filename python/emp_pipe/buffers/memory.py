"""The log in plain memory: for tests and benchmarks. Nothing survives the process, and it says so.

It keeps every other promise of `log/protocol.py`; the contract suite runs over it. An append costs a few microseconds a block: what a
benchmark measures with it is the rest of the pipeline. Read next: `sqlite.py`, the durable one.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from emp_pipe.clock import SteadyClock
from emp_pipe.component import ComponentConfig, Context
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.group_ledger import Entry, GroupLedger
from emp_pipe.log.ledger import Ledger
from emp_pipe.log.protocol import (
    Append,
    Appended,
    ChunkKey,
    DeadFilter,
    DeadLetter,
    Delivery,
    GroupBooks,
    Groups,
    GroupSpec,
    LossReason,
    OfOnePiece,
    ReceiverBooks,
    Rejection,
    Revival,
    Usage,
)
from emp_pipe.logs import get_logger

if TYPE_CHECKING:
    from emp_pipe._core import Block

_log = get_logger("memory")

_CHUNK_MEMORY_NS = 3600 * 1_000_000_000


class MemoryConfig(ComponentConfig):
    """Settings of the buffer that forgets."""

    max_bytes: PositiveInt = Field(256 << 20, description="What the buffer may hold; 15 % of it is kept for draining.")
    dead_max_bytes: PositiveInt = Field(16 << 20, description="What dead letters may take; the oldest go first.")
    dead_max_age_s: PositiveFloat = Field(7 * 86400.0, description="How long dead letters are kept.")


class _Stored:
    """A block and how many groups have not ended it."""

    __slots__ = ("block", "entry", "readers")

    def __init__(self, block: Block, entry: Entry, readers: int) -> None:
        self.block = block
        self.entry = entry
        self.readers = readers


class MemoryLog(OfOnePiece):
    """A `Log` that keeps everything in Python structures."""

    def __init__(self, id: str, config: MemoryConfig, context: Context) -> None:
        self.id = id
        self.config = config
        self._clock = SteadyClock(context.clock)  # ages and times to live hold when the wall clock is set
        self._ledger = Ledger(max_bytes=config.max_bytes, reserve_share=0.15, dead_max_bytes=config.dead_max_bytes)
        self._blocks: dict[int, _Stored] = {}
        self._unread: dict[str, deque[int]] = {}
        self._next_offset = 1
        self._next_dead = 1
        self._checkpoints: dict[str, bytes] = {}
        self._state: dict[tuple[str, str], tuple[bytes, int | None]] = {}
        self._chunks: OrderedDict[ChunkKey, int] = OrderedDict()
        self._dead: OrderedDict[int, tuple[int, DeadLetter]] = OrderedDict()
        self._open = False

    @property
    def durability(self) -> str:
        return "memory: nothing survives a stop, a crash or a power cut; for tests and benchmarks"

    @property
    def admitting(self) -> bool:
        return self._ledger.admitting

    async def open(self, groups: Groups | None) -> None:
        self._open = True
        known = [group.spec for group in self._ledger.groups.values()]
        await self.set_groups(groups(known) if callable(groups) else groups or ())

    async def set_groups(self, groups: Sequence[GroupSpec]) -> None:
        self._check_open()
        ledger = self._ledger
        for spec in groups:
            group = ledger.groups.get(spec.name)
            added = spec.topics - (group.spec.topics if group else set())
            if group is None:
                group = ledger.add_group(spec)
                self._unread[spec.name] = deque()
            else:
                for offset in [*self._waiting(group), *group.in_flight]:
                    if self._blocks[offset].entry.topic not in spec.topics:
                        self._lose(group, offset, LossReason.GROUP_DROPPED)
                ledger.set_spec(group, spec)
            if spec.start == "oldest":
                self._refill(group, added)
        for name in ledger.groups.keys() - {spec.name for spec in groups}:
            _log.warning("group %s was retired: the configuration does not name it; should it return, it begins anew", name)
            await self.drop_group(name)

    def _refill(self, group: GroupLedger, topics: Collection[str]) -> None:
        """Let a group read what is held of topics and it does not hold yet."""
        unread = self._unread[group.spec.name]
        held = {*self._waiting(group), *group.in_flight}
        for offset, stored in self._blocks.items():
            if offset not in held and stored.entry.topic in topics:
                stored.readers += 1
                self._ledger.file(stored.entry, [group])
                unread.append(offset)
        self._unread[group.spec.name] = deque(sorted(unread))

    async def close(self, deadline_monotonic_s: float) -> None:
        self._open = False
        self._ledger.stop_reason = "emp-pipe is stopping"
        self._ledger.recompute(self._clock.unix_nano())

    def _check_open(self) -> None:
        if not self._open:
            raise LogError(ErrorKind.LOG_CLOSED, place=self.id)

    async def append(self, append: Append) -> Appended:
        self._check_open()
        ledger = self._ledger
        if not ledger.admitting:
            raise LogError(ErrorKind.LOG_FULL, place=self.id, detail=ledger.reason)
        now = self._clock.unix_nano()
        weighed = [_weigh(block) for block in append.blocks]  # may raise: then nothing has happened
        offsets = [self._store(*one, now) for one in weighed]
        if append.checkpoints:
            self._checkpoints.update(append.checkpoints)
        for chunk in append.chunks:
            self._chunks[chunk] = now
        if append.dead:
            self._bury(append.dead, now)
        ledger.received(append.books)
        self._settle(now)
        return Appended(offsets)

    def _store(self, block: Block, topic: str, size_bytes: int, records: int, now: int) -> int:
        readers = self._ledger.readers.get(topic)
        if not readers:
            return -1
        offset = self._keep(block, Entry(self._next_offset, topic, size_bytes, records, now), readers)
        self._ledger.file(self._blocks[offset].entry)
        return offset

    def _keep(self, block: Block, entry: Entry, readers: Sequence[GroupLedger]) -> int:
        self._next_offset += 1
        self._blocks[entry.offset] = _Stored(block, entry, len(readers))
        for group in readers:
            self._unread[group.spec.name].append(entry.offset)
        return entry.offset

    def _settle(self, now: int) -> None:
        """After any change: what is past its quota goes, then admission is said anew."""
        ledger = self._ledger
        for group in ledger.groups.values():
            if not group.spec.required and group.past_quota(now):
                self._trim(group, now)
        if not ledger.has_space:
            self._relieve()
        ledger.recompute(now)

    def _trim(self, group: GroupLedger, now: int) -> None:
        spec = group.spec
        for offset in self._waiting(group):
            entry = self._blocks[offset].entry
            too_old = spec.quota_age_s is not None and now - entry.appended_unix_nano > spec.quota_age_s * 1e9
            if group.held_bytes <= spec.quota_bytes and not too_old:
                return
            self._lose(group, offset, LossReason.QUOTA)

    def _waiting(self, group: GroupLedger) -> list[int]:
        """Offsets that the group holds and nobody is sending, oldest first."""
        return sorted(offset for offset, _ in group.deferred) + list(self._unread[group.spec.name])

    def _relieve(self) -> None:
        """Rather than stop receivers, give up the oldest blocks that only best-effort groups still hold."""
        if all(group.spec.required for group in self._ledger.groups.values()):
            return
        needed: set[int] = set()
        optional: dict[int, list[GroupLedger]] = {}
        for group in self._ledger.groups.values():
            waiting = self._waiting(group)
            if group.spec.required:
                needed.update(waiting)
            else:
                for offset in waiting:
                    optional.setdefault(offset, []).append(group)
            needed.update(group.in_flight)
        for offset in sorted(optional.keys() - needed):
            if self._ledger.has_space:
                return
            for group in optional[offset]:
                self._lose(group, offset, LossReason.QUOTA)

    def _lose(self, group: GroupLedger, offset: int, reason: LossReason) -> None:
        unread = self._unread[group.spec.name]
        if unread and unread[0] == offset:
            unread.popleft()
        elif offset in unread:
            unread.remove(offset)
        self._ledger.lose(group, self._blocks[offset].entry, reason)
        self._free(offset)

    def _free(self, offset: int) -> None:
        stored = self._blocks[offset]
        stored.readers -= 1
        if not stored.readers:
            del self._blocks[offset]
            self._ledger.held_bytes -= stored.entry.size_bytes

    def _bury(self, letters: Iterable[DeadLetter], now: int) -> None:
        ledger = self._ledger
        for letter in letters:
            self._dead[self._next_dead] = (now, letter)
            self._next_dead += 1
            ledger.dead_added(letter.count)
        oldest_allowed = now - int(self.config.dead_max_age_s * 1e9)
        while self._dead:
            first_id, (stored_unix_nano, first) = next(iter(self._dead.items()))
            if ledger.dead_bytes <= self.config.dead_max_bytes and stored_unix_nano >= oldest_allowed:
                break
            del self._dead[first_id]
            ledger.dead_removed(first.count, LossReason.DEAD_LIMIT)

    async def seen(self, chunks: Sequence[ChunkKey]) -> set[ChunkKey]:
        oldest_kept = self._clock.unix_nano() - _CHUNK_MEMORY_NS
        while self._chunks and next(iter(self._chunks.values())) < oldest_kept:
            self._chunks.popitem(last=False)
        return {chunk for chunk in chunks if chunk in self._chunks}

    async def read(self, group: str, max_bytes: int, owner: str = "") -> list[Delivery]:
        self._check_open()
        ledger = self._ledger.groups.get(group)
        deliveries: list[Delivery] = []
        if ledger is None:
            return deliveries
        unread = self._unread[group]
        budget = max_bytes
        while ledger.deferred or unread:
            offset = ledger.deferred[0][0] if ledger.deferred else unread[0]
            stored = self._blocks[offset]
            budget -= stored.block.payload_bytes
            if budget < 0 and deliveries:
                break
            if ledger.deferred:
                heapq.heappop(ledger.deferred)
            else:
                unread.popleft()
            deliveries.append(self._ledger.hand_out(ledger, stored.entry, stored.block))
        if not unread:
            ledger.cursor = ledger.last
        return deliveries

    async def wait_readable(self, group: str) -> None:
        await self._ledger.wait_readable(group)

    async def commit(
        self,
        group: str,
        *,
        acks: Sequence[Delivery] = (),
        skipped_records: Mapping[int, int] | None = None,
        rejections: Sequence[Rejection] = (),
        outputs: Sequence[Block] = (),
        state_puts: Mapping[str, bytes] | None = None,
        state_ttl_s: float | None = None,
        state_deletes: Sequence[str] = (),
    ) -> None:
        self._check_open()
        endings = self._ledger.endings(group, acks, rejections, skipped_records or {}, derives=bool(outputs or state_puts or state_deletes))
        if outputs and not endings and not self._ledger.has_space:
            raise LogError(ErrorKind.LOG_FULL, place=self.id, detail="the reserve is kept for commits that also ack")
        now = self._clock.unix_nano()
        weighed = [_weigh(block) for block in outputs]
        for ending in endings:
            self._ledger.end(self._ledger.groups[group], ending)
            self._free(ending.entry.offset)
            if ending.letters:
                self._bury(ending.letters, now)
        for one in weighed:
            self._store(*one, now)
        expires = None if state_ttl_s is None else now + int(state_ttl_s * 1e9)
        for key in state_deletes:
            self._state.pop((group, key), None)
        for key, value in (state_puts or {}).items():
            self._state[group, key] = (value, expires)
        self._settle(now)

    def defer(self, deliveries: Sequence[Delivery]) -> None:
        self._ledger.defer(deliveries)
        self._settle(self._clock.unix_nano())

    async def held_by(self, group: str, offsets: Sequence[int]) -> set[int]:
        self._check_open()
        ledger = self._ledger.groups.get(group)
        return set() if ledger is None else {*self._waiting(ledger), *ledger.in_flight}.intersection(offsets)

    async def state_get(self, group: str, key: str) -> bytes | None:
        return (await self.state_items(group, key)).get(key)

    async def state_items(self, group: str, prefix: str = "") -> dict[str, bytes]:
        now = self._clock.unix_nano()
        for stale in [name for name, (_, expires) in self._state.items() if expires is not None and expires <= now]:
            del self._state[stale]
        return {key: value for (owner, key), (value, _) in self._state.items() if owner == group and key.startswith(prefix)}

    async def checkpoint_get(self, name: str) -> bytes | None:
        return self._checkpoints.get(name)

    async def receiver_books(self) -> list[ReceiverBooks]:
        return list(self._ledger.receivers.values())

    async def group_books(self) -> list[GroupBooks]:
        return list(self._ledger.books.values())

    def usage(self) -> Usage:
        return self._ledger.usage(self._clock.set_by_ns())

    async def wait_admitting(self) -> None:
        await self._ledger.wait_admitting()

    async def reset_group(self, group: str, start: Literal["oldest", "newest"]) -> None:
        ledger = self._ledger.groups[group]
        if start == "newest":
            for offset in [*self._waiting(ledger), *ledger.in_flight]:
                self._lose(ledger, offset, LossReason.GROUP_RESET)
        else:
            self._refill(ledger, ledger.spec.topics)
            self._unread[group] = deque(sorted({*self._waiting(ledger), *ledger.in_flight}))
        oldest = self._unread[group][0] if self._unread[group] else None
        now = self._clock.unix_nano()
        self._ledger.rewind(ledger, 0 if oldest else ledger.last, self._blocks[oldest].entry.appended_unix_nano if oldest else now)
        self._settle(self._clock.unix_nano())

    async def drop_group(self, group: str) -> None:
        ledger = self._ledger.groups[group]
        for offset in sorted({*self._waiting(ledger), *ledger.in_flight}):
            self._lose(ledger, offset, LossReason.GROUP_DROPPED)
        self._ledger.remove_group(group)
        del self._unread[group]
        self._state = {key: value for key, value in self._state.items() if key[0] != group}
        self._settle(self._clock.unix_nano())

    async def dead_letters(self, limit: int = 100, after_id: int = 0, which: DeadFilter | None = None) -> list[tuple[int, DeadLetter]]:
        which = which or DeadFilter()
        return [(id, letter) for id, (_, letter) in self._dead.items() if id > after_id and which.matches(id, letter)][:limit]

    async def delete_dead_letters(self, ids: Sequence[int]) -> int:
        deleted = [id for id in dict.fromkeys(ids) if id in self._dead]
        for id in deleted:
            self._forget_dead(id)
        self._settle(self._clock.unix_nano())
        return len(deleted)

    def _forget_dead(self, id: int) -> None:
        _, letter = self._dead.pop(id)
        self._ledger.dead_removed(letter.count, None)

    async def revive_dead_letters(self, revivals: Sequence[Revival]) -> list[int]:
        self._check_open()
        now = self._clock.unix_nano()
        revived = []
        for id, name, (block, topic, size_bytes, records) in [(one.id, one.group, _weigh(one.block)) for one in revivals]:
            readers = [group for group in self._ledger.readers.get(topic, ()) if group.spec.name == name]
            if readers and id in self._dead:
                self._forget_dead(id)
                entry = Entry(self._next_offset, topic, size_bytes, records, now)
                self._keep(block, entry, readers)
                self._ledger.held_bytes += size_bytes
                self._ledger.file(entry, readers)
                revived.append(id)
        self._settle(now)
        return revived


def _weigh(block: Block) -> tuple[Block, str, int, int]:
    return block, block.topic, block.payload_bytes + len(block.header), block.records


CONFIG = MemoryConfig
COMPONENT = MemoryLog
