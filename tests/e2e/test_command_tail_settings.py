"""The real command with each setting of the file tail: what it changes is seen at the destination."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.test_command_tail import TailBench
from tests.support.command import running, until


@pytest.fixture
def bench(tmp_path: Path) -> TailBench:
    return TailBench(tmp_path)


def follows(bench: TailBench, count: int) -> None:
    until(lambda: bench.metric("emp_pipe_tail_followed_files") == count, f"{count} files are read")


def test_start_up_says_what_is_read(bench: TailBench) -> None:
    bench.tail()
    with running(*bench.arguments) as command:
        assert f"receives: tail from {bench.logs}/*.log" in command.messages()


def test_from_end_leaves_out_what_was_there_and_reads_what_comes(bench: TailBench) -> None:
    bench.tail("from: end")
    bench.append("app.log", "old\n")
    with running(*bench.arguments):
        follows(bench, 1)
        bench.append("app.log", "new\n")
        bench.append("young.log", "of a new file\n")
        bench.wait_for("new", "of a new file")


@pytest.mark.parametrize(("start", "times"), [("checkpoint", 1), ("beginning", 2)])
def test_from_says_whether_a_second_start_reads_again(bench: TailBench, start: str, times: int) -> None:
    bench.tail(f"from: {start}")
    bench.append("app.log", "first\n")
    with running(*bench.arguments) as command:
        bench.wait_for("first")
        command.process.terminate()
        assert command.wait() == 0
    bench.append("app.log", "second\n")
    with running(*bench.arguments):
        until(lambda: "second" in bench.messages(), "the second line")
        assert Counter(bench.messages()) == {"first": times, "second": 1}


def test_exclude_leaves_out_names_and_paths(bench: TailBench) -> None:
    bench.tail(f"exclude: ['*-combined.log', '{bench.logs}/secret*']")
    for name in ("app-combined.log", "secret-1.log", "worker.log"):
        bench.append(name, f"of {name}\n")
    with running(*bench.arguments):
        bench.wait_for("of worker.log")
        assert bench.metric("emp_pipe_tail_followed_files") == 1


def test_tag_attributes_and_from_name_are_in_each_row(bench: TailBench) -> None:
    bench.tail("tag: 'files.*', attributes: {deployment.environment.name: staging}, from_name: {shard: 'shard-(\\d+)'}")
    bench.append("api-shard-07.log", "one\n")
    with running(*bench.arguments):
        (row,) = bench.wait_for("one")
        assert (row["fluent.tag"], row["deployment.environment.name"], row["shard"]) == ("files.api-shard-07", "staging", "07")


def test_max_line_bytes_splits_a_long_line_and_marks_its_parts(bench: TailBench) -> None:
    bench.tail("max_line_bytes: 64")
    bench.append("app.log", "a" * 64 + "b" * 10 + "\n")
    with running(*bench.arguments):
        rows = bench.wait_for("a" * 64, "b" * 10)
        assert {row["message"][0]: int(row["line.part"]) for row in rows} == {"a": 1, "b": 2}


def test_max_open_files_bounds_descriptors_and_no_file_is_left_out(bench: TailBench) -> None:
    bench.tail("max_open_files: 4")
    names = [f"worker-{number}.log" for number in range(12)]
    for name in names:
        bench.append(name, f"first of {name}\n")
    with running(*bench.arguments) as command:
        bench.wait_for(*[f"first of {name}" for name in names])
        for name in names:
            bench.append(name, f"second of {name}\n")
        bench.wait_for(*[f"{which} of {name}" for name in names for which in ("first", "second")])
        descriptors = Path(f"/proc/{command.process.pid}/fd")
        opened = [os.readlink(one) for one in descriptors.iterdir() if one.is_symlink()]
        assert 1 <= sum(path.startswith(f"{bench.logs}/") for path in opened) <= 4


def test_watch_poll_sees_new_files_and_says_how(bench: TailBench) -> None:
    bench.tail("watch: poll")
    bench.append("app.log", "one\n")
    with running(*bench.arguments) as command:
        bench.wait_for("one")
        bench.append("young.log", "two\n")
        bench.append("app.log", "three\n")
        bench.wait_for("one", "two", "three")
        command.wait_for("files are looked at every now and then: it is switched off")


def test_flush_s_is_how_long_a_record_waits_for_its_next_line(bench: TailBench) -> None:
    bench.tail("format: plain, record_start: '^start', flush_s: 60")
    bench.append("app.log", "whole\nstart of it\n")
    with running(*bench.arguments):
        bench.wait_for("whole")
        time.sleep(1.6)  # longer than the default waits
        bench.append("app.log", " and more\nstart of the next\n")
        bench.wait_for("whole", "start of it\n and more")


def test_flush_s_ends_a_record_after_which_nothing_comes(bench: TailBench) -> None:
    bench.tail("format: plain, record_start: '^start', flush_s: 0.1")
    bench.append("app.log", "start of it\n and more\n")
    with running(*bench.arguments):
        bench.wait_for("start of it\n and more")


def test_a_recursive_glob_finds_files_at_every_depth_and_in_new_directories(bench: TailBench) -> None:
    bench.tail(include=f"{bench.logs}/**")
    (bench.logs / "a" / "b").mkdir(parents=True)
    bench.append("top.log", "top\n")
    bench.append("a/b/deep.log", "deep\n")
    with running(*bench.arguments):
        bench.wait_for("top", "deep")
        (bench.logs / "young").mkdir()
        bench.append("young/new.log", "new\n")
        bench.wait_for("top", "deep", "new")
