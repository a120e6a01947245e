"""The control socket: how `emp-pipe tap`, `groups` and `dlq` talk to the process that uses a data directory.

A Unix socket `control.sock` in the data directory, for its owner only. One JSON line asks, JSON lines answer, the last one of a refusal is
`{"error": …}`. Not here: what a question does (`pipeline.py` hands in the handlers), how answers look (`cli_admin.py`),
asking (`control_client.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from emp_pipe.control_client import NAME as NAME
from emp_pipe.control_client import ask as ask
from emp_pipe.control_client import short_path
from emp_pipe.errors import EmpPipeError, ErrorKind
from emp_pipe.logs import get_logger

_MOST_QUESTION_BYTES = 65_536
_LONGEST_SILENCE_S = 10.0
Handler = Callable[[dict[str, Any]], AsyncIterator[bytes]]


class ControlServer:
    """Answers questions from `start` to `stop`. The data directory must be this process's own (its lock is held)."""

    def __init__(self, data_dir: Path, handlers: Mapping[str, Handler]) -> None:
        self._data_dir = data_dir
        self._handlers = handlers
        self._server: asyncio.Server | None = None
        self._questions: set[asyncio.Task[None]] = set()
        self._logger = get_logger("control")

    async def start(self) -> None:
        """Listen. Where the disk has no place for a socket (it is full or read-only) that is said, and everything else goes on."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with contextlib.suppress(FileNotFoundError):
                (self._data_dir / NAME).unlink()  # of a process that was killed
            with short_path(self._data_dir) as path:
                listener.bind(path)
                os.chmod(path, 0o600)
        except OSError as error:
            listener.close()
            self._logger.error(
                "%s cannot be made (%s): `emp-pipe tap`, `groups` and `dlq` cannot ask this process", self._data_dir / NAME, error.strerror
            )
            return
        listener.listen(16)
        listener.setblocking(False)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=_MOST_QUESTION_BYTES)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in self._questions:
            task.cancel()
        if self._questions:
            await asyncio.wait(self._questions)
        with contextlib.suppress(OSError):
            (self._data_dir / NAME).unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._questions.add(task)
        try:
            question = await asyncio.wait_for(reader.readline(), _LONGEST_SILENCE_S)
            async with asyncio.TaskGroup() as both:
                answering = both.create_task(self._answer(question, writer))
                hung_up = both.create_task(_until_hung_up(reader))
                await asyncio.wait([answering, hung_up], return_when=asyncio.FIRST_COMPLETED)
                answering.cancel()
                hung_up.cancel()
        except (OSError, ValueError, TimeoutError) as error:
            self._logger.debug("a question was not understood: %s", error)
        except asyncio.CancelledError:
            pass  # `stop`: it waits for this task
        finally:
            self._questions.discard(task)
            writer.close()

    async def _answer(self, question: bytes, writer: asyncio.StreamWriter) -> None:
        try:
            asked = json.loads(question)
            handler = self._handlers.get(str(asked.get("ask")))
            if handler is None:
                raise EmpPipeError(ErrorKind.CONFIG_INVALID, place="control", detail=f"there is no question {asked.get('ask')!r}")
            async for line in handler(asked):
                if writer.is_closing():  # who asked has gone: uvloop says it by a RuntimeError
                    return
                writer.write(line)
                await writer.drain()
        except OSError:
            return
        except (EmpPipeError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            if writer.is_closing():
                return
            writer.write(json.dumps({"error": str(error)}).encode() + b"\n")
        with contextlib.suppress(OSError):
            await writer.drain()


async def _until_hung_up(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        await reader.read(1)


def json_line(**fields: Any) -> bytes:
    return json.dumps(fields, default=str).encode() + b"\n"
