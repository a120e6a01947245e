"""Every way in which a file is rotated, while the tail runs and while it is down: no line missing, none twice."""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tailing import Tailing, lines, numbered, pack, shift

Rotate = Callable[[Path], None]


@pytest.fixture
def tail(tmp_path: Path) -> Tailing:
    tail = Tailing(tmp_path)
    tail.write("app.log", numbered(0, 100))
    assert tail.pump() == lines(0, 100)
    return tail


def copy_and_truncate(path: Path) -> None:
    shift_copies(path)
    shutil.copyfile(path, path.with_name(f"{path.name}.1"))
    os.truncate(path, 0)


def shift_copies(path: Path) -> None:
    for number in range(8, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        if older.exists():
            older.rename(path.with_name(f"{path.name}.{number + 1}"))


def later(tail: Tailing, name: str) -> None:
    """Files that are written one after another have times one after another, however coarse the clock of the file system is."""
    path = tail.path(name)
    newest = max((one.stat().st_mtime_ns for one in tail.directory.iterdir()), default=0)
    os.utime(path, ns=(newest + 1_000_000, newest + 1_000_000))


def test_a_renamed_file_is_read_to_its_end_and_the_new_one_from_its_beginning(tail: Tailing) -> None:
    tail.write("app.log", numbered(100, 150))
    shift(tail.path("app.log"))
    tail.write("app.log", numbered(150, 200))
    assert sorted(tail.pass_s(8)) == sorted(lines(0, 200))


def test_a_writer_that_does_not_know_yet_writes_on_into_the_renamed_file(tail: Tailing) -> None:
    shift(tail.path("app.log"))
    tail.write("app.log", numbered(150, 200))
    tail.pass_s(2)
    tail.write("app.log.1", numbered(100, 150))
    assert sorted(tail.pass_s(8)) == sorted(lines(0, 200))


def test_the_last_line_of_a_renamed_file_is_a_record_though_it_has_no_end(tail: Tailing) -> None:
    tail.write("app.log", "without an end")
    tail.pump()
    shift(tail.path("app.log"))
    assert tail.pass_s(8) == [*lines(0, 100), "without an end"]


def test_a_file_that_is_copied_and_truncated_goes_on_without_a_gap(tail: Tailing) -> None:
    tail.write("app.log", numbered(100, 150))
    copy_and_truncate(tail.path("app.log"))
    tail.write("app.log", numbered(150, 200))
    assert sorted(tail.pass_s(8)) == sorted(lines(0, 200))
    assert tail.metric("tail_truncated_files") == 1


def test_a_truncated_file_that_grew_past_its_old_length_before_anybody_looked_is_seen(tail: Tailing) -> None:
    copy_and_truncate(tail.path("app.log"))
    tail.write("app.log", numbered(100, 900))
    assert sorted(tail.pass_s(8)) == sorted(lines(0, 900))
    assert tail.metric("tail_truncated_files") == 1


def test_what_was_read_of_a_line_before_a_truncation_is_in_one_record(tail: Tailing) -> None:
    tail.write("app.log", "begun ")
    tail.pump()
    tail.write("app.log", "and ended\n")
    copy_and_truncate(tail.path("app.log"))
    tail.write("app.log", "next\n")
    assert sorted(tail.pass_s(8)) == sorted([*lines(0, 100), "begun and ended", "next"])


def test_a_truncation_without_a_copy_keeps_what_was_read_of_the_last_line(tail: Tailing) -> None:
    tail.write("app.log", "begun")
    tail.pump()
    os.truncate(tail.path("app.log"), 0)
    tail.write("app.log", "next\n")
    assert tail.pass_s(8) == [*lines(0, 100), "begun", "next"]


def test_a_writer_that_keeps_its_place_over_a_truncation_leaves_a_hole_and_no_line(tmp_path: Path) -> None:
    tail = Tailing(tmp_path)
    with tail.path("app.log").open("wb", buffering=0) as writer:
        writer.write(numbered(0, 2000).encode())
        assert tail.pump() == lines(0, 2000)
        os.truncate(tail.path("app.log"), 0)
        writer.write(b"behind the hole\n")
        assert tail.pass_s(2) == [*lines(0, 2000), "behind the hole"]


def test_a_symlink_that_is_swapped_leads_to_the_new_file_and_the_old_one_is_finished(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    tail = Tailing(tmp_path)
    tail.write("kept/a", numbered(0, 50))
    tail.path("app.log").symlink_to("kept/a")
    assert tail.pump(1) == lines(0, 50)
    tail.write("kept/a", numbered(50, 60))
    tail.write("kept/b", numbered(60, 100))
    tail.path("new").symlink_to("kept/b")
    tail.path("new").rename(tail.path("app.log"))
    assert sorted(tail.pass_s(8)) == sorted(lines(0, 100))


def test_a_file_that_is_deleted_and_made_again_is_read_to_its_end_and_from_its_beginning(tail: Tailing) -> None:
    tail.write("app.log", numbered(100, 110))
    tail.path("app.log").unlink()
    tail.write("app.log", numbered(110, 120))
    assert sorted(tail.pass_s(8)) == sorted(lines(0, 120))


def test_a_deleted_file_is_read_to_its_end_and_let_go(tail: Tailing) -> None:
    tail.write("app.log", numbered(100, 110))
    tail.path("app.log").unlink()
    assert tail.pass_s(8) == lines(0, 110)
    assert tail.reader.followed == tail.reader.leaving == 0


@pytest.mark.parametrize("grown", [3, 500], ids=["shorter", "longer"])
def test_a_file_that_is_replaced_in_its_place_is_read_anew(tail: Tailing, grown: int) -> None:
    tail.path("app.log").write_text(numbered(1000, 1000 + grown))
    assert tail.pass_s(2) == [*lines(0, 100), *lines(1000, 1000 + grown)]


def test_a_file_that_is_replaced_by_a_shorter_one_while_the_tail_is_down_is_read_anew(tail: Tailing) -> None:
    tail.kill()
    tail.path("app.log").write_text(numbered(1000, 1003))
    tail.start()
    assert tail.pass_s(8) == [*lines(0, 100), *lines(1000, 1003)]


def test_an_inode_that_is_used_again_is_not_taken_for_the_old_file(tail: Tailing) -> None:
    tail.kill()
    inode = tail.path("app.log").stat().st_ino
    tail.path("app.log").write_text(numbered(5000, 5400))  # the very inode, with other content, longer than before
    assert tail.path("app.log").stat().st_ino == inode
    tail.start()
    assert tail.pass_s(8) == [*lines(0, 100), *lines(5000, 5400)]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_two_rotations_while_the_tail_was_down_are_found_and_finished(tail: Tailing, packed: bool) -> None:
    tail.kill()
    tail.write("app.log", numbered(100, 150))
    shift(tail.path("app.log"))
    tail.write("app.log", numbered(150, 200))
    later(tail, "app.log")
    if packed:
        pack(tail.path("app.log.1"))
    shift(tail.path("app.log"))
    if packed:
        pack(tail.path("app.log.1"))
    tail.write("app.log", numbered(200, 250))
    later(tail, "app.log")
    tail.start()
    assert sorted(tail.pass_s(8)) == sorted(lines(0, 250))
    tail.restart()
    assert len(tail.pass_s(8)) == 250, "what was finished is not read again"


def test_short_files_that_say_the_same_are_all_read(tmp_path: Path) -> None:
    tail = Tailing(tmp_path)
    tail.write("app.log", "started\n")
    tail.pump()
    shift(tail.path("app.log"))
    assert tail.pass_s(8) == ["started"]
    tail.kill()
    for second in (10, 20):
        path = tail.write("app.log", "started\n")
        os.utime(path, (path.stat().st_mtime + second,) * 2)
        if second == 10:
            shift(path)
    tail.start()
    assert tail.pass_s(8) == ["started"] * 3


def test_two_truncations_while_the_tail_was_down_are_found_and_finished(tail: Tailing) -> None:
    tail.kill()
    tail.write("app.log", numbered(100, 150))
    copy_and_truncate(tail.path("app.log"))
    tail.write("app.log", numbered(150, 200))
    later(tail, "app.log")
    copy_and_truncate(tail.path("app.log"))
    later(tail, "app.log.1")
    tail.write("app.log", numbered(200, 250))
    later(tail, "app.log")
    tail.start()
    assert sorted(tail.pass_s(8)) == sorted(lines(0, 250))


def test_older_rotated_files_that_had_been_read_are_not_read_again(tmp_path: Path) -> None:
    for number in (3, 2, 1):
        (tmp_path / f"app.log.{number}").write_text(f"old {number}\n")
        os.utime(tmp_path / f"app.log.{number}", (1_000_000 - number, 1_000_000 - number))
    tail = Tailing(tmp_path)
    tail.write("app.log", numbered(0, 10))
    assert tail.pump() == lines(0, 10)
    tail.kill()
    shift(tail.path("app.log"))
    tail.write("app.log", numbered(10, 20))
    tail.start()
    assert sorted(tail.pass_s(8)) == sorted(lines(0, 20))


def test_two_rotations_between_two_looks_lose_nothing(tail: Tailing) -> None:
    tail.write("app.log", numbered(100, 150))
    shift(tail.path("app.log"))
    tail.write("app.log", numbered(150, 200))
    later(tail, "app.log")
    shift(tail.path("app.log"))
    tail.write("app.log", numbered(200, 250))
    assert sorted(tail.pass_s(8)) == sorted(lines(0, 250))


def test_a_rotated_name_that_matches_is_the_same_file_and_not_a_new_one(tail: Tailing) -> None:
    tail.write("app.log", numbered(100, 110))
    tail.path("app.log").rename(tail.path("app-20251124.log"))
    tail.write("app.log", numbered(110, 120))
    assert sorted(tail.pass_s(20)) == sorted(lines(0, 120))
    tail.write("app-20251124.log", "late\n")
    assert sorted(tail.pass_s(2)) == sorted([*lines(0, 120), "late"])
    tail.restart()
    assert len(tail.pass_s(8)) == 121


@pytest.mark.parametrize("behind", [0, 30], ids=["read to its end", "not read to its end"])
def test_a_copy_whose_name_matches_is_not_read_twice(tail: Tailing, behind: int) -> None:
    """As pm2-logrotate does it: app.log is copied to app__DATE.log, then truncated."""
    tail.write("app.log", numbered(100, 130))
    if not behind:
        tail.pump()
    copy = tail.path("app__2025-11-24_00-00-00.log")
    shutil.copyfile(tail.path("app.log"), copy)
    if not behind:
        tail.pass_s(2)
    os.truncate(tail.path("app.log"), 0)
    tail.write("app.log", numbered(130, 150))
    assert sorted(tail.pass_s(30)) == sorted(lines(0, 150))
    tail.restart()
    assert len(tail.pass_s(30)) == 150


def test_a_copy_that_was_made_before_the_last_lines_were_read_is_not_read_twice(tail: Tailing) -> None:
    shutil.copyfile(tail.path("app.log"), tail.path("app__2025-11-24_00-00-00.log"))
    tail.write("app.log", numbered(100, 130))  # between the copy and the truncation, as it happens
    tail.pump()
    os.truncate(tail.path("app.log"), 0)
    tail.write("app.log", numbered(130, 150))
    assert sorted(tail.pass_s(30)) == sorted(lines(0, 150))


def test_a_packed_copy_is_not_read_twice_and_what_it_has_more_is_read(tail: Tailing) -> None:
    tail.write("app.log", numbered(100, 130))
    tail.path("app__2025-11-24_00-00-00.log.gz").write_bytes(gzip.compress(tail.path("app.log").read_bytes()))
    os.truncate(tail.path("app.log"), 0)
    tail.write("app.log", numbered(130, 150))
    assert sorted(tail.pass_s(8)) == sorted(lines(0, 150))


def test_another_file_with_a_name_like_a_rotated_one_is_read(tail: Tailing) -> None:
    tail.write("app-2.log", "of its own\n")
    assert tail.pass_s(2) == [*lines(0, 100), "of its own"]


def test_a_file_that_was_gone_before_it_was_finished_is_said_and_counted(tail: Tailing) -> None:
    tail.kill()
    tail.path("app.log").unlink()
    tail.write("app.log", numbered(200, 210))
    tail.start()
    assert tail.pass_s(8) == [*lines(0, 100), *lines(200, 210)]
    assert tail.metric("tail_lost_files") == 1


@pytest.mark.parametrize("down", [False, True], ids=["running", "down"])
def test_a_file_that_is_truncated_again_before_anything_of_it_was_read_loses_nothing(tail: Tailing, down: bool) -> None:
    copy_and_truncate(tail.path("app.log"))
    later(tail, "app.log")
    assert tail.pass_s(2) == lines(0, 100)
    if down:
        tail.kill()
    tail.write("app.log", numbered(100, 150))
    copy_and_truncate(tail.path("app.log"))
    later(tail, "app.log.1")
    tail.write("app.log", numbered(150, 200))
    later(tail, "app.log")
    if down:
        tail.start()
    assert sorted(tail.pass_s(12)) == sorted(lines(0, 200))


def test_a_truncated_file_that_has_the_very_length_that_it_had_is_seen(tail: Tailing) -> None:
    tail.path("app.log").write_text(numbered(100, 190))
    later(tail, "app.log")
    size_bytes = tail.path("app.log").stat().st_size
    assert tail.pass_s(2) == [*lines(0, 100), *lines(100, 190)]
    tail.path("app.log").write_text(numbered(200, 290))
    later(tail, "app.log")
    assert tail.path("app.log").stat().st_size == size_bytes
    assert tail.pass_s(12) == [*lines(0, 100), *lines(100, 190), *lines(200, 290)]


def test_an_empty_file_that_is_filled_and_truncated_between_two_looks_loses_nothing(tmp_path: Path) -> None:
    tail = Tailing(tmp_path)
    tail.write("app.log", "")
    tail.pump()
    tail.write("app.log", numbered(0, 50))
    copy_and_truncate(tail.path("app.log"))
    later(tail, "app.log.1")
    tail.write("app.log", numbered(50, 80))
    later(tail, "app.log")
    assert sorted(tail.pass_s(12)) == sorted(lines(0, 80))


@pytest.mark.parametrize("at_start", [True, False], ids=["at the start", "while it runs"])
@pytest.mark.parametrize("after", [0, 300], ids=["empty now", "longer now"])
@pytest.mark.parametrize("truncations", [1, 2])
def test_a_file_that_is_truncated_between_its_finding_and_its_first_read_loses_nothing(
    tmp_path: Path, at_start: bool, after: int, truncations: int
) -> None:
    tail = Tailing(tmp_path)
    tail.pump()
    tail.kill()
    log = tail.write("app.log", numbered(0, 200))
    if not at_start:
        log.rename(tail.path("aside"))
    tail.start()
    if not at_start:
        tail.path("aside").rename(log)
        tail.now_s += 1
        assert tail.round()
    assert tail.reader.followed == 1
    assert tail.rows == []
    written = 200
    for _ in range(truncations):
        copy_and_truncate(log)
        later(tail, "app.log.1")
        if after:
            tail.write("app.log", numbered(written, written + after))
            written += after
        later(tail, "app.log")
    assert sorted(tail.pass_s(8)) == sorted(lines(0, written))
    tail.restart()
    tail.write("app.log", numbered(written, written + 10))
    assert sorted(tail.pass_s(8)) == sorted(lines(0, written + 10)), "its fingerprint is that of what was read"
