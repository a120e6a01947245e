"""Promises of the syslog receiver where there is no room: in the kernel, in the log, before a stop. What is lost is counted."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path
from typing import Any

import pytest

from emp_pipe.errors import ErrorKind
from tests.support.forward import RecordingIntake
from tests.support.syslog_receiving import running_syslog, syslog_rows


async def test_datagrams_that_the_kernel_has_no_room_for_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    intake = RecordingIntake()
    async with running_syslog(tmp_path, intake=intake, udp_buffer_bytes=4096) as server:
        intake.admit(False)
        server.send_udp(b"<13>0")  # the read after which no room is seen
        await server.until(lambda: len(intake.arrivals) == 1, "the first one is read")
        server.send_udp(*(b"<13>%d %s" % (number, b"x" * 500) for number in range(1, 300)))
        await server.until(lambda: server.metric("lost_messages_total", reason="kernel_buffer") > 0, "the loss is counted")
        intake.admit(True)
        await server.until(lambda: server.metric("lost_messages_total", reason="kernel_buffer") + len(syslog_rows(intake)) == 300, "books")
    assert "datagrams that the kernel had no room for are lost; raise `udp_buffer_bytes`" in caplog.text


async def test_a_kernel_that_keeps_less_than_it_is_asked_for_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running_syslog(tmp_path, udp_buffer_bytes=1 << 30):
        pass
    assert "bytes of datagrams, not the 1,073,741,824 of `udp_buffer_bytes`; raise net.core.rmem_max" in caplog.text


@pytest.mark.parametrize("kind", [ErrorKind.LOG_FULL, ErrorKind.LOG_IO])
async def test_what_was_read_and_the_log_does_not_take_is_offered_again_and_nothing_more_is_read_before(
    tmp_path: Path, kind: ErrorKind
) -> None:
    intake = RecordingIntake()
    intake.auto = False
    async with running_syslog(tmp_path, intake=intake) as server:
        _, writer = await server.connect()
        writer.write(b"".join(b"<13>%d\n" % number for number in range(1000)))
        await server.until(lambda: intake.waiting == 1, "the read is handed over")
        server.send_udp(b"<13>udp")
        await server.until(lambda: intake.waiting == 2, "the datagram too")
        intake.admit(False)
        intake.fail(kind)
        writer.write(b"".join(b"<13>%d\n" % number for number in range(1000, 2000)))
        server.send_udp(b"<13>udp")
        await asyncio.sleep(0.05)
        assert intake.waiting <= 2, "at most what was being read when the log was seen to be full"
        intake.auto = True
        intake.commit()
        intake.admit(True)
        bodies = [row.body for row in await server.rows(2002)]
        assert sorted(int(body) for body in bodies if body != "udp") == list(range(2000)), "none is missing, none comes twice"
        assert server.metric("lost_messages_total", reason="log") == 0
        await server.until(lambda: server.metric("unstored_bytes") == 0, "the books")
        writer.close()


async def test_while_the_log_is_full_nothing_is_read_of_who_connects(tmp_path: Path) -> None:
    intake = RecordingIntake()
    async with running_syslog(tmp_path, intake=intake) as server:
        intake.admit(False)
        with socket.create_connection(server.receiver.addresses[0]) as early:  # what it sends is there when it is accepted
            early.sendall(b"".join(b"<13>%d\n" % number for number in range(20_000)))
            await asyncio.sleep(0.1)
            may_have_begun = type(asyncio.get_running_loop()).__module__.startswith("uvloop")  # whatever it was told
            assert intake.received <= (500 if may_have_begun else 0)
            intake.admit(True)
            assert [row.body for row in await server.rows(20_000)] == [str(number) for number in range(20_000)]


async def test_what_the_log_does_not_take_before_the_stop_is_counted_as_lost(tmp_path: Path) -> None:
    intake = RecordingIntake()
    intake.auto = False
    async with running_syslog(tmp_path, intake=intake, stop_within_s=1.0) as server:
        _, writer = await server.connect()
        writer.write(b"<13>a\n<13>b\n")
        await server.until(lambda: intake.waiting == 1, "the read is handed over")
        intake.admit(False)
        intake.fail(ErrorKind.LOG_FULL)
        writer.close()
    assert server.metric("lost_messages_total", reason="log") == 2


async def test_a_slow_log_bounds_what_is_held(tmp_path: Path) -> None:
    intake = RecordingIntake()
    intake.auto = False
    async with running_syslog(tmp_path, intake=intake, max_unstored_bytes=100_000) as server:
        _, writer = await server.connect()
        sending = asyncio.ensure_future(_flood(writer, 200_000))
        hub: Any = server.receiver._hub
        await server.until(lambda: hub.unstored_bytes > 100_000, "the limit is reached")
        await asyncio.sleep(0.05)
        assert hub.unstored_bytes < 100_000 + 2 * 131_072 * 3, "what one read can add, as rows"
        intake.auto = True
        intake.commit()
        await sending
        writer.close()
        await server.until(lambda: intake.received == 200_000, "all of them")


async def _flood(writer: asyncio.StreamWriter, count: int) -> None:
    for _ in range(count // 1000):
        writer.write(b"<13>Nov 24 17:00:00 gpu-9 app[7]: line\n" * 1000)
        await writer.drain()
