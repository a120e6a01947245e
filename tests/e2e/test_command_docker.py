"""The real command beside a stand-in for dockerd: logs by file and by socket, events, and a daemon that closes, hangs and babbles."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from emp_pipe.receivers.docker import DockerConfig
from tests.support.command import run, running, until
from tests.support.command_bench import Bench, rows_in
from tests.support.docker_daemon import DockerDaemon, FakeContainer, docker_daemon, nano_text

LABELS = {"com.docker.compose.service": "web", "com.docker.compose.project": "shop", "team": "vision"}
START = 1_764_000_000_000_000_000


class DockerBench(Bench):
    """A process beside a daemon."""

    def __init__(self, directory: Path, daemon: DockerDaemon) -> None:
        super().__init__(directory)
        self.daemon = daemon
        self.files = directory / "containers"
        self.files.mkdir()
        self.read()

    def read(self, settings: str = "") -> None:
        more = f", {settings}" if settings else ""
        receivers = f'{{docker: {{socket: "{self.daemon.path}", containers_directory: "{self.files}", retry_s: 0.2{more}}}}}'
        self.write(receivers=receivers)

    def in_files(self, container: FakeContainer) -> FakeContainer:
        """Let a container's log be a file, as the json-file driver writes it."""
        directory = self.files / container.id
        directory.mkdir()
        container.driver, container.log_path = "json-file", str(directory / f"{container.id}-json.log")
        own = {"ID": container.id, **{key: container.inspect()[key] for key in ("Name", "Config", "LogPath", "State")}}
        (directory / "config.v2.json").write_text(json.dumps(own))
        return self.daemon.run(container)

    def append(self, container: FakeContainer, *texts: str, at: int = START) -> None:
        with open(container.log_path, "a") as file:
            for text in texts:
                file.write(json.dumps({"log": f"{text}\n", "stream": "stdout", "time": nano_text(at)}) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        return rows_in(self.data_dir)

    def messages(self) -> list[str]:
        return [row["message"] for row in self.rows()]

    def until_messages(self, *expected: str) -> None:
        until(lambda: sorted(self.messages()) == sorted(expected), f"the messages {expected}, not {self.messages()}")

    def settled(self) -> None:
        until(lambda: self.groups()["file"]["held_records"] == 0, "nothing held")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[DockerBench]:
    with docker_daemon(tmp_path) as daemon:
        yield DockerBench(tmp_path, daemon)


def web(**settings: Any) -> FakeContainer:
    return FakeContainer("web-1", 1, labels=dict(LABELS), **settings)


def test_a_log_file_is_read_with_what_is_known_of_its_container(bench: DockerBench) -> None:
    container = bench.in_files(web())
    bench.append(container, "hello")
    with running(*bench.arguments):
        bench.until_messages("hello")
    (row,) = bench.rows()
    assert (row["container.name"], row["container.id"]) == ("web-1", container.id)
    assert (row["container.image.name"], row["container.image.tag"]) == ("registry.example:5000/team/web", "1.2")
    assert (row["service.name"], row["service.namespace"], row["container.label.team"]) == ("web", "shop", "vision")


def test_log_files_are_read_on_over_kills_and_rotation_and_nothing_comes_twice(bench: DockerBench) -> None:
    container = bench.in_files(web())
    log = Path(container.log_path)
    bench.append(container, "a")
    with running(*bench.arguments) as command:
        bench.until_messages("a")
        bench.settled()
        command.signal(signal.SIGKILL)
        command.wait()
    bench.append(container, "b")
    log.rename(f"{log}.1")
    bench.append(container, "c")
    with running(*bench.arguments):
        bench.until_messages("a", "b", "c")


def test_log_files_are_read_without_a_daemon_too(bench: DockerBench) -> None:
    container = bench.in_files(web())
    bench.daemon.stop()
    bench.append(container, "hello")
    with running(*bench.arguments) as command:
        command.wait_for("cannot be asked")
        bench.until_messages("hello")
        until(lambda: bench.metric("emp_pipe_source_troubles_times_total", reason="missing") > 1, "counted at every try")
        assert len([message for message in command.messages() if "cannot be asked" in message]) == 1
    assert bench.rows()[0]["container.name"] == "web-1"


def test_a_log_that_is_in_no_file_is_read_by_the_socket_and_a_restart_repeats_nothing(bench: DockerBench) -> None:
    container = bench.daemon.run(web())
    bench.daemon.log(container, "one", "two", at=START)
    bench.daemon.log(container, "to stderr", stream=2, at=START + 1)
    with running(*bench.arguments) as command:
        bench.until_messages("one", "two", "to stderr")
        bench.settled()
        command.signal(signal.SIGKILL)
        command.wait()
    bench.daemon.log(container, "three", at=START + 1)
    bench.daemon.log(container, "four", at=START + 2)
    with running(*bench.arguments):
        bench.until_messages("one", "two", "to stderr", "three", "four")
    assert bench.rows()[0]["container.name"] == "web-1"


def test_parts_of_a_long_line_are_one_record(bench: DockerBench) -> None:
    container = bench.daemon.run(web())
    long = "x" * 16384
    bench.daemon.log(container, raw=long.encode(), at=START)
    bench.daemon.log(container, raw="温度".encode(), at=START)  # as the driver `local` has it: without the line's end
    bench.daemon.log(container, "after", at=START + 1)
    with running(*bench.arguments):
        bench.until_messages(long + "温度", "after")


def test_a_container_with_a_terminal_is_read_as_lines(bench: DockerBench) -> None:
    container = bench.daemon.run(web(tty=True))
    bench.daemon.log(container, "one\r", "two\r", at=START)
    with running(*bench.arguments):
        bench.until_messages("one", "two")


def test_what_a_container_wrote_before_it_ended_is_read_also_when_it_ended_before_the_start(bench: DockerBench) -> None:
    ended = bench.daemon.run(web(running=False))
    bench.daemon.log(ended, "last words", at=START)
    with running(*bench.arguments):
        bench.until_messages("last words")
        short = bench.daemon.run(FakeContainer("short", 2))
        bench.daemon.log(short, "short life", at=START + 5)
        bench.daemon.happen(short, "start")
        bench.daemon.end(short)
        bench.daemon.happen(short, "die", exitCode="0")
        until(lambda: {"last words", "short life"} <= set(bench.messages()), "both")


def test_starts_ends_and_memory_that_ran_out_are_operational_events_once(bench: DockerBench) -> None:
    container = bench.daemon.run(web())
    bench.read('logs: "off"')
    with running(*bench.arguments) as command:
        until(lambda: bench.daemon.asked_for("/events"), "events are asked for")
        bench.daemon.happen(container, "start")
        bench.daemon.happen(container, "exec_start: ls")
        bench.daemon.happen(container, "oom")
        until(lambda: len(bench.rows()) == 2, "two events")
        bench.settled()
        command.signal(signal.SIGKILL)
        command.wait()
    bench.daemon.happen(container, "die", exitCode="137", execDuration="12")
    with running(*bench.arguments):
        until(lambda: len(bench.rows()) == 3, "three events")
        bench.daemon.happen(container, "die", exitCode="0")
        until(lambda: len(bench.rows()) == 4, "four events")
    start, oom, die, end = bench.rows()
    assert [row["event_type"] for row in bench.rows()] == ["service_started", "error_oom", "service_stopped", "service_stopped"]
    assert [row["level"] for row in bench.rows()] == ["info", "error", "error", "info"]
    assert (die["container.exit_code"], die["duration_ms"]) == (137, 12_000)
    assert (start["service.name"], start["container.name"], oom["error_type"]) == ("web", "web-1", "memory")
    assert end["message"] == "container web-1 ended with exit code 0"


REASONS = {"close": "closed", "hang": "timed_out", "garbage": "garbage", "half": "closed", "error": "refused"}


@pytest.mark.parametrize("fault", REASONS)
def test_a_daemon_that_misbehaves_is_said_once_and_counted_while_files_are_read_on(bench: DockerBench, fault: str) -> None:
    container = bench.in_files(web())
    other = bench.daemon.run(FakeContainer("db", 2))
    bench.daemon.fault = fault
    bench.read("timeout_s: 0.2")
    bench.append(container, "by file")
    with running(*bench.arguments) as command:
        bench.until_messages("by file")
        until(lambda: bench.metric("emp_pipe_source_troubles_times_total", reason=REASONS[fault]) > 1, "counted")
        bench.daemon.fault = ""
        command.wait_for("answers again")
        assert len([message for message in command.messages() if "cannot be asked" in message]) == 1
        bench.daemon.log(other, "by socket", at=START)
        bench.daemon.happen(other, "start")
        until(lambda: {"by file", "by socket", "container db started"} <= set(bench.messages()), "everything")
        command.signal(signal.SIGTERM)
        assert command.wait() == 0


@pytest.mark.parametrize("fault", ["", "half", "garbage"])
def test_a_daemon_that_closes_in_the_middle_loses_and_repeats_nothing(bench: DockerBench, fault: str) -> None:
    container = bench.daemon.run(FakeContainer("db", 2))
    bench.daemon.log(container, "one", at=START)
    with running(*bench.arguments) as command:
        until(lambda: bench.daemon.asked_for("/events"), "events are asked for")
        bench.daemon.happen(container, "start", at=START * 2)
        bench.until_messages("one", "container db started")
        bench.daemon.fault = fault
        bench.daemon.drop()
        command.wait_for("cannot be asked")
        bench.daemon.fault = ""
        bench.daemon.log(container, "two", at=START)
        bench.daemon.happen(container, "oom", at=START * 2)
        oom = "container db ran out of memory: the kernel killed one of its processes"
        bench.until_messages("one", "container db started", "two", oom)


def test_a_daemon_that_is_restarted_is_found_again(bench: DockerBench) -> None:
    container = bench.daemon.run(FakeContainer("db", 2))
    bench.daemon.log(container, "one", at=START)
    with running(*bench.arguments) as command:
        bench.until_messages("one")
        bench.daemon.stop()
        command.wait_for("cannot be asked")
        bench.daemon.start_again()
        bench.daemon.log(container, "two", at=START + 1)
        bench.until_messages("one", "two")


def test_a_log_that_goes_elsewhere_is_left_alone_and_said_so(bench: DockerBench) -> None:
    bench.daemon.run(web(driver="fluentd"))
    with running(*bench.arguments) as command:
        command.wait_for("its log goes elsewhere (driver fluentd)")


@pytest.mark.parametrize("daemon_is_there", [True, False])
def test_a_container_whose_label_says_so_is_left_out_of_logs_and_events(bench: DockerBench, daemon_is_there: bool) -> None:
    labels = {"emp-pipe.exclude": "true"}
    bench.append(bench.in_files(FakeContainer("by-file", 2, labels=labels)), "not wanted")
    by_socket = bench.daemon.run(FakeContainer("by-socket", 3, labels=labels))
    bench.daemon.log(by_socket, "not wanted", at=START)
    wanted = bench.in_files(web())
    bench.append(wanted, "wanted")
    if not daemon_is_there:
        bench.daemon.stop()
    with running(*bench.arguments) as command:
        expected = ["wanted"]
        if daemon_is_there:
            command.wait_for("by-socket: it is left out")
            command.wait_for("by-file: it is left out")
            until(lambda: bench.daemon.asked_for("/events"), "events are asked for")
            bench.daemon.happen(by_socket, "start", at=START * 2)
            bench.daemon.happen(wanted, "start", at=START * 2)
            expected.append("container web-1 started")
        bench.until_messages(*expected)
        bench.append(wanted, "wanted too")
        bench.until_messages(*expected, "wanted too")


def _socket(bench: DockerBench) -> None:
    bench.daemon.log(bench.daemon.run(web()), "wanted", at=START)


def _files(bench: DockerBench) -> None:
    bench.append(bench.in_files(web()), "wanted")


def _only_files(bench: DockerBench) -> None:
    bench.daemon.log(bench.daemon.run(FakeContainer("db", 2)), "not wanted", at=START)
    bench.append(bench.in_files(web()), "wanted")
    bench.read("logs: files")


def _no_events(bench: DockerBench) -> None:
    container = bench.daemon.run(web())
    bench.daemon.happen(container, "start", at=START * 2)
    bench.daemon.log(container, "wanted", at=START)
    bench.read("events: false")


def _some_labels(bench: DockerBench) -> None:
    bench.append(bench.in_files(web()), "wanted")
    bench.read('labels: ["com.docker.*"]')


def _polled(bench: DockerBench) -> None:
    bench.read("poll_s: 0.1")
    with running(*bench.arguments) as command:
        until(lambda: bench.daemon.asked_for("/events"), "it has begun")
        bench.daemon.log(bench.daemon.run(web()), "wanted", at=START)  # no event tells of it
        bench.until_messages("wanted")
        bench.settled()
        command.signal(signal.SIGTERM)
        command.wait()


def _hanging(bench: DockerBench) -> None:
    bench.daemon.fault = "hang"
    bench.daemon.log(bench.daemon.run(web()), "wanted", at=START)
    bench.read("timeout_s: 0.1")
    with running(*bench.arguments) as command:
        command.wait_for("no answer within 0.1 s")
    bench.daemon.fault = ""
    bench.read()


def _two_more(bench: DockerBench) -> None:
    """Beside the one that is wanted: one by file and one by the socket, each with a start that is an event."""
    bench.append(bench.in_files(web()), "wanted")
    by_file = bench.in_files(FakeContainer("db-1", 2))
    bench.append(by_file, "not wanted")
    by_socket = bench.daemon.run(FakeContainer("db-2", 3))
    bench.daemon.log(by_socket, "not wanted", at=START)
    for container in (by_file, by_socket):
        bench.daemon.happen(container, "start", at=START * 2)


def _included(bench: DockerBench) -> None:
    _two_more(bench)
    bench.read('include: ["web-*"]')


def _excluded(bench: DockerBench) -> None:
    _two_more(bench)
    bench.read('exclude: ["db-*"]')


SETTINGS: dict[str, Callable[[DockerBench], None]] = {
    "socket": _socket,
    "containers_directory": _files,
    "logs": _only_files,
    "include": _included,
    "exclude": _excluded,
    "events": _no_events,
    "labels": _some_labels,
    "timeout_s": _hanging,
    "poll_s": _polled,
    "retry_s": _socket,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_decides_what_is_read(bench: DockerBench, name: str) -> None:
    SETTINGS[name](bench)
    with running(*bench.arguments) as command:
        bench.until_messages("wanted")
        for left_out in ("db-1", "db-2") if name in ("include", "exclude") else ():
            command.wait_for(f"{left_out}: it is left out")
    if name in ("include", "exclude"):
        assert bench.messages() == ["wanted"]
    if name == "labels":
        (row,) = bench.rows()
        assert "container.label.team" not in row
        assert row["container.label.com.docker.compose.project"] == "shop"


def test_every_setting_has_a_case() -> None:
    assert set(DockerConfig.model_fields) == SETTINGS.keys()


def test_the_printed_configuration_shows_docker(bench: DockerBench) -> None:
    printed = run("run", str(bench.file), "--print-config", "--data-dir", str(bench.data_dir))
    assert printed.returncode == 0, printed.stderr
    assert "docker:" in printed.stdout
    assert str(bench.files) in printed.stdout
