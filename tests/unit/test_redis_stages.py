"""The last chunk of an append over several shards becomes known after all else: who knows it knows that nothing is missing."""

from __future__ import annotations

from emp_pipe.buffers.redis_placement import plan, shard_of_name
from emp_pipe.log.protocol import Append, ChunkKey, ReceiverBooks
from tests.support.blocks import block


async def test_the_last_chunk_and_the_books_are_written_after_all_other_parts() -> None:
    blocks = [block([number]) for number in range(24)]
    chunks = [*(ChunkKey("edge", one.block_id.encode()) for one in blocks), ChunkKey("append", b"token")]
    append = Append(blocks, books=[ReceiverBooks("forward", received=24, appended=24)], chunks=chunks)
    planned = await plan(append, 3)
    *before, final = planned.stages(append.chunks)
    home = shard_of_name(b"token", 3)
    assert set(final) == {home}, "the token may be known while a part of another shard is missing"
    assert chunks[-1] in final[home].chunks
    assert final[home].books
    assert {chunk for stage in before for part in stage.values() for chunk in part.chunks} | set(final[home].chunks) == set(chunks)
    assert not any(part.books for stage in before for part in stage.values())
