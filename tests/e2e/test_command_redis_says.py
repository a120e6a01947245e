"""What the command with its log in Redis says of the server it stands on, of its configuration, and to administrators."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import Running, run, running, until
from tests.support.command_bench import Bench, send
from tests.support.redis_command import LIMIT_BYTES, NEVER, rule_in_the_documentation
from tests.support.redis_server import RedisServer, needs_redis

pytestmark = needs_redis


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer(maxmemory_bytes=LIMIT_BYTES) as started:
        yield started


# what it says of the server


def state(bench: Bench) -> dict[str, Any]:
    status, text = bench.get("/readyz")
    assert status == 200
    found: dict[str, Any] = json.loads(text)
    return found


def test_a_server_that_loses_nothing_is_said_so_at_start_and_in_readyz(bench: Bench, server: RedisServer) -> None:
    bench.write(buffer=f'{{type: redis, url: "{server.url}", prefix: said}}')
    with running(*bench.arguments) as process:
        sentence = process.wait_for("buffer: Redis")
        assert "neither a power cut nor a SIGKILL of Redis loses anything" in sentence
        said = state(bench)
    assert said["durability"] in sentence
    about = said["buffer"]["server"]
    assert about["survives"] == {"power_cut": True, "kill": True, "failover": False}
    assert (about["persistence"], about["maxmemory_policy"], about["maxmemory_bytes"]) == ("always", "noeviction", LIMIT_BYTES)
    assert about["used_memory_bytes"] > 0
    assert about["warnings"] == []


@pytest.mark.parametrize(
    ("settings", "persistence", "says"),
    [
        ({"appendfsync": None}, "none", "loses everything that it holds"),
        ({"appendfsync": None, "save": "60 1"}, "snapshots", "since the last snapshot"),
        ({"appendfsync": "everysec"}, "everysec", "the last two seconds"),
    ],
    ids=["none", "snapshots", "everysec"],
)
def test_missing_persistence_is_warned_of_and_said(bench: Bench, settings: dict[str, Any], persistence: str, says: str) -> None:
    with RedisServer(maxmemory_bytes=LIMIT_BYTES, **settings) as weak:
        bench.write(buffer=f'{{type: redis, url: "{weak.url}"}}')
        with running(*bench.arguments) as process:
            assert says in process.wait_for("buffer: Redis")
            warning = process.wait_for("--appendonly yes --appendfsync always")
            assert says in warning
            about = state(bench)["buffer"]["server"]
    assert about["persistence"] == persistence
    assert about["survives"]["power_cut"] is False
    assert len(about["warnings"]) == 1


def test_a_managed_redis_that_forbids_config_is_said_to_be_unchecked_and_can_be_stated(bench: Bench) -> None:
    rule = rule_in_the_documentation().replace("+config|get ", "")
    with RedisServer(users={"pipe": f"on >s3cret {rule}"}) as managed:
        buffer = f'type: redis, url: "redis://127.0.0.1:{managed.port}", username: pipe, password: s3cret'
        bench.write(buffer=f"{{{buffer}}}")
        with running(*bench.arguments) as process:
            assert "could not be checked" in process.wait_for("buffer: Redis")
            process.wait_for("buffer.stated.persistence")
        bench.write(buffer=f"{{{buffer}, lease_s: 1, stated: {{persistence: always}}}}")
        with running(*bench.arguments) as process:
            assert "as stated by hand" in process.wait_for("buffer: Redis")
            assert state(bench)["buffer"]["server"]["persistence_is_stated"] is True


# the configuration


def test_print_config_masks_the_password_of_the_address_and_gives_what_can_be_run_again(tmp_path: Path) -> None:
    variables = {"EMP_BUFFER_REDIS_URL": "rediss://pipe:s3cret@redis.internal:6380/2", "EMP_BUFFER_REDIS_TLS_CA_FILE": "/ca.pem"}
    printed = run("central", "--print-config", "--data-dir", str(tmp_path), **variables).stdout
    assert "s3cret" not in printed
    assert "url: ${EMP_BUFFER_REDIS_URL}  # environment EMP_BUFFER_REDIS_URL" in printed
    assert "ca_file: /ca.pem  # environment EMP_BUFFER_REDIS_TLS_CA_FILE" in printed
    (tmp_path / "again.yaml").write_text(printed)
    again = run("run", str(tmp_path / "again.yaml"), "--print-config", **variables)
    assert again.returncode == 0, again.stderr
    assert "url: ${EMP_BUFFER_REDIS_URL}" in again.stdout


def test_the_number_of_shards_is_taken_from_the_variable_shown_and_refused_where_it_is_none(bench: Bench) -> None:
    redis = {"EMP_BUFFER_REDIS_URL": "redis://redis.internal"}
    printed = run("central", "--print-config", EMP_BUFFER_REDIS_SHARDS="4", **redis).stdout
    assert "shards: 4  # environment EMP_BUFFER_REDIS_SHARDS" in printed
    for none in ("0", "17", "many"):
        result = run("central", "--print-config", EMP_BUFFER_REDIS_SHARDS=none, **redis)
        assert result.returncode == 2, result
        assert "environment EMP_BUFFER_REDIS_SHARDS" in result.stderr
    bench.write(buffer='{type: redis, url: "redis://redis.internal", shards: 2}')
    assert "shards: 2  # " in run(*bench.arguments, "--print-config", EMP_BUFFER_REDIS_SHARDS="4", **redis).stdout


def test_print_config_shows_an_address_without_a_password_as_it_is() -> None:
    variables = {"EMP_BUFFER_REDIS_URL": "redis://redis.internal:6380/2", "EMP_BUFFER_REDIS_PASSWORD": "s3cret"}
    printed = run("central", "--print-config", **variables).stdout
    assert 'url: "redis://redis.internal:6380/2"' in printed
    assert "env: EMP_BUFFER_REDIS_PASSWORD" in printed
    assert "s3cret" not in printed


def test_a_password_in_a_file_is_never_printed_and_warned_of(bench: Bench) -> None:
    bench.write(buffer='{type: redis, url: "redis://:s3cret@redis.internal:6380"}')
    assert "s3cret" not in run(*bench.arguments, "--print-config").stdout
    said = run("validate", str(bench.file))
    assert "the secret itself stands here" in said.stdout + said.stderr
    assert "s3cret" not in said.stdout + said.stderr


def test_a_file_that_names_another_buffer_wins_over_the_variable(bench: Bench) -> None:
    for buffer in ("sqlite", "{type: sqlite, max_bytes: 1000000}", "memory"):
        bench.write(buffer=buffer)
        printed = run(*bench.arguments, "--print-config", EMP_BUFFER_REDIS_URL="redis://redis.internal")
        assert printed.returncode == 0, printed.stderr
        assert "redis.internal" not in printed.stdout


# the commands of administrators


@contextmanager
def holding(bench: Bench, server: RedisServer, prefix: str) -> Iterator[Running]:
    """Run it with 20 records for a destination that is not there."""
    bench.write(buffer=f'{{type: redis, url: "{server.url}", prefix: {prefix}, lease_s: 1}}', exporters=f"{{{NEVER}}}")
    with running(*bench.arguments) as process:
        send(bench.port, 20)
        until(lambda: bench.groups()["otlp_http"]["held_records"] == 20, "20 records held")
        yield process


def listed(*arguments: str, **variables: str) -> dict[str, dict[str, Any]]:
    result = run("groups", "list", "--json", *arguments, **variables)
    assert result.returncode == 0, result.stderr
    return {row["group"]: row for row in map(json.loads, result.stdout.splitlines())}


def test_groups_are_listed_and_reset_while_it_runs_and_when_it_is_stopped(bench: Bench, server: RedisServer) -> None:
    file = ("--config", str(bench.file), "--data-dir", str(bench.data_dir))
    with holding(bench, server, "groups") as process:
        assert listed(*file)["otlp_http"]["held_records"] == 20
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    assert listed(*file)["otlp_http"]["held_records"] == 20
    assert run("groups", "reset", "otlp_http", "--to", "newest", *file).returncode == 0
    assert listed(*file)["otlp_http"]["held_records"] == 0


def test_the_variable_alone_leads_administrators_to_the_log(bench: Bench, server: RedisServer, tmp_path: Path) -> None:
    with holding(bench, server, "elsewhere"):
        pass
    variables = {"EMP_BUFFER_REDIS_URL": server.url, "EMP_BUFFER_REDIS_PREFIX": "elsewhere", "STATE_DIRECTORY": str(tmp_path / "none")}
    assert listed(**variables)["otlp_http"]["held_records"] == 20
    assert not (tmp_path / "none").exists(), "looking leaves nothing behind"


def test_while_another_process_has_the_log_others_may_look_and_are_told_where_to_change_it(
    bench: Bench, server: RedisServer, tmp_path: Path
) -> None:
    with holding(bench, server, "owned"):
        elsewhere = ("--config", str(bench.file), "--data-dir", str(tmp_path / "other"))
        found = listed(*elsewhere)["otlp_http"]
        assert (found["held_records"], found["state"]) == (20, "no emp-pipe runs here")
        for command in ("reset", "drop"):
            result = run("groups", command, "otlp_http", *elsewhere)
            assert result.returncode == 1
            assert "run this command where that one runs" in result.stderr
        assert listed(*elsewhere)["otlp_http"]["held_records"] == 20


def test_dead_letters_are_listed_from_a_log_in_redis_when_it_is_stopped(bench: Bench, server: RedisServer) -> None:
    bench.write(buffer=f'{{type: redis, url: "{server.url}", prefix: dead, lease_s: 1}}', exporters="{error: {kind: refused}}")
    with running(*bench.arguments) as process:
        send(bench.port, 3)
        until(lambda: bench.groups()["error"]["held_records"] == 0 and bench.metric("emp_pipe_log_dead_bytes") >= 0, "nothing held")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    result = run("dlq", "list", "--config", str(bench.file), "--data-dir", str(bench.data_dir))
    assert result.returncode == 0, result.stderr
    letters = [json.loads(line) for line in result.stdout.splitlines()]
    assert sum(letter["records"] for letter in letters) == 3
    assert {letter["reason"] for letter in letters} == {"refused"}
