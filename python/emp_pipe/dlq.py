"""What `emp-pipe dlq` asks, answered on any log: of a running process over its control socket, of a stopped one by the command itself.

Each answer is a stream of JSON objects, made page by page: dead letters can be many and large. Secrets are masked in all that leaves here.
Not here: what a letter's way back is (`log/dead_letters.py`), how answers look on a terminal (`cli_dlq.py`).
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from emp_pipe.errors import EmpPipeError, ErrorKind
from emp_pipe.log.dead_letters import MAX_INFLATED_BYTES, way_back
from emp_pipe.log.protocol import DeadFilter, DeadLetter, DeadReason, Log, Revival

if TYPE_CHECKING:
    from emp_pipe._core import Redactor

_PAGE = 16
_MOST_LETTERS = 10_000
_SHOWN_START_BYTES = 256
_MOST_SHOWN_BYTES = 64 << 10
_MOST_RECORD_BYTES = 1 << 20
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]")


def printable(text: str) -> str:
    """Return a text that a terminal only shows: what would move its cursor, colour it, turn it around or be unseen is written as an
    escape. The escapes are those of JSON, so what goes through here as JSON stays the same JSON."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class DeadLetterDesk:
    """Answers about the dead letters of a log. `redactor` None: nothing is masked."""

    def __init__(self, log: Log, redactor: Redactor | None) -> None:
        self._log = log
        self._redactor = redactor

    async def answer(self, asked: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Yield the answers to one question. Raises EmpPipeError for one that is none."""
        which = _filter(asked)
        match asked.get("ask"):
            case "dlq list":
                answers = self._list(which, asked)
            case "dlq show":
                answers = self._show(which, asked)
            case "dlq count":
                answers = self._count(which)
            case "dlq retry":
                answers = self._retry(which)
            case "dlq drop":
                answers = self._drop(which, _number(asked, "up_to", 1 << 62))
            case other:
                raise EmpPipeError(ErrorKind.CONFIG_INVALID, place="dlq", detail=f"there is no question {other!r}")
        async for answer in answers:
            yield answer

    async def _letters(
        self, which: DeadFilter, *, limit: int | None = None, after: int = 0, page: int = _PAGE
    ) -> AsyncIterator[tuple[int, DeadLetter]]:
        """Yield letters by rising id, not more than there are now: what is given up again meanwhile is for the next time."""
        left = sum(count.letters for count in self._log.usage().dead) if limit is None else limit
        while left > 0:
            asked = min(left, page)
            letters = await self._log.dead_letters(asked, after, which)
            for id, letter in letters:
                yield id, letter
            if len(letters) < asked:
                return
            left -= asked
            after = letters[-1][0]

    async def _list(self, which: DeadFilter, asked: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        limit = max(1, min(_number(asked, "limit", 100), _MOST_LETTERS))
        async for id, letter in self._letters(which, limit=limit, after=_number(asked, "after", 0)):
            # More than is shown is masked: a secret that is cut off might not be known as one.
            start = b"" if letter.header else self._bytes(letter.payload[: 16 * _SHOWN_START_BYTES])[:_SHOWN_START_BYTES]
            yield {**self._facts(id, letter), "payload_start": start.decode("utf-8", "backslashreplace")}

    def _facts(self, id: int, letter: DeadLetter) -> dict[str, Any]:
        return {
            "id": id,
            "component": letter.component,
            "reason": letter.reason.value,
            "detail": self._text(letter.detail),
            "records": letter.records,
            "peer": letter.peer,
            "offset": letter.offset,
            "attempts": letter.attempts,
            "time_unix_nano": letter.time_unix_nano,
            "payload_bytes": len(letter.payload),
            "rows": bool(letter.header),
        }

    async def _show(self, which: DeadFilter, asked: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        limit = max(1, min(_number(asked, "limit", 10), _MOST_LETTERS))
        most_rows = max(1, _number(asked, "rows", 1000))
        async for id, letter in self._letters(which, limit=limit, after=_number(asked, "after", 0), page=1):
            shown = await asyncio.get_running_loop().run_in_executor(None, self._shown, letter, most_rows)
            yield {**self._facts(id, letter), **shown.facts}
            for row, record in enumerate(shown.records):
                yield {"id": id, "row": row, "reason": letter.reason.value, "offset": letter.offset, **record}

    def _shown(self, letter: DeadLetter, most_rows: int) -> _Shown:
        """Return what can be seen of a letter: its rows, else its bytes."""
        from emp_pipe._core import Block, CoreError

        facts: dict[str, Any] = {}
        if letter.header:
            try:
                block = Block(letter.header, letter.payload)
                batch = block.decode(MAX_INFLATED_BYTES)
                if len(batch) > most_rows:
                    facts["rows_left_out"] = len(batch) - most_rows
                    batch = batch.slice(0, most_rows)
                if self._redactor is not None:
                    batch = self._redactor.batch(batch).batch
                lines = batch.to_json_lines().splitlines()
            except CoreError as error:
                facts["unreadable"] = str(error)
            else:
                facts |= {"signal": block.signal, "topic": block.topic, "block_id": self._text(block.block_id)}
                return _Shown(facts, [_record(line) for line in lines])
        data = self._bytes(letter.payload[:_MOST_SHOWN_BYTES])
        if len(letter.payload) > len(data):
            facts["bytes_left_out"] = len(letter.payload) - len(data)
        try:
            facts["bytes"] = data.decode()
        except UnicodeDecodeError:
            facts["bytes"] = data.decode("utf-8", "backslashreplace")
            facts["bytes_base64"] = base64.b64encode(data).decode()
        return _Shown(facts, [])

    async def _count(self, which: DeadFilter) -> AsyncIterator[dict[str, Any]]:
        letters = records = size_bytes = last_id = 0
        async for id, letter in self._letters(which):
            count, last_id = letter.count, id
            letters, records, size_bytes = letters + 1, records + count.records, size_bytes + count.size_bytes
        yield {"letters": letters, "records": records, "size_bytes": size_bytes, "up_to": last_id}

    async def _retry(self, which: DeadFilter) -> AsyncIterator[dict[str, Any]]:
        retried = records = refused = 0
        async for id, letter in self._letters(which):
            groups = [usage.spec for usage in self._log.usage().groups]
            back = await asyncio.get_running_loop().run_in_executor(None, way_back, id, letter, groups)
            if isinstance(back, Revival) and not await self._log.revive_dead_letters([back]):
                back = "it has gone back, or was deleted, in the meantime"
            if isinstance(back, Revival):
                retried, records = retried + 1, records + letter.records
                yield {"id": id, "retried": True, "group": back.group, "records": letter.records}
            else:
                refused += 1
                yield {"id": id, "retried": False, "reason": letter.reason.value, "why": self._text(back)}
        yield {"retried": retried, "records": records, "refused": refused}

    async def _drop(self, which: DeadFilter, up_to: int) -> AsyncIterator[dict[str, Any]]:
        dropped = records = 0
        async for id, letter in self._letters(which):
            if id > up_to:
                break
            if await self._log.delete_dead_letters([id]):
                dropped, records = dropped + 1, records + letter.records
        yield {"dropped": dropped, "records": records}

    def _bytes(self, data: bytes) -> bytes:
        return data if self._redactor is None else self._redactor.bytes(data).data

    def _text(self, text: str) -> str:
        return text if self._redactor is None else self._redactor.text(text)


class _Shown:
    def __init__(self, facts: dict[str, Any], records: list[dict[str, Any]]) -> None:
        self.facts = facts
        self.records = records


def _record(line: bytes) -> dict[str, Any]:
    if len(line) > _MOST_RECORD_BYTES:
        start = line[:_MOST_SHOWN_BYTES].decode("utf-8", "backslashreplace")
        return {"record_start": start, "record_bytes": len(line)}
    try:
        return {"record": json.loads(line)}
    except (ValueError, RecursionError):
        return {"record_start": line[:_MOST_SHOWN_BYTES].decode("utf-8", "backslashreplace"), "record_bytes": len(line)}


def _number(asked: Mapping[str, Any], key: str, default: int) -> int:
    value = asked.get(key)
    return default if value is None else int(value)


def _filter(asked: Mapping[str, Any]) -> DeadFilter:
    """Return what a question asks for. Raises ValueError where it cannot be."""
    reason, ids = asked.get("reason"), asked.get("ids")
    component = asked.get("component")
    return DeadFilter(
        component=None if component is None else str(component),
        reason=None if reason is None else DeadReason(reason),
        since_unix_nano=None if asked.get("since_unix_nano") is None else int(asked["since_unix_nano"]),
        until_unix_nano=None if asked.get("until_unix_nano") is None else int(asked["until_unix_nano"]),
        ids=None if ids is None else frozenset(int(id) for id in ids),
    )
