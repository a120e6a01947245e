"""A deriver over a log of several parts: an instance and a loop of its own for each, with the face of one loop.

What a deriver has to see together lies in one part (`Log.parts`), and a part has one reader at a time; the loop of a part that another
replica reads waits. Which parts there are is known once the log is open, so the loops are made when they are run. What a deriver may hold
is divided by the number of parts: it is meant for the process. Not here: the loop itself (`derive.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from emp_pipe.component import Context, Deriver
from emp_pipe.delivery.derive import DeriveLoop
from emp_pipe.delivery.first_of import first_of
from emp_pipe.delivery.lag import Lag
from emp_pipe.delivery.loop import DeliveryStatus
from emp_pipe.errors import EmpPipeError
from emp_pipe.log.protocol import Log, OfOnePiece

if TYPE_CHECKING:
    from emp_pipe._core import Block

_LOOK_EVERY_S = 0.5
_STATES = ("idle", "deriving", "retrying")


class DeriveLoops:
    """Runs a deriver over its group in every part of a log. `make` builds an instance, one of so many in this process."""

    def __init__(self, make: Callable[[int], Deriver], log: Log, context: Context, *, watch: Callable[[Block], None] | None = None) -> None:
        self._make = make
        self.deriver = make(1)
        """For what all instances have in common; the only one, where the log is of one piece."""
        self.id = self.group = self.deriver.id
        self._log = log
        self._context = context
        self._watch = watch
        self._lag = Lag(log, self.group, context.clock)
        self._loops: list[DeriveLoop] = []
        self._left = asyncio.Event()

    async def run(self) -> None:
        """Derive until `stop`, or until a `drain` is done. Raises EmpPipeError where a deriver fails and `on_error` is stop."""
        opened = getattr(self._log, "opened", None)  # of one that may come later, its parts are known then
        if opened is not None:
            await first_of(opened.wait(), self._left.wait())
        if self._left.is_set():
            return
        parts = self._log.parts
        derivers = [self.deriver] if len(parts) == 1 else [self._make(len(parts)) for _ in parts]
        self._loops = [DeriveLoop(one, part, self._context, watch=self._watch) for one, part in zip(derivers, parts, strict=True)]
        if all(isinstance(part, OfOnePiece) for part in parts) and len(parts) == 1:
            await self._loops[0].run()
            return
        looking = asyncio.ensure_future(self._look())
        try:
            async with asyncio.TaskGroup() as tasks:
                for number, loop in enumerate(self._loops):
                    tasks.create_task(loop.run(), name=f"{self.id} {number}")
        except ExceptionGroup as errors:
            raise next((error for error in errors.exceptions if isinstance(error, EmpPipeError)), errors.exceptions[0]) from None
        finally:
            looking.cancel()

    async def _look(self) -> None:
        """Let a loop that waits for its next tick see that another replica has its part now."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            for part, loop in zip(self._log.parts, self._loops, strict=False):
                if not part.ours:
                    loop.look()

    async def drain(self, deadline_monotonic_s: float, *, leaving: bool = False) -> bool:
        """Take what is there now, tick for the last time, commit, end; return whether the group holds nothing then."""
        self._left.set()
        drained = await asyncio.gather(*(loop.drain(deadline_monotonic_s, leaving=leaving) for loop in self._loops))
        return all(drained) if drained else not self._lag.held_records

    async def stop(self, deadline_monotonic_s: float) -> None:
        """Take nothing more, let commits under way end before the deadline, give the rest back."""
        self._left.set()
        await asyncio.gather(*(loop.stop(deadline_monotonic_s) for loop in self._loops))

    def status(self) -> DeliveryStatus:
        """Return how the deriver fares: the worst of its states, and sums."""
        statuses = [loop.status() for loop in self._loops]
        successes = [one.seconds_since_success for one in statuses if one.seconds_since_success is not None]
        return DeliveryStatus(
            component=self.id,
            group=self.group,
            state=max((one.state for one in statuses), key=_STATES.index, default="idle"),
            error=next((one.error for one in statuses if one.error), ""),
            concurrency_limit=max(len(statuses), 1),
            in_flight=sum(one.in_flight for one in statuses),
            waiting=0,
            unsettled=sum(one.unsettled for one in statuses),
            held_records=self._lag.held_records,
            lag_s=self._lag.seconds,
            seconds_since_success=min(successes, default=None),
        )
