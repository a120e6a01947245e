"""`journalctl` as a child process: how it is asked, its lines as they come, and why it ended.

Nothing is read from its pipe before the last lines are durable, so it waits where we wait. Not here: what the lines say.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

CHUNK_BYTES = 256 << 10
_MOST_SAID_BYTES = 4096
_ENDING_S = 2.0
_LOOK_S = 0.02


@dataclass(slots=True)
class Lines:
    """What one read brought: whole lines, and how many were longer than an entry may be (their first bytes are kept)."""

    whole: list[bytes] = field(default_factory=list)
    too_long: list[bytes] = field(default_factory=list)


class LineCutter:
    """Cuts a stream into lines, in bounded memory: of a line over the limit only the beginning is kept."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._open = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> Lines:
        """Return the lines that `data` ends."""
        lines = Lines()
        *ended, rest = data.split(b"\n")
        for part in ended:
            self._grow(part)
            if self._skipping:
                lines.too_long.append(bytes(self._open))
            elif self._open:
                lines.whole.append(bytes(self._open))
            self._open.clear()
            self._skipping = False
        self._grow(rest)
        return lines

    def _grow(self, part: bytes) -> None:
        if not self._skipping:
            self._open += part
            if len(self._open) > self._most_bytes:
                self._skipping = True
                del self._open[self._most_bytes :]


class Journalctl:
    """One run of journalctl. `read` gives its output, b"" at its end; what it says of its troubles goes to `on_said`."""

    def __init__(self, process: asyncio.subprocess.Process, on_said: Callable[[str], None]) -> None:
        self._process = process
        self._on_said = on_said
        self._said = ""
        self._listening = asyncio.create_task(self._listen(), name="journalctl's stderr")

    @classmethod
    async def start(cls, command: Sequence[str], on_said: Callable[[str], None]) -> Journalctl:
        """Start a command. Raises OSError where it cannot be started."""
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=CHUNK_BYTES,
            start_new_session=True,  # a Ctrl-C at our terminal is ours to handle
        )
        return cls(process, on_said)

    async def read(self) -> bytes:
        assert self._process.stdout is not None
        return await self._process.stdout.read(CHUNK_BYTES)

    async def _listen(self) -> None:
        assert self._process.stderr is not None
        while data := await self._process.stderr.read(_MOST_SAID_BYTES):
            for line in data.decode("utf-8", "replace").splitlines():
                if line.strip():
                    self._said = line.strip()[:300]
                    self._on_said(self._said)

    async def end(self) -> None:
        """End it where it runs, by force where it does not end by itself."""
        for kill in (self._process.terminate, self._process.kill):
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    kill()
                await self._gone(_ENDING_S)
        self._listening.cancel()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._drained(), _ENDING_S)

    async def ended(self) -> tuple[int | None, str]:
        """Return its exit status and the last thing that it said, once its output has ended; one that goes on without output is ended."""
        await self._gone(_ENDING_S)
        await asyncio.wait([self._listening], timeout=_ENDING_S)
        await self.end()
        return self._process.returncode, self._said

    async def _gone(self, patience_s: float) -> None:
        # `Process.wait` may wait for pipes that nobody reads any more.
        for _ in range(round(patience_s / _LOOK_S)):
            if self._process.returncode is not None:
                return
            await asyncio.sleep(_LOOK_S)

    async def _drained(self) -> None:
        while await self.read():
            pass
