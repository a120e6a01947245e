"""The process that asks NVML, seen from the edge: begun when it is needed, given up when it does not answer, and never waited for.

A call into the driver that hangs can make its process unkillable. Such a process is left behind, and no second one is begun beside it. The
lines it writes are in `gpu_metrics_nvml.py`; what is done with them in `gpu_metrics.py`.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal

Json = dict[str, Any]
_MODULE = "emp_pipe.receivers.gpu_metrics_nvml"
_MOST_LINE_BYTES = 8 << 20
_FIRST_TIMES = 3
"""The first reading may take so many times as long: a driver wakes GPUs that nobody uses."""
_DEATH_S = 2.0


class NvmlFailure(Exception):
    """No reading. `kind` says whether there is no driver to ask, it hangs (just now, or still), or its process ended."""

    def __init__(self, kind: Literal["unavailable", "hung", "still_hangs", "ended"], detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class NvmlProcess:
    """At most one process at a time. `on_xid` is called with every Xid's line."""

    def __init__(self, library: str, on_xid: Callable[[Json], None]) -> None:
        self._library = library
        self._on_xid = on_xid
        self._process: Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._answer: asyncio.Future[Json] | None = None
        self._is_first = True
        self._undying: Process | None = None

    @property
    def pid(self) -> int | None:
        """The process that is asked, where there is one."""
        return self._process.pid if self._process is not None else None

    def command(self) -> Sequence[str]:
        return [sys.executable, "-P", "-m", _MODULE, *([self._library] if self._library else [])]

    async def read(self, timeout_s: float) -> Json:
        """Return what NVML says of all GPUs. Raises NvmlFailure; the next call begins anew."""
        if self._undying is not None:
            if self._undying.returncode is None:
                raise NvmlFailure("still_hangs", f"process {self._undying.pid} hangs in the driver and cannot be ended")
            self._undying = None
        process = self._process or await self._begin()
        self._answer = answer = asyncio.get_running_loop().create_future()
        times = _FIRST_TIMES if self._is_first else 1
        try:
            assert process.stdin is not None
            with suppress(ConnectionError):  # its last words are being read
                process.stdin.write(b"read\n")
            async with asyncio.timeout(timeout_s * times):
                read: Json = await answer
        except TimeoutError:
            await self.close()
            raise NvmlFailure("hung", f"NVML did not answer within {timeout_s * times:g} s") from None
        except NvmlFailure:
            with suppress(TimeoutError):  # it ends by itself, as far as it can
                async with asyncio.timeout(_DEATH_S):
                    await process.wait()
            await self.close()
            raise
        self._is_first = False
        return read

    async def close(self) -> None:
        """End the process, without waiting for one that cannot be ended."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        try:
            async with asyncio.timeout(_DEATH_S):
                await process.wait()
        except TimeoutError:
            self._undying = process
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])
            self._listening = None

    async def _begin(self) -> Process:
        self._is_first = True
        try:
            process = await asyncio.create_subprocess_exec(
                *self.command(), stdin=PIPE, stdout=PIPE, stderr=DEVNULL, limit=_MOST_LINE_BYTES, start_new_session=True
            )
        except OSError as error:
            raise NvmlFailure("ended", f"the process that asks NVML could not be begun ({error})") from error
        self._process = process
        self._listening = asyncio.create_task(self._listen(process), name=f"NVML process {process.pid}")
        return process

    async def _listen(self, process: Process) -> None:
        """Hand on what the process writes, until it ends."""
        failure = NvmlFailure("ended", "the process that asks NVML wrote what is no answer")
        assert process.stdout is not None
        try:
            while line := await process.stdout.readline():
                said = json.loads(line)
                match said["kind"]:
                    case "xid":
                        self._on_xid(said)
                    case "reading":
                        self._settle(said)
                    case _:
                        self._settle(NvmlFailure("unavailable", said["reason"]))
            failure = NvmlFailure("ended", _ended(await process.wait()))
        except (ValueError, KeyError, TypeError):  # not ours: something else wrote into its output, or it died in mid-line
            pass
        self._settle(failure)

    def _settle(self, answer: Json | NvmlFailure) -> None:
        if self._answer is None or self._answer.done():
            return
        if isinstance(answer, NvmlFailure):
            self._answer.set_exception(answer)
        else:
            self._answer.set_result(answer)


def _ended(code: int) -> str:
    if code >= 0:
        return f"the process that asks NVML ended with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"the process that asks NVML was ended by {name}"
