"""A process that died on this machine is followed at once; one of which that cannot be known is waited for."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from emp_pipe.buffers.redis_process import is_dead, name_of_this
from emp_pipe.log.protocol import Append
from tests.contract.conftest import group
from tests.contract.redis_logs import check_books, logs_of, read
from tests.support.blocks import block, delivered
from tests.support.manual_clock import ManualClock
from tests.support.redis_server import RedisServer, needs_redis

_NAME = "from emp_pipe.buffers.redis_process import name_of_this; print(name_of_this('m1', 'x'), flush=True); input()"


@pytest.fixture
def other() -> Iterator[subprocess.Popen[str]]:
    """Another process, which says its name."""
    with subprocess.Popen([sys.executable, "-c", _NAME], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def name_said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(30)


def test_a_process_is_dead_when_it_has_ended_and_not_before(other: subprocess.Popen[str]) -> None:
    name = name_said(other)
    assert not is_dead(name)
    assert not is_dead(name_of_this("m1", "y"))
    end(other)
    assert is_dead(name)


def test_a_pid_that_another_process_has_now_is_dead() -> None:
    rest, pid, began = name_of_this("m1", "x").rsplit(".", 2)
    assert is_dead(f"{rest}.{pid}.{int(began) - 1}")


@pytest.mark.parametrize("part", ["boot", "namespace"])
def test_a_process_of_another_boot_or_namespace_is_never_said_to_be_dead(other: subprocess.Popen[str], part: str) -> None:
    name = name_said(other)
    end(other)
    before, boot, namespace, pid, began = (name.partition("@")[0], *name.partition("@")[2].split("."))
    boot, namespace = ("another", namespace) if part == "boot" else (boot, "1")
    assert is_dead(name)
    assert not is_dead(f"{before}@{boot}.{namespace}.{pid}.{began}")


@pytest.mark.parametrize("name", ["", "m1-1-x", "m1-1-x@", "m1-1-x@..", "m1@h.x.1", "m1@.1.1", "m1@{pid}", "m1@a.b.-1.5"])
def test_a_name_that_says_nothing_is_never_said_to_be_dead(name: str) -> None:
    assert not is_dead(name.format(pid=os.getpid()))


@needs_redis
async def test_what_a_process_held_that_was_killed_on_this_machine_is_read_at_once(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    with RedisServer(appendfsync="always") as server:
        async with logs_of(server.url, ManualClock(), tmp_path, lease_s=3600.0) as make:
            first, second, third = make(), make(), make()
            first.shard.link.owner = first.share.owner = name_said(other)
            await first.open([group("a")])
            await first.append(Append([block([1])]))
            await second.open([group("a")])
            assert not second.shard.owned.is_set(), "its owner lives"
            end(other)
            async with asyncio.timeout(30):
                await second.shard.owned.wait()
            assert delivered(await read(second, "a")) == [1]
            await third.open([group("a")])
            assert not third.shard.owned.is_set(), "its owner lives"
            await check_books(second)
