"""The command with its log in Redis while Redis is away: with a spool it goes on, without one its senders wait; both are said."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.acked_send import send_acked
from tests.support.command import free_port, run, running, until
from tests.support.command_bench import rows_in, send, wait_for_rows
from tests.support.redis_command import LIMIT_BYTES, NEVER
from tests.support.redis_server import RedisServer, needs_redis
from tests.support.small_disk import small_disk
from tests.support.spool_central import Central

pytestmark = needs_redis


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer(maxmemory_bytes=LIMIT_BYTES) as started:
        yield started


@pytest.fixture
def central(tmp_path: Path, server: RedisServer) -> Central:
    return Central(tmp_path, server)


# with a spool


def test_while_redis_is_away_records_are_taken_and_it_is_said_everywhere(central: Central) -> None:
    central.set_up("after_s: 0.5")
    with running(*central.arguments) as process:
        assert f"while it is away SQLite in {central.data_dir / 'spool'}, synced with every commit" in process.wait_for("buffer: Redis")
        assert central.spool()["state"] == "idle"
        assert central.metric("emp_pipe_spool_state", state="idle") == 1
        central.server.kill()
        send(central.port, 20)
        assert central.post(20, 21)[0] == 200
        process.wait_for("is kept in")
        status, text = central.get("/readyz")
        ready = json.loads(text)
        assert (status, ready["ready"]) == (200, True), "with a spool it takes records: it is ready"
        assert "into the spool" in ready["reason"]
        assert "no connection to Redis" in ready["buffer"]["away"]
        about = ready["buffer"]["spool"]
        assert (about["state"], about["held_records"], about["directory"]) == ("spooling", 22, str(central.data_dir / "spool"))
        assert about["held_bytes"] > 0
        for name, value in {"spool_held_records": 22, "redis_away": 1, "buffer_admitting": 1}.items():
            assert central.metric(f"emp_pipe_{name}") == value
        assert central.metric("emp_pipe_spool_state", state="spooling") == 1
        assert central.metric("emp_pipe_spool_records_total", outcome="spooled") == 22
        assert central.metric("emp_pipe_spool_oldest_age_seconds") > 0
        listed = run("groups", "list", "--data-dir", str(central.data_dir)).stdout
        assert re.search(r"drain +required +22 .* spooling", listed), listed
        for command in (("drop",), ("reset",)):
            refused = run("groups", *command, "drain", "--data-dir", str(central.data_dir))
            assert refused.returncode == 1
            assert "it drains by itself" in refused.stderr
        central.check_books()
        central.server.start()
        process.wait_for("the spool is empty: 22 records")
        wait_for_rows(central.data_dir, 22)
        central.until_drained()
        assert central.spool()["held_records"] == 0
        assert (
            central.metric("emp_pipe_spool_records_total", outcome="drained")
            + central.metric("emp_pipe_spool_records_total", outcome="known")
            == 22
        )
        assert central.metric("emp_pipe_redis_away") == 0
        central.check_books()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


@contextmanager
def traffic(central: Central) -> Iterator[dict[str, set[int]]]:
    """Send numbered records by Forward and OTLP until the block ends; yields what was acknowledged so far, by way."""
    acked: dict[str, set[int]] = {"forward": set(), "otlp": set()}
    stop = threading.Event()

    def by_forward() -> None:
        number = 0
        while not stop.is_set():
            numbers = range(number, number + 5)
            if send_acked(central.port, numbers, patience_s=20):  # the same chunk again where no ack came
                acked["forward"].update(numbers)
                number += 5

    def by_otlp() -> None:
        number = 1_000_000
        while not stop.is_set():
            numbers = range(number, number + 5)
            if central.post(*numbers)[0] == 200:
                acked["otlp"].update(numbers)
            number += 5

    threads = [threading.Thread(target=way) for way in (by_forward, by_otlp)]
    for thread in threads:
        thread.start()
    try:
        yield acked
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


def grown(acked: dict[str, set[int]], by: int = 50) -> None:
    """Return when so many more records of each way were acknowledged."""
    wanted = {way: len(numbers) + by for way, numbers in acked.items()}
    until(lambda: all(len(acked[way]) >= wanted[way] for way in acked), "more acknowledgements")


@pytest.mark.parametrize("how", ["shut_down", "kill", "pause"], ids=["stopped", "killed", "hanging"])
def test_everything_acknowledged_in_traffic_arrives_once_when_redis_is(central: Central, how: str) -> None:
    central.set_up("after_s: 0.3")
    with running(*central.arguments), traffic(central) as acked:
        grown(acked)
        getattr(central.server, how)()
        until(lambda: central.metric("emp_pipe_spool_held_records") > 0, "something is spooled")
        grown(acked)
        central.check_books()
        central.server.resume() if how == "pause" else central.server.start()
        grown(acked)
        central.until_drained()
        central.check_books()
        everything = set().union(*acked.values())
        rows = wait_for_rows(central.data_dir, len(everything))  # each once, it says too
    assert everything <= {int(row["message"].split()[1]) for row in rows}


def test_a_redis_that_came_back_empty_is_said_loudly_and_what_was_spooled_arrives(central: Central) -> None:
    central.set_up("after_s: 0.3", exporters=f"{{{NEVER}, file: }}")
    with running(*central.arguments) as process:
        send(central.port, 5)
        wait_for_rows(central.data_dir, 5)
        central.server.kill()
        send(central.port, 5, start=5)
        for path in central.server.directory.glob("appendonlydir/*"):
            path.unlink()
        central.server.start()
        assert "Redis lost the whole buffer" in process.wait_for("Redis lost the whole buffer")
        wait_for_rows(central.data_dir, 10)


def test_a_sigkill_while_spooling_loses_nothing(central: Central) -> None:
    central.set_up("after_s: 0.3")
    with running(*central.arguments) as process:
        central.server.kill()
        assert send_acked(central.port, range(20))
        process.signal(signal.SIGKILL)
        process.wait()
    with running(*central.arguments) as process:
        process.wait_for("of an earlier run")
        assert send_acked(central.port, range(20, 40))
        assert central.spool()["held_records"] == 40
        central.server.start()
        wait_for_rows(central.data_dir, 40)
        central.until_drained()
        central.check_books()


def test_a_stop_while_spooling_is_quick_and_the_next_start_drains(central: Central) -> None:
    central.set_up("after_s: 0.3")
    with running(*central.arguments) as process:
        central.server.kill()
        assert send_acked(central.port, range(20))
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    central.server.start()
    listed = run("groups", "list", "--json", "--config", str(central.file), "--data-dir", str(central.data_dir))
    rows = {row["group"]: row for row in map(json.loads, listed.stdout.splitlines())}
    assert rows["drain"]["held_records"] == 20, listed
    with running(*central.arguments):
        wait_for_rows(central.data_dir, 20)


@pytest.mark.parametrize("gone", ["in_traffic", "at_start"])
def test_a_reload_of_exporters_while_redis_is_away_is_refused_whole_and_taken_when_it_is_here(central: Central, gone: str) -> None:
    if gone == "at_start":
        central.server.kill()
    central.set_up("after_s: 0.3")
    with running(*central.arguments) as process:
        if gone == "in_traffic":
            central.server.kill()
        until(lambda: central.metric("emp_pipe_redis_away") == 1, "it is seen that Redis is away")
        before, central.otlp_port = central.otlp_port, free_port()
        central.set_up("after_s: 0.3", exporters="{file: , noop: }")
        process.signal(signal.SIGHUP)
        assert "reload again when it is here" in process.wait_for("was not reloaded")
        after, central.otlp_port = central.otlp_port, before
        assert central.post(1)[0] == 200, "the receiver that the reload changes still takes records"
        central.server.start()
        wait_for_rows(central.data_dir, 1)
        until(lambda: central.metric("emp_pipe_redis_away") == 0, "Redis is here")
        process.signal(signal.SIGHUP)
        process.wait_for("reloaded: started noop; changed otlp_http")
        central.otlp_port = after
        assert central.post(2)[0] == 200
        wait_for_rows(central.data_dir, 2)


def test_a_start_without_redis_listens_and_acknowledges_from_the_spool(central: Central) -> None:
    central.server.kill()
    central.set_up()
    with running(*central.arguments) as process:
        assert central.get("/readyz")[0] == 200
        assert send_acked(central.port, range(20))
        assert central.spool()["held_records"] == 20
        central.server.start()
        assert "neither a power cut nor a SIGKILL" in process.wait_for("Redis came")
        wait_for_rows(central.data_dir, 20)
        central.until_drained()


def test_a_stop_of_a_start_without_redis_is_in_order(central: Central) -> None:
    central.server.kill()
    central.set_up()
    with running(*central.arguments) as process:
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


def test_derivers_wait_too_and_go_on_when_redis_comes(central: Central) -> None:
    central.server.kill()
    central.set_up()
    text = central.file.read_text().replace(
        "processors: {}", "processors: {aggregate: {interval_s: 0.3}, tail_sample: {decision_wait_s: 1}}"
    )
    central.file.write_text(text)
    with running(*central.arguments):
        send(central.port, 20)
        central.server.start()
        wait_for_rows(central.data_dir, 20)
        central.until_drained()


def test_a_full_disk_of_the_spool_is_back_pressure_until_there_is_space(central: Central, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 64 << 20) as disk:
        central.set_up(f'after_s: 0.3, min_free_bytes: {8 << 20}, directory: "{disk.path / "spool"}"')
        with running(*central.arguments) as process:
            assert send_acked(central.port, range(5))
            central.server.kill()
            assert send_acked(central.port, range(10, 15))
            disk.fill(leave_bytes=4 << 20)
            until(lambda: central.get("/readyz")[0] == 503, "a full disk of the spool stops receivers")
            assert "free" in json.loads(central.get("/readyz")[1])["reason"]
            assert central.post(200)[0] == 503
            assert not send_acked(central.port, [201], patience_s=1)
            disk.free()
            until(lambda: send_acked(central.port, range(300, 305), patience_s=3), "it takes again when there is space")
            central.server.start()
            rows = until(lambda: (found := rows_in(central.data_dir)) and len(found) >= 15 and found, "all rows")
            assert {f"record {number}" for number in (*range(5), *range(10, 15), *range(300, 305))} <= {row["message"] for row in rows}
            assert process.process.poll() is None


# what an earlier life left


def test_a_spool_left_by_a_buffer_that_is_not_redis_any_more_is_said_loudly(central: Central) -> None:
    central.set_up("after_s: 0.3")
    with running(*central.arguments) as process:
        central.server.kill()
        assert send_acked(central.port, range(20))
        process.signal(signal.SIGTERM)
        process.wait()
    central.set_up(buffer="sqlite")
    with running(*central.arguments) as process:
        said = process.wait_for("holds 1 appends")
        assert str(central.data_dir / "spool") in said
        assert "buffer.type: redis" in said
    central.server.start()
    central.set_up("enabled: false")
    with running(*central.arguments) as process:
        process.wait_for("of an earlier run")
        wait_for_rows(central.data_dir, 20)
