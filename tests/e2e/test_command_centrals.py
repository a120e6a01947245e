"""The command as several centrals on one Redis: what each says of its shards, and what a deploy with two versions does."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import free_port, run, running, until
from tests.support.command_bench import Bench, rows_in, send
from tests.support.redis_cluster import ask
from tests.support.redis_server import RedisServer, needs_redis

pytestmark = needs_redis
SHARDS = 4


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer(maxmemory_bytes=512 << 20) as started:
        yield started


def central(directory: Path, server: RedisServer, **parts: Any) -> Bench:
    directory.mkdir(exist_ok=True)
    bench = Bench(directory)
    bench.write(buffer=f'{{type: redis, url: "{server.url}", shards: {SHARDS}, lease_s: 2}}', **parts)
    return bench


def shards_of(bench: Bench) -> list[int]:
    buffer = json.loads(bench.get("/readyz")[1])["buffer"]
    return [one["shard"] for one in buffer["shards"] if one["owned"]]


def test_readyz_and_metrics_say_which_shards_a_replica_reads_and_sigterm_gives_them_away(tmp_path: Path, server: RedisServer) -> None:
    first, second = central(tmp_path / "1", server), central(tmp_path / "2", server)
    with ExitStack() as stack:
        one = stack.enter_context(running(*first.arguments))
        assert shards_of(first) == [0, 1, 2, 3]
        stack.enter_context(running(*second.arguments))
        until(lambda: len(shards_of(first)) == len(shards_of(second)) == 2, "an even share")
        assert sorted(shards_of(first) + shards_of(second)) == [0, 1, 2, 3]
        assert first.metric("emp_pipe_buffer_owned_shards") == 2
        assert first.metric("emp_pipe_buffer_sharing_replicas") == 2
        out = [tmp_path / "1" / "data" / "records", tmp_path / "2" / "data" / "records"]
        sent = 0

        def both_send() -> bool:
            nonlocal sent
            for bench in (first, second):  # each block goes whole to a shard that its id names: no few of them are sure to reach both
                send(bench.port, 10, start=sent)
                sent += 10
            return all(directory.exists() and rows_in(directory) for directory in out)

        until(both_send, "both send")
        until(lambda: sum(len(rows_in(directory)) for directory in out) == sent, "all records at one of the two")
        until(
            lambda: first.metric("emp_pipe_group_records_total", group="file", topic="logs", outcome="acked") == sent,
            "books of the whole log",
        )
        assert first.groups()["file"]["held_records"] == 0
        one.signal(signal.SIGTERM)
        assert one.wait() == 0
        until(lambda: shards_of(second) == [0, 1, 2, 3], "all shards with the one that is left")


@pytest.mark.parametrize("command", ["reset", "drop"])
def test_who_does_not_read_all_shards_is_told_what_to_do_before_anything_is_changed(
    tmp_path: Path, server: RedisServer, command: str
) -> None:
    never = 'otlp_http: {endpoint: "http://127.0.0.1:9", retry_max_s: 1}'
    newer, older = central(tmp_path / "1", server, exporters=f"{{file: , {never}}}"), central(tmp_path / "2", server)
    with ExitStack() as stack:
        one = stack.enter_context(running(*newer.arguments, "--set", "machine_id=gpu-1"))
        stack.enter_context(running(*older.arguments, "--set", "machine_id=gpu-2"))
        until(lambda: len(shards_of(newer)) == len(shards_of(older)) == 2, "an even share")
        for start in range(0, 200, 20):
            send(newer.port, 20, start=start)
        until(lambda: older.groups()["otlp_http"]["held_records"] == 200, "held in all shards")
        refused = run("groups", command, "otlp_http", "--config", str(older.file), "--data-dir", str(older.data_dir))
        assert refused.returncode == 1
        assert "2 of 4 shards of the buffer are read by emp-pipe on gpu-1: the group was not changed" in refused.stderr
        assert "stop all emp-pipes of this buffer but one, and run this command where that one runs" in refused.stderr
        nowhere = run("groups", command, "otlp_http", "--config", str(older.file), "--data-dir", str(tmp_path / "3"))
        assert nowhere.returncode == 1
        assert "read by the emp-pipes on gpu-1, gpu-2: the group was not changed" in nowhere.stderr
        assert older.groups()["otlp_http"]["held_records"] == 200, "it changed a part"
        one.signal(signal.SIGTERM)
        assert one.wait() == 0
        until(lambda: shards_of(older) == [0, 1, 2, 3], "all shards with the one that is left")
        done = run("groups", command, "otlp_http", "--config", str(older.file), "--data-dir", str(older.data_dir))
        assert done.returncode == 0, done.stderr
        until(lambda: older.groups().get("otlp_http", {"held_records": 0})["held_records"] == 0, "what advice said, done")


def test_a_group_that_only_one_of_two_versions_names_is_kept(tmp_path: Path, server: RedisServer) -> None:
    never = 'otlp_http: {endpoint: "http://127.0.0.1:9", retry_max_s: 1}'
    newer, older = central(tmp_path / "1", server, exporters=f"{{file: , {never}}}"), central(tmp_path / "2", server)
    with running(*newer.arguments), running(*older.arguments) as other:
        send(newer.port, 50)
        send(older.port, 50, start=50)
        until(lambda: older.groups()["otlp_http"]["held_records"] == 100, "the group that it does not name, held for the other")
        assert not [line for line in other.messages() if "retired" in line or "given up" in line]


def test_what_a_replica_sends_again_for_one_that_died_is_known_to_the_next_emp_pipe(tmp_path: Path, server: RedisServer) -> None:
    keyed, last_port = "shared_key: k", free_port()
    last = Bench(tmp_path)
    last.write(receivers=f'{{forward: {{listen: "127.0.0.1:{last_port}", {keyed}}}}}')
    onward = f'{{forward/onward: {{endpoint: "127.0.0.1:{last_port}", {keyed}}}}}'
    first, second = (central(tmp_path / name, server, exporters=onward) for name in "12")
    with running(*last.arguments), running(*first.arguments, "--set", "machine_id=gpu-1", EMP_PIPE_FAILPOINT="delivery.send:1") as dies:
        send(first.port, 1)
        assert dies.wait() == -signal.SIGKILL, "the last one has acknowledged it, and Redis does not know that"
        assert last.metric("emp_pipe_receiver_records_total", outcome="appended") == 1
        with running(*second.arguments, "--set", "machine_id=gpu-2"):
            until(lambda: second.groups()["forward/onward"]["held_records"] == 0, "what the first one left is sent")
        assert last.metric("emp_pipe_receiver_records_total", outcome="appended") == 1
        assert last.metric("emp_pipe_receiver_records_total", outcome="duplicate") == 1


def test_a_replica_that_does_not_know_the_format_refuses_to_start(tmp_path: Path, server: RedisServer) -> None:
    newer, older = central(tmp_path / "1", server), central(tmp_path / "2", server)
    with running(*newer.arguments):
        ask(server, "HSET", "{emp-pipe.0}:meta", "format", "2")
        result = run(*older.arguments)
        assert result.returncode != 0
        assert "start the emp-pipe that wrote it" in result.stderr


def test_shards_appear_in_print_config_and_another_number_is_warned_of(tmp_path: Path, server: RedisServer) -> None:
    bench = central(tmp_path / "1", server)
    printed = run(*bench.arguments, "--print-config")
    assert "shards: 4" in printed.stdout
    with running(*bench.arguments) as process:
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    with running(*bench.arguments, "--set", "buffer.shards=2") as process:
        assert len(json.loads(bench.get("/readyz")[1])["buffer"]["shards"]) == SHARDS
        assert any("was made with 4" in line for line in process.messages())


@pytest.mark.parametrize("by", ["setting", "variable"])
def test_the_central_role_takes_its_shards_from_a_setting_or_the_variable(tmp_path: Path, server: RedisServer, by: str) -> None:
    listen = f"receivers.forward.listen=127.0.0.1:{free_port()}"
    arguments = ["central", "--data-dir", str(tmp_path), "--set", listen]
    variables = {"EMP_BUFFER_REDIS_URL": server.url, "EMP_BUFFER_REDIS_PREFIX": by, "PORT": str(free_port())}
    if by == "setting":
        arguments += ["--set", "buffer.shards=3"]
    else:
        variables["EMP_BUFFER_REDIS_SHARDS"] = "3"
    with running(*arguments, **variables):
        assert [ask(server, "HGET", f"{{{by}.{shard}}}:meta", "shards") for shard in range(4)] == [b"3", b"3", b"3", None]
