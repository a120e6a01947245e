"""The real command with the file tail: lines of files reach the destination, through stops, kills, and each setting once."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import running, until
from tests.support.command_bench import Bench, rows_in


class TailBench(Bench):
    """A process that tails a directory of its own before its `file` exporter."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.logs = directory / "logs"
        self.logs.mkdir()

    def tail(self, settings: str = "", include: str = "") -> None:
        more = f", {settings}" if settings else ""
        self.write(receivers=f"{{tail: {{include: ['{include or self.logs}/*.log'], poll_interval_s: 0.05{more}}}}}")

    def append(self, name: str, text: str | bytes) -> Path:
        path = self.logs / name
        with path.open("ab") as file:
            file.write(text.encode() if isinstance(text, str) else text)
        return path

    def messages(self) -> list[str]:
        return [row["message"] for row in rows_in(self.data_dir)]

    def wait_for(self, *messages: str) -> list[dict[str, Any]]:
        until(lambda: sorted(self.messages()) == sorted(messages), f"{messages}, there is {self.messages()}")
        return rows_in(self.data_dir)


@pytest.fixture
def bench(tmp_path: Path) -> TailBench:
    return TailBench(tmp_path)


def test_lines_reach_the_destination_with_the_name_of_their_file(bench: TailBench) -> None:
    bench.tail()
    bench.append("comfyui-gpu3-out.log", 'plain text\n{"level":"warn","message":"hot","job_id":"job-1"}\n')
    with running(*bench.arguments) as command:
        first, second = sorted(bench.wait_for("plain text", "hot"), key=lambda row: row["message"] == "hot")
        assert (second["level"], second["job_id"]) == ("warn", "job-1")
        for row in (first, second):
            assert row["file.name"] == "comfyui-gpu3-out.log"
            assert row["file.path"] == str(bench.logs / "comfyui-gpu3-out.log")
            assert row["gpu.index"] == "3"
        bench.append("worker-001.log", "of a new file\n")
        rows = bench.wait_for("plain text", "hot", "of a new file")
        assert [row["worker_id"] for row in rows if row["message"] == "of a new file"] == ["worker-001"]
        command.process.terminate()
        assert command.wait() == 0


def test_a_stop_and_a_start_go_on_in_the_middle_of_a_line(bench: TailBench) -> None:
    bench.tail()
    bench.append("app.log", "one\ntw")
    with running(*bench.arguments) as command:
        bench.wait_for("one")
        command.process.terminate()
        assert command.wait() == 0
    bench.append("app.log", "o\nthree\n")
    with running(*bench.arguments):
        bench.wait_for("one", "two", "three")


def test_a_sigkill_repeats_nothing_and_loses_nothing(bench: TailBench) -> None:
    bench.tail()
    written = 0
    for _ in range(3):
        with running(*bench.arguments) as command:
            for _ in range(20):
                bench.append("app.log", "".join(f"line {number}\n" for number in range(written, written + 50)))
                written += 50
            until(lambda least=written - 900: len(bench.messages()) > least, "some lines at the destination")
            command.signal(signal.SIGKILL)
            command.wait()
    with running(*bench.arguments) as command:
        until(lambda: bench.metric("emp_pipe_tail_followed_files") == 1, "it runs")
        until(lambda: len(set(bench.messages())) == written, "all lines at the destination")
        filed = bench.metric("emp_pipe_receiver_records", component="tail", outcome="appended")
        command.process.terminate()
        assert command.wait() == 0
    assert filed == written, "each line was filed once, however often the exporter was interrupted"
