"""Tail sampling over every log: bounded memory, traces of any size, bad blocks, a full log. Nothing is lost, and nobody starves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from emp_pipe._core import Block, CoreError
from emp_pipe.delivery.derive import DeriveLoop
from emp_pipe.log.protocol import Append
from tests.contract.conftest import DEADLINE_S, OpenLog
from tests.contract.sampling import (
    DROPPED_BY_10_PERCENT,
    ERROR,
    GROUPS,
    KEPT_BY_10_PERCENT,
    TailSampling,
    numbers,
    random_ids,
    span,
    span_block,
    spans_in,
    trace_id,
)

FIFTY_THOUSAND = 50_000


async def test_a_trace_of_50_000_spans_is_decided_early_and_starves_no_other(opened: OpenLog) -> None:
    sampling = await TailSampling(opened).open()
    others = random_ids(5, 200)
    for part in range(10):
        huge = [span(DROPPED_BY_10_PERCENT, 1_000 + at) for at in range(FIFTY_THOUSAND // 10)]
        await sampling.send(*huge, *(span(trace, part + 1) for trace in others[part * 20 : part * 20 + 20]))
        await sampling.tick()
    assert sampling.metric("tail_sample_decisions_traces_total", cause="max_trace_spans") == 1
    assert sampling.metric("tail_sample_decisions_traces_total", cause="memory") == 0
    assert sampling.metric("tail_sample_open_traces") == len(others), "others were decided because of it"
    assert sampling.metric("tail_sample_spans_total", policy="dropped") == 20_000
    await sampling.send(*(span(trace, 2, status=ERROR) for trace in others[:100]))
    kept = await sampling.after(30)
    assert {found.trace_id for found in kept} >= set(others[:100]), "traces that were decided at their own time"
    assert DROPPED_BY_10_PERCENT not in {found.trace_id for found in kept}
    assert (await sampling.books())[0] == FIFTY_THOUSAND + 300
    assert sampling.held == []


async def test_a_huge_trace_that_is_kept_goes_out_whole_in_blocks_of_at_most_a_mebibyte(opened: OpenLog) -> None:
    sampling = await TailSampling(opened).open()
    for part in range(5):
        await sampling.send(*(span(KEPT_BY_10_PERCENT, part * 10_000 + at, attributes={"at": f"{at:064}"}) for at in range(10_000)))
    await sampling.after(30)
    assert numbers(sampling.sent) == list(range(FIFTY_THOUSAND))
    assert len(sampling.blocks_sent) > 5
    assert max(block.uncompressed_bytes for block in sampling.blocks_sent) <= 1 << 20
    assert min(block.uncompressed_bytes for block in sampling.blocks_sent[:-1]) > 1 << 19, "small blocks although there was more"


async def test_a_single_span_over_a_mebibyte_goes_alone(opened: OpenLog) -> None:
    sampling = await TailSampling(opened).open()
    big = span(KEPT_BY_10_PERCENT, 2, attributes={"text": "x" * (2 << 20)})
    await sampling.send(span(KEPT_BY_10_PERCENT, 1), big, span(KEPT_BY_10_PERCENT, 3))
    assert numbers(await sampling.after(30)) == [1, 2, 3]
    assert sorted(block.records for block in sampling.blocks_sent) == [1, 1, 1]


async def test_with_memory_full_of_summaries_the_oldest_traces_are_decided_first_and_none_is_lost(opened: OpenLog) -> None:
    sampling = await TailSampling(opened, memory_bytes=1 << 20).open()
    ids = random_ids(6, 9_000)
    for at in range(0, len(ids), 1000):
        await sampling.send(*(span(trace, at + nth) for nth, trace in enumerate(ids[at : at + 1000])))
    await sampling.tick()
    decided = sampling.metric("tail_sample_decisions_traces_total", cause="memory")
    assert 5_000 < decided < 8_000
    assert sampling.metric("tail_sample_open_traces") == 9_000 - decided
    assert sampling.metric("tail_sample_memory_bytes") < 1 << 20
    oldest, newest = ids[0], ids[-1]
    await sampling.send(span(oldest, 20_001, status=ERROR), span(newest, 20_002, status=ERROR))
    await sampling.after(30)
    kept = set(numbers(sampling.sent))
    assert {8_999, 20_002} <= kept, "the newest was decided before the oldest"
    assert (20_001 in kept) == (0 in kept), "the late span did not follow the early decision"
    assert sum(await sampling.books()) == 2 * 9_002


async def test_with_memory_full_of_blocks_the_oldest_traces_are_decided_first_and_none_is_lost(opened: OpenLog) -> None:
    sampling = await TailSampling(opened, memory_bytes=1 << 20).open()
    chance = random.Random(7)
    limit = sampling.deriver.max_held_bytes
    for number in range(300):
        await sampling.send(span(chance.randbytes(16), number, attributes={"text": chance.randbytes(4000).hex()}))
        held_bytes = sum(delivery.block.payload_bytes for delivery in sampling.held)
        if held_bytes > limit:
            await sampling.tick()
            held_bytes = sum(delivery.block.payload_bytes for delivery in sampling.held)
            assert limit // 2 < held_bytes < limit, "too little or too much was decided"
    assert sampling.metric("tail_sample_decisions_traces_total", cause="memory") > 100
    held = numbers(spans_in([delivery.block for delivery in sampling.held]))
    assert held == list(range(held[0], 300)), "not the oldest were decided"
    await sampling.after(30)
    assert sampling.held == []
    assert sum(await sampling.books()) == 2 * 300


async def test_decisions_are_remembered_in_bounded_memory(opened: OpenLog) -> None:
    sampling = await TailSampling(opened, memory_bytes=1 << 20).open()
    for seed in range(20):
        await sampling.send(*(span(trace, at) for at, trace in enumerate(random_ids(seed, 1000))))
        await sampling.after(30)
    assert sampling.metric("tail_sample_memory_bytes") < 1 << 20
    remembered = len(await opened.log.state_items("tail_sample"))
    assert remembered < 6, "values of decisions that are forgotten stay in the log"


async def test_spans_without_a_trace_id_are_passed_on_and_counted(opened: OpenLog) -> None:
    sampling = await TailSampling(opened).open()
    lost = trace_id(77)
    block = span_block([span(lost, 1), span(lost, 2), span(DROPPED_BY_10_PERCENT, 3)], codec="none")
    await opened.log.append(Append([altered(block, lambda payload: payload.replace(lost, bytes(16)))]))
    await sampling.take()
    assert numbers(await sampling.after(1)) == [1, 2]
    assert sampling.metric("tail_sample_odd_spans_total", reason="without_trace_id") == 2
    await sampling.restart(reopen=True)
    await sampling.take()
    assert await sampling.after(31) == []
    assert await sampling.books() == (3, 2, 1)


# what cannot be read


def altered(block: Block, change: Callable[[bytes], bytes]) -> Block:
    """Return a block with another payload, whose header is right about its size."""
    payload = change(block.payload("none"))
    header = block.header.replace(
        f'"uncompressed_bytes":{block.uncompressed_bytes}'.encode(), f'"uncompressed_bytes":{len(payload)}'.encode()
    )
    return Block(header, payload)


async def loop_until_decided(opened: OpenLog, blocks: Sequence[Block]) -> TailSampling:
    """Run the sampler's real loop over blocks until it holds nothing, and collect what it sent."""
    sampling = TailSampling(opened, decision_wait_s=0.05)
    await opened.open(*GROUPS)
    await opened.log.append(Append(blocks))
    loop = DeriveLoop(sampling.deriver, opened.log, sampling.context)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(loop.run())
        await opened.until(lambda: opened.log.usage().groups[0].held_records == 0)
        await loop.stop(sampling.context.clock.monotonic_s() + DEADLINE_S)
    await sampling.out()
    return sampling


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
async def test_a_block_that_cannot_be_read_becomes_a_dead_letter_and_the_others_are_sampled(opened: OpenLog, codec: Any) -> None:
    good = [span_block([span(KEPT_BY_10_PERCENT, at)], codec=codec) for at in (1, 2)]
    torn = span_block([span(KEPT_BY_10_PERCENT, 9)], codec=codec)
    torn = Block(torn.header, bytes(memoryview(torn))[:-3])
    sampling = await loop_until_decided(opened, [good[0], torn, good[1]])
    assert numbers(sampling.sent) == [1, 2]
    ((_, letter),) = await opened.log.dead_letters()
    assert (letter.reason, letter.records, letter.payload) == ("block_invalid", 1, bytes(memoryview(torn)))


async def test_of_a_block_with_a_broken_span_the_others_are_sampled(opened: OpenLog) -> None:
    block = span_block(
        [span(KEPT_BY_10_PERCENT, 1, attributes={"a": "first"}), span(KEPT_BY_10_PERCENT, 2, attributes={"a": "other"})], codec="none"
    )
    # the value's length says more than there is
    broken = altered(block, lambda payload: payload.replace(b"\x0a\x05first", b"\x0a\x7ffirst"))
    sampling = await loop_until_decided(opened, [broken, span_block([span(KEPT_BY_10_PERCENT, 3)])])
    assert numbers(sampling.sent) == [2, 3]
    ((_, letter),) = await opened.log.dead_letters()
    assert (letter.reason, letter.records) == ("block_invalid", 1)
    assert "1 of its 2 spans" in letter.detail


async def test_bytes_that_are_no_request_are_refused_with_their_offset(opened: OpenLog) -> None:
    sampling = await TailSampling(opened).open()
    block = altered(span_block([span(trace_id(1), 1)], codec="none"), lambda payload: payload + b"\x0a\x7f")
    await opened.log.append(Append([block]))
    (delivery,) = await opened.log.read("tail_sample", 1 << 20)
    with pytest.raises(CoreError) as raised:
        sampling.deriver.take(delivery, sampling.now_unix_nano)
    assert (raised.value.kind, raised.value.offset) == ("block_invalid", block.uncompressed_bytes)
    assert sampling.deriver.tick(sampling.now_unix_nano + 60 * 10**9, final=False) is not None, "its trace is decided all the same"


@pytest.mark.log_settings(max_bytes=600_000)
async def test_a_log_that_is_full_of_undecided_traces_drains(opened: OpenLog) -> None:
    log = await opened.open(*GROUPS)
    chance = random.Random(9)
    count = 0
    while log.admitting:
        await log.append(
            Append([span_block([span(chance.randbytes(16), count, status=ERROR, attributes={"x": chance.randbytes(3000).hex()})])])
        )
        count += 1
    sampling = TailSampling(opened, decision_wait_s=0.05)
    loop = DeriveLoop(sampling.deriver, log, sampling.context)
    sent = []
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(loop.run())
        async with asyncio.timeout(DEADLINE_S):
            while len(sent) < count:
                await log.wait_readable("out")
                deliveries = await log.read("out", 1 << 30)
                sent += spans_in([delivery.block for delivery in deliveries])
                await log.commit("out", acks=deliveries)
        await opened.until(lambda: log.admitting)
        await loop.stop(sampling.context.clock.monotonic_s() + DEADLINE_S)
    assert numbers(sent) == list(range(count))
