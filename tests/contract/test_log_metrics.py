"""The books count data points of metrics, over every log: through the writer, a dead letter, and the delivery of what can be delivered."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from random import Random

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics

from emp_pipe._core import Block, Normalizer, OtlpDecoder, OtlpRead, merge_blocks
from emp_pipe.component import Arrival, Parcel, Sent
from emp_pipe.errors import DeliveryError, ErrorKind, Retry
from emp_pipe.log.protocol import DeadLetter, DeadReason, ReceiverBooks, Topic
from emp_pipe.log.writer import LogWriter
from tests.contract.conftest import OpenLog, group
from tests.support.delivering import ScriptedExporter, delivering
from tests.support.fake_clock import VirtualClock, run_virtual

NOW = 1_700_000_000_000_000_000


def request(values: Mapping[str, Sequence[int]]) -> bytes:
    """Gauges by name, with a point for each value; -1 is a point that cannot be used."""
    metrics = []
    for name, numbers in values.items():
        points = [NumberDataPoint(as_int=number, time_unix_nano=NOW) for number in numbers]
        for point in points:
            if point.as_int == -1:
                point.exemplars.add(trace_id=b"short")
        metrics.append(Metric(name=name, gauge=Gauge(data_points=points)))
    one = ExportMetricsServiceRequest(resource_metrics=[ResourceMetrics(scope_metrics=[ScopeMetrics(metrics=metrics)])])
    return one.SerializeToString()


def read(values: Mapping[str, Sequence[int]]) -> OtlpRead:
    return OtlpDecoder(Normalizer(), signal="metrics").decode(request(values), now_unix_nano=NOW)


def block(values: Mapping[str, Sequence[int]], block_id: str = "b") -> Block:
    batch = read(values).batch
    assert batch is not None
    return batch.to_block("gzip", topic="metrics", block_id=block_id)


def points_in(one: Block) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for resource in ExportMetricsServiceRequest.FromString(one.payload("none")).resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                found.setdefault(metric.name, []).extend(point.as_int for point in metric.gauge.data_points)
    return found


async def test_the_writers_books_and_the_groups_count_data_points(opened: OpenLog) -> None:
    await opened.open(group("a", Topic.METRICS))
    writer = LogWriter(opened.log, topics=(Topic.METRICS,), codec="none")
    one = read({"a": [1, -1, 2, 3], "b": [4]})
    [bad] = one.rejected
    letter = DeadLetter("otlp_http", DeadReason.ENTRY_INVALID, bad.detail, bad.data, records=bad.records)
    await writer.submit(Arrival("otlp_http", batch=one.batch, received=one.received, invalid=one.rejected_items, dead=[letter]))

    [books] = await opened.log.receiver_books()
    assert books == ReceiverBooks("otlp_http", received=5, appended=4, invalid=1)
    assert opened.log.usage().groups[0].held_records == 4
    [delivery] = await opened.read("a")
    await opened.log.commit("a", acks=[delivery])
    metrics = [books for books in await opened.log.group_books() if books.group == "a"]
    assert [(one.appended, one.acked, one.balanced) for one in metrics if one.appended] == [(4, 4, True)]
    await writer.close(time.monotonic() + 30)


async def test_metrics_that_no_group_reads_are_dropped_by_their_points(opened: OpenLog) -> None:
    await opened.open(group("a"))
    writer = LogWriter(opened.log, topics=(Topic.LOGS,), codec="none")
    one = read({"a": [1, 2, 3]})
    await writer.submit(Arrival("otlp_http", batch=one.batch, received=3))

    assert await opened.log.receiver_books() == [ReceiverBooks("otlp_http", received=3, dropped=3)]
    await writer.close(time.monotonic() + 30)


def test_a_poisoned_data_point_is_dead_lettered_and_the_others_of_its_metric_are_delivered() -> None:
    values = {"a": [1, 2], "b": list(range(100, 137)), "c": [3]}
    poison = 117

    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            if any(poison in numbers for numbers in points_in(parcel.block).values()):
                raise DeliveryError(ErrorKind.REFUSED, place="scripted", retry=Retry.SMALLER)
            return Sent()

        exporter = ScriptedExporter(behave)
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([block(values)])
            await subject.until_done()
            books, letters = await subject.books(), await subject.dead()
        assert (books.appended, books.acked, books.dead) == (40, 39, 1)
        assert [points_in(Block(letter.header, letter.payload)) for letter in letters] == [{"b": [poison]}]
        delivered: dict[str, list[int]] = {}
        for parcel in exporter.delivered:
            for name, numbers in points_in(parcel.block).items():
                delivered.setdefault(name, []).extend(numbers)
        assert {name: sorted(numbers) for name, numbers in delivered.items()} == {
            name: [number for number in numbers if number != poison] for name, numbers in values.items()
        }

    run_virtual(main)


def test_a_metric_that_is_too_large_for_its_destination_arrives_in_parts() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            if parcel.block.records > 10:
                raise DeliveryError(ErrorKind.TOO_LARGE, place="scripted")
            return Sent()

        exporter = ScriptedExporter(behave)
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([block({"a": range(35)})])
            await subject.until_done()
            books = await subject.books()
        assert (books.appended, books.acked, books.dead) == (35, 35, 0)
        assert sorted(number for parcel in exporter.delivered for number in points_in(parcel.block)["a"]) == list(range(35))

    run_virtual(main)


def test_points_that_a_destination_refused_and_that_it_was_not_sent_are_counted_as_such() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            return Sent(rejected_records=2, message="two points")

        exporter = ScriptedExporter(behave, only={"services": ["other"]})
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([block({"a": [1, 2, 3], "b": [4]})])
            await subject.until_done()
            books = await subject.books()
            assert (books.appended, books.acked, books.skipped) == (4, 0, 4)

        everything = ScriptedExporter(behave)
        async with delivering(everything, clock=clock, random=random) as subject:
            await subject.append([block({"a": [1, 2, 3], "b": [4]})])
            await subject.until_done()
            assert subject.metric("exporter_sent_records_total", signal="metrics") == 2

    run_virtual(main)


def test_merged_blocks_of_metrics_count_their_points_together() -> None:
    merged = merge_blocks([block({"a": [1, 2]}, "x"), block({"a": [3]}, "y")], "gzip", block_id="m")

    assert (merged.records, merged.decode().record_count, len(merged.decode())) == (3, 3, 2)
