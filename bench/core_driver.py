"""The core alone: frames of 1000 records to OTLP request bytes, beside msgpack-python's C unpacker merely unpacking the same frames.

Run by `python -m bench` in a process of its own; prints one JSON object. CPU time of this thread, both sides on the same frames in turns.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence

import msgpack

from bench.records import decode_entry, make_pool, packed_forward

FRAMES = 40
RECORDS_PER_FRAME = 1000


def otlp_requests(frames: Sequence[bytes]) -> int:
    """Decode each frame, normalise, encode an OTLP request; return the bytes of all requests."""
    from emp_pipe._core import ForwardDecoder, Normalizer, encode_block

    decoder = ForwardDecoder(Normalizer())
    request_bytes = 0
    for frame in frames:
        batch = decoder.feed(frame, time.time_ns()).batch
        if batch is None or len(batch) != RECORDS_PER_FRAME:
            raise RuntimeError("a frame did not give its records")
        request_bytes += encode_block([batch], "none", topic="logs", block_id="bench").payload_bytes
    return request_bytes


def unpack_only(frames: Sequence[bytes]) -> int:
    """Unpack each frame and its entries into Python objects and drop them; return how many entries there were."""
    entries = 0
    for frame in frames:
        unpacker = msgpack.Unpacker()
        unpacker.feed(msgpack.unpackb(frame)[1])
        for _ in unpacker:
            entries += 1
    return entries


def check_fields(frame: bytes, entries: Sequence[bytes]) -> None:
    """Raise unless the request of a frame has the fields of its entries, read back with the official classes."""
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    from emp_pipe._core import ForwardDecoder, Normalizer, encode_block

    batch = ForwardDecoder(Normalizer()).feed(frame, time.time_ns()).batch
    if batch is None:
        raise RuntimeError("a frame gave no rows")
    request = ExportLogsServiceRequest.FromString(encode_block([batch], "none", topic="logs", block_id="bench").payload("none"))
    found = {}
    for resource in request.resource_logs:
        identity = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
        for scope in resource.scope_logs:
            for row in scope.log_records:
                value = {pair.key: pair.value for pair in row.attributes}
                found[value["job_id"].string_value] = (
                    identity["machine_id"],
                    identity["worker_id"],
                    row.body.string_value,
                    row.severity_text,
                    row.trace_id.hex(),
                    row.span_id.hex(),
                    value["duration_ms"].double_value,
                    value["progress"].int_value,
                )
    names = ("machine_id", "worker_id", "message", "level", "trace_id", "span_id", "duration_ms", "progress")
    sent = {record["job_id"]: tuple(record[name] for name in names) for _, record in map(decode_entry, entries)}
    if found != sent:
        raise RuntimeError("the request's fields are not those of the frame's records")


def _cpu_us_per_record(function: Callable[[Sequence[bytes]], int], frames: Sequence[bytes]) -> float:
    began_ns = time.process_time_ns()
    function(frames)
    return (time.process_time_ns() - began_ns) / 1e3 / (len(frames) * RECORDS_PER_FRAME)


def main() -> None:
    pairs = int(sys.argv[1])
    pool = make_pool(FRAMES * RECORDS_PER_FRAME)
    frames = [packed_forward(pool.entries[at : at + RECORDS_PER_FRAME], None) for at in range(0, len(pool.entries), RECORDS_PER_FRAME)]
    if unpack_only(frames) != len(pool.entries):
        raise RuntimeError("the unpacker did not see every entry")
    check_fields(frames[0], pool.entries[:RECORDS_PER_FRAME])
    otlp_requests(frames)
    values: list[float] = []
    references: list[float] = []
    for pair in range(pairs):
        sides = [(otlp_requests, values), (unpack_only, references)]
        for function, results in sides if pair % 2 == 0 else reversed(sides):
            results.append(_cpu_us_per_record(function, frames))
    print(json.dumps({"values": values, "references": references}))


if __name__ == "__main__":
    main()
