"""What is read from a shard without changing it: blocks, chunks, state, checkpoints, dead letters. Nothing here waits for the queue.

Each answer is bounded: blocks by bytes, lists by pages. Not here: what the ledger must see at one moment (`look`, in `redis_snapshot.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack  # type: ignore[import-untyped]

from emp_pipe.buffers.redis_calls import Calls
from emp_pipe.buffers.redis_client import log_error
from emp_pipe.buffers.redis_link import Link
from emp_pipe.buffers.redis_snapshot import parse_entry
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.protocol import ChunkKey, DeadFilter, DeadLetter, DeadReason
from emp_pipe.log.reading import Fetched, Row

CHUNK_MEMORY_NS = 3600 * 1_000_000_000
_FETCH_BYTES = 4 << 20
"""What one call returns at most, but for a larger block alone: others wait for Redis meanwhile."""
_PAGE = 500


class Reader:
    """Reads one shard. Raises RedisLogError."""

    def __init__(self, link: Link, calls: Calls) -> None:
        self._link = link
        self._calls = calls

    async def _commands(self, *commands: Sequence[Any], durable: bool = False) -> list[Any]:
        if not commands:
            return []
        replies = await self._link.send(commands, durable=durable)
        for reply in replies:
            if isinstance(reply, Exception):
                raise log_error(reply, self._link.place)
        return replies

    async def _command(self, *command: Any) -> Any:
        return (await self._commands(command))[0]

    async def blocks(self, group: str, offsets: Sequence[int], after: int, up_to: int, max_bytes: int) -> Fetched:
        """Return the group's blocks at `offsets`, then those in (after, up_to], as long as `max_bytes` lasts; at least one."""
        rows: list[Row] = []
        for start in range(0, len(offsets), _PAGE):
            waiting = list(offsets[start : start + _PAGE])
            while waiting:  # given back before: all of them were promised to the reader
                found, _, looked_at = await self._fetch(group, waiting, 0, 0, _FETCH_BYTES)
                rows += found
                del waiting[:looked_at]
        max_bytes -= sum(len(row.payload) for row in rows)
        complete = up_to <= after
        while not complete and (not rows or max_bytes > 0):
            found, complete, _ = await self._fetch(group, (), after, up_to, min(max_bytes, _FETCH_BYTES))
            if rows and found and len(found[0].payload) > max_bytes:  # alone it would have been more than asked for
                return Fetched(rows, False)
            rows += found
            max_bytes -= sum(len(row.payload) for row in found)
            after = found[-1].entry.offset if found else after
        return Fetched(rows, complete)

    async def _fetch(self, group: str, offsets: Sequence[int], after: int, up_to: int, max_bytes: int) -> tuple[list[Row], bool, int]:
        reply = await self._link.ask(self._calls.fetch(group, offsets, after, up_to, max_bytes))
        if reply[0] != b"ok":
            raise LogError(ErrorKind.LOG_STALE, place=self._link.place, detail="another emp-pipe owns this shard now")
        _, _, found, complete, looked_at = reply
        return [Row(parse_entry(member), header, payload) for member, header, payload in found], bool(complete), looked_at

    async def held(self, group: str, offsets: Sequence[int]) -> set[int]:
        key = self._calls.keys.held(group)
        scores = await self._commands(*(("ZSCORE", key, str(offset)) for offset in offsets))
        return {offset for offset, score in zip(offsets, scores, strict=True) if score is not None}

    async def seen(self, chunks: Sequence[ChunkKey], now: int) -> set[ChunkKey]:
        times = await self._commands(*(("GET", self._calls.keys.chunk(chunk)) for chunk in chunks))
        known = [chunk for chunk, time in zip(chunks, times, strict=True) if time is not None and now - int(time) < CHUNK_MEMORY_NS]
        if not self._link.waits:
            return set(known)
        # Whoever hears that it is known forgets it: so it must be as safe as what is acknowledged. A wait covers what its connection wrote.
        memory_s = CHUNK_MEMORY_NS // 1_000_000_000
        kept = await self._commands(*(("EXPIRE", self._calls.keys.chunk(chunk), memory_s) for chunk in known), durable=True)
        return {chunk for chunk, still_there in zip(known, kept, strict=True) if still_there}

    async def state(self, group: str, key: str, now: int) -> bytes | None:
        return _alive(await self._command("HGET", self._calls.keys.state(group), key), now)

    async def states(self, group: str, prefix: str, now: int) -> dict[str, bytes]:
        """Return the group's live state with keys that begin with `prefix`, read in pages."""
        found: dict[str, bytes] = {}
        cursor = b"0"
        while True:
            cursor, flat = await self._command("HSCAN", self._calls.keys.state(group), cursor, "COUNT", _PAGE)
            pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)
            for name, stored in pairs:
                key = name.decode()
                if key.startswith(prefix) and (value := _alive(stored, now)) is not None:
                    found[key] = value
            if int(cursor) == 0:
                return found

    async def checkpoint(self, name: str) -> tuple[int, bytes] | None:
        """Return a checkpoint with the epoch under which it was written."""
        stored = await self._command("HGET", self._calls.keys.checkpoints, name)
        if stored is None:
            return None
        epoch, _, value = stored.partition(b":")
        return int(epoch), value

    async def dead_letters(self, limit: int, after_id: int, which: DeadFilter) -> list[tuple[int, DeadLetter]]:
        found: list[tuple[int, DeadLetter]] = []
        while len(found) < limit:
            page = await self._command("ZRANGEBYSCORE", self._calls.keys.dead_index, f"({after_id}", "+inf", "LIMIT", 0, _PAGE)
            wanted = [id for member in page if (id := _matching(member, which)) is not None][: limit - len(found)]
            entries = await self._commands(*(("XRANGE", self._calls.keys.dead, f"{id}-0", f"{id}-0") for id in wanted))
            found += [(id, _parse_letter(entry)) for id, entry in zip(wanted, entries, strict=True) if entry]
            if len(page) < _PAGE:
                break
            after_id = int(page[-1].partition(b"\x1f")[0])
        return found


def _alive(stored: bytes | None, now: int) -> bytes | None:
    if stored is None:
        return None
    expires, _, value = stored.partition(b":")
    return value if expires == b"0" or int(expires) > now else None


def _matching(member: bytes, which: DeadFilter) -> int | None:
    """Return the id of a letter that the filter takes, out of its line in the index."""
    id, _, records, _, time, reason, component = member.decode().split("\x1f", 6)
    about = DeadLetter(component, DeadReason(reason), "", b"", records=int(records), time_unix_nano=int(time))
    return int(id) if which.matches(int(id), about) else None


def _parse_letter(entry: Sequence[Any]) -> DeadLetter:
    ((_, fields),) = entry
    stored = fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
    component, reason, detail, records, peer, offset, attempts, time = msgpack.unpackb(stored[b"m"])
    return DeadLetter(component, DeadReason(reason), detail, stored[b"p"], stored[b"h"], records, peer, offset, attempts, time)
