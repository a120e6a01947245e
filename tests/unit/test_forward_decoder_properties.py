"""What holds for whatever a peer sends: pieces do not matter, no bytes raise, every entry is a row or counted, no field is lost."""

from __future__ import annotations

import gzip
from typing import Any

import msgpack
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from emp_pipe._core import ForwardDecoder, ForwardRead, Normalizer
from tests.support.forward import event_time
from tests.support.otlp_rows import plain, plain_attributes
from tests.support.otlp_strategies import values

_NOW = 1_800_000_000 * 10**9
_SCHEMA = ["message", "msg", "log", "level", "severity", "time", "timestamp", "trace_id", "traceId", "span_id", "machine_id", "workerId"]
_SCHEMA += ["service", "hostname", "job_id", "jobId", "event_type", "duration", "duration_ms", "error", "stack", "traceparent", "_emp"]
_texts = st.text(max_size=12) | st.sampled_from(['{"level": "warn", "a": 1}', "a=1 level=error", "info", "2024-02-29T12:34:56Z", "ab" * 16])
_records = st.dictionaries(st.sampled_from(_SCHEMA) | st.text(max_size=6), values | _texts, max_size=7)
_plain_keys = st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1, max_size=6).map(lambda key: f"own {key}")
_plain_records = st.dictionaries(_plain_keys, values, max_size=7)
_times = st.one_of(
    st.builds(event_time, st.integers(0, 2**32 - 3), st.integers(0, 999_999_999)),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.none(),
)
_metas = _times | _times.map(lambda time: [time, {}])
_entries = st.lists(st.tuples(_metas, _records | st.integers(0, 99)).map(list), max_size=4)


def _frame(mode: str, entries: list[Any], chunk: str | None) -> bytes:
    options = {"chunk": chunk} if chunk else {}
    packed = b"".join(map(msgpack.packb, entries))
    match mode:
        case "message":
            return b"".join(msgpack.packb(["app", *entry, options]) for entry in entries)
        case "forward":
            return msgpack.packb(["app", entries, options])
        case "gzip":
            packed = gzip.compress(packed)
        case "zstd":
            packed = zstandard.compress(packed)
    return msgpack.packb(["app", packed, options])


_frames = st.builds(
    _frame, st.sampled_from(["message", "forward", "packed", "gzip", "zstd"]), _entries, st.sampled_from([None, "c1", "c2"])
)


@st.composite
def _streams(draw: st.DrawFn) -> bytes:
    """Some frames one after another, now and then with bytes changed, lost or added."""
    stream = bytearray(b"".join(draw(st.lists(_frames, min_size=1, max_size=3))))
    for _ in range(draw(st.sampled_from([0, 0, 1, 3])) if stream else 0):
        at = draw(st.integers(0, len(stream) - 1)) if stream else 0
        stream[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(stream)


def _rows(read: ForwardRead) -> list[bytes]:
    if read.batch is None:
        return []
    request = ExportLogsServiceRequest.FromString(read.batch.to_block("none", topic="logs", block_id="b").payload("none"))
    return sorted(
        resource.resource.SerializeToString() + scope.scope.SerializeToString() + row.SerializeToString()
        for resource in request.resource_logs
        for scope in resource.scope_logs
        for row in scope.log_records
    )


def _told(reads: list[ForwardRead]) -> dict[str, Any]:
    """What a stream came to, however it was cut."""
    fatal = [(read.fatal.kind, read.fatal.offset) for read in reads if read.fatal is not None]
    return {
        "rows": sorted(row for read in reads for row in _rows(read)),
        "received": sum(read.received for read in reads),
        "rejected": sum(piece.records for read in reads for piece in read.rejected),
        "acks": [chunk.ack for read in reads for chunk in read.chunks],
        "fatal": fatal[:1],
    }


@given(_streams(), st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_it_does_not_matter_where_the_network_cuts_a_stream(stream: bytes, sizes: list[int]) -> None:
    whole = _told([ForwardDecoder(Normalizer()).feed(stream, _NOW)])
    decoder, reads, at = ForwardDecoder(Normalizer()), [], 0
    for size in [*sizes, len(stream)]:
        if at < len(stream) and not (reads and reads[-1].fatal):
            reads.append(decoder.feed(stream[at : at + size], _NOW))
            at += size
    assert _told(reads) == whole


@given(_streams() | st.binary(max_size=300), st.booleans())
def test_no_bytes_raise_and_every_entry_is_a_row_or_counted_with_its_bytes(stream: bytes, accept_blocks: bool) -> None:
    decoder = ForwardDecoder(Normalizer(), max_frame_bytes=1 << 16, max_inflated_bytes=1 << 16, accept_blocks=accept_blocks)
    for read in (decoder.feed(stream, _NOW), decoder.eof()):
        rows = len(read.batch) if read.batch is not None else 0
        blocks = sum(block.records for block in read.blocks)
        fatal = read.fatal.records if read.fatal is not None else 0
        assert read.received == rows + blocks + sum(piece.records for piece in read.rejected) + fatal
        for piece in [*read.rejected, *([read.fatal] if read.fatal is not None else [])]:
            assert piece.detail
            assert piece.data
        if read.batch is not None:
            assert len(_rows(read)) == rows
            assert len(read.batch.to_json_lines().splitlines()) == rows


@given(_plain_records)
def test_every_field_of_a_record_is_read_back_by_the_official_classes(record: dict[str, Any]) -> None:
    read = ForwardDecoder(Normalizer()).feed(msgpack.packb(["app", 1_700_000_000, record]), _NOW)
    assert read.batch is not None
    request = ExportLogsServiceRequest.FromString(read.batch.to_block("none", topic="logs", block_id="b").payload("none"))
    (row,) = (row for resource in request.resource_logs for scope in resource.scope_logs for row in scope.log_records)
    assert repr(plain_attributes(row.attributes)) == repr(record)  # the order too, and nan is nan
    assert (row.time_unix_nano, row.observed_time_unix_nano, plain(row.body)) == (1_700_000_000 * 10**9, _NOW, None)


@given(_records)
def test_no_key_occurs_twice_in_a_row_and_no_value_is_lost(record: dict[str, Any]) -> None:
    marked = {key: f"value of {index}" for index, key in enumerate(record)}
    read = ForwardDecoder(Normalizer()).feed(msgpack.packb(["app", 1_700_000_000, marked]), _NOW)
    assert read.batch is not None
    request = ExportLogsServiceRequest.FromString(read.batch.to_block("none", topic="logs", block_id="b").payload("none"))
    (resource,) = request.resource_logs
    (row,) = resource.scope_logs[0].log_records
    found = [*plain_attributes(row.attributes).values(), *plain_attributes(resource.resource.attributes).values()]
    assert set(marked.values()) <= {*found, plain(row.body), row.severity_text}


@given(_records)
def test_both_ways_of_writing_a_row_write_the_same_row(record: dict[str, Any]) -> None:
    """The fast way steps aside where a key occurs twice; the slow one must come to what the fast one would have made without."""
    fields = b"".join(msgpack.packb(key) + msgpack.packb(value) for key, value in record.items())
    twice = msgpack.packb("own twice") + b"\x01"
    rows = []
    for more, count in ((b"", 1), (twice, 2)):
        map32 = b"\xdf" + (len(record) + count).to_bytes(4, "big") + twice + fields + more
        frame = b"\x93" + msgpack.packb("app") + msgpack.packb(1_700_000_000) + map32
        rows.append(_rows(ForwardDecoder(Normalizer()).feed(frame, _NOW)))
    assert len(rows[0]) == 1
    assert rows[0] == rows[1]
