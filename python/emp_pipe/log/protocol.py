"""The protocol of the durable log: topics, groups, deliveries, books, and the one atomic `commit`.

One log, many groups: each destination (and each processor that needs memory of the past) reads at its own pace. A block is freed
when every group that reads its topic has acked it or given it up. `append` and `commit` return when their effect is on stable storage,
and only then is anything acknowledged upstream. Rules and reasons: `docs/decisions/001-log.md`.

Not here: how blocks are made out of batches (`writer.py`), how they are stored (`emp_pipe/buffers/`), how they are sent (`delivery/`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from emp_pipe._core import Block


class Topic(StrEnum):
    """Where a block is filed. Who writes and who reads each: the table in `docs/decisions/001-log.md`."""

    LOGS = "logs"
    TRACES_IN = "traces.in"
    TRACES = "traces"
    METRICS_IN = "metrics.in"
    METRICS = "metrics"
    EVENTS = "events"
    ERRORS = "errors"

    @property
    def derived(self) -> Topic:
        """Where derivers file what they read here; itself where none reads."""
        return Topic(self.value.removesuffix(".in"))


class LossReason(StrEnum):
    """Why a record that the log held was given up by a group: a closed list, so that the books can be asserted."""

    QUOTA = "quota"
    """A best-effort group went past its quota and lost its oldest blocks."""
    GROUP_DROPPED = "group_dropped"
    """The group left the configuration, or `emp-pipe groups drop`."""
    GROUP_RESET = "group_reset"
    DEAD_LIMIT = "dead_limit"
    """Dead letters past their own size or age limit."""


class DeadReason(StrEnum):
    """Why bytes or rows became a dead letter."""

    ENTRY_INVALID = "entry_invalid"
    FRAME_INVALID = "frame_invalid"
    BODY_INVALID = "body_invalid"
    BLOCK_INVALID = "block_invalid"
    REFUSED = "refused"
    EXPIRED = "expired"
    TOO_LARGE = "too_large"
    TRACE_TOO_LARGE = "trace_too_large"
    """A span past those that the destination takes of a trace."""


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """One reader of the log. `required` groups past their quota stop receivers; best-effort ones lose their oldest blocks."""

    name: str
    topics: frozenset[Topic]
    required: bool = True
    quota_bytes: int = 1 << 40
    quota_age_s: float | None = None
    start: Literal["oldest", "newest"] = "oldest"


class ChunkKey(NamedTuple):
    """What names a chunk for duplicate detection: the authenticated peer and the chunk id that it sent."""

    peer: str
    chunk: bytes


@dataclass(slots=True)
class ReceiverBooks:
    """What one receiver took in, in records: received = appended + invalid + refused + dropped + duplicate."""

    receiver: str
    received: int = 0
    appended: int = 0
    invalid: int = 0
    refused: int = 0
    dropped: int = 0
    duplicate: int = 0

    @property
    def balanced(self) -> bool:
        return self.received == self.appended + self.invalid + self.refused + self.dropped + self.duplicate


@dataclass(slots=True)
class GroupBooks:
    """What became of a topic's records in one group: appended = acked + dead + sum(dropped) + skipped + held."""

    topic: str
    group: str
    appended: int = 0
    acked: int = 0
    dead: int = 0
    skipped: int = 0
    held: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def balanced(self) -> bool:
        return self.appended == self.acked + self.dead + sum(self.dropped.values()) + self.skipped + self.held


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Bytes that were given up, with all that is needed to understand or send them again.

    `payload` is what could not be read (a torn entry, a frame) or an encoded block's payload; `header` is the block's header, else b"".
    """

    component: str
    reason: DeadReason
    detail: str
    payload: bytes
    header: bytes = b""
    records: int = 1
    peer: str = ""
    offset: int = 0
    attempts: int = 0
    time_unix_nano: int = 0

    @property
    def count(self) -> DeadCount:
        """What this letter adds to what is kept."""
        return DeadCount(self.component, self.reason, 1, self.records, len(self.payload) + len(self.header))


@dataclass(frozen=True, slots=True)
class DeadFilter:
    """Which dead letters: every condition given must hold. Times are those of the letters, `since` included, `until` not."""

    component: str | None = None
    reason: DeadReason | None = None
    since_unix_nano: int | None = None
    until_unix_nano: int | None = None
    ids: frozenset[int] | None = None

    def matches(self, id: int, letter: DeadLetter) -> bool:
        """Return whether a letter is one of them; a store may ask in its own language instead."""
        return (
            (self.component is None or letter.component == self.component)
            and (self.reason is None or letter.reason is self.reason)
            and (self.since_unix_nano is None or letter.time_unix_nano >= self.since_unix_nano)
            and (self.until_unix_nano is None or letter.time_unix_nano < self.until_unix_nano)
            and (self.ids is None or id in self.ids)
        )


@dataclass(frozen=True, slots=True)
class DeadCount:
    """How many dead letters are kept of a component and a reason."""

    component: str
    reason: DeadReason
    letters: int
    records: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Revival:
    """A dead letter that goes back: filed as `block`, under its topic, for `group` alone."""

    id: int
    group: str
    block: Block


@dataclass(frozen=True, slots=True)
class Append:
    """One all-or-nothing append. `blocks` carry their topic in their header."""

    blocks: Sequence[Block]
    checkpoints: Mapping[str, bytes] = field(default_factory=dict)
    books: Sequence[ReceiverBooks] = ()
    dead: Sequence[DeadLetter] = ()
    chunks: Sequence[ChunkKey] = ()
    epoch: int = 0
    """Of the checkpoints. In a log that several ways lead to (a spool, other replicas) those that were written under a higher one stay."""


@dataclass(frozen=True, slots=True)
class Appended:
    """The offsets that the blocks of an append got, in order (a block of a topic that no group reads is not written: -1)."""

    offsets: Sequence[int]


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Delivery:
    """A block handed to one group. It ends in ack (`commit(acks=…)`), defer, or reject; dropped without a word it is a defer.

    The log holds it weakly: when the last reference to this very object goes, the block is deferred. Keep it until it has ended."""

    group: str
    topic: str
    offset: int
    block: Block
    attempts: int = 0
    """How often it was deferred before, in this process."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A delivery, or a part of it, that ends as dead letters: `records` of its rows are in `letters`, the others were acked or skipped."""

    delivery: Delivery
    letters: Sequence[DeadLetter]


@dataclass(frozen=True, slots=True)
class GroupUsage:
    """What a group still holds."""

    spec: GroupSpec
    held_blocks: int
    held_bytes: int
    held_records: int
    oldest_append_unix_nano: int | None
    in_flight_blocks: int


@dataclass(frozen=True, slots=True)
class Usage:
    """How full the log is. `admitting` is what receivers are told: False means stop reading."""

    held_bytes: int
    limit_bytes: int
    dead_bytes: int
    admitting: bool
    reason: str
    oldest_append_unix_nano: int | None
    groups: Sequence[GroupUsage]
    dead: Sequence[DeadCount] = ()
    """What `dead_bytes` consists of."""
    dead_limit_bytes: int = 0
    """What dead letters may take before the oldest go, counted as dropped by `dead_limit`; 0: no limit of their own."""


Groups = Sequence[GroupSpec] | Callable[[Sequence[GroupSpec]], Sequence[GroupSpec]]
"""The groups that a log shall have, or a function that is given those that are stored and returns them."""


class Log(Protocol):
    """A durable log. All methods are called from the event loop; implementations do their blocking work in a thread of their own.

    Errors: `LogError` of kind LOG_FULL (admission only), LOG_IO, LOG_CLOSED; after LOG_IO nothing of the operation took effect.
    """

    @property
    def parts(self) -> Sequence[Log]:
        """The logs that this one consists of, once it is open; itself where it is of one piece.

        All that a deriver has to see together lies in one part, and its commits must be of one: so each part has a loop of its own."""

    @property
    def ours(self) -> bool:
        """Whether this process reads and ends what is in it: False while another replica does. `state_get` waits until it is ours."""

    async def open(self, groups: Groups | None) -> None:
        """Open or create the log, retire groups that are absent from `groups` (loudly), begin the new ones.

        None: leave the groups as they were stored (`emp-pipe groups` on a log that no process uses). A function is called with the
        stored groups and before any of them is retired, so that those whose blocks are to be handed on can be kept: `deriving.open_log`.
        The thread that it is called in is not that of the event loop."""

    async def set_groups(self, groups: Sequence[GroupSpec]) -> None:
        """Do on an open log what `open` does with the groups: retire the absent, begin the new, adopt changed quotas (a reload)."""

    async def close(self, deadline_monotonic_s: float) -> None:
        """Finish what was accepted, release the store. Operations after it raise LOG_CLOSED."""

    async def append(self, append: Append) -> Appended:
        """Return when all of it is on stable storage. Raises LOG_FULL without effect when not `usage().admitting`."""

    async def seen(self, chunks: Sequence[ChunkKey]) -> set[ChunkKey]:
        """Return those chunks that were appended within the last hour."""

    async def read(self, group: str, max_bytes: int, owner: str = "") -> list[Delivery]:
        """Return the oldest deliverable blocks of a group, at least one if there is any, at most `max_bytes` of payload.

        They are in flight until ack, defer or reject; a restart makes them deliverable again."""

    async def wait_readable(self, group: str) -> None:
        """Return when `read` has something to give."""

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
        """The one atomic primitive: all of it or nothing, on stable storage when it returns.

        `acks`: deliveries done; `skipped_records[offset]` of a delivery's rows were left out by selection (the rest count as acked).
        `rejections`: deliveries of which some or all rows became dead letters. `outputs`: blocks derived from them, appended to the topic
        of their header, from the reserve: never refused for admission. `state_*`: keyed state of the group."""

    def defer(self, deliveries: Sequence[Delivery]) -> None:
        """Give deliveries back; the next `read` returns them again, in offset order."""

    async def held_by(self, group: str, offsets: Sequence[int]) -> set[int]:
        """Return those of the blocks at `offsets` that a group holds, waiting or in flight; none of an unknown group."""

    async def state_get(self, group: str, key: str) -> bytes | None: ...

    async def state_items(self, group: str, prefix: str = "") -> dict[str, bytes]: ...

    async def checkpoint_get(self, name: str) -> bytes | None: ...

    async def receiver_books(self) -> list[ReceiverBooks]: ...

    async def group_books(self) -> list[GroupBooks]: ...

    async def answers(self) -> None:
        """Return when what was submitted before has had its turn on this machine's disk, were it in vain. A server is not asked."""

    def usage(self) -> Usage:
        """Return how full the log is, from memory: for `/metrics`, `/readyz` and `groups list`."""

    @property
    def admitting(self) -> bool:
        """Whether receivers may append: a plain attribute, cheap enough to ask at every read of a socket."""

    async def wait_admitting(self) -> None:
        """Return when receivers may append again."""

    async def reset_group(self, group: str, start: Literal["oldest", "newest"]) -> None: ...

    async def drop_group(self, group: str) -> None: ...

    async def dead_letters(self, limit: int = 100, after_id: int = 0, which: DeadFilter | None = None) -> list[tuple[int, DeadLetter]]:
        """Return dead letters by rising id, at most `limit`, only those with a higher id than `after_id` that `which` takes.

        Ids grow and are never used again. Fewer than `limit` means that there are no more."""

    async def delete_dead_letters(self, ids: Sequence[int]) -> int:
        """Delete letters at an operator's word; return how many there were. In the books they are acked by the reader `dlq`."""

    async def revive_dead_letters(self, revivals: Sequence[Revival]) -> list[int]:
        """Give rows back to the groups that gave them up; return the ids that went back, each exactly once.

        In one transaction a letter is deleted (acked by `dlq`, as a deletion is) and its block filed, with a new offset, for its group
        alone: no other reader of the topic gets it again, and it counts as appended once more in the books of (topic, group). A letter
        that is gone meanwhile, or whose group is or does not read the block's topic, is left alone and its id is not returned. Never
        refused for admission: what it adds to the log it takes from the dead letters."""

    @property
    def durability(self) -> str:
        """One sentence for start-up, `/readyz` and the documentation: what a power cut loses."""


class OfOnePiece:
    """A log that has one part, which is this process's alone."""

    @property
    def parts(self) -> Sequence[Log]:
        return (cast("Log", self),)

    ours = True

    async def answers(self) -> None:
        """What is kept in memory has nothing to wait for."""
