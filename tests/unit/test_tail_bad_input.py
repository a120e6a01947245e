"""What a tail finds that is no file of lines: said once, counted, and everything else goes on."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from emp_pipe.receivers import tail_disk, tail_watch
from tests.support.tailing import Tailing, lines, numbered, pack


def said(caplog: pytest.LogCaptureFixture, words: str) -> int:
    return sum(words in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x7fELF\x02\x01\x01" + bytes(range(256)) * 8, "binary"),
        (b"\xff\xfe" + "line\n".encode("utf-16-le"), "utf16"),
        (b"\xfe\xff" + "line\n".encode("utf-16-be"), "utf16"),
        ("a line without a mark\n".encode("utf-16-le") * 10, "utf16"),
    ],
    ids=["binary", "UTF-16 little-endian", "UTF-16 big-endian", "UTF-16 without a mark"],
)
def test_a_file_that_is_no_text_is_refused_once_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, reason: str
) -> None:
    (tmp_path / "bad.log").write_bytes(content)
    tail = Tailing(tmp_path)
    tail.write("app.log", numbered(0, 10))
    tail.pass_s(15)
    tail.write("bad.log", content)
    assert tail.pass_s(15) == lines(0, 10)
    assert tail.metric("tail_refused_files", reason=reason) == 1
    assert said(caplog, "bad.log: not read") == 1
    tail.path("bad.log").write_text("text now\n")
    assert tail.pass_s(15) == [*lines(0, 10), "text now"]


def test_text_in_any_other_coding_is_text(tmp_path: Path) -> None:
    tail = Tailing(tmp_path)
    tail.write("a.log", "日本語のログ\n".encode() * 3)
    tail.write("b.log", "déjà vu, señor\n".encode("latin-1") * 3)
    tail.write("c.log", "\x1b[31mred\x1b[0m 10%\r 20%\r\n" * 3)
    tail.pump()
    assert len(tail.rows) == 9
    assert tail.messages.count("日本語のログ") == 3
    assert tail.metric("tail_refused_files", reason="binary") == 0


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_character_that_is_cut_at_the_edge_of_a_read_is_whole(tmp_path: Path, cut: int) -> None:
    tail = Tailing(tmp_path)
    line = "日本語\n".encode()
    tail.write("app.log", line[:cut])
    tail.pump()
    tail.restart()
    tail.write("app.log", line[cut:])
    assert tail.pump() == ["日本語"]


def test_nul_bytes_are_left_out_and_counted(tmp_path: Path) -> None:
    tail = Tailing(tmp_path)
    tail.write("app.log", b"fir\0st line of them all\nsecond\0\n")
    assert tail.pump() == ["first line of them all", "second"]
    assert tail.metric("tail_nul_bytes") == 2


def test_a_line_without_end_is_split_and_marked_and_holds_little_memory(tmp_path: Path) -> None:
    tail = Tailing(tmp_path, max_line_bytes=1 << 20)
    tail.write("endless.log", b"x" * (3 << 20))
    tail.write("app.log", numbered(0, 10))
    tail.pump()
    tail.restart()
    tail.write("endless.log", b"y" * 10 + b"\nnext\n")
    tail.pump()
    parts = [row for row in tail.rows if "line.part" in row]
    assert "".join(row["message"] for row in parts) == "x" * (3 << 20) + "y" * 10
    assert [(row["line.part"], row["line.continues"]) for row in parts] == [(1, True), (2, True), (3, True), (4, False)][: len(parts)]
    assert [message for message in tail.messages if len(message) < 20][-1] == "next"
    assert {*lines(0, 10)} <= {*tail.messages}
    assert tail.metric("tail_split_records") == len(parts)


def test_a_file_without_permission_is_said_once_and_read_when_it_has_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "secret.log").write_text("now\n")
    tail = Tailing.__new__(Tailing)
    real = os.open

    def refusing(path: Any, *rest: Any, **more: Any) -> int:
        if str(path).endswith("secret.log") and refuses:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, *rest, **more)

    refuses = True
    with pytest.MonkeyPatch.context() as patch:  # root may read everything, so that taking the permission away shows nothing
        patch.setattr(tail_disk.os, "open", refusing)
        tail.__init__(tmp_path)  # type: ignore[misc]
        tail.write("app.log", numbered(0, 10))
        assert tail.pass_s(30) == lines(0, 10)
        assert tail.metric("tail_refused_files", reason="permission") == 1
        assert said(caplog, "no permission") == 1
        refuses = False
        assert tail.pass_s(11) == [*lines(0, 10), "now"]


def test_a_pipe_a_socket_and_a_directory_are_not_opened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / "pipe.log")
    (tmp_path / "folder.log").mkdir()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket.log"))
    tail = Tailing(tmp_path)
    tail.write("app.log", numbered(0, 10))
    assert tail.pass_s(30) == lines(0, 10)
    listener.close()
    assert tail.metric("tail_refused_files", reason="not_regular") == 2
    assert said(caplog, "pipe.log: not read") == said(caplog, "socket.log: not read") == 1


def test_a_directory_that_vanishes_and_comes_back_is_read_again(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    tail = Tailing(tmp_path, include=(str(logs / "*.log"),))
    tail.write("logs/app.log", numbered(0, 10))
    assert tail.pump() == lines(0, 10)
    shutil.rmtree(logs)
    tail.pass_s(10)
    logs.mkdir()
    tail.write("logs/app.log", numbered(10, 20))
    assert tail.pass_s(2) == lines(0, 20), "a directory that is named outright is looked for every second"


def test_a_disk_that_fails_is_said_and_the_file_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tail = Tailing(tmp_path)
    tail.write("app.log", numbered(0, 10))
    tail.pump()
    fails = True

    def failing(descriptor: int, views: list[memoryview], offset: int) -> int:
        if fails:
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor, views, offset)

    real = os.preadv
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tail_disk.os, "preadv", failing)
        tail.write("app.log", numbered(10, 20))
        assert tail.pass_s(3) == lines(0, 10)
        assert said(caplog, "Input/output error") == 1
        fails = False
        assert tail.pass_s(12) == lines(0, 20)


@pytest.mark.parametrize("jump_s", [-86_400, 86_400, 10 * 365 * 86_400], ids=["a day back", "a day on", "ten years on"])
@pytest.mark.parametrize("packs", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("down", [False, True], ids=["running", "down"])
def test_a_clock_that_jumps_repeats_nothing_and_loses_nothing(tmp_path: Path, jump_s: int, packs: bool, down: bool) -> None:
    """Files' times are those of a machine whose clock jumped: before the first start, and between two rotations."""
    tail = Tailing(tmp_path)
    tail.write("app.log", numbered(0, 50))
    assert tail.pump() == lines(0, 50)
    now = tail.path("app.log").stat().st_mtime
    tail.write("app.log", numbered(50, 60))
    os.utime(tail.path("app.log"), (now + jump_s, now + jump_s))
    tail.path("app.log").rename(tail.path("app.log.1"))
    tail.write("app.log", numbered(60, 80))
    assert sorted(tail.pass_s(8)) == sorted(lines(0, 80))
    if packs:
        pack(tail.path("app.log.1"))
    if down:
        tail.kill()
    for old in tail.directory.glob("app.log.1*"):
        old.rename(old.with_name(old.name.replace(".1", ".2")))
    tail.path("app.log").rename(tail.path("app.log.1"))
    tail.write("app.log", numbered(80, 90))
    if down:
        tail.start()
    assert sorted(tail.pass_s(8)) == sorted(lines(0, 90))


def test_a_machine_without_inotify_is_polled_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none_left(**how: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    caplog.set_level("INFO")
    monkeypatch.setattr(tail_watch, "Inotify", none_left)
    tail = Tailing(tmp_path)
    tail.pass_s(3)
    tail.write("app.log", numbered(0, 10))
    assert tail.pass_s(1.25) == lines(0, 10), "a new file is seen within a second"
    tail.write("app.log", numbered(10, 20))
    assert tail.pass_s(1.25) == lines(0, 20)
    assert said(caplog, "inotify cannot be used (Too many open files)") == 1


def test_checkpoints_that_cannot_be_understood_are_an_error_of_their_own() -> None:
    from emp_pipe.receivers.tail_position import FileId, Position, Print, decode, encode

    position = Position(FileId(1, 2), 3, 4, Print(5, "a"), Print(6, "b"), 7)
    assert decode(encode([position])) == [position]
    for value in (b"", b"{", b"[[1]]", b"7", b'["a"]', b'[[1,2,3,4,5,6,7,8,"x"]]'):
        with pytest.raises(ValueError, match=r".+"):
            decode(value)
