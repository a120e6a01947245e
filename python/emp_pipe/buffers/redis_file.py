"""After a start of Redis its append-only file is written anew, so that nothing lies in it that was cut short.

Redis that dies while it writes leaves half a script at the end of the file. Its next start leaves that half out, but (Redis 7.0.15,
Valkey before its pull request 4342) cuts the file within the script's `MULTI`, and writes on behind it: the start after that takes the
half for whole, and has blocks, holdings or books that never were, and not what they took the place of. A file written anew has none of it.

A server that was started does not know our script: nobody's calls do anything before somebody has come by here and then loaded it
(`ShardLife.find`). Not here: what the server promises (`redis_server.py`), a server that has forgotten (`redis_life.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from emp_pipe.buffers.redis_client import RedisLogError, Trouble, log_error
from emp_pipe.buffers.redis_link import Link
from emp_pipe.logs import RateLimitedLogger, get_logger

_LOOK_S = 0.02
_WITHIN_S = 2.0
"""After it whoever waits is told how it stands; the file is asked for again then."""
_limited = RateLimitedLogger(get_logger("redis"), interval_s=3600.0)


async def write_anew(link: Link) -> None:
    """Return when the file of the shard's server has been written anew since its start; also where there is none, and, said as a warning,
    where Redis cannot write it. Raises RedisLogError while it is not finished, and when the answers are lost."""
    about = await _persistence(link)
    if not about.get("aof_enabled"):
        return
    if not _ended(about):
        if not _under_way(about):
            reply = await _ask(link, "BGREWRITEAOF")
            if isinstance(reply, Exception):
                _warn(link, log_error(reply, link.place).detail)
                return
        try:
            async with asyncio.timeout(_WITHIN_S):
                while _under_way(about := await _persistence(link)):  # noqa: ASYNC110 (another process)
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            detail = "Redis is writing its append-only file anew after its start: nothing is written before that is finished"
            raise RedisLogError(Trouble.LOADING, place=link.place, detail=detail) from None
    if about.get("aof_last_bgrewrite_status", "ok") != "ok":
        _warn(link, "Redis says that it failed: see its own log")


def _warn(link: Link, why: str) -> None:
    _limited.warning(
        link.place,
        "%s: its append-only file cannot be written anew after its start (%s): if it was killed while it wrote, half of a change "
        "may come back at its next start. Give the ACL user +bgrewriteaof, or do it yourself: redis-cli BGREWRITEAOF",
        link.place,
        why,
    )


async def _persistence(link: Link) -> dict[str, Any]:
    about = await _ask(link, "INFO", "persistence")
    if isinstance(about, Exception):
        raise log_error(about, link.place)
    return dict(about)


async def _ask(link: Link, *command: Any) -> Any:
    (reply,) = await link.send([list(command)])
    return reply


def _ended(about: Mapping[str, Any]) -> bool:
    """Whether one that was begun since the server's start has ended, well or not: one that failed is not begun again and again."""
    return bool(about.get("aof_last_rewrite_time_sec", 0) != -1)


def _under_way(about: Mapping[str, Any]) -> bool:
    return bool(about.get("aof_rewrite_in_progress") or about.get("aof_rewrite_scheduled"))
