"""The real command tails a file of each format, with good lines before and behind: one named case per format, and each setting once."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import run, running, until
from tests.support.command_bench import Bench, rows_in

AT = "2025-10-09T08:53:20.000Z"
PYTHON_TRACE = 'Traceback (most recent call last):\n  File "/app/main.py", line 3, in <module>\n    run()\nValueError: bad value'
NODE_TRACE = "TypeError: x is not a function\n    at handler (/app/index.js:3:9)\n    at node:internal/main/run_main_module:23:47"
JAVA_TRACE = (
    'Exception in thread "main" java.lang.IllegalStateException: boom\n\tat com.foo.Bar.run(Bar.java:12)\n'
    "Caused by: java.io.IOException: disk\n\tat com.foo.Disk.read(Disk.java:3)\n\t... 12 more"
)
GO_TRACE = "panic: runtime error: index out of range\n\ngoroutine 1 [running]:\nmain.main()\n\t/app/main.go:12 +0x1d\nexit status 2"
RUST_TRACE = (
    "thread 'main' panicked at src/main.rs:2:5:\nindex out of bounds\nnote: run with `RUST_BACKTRACE=full`\nstack backtrace:\n"
    "   0: rust_begin_unwind\n             at /rustc/x.rs:1:1"
)
CONTAINER_TIME = "2025-10-09T08:53:20.123456789Z"


def docker(log: str, stream: str = "stdout") -> str:
    return json.dumps({"log": log, "stream": stream, "time": CONTAINER_TIME}, separators=(",", ":"))


Expected = list[dict[str, Any]]
CASES: dict[str, tuple[str, str, Expected]] = {
    "winston": (
        "",
        f'{{"level":"warn","message":"hot","timestamp":"{AT}","jobId":"job-1","stack":"Error: x\\n    at f"}}',
        [{"level": "warn", "message": "hot", "timestamp": AT, "job_id": "job-1", "exception.stacktrace": "Error: x\n    at f"}],
    ),
    "pino": (
        "",
        '{"level":50,"time":1760000000000,"pid":7,"hostname":"gpu-1","msg":"it failed","err":{"type":"Error","message":"x","stack":"s"}}',
        [{"level": "error", "message": "it failed", "timestamp": AT, "host.name": "gpu-1", "exception.type": "Error", "pid": 7}],
    ),
    "bunyan": (
        "",
        f'{{"name":"api","hostname":"gpu-1","pid":7,"level":30,"msg":"up","time":"{AT}","v":0}}',
        [{"level": "info", "message": "up", "timestamp": AT, "name": "api", "v": 0}],
    ),
    "structlog": (
        "",
        f'{{"event":"job done","level":"info","timestamp":"{AT}","job_id":"job-1"}}',
        [{"level": "info", "message": "job done", "timestamp": AT, "job_id": "job-1"}],
    ),
    "structlog with an exception": (
        "",
        json.dumps({"event": "failed", "level": "error", "exception": PYTHON_TRACE}),
        [{"message": "failed", "exception.type": "ValueError", "exception.message": "bad value", "exception.stacktrace": PYTHON_TRACE}],
    ),
    "ecs": (
        "",
        f'{{"@timestamp":"{AT}","log":{{"level":"error","logger":"a.b"}},"message":"m","ecs":{{"version":"1.6.0"}},'
        '"error":{"type":"E","message":"bad","stack_trace":"s"},"service":{"name":"api"}}',
        [{"timestamp": AT, "level": "error", "message": "m", "logger": "a.b", "exception.type": "E", "service.name": "api"}],
    ),
    "logfmt": (
        "",
        'time=2025-10-09T08:53:20Z level=warn msg="disk \\"a\\" full" took=35',
        [{"level": "warn", "message": 'disk "a" full', "took": 35, "timestamp": AT}],
    ),
    "logfmt that is set": ("format: logfmt", "level=error retry msg=again", [{"level": "error", "retry": True, "message": "again"}]),
    "docker": (
        "",
        f"{docker('first half, ')}\n{docker('on stderr' + chr(10), 'stderr')}\n{docker('second half' + chr(10))}",
        [
            {"message": "first half, second half", "log.iostream": "stdout", "timestamp": CONTAINER_TIME},
            {"message": "on stderr", "log.iostream": "stderr"},
        ],
    ),
    "docker with an application's own format": (
        "",
        docker('{"level":"warn","message":"inside"}\n'),
        [{"level": "warn", "message": "inside", "log.iostream": "stdout", "timestamp": CONTAINER_TIME}],
    ),
    "cri": (
        "",
        f"{CONTAINER_TIME} stdout P first half, \n{CONTAINER_TIME} stdout F second half",
        [{"message": "first half, second half", "log.iostream": "stdout", "timestamp": CONTAINER_TIME}],
    ),
    "syslog 3164": (
        "",
        "<86>Oct  9 08:53:20 gpu-1 sshd[7]: Accepted key",
        [{"message": "Accepted key", "level": "info", "service.name": "sshd", "process.pid": 7, "host.name": "gpu-1"}],
    ),
    "syslog without its priority": (
        "",
        "Oct  9 08:53:20 gpu-1 sshd[7]: Accepted key",
        [{"message": "Accepted key", "service.name": "sshd", "process.pid": 7, "host.name": "gpu-1"}],
    ),
    "syslog 5424": (
        "",
        '<165>1 2025-10-09T08:53:20Z gpu-1 app 7 ID [x@1 k="v"] it is',
        [{"message": "it is", "timestamp": AT, "service.name": "app", "syslog.msgid": "ID", "syslog.x@1.k": "v"}],
    ),
    "nginx access": (
        "",
        '10.0.0.7 - - [09/Oct/2025:08:53:20 +0000] "GET /jobs?id=7 HTTP/1.1" 502 31 "-" "curl/8.5"',
        [{"message": "GET /jobs?id=7 HTTP/1.1", "level": "error", "http.response.status_code": 502, "url.path": "/jobs", "timestamp": AT}],
    ),
    "nginx error": (
        "",
        '2025/10/09 08:53:20 [crit] 1#2: *3 connect() failed, client: 10.0.0.7, server: _, request: "GET / HTTP/1.1"',
        [{"message": "connect() failed", "level": "error", "severity_text": "crit", "client.address": "10.0.0.7", "timestamp": AT}],
    ),
    "python logging": (
        "",
        "2025-10-09 08:53:20,000 - app.web - WARNING - slow",
        [{"message": "slow", "level": "warn", "logger": "app.web", "timestamp": AT}],
    ),
    "timestamp and level in brackets": (
        "",
        "[2025-10-09T08:53:20Z] ERROR: job failed",
        [{"message": "job failed", "level": "error", "timestamp": AT}],
    ),
    "comfyui": (
        "format: comfyui",
        "\x1b[33m[INFO]\x1b[0m got prompt\n\r  0%|          | 0/2 [00:00<?, ?it/s]\r 50%|#####     | 1/2 [00:01<00:01,  1.00it/s]"
        "\r100%|##########| 2/2 [00:02<00:00,  1.00it/s]\nPrompt executed in 2.50 seconds",
        [
            {"message": "got prompt", "level": "info"},
            {
                "message": "100%|##########| 2/2 [00:02<00:00,  1.00it/s]",
                "event_type": "job_progress",
                "progress": 100,
                "progress.steps_total": 2,
            },
            {"message": "Prompt executed in 2.50 seconds", "duration_ms": 2500.0},
        ],
    ),
    "plain": ("format: plain", '{"level":', [{"message": '{"level":'}]),
    "regex": (
        'format: regex, pattern: "^(?P<level>[A-Z]+)/(?P<job_id>\\\\S+) (?P<message>.*)$"',
        "WARN/job-7 hot",
        [{"message": "hot", "level": "warn", "job_id": "job-7"}],
    ),
    "python trace": (
        "",
        f"2025-10-09 08:53:20,000 ERROR it failed\n{PYTHON_TRACE}",
        [
            {
                "message": "it failed",
                "level": "error",
                "exception.type": "ValueError",
                "exception.message": "bad value",
                "exception.stacktrace": PYTHON_TRACE,
                "timestamp": AT,
            }
        ],
    ),
    "node trace": (
        "",
        NODE_TRACE,
        [{"message": NODE_TRACE.split("\n")[0], "level": "error", "exception.type": "TypeError", "exception.stacktrace": NODE_TRACE}],
    ),
    "java trace": (
        "",
        JAVA_TRACE,
        [{"exception.type": "java.lang.IllegalStateException", "exception.message": "boom", "exception.stacktrace": JAVA_TRACE}],
    ),
    "go trace": (
        "",
        GO_TRACE,
        [{"exception.type": "panic", "exception.message": "runtime error: index out of range", "exception.stacktrace": GO_TRACE}],
    ),
    "rust trace": (
        "",
        RUST_TRACE,
        [{"exception.type": "panic", "exception.message": "index out of bounds", "exception.stacktrace": RUST_TRACE}],
    ),
    "trace in a container, between lines of the other stream": (
        "",
        "\n".join(
            line for part in PYTHON_TRACE.split("\n") for line in (docker(part + "\n", "stderr"), docker(f"beside {part.strip()[:4]}\n"))
        ),
        [
            {"exception.type": "ValueError", "exception.stacktrace": PYTHON_TRACE, "log.iostream": "stderr"},
            *({"message": f"beside {part.strip()[:4]}"} for part in PYTHON_TRACE.split("\n")),
        ],
    ),
    "records that begin as the user says": (
        "record_start: '^#'",
        "#1 first\nsecond\n  third\n#2",
        [{"message": "#1 first\nsecond\n  third"}, {"message": "#2\nafter it"}],
    ),
    "multiline switched off": (
        "multiline: false",
        "Error: x\n    at f (x.js:1:1)",
        [{"message": "Error: x"}, {"message": "    at f (x.js:1:1)"}],
    ),
    "a zone for times that name none": (
        "utc_offset_s: 7200",
        "[2025-10-09 10:53:20] INFO: here",
        [{"message": "here", "timestamp": AT}],
    ),
    "every state of a bar, where that is set": (
        "progress_interval_s: 0",
        "\r 50%|#####     | 1/2 [00:01<00:01,  1.00it/s]\r100%|##########| 2/2 [00:02<00:00,  1.00it/s]",
        [{"progress": 50}, {"progress": 100}],
    ),
}


def of(rows: list[dict[str, Any]], expected: Expected) -> list[dict[str, Any]]:
    """Return what the rows have of what is expected of them."""
    return [{key: row.get(key) for key in wanted} for row, wanted in zip(rows, expected, strict=False)]


def same_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value.replace(".000Z", "Z") if key == "timestamp" else value for key, value in row.items()} for row in rows]


@pytest.fixture(scope="module")
def all_rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """One process tails a file for each case; each has a good line before and behind."""
    directory = tmp_path_factory.mktemp("formats")
    bench = Bench(directory)
    receivers = []
    for number, (name, (settings, text, _)) in enumerate(CASES.items()):
        path = directory / f"case{number}.txt"
        path.write_text(f"before it\n{text}\nafter it\n")
        more = f", {settings}" if settings else ""
        receivers.append(
            f"tail/c{number}: {{include: ['{path}'], flush_s: 0.2, poll_interval_s: 0.1, attributes: {{case: {json.dumps(name)}}}{more}}}"
        )
    bench.write(receivers="{" + ", ".join(receivers) + "}")
    wanted = {name: len(expected) for name, (_, _, expected) in CASES.items()}

    def rows() -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in CASES}
        for row in rows_in(bench.data_dir):
            found[row["case"]].append(row)
        return found

    with running(*bench.arguments) as command:
        until(
            lambda: all(len(found) >= wanted[name] + (1 if "record_start" in CASES[name][0] else 2) for name, found in rows().items()),
            "all rows of every case",
        )
        command.process.terminate()
        assert command.wait() == 0
    return rows()


@pytest.mark.parametrize("name", CASES)
def test_a_file_of_this_format_becomes_records_and_the_lines_around_it_too(name: str, all_rows: dict[str, list[dict[str, Any]]]) -> None:
    rows, expected = all_rows[name], CASES[name][2]
    inner = [row for row in rows if row["message"] not in ("before it", "after it")]  # a resource's rows are filed together
    around = [row["message"] for row in rows if row not in inner]
    assert around == (["before it"] if "record_start" in CASES[name][0] else ["before it", "after it"])
    assert len(inner) == len(expected), inner
    assert same_times(of(inner, expected)) == same_times(expected)


@pytest.mark.parametrize(
    ("settings", "text", "behind", "expected"),
    [
        ("", f"[{AT}] ERROR: it failed\n{PYTHON_TRACE[:-9]}", f"{PYTHON_TRACE[-9:]}\n", ["it failed"]),
        ("record_start: '^#'", "#1 first\nsecond\n  th", "ird\n", ["#1 first\nsecond\n  third"]),
        ("multiline: false", "Error: x\n    at f (x.js:1:1)\n  at", " g\n", ["Error: x", "    at f (x.js:1:1)", "  at g"]),
    ],
    ids=["traces", "record_start", "multiline: false"],
)
def test_a_sigkill_in_a_record_of_several_lines_loses_and_repeats_nothing(
    settings: str, text: str, behind: str, expected: list[str], tmp_path: Path
) -> None:
    bench = Bench(tmp_path)
    log = tmp_path / "app.txt"
    more = f", {settings}" if settings else ""
    bench.write(receivers=f"{{tail: {{include: ['{log}'], flush_s: 60, poll_interval_s: 0.05{more}}}}}")
    # `record_start` keeps the last record open: one more that begins ends the one under test.
    log.write_text(f"#0 above\n{text}")
    with running(*bench.arguments) as command:
        until(lambda: len(rows_in(bench.data_dir)) == (3 if "false" in settings else 1), "what ended before the kill")
        until(lambda: bench.groups()["file"]["held_records"] == 0, "nothing held")
        command.signal(signal.SIGKILL)
        command.wait()
    with log.open("a") as file:
        file.write(f"{behind}#9 below\n#10 end\n")
    wanted = ["#0 above", *expected, "#9 below", *([] if "record_start" in settings else ["#10 end"])]
    with running(*bench.arguments) as command:
        until(lambda: len(rows_in(bench.data_dir)) >= len(wanted), "all records")
        filed = bench.metric("emp_pipe_receiver_records", component="tail", outcome="appended")
        command.process.terminate()
        assert command.wait() == 0
    rows = rows_in(bench.data_dir)
    # A stop leaves what is open for the next start, so nothing more came with it.
    assert [row["message"] for row in rows] == wanted
    assert filed == len(wanted), "by the books, which go on over the kill, each record was filed once"
    if not settings:
        assert rows[1]["exception.stacktrace"] == PYTHON_TRACE


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_refused_with_a_message_and_the_next_file_is_read(encoding: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    (tmp_path / "a.txt").write_bytes("a line of text\nand another\n".encode(encoding))
    (tmp_path / "b.txt").write_text("good\n")
    bench.write(receivers=f"{{tail: {{include: ['{tmp_path}/*.txt'], poll_interval_s: 0.1}}}}")
    with running(*bench.arguments) as command:
        until(lambda: [row["message"] for row in rows_in(bench.data_dir)] == ["good"], "the row of the good file")
        until(lambda: bench.metric("emp_pipe_tail_refused_files_total", reason="utf16") == 1, "it is counted")
        command.wait_for("UTF-16")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("format: regex", "needs a pattern"),
        ("format: regex, pattern: '(?P<a>'", "unclosed"),
        ("format: regex, pattern: 'abc'", "named group"),
        ("pattern: '(?P<a>x)'", "of format regex"),
        ("record_start: '('", "unclosed"),
        ("format: winston", "format"),
    ],
)
def test_a_setting_that_cannot_be_used_is_said_before_anything_starts(settings: str, said: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write(receivers=f"{{tail: {{include: ['{tmp_path}/*.txt'], {settings}}}}}")
    ended = run(*bench.arguments)
    assert ended.returncode == 2
    assert said in ended.stderr


def test_the_settings_of_formats_are_in_the_printed_configuration(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write(receivers=f"{{tail: {{include: ['{tmp_path}/*.txt'], format: docker, utc_offset_s: 3600}}}}")
    printed = run(*bench.arguments, "--print-config").stdout
    for line in ("format: docker", "utc_offset_s: 3600", "multiline: true", "progress_interval_s: 10"):
        assert line in printed
