"""A buffer file that cannot be used, in every form, through the command: it is set aside and never deleted, an error says so, and a new one
is begun. What is not damaged but another's is left alone, or refused with what to do.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.acked_send import send_acked
from tests.support.command import ROOT, Running, environment, run, running, until
from tests.support.command_bench import Bench

NOWHERE = '{otlp_http: {endpoint: "http://127.0.0.1:1"}}'


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.write(exporters=NOWHERE)
    return bench


def log_directory(bench: Bench) -> Path:
    return bench.data_dir / "log"


def held(bench: Bench) -> float:
    return bench.metric("emp_pipe_group_held_records", topic="logs", group="otlp_http")


def filled(bench: Bench, *, kill: bool = False) -> Path:
    """Let a process keep forty records, and end it; return its database."""
    with running(*bench.arguments) as process:
        for start in range(0, 40, 10):
            assert send_acked(bench.port, range(start, start + 10), padding_bytes=4000)
        process.signal(signal.SIGKILL if kill else signal.SIGTERM)
        process.wait()
    return log_directory(bench) / "log.db"


def garbage_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[:100] = os.urandom(100)
    path.write_bytes(content)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 - 100)


def bad_page_in_the_middle(path: Path) -> None:
    with sqlite3.connect(path) as other:  # of the table of blocks: one that is read
        (root,) = other.execute("SELECT rootpage FROM sqlite_schema WHERE name='blocks'").fetchone()
    other.close()
    with path.open("r+b") as file:
        file.seek((root - 1) * 8192)
        file.write(b"\xff" * 8192)


def another_applications(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE invoices (id INTEGER PRIMARY KEY, amount INTEGER)")
        other.execute("INSERT INTO invoices VALUES (1, 100)")
        other.execute("PRAGMA user_version=7")
    other.close()


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "something").write_text("kept")


def a_text(path: Path) -> None:
    path.write_text("this is no database\n" * 1000)


@pytest.mark.parametrize(
    "damage",
    [garbage_header, truncated, bad_page_in_the_middle, another_applications, a_directory, a_text],
    ids=lambda damage: damage.__name__,
)
def test_a_buffer_that_cannot_be_used_is_set_aside_with_an_error_and_a_new_one_begun(bench: Bench, damage: Callable[[Path], None]) -> None:
    path = filled(bench)
    damage(path)
    before = None if path.is_dir() else path.read_bytes()
    with running(*bench.arguments) as process:
        error = process.wait_for("was set aside as log.db.corrupt-1 and an empty buffer begun")
        assert "not delivered" in error
        assert send_acked(bench.port, range(100, 110))
        until(lambda: held(bench) == 10, "the new buffer holds what came")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    aside = log_directory(bench) / "log.db.corrupt-1"
    assert (aside / "something").read_text() == "kept" if before is None else aside.read_bytes() == before


def test_the_next_damage_is_set_aside_beside_the_one_before(bench: Bench) -> None:
    for number in (1, 2):
        garbage_header(filled(bench))
        with running(*bench.arguments) as process:
            process.wait_for(f"set aside as log.db.corrupt-{number}")
            process.signal(signal.SIGTERM)
            process.wait()
    assert {path.name for path in log_directory(bench).glob("*.corrupt-*")} == {"log.db.corrupt-1", "log.db.corrupt-2"}


def test_a_write_ahead_log_damaged_at_its_first_frame_after_a_kill_is_said_with_what_is_missing(bench: Bench) -> None:
    path = filled(bench, kill=True)
    wal = path.with_name("log.db-wal")
    content = bytearray(wal.read_bytes())
    assert len(content) > 32 + 24 + 8192
    content[32 + 24 + 100] ^= 0xFF  # in the first page behind the header and the frame's header
    wal.write_bytes(content)
    with running(*bench.arguments) as process:
        error = process.wait_for("were acknowledged, only those up to")
        assert "log.db.damaged-1-wal" in error
        assert (log_directory(bench) / "log.db.damaged-1-wal").read_bytes() == bytes(content)
        assert send_acked(bench.port, range(100, 110))
        until(lambda: held(bench) == 10, "it goes on")


def test_a_write_ahead_log_that_was_removed_after_a_kill_is_said(bench: Bench) -> None:
    path = filled(bench, kill=True)
    path.with_name("log.db-wal").unlink()
    with running(*bench.arguments) as process:
        process.wait_for("were acknowledged, only those up to")


def test_a_kill_alone_is_no_damage(bench: Bench) -> None:
    filled(bench, kill=True)
    with running(*bench.arguments) as process:
        until(lambda: held(bench) == 40, "all that was acknowledged is there")
        assert not [message for message in process.messages() if "acknowledged" in message and "missing" in message]


def test_a_database_that_was_deleted_is_said(bench: Bench) -> None:
    path = filled(bench)
    path.unlink()
    with running(*bench.arguments) as process:
        process.wait_for("log.db is gone")
        assert send_acked(bench.port, range(10))


@pytest.mark.parametrize("with_wal", [False, True])
def test_a_zero_length_file_is_said_and_the_log_beside_it_is_kept(bench: Bench, with_wal: bool) -> None:
    path = filled(bench, kill=with_wal)
    os.truncate(path, 0)
    with running(*bench.arguments) as process:
        process.wait_for("write-ahead log is not" if with_wal else "is empty")
        assert send_acked(bench.port, range(10))
    assert (log_directory(bench) / "log.db.corrupt-1-wal").exists() == with_wal


def test_a_buffer_of_a_newer_version_is_refused_with_advice_and_left_alone(bench: Bench) -> None:
    path = filled(bench)
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version=99")
    other.close()
    before = path.read_bytes()
    result = run(*bench.arguments)
    assert result.returncode == 1
    assert "format 99" in result.stderr
    assert "let it drain" in result.stderr
    assert "Traceback" not in result.stderr
    assert path.read_bytes() == before


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="not run: a file is given to another user (to run it be root, with util-linux's setpriv on PATH)",
)
def test_a_buffer_that_this_user_may_not_open_is_refused_with_its_path(bench: Bench) -> None:
    path = filled(bench)
    shutil.chown(path, 65534, 65534)
    result = subprocess.run(
        ["setpriv", "--bounding-set=-dac_override,-dac_read_search", sys.executable, "-m", "emp_pipe", *bench.arguments],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 1
    assert "Permission denied" in result.stderr
    assert str(bench.data_dir / "log") in result.stderr
    assert "Traceback" not in result.stderr


def modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in [directory, *directory.iterdir()]}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o277])
def test_the_buffer_is_its_owners_whatever_the_umask(bench: Bench, umask: int) -> None:
    before = os.umask(umask)
    try:
        with running(*bench.arguments) as process:
            os.umask(before)
            assert send_acked(bench.port, range(10))
            found = modes(log_directory(bench))
            assert {"log.db", "log.db-wal", "log.db-shm", "log.last", "log.reserve", "emp-pipe.pid"} <= found.keys()
            assert found.pop("log") == 0o700
            assert set(found.values()) == {0o600}
            assert stat.S_IMODE(bench.data_dir.stat().st_mode) == 0o700
            process.signal(signal.SIGKILL)
            process.wait()
    finally:
        os.umask(before)


def test_a_buffer_that_others_could_read_is_mended_and_that_is_said(bench: Bench) -> None:
    filled(bench, kill=True)
    directory = log_directory(bench)
    for path in directory.iterdir():
        path.chmod(0o644)
    directory.chmod(0o755)
    with running(*bench.arguments) as process:
        process.wait_for(f"{directory} could be read or changed by others (mode 0755)")
        process.wait_for("log.db could be read or changed by others (mode 0644)")
        found = modes(directory)
        assert found.pop("log") == 0o700
        assert set(found.values()) == {0o600}


def test_a_second_process_is_refused_with_the_pid_and_a_killed_ones_pid_means_nothing(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    second = Bench(tmp_path / "second")

    def refused_by(first: Running) -> None:
        result = run("run", str(second.file), "--data-dir", str(bench.data_dir))
        assert result.returncode == 1
        assert f"(process {first.process.pid})" in result.stderr

    with running(*bench.arguments) as first:
        refused_by(first)
        first.signal(signal.SIGKILL)
        first.wait()
    with running(*bench.arguments) as again:  # over the pid file that the killed one left
        refused_by(again)


def test_a_second_process_on_the_same_buffer_directory_is_refused_with_the_pid(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    second = Bench(tmp_path / "second")
    second.write(buffer=f"{{type: sqlite, directory: {log_directory(bench)}}}")
    with running(*bench.arguments) as first:
        result = run(*second.arguments)
        assert result.returncode == 1
        assert f"(process {first.process.pid})" in result.stderr


def test_what_somebody_removes_is_still_the_first_ones(bench: Bench) -> None:
    """Without its lock file a second process could come in: then nothing more is acknowledged by the first until it has locked again."""
    with running(*bench.arguments) as process:
        assert send_acked(bench.port, range(10))
        shutil.rmtree(log_directory(bench))
        process.wait_for("was written anew from what was open")
        until(lambda: send_acked(bench.port, range(20, 30), patience_s=2), "it goes on")
        process.signal(signal.SIGKILL)
        process.wait()
    with running(*bench.arguments):
        until(lambda: held(bench) == 20, "what was acknowledged before and after is there")
