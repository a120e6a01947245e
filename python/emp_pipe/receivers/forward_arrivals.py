"""What one read of a connection becomes for the intake: arrivals, with the dead letters and the chunks to remember.

One arrival a read. More only where duplicates are to be found: then each block, or each chunk, is an arrival of its own, so that a repeat
is dropped whole. Not here: submitting and acknowledging (`forward_connection.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from emp_pipe.component import Arrival
from emp_pipe.log.protocol import ChunkKey, DeadLetter, DeadReason

if TYPE_CHECKING:
    from emp_pipe._core import Batch, Block, Chunk, ForwardRead, Rejected

_DEAD_REASON = {
    "entry_invalid": DeadReason.ENTRY_INVALID,
    "frame_invalid": DeadReason.FRAME_INVALID,
    "frame_too_large": DeadReason.TOO_LARGE,
    "body_invalid": DeadReason.BODY_INVALID,
    "block_invalid": DeadReason.BLOCK_INVALID,
}


@dataclass(frozen=True, slots=True)
class Source:
    """Where a read came from. `key` is what names the peer for duplicate detection, `shown` what people read."""

    receiver: str
    key: str
    shown: str
    detect_duplicates: Literal["emp_pipe", "all", "none"]


def arrivals_of(read: ForwardRead, source: Source, now_unix_nano: int) -> list[Arrival]:
    """Return what a read brought; empty when it was frames without records."""
    batch, chunks = read.batch, read.chunks
    received, rejected, fatal, blocks = read.received, read.rejected, read.fatal, read.blocks
    arrivals: list[Arrival] = []
    if blocks:
        arrivals += _block_arrivals(blocks, chunks, source)
        received -= sum(block.records for block in blocks)
    if batch is not None and chunks and source.detect_duplicates == "all":
        parts, taken = _chunk_arrivals(batch, chunks, source)
        arrivals += parts
        received -= taken
        batch = batch.slice(taken, len(batch)) if taken < len(batch) else None
    refused = 0
    if fatal is not None and fatal.kind == "log_newer":  # a block that this version cannot keep stays with its sender: no dead letter
        refused, fatal = fatal.records, None
    if rejected or fatal is not None:
        dead = _dead_letters(rejected if fatal is None else [*rejected, fatal], source, now_unix_nano)
        invalid = sum(letter.records for letter in dead)
        arrivals.append(Arrival(receiver=source.receiver, batch=batch, received=received, invalid=invalid, refused=refused, dead=dead))
    elif batch is not None or received:
        arrivals.append(Arrival(receiver=source.receiver, batch=batch, received=received, refused=refused))
    return arrivals


def unchunked_records(read: ForwardRead) -> int:
    """Return how many records of a read came without a chunk: their sender cannot send them again."""
    blocks = read.blocks
    rest = read.received - sum(rejected.records for rejected in read.rejected)
    for chunk in read.chunks:
        rest -= chunk.row_end - chunk.row_start if chunk.block_index < 0 else blocks[chunk.block_index].records
    return max(rest, 0)


def _block_arrivals(blocks: Sequence[Block], chunks: Sequence[Chunk], source: Source) -> list[Arrival]:
    ids = {chunk.block_index: chunk.id for chunk in chunks if chunk.block_index >= 0}
    remembered = ids if source.detect_duplicates != "none" else {}
    return [
        Arrival(
            receiver=source.receiver,
            blocks=(block,),
            received=block.records,
            chunks=(ChunkKey(source.key, remembered[index]),) if index in remembered else (),
        )
        for index, block in enumerate(blocks)
    ]


def _chunk_arrivals(batch: Batch, chunks: Sequence[Chunk], source: Source) -> tuple[list[Arrival], int]:
    """One arrival a chunk, one for the rows between two of them; also how many rows are taken by then."""
    arrivals: list[Arrival] = []
    taken = 0
    for chunk in chunks:
        start, end = chunk.row_start, chunk.row_end
        if chunk.block_index >= 0 or end <= start:
            continue
        if start > taken:
            arrivals.append(Arrival(receiver=source.receiver, batch=batch.slice(taken, start), received=start - taken))
        keys = (ChunkKey(source.key, chunk.id),)
        arrivals.append(Arrival(receiver=source.receiver, batch=batch.slice(start, end), received=end - start, chunks=keys))
        taken = end
    return arrivals, taken


def _dead_letters(rejected: Sequence[Rejected], source: Source, now_unix_nano: int) -> tuple[DeadLetter, ...]:
    return tuple(
        DeadLetter(
            component=source.receiver,
            reason=_DEAD_REASON.get(one.kind, DeadReason.FRAME_INVALID),
            detail=one.detail,
            payload=one.data,
            records=one.records,
            peer=source.shown,
            offset=one.offset,
            time_unix_nano=now_unix_nano,
        )
        for one in rejected
    )
