"""Selection and the destination's limits: what is left out, shortened or too old is counted; what they do not touch goes as it lies."""

from __future__ import annotations

import json
import time
from random import Random

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from emp_pipe._core import Block, DestinationLimits
from emp_pipe.component import Parcel, Sent
from emp_pipe.errors import DeliveryError, ErrorKind
from emp_pipe.exporters.otlp_http import OtlpHttpConfig, OtlpHttpExporter
from emp_pipe.log.protocol import DeadReason
from tests.support.context import make_context
from tests.support.delivering import ScriptedExporter, bodies_of, delivering
from tests.support.fake_clock import VirtualClock, run_virtual
from tests.support.otlp_endpoint import OtlpEndpoint
from tests.support.otlp_rows import span_batch, spans_of
from tests.support.telemetry import log_block, log_record, metric_block

HOUR_NS = 3600 * 10**9


async def test_the_dash0_preset_keeps_dash0s_documented_limits() -> None:
    context, now = make_context(), time.time_ns()
    rows = [
        log_record("fresh", time_unix_nano=now),
        log_record("seven hours old", time_unix_nano=now - 7 * HOUR_NS),
        log_record("é" * 5000, time_unix_nano=now),
        log_record("chatty", time_unix_nano=now, attributes={f"key.{index}": "v" for index in range(40)}),
        log_record("wordy", time_unix_nano=now, attributes={"k": "x" * 5000, "l" * 300: "y"}),
        log_record("four days ahead", time_unix_nano=now + 96 * HOUR_NS),
    ]
    async with OtlpEndpoint(token="t", required_headers={"Dash0-Dataset": "prod-eu"}) as endpoint:
        config = OtlpHttpConfig(endpoint=endpoint.url, preset="dash0", token="t", dataset="prod-eu")  # type: ignore[arg-type]
        exporter = OtlpHttpExporter("otlp_http/dash0", config, context)
        async with delivering(exporter, context=context) as subject:
            await subject.append([log_block(rows)])
            await subject.until_done()
            letters, books = await subject.dead(), await subject.books()
            truncated = {
                sample.labels["limit"]: sample.value
                for family in context.metrics.registry.collect()
                for sample in family.samples
                if sample.name == "emp_pipe_exporter_truncated_values_total"
            }
        assert not endpoint.violations
        arrived = {row.body.string_value[:6]: row for row in endpoint.records("logs")}
    assert sorted(arrived) == sorted(["fresh", "é" * 6, "chatty", "wordy"])
    assert (books.acked, books.dead) == (4, 2)
    assert [letter.reason for letter in letters] == [DeadReason.EXPIRED]
    assert letters[0].records == 2
    assert len(arrived["é" * 6].body.string_value.encode()) <= 4096
    assert len(arrived["chatty"].attributes) <= 16
    wordy = {one.key: one.value.string_value for one in arrived["wordy"].attributes}
    assert all(len(key) <= 128 and len(value) <= 2048 for key, value in wordy.items())
    assert sum(truncated.values()) >= 3, truncated


def test_a_block_that_no_limit_touches_goes_as_it_lies() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        exporter = ScriptedExporter(codec="gzip", merges=True, only={"signals": ["logs"]})
        exporter.limits = DestinationLimits(max_age_s=6 * 3600, max_body_bytes=4096)
        one = log_block(["small"])
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([one])
            await subject.until_done()
        assert memoryview(exporter.parcels[0].block) == memoryview(one)
        assert exporter.parcels[0].block.block_id == one.block_id

    run_virtual(main)


def test_rows_that_become_too_old_while_the_destination_is_down_are_dead_lettered_and_never_sent() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        async def behave(parcel: Parcel) -> Sent:
            if clock.monotonic_s() < 7200:
                raise DeliveryError(ErrorKind.UNREACHABLE)
            return Sent()

        exporter = ScriptedExporter(behave, codec="gzip", merges=True)
        exporter.limits = DestinationLimits(max_age_s=3600)
        young = VirtualClock.START_UNIX_NANO + 7000 * 10**9
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append(
                [log_block(["old 1", "old 2"]), log_block([log_record("young", time_unix_nano=young), log_record("old 3")])]
            )
            await clock.sleep(7300)
            await subject.until_done(100)
            letters, books = await subject.dead(), await subject.books()
        assert exporter.bodies == ["young"]
        assert sum(letter.records for letter in letters) == 3
        assert {letter.reason for letter in letters} == {DeadReason.EXPIRED}
        assert (books.acked, books.dead) == (1, 3)

    run_virtual(main)


def test_selection_and_limits_together_balance_the_books() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        exporter = ScriptedExporter(codec="zstd", merges=True, only={"min_severity": "error"})
        exporter.limits = DestinationLimits(max_age_s=3600, max_body_bytes=100)
        now = VirtualClock.START_UNIX_NANO
        rows = [
            log_record("info", time_unix_nano=now),
            log_record("error", time_unix_nano=now, severity=17),
            log_record("old error", time_unix_nano=now - 2 * HOUR_NS, severity=17),
            log_record("x" * 500, time_unix_nano=now, severity=21),
            log_record("old info", time_unix_nano=now - 2 * HOUR_NS),
        ]
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([log_block(rows) for _ in range(7)])
            await subject.append([log_block(["nothing of it"])])
            await subject.until_done()
            books = await subject.books()
        assert (books.appended, books.acked, books.skipped, books.dead) == (36, 14, 15, 7)
        assert sorted({body[:5] for body in exporter.bodies}) == ["error", "xxxxx"]
        assert len(exporter.bodies) == 14
        assert all(len(body.encode()) <= 100 for body in exporter.bodies)
        assert {parcel.block.codec for parcel in exporter.parcels} == {"zstd"}

    run_virtual(main)


def test_the_flags_of_a_block_survive_reopening() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        exporter = ScriptedExporter(codec="gzip", only={"min_severity": "error"})
        rows = [log_record("info"), log_record("error", severity=17)]
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([log_block(rows).with_flags(decided=True, aggregated=True)])
            await subject.until_done()
        block = exporter.parcels[0].block
        assert (block.decided, block.red_done, block.aggregated) == (True, False, True)
        assert bodies_of(block) == ["error"]

    run_virtual(main)


def test_a_block_over_the_size_of_a_request_is_split_before_it_is_sent() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        exporter = ScriptedExporter(codec="gzip", merges=True, max_request_bytes=100_000)
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([log_block([f"{index} " + "x" * 900 for index in range(400)])])
            await subject.until_done()
            assert (await subject.books()).acked == 400
        assert all(parcel.block.uncompressed_bytes <= 100_000 for parcel in exporter.parcels)
        assert [int(body.split()[0]) for body in exporter.bodies] == list(range(400))

    run_virtual(main)


def test_spans_past_the_limit_of_a_trace_become_dead_letters_with_a_reason_of_their_own() -> None:
    async def main(clock: VirtualClock, random: Random) -> None:
        exporter = ScriptedExporter(codec="gzip", merges=True)
        exporter.limits = DestinationLimits(max_trace_spans=3)
        spans = [Span(name=f"{index}", trace_id=bytes([7] * 16), span_id=bytes([index + 1] * 8)) for index in range(5)]
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([span_batch(*spans).to_block("gzip", topic="traces", block_id="b")])
            await subject.until_done()
            letters, books = await subject.dead(), await subject.books()
        assert [(letter.reason, letter.records) for letter in letters] == [(DeadReason.TRACE_TOO_LARGE, 2)]
        assert (books.acked, books.dead) == (3, 2)
        assert [span.name for span in spans_of(Block(letters[0].header, letters[0].payload).decode())] == ["3", "4"]
        assert subject.metric("exporter_dead_records_total", signal="traces", reason="trace_too_large") == 2

    run_virtual(main)


def test_a_row_that_is_broken_where_only_limits_look_becomes_a_dead_letter_and_its_neighbours_go() -> None:
    def field(number: int, payload: bytes) -> bytes:
        return bytes([number << 3 | 2, len(payload)]) + payload

    def metric(value: bytes, more: bytes = b"") -> bytes:
        return field(2, field(5, field(1, field(7, field(1, b"k") + field(2, field(1, value))) + more)))

    async def main(clock: VirtualClock, random: Random) -> None:
        exporter = ScriptedExporter(codec="none", merges=True)
        exporter.limits = DestinationLimits(max_value_bytes=8)
        rows = metric(b"before") + metric(b"x" * 20) + metric(b"y" * 20, more=b"\x0a\x7f") + metric(b"after")
        request = field(1, field(2, rows))
        sound = metric_block(3, codec="none")
        header = {**json.loads(sound.header), "block_id": "broken", "uncompressed_bytes": len(request), "max_value_bytes": 20, "records": 4}
        async with delivering(exporter, clock=clock, random=random) as subject:
            await subject.append([Block(json.dumps(header).encode(), request), sound])
            await subject.until_done()
            letters, books = await subject.dead(), await subject.books()
        assert [(letter.reason, letter.records) for letter in letters] == [(DeadReason.BLOCK_INVALID, 1)]
        assert b"yyyy" in letters[0].payload
        sent = b"".join(bytes(memoryview(parcel.block)) for parcel in exporter.parcels)
        assert all(value in sent for value in (b"before", "…".encode(), b"after"))
        assert b"yyyy" not in sent
        assert (books.acked, books.dead) == (6, 1)

    run_virtual(main)
