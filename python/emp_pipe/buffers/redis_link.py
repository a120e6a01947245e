"""One shard's way to the server that holds it: calls of the script, in pipelines, on a cluster to the node that has the shard's slot.

Nothing is sent twice here. Not here: what is asked for (`redis_calls.py`), in which order and how often (`redis_queue.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack  # type: ignore[import-untyped]

from emp_pipe.buffers.redis_client import RedisLogError, Trouble, log_error
from emp_pipe.buffers.redis_keys import Keys, View

if TYPE_CHECKING:
    from emp_pipe.buffers.redis_client import Client


class Call(NamedTuple):
    """One run of the script: its arguments, the keys beyond the shard's own, and the long arguments."""

    name: str
    arguments: dict[str, Any]
    keys: Sequence[str] = ()
    payloads: Sequence[bytes | memoryview] = ()


class Link:
    """One shard's way to the server that holds it: pipelines of commands. Raises RedisLogError."""

    def __init__(self, client: Client, keys: Keys, view: View, owner: str, place: str, waits: Sequence[Wait] = ()) -> None:
        self.client: Any = client
        self.keys = keys
        self.view = view
        self.owner = owner
        self.place = place
        self.waits = waits
        self._is_cluster = hasattr(client, "get_node_from_key")
        self._script = "\n".join((Path(__file__).parent / f"redis_script_{part}.lua").read_text() for part in ("base", "calls", "reads"))
        self._sha = b""

    async def load(self) -> None:
        """Make the script known to the server."""
        (reply,) = await self.send([["SCRIPT", "LOAD", self._script]])
        if isinstance(reply, Exception):
            raise log_error(reply, self.place)
        self._sha = reply

    def command(self, call: Call, number: int = 0) -> list[Any]:
        fixed: dict[str, Any] = {"name": call.name, "id": self.view.id, "owner": self.owner}
        if number:
            fixed |= {"seq": number, "known": self.view.operations}
        packed = msgpack.packb(fixed | call.arguments, use_bin_type=False)
        keys = self.keys.fixed
        return ["EVALSHA", self._sha, len(keys) + len(call.keys), *keys, *call.keys, packed, *call.payloads]

    async def send(self, commands: Sequence[Sequence[Any]], *, durable: bool = False) -> list[Any]:
        """Return a reply or an exception for each command. Raises RedisLogError when the answers are lost, or the script is not known.

        `durable`: return when they are as safe as the settings ask for; where that takes too long their outcome is as if it were lost."""
        waits = self.waits if durable else ()
        try:
            replies = await self._exchange([*commands, *(wait.command for wait in waits)])
        except Exception as error:
            raise log_error(error, self.place) from error
        if any(_unknown_script(reply) for reply in replies):
            detail = "Redis was started anew, or another one answers: it is looked at first"
            raise RedisLogError(Trouble.LOADING, place=self.place, detail=detail)
        for wait, reply in zip(waits, replies[len(commands) :], strict=True):
            wait.check(reply, self.place)
        return replies[: len(commands)]

    async def _exchange(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        if not self._is_cluster:
            pipeline = self.client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
            return replies
        from redis.asyncio.cluster import PipelineCommand
        from redis.exceptions import AskError, ConnectionError, MovedError, TimeoutError, TryAgainError

        await self.client.initialize()
        node = self.client.get_node_from_key(self.keys.meta)
        asked = [PipelineCommand(place, *command) for place, command in enumerate(commands)]
        await node.execute_pipeline(asked)
        for one in asked:
            if isinstance(one.result, (ConnectionError, TimeoutError, MovedError, AskError, TryAgainError, OSError)):
                await self.client.aclose()  # the next use asks where everything is
                raise one.result
        return [one.result for one in asked]

    async def ask(self, call: Call, number: int = 0) -> list[Any]:
        """Return the reply to one call. Raises RedisLogError."""
        (reply,) = await self.send([self.command(call, number)], durable=bool(number))
        if isinstance(reply, Exception):
            raise log_error(reply, self.place)
        return list(reply)


class Wait(NamedTuple):
    """What follows the operations of a pipeline: Redis answers when so many disks or replicas have them."""

    command: Sequence[Any]
    least: Sequence[int]
    what: str

    def check(self, reply: Any, place: str) -> None:
        if isinstance(reply, Exception):
            raise log_error(reply, place)
        found = reply if isinstance(reply, list) else [reply]
        if any(number < least for number, least in zip(found, self.least, strict=True)):
            detail = f"{' and '.join(map(str, found))} of {' and '.join(map(str, self.least))} {self.what} have what was written"
            raise RedisLogError(Trouble.TIMED_OUT, place=place, detail=detail)


def _unknown_script(reply: Any) -> bool:
    return isinstance(reply, Exception) and (type(reply).__name__ == "NoScriptError" or str(reply).startswith("NOSCRIPT"))


async def end_tasks(running: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks that use the client and return when they have ended: it swallows a cancellation that comes while it connects."""
    tasks = set(running)
    while tasks:
        for task in tasks:
            task.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=0.1)
