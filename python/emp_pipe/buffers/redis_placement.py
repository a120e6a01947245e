"""Which shard of a log in Redis takes what, and in which order the parts of one append go there.

    traces.in by trace id, metrics.in by stream, events by job: cut in parts     every other block: whole, by its id
    a chunk: by its id, which is a block's where two emp-pipes talk              a checkpoint: by its name

What says that something is durable (a chunk that is known from now on, a checkpoint) goes last, or in one call with what it speaks for.
What goes before its chunk is remembered by its block's id: sent again under the same one, it is filed once. Not here: the calls
(`redis_calls.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from emp_pipe._core import CoreError
from emp_pipe.log.protocol import Append, ChunkKey, DeadLetter, ReceiverBooks, Topic

if TYPE_CHECKING:
    from emp_pipe._core import Block

MOST_SHARDS = 16
OFFSETS_OF_A_SHARD = 1 << 48
"""Shard n counts from n times so many, so that offsets are unique over shards; all stay below 2^53, up to where Lua is exact."""
SPLIT_TOPICS = frozenset({Topic.TRACES_IN, Topic.METRICS_IN, Topic.EVENTS})
"""What one deriver must see together: rows with one key lie in one shard, whoever received them."""
_INLINE_BYTES = 64 << 10
"""Up to here splitting is quicker than a way to another thread and back."""


def first_offset(shard: int) -> int:
    return shard * OFFSETS_OF_A_SHARD


def shard_of_offset(offset: int) -> int:
    return offset // OFFSETS_OF_A_SHARD


def shard_of_name(name: bytes, shards: int) -> int:
    """Return the shard of an id: the same in every process and every version."""
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") % shards


@dataclass(slots=True)
class ShardPart:
    """What one call gives to one shard."""

    blocks: list[Block] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    """Of each block: which one of the append it is, or is a part of."""
    once: dict[str, ChunkKey] = field(default_factory=dict)
    """By block id: under which key it is remembered, so that it is filed once."""
    chunks: list[ChunkKey] = field(default_factory=list)
    checkpoints: dict[str, bytes] = field(default_factory=dict)
    books: Sequence[ReceiverBooks] = ()
    dead: Sequence[DeadLetter] = ()

    def append(self, of: Append) -> Append:
        """Return this part of an append."""
        return replace(of, blocks=self.blocks, checkpoints=self.checkpoints, books=self.books, dead=self.dead, chunks=self.chunks)


@dataclass(slots=True)
class Plan:
    """The calls of an append, by shard: all of `first` are answered before one of `last` is made."""

    first: dict[int, ShardPart] = field(default_factory=dict)
    last: dict[int, ShardPart] = field(default_factory=dict)

    def stages(self, chunks: Sequence[ChunkKey]) -> Sequence[Mapping[int, ShardPart]]:
        """Return the calls that are made together, in order. The last chunk becomes known after all else: who knows it knows that nothing
        of the append is missing."""
        if not chunks or len(self.last) < 2:
            return self.first, self.last
        final = {number: part for number, part in self.last.items() if chunks[-1] in part.chunks}
        return self.first, {number: part for number, part in self.last.items() if number not in final}, final


@dataclass(frozen=True, slots=True)
class _Placed:
    place: int
    shard: int
    block: Block
    chunk: ChunkKey | None
    """The chunk that the block came as, whole and alone."""


async def plan(append: Append, shards: int) -> Plan:
    """Return which shard is given what of an append, and in which order."""
    chunks = {chunk.chunk: chunk for chunk in append.chunks}
    home = _home(append, shards)
    placed: list[_Placed] = []
    for place, block in enumerate(append.blocks):
        chunk = chunks.get(block.block_id.encode())
        parts = await _split(block, shards) if block.topic in SPLIT_TOPICS else None
        if parts is None:
            shard = home if chunk is None else shard_of_name(chunk.chunk, shards)
            placed.append(_Placed(place, shard, block, chunk))
        else:
            placed += [_Placed(place, shard, part, chunk) for shard, part in parts]
    return _ordered(append, shards, home, placed)


def _home(append: Append, shards: int) -> int:
    """Return where an append's books and dead letters go, and its blocks that nothing else gives a place: with one chunk all of it is one
    call, which takes effect as a whole."""
    if append.chunks:
        return shard_of_name(append.chunks[0].chunk, shards)
    if append.checkpoints:
        return shard_of_name(next(iter(append.checkpoints)).encode(), shards)
    return shard_of_name(append.blocks[0].block_id.encode(), shards) if append.blocks else 0


async def _split(block: Block, shards: int) -> list[tuple[int, Block]] | None:
    """Return a block's parts by shard; None where it cannot be read, which whoever reads it will say."""
    try:
        if block.uncompressed_bytes <= _INLINE_BYTES:
            return block.split(shards)
        return await asyncio.to_thread(block.split, shards)
    except CoreError:
        return None


def _ordered(append: Append, shards: int, home: int, placed: Sequence[_Placed]) -> Plan:
    planned = Plan()
    keeping = {chunk: shard_of_name(chunk.chunk, shards) for chunk in append.chunks}
    checkpoints = {name: shard_of_name(name.encode(), shards) for name in append.checkpoints}
    settling = {*keeping.values(), *checkpoints.values()}
    for one in placed:
        # what must not be known before this block is durable
        waiting = settling if one.chunk is None else {keeping[one.chunk], *checkpoints.values()}
        part = _part(planned.last if waiting <= {one.shard} else planned.first, one.shard)
        part.blocks.append(one.block)
        part.places.append(one.place)
        if append.chunks and part is planned.first.get(one.shard):  # its chunk may not come to be known, and it is sent again
            part.once[one.block.block_id] = ChunkKey((one.chunk or append.chunks[-1]).peer, one.block.block_id.encode())
    for chunk, shard in keeping.items():
        _part(planned.last, shard).chunks.append(chunk)
    for name, shard in checkpoints.items():
        _part(planned.last, shard).checkpoints[name] = append.checkpoints[name]
    if append.books or append.dead:
        # where it costs no call of its own, and in the last one of all
        shard = home if home in planned.last or not planned.last else next(iter(planned.last))
        shard = keeping[append.chunks[-1]] if append.chunks else shard
        part = _part(planned.last, shard)
        part.books, part.dead = append.books, append.dead
    return planned


def _part(parts: dict[int, ShardPart], shard: int) -> ShardPart:
    return parts.setdefault(shard, ShardPart())


def by_shard(offsets: Sequence[int]) -> dict[int, list[int]]:
    """Return offsets by the shard that each lies in."""
    found: dict[int, list[int]] = {}
    for offset in offsets:
        found.setdefault(shard_of_offset(offset), []).append(offset)
    return found
