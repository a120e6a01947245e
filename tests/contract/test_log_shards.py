"""What a log in Redis promises over several shards: where rows go, what of it is atomic, and how replicas share it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any

import pyarrow
import pytest

from emp_pipe import deriving
from emp_pipe.buffers.redis import RedisConfig, RedisLog
from emp_pipe.buffers.redis_placement import plan, shard_of_name, shard_of_offset
from emp_pipe.buffers.redis_share import fair_share
from emp_pipe.component import Context
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.protocol import Append, ChunkKey, DeadLetter, DeadReason, ReceiverBooks, Topic
from emp_pipe.self_metrics import Metrics
from tests.contract.conftest import group
from tests.support.blocks import block, delivered
from tests.support.manual_clock import ManualClock
from tests.support.redis_cluster import RedisCluster
from tests.support.redis_server import RedisServer, needs_redis
from tests.support.spans import span, spans_block

pytestmark = needs_redis
Make = Callable[..., RedisLog]
SHARDS = 4
SAMPLER, OUT = group("sampler", Topic.TRACES_IN), group("out", Topic.TRACES)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer(appendfsync="always") as started:
        yield started


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def make(server: RedisServer, clock: ManualClock, tmp_path: Path) -> AsyncIterator[Make]:
    """Make logs of one prefix, as several processes would; closed at the end, whatever became of them."""
    made: list[RedisLog] = []
    prefix = f"test-{token_hex(4)}"

    def one(machine: str = "m1", **settings: Any) -> RedisLog:
        config = RedisConfig(**{"url": server.url, "prefix": prefix, "shards": SHARDS, "lease_s": 2.0, **settings})
        made.append(RedisLog("redis", config, Context(clock, Metrics(), tmp_path, machine, "run")))
        return made[-1]

    yield one
    for log in made:
        await log.close(clock.monotonic_s() + 1)


def column(of: Any, name: str) -> list[Any]:
    found: list[Any] = pyarrow.array(of.decode().to_arrow([name])[name]).to_pylist()
    return found


async def until(condition: Callable[[], Any], patience_s: float = 30) -> None:
    async with asyncio.timeout(patience_s):
        while not condition():  # noqa: ASYNC110 (what it waits for happens at the server)
            await asyncio.sleep(0.01)


async def read_all(log: RedisLog, name: str, rows: int) -> list[Any]:
    """Read until so many rows have come."""
    found: list[Any] = []
    async with asyncio.timeout(30):
        while sum(one.block.records for one in found) < rows:
            await log.wait_readable(name)
            found += await log.read(name, 1 << 20)
    return found


async def check_books(log: RedisLog) -> None:
    for books in [*await log.receiver_books(), *await log.group_books()]:
        assert books.balanced, books
    held = {(books.topic, books.group): books.held for books in await log.group_books()}
    for usage in log.usage().groups:
        assert usage.held_records == sum(held[topic.value, usage.spec.name] for topic in usage.spec.topics)


def owned(log: RedisLog) -> list[int]:
    return [shard.number for shard in log.shards if shard.ours]


# where things go


async def test_the_spans_of_a_trace_lie_in_one_shard_whoever_received_them(make: Make) -> None:
    first, second = make(), make()
    await first.open([SAMPLER])
    await second.open([SAMPLER])
    await until(lambda: len(owned(first)) == len(owned(second)) == 2)
    spans = [span() for _ in range(40)]
    await first.append(Append([spans_block(*spans)]))
    await second.append(Append([spans_block(*reversed(spans))]))
    shards: dict[bytes, set[int]] = {}
    await until(lambda: all(log.usage().groups[0].held_records == 80 for log in (first, second)))
    for log in (first, second):
        while deliveries := await log.read("sampler", 1 << 20):
            for one in deliveries:
                for trace_id in column(one.block, "trace_id"):
                    shards.setdefault(trace_id, set()).add(shard_of_offset(one.offset))
    assert len(shards) == 40
    assert {len(those) for those in shards.values()} == {1}
    assert len(set().union(*shards.values())) == SHARDS, "and over all shards"


async def test_blocks_of_other_topics_go_whole_and_offsets_are_unique_over_shards(make: Make) -> None:
    log = make()
    await log.open([group("a")])
    offsets = [(await log.append(Append([block([number])]))).offsets[0] for number in range(40)]
    assert len(set(offsets)) == 40
    assert {shard_of_offset(offset) for offset in offsets} == set(range(SHARDS))
    deliveries = await read_all(log, "a", 40)
    assert sorted(delivered(deliveries)) == list(range(40))
    await log.commit("a", acks=deliveries)
    assert log.usage().groups[0].held_records == 0
    await check_books(log)


async def test_a_read_takes_from_every_shard_in_its_turn_and_no_more_than_it_was_asked_for(make: Make) -> None:
    log = make()
    await log.open([group("a")])
    for number in range(40):
        await log.append(Append([block([number], padding_bytes=1000)]))
    turns = [shard_of_offset((await log.read("a", 1))[0].offset) for _ in range(2 * SHARDS)]
    assert set(turns) == set(range(SHARDS))


async def test_what_names_a_block_lies_in_its_shard_and_takes_effect_with_it() -> None:
    whole, sender = block([1]), ChunkKey("edge-1", b"")
    chunk = sender._replace(chunk=whole.block_id.encode())
    planned = await plan(Append([whole], chunks=[chunk], books=[ReceiverBooks("r", 1, 1)]), SHARDS)
    assert not planned.first
    ((shard, part),) = planned.last.items()
    assert shard == shard_of_name(chunk.chunk, SHARDS)
    assert (part.blocks, part.chunks, len(part.books)) == ([whole], [chunk], 1)


async def test_a_chunk_is_known_only_once_all_parts_of_its_block_are_there() -> None:
    spans = spans_block(*(span() for _ in range(40)))
    chunk = ChunkKey("edge-1", spans.block_id.encode())
    planned = await plan(Append([spans], chunks=[chunk], checkpoints={"tail": b"7"}), SHARDS)
    assert len(planned.first) == SHARDS
    assert not any(part.chunks or part.checkpoints for part in planned.first.values())
    assert {key for part in planned.last.values() for key in part.chunks} == {chunk}
    assert {name for part in planned.last.values() for name in part.checkpoints} == {"tail"}


async def test_rows_of_several_chunks_are_durable_before_one_of_the_chunks_is_known() -> None:
    chunks = [ChunkKey("peer", b"chunk %d" % number) for number in range(8)]
    planned = await plan(Append([block(range(8))], chunks=chunks), SHARDS)
    assert sum(len(part.blocks) for part in planned.first.values()) == 1
    assert not any(part.blocks for part in planned.last.values())
    assert sum(len(part.chunks) for part in planned.last.values()) == 8


async def test_a_block_that_is_sent_again_after_half_of_it_was_filed_is_there_once(make: Make) -> None:
    log = make()
    await log.open([SAMPLER])
    spans = [span() for _ in range(40)]
    whole = spans_block(*spans)
    append = Append([whole], chunks=[ChunkKey("edge-1", whole.block_id.encode())], books=[ReceiverBooks("r", 40, 40)])
    broken = log.shards[2]
    submit, broken._submit = broken._submit, _refuse  # type: ignore[method-assign]
    with pytest.raises(LogError):
        await log.append(append)
    broken._submit = submit  # type: ignore[method-assign]
    assert await log.seen(append.chunks) == set(), "nothing of it is known"
    await log.append(append)
    assert await log.seen(append.chunks) == set(append.chunks)
    rows = [row for one in await read_all(log, "sampler", 40) for row in column(one.block, "span_id")]
    assert sorted(rows) == sorted(one.span_id for one in spans)
    assert await log.read("sampler", 1 << 20) == []
    await check_books(log)


def _refuse(operation: Any) -> Any:
    raise LogError(ErrorKind.LOG_IO, detail="this shard's server is away")


async def test_what_is_derived_stays_in_its_shard_and_is_not_committed_over_two(make: Make) -> None:
    log = make()
    await log.open([SAMPLER, OUT])
    await log.append(Append([spans_block(*(span() for _ in range(40)))]))
    inputs = await read_all(log, "sampler", 40)
    with pytest.raises(ValueError, match="parts"):
        await log.commit("sampler", acks=inputs, outputs=[block([1], topic="traces")])
    one = inputs[0]
    await log.parts[shard_of_offset(one.offset)].state_items("sampler")
    await log.parts[shard_of_offset(one.offset)].commit("sampler", acks=[one], outputs=[block([1], topic="traces")])
    (out,) = await read_all(log, "out", 1)
    assert shard_of_offset(out.offset) == shard_of_offset(one.offset)
    await check_books(log)


async def test_dead_letters_of_all_shards_are_listed_once_shown_and_deleted_by_their_ids(make: Make) -> None:
    log = make()
    await log.open([group("a")])
    for number in range(20):
        letter = DeadLetter("r", DeadReason.BODY_INVALID, str(number), b"x", records=1)
        await log.append(Append([block([number])], dead=[letter]))
    first = await log.dead_letters(limit=7)
    rest = await log.dead_letters(limit=100, after_id=first[-1][0])
    assert len(first) == 7
    assert sorted(int(letter.detail) for _, letter in [*first, *rest]) == list(range(20))
    ids = [id for id, _ in first]
    assert await log.delete_dead_letters(ids) == 7
    assert {id for id, _ in await log.dead_letters()} == {id for id, _ in rest}
    await check_books(log)


async def test_the_number_of_shards_is_fixed_when_the_log_is_made(make: Make) -> None:
    first = make()
    await first.open([group("a")])
    second = make(shards=2)
    await second.open([group("a")])
    assert len(second.shards) == SHARDS
    assert any("was made with 4" in warning for warning in second.warnings)
    assert not any("was made with" in warning for warning in first.warnings)


async def test_a_required_group_past_its_quota_over_all_shards_stops_every_replica(make: Make) -> None:
    first, second = make(), make()
    spec = group("a", quota_bytes=40_000)
    await first.open([spec])
    await second.open([spec])
    number = 0
    while first.admitting:
        await first.append(Append([block([number], padding_bytes=1000)]))
        number += 1
        assert number < 100
    assert max(shard.ledger.held_bytes for shard in first.shards) < 40_000 < first.usage().held_bytes
    await until(lambda: not second.admitting)
    with pytest.raises(LogError) as error:
        await second.append(Append([block([number])]))
    assert error.value.kind is ErrorKind.LOG_FULL


# replicas


@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 7])
def test_fair_shares_are_all_shards_and_differ_by_one_at_most(replicas: int) -> None:
    shares = [fair_share(8, replicas, rank) for rank in range(replicas)]
    assert sum(shares) == 8
    assert max(shares) - min(shares) <= 1


async def test_a_replica_that_joins_gets_its_share_and_one_that_ends_gives_it_back_at_once(make: Make, clock: ManualClock) -> None:
    first, second = make("m1"), make("m2")
    await first.open([group("a")])
    assert owned(first) == [0, 1, 2, 3]
    await second.open([group("a")])
    await until(lambda: len(owned(first)) == len(owned(second)) == 2)
    assert sorted(owned(first) + owned(second)) == [0, 1, 2, 3]
    assert [one["machine"] for one in second.details["replicas"]] == ["m1", "m2"]
    await first.close(clock.monotonic_s() + 5)
    await until(lambda: owned(second) == [0, 1, 2, 3])


async def test_a_shard_is_handed_over_when_what_is_being_sent_has_ended_so_that_nothing_goes_twice(make: Make) -> None:
    first, second = make(lease_s=20.0), make(lease_s=20.0)
    await first.open([group("a")])
    for number in range(20):
        await first.append(Append([block([number])]))
    sending = await read_all(first, "a", 20)
    await second.open([group("a")])
    await until(lambda: sum(shard.yielding for shard in first.shards) == 2)
    await asyncio.sleep(1.5)
    assert owned(second) == [], "nothing is handed over while it is being sent"
    await first.commit("a", acks=sending)
    await until(lambda: len(owned(second)) == 2)
    assert await second.read("a", 1 << 20) == []
    await check_books(second)


async def test_a_group_that_only_another_live_replica_names_is_kept_and_not_handed_on(make: Make) -> None:
    newer, older = make(retire_after_s=0.0), make(retire_after_s=0.0)
    await newer.open([group("a"), group("b")])
    await newer.append(Append([block([1])]))
    told: list[str] = []

    def groups(stored: Any) -> Any:
        told.extend(spec.name for spec in stored)
        return [group("a")]

    await older.open(groups)
    assert told == ["a"], "what a live replica names is not the other's to end"
    assert {usage.spec.name for usage in older.usage().groups} == {"a", "b"}


async def test_where_a_live_replica_names_a_sampler_one_without_it_hands_nothing_on_unsampled(make: Make, clock: ManualClock) -> None:
    sampler, out = group("tail_sample", Topic.TRACES_IN), group("out", Topic.TRACES)
    stopped, without, lives = make(), make(), make()
    await stopped.open([sampler, out])
    await lives.open([sampler, out])
    await stopped.append(Append([spans_block(*(span() for _ in range(64)))]))
    await stopped.close(clock.monotonic_s() + 10)
    assert await deriving.open_log(without, [out], {}, lambda: False)
    assert without.ours, "it reads a part, and could hand on what lies there"
    held = {usage.spec.name: usage.held_blocks for usage in without.usage().groups}
    assert held["out"] == 0
    assert held["tail_sample"] >= len(without.shards)


async def test_a_replica_that_starts_names_its_groups_before_another_can_take_them_for_left_behind(make: Make, clock: ManualClock) -> None:
    stopped, starting, older = make(), make(), make()
    await stopped.open([group("a"), group("b")])
    await stopped.close(clock.monotonic_s() + 10)
    asked, go_on = threading.Event(), threading.Event()
    told: list[str] = []

    def slowly(stored: Any) -> Any:
        if stored:
            asked.set()
            assert go_on.wait(30)
        return [group("a"), group("b")]

    def groups(stored: Any) -> Any:
        told.extend(spec.name for spec in stored)
        return [group("a")]

    opening = asyncio.create_task(starting.open(slowly))
    await asyncio.to_thread(asked.wait, 30)
    try:
        await older.open(groups)
    finally:
        go_on.set()
        await opening
    assert told == ["a"]


async def test_the_shards_of_a_log_lie_on_several_nodes_of_a_cluster(clock: ManualClock, tmp_path: Path) -> None:
    with RedisCluster(appendfsync="always") as cluster:
        prefix = next(
            name
            for name in (f"p{number}" for number in range(1000))
            if len({cluster.node_of(f"{{{name}.{shard}}}:meta") for shard in range(SHARDS)}) == 3
        )
        config = RedisConfig(url=cluster.url, cluster=True, prefix=prefix, shards=SHARDS)
        log = RedisLog("redis", config, Context(clock, Metrics(), tmp_path, "m1", "run"))
        await log.open([SAMPLER, group("a")])
        await log.append(Append([spans_block(*(span() for _ in range(40)))]))
        for number in range(20):
            await log.append(Append([block([number])]))
        spans, logs = await read_all(log, "sampler", 40), await read_all(log, "a", 20)
        assert {shard_of_offset(one.offset) for one in spans} == set(range(SHARDS))
        await log.commit("sampler", acks=spans)
        await log.commit("a", acks=logs)
        assert {usage.held_records for usage in log.usage().groups} == {0}
        await check_books(log)
        await log.close(clock.monotonic_s() + 5)
