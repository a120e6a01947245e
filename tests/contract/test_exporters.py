"""What every exporter promises, over all of them; what only one of them can break is in `tests/unit`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from emp_pipe.component import Exporter, Parcel
from emp_pipe.errors import DeliveryError, Retry
from emp_pipe.exporters.noop import NoopConfig, NoopExporter
from tests.support.context import make_context
from tests.support.delivering import delivering
from tests.support.destinations import (
    Destination,
    ErrorDestination,
    FileDestination,
    ForwardDestination,
    NoopDestination,
    OtlpGrpcDestination,
    OtlpHttpDestination,
    Outage,
    StdoutDestination,
)
from tests.support.forward import running
from tests.support.otlp_endpoint import OtlpEndpoint
from tests.support.otlp_grpc_endpoint import OtlpGrpcEndpoint
from tests.support.telemetry import log_block, log_record, metric_block, span_block

OTLP = ["otlp_http", "otlp_http-none", "otlp_http-zstd", "otlp_grpc", "otlp_grpc-gzip"]


@pytest.fixture(params=[*OTLP, "forward", "forward-foreign", "file", "stdout", "noop", "error"])
async def destination(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Destination]:
    context = make_context(data_dir=tmp_path)
    kind, _, compression = request.param.partition("-")
    async with contextlib.AsyncExitStack() as stack:
        made: Destination
        if kind == "otlp_http":
            made = OtlpHttpDestination(await stack.enter_async_context(OtlpEndpoint()), context, compression or "gzip")
        elif kind == "otlp_grpc":
            endpoint = await stack.enter_async_context(OtlpGrpcEndpoint())
            relay = await stack.enter_async_context(Outage(endpoint.port).running())
            made = OtlpGrpcDestination(endpoint, relay, context, compression or "none")
        elif kind == "forward":
            key = None if compression == "foreign" else "k"
            server = await stack.enter_async_context(running(tmp_path, **({"shared_key": key} if key else {})))
            relay = await stack.enter_async_context(Outage(server.port).running())
            made = ForwardDestination(server, relay, context, key)
        elif kind == "file":
            made = FileDestination(tmp_path, context)
        elif kind == "stdout":
            made = StdoutDestination(context)
        else:
            made = NoopDestination(context) if kind == "noop" else ErrorDestination(context)
        yield made
        await made.exporter.close(0.0)


def numbered(start: int, count: int) -> list[LogRecord]:
    return [
        log_record(f"row {index} ☃\n", severity=17 if index % 3 == 0 else 9, attributes={"job_id": f"job-{index}"})
        for index in range(start, start + count)
    ]


def parcel(exporter: Exporter, start: int = 0, count: int = 10) -> Parcel:
    """A parcel in the exporter's codec, as the loop makes it."""
    return Parcel(log_block(numbered(start, count), codec="gzip" if exporter.codec == "any" else exporter.codec), 1, 1e9)


def assert_arrived(destination: Destination, count: int) -> None:
    rows = destination.rows("logs")
    if isinstance(rows, int):
        assert rows == count
        return
    expected = {index: ("error" if index % 3 == 0 else "info", f"job-{index}") for index in range(count)}
    assert {int(row["message"].split()[1]): (row["level"], row["job_id"]) for row in rows} == expected
    assert all(row["message"].endswith(" ☃\n") for row in rows)
    assert len(rows) == count


async def test_every_record_arrives_once_with_its_fields(destination: Destination) -> None:
    exporter = destination.exporter
    await exporter.open()
    for start in range(0, 500, 100):
        sent = await exporter.send(parcel(exporter, start, 100))
        assert sent.rejected_records == 0
    assert_arrived(destination, 500)


async def test_traces_and_metrics_arrive_too(destination: Destination) -> None:
    if isinstance(destination, ForwardDestination) and destination.takes_logs_only:
        pytest.skip("Fluent Forward has logs only")
    exporter = destination.exporter
    await exporter.open()
    codec = "gzip" if exporter.codec == "any" else exporter.codec
    await exporter.send(Parcel(span_block(7, codec=codec), 1, 1e9))
    await exporter.send(Parcel(metric_block(7, codec=codec), 1, 1e9))
    rows = destination.rows("traces"), destination.rows("metrics")
    assert sum(one if isinstance(one, int) else len(one) for one in rows) in (14, 28), "28: one stream, asked twice"


async def test_what_an_answered_send_gave_is_there_at_once(destination: Destination) -> None:
    exporter = destination.exporter
    await exporter.open()
    await exporter.send(parcel(exporter, 0, 1))
    assert_arrived(destination, 1)


async def test_sends_at_the_same_time_all_arrive(destination: Destination) -> None:
    exporter = destination.exporter
    await exporter.open()
    await asyncio.gather(*(exporter.send(parcel(exporter, start, 25)) for start in range(0, 500, 25)))
    assert_arrived(destination, 500)


async def test_an_unreachable_destination_is_an_error_that_keeps_the_data(destination: Destination) -> None:
    exporter = destination.exporter
    await exporter.open()
    destination.take_away()
    with pytest.raises(DeliveryError) as caught:
        await exporter.send(parcel(exporter))
    assert caught.value.retry in (Retry.LATER, Retry.AFTER_CONFIG_CHANGE)
    assert str(caught.value).startswith(exporter.id)


async def test_a_destination_that_is_back_gets_what_failed_before(destination: Destination) -> None:
    exporter = destination.exporter
    await exporter.open()
    destination.take_away()
    one = parcel(exporter, 0, 10)
    for _ in range(3):
        with pytest.raises(DeliveryError):
            await exporter.send(one)
    destination.bring_back()
    await exporter.send(one)
    assert_arrived(destination, 10)


async def test_closing_twice_or_unopened_is_harmless(destination: Destination) -> None:
    await destination.exporter.close(0.0)
    await destination.exporter.open()
    await destination.exporter.close(0.0)
    await destination.exporter.close(0.0)


async def test_a_cancelled_send_leaves_the_exporter_usable(destination: Destination) -> None:
    exporter = destination.exporter
    await exporter.open()
    first = parcel(exporter, 0, 200)
    sending = asyncio.ensure_future(exporter.send(first))
    await asyncio.sleep(0)
    sending.cancel()
    await asyncio.wait([sending])
    await exporter.send(first)
    await exporter.send(parcel(exporter, 200, 50))
    rows = destination.rows("logs")
    if isinstance(rows, int):
        assert rows >= 250 or exporter.id == "noop"
        return
    assert {int(row["message"].split()[1]) for row in rows} == set(range(250))


async def test_over_the_loop_what_is_appended_is_delivered_acked_and_in_the_books(destination: Destination, tmp_path: Path) -> None:
    context = make_context(data_dir=tmp_path)
    async with delivering(destination.exporter, context=context) as subject:
        for start in range(0, 600, 20):
            await subject.append([log_block(numbered(start, 20), codec="zstd")])
        await subject.until_done()
        books = await subject.books()
        assert (books.appended, books.acked, books.held) == (600, 600, 0)
        assert subject.metric("exporter_sent_records_total", signal="logs") == 600
        assert_arrived(destination, 600)


async def test_over_the_loop_an_outage_loses_and_kills_nothing(destination: Destination, tmp_path: Path) -> None:
    context = make_context(data_dir=tmp_path)
    async with delivering(destination.exporter, context=context) as subject:
        await subject.append([log_block(numbered(0, 20))])
        await subject.until_done()
        if not isinstance(destination, FileDestination):  # taking it away deletes what is there
            destination.take_away()
            await subject.append([log_block(numbered(20, 20)), log_block(numbered(40, 20))])
            await subject.until(lambda: bool(subject.loop.status().error))
            assert subject.loop.status().state in ("retrying", "down")
            destination.bring_back()
        await subject.until_done()
        books = await subject.books()
        assert (books.acked, books.dead, books.held) == (books.appended, 0, 0)
        assert_arrived(destination, books.appended)


async def test_only_and_except_decide_which_rows_are_sent(tmp_path: Path) -> None:
    class Counting(NoopExporter):
        codec = "none"

    only = Counting("noop", NoopConfig(only={"min_severity": "error"}), make_context())  # type: ignore[arg-type]
    async with delivering(only) as subject:
        await subject.append([log_block(numbered(0, 30)), log_block([log_record("quiet")])])
        await subject.until_done()
        books = await subject.books()
        assert (only.records, books.acked, books.skipped) == (10, 10, 21)
        assert subject.metric("exporter_skipped_records_total", signal="logs") == 21
    without = Counting("noop", NoopConfig.model_validate({"except": {"attributes": {"job_id": "job-4"}}}), make_context())
    async with delivering(without) as subject:
        await subject.append([log_block(numbered(0, 30))])
        await subject.until_done()
        assert (without.records, (await subject.books()).skipped) == (29, 1)
