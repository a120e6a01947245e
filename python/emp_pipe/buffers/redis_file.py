"""After a start of Redis its append-only file is written anew, so that nothing lies in it that was cut short.

Redis that dies while it writes leaves half a script at the end of the file. Its next start leaves that half out, but (Redis 7.0.15,
Valkey before its pull request 4342) cuts the file within the script's `MULTI`, and writes on behind it: the start after that takes the
half for whole, and has blocks, holdings or books that never were. A file written anew has none of it. Not here: what the server promises
(`redis_server.py`), a server that has forgotten (`redis_life.py`).
"""

from __future__ import annotations

import asyncio
from typing import Any

from emp_pipe.buffers.redis_client import log_error
from emp_pipe.buffers.redis_link import Link
from emp_pipe.logs import RateLimitedLogger, get_logger

_LOOK_S = 0.02
_WITHIN_S = 10.0
_limited = RateLimitedLogger(get_logger("redis"), interval_s=3600.0)


async def write_anew(link: Link, within_s: float = _WITHIN_S) -> None:
    """Return when the file of the shard's server has been written anew since its start, or there is none, or it takes too long. Raises
    RedisLogError when the answers are lost."""
    about = await _ask(link, "INFO", "persistence")
    if not isinstance(about, dict) or not about.get("aof_enabled") or about.get("aof_last_rewrite_time_sec", 0) != -1:
        return
    if not _under_way(about):
        reply = await _ask(link, "BGREWRITEAOF")
        if isinstance(reply, Exception):
            _limited.warning(
                link.place,
                "%s: its append-only file cannot be written anew after its start (%s): if it was killed while it wrote, half of a change "
                "may come back at its next start. Give the ACL user +bgrewriteaof, or do it yourself: redis-cli BGREWRITEAOF",
                link.place,
                log_error(reply, link.place).detail,
            )
            return
    try:
        async with asyncio.timeout(within_s):
            while _under_way(await _ask(link, "INFO", "persistence")):  # noqa: ASYNC110 (another process)
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        return  # it goes on by itself


async def _ask(link: Link, *command: Any) -> Any:
    (reply,) = await link.send([list(command)])
    return reply


def _under_way(about: Any) -> bool:
    return isinstance(about, dict) and bool(about.get("aof_rewrite_in_progress") or about.get("aof_rewrite_scheduled"))
