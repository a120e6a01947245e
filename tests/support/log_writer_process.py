"""A process that appends to a log until it is killed: `python -m tests.support.log_writer_process DIRECTORY SEED`.

It prints `sent <n>` before and `held <n>` after each append, `ending <n>` before and `ended <n>` after each commit.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from random import Random

from emp_pipe.buffers.sqlite import SqliteConfig, SqliteLog
from emp_pipe.clock import SystemClock
from emp_pipe.component import Context
from emp_pipe.log.protocol import Append, GroupSpec, ReceiverBooks, Topic
from emp_pipe.self_metrics import Metrics
from tests.support.blocks import block, delivered


def say(what: str, number: int) -> None:
    sys.stdout.write(f"{what} {number}\n")
    sys.stdout.flush()


async def main(directory: Path, seed: int) -> None:
    random = Random(seed)
    log = SqliteLog(
        "sqlite", SqliteConfig(directory=directory, min_free_bytes=0), Context(SystemClock(), Metrics(), directory, "m1", "run")
    )
    await log.open([GroupSpec("a", frozenset([Topic.LOGS]))])

    async def append(start: int) -> None:
        for number in range(start, 1_000_000, 4):
            one = block([number], padding_bytes=random.choice((10, 5000, 50_000)))
            say("sent", number)
            await log.append(Append([one], books=[ReceiverBooks("test", received=1, appended=1)]))
            say("held", number)

    async def end() -> None:
        while True:
            await log.wait_readable("a")
            deliveries = await log.read("a", 60_000)
            ending = [delivery for delivery in deliveries if random.random() < 0.6]
            log.defer([delivery for delivery in deliveries if delivery not in ending][:1])
            for number in delivered(ending):
                say("ending", number)
            await log.commit("a", acks=ending)
            for number in delivered(ending):
                say("ended", number)
            await asyncio.sleep(0)

    await asyncio.gather(*(append(start) for start in range(4)), end())


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
