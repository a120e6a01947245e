"""What `log/protocol.py` promises of an append holds over a log in Redis with a spool too: for what goes straight there, and for what
goes through the spool. The promises are those of `test_log.py`; what they say of offsets is not asked: a spooled block has none yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from emp_pipe.buffers.redis import RedisConfig, build
from emp_pipe.buffers.redis_spool import SpooledLog
from emp_pipe.component import Context
from emp_pipe.log.protocol import Append, Appended, Log
from emp_pipe.self_metrics import Metrics
from tests.contract.conftest import DEADLINE_S, OpenLog
from tests.contract.test_log import (  # noqa: F401 (they are run here)
    test_a_block_comes_back_as_it_was_given,
    test_a_checkpoint_moves_with_its_append,
    test_a_chunk_is_known_after_a_restart,
    test_a_closed_log_refuses_everything,
    test_a_group_reads_only_its_topics,
    test_a_restart_replays_exactly_what_was_not_ended,
    test_a_topic_that_no_group_reads_is_not_written,
    test_an_ack_frees_the_space,
    test_an_append_is_all_or_nothing,
    test_receivers_books_add_up_over_appends_and_restarts,
    test_rejected_rows_become_dead_letters_in_the_same_commit,
    test_space_is_freed_only_when_every_group_has_ended_the_block,
    test_waiting_to_read_ends_with_an_append,
    test_what_was_appended_is_delivered_in_order,
)
from tests.support.redis_server import needs_redis

pytestmark = needs_redis
KINDS = ("straight to Redis", "through the spool")


class ThroughTheSpool(SpooledLog):
    """Spools everything, and returns from an append when it has drained."""

    @property
    def _goes_to_spool(self) -> bool:
        return True

    async def append(self, append: Append) -> Appended:
        appended = await super().append(append)
        async with asyncio.timeout(DEADLINE_S):
            while self.says.state != "idle":  # noqa: ASYNC110 (what it waits for happens at the server and on threads)
                await asyncio.sleep(0.002)
        return appended


class OpenSpooled(OpenLog):
    """A log in Redis with a spool."""

    def _make(self) -> Log:
        context = Context(self.clock, Metrics(), self._directory, "m1", "run")
        spool = {"enabled": True, "min_free_bytes": 0}
        config = RedisConfig(**{"url": self._url, "prefix": self._prefix, "retire_after_s": 0, "spool": spool, **self.settings})
        log: Any = build("redis", config, context)
        if self.kind.startswith("through"):
            log.__class__ = ThroughTheSpool
        return log  # type: ignore[no-any-return]


@pytest.fixture
async def opened(request: pytest.FixtureRequest, tmp_path: Path, redis_url: str) -> AsyncIterator[OpenLog]:
    under_test = OpenSpooled(request.param, tmp_path, redis_url)
    yield under_test
    await under_test.check_books()
    await under_test.close()
