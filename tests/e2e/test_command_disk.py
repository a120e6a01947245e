"""A disk that cannot be used when emp-pipe starts, or not any more: it serves, refuses, and goes on by itself when the disk does."""

from __future__ import annotations

import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.acked_send import send_acked
from tests.support.command import running, until
from tests.support.command_bench import Bench
from tests.support.small_disk import SmallDisk, small_disk

NOWHERE = '{otlp_http: {endpoint: "http://127.0.0.1:1"}}'


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", 32 << 20) as disk:
        yield disk


@pytest.fixture
def bench(tmp_path: Path, disk: SmallDisk) -> Bench:
    bench = Bench(tmp_path)
    bench.data_dir = disk.path / "data"
    bench.write(buffer="{type: sqlite, min_free_bytes: 1000000}", exporters=NOWHERE)
    return bench


def held(bench: Bench) -> float:
    return bench.metric("emp_pipe_group_held_records", topic="logs", group="otlp_http")


def refused(bench: Bench, why: str) -> None:
    until(lambda: why in bench.get("/readyz")[1], f"/readyz says {why!r}")
    assert bench.get("/readyz")[0] == 503
    assert bench.get("/healthz")[0] == 200
    assert not send_acked(bench.port, range(900, 905), patience_s=1)


def goes_on(bench: Bench, numbers: range) -> None:
    until(lambda: bench.get("/readyz")[0] == 200, "it is ready again")
    assert send_acked(bench.port, numbers)


def test_a_first_start_on_a_full_disk_serves_refuses_and_goes_on_when_there_is_space(bench: Bench, disk: SmallDisk) -> None:
    disk.fill()
    with running(*bench.arguments, ready="health: ") as process:
        refused(bench, "disk")
        disk.free()
        goes_on(bench, range(10))
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


def test_a_start_on_a_full_disk_drains_what_is_there(bench: Bench, disk: SmallDisk) -> None:
    with running(*bench.arguments) as process:
        assert send_acked(bench.port, range(10))
        process.signal(signal.SIGKILL)
        process.wait()
    disk.fill()
    bench.write(buffer="{type: sqlite, min_free_bytes: 1000000}", exporters="{otlp_http: {endpoint: 'http://127.0.0.1:1'}, noop: }")
    with running(*bench.arguments):
        refused(bench, "disk")
        until(lambda: bench.metric("emp_pipe_group_records_total", group="noop", topic="logs", outcome="acked") == 10, "it drains")
        assert held(bench) == 10
        disk.free()
        goes_on(bench, range(10, 20))


def test_a_start_on_a_read_only_disk_serves_refuses_and_goes_on_when_it_can_be_written(bench: Bench, disk: SmallDisk) -> None:
    with running(*bench.arguments) as process:
        assert send_acked(bench.port, range(10))
        process.signal(signal.SIGTERM)
        process.wait()
    disk.remount("ro")
    with running(*bench.arguments) as process:
        refused(bench, "the disk refused")
        process.wait_for("Read-only file system")
        disk.remount("rw")
        goes_on(bench, range(10, 20))
        until(lambda: held(bench) >= 20, "nothing of before is lost")


@pytest.mark.parametrize("what", ["data", "data/log"])
def test_a_directory_that_disappears_stops_acks_and_what_it_held_comes_back(bench: Bench, disk: SmallDisk, what: str) -> None:
    with running(*bench.arguments) as process:
        assert send_acked(bench.port, range(10))
        (disk.path / what).rename(disk.path / "elsewhere")
        process.wait_for("was removed, replaced or unmounted")
        process.wait_for("was written anew from what was open")
        goes_on(bench, range(10, 20))
        process.signal(signal.SIGKILL)
        process.wait()
    with running(*bench.arguments):
        until(lambda: held(bench) == 20, "what was acknowledged before and after is there")


def test_a_directory_that_comes_back_as_it_was_is_used_again(bench: Bench, disk: SmallDisk) -> None:
    with running(*bench.arguments) as process:
        assert send_acked(bench.port, range(10))
        process.signal(signal.SIGSTOP)  # so that it sees both renames at once
        (disk.path / "data").rename(disk.path / "elsewhere")
        (disk.path / "elsewhere").rename(disk.path / "data")
        process.signal(signal.SIGCONT)
        goes_on(bench, range(10, 20))
        until(lambda: held(bench) == 20, "nothing is lost or doubled")


def set_most_files(process_id: int, count: int) -> None:
    _, hard = resource.prlimit(process_id, resource.RLIMIT_NOFILE)
    resource.prlimit(process_id, resource.RLIMIT_NOFILE, (count, hard))


def test_without_file_descriptors_nothing_acknowledged_is_lost_and_receivers_recover(bench: Bench) -> None:
    with running(*bench.arguments) as process, ExitStack() as open_peers:
        assert send_acked(bench.port, range(10))
        in_use = len(list(Path(f"/proc/{process.process.pid}/fd").iterdir()))
        set_most_files(process.process.pid, in_use + 3)
        acked = [range(10)]
        for _ in range(8):
            open_peers.enter_context(socket.create_connection(("127.0.0.1", bench.port), timeout=5))
        process.wait_for("cannot accept a connection")
        assert not send_acked(bench.port, range(900, 905), patience_s=1)
        time.sleep(1.5)  # the log's upkeep meets it too
        open_peers.close()
        set_most_files(process.process.pid, 1024)
        until(lambda: send_acked(bench.port, range(10, 20), patience_s=5), "receivers accept again")
        acked.append(range(10, 20))
        process.signal(signal.SIGKILL)
        process.wait()
    with running(*bench.arguments):
        until(lambda: held(bench) >= 20, "what was acknowledged is there")


def test_a_log_that_cannot_be_opened_for_want_of_file_descriptors_is_opened_when_there_are_some(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bench.directory / "few_files.py").write_text(
        "import os, resource\n"
        "from emp_pipe.buffers import sqlite_thread\n"
        "real = sqlite_thread.CommitThread.open\n"
        "def few(self, specs):\n"
        "    most = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "    used = max(int(name) for name in os.listdir('/proc/self/fd')) + 1\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (used, most[1]))\n"
        "    try:\n"
        "        return real(self, specs)\n"
        "    finally:\n"
        "        resource.setrlimit(resource.RLIMIT_NOFILE, most)\n"
        "sqlite_thread.CommitThread.open = few\n"
        "class Passing:\n"
        "    from emp_pipe.component import ComponentConfig as CONFIG\n"
        "    def __init__(self, id, config, context): self.id = id\n"
        "    def process(self, batch): return batch\n"
    )
    bench.write(buffer="{type: sqlite, min_free_bytes: 0}", exporters=NOWHERE, processors='{"few_files:Passing": {}}')
    with running(*bench.arguments, PYTHONPATH=str(bench.directory)) as process:
        process.wait_for("Too many open files")
        goes_on(bench, range(10))
