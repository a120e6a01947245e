"""Promises of the Forward decoder about bodies that are small on the wire and large inside."""

from __future__ import annotations

import gzip
from collections.abc import Iterator

from emp_pipe._core import ForwardDecoder, ForwardRead, Normalizer
from tests.support.forward import T0_S, entries_of, packed_frame, rows_of_request, zstd_frame

_NOW = (T0_S + 10) * 10**9


def _reads(decoder: ForwardDecoder, data: bytes) -> Iterator[ForwardRead]:
    read = decoder.feed(data, _NOW)
    yield read
    while read.more:
        read = decoder.received(0, _NOW)
        yield read


def test_a_bomb_of_bad_entries_is_few_dead_letters_in_short_reads_and_every_one_is_counted():
    decoder = ForwardDecoder(Normalizer(), max_inflated_bytes=4 << 20)
    reads = list(_reads(decoder, packed_frame(gzip.compress(b"\0" * (16 << 20)), compressed="gzip", chunk="c")))
    assert sum(read.received for read in reads) >= 4 << 20
    assert max(read.received for read in reads) <= (1 << 18) + 2, "no read takes so long that others wait"
    for read in reads:
        assert len(read.rejected) <= 258
        assert sum(piece.records for piece in read.rejected) == read.received
    assert [chunk.id for read in reads for chunk in read.chunks] == [b"c"]


def test_a_read_full_of_bad_frames_is_few_dead_letters():
    decoder = ForwardDecoder(Normalizer())
    (read,) = _reads(decoder, b"\x90" * 100_000)
    assert len(read.rejected) <= 258
    assert sum(piece.records for piece in read.rejected) == read.received == 100_000


def test_entries_below_the_limit_of_inflated_bytes_are_kept_also_where_they_fill_more_than_a_batch():
    decoder = ForwardDecoder(Normalizer(), max_inflated_bytes=50 << 20)
    entries = b"".join(entries_of([number], blob="x" * (1 << 20)) for number in range(80))
    reads = list(_reads(decoder, zstd_frame(entries, chunk="c")))
    batches = [read.batch for read in reads if read.batch is not None]
    assert len(batches) > 1
    requests = [batch.to_block("none", topic="logs", block_id="b").payload("none") for batch in batches]
    numbers = [row.attributes["number"] for request in requests for row in rows_of_request(request)]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) == 49, "as many as lie whole below the limit"
    rejected = [piece for read in reads for piece in read.rejected]
    assert {piece.kind for piece in rejected} <= {"frame_too_large", "entry_invalid"}
    assert rejected
    assert [chunk.id for read in reads for chunk in read.chunks] == [b"c"]
