"""Promises of the way out by Forward: any peer reads the records, and the frames are what the protocol says."""

from __future__ import annotations

import gzip
from typing import Any

import msgpack
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from emp_pipe import _core
from tests.support.otlp_rows import NOW, attributes, log, log_batch, logs_of, plain, plain_attributes, span_batch
from tests.support.otlp_strategies import CODECS, log_records, resource_logs, values


def frame_of(data: bytes) -> tuple[str, bytes, dict[str, Any]]:
    tag, body, options = msgpack.unpackb(data)
    return tag, body, options


def entries(body: bytes) -> list[tuple[msgpack.ExtType, dict[str, Any]]]:
    unpacker = msgpack.Unpacker(strict_map_key=False)
    unpacker.feed(body)
    return [tuple(entry) for entry in unpacker]


def test_a_record_is_flat_so_that_any_peer_reads_it() -> None:
    row = log(
        "it failed",
        time=NOW + 7,
        severity=17,
        severity_text="ERR",
        observed_time_unix_nano=NOW + 9,
        trace_id=bytes(range(16)),
        attrs={"job_id": "job-1", "n": 1, "nested": {"a": [1.5, True, None]}, "raw": b"\xff"},
    )
    (frame,) = log_batch(row, resource={"machine_id": "gpu-1"}, tag="app.web").to_forward("none", chunk="c1")
    tag, body, options = frame_of(frame.data)
    ((time, record),) = entries(body)

    assert (tag, options) == ("app.web", {"chunk": "c1", "size": 1})
    assert (frame.tag, frame.chunk, frame.records) == ("app.web", "c1", 1)
    assert time == msgpack.ExtType(0, (NOW // 10**9).to_bytes(4, "big") + (7).to_bytes(4, "big"))
    assert {key: value for key, value in record.items() if key != "_emp"} == {
        "message": "it failed",
        "level": "error",
        "trace_id": "000102030405060708090a0b0c0d0e0f",
        "machine_id": "gpu-1",
        "job_id": "job-1",
        "n": 1,
        "nested": {"a": [1.5, True, None]},
        "raw": b"\xff",
    }
    assert record["_emp"] == {"c": 7, "n": 17, "l": "ERR", "o": NOW + 9, "r": ["machine_id"], "s": {"t": 1}}


@pytest.mark.parametrize(("codec", "inflate"), [("gzip", gzip.decompress), ("zstd", zstandard.ZstdDecompressor().decompress)])
def test_a_compressed_body_says_so(codec: Any, inflate: Any) -> None:
    (frame,) = log_batch(*(log(str(index)) for index in range(100))).to_forward(codec, chunk="c1")
    _, body, options = frame_of(frame.data)

    assert options == {"chunk": "c1", "size": 100, "compressed": codec}
    assert [record["message"] for _, record in entries(inflate(body))] == [str(index) for index in range(100)]


def test_each_tag_gets_a_frame_and_a_chunk_of_its_own() -> None:
    batches = [log_batch(log("a"), tag="one"), log_batch(log("b"), tag=None), log_batch(log("c"), log("d"), tag="two")]
    frames = _core.encode_block(batches, "none", topic="logs", block_id="b").decode().to_forward("none", chunk="c", default_tag="rest")

    assert [(frame.tag, frame.chunk, frame.records) for frame in frames] == [("one", "c", 1), ("rest", "c.1", 1), ("two", "c.2", 2)]


def test_frames_stay_under_what_fluent_bit_takes() -> None:
    frames = log_batch(*(log("x" * 1_000_000) for _ in range(10)), log("y" * 7_000_000)).to_forward("none", chunk="c")

    assert sum(frame.records for frame in frames) == 11
    assert [frame.records for frame in frames] == [4, 4, 2, 1]
    assert all(len(frame.data) < 6_144_000 for frame in frames[:-1])


def test_spans_do_not_go_by_forward() -> None:
    with pytest.raises(_core.CoreError, match="send those by OTLP"):
        span_batch().to_forward("none", chunk="c")


def test_a_block_travels_verbatim_between_two_of_us() -> None:
    block = log_batch(log("a")).to_block("gzip", topic="logs", block_id="b-1")
    tag, body, options = frame_of(block.to_forward_frame())

    assert (tag, body) == ("emp.block", block.payload("gzip"))
    assert options == {"chunk": "b-1", "emp_block": block.header, "size": 1}


def received(frames: list[_core.ForwardFrame], **stamp: str) -> _core.Batch:
    """What a receiver makes of frames, normalising as usual."""
    decoder = _core.ForwardDecoder(_core.Normalizer(stamp=stamp))
    read = decoder.feed(b"".join(frame.data for frame in frames), NOW + 10**12)
    assert (read.rejected, read.fatal) == ([], None)
    assert read.batch is not None
    return read.batch


def canonical(batch: _core.Batch) -> list[Any]:
    """Each row with all that it stands under, attributes in the order of their keys."""
    request = ExportLogsServiceRequest.FromString(batch.to_block("none", topic="logs", block_id="b").payload("none"))
    rows = []
    for resource in request.resource_logs:
        for scope in resource.scope_logs:
            for row in scope.log_records:
                for message in (resource.resource, scope.scope, row):
                    pairs = sorted(message.attributes, key=lambda pair: pair.key)
                    del message.attributes[:]
                    message.attributes.extend(pairs)
                parts = (resource.resource, resource.schema_url, scope.scope, scope.schema_url, row)
                rows.append(tuple(part if isinstance(part, str) else part.SerializeToString() for part in parts))
    return sorted(rows, key=repr)


reserved_keys = st.sampled_from(["_emp", "message", "level", "trace_id", "span_id", "machine_id", "fluent.tag", "log", "time", "worker_id"])
forward_maps = st.dictionaries(reserved_keys | st.text(max_size=6), values, max_size=5)
texts = st.sampled_from(["", "some"])
forward_rows = st.tuples(log_records, forward_maps, forward_maps, forward_maps, texts, texts)


@given(st.lists(forward_rows, min_size=1, max_size=2), st.sampled_from(CODECS))
def test_a_row_that_went_by_forward_is_the_same_row(rows: list[Any], codec: Any) -> None:
    resources = []
    for row, row_attributes, resource_attributes, scope_attributes, scope, schema_url in rows:
        del row.attributes[:]
        row.attributes.extend(attributes(row_attributes))
        resource = resource_logs([row], resource_attributes, scope, schema_url)
        resource.scope_logs[0].scope.attributes.extend(attributes(scope_attributes))
        resources.append(resource)
    batch = _core.Batch.from_otlp(ExportLogsServiceRequest(resource_logs=resources).SerializeToString(), signal="logs")

    assert canonical(received(batch.to_forward(codec, chunk="c"))) == canonical(batch)


def test_what_a_peer_on_the_way_changed_and_added_holds() -> None:
    row = log("secret", attrs={"job_id": "job-1"})
    (frame,) = log_batch(row, resource={"machine_id": "gpu-1"}).to_forward("none", chunk="c")
    tag, body, options = frame_of(frame.data)
    ((time, record),) = entries(body)
    record |= {"message": "redacted", "machine_id": "gpu-2", "added": True}
    changed = msgpack.packb([tag, msgpack.packb([time, record]), options])
    batch = _core.ForwardDecoder(_core.Normalizer()).feed(changed, NOW).batch

    assert batch is not None
    (after,) = logs_of(batch)
    assert (plain(after.body), plain_attributes(after.attributes)) == ("redacted", {"job_id": "job-1", "added": True})
    assert pa.array(batch.to_arrow(["machine_id"])["machine_id"]).to_pylist() == ["gpu-2"]


def test_the_stamp_of_a_receiver_is_added_where_it_lacks_only() -> None:
    batch = received(log_batch(log("a"), resource={"machine_id": "gpu-1"}).to_forward("none", chunk="c"), machine_id="hub", region="eu")

    assert pa.record_batch(batch.to_arrow(["machine_id", "region"])).to_pylist() == [{"machine_id": "gpu-1", "region": "eu"}]


def test_identity_past_the_limit_of_resources_stays_on_the_record() -> None:
    batches = [log_batch(log(str(index)), resource={"machine_id": f"gpu-{index}"}) for index in range(6)]
    batch = _core.encode_block(batches, "none", topic="logs", block_id="b").decode()
    decoder = _core.ForwardDecoder(_core.Normalizer(max_resources=4))
    read = decoder.feed(batch.to_forward("none", chunk="c")[0].data, NOW)

    assert read.batch is not None
    assert (read.batch.resource_count, read.resources_over_limit) == (4, 3)
    assert pa.array(read.batch.to_arrow(["machine_id"])["machine_id"]).to_pylist() == [f"gpu-{index}" for index in range(6)]


@given(st.dictionaries(st.sampled_from(["c", "n", "l", "o", "t", "x", "u", "r", "rx", "ru", "rs", "rw", "s"]), values, max_size=8))
def test_a_forged_reserved_map_is_a_row_or_a_rejected_entry(reserved: dict[str, Any]) -> None:
    entry = msgpack.packb([NOW // 10**9, {"_emp": reserved, "message": "m", "trace_id": "xyz", "a": 1}])
    read = _core.ForwardDecoder(_core.Normalizer()).feed(msgpack.packb(["tag", entry + entry]), NOW)

    assert read.received == 2
    assert len(read.batch or ()) + len(read.rejected) == 2
