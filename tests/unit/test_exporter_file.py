"""The file exporter's own promises: synced before the ack, no line over two files, a restart that continues, a bounded directory."""

from __future__ import annotations

import asyncio
import errno
import gzip
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emp_pipe.component import Parcel
from emp_pipe.delivery.blocking import OneWriteAtATime
from emp_pipe.errors import ConfigError, DeliveryError, Retry
from emp_pipe.exporters.file import FileConfig, FileExporter
from tests.support.context import make_context
from tests.support.telemetry import log_block


def make(directory: Path, **settings: Any) -> FileExporter:
    return FileExporter("file", FileConfig(directory=directory, **settings), make_context())


async def send(exporter: FileExporter, *bodies: str) -> None:
    await exporter.send(Parcel(log_block(list(bodies), codec="none"), 1, 1e9))


def messages(path: Path) -> list[str]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    assert text.endswith(b"\n")
    return [json.loads(line)["message"] for line in text.splitlines()]


def files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


def names(directory: Path) -> list[str]:
    return [path.name for path in files(directory)]


async def test_the_default_directory_is_records_under_the_data_directory(tmp_path: Path) -> None:
    context = make_context(data_dir=tmp_path)
    assert FileExporter("file", FileConfig(), context).directory == tmp_path / "records"
    assert FileExporter("file/audit", FileConfig(), context).directory == tmp_path / "records" / "audit"


async def test_lines_are_synced_before_the_send_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (real(descriptor), synced.append(os.fstat(descriptor).st_size))[0])
    exporter = make(tmp_path)
    await exporter.open()
    await send(exporter, "a", "b")
    size_bytes = (tmp_path / "logs-000001.jsonl").stat().st_size
    assert size_bytes > 0
    assert synced[-1] == size_bytes


@pytest.mark.parametrize("umask", [0o000, 0o022])
async def test_what_it_makes_is_its_owners_whatever_the_umask_full_files_too(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        exporter = make(tmp_path / "kept" / "records", max_file_bytes=1024)
        await exporter.open()
        await send(exporter, *("x" * 100 for _ in range(30)))
    finally:
        os.umask(before)
    made = tmp_path / "kept" / "records"
    assert {".gz", ".jsonl"} == {path.suffix for path in files(made)}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files(made)} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (made, made.parent)} == {0o700}


async def test_a_directory_that_was_there_keeps_its_permissions(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o2750)
    exporter = make(shared)
    await exporter.open()
    await send(exporter, "a")
    assert stat.S_IMODE(shared.stat().st_mode) == 0o2750


async def test_files_rotate_below_their_size_and_no_line_is_split(tmp_path: Path) -> None:
    exporter = make(tmp_path, max_file_bytes=4096, max_files=1000, gzip_old=False)
    await exporter.open()
    for start in range(0, 200, 20):
        await send(exporter, *(f"row {index} " + "x" * (index * 7 % 300) for index in range(start, start + 20)))
    assert len(files(tmp_path)) > 10
    assert all(path.stat().st_size <= 4096 for path in files(tmp_path))
    assert [int(message.split()[1]) for path in files(tmp_path) for message in messages(path)] == list(range(200))


async def test_a_line_longer_than_a_file_may_be_gets_a_file_of_its_own(tmp_path: Path) -> None:
    exporter = make(tmp_path, max_file_bytes=4096, gzip_old=False)
    await exporter.open()
    await send(exporter, "before", "x" * 10_000, "after")
    assert [len(messages(path)) for path in files(tmp_path)] == [1, 1, 1]


async def test_full_files_are_compressed_and_readable(tmp_path: Path) -> None:
    exporter = make(tmp_path, max_file_bytes=4096)
    await exporter.open()
    for index in range(40):
        await send(exporter, f"row {index} " + "x" * 200)
    found = names(tmp_path)
    assert found[0] == "logs-000001.jsonl.gz"
    assert [name for name in found if not name.endswith(".gz")] == [found[-1]]
    assert [int(message.split()[1]) for path in files(tmp_path) for message in messages(path)] == list(range(40))


async def test_the_oldest_files_go_when_there_are_too_many_and_are_counted(tmp_path: Path) -> None:
    context = make_context()
    exporter = FileExporter("file", FileConfig(directory=tmp_path, max_file_bytes=1024, max_files=3), context)
    await exporter.open()
    for index in range(30):
        await send(exporter, f"row {index} " + "x" * 300)
    assert len(names(tmp_path)) <= 3
    left = [message for path in files(tmp_path) for message in messages(path)]
    assert left[-1].startswith("row 29 ")
    deleted = context.metrics.registry.get_sample_value("emp_pipe_file_deleted_files_total", {"component": "file"})
    assert deleted is not None
    assert deleted >= 5


async def test_a_restart_continues_the_last_file(tmp_path: Path) -> None:
    for body in ("first", "second"):
        exporter = make(tmp_path)
        await exporter.open()
        await send(exporter, body)
        await exporter.close(0.0)
    assert names(tmp_path) == ["logs-000001.jsonl"]
    assert messages(tmp_path / "logs-000001.jsonl") == ["first", "second"]


async def test_a_restart_after_a_full_and_compressed_file_begins_the_next(tmp_path: Path) -> None:
    exporter = make(tmp_path, max_file_bytes=1024)
    await exporter.open()
    await send(exporter, "x" * 800)
    await exporter.close(0.0)
    (tmp_path / "logs-000001.jsonl").rename(tmp_path / "logs-000007.jsonl.gz")
    exporter = make(tmp_path)
    await exporter.open()
    await send(exporter, "next")
    assert names(tmp_path) == ["logs-000007.jsonl.gz", "logs-000008.jsonl"]


@pytest.mark.parametrize("tail", [b'{"message": "to', b'{"x": "' + b"y" * 200_000])
async def test_a_torn_line_of_a_crash_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    exporter = make(tmp_path)
    await exporter.open()
    await send(exporter, "whole")
    await exporter.close(0.0)
    with (tmp_path / "logs-000001.jsonl").open("ab") as file:
        file.write(tail)
    exporter = make(tmp_path)
    await exporter.open()
    await send(exporter, "after")
    assert messages(tmp_path / "logs-000001.jsonl") == ["whole", "after"]


def failing_once(real: Callable[..., Any], error_number: int, partly: bool = False) -> Callable[..., Any]:
    left = [1]

    def fail(*arguments: Any) -> Any:
        if left:
            left.pop()
            if partly:
                real(arguments[0], arguments[1][:10])
            raise OSError(error_number, os.strerror(error_number))
        return real(*arguments)

    return fail


@pytest.mark.parametrize(("call", "number"), [("write", errno.ENOSPC), ("fsync", errno.EIO)])
async def test_after_a_disk_error_the_rows_are_written_again_elsewhere_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    exporter = make(tmp_path)
    await exporter.open()
    await send(exporter, "good")
    monkeypatch.setattr(os, call, failing_once(getattr(os, call), number, partly=call == "write"))
    with pytest.raises(DeliveryError) as caught:
        await send(exporter, "again")
    assert caught.value.retry is Retry.LATER
    assert os.strerror(number) in str(caught.value)
    await send(exporter, "again")
    assert [messages(path) for path in files(tmp_path)] == [["good"], ["again"]]


async def test_a_directory_that_cannot_be_made_is_said_at_start(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match="taken"):
        await make(tmp_path / "taken" / "records").open()


async def test_a_retry_waits_for_the_write_that_ran_into_its_timeout() -> None:
    from threading import Event

    go, written = Event(), []
    writes = OneWriteAtATime()

    def work() -> None:
        go.wait(10)
        written.append("block-1")

    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await writes.write("block-1", work)
    go.set()
    await writes.write("block-1", work)
    await writes.write("block-2", lambda: written.append("block-2"))
    assert written == ["block-1", "block-2"]


async def test_an_error_of_a_write_reaches_who_asked_for_it_and_nobody_else() -> None:
    writes = OneWriteAtATime()

    def fail() -> None:
        raise OSError(errno.ENOSPC, "full")

    results = await asyncio.gather(
        writes.write("a", fail), writes.write("b", lambda: None), writes.write("a", fail), return_exceptions=True
    )
    assert [type(result) for result in results] == [OSError, type(None), OSError]
