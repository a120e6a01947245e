"""The writer stands before every log: it turns what receivers hand over into few, large blocks, and tells them when these are durable.

    submit ──▶ waiting ──(while the previous append runs)──▶ encode ──▶ append ──▶ futures done ──▶ acks

What arrives while an append runs is concatenated before compression and goes with the next one. So a low rate gives small blocks at once,
and a high rate large ones. Senders that are answered together send their next together: that is waited for a moment, or the first of them
would have a commit for itself, every time. This is the hot path: a few calls per arrival, none per record.
Not here: processors (they ran before `submit`), storage (`emp_pipe/buffers/`). Which topic a signal goes to: `routes.py`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from emp_pipe.clock import Clock, SystemClock
from emp_pipe.done import NOTHING_DONE, Done
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.protocol import Append, ChunkKey, DeadLetter, Log, ReceiverBooks, Topic
from emp_pipe.log.routes import Batches, Routes
from emp_pipe.logs import RateLimitedLogger, get_logger

if TYPE_CHECKING:
    from emp_pipe._core import Batch, Block
    from emp_pipe.component import Arrival

BLOCK_BYTES = 1 << 20
"""A block holds at most this much before compression; a larger single record is a block of its own."""
_HEAD_BYTES = 4096
"""Room in a block for what is not rows: resources, scopes, lengths."""
INLINE_BYTES = 64 << 10
"""Up to here encoding is quicker than a way to another thread and back."""
EARLY_BYTES = BLOCK_BYTES
"""With this much waiting the next group is encoded while the previous one is being committed: a full block, for each commit costs."""
COMPANY_S = 0.002
"""After an append as many arrivals as it answered are waited for at most so long, and no longer than it took itself."""
WAITING_BYTES = 32 << 20
"""With this much waiting receivers are told to stop reading."""

_log = RateLimitedLogger(get_logger("log"))

Codec = Literal["none", "gzip", "zstd"]


class _Submitted:
    """An arrival and the future of its receiver."""

    __slots__ = ("arrival", "future", "size_bytes")

    def __init__(self, arrival: Arrival, future: asyncio.Future[None], size_bytes: int) -> None:
        self.arrival = arrival
        self.future = future
        self.size_bytes = size_bytes


class LogWriter:
    """The `Intake` before a log: blocks out of arrivals, one append for all that waits, duplicates found, books kept."""

    def __init__(
        self,
        log: Log,
        *,
        topics: Iterable[Topic],
        codec: Codec = "gzip",
        codecs: Mapping[Topic, Codec] | None = None,
        level: int = 1,
        waiting_bytes_limit: int = WAITING_BYTES,
        clock: Clock | None = None,
    ) -> None:
        """`topics` are those that some group reads: of the others nothing is written. `codecs`: of topics that have another."""
        from emp_pipe._core import encode_block

        self._encode_block = encode_block
        self._log = log
        self._routes = Routes(topics)
        self._codec: Codec = codec
        self._codecs = dict(codecs or {})
        self._level = level
        self._waiting_bytes_limit = waiting_bytes_limit
        self._waiting: list[_Submitted] = []
        self._waiting_bytes = 0
        self._held_bytes = 0
        self._appends = 0
        self._encoding = False
        self._scheduled = False
        self._company = 0
        self._company_until_s = 0.0
        self._company_timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._idle: asyncio.Future[None] | None = None
        self._space: list[asyncio.Future[None]] = []
        self._pending_chunks: dict[ChunkKey, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._pool = ThreadPoolExecutor(1, "emp-encode")
        self._clock = clock or SystemClock()
        self._block_prefix = f"{self._clock.unix_nano() // 1_000_000:012x}{os.urandom(6).hex()}"
        self._block_number = 0

    def set_topics(self, topics: Iterable[Topic], codecs: Mapping[Topic, Codec] | None = None) -> None:
        """Say anew what groups read, after the log's groups have changed."""
        self._routes = Routes(topics)
        if codecs is not None:
            self._codecs = dict(codecs)

    async def routed(self) -> None:
        """Return when nothing is under way to the log any more that was filed by what `set_topics` said before."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    # receivers

    @property
    def admitting(self) -> bool:
        return self._held_bytes < self._waiting_bytes_limit and self._log.admitting and not self._closed

    async def wait_admitting(self) -> None:
        while not self.admitting:
            if self._held_bytes >= self._waiting_bytes_limit or self._closed:
                waiter = asyncio.get_running_loop().create_future()
                self._space.append(waiter)
                await waiter
            else:
                await self._log.wait_admitting()

    async def checkpoint_get(self, name: str) -> bytes | None:
        """Return a receiver's checkpoint as the last durable arrival left it."""
        return await self._log.checkpoint_get(name)

    def submit(self, arrival: Arrival) -> asyncio.Future[None]:
        """Return a future that is done when the arrival is on stable storage. Fails with LogError, and then nothing of it is."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        if self._closed:
            future.set_exception(LogError(ErrorKind.LOG_CLOSED))
            return future
        batch = arrival.batch
        size = batch.size_bytes if batch is not None else 0
        for block in arrival.blocks:
            size += block.payload_bytes
        for letter in arrival.dead:
            size += len(letter.payload)
        submitted = _Submitted(arrival, future, size)
        self._held_bytes += size
        if arrival.chunks and self._repeats(submitted):
            return future
        self._waiting.append(submitted)
        self._waiting_bytes += size
        self._schedule()
        return future

    async def close(self, deadline_monotonic_s: float) -> None:
        """Take nothing new; return when all that was submitted is decided, at the latest at the deadline."""
        self._closed = True
        if self._appends or self._encoding or self._waiting:
            self._idle = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._idle], timeout=max(deadline_monotonic_s - self._clock.monotonic_s(), 0))
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._fail(self._waiting, LogError(ErrorKind.LOG_CLOSED))
        self._waiting = []
        self._pool.shutdown(wait=False)

    # duplicates

    def _repeats(self, submitted: _Submitted) -> bool:
        """Whether the arrival's chunk is being appended right now: then it shares the outcome of the first."""
        chunks = submitted.arrival.chunks
        first = self._pending_chunks.get(chunks[0])
        if first is not None and len(chunks) == 1:
            first.add_done_callback(lambda done: self._first_decided(submitted, done))
            return True
        for chunk in chunks:
            self._pending_chunks[chunk] = submitted.future
        submitted.future.add_done_callback(lambda done: self._forget_chunks(chunks, done))
        return False

    def _forget_chunks(self, chunks: Sequence[ChunkKey], done: asyncio.Future[None]) -> None:
        for chunk in chunks:
            if self._pending_chunks.get(chunk) is done:
                del self._pending_chunks[chunk]

    def _first_decided(self, repeat: _Submitted, done: asyncio.Future[None]) -> None:
        error = LogError(ErrorKind.LOG_CLOSED) if done.cancelled() else done.exception()
        if error is not None or self._closed:
            self._fail([repeat], error or LogError(ErrorKind.LOG_CLOSED))
            return
        self._waiting.append(repeat)  # by now the log knows the chunk: it is counted as a duplicate there
        self._waiting_bytes += repeat.size_bytes
        self._schedule()

    # the way to the log

    def _schedule(self) -> None:
        """Start the next group: when no append runs, or early when a full block waits."""
        if self._scheduled or self._encoding or not self._waiting:
            return
        if self._appends and (self._appends > 1 or self._waiting_bytes < EARLY_BYTES):
            return
        if not self._appends and len(self._waiting) < self._company and self._waits_for_company():
            return
        self._scheduled = True
        asyncio.get_running_loop().call_soon(self._start)  # what this turn of the loop still brings comes along

    def _waits_for_company(self) -> bool:
        if self._waiting_bytes >= EARLY_BYTES:
            return False
        wait_s = self._company_until_s - self._clock.monotonic_s()
        if wait_s > 0 and self._company_timer is None:
            self._company_timer = asyncio.get_running_loop().call_later(wait_s, self._company_is_late)
        return wait_s > 0

    def _company_is_late(self) -> None:
        self._company_timer = None
        self._company = 0
        self._schedule()

    def _start(self) -> None:
        self._scheduled = False
        if self._encoding or not self._waiting:
            return
        if self._company_timer is not None:
            self._company_timer.cancel()
            self._company_timer = None
        group, self._waiting = self._waiting, []
        self._waiting_bytes = 0
        self._encoding = True
        task = asyncio.get_running_loop().create_task(self._write(group))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, group: list[_Submitted]) -> None:
        """Encode and append a group of arrivals, and decide their futures, all alike."""
        self._appends += 1
        try:
            try:
                append = await self._prepare(group)
            finally:
                self._encoding = False
            self._schedule()
            started_s = self._clock.monotonic_s()
            await self._log.append(append)
        except asyncio.CancelledError:
            self._fail(group, LogError(ErrorKind.LOG_CLOSED))
            raise
        except LogError as error:
            self._fail(group, error)
        except Exception as error:
            _log.exception(f"unexpected {type(error).__name__}", "an append of %d arrivals could not be made", len(group))
            self._fail(
                group, LogError(ErrorKind.BLOCK_INVALID, detail=f"the rows cannot be encoded ({error})", advice="this is a bug: tell us")
            )
        else:
            now_s = self._clock.monotonic_s()
            self._company = len(group) + len(self._waiting)
            self._company_until_s = now_s + min(now_s - started_s, COMPANY_S)
            for submitted in group:
                self._held_bytes -= submitted.size_bytes
                if not submitted.future.done():
                    submitted.future.set_result(None)
        finally:
            self._appends -= 1
            self._progress()

    def _fail(self, group: Iterable[_Submitted], error: BaseException) -> None:
        for submitted in group:
            self._held_bytes -= submitted.size_bytes
            if not submitted.future.done():
                submitted.future.set_exception(error)

    def _progress(self) -> None:
        self._schedule()
        if self._space and (self._held_bytes < self._waiting_bytes_limit or self._closed):
            waiters, self._space = self._space, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
        if self._idle and not (self._appends or self._encoding or self._waiting) and not self._idle.done():
            self._idle.set_result(None)

    async def _prepare(self, group: Sequence[_Submitted]) -> Append:
        """Merge what a group of arrivals says into one append."""
        seen: set[ChunkKey] = set()
        chunks = [chunk for submitted in group for chunk in submitted.arrival.chunks]
        if chunks:
            seen = await self._log.seen(chunks)
        books: dict[str, ReceiverBooks] = {}
        batches: Batches = {}
        blocks: list[Block] = []
        dead: list[DeadLetter] = []
        checkpoints: dict[str, bytes] = {}
        kept_chunks: dict[ChunkKey, None] = {}
        routes = self._routes
        for submitted in group:
            arrival = submitted.arrival
            book = books.get(arrival.receiver)
            if book is None:
                book = books[arrival.receiver] = ReceiverBooks(arrival.receiver)
            if arrival.checkpoints:
                checkpoints.update(arrival.checkpoints)
            if arrival.chunks:
                if seen.issuperset(arrival.chunks):
                    book.received += arrival.received
                    book.duplicate += arrival.received
                    continue
                seen.update(arrival.chunks)
                kept_chunks.update(dict.fromkeys(arrival.chunks))
            if arrival.dead:
                dead += arrival.dead
            book.received += arrival.received
            book.invalid += arrival.invalid
            book.refused += arrival.refused
            book.dropped += arrival.dropped
            batch = arrival.batch
            if batch is not None and len(batch):
                if routes.add_batch(batch, arrival.done, batches):
                    book.appended += batch.record_count
                else:
                    book.dropped += batch.record_count
            for block in arrival.blocks:
                filed = routes.file_block(block)
                if filed is not None:
                    blocks.append(filed)
                if block.topic in (Topic.EVENTS, Topic.ERRORS):
                    book.received -= block.records  # copies: on their own topic, not in the receiver's equation
                elif filed is not None:
                    book.appended += block.records
                else:
                    book.dropped += block.records
        for (topic, done), waiting in batches.items():
            await self._encode(topic, done, waiting, blocks)
        return Append(blocks, checkpoints, list(books.values()), dead, list(kept_chunks))

    async def _encode(self, topic: Topic, done: Done, batches: Sequence[Batch], blocks: list[Block]) -> None:
        codec = self._codecs.get(topic, self._codec)
        inline_bytes = BLOCK_BYTES if codec == "none" else INLINE_BYTES
        for part, size in _parts(batches):
            block_id = f"{self._block_prefix}{self._block_number:010x}"
            self._block_number += 1

            def encode(part: Sequence[Batch] = part, block_id: str = block_id) -> Block:
                return self._encode_block(part, codec, topic=topic.value, block_id=block_id, level=self._level)

            block = encode() if size <= inline_bytes else await asyncio.get_running_loop().run_in_executor(self._pool, encode)
            blocks.append(block if done == NOTHING_DONE else block.with_flags(**done._asdict()))


def _parts(batches: Sequence[Batch]) -> list[tuple[list[Batch], int]]:
    """Cut batches into groups that fit a block each, in order, with their sizes."""
    parts: list[tuple[list[Batch], int]] = []
    part: list[Batch] = []
    part_bytes = _HEAD_BYTES
    for batch in batches:
        pieces = (batch,) if batch.size_bytes + _HEAD_BYTES <= BLOCK_BYTES else _pieces(batch)
        for piece in pieces:
            if part and part_bytes + piece.size_bytes > BLOCK_BYTES:
                parts.append((part, part_bytes))
                part, part_bytes = [], _HEAD_BYTES
            part.append(piece)
            part_bytes += piece.size_bytes
    if part:
        parts.append((part, part_bytes))
    return parts


def _pieces(batch: Batch) -> list[Batch]:
    """Cut a batch that is too large for a block: evenly first, then in halves where rows differ in size, down to one row."""
    rows = len(batch)
    fit = BLOCK_BYTES - _HEAD_BYTES
    if rows == 1 or batch.size_bytes <= fit:
        return [batch]
    count = min(rows, max(2, -(-batch.size_bytes // fit)))
    bounds = [rows * index // count for index in range(count + 1)]
    pieces: list[Batch] = []
    for start, end in pairwise(bounds):
        pieces += _pieces(batch.slice(start, end))
    return pieces
