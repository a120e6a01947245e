"""Unmodified Fluent clients for Python, as people install them: what they log arrives, with its types, and with their own time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fluent import asyncsender, handler, sender

from tests.support.forward import running


async def _in_thread(work: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(work)


async def test_fluent_logger_sends_records_with_types_and_nanoseconds(tmp_path: Path):
    async with running(tmp_path) as server:

        def log() -> bool:
            with sender.FluentSender("gpu", host="127.0.0.1", port=server.port, nanosecond_precision=True) as client:
                sent = client.emit_with_time("job", 1_760_000_000, {"message": "started", "progress": 40, "ratio": 0.5, "done": False})
                return sent and client.emit("job", {"message": "finished", "number": 2})

        assert await _in_thread(log)
        await server.intake.until_records(2)
        first, second = server.intake.rows()
        assert (first.body, first.tag, first.time_unix_nano) == ("started", "gpu.job", 1_760_000_000_000_000_000)
        assert (first.attributes["progress"], first.attributes["ratio"], first.attributes["done"]) == (40, 0.5, False)
        assert second.body == "finished"


async def test_the_asynchronous_fluent_logger_loses_none_of_a_thousand(tmp_path: Path):
    async with running(tmp_path) as server:

        def log() -> None:
            client = asyncsender.FluentSender("gpu", host="127.0.0.1", port=server.port, queue_circular=False)
            for number in range(1000):
                assert client.emit("job", {"message": f"record {number}", "number": number})
            client.close()

        await _in_thread(log)
        await server.intake.until_records(1000)
        assert server.intake.numbers() == list(range(1000))


async def test_fluent_logger_writes_to_a_unix_socket(tmp_path: Path):
    path = tmp_path / "forward.sock"
    async with running(tmp_path, listen=[], unix_path=path) as server:

        def log() -> bool:
            with sender.FluentSender("gpu", host=f"unix://{path}") as client:
                return client.emit("job", {"message": "over the file", "number": 1})

        assert await _in_thread(log)
        await server.intake.until_records(1)
        assert server.intake.rows()[0].body == "over the file"


@pytest.mark.parametrize("make", [handler.FluentHandler], ids=["FluentHandler"])
async def test_the_standard_library_handler_sends_what_is_logged(tmp_path: Path, make: Any):
    async with running(tmp_path) as server:

        def log() -> None:
            logger = logging.Logger("worker", logging.INFO)
            to_fluent = make("python.worker", host="127.0.0.1", port=server.port)
            to_fluent.setFormatter(handler.FluentRecordFormatter({"level": "%(levelname)s", "where": "%(module)s"}))
            logger.addHandler(to_fluent)
            logger.error("it failed: %s", "out of memory")
            logger.info({"message": "a mapping", "number": 7})
            to_fluent.close()

        await _in_thread(log)
        await server.intake.until_records(2)
        first, second = server.intake.rows()
        assert (first.body, first.tag) == ("it failed: out of memory", "python.worker")
        assert second.attributes["number"] == 7


async def test_a_client_that_outlives_a_restart_goes_on(tmp_path: Path):
    async with running(tmp_path) as first:
        port = first.port
        client = await _in_thread(lambda: sender.FluentSender("gpu", host="127.0.0.1", port=port, timeout=5.0))
        assert await _in_thread(lambda: client.emit("job", {"message": "one", "number": 1}))
        await first.intake.until_records(1)
    await _in_thread(lambda: client.emit("job", {"message": "two", "number": 2}))  # TCP may or may not have noticed yet
    async with running(tmp_path, listen=[f"127.0.0.1:{port}"]) as second:

        def log_until_sent() -> bool:
            return any(client.emit("job", {"message": "three", "number": 3}) for _ in range(50))

        assert await _in_thread(log_until_sent)
        await second.intake.until(lambda intake: 3 in intake.numbers())
        await _in_thread(client.close)
