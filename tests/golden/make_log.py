"""Writes `log-v<version>.db`, which every later version must read: `python -m tests.golden.make_log`, once for each new version."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

from emp_pipe.buffers.sqlite import SqliteConfig, SqliteLog
from emp_pipe.buffers.sqlite_schema import VERSION
from emp_pipe.component import Context
from emp_pipe.log.protocol import Append, ChunkKey, DeadLetter, DeadReason, GroupSpec, ReceiverBooks, Topic
from emp_pipe.self_metrics import Metrics
from tests.support.blocks import block
from tests.support.manual_clock import ManualClock


async def main(target: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        clock = ManualClock()
        log = SqliteLog("sqlite", SqliteConfig(min_free_bytes=0), Context(clock, Metrics(), Path(directory), "m1", "run"))
        both = frozenset([Topic.LOGS, Topic.EVENTS])
        await log.open([GroupSpec("a", frozenset([Topic.LOGS])), GroupSpec("b", both, required=False)])
        letter = DeadLetter("forward", DeadReason.ENTRY_INVALID, "a torn entry", b"\x92\xd7", peer="127.0.0.1:5", offset=17)
        await log.append(
            Append(
                [block([1], codec="gzip"), block([2, 3], codec="zstd"), block([10], topic="events")],
                checkpoints={"tail:/var/log/app.log": b"4096"},
                books=[ReceiverBooks("forward", received=5, appended=4, invalid=1)],
                dead=[letter],
                chunks=[ChunkKey("peer", b"chunk-1")],
            )
        )
        (first, _) = await log.read("a", 1 << 20)
        await log.commit("a", acks=[first], state_puts={"job/7": b"running"})
        await log.close(clock.monotonic_s() + 30)
        shutil.copy(Path(directory) / "log" / "log.db", target)


if __name__ == "__main__":
    asyncio.run(main(Path(__file__).parent / f"log-v{VERSION}.db"))
