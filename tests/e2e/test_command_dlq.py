"""`emp-pipe dlq list|show|retry|drop` with the real command: on a running process and on a stopped one's log, every filter and form."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from emp_pipe.log.protocol import DeadLetter, DeadReason
from tests.support.command import PATIENCE_S, ROOT, environment, run, running, until
from tests.support.command_bench import Bench, rows_in, wait_for_rows
from tests.support.dead_letters import SECOND_NS, answers, bury, bytes_letter, dlq, log_bytes, rows_letter

PLACES = pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
NOON = int(datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()) * SECOND_NS


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Two destinations that write files: `file/a` gave rows up, `file/b` has them."""
    bench = Bench(tmp_path)
    bench.write(exporters=f"{{file/a: {{directory: {tmp_path / 'a'}}}, file/b: {{directory: {tmp_path / 'b'}}}}}")
    return bench


def keep(bench: Bench, *letters: DeadLetter) -> None:
    bury(bench, *letters, groups=("file/a", "file/b"))


@contextmanager
def at(bench: Bench, *, stopped: bool) -> Iterator[None]:
    """Let the bench's process run meanwhile, or not."""
    if stopped:
        yield
        return
    with running(*bench.arguments):
        yield


def ids(bench: Bench, *arguments: str) -> list[int]:
    return [letter["id"] for letter in answers(bench, "list", *arguments)]


@PLACES
def test_list_tells_programs_all_that_is_known_of_a_letter(bench: Bench, stopped: bool) -> None:
    keep(bench, rows_letter("file/a", "x", "y", time_unix_nano=NOON), bytes_letter(b"\x93torn", time_unix_nano=NOON))
    with at(bench, stopped=stopped):
        rows, torn = answers(bench, "list", "--json")
        assert answers(bench, "list") == [rows, torn], "in a pipe JSON is the default"
    size = rows.pop("payload_bytes")
    assert size > 0
    assert rows == {
        "id": 1,
        "component": "file/a",
        "reason": "refused",
        "detail": "HTTP 400",
        "records": 2,
        "peer": "",
        "offset": 0,
        "attempts": 3,
        "time_unix_nano": NOON,
        "rows": True,
        "payload_start": "",
    }
    facts = ("id", "component", "reason", "peer", "offset", "rows", "payload_start", "payload_bytes")
    assert [torn[name] for name in facts] == [2, "forward", "entry_invalid", "10.0.0.7:5", 17, False, "\\x93torn", 5]


@PLACES
def test_list_shows_people_a_table(bench: Bench, stopped: bool) -> None:
    keep(bench, rows_letter("file/a", "x", "y", time_unix_nano=NOON), bytes_letter(b"torn"))
    with at(bench, stopped=stopped):
        head, first, second, more = dlq(bench, "list", "--table", "--limit", "2").stdout.splitlines()
        nothing = dlq(bench, "list", "--table", "--component", "file/b").stdout
    assert head.split() == ["ID", "GIVEN", "UP", "(UTC)", "COMPONENT", "REASON", "RECORDS", "BYTES", "TRIES", "DETAIL"]
    assert first.split()[:6] == ["1", "2026-03-01", "12:00:00", "file/a", "refused", "2"]
    assert first.endswith("3  HTTP 400")
    assert second.endswith("an entry ends early | torn")
    assert more == "there may be more: --after 2"
    assert nothing == "no dead letters like this\n"


def test_filters_take_the_letters_that_meet_all_of_them(bench: Bench) -> None:
    keep(
        bench,
        rows_letter("file/a", "1", time_unix_nano=NOON),
        rows_letter("file/b", "2", time_unix_nano=NOON + SECOND_NS),
        rows_letter("file/a", "3", reason=DeadReason.EXPIRED, time_unix_nano=NOON + 2 * SECOND_NS),
        bytes_letter(b"4"),
    )
    with running(*bench.arguments):
        for arguments, found in (
            (("--component", "file/a"), [1, 3]),
            (("--reason", "refused"), [1, 2]),
            (("--since", "2026-03-01T12:00:01"), [2, 3, 4]),
            (("--since", "2026-03-01T13:00:01+01:00"), [2, 3, 4]),
            (("--until", "2026-03-01T12:00:01"), [1]),
            (("--since", "1h"), [4]),
            (("--until", "1h"), [1, 2, 3]),
            (("--since", "2026-03-01T12:00:01", "--until", "2026-03-01T12:00:02"), [2]),
            (("--component", "file/a", "--reason", "expired"), [3]),
            (("2", "4", "99"), [2, 4]),
            (("--limit", "2"), [1, 2]),
            (("--after", "2"), [3, 4]),
            (("--after", "1", "--limit", "1"), [2]),
        ):
            assert ids(bench, *arguments) == found, arguments


def test_the_same_filters_hold_on_a_stopped_log(bench: Bench) -> None:
    keep(bench, rows_letter("file/a", "1", time_unix_nano=NOON), rows_letter("file/b", "2"), bytes_letter(b"3"))
    assert ids(bench, "--component", "file/b") == [2]
    assert ids(bench, "--reason", "entry_invalid") == [3]
    assert ids(bench, "--since", "1d") == [2, 3]
    assert ids(bench, "--until", "1d") == [1]
    assert ids(bench, "1", "3", "--after", "1", "--limit", "1") == [3]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("list", "--reason", "refuse"), "did you mean refused?"),
        (("list", "--since", "yesterday"), "15m, 2h, 7d (ago)"),
        (("list", "--until", "99999999d"), "15m, 2h, 7d (ago)"),
        (("list", "--limit", "0"), "--limit"),
        (("retry",), "say which"),
        (("drop", "--yes"), "say which"),
        (("drop", "--all", "--reason", "refused"), "contradict"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_what_can(bench: Bench, arguments: tuple[str, ...], said: str) -> None:
    keep(bench, rows_letter("file/a", "1"))
    result = dlq(bench, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert said in " ".join(result.stderr.replace("│", " ").split())
    assert ids(bench) == [1]


@PLACES
def test_show_prints_the_rows_of_a_block_readable_one_a_line(bench: Bench, stopped: bool) -> None:
    keep(bench, rows_letter("file/a", "first", "second", "third", offset=40))
    with at(bench, stopped=stopped):
        facts, *rows = answers(bench, "show", "1")
        few, *one = answers(bench, "show", "1", "--rows", "1")
    assert (facts["id"], facts["signal"], facts["topic"], facts["reason"], facts["attempts"]) == (1, "logs", "logs", "refused", 3)
    assert [(row["id"], row["row"], row["offset"], row["reason"]) for row in rows] == [(1, number, 40, "refused") for number in range(3)]
    assert [row["record"]["message"] for row in rows] == ["first", "second", "third"]
    assert (few["rows_left_out"], [row["record"]["message"] for row in one]) == (2, ["first"])


@PLACES
def test_show_masks_secrets_in_rows_details_and_bytes(bench: Bench, stopped: bool) -> None:
    secret = "hunter2-hunter2"
    attributes = {"db.password": secret, "job_id": "job-7"}
    keep(
        bench,
        rows_letter("file/a", f"login with token={secret}", attributes=attributes, detail=f"refused: api_key={secret}"),
        bytes_letter(b'\x93{"password": "' + secret.encode() + b'"}'),
        DeadLetter("file/a", DeadReason.BLOCK_INVALID, "torn", b"\x1f\x8b password=" + secret.encode(), b"{no header"),
    )
    with at(bench, stopped=stopped):
        shown = dlq(bench, "show").stdout
        listed = dlq(bench, "list").stdout
        table = dlq(bench, "list", "--table").stdout
    for text in (shown, listed, table):
        assert secret not in text
    facts, row, torn, unreadable = map(json.loads, shown.splitlines())
    assert facts["detail"] == "refused: api_key=[redacted]"
    assert row["record"]["message"] == "login with token=[redacted]"
    assert "job-7" in json.dumps(row), "more than the secrets was masked"
    assert torn["bytes"] == '\\x93{"password": "' + "*" * len(secret) + '"}'
    assert "unreadable" in unreadable
    assert unreadable["bytes"].endswith("password=" + "*" * len(secret))


def test_masking_can_be_turned_off_and_rules_changed(bench: Bench) -> None:
    keep(bench, rows_letter("file/a", "password=hunter2 pin=1234"))
    written = bench.file.read_text()
    for settings, message in (
        ("{redact: false}", "password=hunter2 pin=1234"),
        ("{rules: {keys: [pin], mask: '#'}}", "password=# pin=#"),
        ("{rules: {builtin_keys: false, keys: [pin]}}", "password=hunter2 pin=[redacted]"),
        ("{rules: {patterns: [], extra_patterns: {four: '=(1\\d{3})'}}}", "password=hunter2 pin=[redacted]"),
    ):
        bench.file.write_text(f"{written}dead_letters: {settings}\n")
        assert answers(bench, "show")[1]["record"]["message"] == message, settings
    with running(*bench.arguments) as process:
        assert answers(bench, "show")[1]["record"]["message"] == message
        bench.file.write_text(written)
        process.signal(signal.SIGHUP)
        process.wait_for("reloaded")
        assert answers(bench, "show")[1]["record"]["message"] == "password=[redacted] pin=1234"


@PLACES
def test_retry_sends_rows_to_the_destination_that_gave_them_up_and_to_no_other(bench: Bench, stopped: bool, tmp_path: Path) -> None:
    keep(bench, rows_letter("file/a", "one", "two"), rows_letter("file/a", "three"), rows_letter("file/b", "four"))
    with at(bench, stopped=stopped):
        result = dlq(bench, "retry", "1", "3")
        assert (result.returncode, result.stdout) == (0, "2 dead letters (3 records) went back, 0 could not\n")
        assert ids(bench) == [2]
        assert answers(bench, "retry", "--component", "file/a", "--json") == [
            {"id": 2, "retried": True, "group": "file/a", "records": 1},
            {"retried": 1, "records": 1, "refused": 0},
        ]
        assert dlq(bench, "retry", "1").returncode == 1, "what went back is no dead letter any more"
    with running(*bench.arguments):
        assert {row["message"] for row in wait_for_rows(tmp_path / "a", 3)} == {"one", "two", "three"}
        assert [row["message"] for row in wait_for_rows(tmp_path / "b", 1)] == ["four"]
        until(lambda: bench.groups()["file/a"]["held_records"] == 0, "all is acknowledged")
        for outcome, records in (("appended", 3), ("acked", 3), ("dead", 0)):
            assert bench.metric("emp_pipe_group_records_total", group="file/a", topic="logs", outcome=outcome) == records
        assert bench.metric("emp_pipe_group_records_total", group="dlq", outcome="acked") == 4
        assert bench.metric("emp_pipe_buffer_dead_bytes") == 0


@PLACES
def test_retry_says_of_what_cannot_go_back_why_and_what_can_be_done(bench: Bench, stopped: bool) -> None:
    keep(
        bench,
        bytes_letter(b"torn"),
        bytes_letter(b"torn", DeadReason.FRAME_INVALID),
        rows_letter("gone", "x"),
        DeadLetter("file/a", DeadReason.BLOCK_INVALID, "torn", b"nonsense", b"{}"),
        rows_letter("file/a", "good"),
    )
    with at(bench, stopped=stopped):
        result = dlq(bench, "retry", "--all")
        assert ids(bench) == [1, 2, 3, 4], "what cannot go back is kept"
    assert result.returncode == 1
    assert result.stdout == "1 dead letters (1 records) went back, 4 could not\n"
    for why in (
        "letter 1 cannot go back: its bytes were never rows (entry_invalid): mend the sender",
        "letter 2 cannot go back: its bytes were never rows (frame_invalid): mend the sender",
        "letter 3 cannot go back: there is no destination gone any more",
        "letter 4 cannot go back: its rows cannot be read",
    ):
        assert why in result.stderr


@pytest.mark.parametrize(
    ("point", "delivered_before"), [("log.append:1", False), ("log.commit:1", True)], ids=["before the commit", "after the commit"]
)
def test_a_kill_within_a_retry_neither_loses_nor_doubles_a_row(bench: Bench, tmp_path: Path, point: str, delivered_before: bool) -> None:
    keep(bench, rows_letter("file/a", "only"))
    with running(*bench.arguments, EMP_PIPE_FAILPOINT=point) as process:
        result = dlq(bench, "retry", "1")
        assert result.returncode == 1
        assert "ask again; what went back does not go back twice" in result.stderr
        assert process.wait() == -signal.SIGKILL
    assert ids(bench) == ([] if delivered_before else [1])
    with running(*bench.arguments):
        assert dlq(bench, "retry", "--all").returncode == (1 if delivered_before else 0)
        wait_for_rows(tmp_path / "a", 1)
        until(lambda: bench.groups()["file/a"]["held_records"] == 0, "it is acknowledged")
        assert ids(bench) == []
    assert [row["message"] for row in rows_in(tmp_path / "a")] == ["only"]
    assert rows_in(tmp_path / "b") == []


@PLACES
def test_drop_deletes_what_is_meant_and_counts_it(bench: Bench, stopped: bool) -> None:
    keep(bench, rows_letter("file/a", "1", "2"), rows_letter("file/b", "3"), bytes_letter(b"4"))
    with at(bench, stopped=stopped):
        result = dlq(bench, "drop", "--component", "file/a", "--yes")
        assert (result.returncode, result.stdout) == (0, "1 dead letters (2 records) were deleted\n")
        assert answers(bench, "drop", "3", "-y", "--json") == [{"dropped": 1, "records": 1}]
        assert ids(bench) == [2]
        assert dlq(bench, "drop", "3", "--yes").returncode == 1
        assert answers(bench, "drop", "--all", "--yes", "--json") == [{"dropped": 1, "records": 1}]
        assert ids(bench) == []
    with running(*bench.arguments):
        assert bench.metric("emp_pipe_group_records_total", group="dlq", outcome="acked") == 4


def test_drop_asks_and_deletes_nothing_without_a_yes(bench: Bench) -> None:
    keep(bench, rows_letter("file/a", "1", "2"), bytes_letter(b"3"))
    for answer, code, left in (("", 1, [1, 2]), ("n\n", 1, [1, 2]), ("y\n", 0, [])):
        result = _drop_all(bench, answer)
        assert "Delete 2 dead letters (3 records" in result.stderr
        assert (result.returncode, ids(bench)) == (code, left), answer


def _drop_all(bench: Bench, answer: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "emp_pipe", "dlq", "drop", "--all", "--data-dir", str(bench.data_dir), "--config", str(bench.file)]
    return subprocess.run(
        command, env=environment(), cwd=ROOT, capture_output=True, text=True, input=answer, timeout=PATIENCE_S, check=False
    )


@PLACES
def test_hostile_bytes_are_shown_and_do_nothing_to_a_terminal(bench: Bench, stopped: bool) -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J\r\n\x9b31m\u202egnp.exe\u200b\x00end"
    keep(
        bench,
        rows_letter("file/a", hostile, attributes={"k": hostile}, detail=hostile),
        bytes_letter(hostile.encode() + b"\xff\xfe\xc3", detail=hostile, peer=hostile),
        bytes_letter(b"\xff\x1b[31m" * 1_000_000),
        DeadLetter(hostile, DeadReason.BLOCK_INVALID, hostile, b"", hostile.encode()),
    )
    with at(bench, stopped=stopped):
        outputs = [dlq(bench, "show"), dlq(bench, "list"), dlq(bench, "list", "--table"), dlq(bench, "retry", "2", "4")]
    for result in outputs:
        for text in (result.stdout, result.stderr):
            unsafe = {character for character in text if character != "\n" and (not character.isprintable())}
            assert not unsafe, f"{result.args}: {unsafe!r}"
    lines = [json.loads(line) for line in outputs[0].stdout.splitlines()]
    assert lines[0]["detail"] == lines[2]["peer"] == lines[4]["component"] == hostile, "a program gets what was written"
    assert lines[1]["record"]["message"] == hostile
    assert (lines[3]["bytes_left_out"], lines[3]["payload_bytes"]) == (6_000_000 - 65_536, 6_000_000)
    assert sum(len(result.stdout) for result in outputs) < 1_000_000


def test_secrets_in_bytes_that_cannot_be_read_never_reach_the_disk(bench: Bench) -> None:
    secret = b"hunter2-hunter2-hunter2"
    with running(*bench.arguments) as process:
        with socket.create_connection(("127.0.0.1", bench.port), 20) as connection:
            connection.sendall(b"\xc1 password=" + secret + b" and more")
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
        (letter,) = until(lambda: answers(bench, "list"), "a dead letter")
        assert "password=*" in letter["payload_start"]
        assert bench.metric("emp_pipe_dead_letter_masked_values_total", reason="key_value") == 1
        process.signal(signal.SIGTERM)
        process.wait()
    assert secret not in log_bytes(bench.data_dir)
    assert b" and more" in log_bytes(bench.data_dir)


def test_the_settings_of_dead_letters_are_printed(bench: Bench) -> None:
    printed = yaml.safe_load(run("run", str(bench.file), "--print-config", "--set", "dead_letters.redact=false").stdout)
    assert printed["dead_letters"]["redact"] is False
    assert (printed["dead_letters"]["rules"]["builtin_keys"], printed["dead_letters"]["rules"]["keys"]) == (True, [])
    assert printed["dead_letters"]["rules"]["mask"] == "[redacted]"


def test_metrics_and_readiness_tell_dead_letters_by_who_and_why(bench: Bench) -> None:
    keep(bench, rows_letter("file/a", "1", "2"), rows_letter("file/a", "3", reason=DeadReason.EXPIRED), bytes_letter(b"12345"))
    with running(*bench.arguments):
        for component, reason, letters, records in (
            ("file/a", "refused", 1, 2),
            ("file/a", "expired", 1, 1),
            ("forward", "entry_invalid", 1, 1),
        ):
            labels = {"component": component, "reason": reason}
            assert bench.metric("emp_pipe_dead_letters{", **labels) == letters
            assert bench.metric("emp_pipe_dead_letter_held_records{", **labels) == records
        assert bench.metric("emp_pipe_dead_letter_held_bytes{", component="forward") == 5
        assert bench.metric("emp_pipe_dead_letter_limit_bytes") == 256 << 20
        state = json.loads(bench.get("/readyz")[1])["dead_letters"]
        assert (state["letters"], state["records"], state["warning"]) == (3, 4, "")
        assert dlq(bench, "drop", "--all", "--yes").returncode == 0
        assert bench.metric("emp_pipe_dead_letters{", component="file/a") == 0


def test_a_loud_warning_comes_before_the_oldest_go_and_when_they_do(bench: Bench) -> None:
    keep(bench, bytes_letter(b"x" * 450), bytes_letter(b"y" * 400))
    bench.file.write_text(bench.file.read_text().replace("buffer: sqlite", "buffer: {type: sqlite, dead_max_bytes: 1000}"))
    with running(*bench.arguments) as process:
        assert "850 of 1,000 bytes (85%); at the limit the oldest are deleted" in process.wait_for("dead letters take")

        def state() -> dict[str, object]:
            status, body = bench.get("/readyz")
            assert status == 200, "dead letters make no process unready"
            found: dict[str, object] = json.loads(body)["dead_letters"]
            return found

        assert "emp-pipe dlq" in str(state()["warning"])
        with socket.create_connection(("127.0.0.1", bench.port), 20) as connection:
            connection.sendall(b"\xc1" + b"z" * 300)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
        process.wait_for("dead letters with 1 records were deleted by their limits")
        assert (state()["gone_records"], bench.metric("emp_pipe_group_records_total", group="dlq", reason="dead_limit")) == (1, 1)
        assert bench.metric("emp_pipe_dead_letter_held_bytes{", component="forward") > 0
        assert ids(bench) == [2, 3]
