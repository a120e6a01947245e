"""A log on a server that may not be there yet: it is opened when it comes, and whoever reads waits for that.

Not here: what is appended meanwhile (`redis_spool.py`), the log on the server (`redis.py`).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from emp_pipe.clock import Clock
from emp_pipe.errors import EmpPipeError, ErrorKind, LogError
from emp_pipe.log.protocol import DeadFilter, DeadLetter, Delivery, GroupSpec, Log, Rejection, Revival

if TYPE_CHECKING:
    from emp_pipe._core import Block

_OPEN_AGAIN_S = 1.0
_OPEN_AGAIN_MOST_S = 10.0

Opener = Callable[[Log], Awaitable[bool]]


class Remote(Log, Protocol):
    """A log on a server."""

    @property
    def away(self) -> str:
        """Why nothing can be written to it; empty while it can."""
        ...

    async def wait_counted(self) -> None:
        """Return when what was appended from here is in the books; after a while in any case."""
        ...

    @property
    def warnings(self) -> Sequence[str]: ...

    @property
    def details(self) -> Mapping[str, Any]: ...


class LateLog(ABC):
    """What a `Log` does of which only the server knows. A subclass appends, answers for books and admission, and closes."""

    def __init__(self, id: str, remote: Remote, clock: Clock, place: str) -> None:
        self.id = id
        self.remote = remote
        self.place = place
        self.opened = asyncio.Event()
        self._clock = clock
        self._unopened = "it has not been asked yet"
        self._closing = True
        self._opening: asyncio.Task[None] | None = None

    @property
    def away(self) -> str:
        """Why it cannot be written to; empty while it can."""
        return self.remote.away if self.opened.is_set() else self._unopened

    @property
    def parts(self) -> Sequence[Log]:
        """Those of the remote log, which are known once it is open."""
        return self.remote.parts

    @property
    def shared_name(self) -> str:
        return str(getattr(self.remote, "shared_name", ""))

    @property
    def ours(self) -> bool:
        return self.opened.is_set() and self.remote.ours

    async def leave(self, deadline_monotonic_s: float) -> None:
        """Let other replicas have what this one reads, where there are any."""
        leave = getattr(self.remote, "leave", None)
        if leave is not None and self.opened.is_set():
            await leave(deadline_monotonic_s)

    # what a subclass says of it

    @abstractmethod
    async def _came(self, *, late: bool) -> None:
        """It is open now; `late`: nobody waits for that any more."""

    @abstractmethod
    def _is_not_here(self, error: EmpPipeError, *, first: bool) -> None:
        """It could not be opened, and is tried again. `first`: whoever opens it goes on now without it."""

    # opening

    async def _open_remotely(self, opener: Opener, patience_s: float) -> bool:
        """Open it now or, when it does not answer, later. Raises what waiting does not mend, as far as it is known in time."""
        loop = asyncio.get_running_loop()
        known: asyncio.Future[bool] = loop.create_future()
        self._opening = loop.create_task(self._open_until(opener, known), name=f"{self.id}: opening")
        await asyncio.wait([known], timeout=patience_s)
        if known.done():
            return known.result()
        known.cancel()
        self._is_not_here(LogError(ErrorKind.LOG_IO, place=self.place, detail="no answer yet", advice="it is waited for"), first=True)
        return True

    async def _open_until(self, opener: Opener, known: asyncio.Future[bool]) -> None:
        """Try until it is open. `known` is told what came of it while somebody waits for that."""
        while True:
            try:
                opened = await opener(self.remote)
            except Exception as found:  # also what nobody expects, such as keys of another program: else it is waited for in silence
                error = found if isinstance(found, EmpPipeError) else self._unexpected(found)
                await self.remote.close(self._clock.monotonic_s())  # as far as it was opened
                passing = bool(getattr(error, "passing", False))
                if not passing and not known.done():
                    known.set_exception(error)
                    return
                self._unopened = str(error)
                self._is_not_here(error, first=not known.done())
                if not known.done():
                    known.set_result(True)
                await self._clock.sleep(_OPEN_AGAIN_S if passing else _OPEN_AGAIN_MOST_S)
            else:
                break
        late = known.done()
        if opened:
            await self._came(late=late)
            self._unopened = ""
            self.opened.set()
        if not known.done():
            known.set_result(opened)

    def _unexpected(self, error: Exception) -> LogError:
        detail = f"it cannot be opened ({type(error).__name__}: {error})"
        found = LogError(
            ErrorKind.LOG_IO, place=self.place, detail=detail, advice="see whether another program writes under `buffer.prefix`"
        )
        found.__cause__ = error
        return found

    def _check_open(self) -> None:
        if self._closing:
            raise LogError(ErrorKind.LOG_CLOSED, place=self.id)

    async def _here(self) -> Remote:
        """Return the remote log once it is open."""
        await self.opened.wait()
        self._check_open()
        return self.remote

    def _opened_now(self) -> Remote:
        self._check_open()
        if not self.opened.is_set():
            raise LogError(ErrorKind.LOG_IO, place=self.place, detail=self._unopened, advice="it is tried again; ask again when it is here")
        return self.remote

    # the rest is Redis'

    async def set_groups(self, groups: Sequence[GroupSpec]) -> None:
        await self._opened_now().set_groups(groups)

    async def read(self, group: str, max_bytes: int, owner: str = "") -> list[Delivery]:
        self._check_open()
        return await self.remote.read(group, max_bytes, owner) if self.opened.is_set() else []

    async def wait_readable(self, group: str) -> None:
        await (await self._here()).wait_readable(group)

    async def commit(
        self,
        group: str,
        *,
        acks: Sequence[Delivery] = (),
        skipped_records: Mapping[int, int] | None = None,
        rejections: Sequence[Rejection] = (),
        outputs: Sequence[Block] = (),
        state_puts: Mapping[str, bytes] | None = None,
        state_ttl_s: float | None = None,
        state_deletes: Sequence[str] = (),
    ) -> None:
        await (await self._here()).commit(
            group,
            acks=acks,
            skipped_records=skipped_records,
            rejections=rejections,
            outputs=outputs,
            state_puts=state_puts,
            state_ttl_s=state_ttl_s,
            state_deletes=state_deletes,
        )

    def defer(self, deliveries: Sequence[Delivery]) -> None:
        self.remote.defer(deliveries)

    async def held_by(self, group: str, offsets: Sequence[int]) -> set[int]:
        return await (await self._here()).held_by(group, offsets)

    async def state_get(self, group: str, key: str) -> bytes | None:
        return await (await self._here()).state_get(group, key)

    async def state_items(self, group: str, prefix: str = "") -> dict[str, bytes]:
        return await (await self._here()).state_items(group, prefix)

    async def reset_group(self, group: str, start: Literal["oldest", "newest"]) -> None:
        await self._opened_now().reset_group(group, start)

    async def drop_group(self, group: str) -> None:
        await self._opened_now().drop_group(group)

    async def dead_letters(self, limit: int = 100, after_id: int = 0, which: DeadFilter | None = None) -> list[tuple[int, DeadLetter]]:
        return await self._opened_now().dead_letters(limit, after_id, which)

    async def delete_dead_letters(self, ids: Sequence[int]) -> int:
        return await self._opened_now().delete_dead_letters(ids)

    async def revive_dead_letters(self, revivals: Sequence[Revival]) -> list[int]:
        return await self._opened_now().revive_dead_letters(revivals)
