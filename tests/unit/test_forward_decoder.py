"""Frames to batches at the binding: modes, acks, splitting. The rules of records are in `tests/e2e/test_forward_normalize.py`."""

import gzip
import json

import msgpack
import pytest

from emp_pipe._core import ForwardDecoder, Normalizer

NOW = 1_800_000_000_000_000_000
RECORD = {"message": "hello", "level": "info", "machine_id": "gpu-1", "n": 7}


def event_time(seconds: int, ns: int = 0) -> msgpack.ExtType:
    return msgpack.ExtType(0, seconds.to_bytes(4, "big") + ns.to_bytes(4, "big"))


def entries(count: int) -> bytes:
    return b"".join(msgpack.packb([event_time(1_700_000_000 + i), RECORD]) for i in range(count))


FRAMES = {
    "message": msgpack.packb(["app", 1_700_000_000, RECORD, {"chunk": "c"}]),
    "forward": msgpack.packb(["app", [[event_time(1_700_000_000), RECORD]] * 3, {"chunk": "c"}]),
    "forward_with_metadata": msgpack.packb(["app", [[[event_time(1_700_000_000), {}], RECORD]] * 3, {"chunk": "c"}]),
    "packed_bin": msgpack.packb(["app", entries(3), {"chunk": "c", "size": 3}]),
    "packed_str": msgpack.packb(["app", entries(3), {"chunk": "c"}], use_bin_type=False),
    "gzip": msgpack.packb(["app", gzip.compress(entries(3)), {"chunk": "c", "compressed": "gzip"}]),
    "gzip_of_two_members": msgpack.packb(["app", gzip.compress(entries(1)) + gzip.compress(entries(2)), {"chunk": "c"}]),
    "json": b'["app", 1700000000, {"message": "hello", "level": "info"}, {"chunk": "c"}]\n',
}
ROWS = {"message": 1, "json": 1}


@pytest.mark.parametrize("mode", FRAMES)
def test_every_mode_gives_its_rows_and_its_ack(mode: str) -> None:
    read = ForwardDecoder(Normalizer()).feed(FRAMES[mode], NOW)
    rows = ROWS.get(mode, 3)
    assert read.batch is not None
    assert (len(read.batch), read.received, read.frames, read.rejected, read.fatal) == (rows, rows, 1, [], None)
    [chunk] = read.chunks
    assert (chunk.id, chunk.row_start, chunk.row_end, chunk.block_index) == (b"c", 0, rows, -1)
    assert chunk.ack == (b'{"ack":"c"}' if mode == "json" else msgpack.packb({"ack": "c"}))


def _three(middle: dict[str, object]) -> dict[str, bytes]:
    """Three records in every mode, the middle one as given."""
    records = [RECORD, middle, RECORD]
    listed = [[1_700_000_000, record] for record in records]
    packed = b"".join(msgpack.packb(entry) for entry in listed)
    return {
        "message": b"".join(msgpack.packb(["app", 1_700_000_000, record]) for record in records),
        "message_with_options": b"".join(msgpack.packb(["app", 1_700_000_000, record, {"chunk": "c" * 900}]) for record in records),
        "forward": msgpack.packb(["app", listed, {"chunk": "c"}]),
        "packed": msgpack.packb(["app", packed, {"chunk": "c"}]),
        "gzip": msgpack.packb(["app", gzip.compress(packed), {"chunk": "c", "compressed": "gzip"}]),
        "json": b"".join(json.dumps(["app", 1_700_000_000, record]).encode() for record in records),
    }


@pytest.mark.parametrize("mode", _three({}))
@pytest.mark.parametrize("middle", [{"message": "x" * 2000}, {"list": [1] * 2000}], ids=["text", "list"])
def test_an_entry_over_the_limit_is_rejected_in_every_mode_and_its_neighbours_are_kept(mode: str, middle: dict[str, object]) -> None:
    read = ForwardDecoder(Normalizer(), max_entry_bytes=1000).feed(_three(middle)[mode], NOW)
    assert read.fatal is None
    assert read.batch is not None
    [rejected] = read.rejected
    assert "max_entry_bytes" in rejected.detail
    assert (len(read.batch), rejected.records, read.received) == (2, 1, 3)


def test_bytes_that_land_in_the_decoders_memory_are_read_without_moving_them() -> None:
    decoder = ForwardDecoder(Normalizer())
    frame = FRAMES["packed_bin"]
    with memoryview(decoder.reserve(65_536)) as view:  # type: ignore[arg-type]
        view[: len(frame)] = frame
        read = decoder.received(len(frame), NOW)
        with pytest.raises(BufferError):
            decoder.reserve(1 << 20)
        with pytest.raises(BufferError):
            decoder.feed(b"\xc0", NOW)
    assert read.batch is not None
    assert len(read.batch) == 3
    decoder.reserve(1 << 20)


def test_what_is_no_fluent_forward_is_fatal() -> None:
    read = ForwardDecoder(Normalizer()).feed(b"GET / HTTP/1.1\r\n\r\n", NOW)
    assert read.fatal is not None
    assert (read.fatal.kind, read.fatal.offset, read.fatal.data[:5]) == ("frame_invalid", 0, b"GET /")
