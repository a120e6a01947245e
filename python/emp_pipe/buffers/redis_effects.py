"""What a reply means for the ledger: each function takes one kind of operation in, once it took effect.

`Taking` says how: a snapshot that was loaded after it has counted it already; where another process changed the shard in between, what
lies above the last known offset is left to the look that follows. So both equations of the books hold after every reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from emp_pipe.buffers.redis_queue import Taking
from emp_pipe.buffers.redis_snapshot import Look, parse_entry
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.group_ledger import Ending, Entry
from emp_pipe.log.ledger import DEAD_READER, DEAD_TOPIC, Ledger
from emp_pipe.log.protocol import Append, DeadCount, DeadLetter, DeadReason, GroupSpec, LossReason
from emp_pipe.log.reading import Reading
from emp_pipe.logs import get_logger

if TYPE_CHECKING:
    from emp_pipe._core import Block

_log = get_logger("redis")


class Effects:
    """Takes replies into one shard's ledger."""

    def __init__(self, ledger: Ledger, reading: Reading, known_offset: int) -> None:
        self._ledger = ledger
        self._reading = reading
        self.known_offset = known_offset
        """All blocks up to it have been counted."""

    # what was added

    def _filed(self, offsets: Sequence[bytes], blocks: Sequence[Block], now: int, taking: Taking) -> list[int]:
        filed = []
        for offset, block in zip(offsets, blocks, strict=True):
            if offset == b"-1":  # it had been filed before
                filed.append(-1)
                continue
            entry = Entry(int(offset), block.topic, len(block.header) + block.payload_bytes, block.records, now)
            filed.append(entry.offset)
            if taking.complete:
                self._reading.filed(entry, block)
                self._ledger.file(entry)
                self.known_offset = entry.offset
        return filed

    def _buried(self, letters: Sequence[DeadLetter], removed: Sequence[Any], taking: Taking) -> None:
        if taking.complete:
            for letter in letters:
                self._ledger.dead_added(letter.count)
            self.dead_gone(removed, LossReason.DEAD_LIMIT, taking)

    def dead_gone(self, removed: Sequence[Any], reason: LossReason | None, taking: Taking) -> int:
        """Take deleted dead letters in; return how many there were."""
        if taking.complete:
            for component, why, records, size_bytes in removed:
                self._ledger.dead_removed(DeadCount(component.decode(), DeadReason(why.decode()), 1, records, size_bytes), reason)
        return len(removed)

    def appended(self, reply: list[Any], taking: Taking, append: Append, blocks: Sequence[Block], now: int) -> list[int]:
        _, _, offsets, removed = reply
        if taking.complete:
            self._ledger.received(append.books)
        self._buried(append.dead, removed, taking)
        return self._filed(offsets, blocks, now, taking)

    # what ended

    def committed(
        self, reply: list[Any], taking: Taking, group: str, endings: Sequence[Ending], outputs: Sequence[Block], now: int
    ) -> None:
        _, _, offsets, removed, stale, freed_bytes = reply
        never_held = {int(offset) for offset in stale}
        ledger = self._ledger.groups.get(group)
        for ending in endings:
            if ledger is None:
                break
            if taking.counted or ending.entry.offset in never_held:
                ledger.in_flight.pop(ending.entry.offset, None)
            else:
                self._ledger.end(ledger, ending)
        if not taking.counted:
            self._ledger.held_bytes -= freed_bytes
        letters = [letter for ending in endings if ending.entry.offset not in never_held for letter in ending.letters]
        self._buried(letters, removed, taking)
        self._filed(offsets, outputs, now, taking)

    def trimmed(self, reply: list[Any], taking: Taking, group: str) -> bool:
        """Take in what a group lost to its quota; return whether there is more to lose."""
        _, _, lost, more, freed_bytes = reply
        self._lost([(group, member) for member in lost], freed_bytes, taking)
        return bool(more)

    def relieved(self, reply: list[Any], taking: Taking) -> tuple[int, str]:
        """Take in what was lost to make room; return how much room that is, and where the search goes on ("": nowhere)."""
        _, _, lost, freed_bytes, last = reply
        pairs = [line.split(b"\x1f", 1) for line in lost]
        self._lost([(name.decode(), member) for name, member in pairs], freed_bytes, taking)
        return freed_bytes, last.decode()

    def _lost(self, lost: Sequence[tuple[str, bytes]], freed_bytes: int, taking: Taking) -> None:
        if taking.counted:
            return
        for name, member in lost:
            entry = parse_entry(member)
            group = self._ledger.groups.get(name)
            if group is not None and (taking.known_offset is None or entry.offset <= taking.known_offset):
                self._reading.behind(name)
                self._ledger.lose(group, entry, LossReason.QUOTA)
        self._ledger.held_bytes -= freed_bytes

    def revived(self, reply: list[Any], taking: Taking) -> list[int]:
        _, _, ids, removed, filed = reply
        self.dead_gone(removed, None, taking)
        if taking.complete:
            for line in filed:
                name, member = line.split(b"\x1f", 1)
                self._file_for([name.decode()], parse_entry(member))
        return [int(id) for id in ids]

    def _file_for(self, names: Sequence[str], entry: Entry) -> None:
        groups = [group for name in names if (group := self._ledger.groups.get(name)) is not None]
        for group in groups:
            self._reading.behind(group.spec.name)
        self._ledger.held_bytes += entry.size_bytes
        self._ledger.file(entry, groups)
        self.known_offset = max(self.known_offset, entry.offset)

    # what others did

    def met(self, look: Look) -> None:
        """Take in what other processes added: their blocks, then the books as they were at that moment."""
        ledger, snapshot = self._ledger, look.snapshot
        for entry, holders in look.unseen:
            if entry.offset > self.known_offset:
                self._file_for(holders, entry)
        self.known_offset = max(self.known_offset, look.next_offset - 1)
        for books in snapshot.books:
            books.held = ledger.book(books.topic, books.group).held
        ledger.books = {(books.topic, books.group): books for books in snapshot.books}
        for spec in snapshot.specs:
            for topic in spec.topics:
                ledger.book(topic.value, spec.name)
        ledger.receivers = {books.receiver: books for books in snapshot.receivers}
        ledger.held_bytes = snapshot.held_bytes
        ledger.dead = {(count.component, count.reason): count for count in snapshot.dead}
        ledger.dead_bytes = sum(count.size_bytes for count in snapshot.dead)
        ledger.book(DEAD_TOPIC, DEAD_READER).held = sum(count.records for count in snapshot.dead)


def tell_of_groups(replies: Sequence[Sequence[Any]], wanted: Sequence[GroupSpec]) -> None:
    """Say what retired groups held, over all slices."""
    names = {spec.name for spec in wanted}
    given_up: dict[tuple[bytes, bytes], list[int]] = {}
    for reply in replies:
        for group, topic, blocks, records in reply[2]:
            sums = given_up.setdefault((group, topic), [0, 0])
            sums[0], sums[1] = sums[0] + blocks, sums[1] + records
    for (group, topic), (blocks, records) in given_up.items():
        why = "no longer reads it" if group.decode() in names else "is not in the configuration"
        _log.warning("%s: group %s %s: %d held blocks (%d records) are given up", topic.decode(), group.decode(), why, blocks, records)
    for group in dict.fromkeys(group for reply in replies for group in reply[3]):
        _log.warning("group %s was retired: the configuration does not name it; should it return, it begins anew", group.decode())


def refusal(status: bytes, reply: Sequence[Any], place: str) -> LogError:
    """Return what a call that had no effect says."""
    if status == b"stale":
        return LogError(ErrorKind.LOG_STALE, place=place, detail="another emp-pipe owns this shard now")
    if status == b"ended":
        return LogError(ErrorKind.LOG_STALE, place=place, detail=f"block {int(reply[1])} was ended before this commit")
    if status == b"seen":
        return LogError(
            ErrorKind.LOG_IO,
            place=place,
            detail="another replica has appended a chunk of this meanwhile; nothing of it was written",
            advice="nothing to do: when it is sent again it is known for a repeat",
            seen=True,
        )
    return LogError(ErrorKind.LOG_IO, place=place, detail="Redis no longer knows what became of this operation", unknown=True)
