"""The job queue's Redis is told by what a URL names, not by how it is written."""

from __future__ import annotations

import pytest

from emp_pipe import job_queue
from emp_pipe.errors import ConfigError

_SAME = [
    ("redis://redis.internal:6379/0", "redis://redis.internal:6379/0"),
    ("redis://redis.internal", "redis://:s3cret@REDIS.internal:6379"),
    ("redis://pipe:a@redis.internal:6379/", "redis://hub:b@redis.internal/0"),
    ("rediss://redis.internal:6379/2", "redis://redis.internal.:6379/2"),
    ("redis://redis.internal/02", "redis://redis.internal?db=2"),
    ("redis://127.0.0.1:7000", "redis://localhost:7000"),
    ("redis://[::1]:7000", "redis://127.0.0.1:7000/0"),
    ("unix:///run/redis.sock", "unix:///run/redis.sock?db=0"),
    ("what is this", "what is this"),
]
_OTHER = [
    ("redis://redis.internal:6379/1", "redis://redis.internal:6379/0"),
    ("redis://redis.internal:6380", "redis://redis.internal:6379"),
    ("redis://redis-log.internal", "redis://redis.internal"),
    ("unix:///run/log.sock", "unix:///run/redis.sock"),
    ("redis://redis.internal", ""),
    ("redis://redis.internal", "redis://redis.internal:none"),
]


@pytest.mark.parametrize("variable", ["HUB_REDIS_URL", "REDIS_URL"])
@pytest.mark.parametrize(("log", "queue"), _SAME)
def test_a_log_in_the_job_queues_database_is_refused_however_it_is_written(log: str, queue: str, variable: str) -> None:
    with pytest.raises(ConfigError) as refused:
        job_queue.refuse(log, {variable: queue}, "environment EMP_BUFFER_REDIS_URL")
    assert variable in str(refused.value)
    assert "EMP_BUFFER_REDIS_URL" in str(refused.value)
    assert "a Redis of its own" in str(refused.value)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("variable", ["HUB_REDIS_URL", "REDIS_URL"])
@pytest.mark.parametrize(("log", "queue"), _OTHER)
def test_another_server_or_database_is_not(log: str, queue: str, variable: str) -> None:
    job_queue.refuse(log, {variable: queue}, "x")
