"""What a look at a shard says, as the ledger wants it: the groups' holdings, all books, and blocks that this process has not seen yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emp_pipe.log.group_ledger import Entry, Held, Snapshot
from emp_pipe.log.protocol import DeadCount, DeadReason, GroupBooks, GroupSpec, LossReason, ReceiverBooks

_REASONS = {reason.value for reason in LossReason}


@dataclass(slots=True)
class Look:
    """A shard at one moment."""

    operations: int
    """How many have changed it."""
    next_offset: int
    snapshot: Snapshot
    unseen: list[tuple[Entry, list[str]]]
    """Blocks above the offset that the look asked for, with the groups that hold each."""


def pairs(flat: Sequence[Any]) -> Iterator[tuple[bytes, bytes]]:
    """Return the fields of a hash as a script returns it."""
    return zip(flat[::2], flat[1::2], strict=True)


def parse_entry(member: bytes) -> Entry:
    """Return a block out of its line in the index."""
    offset, topic, size_bytes, records, time = member.decode().split(" ")
    return Entry(int(offset), topic, int(size_bytes), int(records), int(time))


def parse_look(reply: Sequence[Any], specs: Mapping[str, GroupSpec]) -> Look:
    """Return what the script's `look` answered."""
    _, _, meta_flat, books_flat, ends, unseen = reply
    meta = dict(pairs(meta_flat))
    snapshot = Snapshot(specs=list(specs.values()), held_bytes=int(meta[b"held_bytes"]))
    held = _read_books(books_flat, snapshot)
    oldest = {group.decode(): (int(first), int(time), int(last)) for group, first, time, last in ends}
    for (topic, group), counts in held.items():
        if counts.get("blocks", 0) > 0 and group in oldest:
            first, time, last = oldest[group]
            snapshot.held[group, topic] = Held(counts["blocks"], counts["bytes"], counts["records"], first, time, last)
    fresh = [(parse_entry(member), [name.decode() for name in holders]) for member, *holders in unseen]
    return Look(int(meta[b"n"]), int(meta[b"next"]), snapshot, fresh)


def _read_books(flat: Sequence[Any], snapshot: Snapshot) -> dict[tuple[str, str], dict[str, int]]:
    receivers: dict[str, ReceiverBooks] = {}
    groups: dict[tuple[str, str], GroupBooks] = {}
    held: dict[tuple[str, str], dict[str, int]] = {}
    dead: dict[tuple[str, str], dict[str, int]] = {}
    for name, value in pairs(flat):
        kind, first, second, what = name.decode().split("\x1f")
        number = int(value)
        if kind == "r":
            setattr(receivers.setdefault(first, ReceiverBooks(first)), what, number)
        elif kind == "h":
            held.setdefault((first, second), {})[what] = number
        elif kind == "d":
            dead.setdefault((first, second), {})[what] = number
        else:
            books = groups.setdefault((first, second), GroupBooks(first, second))
            if what in _REASONS:
                books.dropped[what] = number
            else:
                setattr(books, what, number)
    snapshot.receivers = list(receivers.values())
    snapshot.books = list(groups.values())
    snapshot.dead = [
        DeadCount(component, DeadReason(reason), counts["letters"], counts.get("records", 0), counts.get("bytes", 0))
        for (component, reason), counts in dead.items()
        if counts.get("letters")
    ]
    return held
