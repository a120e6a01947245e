"""The control socket and the data directory's lock."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from emp_pipe import data_dir
from emp_pipe.control import NAME, ControlServer, ask, json_line
from emp_pipe.errors import ConfigError, EmpPipeError, ErrorKind, LogError


async def echo(asked: dict[str, Any]) -> AsyncIterator[bytes]:
    yield json_line(heard=asked["word"])


async def refuse(asked: dict[str, Any]) -> AsyncIterator[bytes]:
    yield json_line(first=1)
    raise EmpPipeError(ErrorKind.CONFIG_INVALID, place="here", detail="no")


def answers(directory: Path, question: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ask(directory, question)]


async def asked(directory: Path, **question: Any) -> list[dict[str, Any]]:
    server = ControlServer(directory, {"echo": echo, "refuse": refuse})
    await server.start()
    try:
        return await asyncio.wait_for(asyncio.to_thread(answers, directory, question), 20)
    finally:
        await server.stop()


async def test_a_question_is_answered(tmp_path: Path) -> None:
    assert await asked(tmp_path, ask="echo", word="hm") == [{"heard": "hm"}]


async def test_a_refusal_is_told_after_what_was_answered(tmp_path: Path) -> None:
    first, last = await asked(tmp_path, ask="refuse")
    assert first == {"first": 1}
    assert last["error"].startswith("here: no; ")


async def test_an_unknown_question_is_refused(tmp_path: Path) -> None:
    (answer,) = await asked(tmp_path, ask="nonsense")
    assert "there is no question 'nonsense'" in answer["error"]


async def test_the_socket_works_in_a_directory_with_a_very_long_path(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100) / ("y" * 100)
    deep.mkdir(parents=True)
    assert await asked(deep, ask="echo", word="hm") == [{"heard": "hm"}]


async def test_the_socket_is_for_its_owner_only_and_gone_after_the_stop(tmp_path: Path) -> None:
    server = ControlServer(tmp_path, {})
    await server.start()
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600
    await server.stop()
    assert not (tmp_path / NAME).exists()


async def test_bytes_that_are_no_question_are_refused_and_the_next_question_is_answered(tmp_path: Path) -> None:
    server = ControlServer(tmp_path, {"echo": echo})
    await server.start()
    for nonsense in (b"\xff\xfe\n", b"[]\n", b"x" * 200_000 + b"\n", b""):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / NAME))
        writer.write(nonsense)
        writer.write_eof()
        assert b"heard" not in await asyncio.wait_for(reader.read(), 20)
        writer.close()
    assert await asyncio.to_thread(answers, tmp_path, {"ask": "echo", "word": "hm"}) == [{"heard": "hm"}]
    await server.stop()


def test_asking_where_nothing_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        list(ask(tmp_path, {"ask": "echo"}))


def test_a_data_directory_belongs_to_one_process(tmp_path: Path) -> None:
    with data_dir.owned(tmp_path / "d"), pytest.raises(LogError) as caught, data_dir.owned(tmp_path / "d"):
        pass
    assert caught.value.kind is ErrorKind.LOG_IN_USE
    assert f"another emp-pipe uses this data directory (process {os.getpid()})" in str(caught.value)


def test_a_data_directory_is_free_again_afterwards(tmp_path: Path) -> None:
    for _ in range(2):
        with data_dir.owned(tmp_path / "d"):
            pass


def test_a_data_directory_that_cannot_be_made_is_an_error_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--data-dir"), data_dir.owned(tmp_path / "file" / "d"):
        pass


async def number(asked: dict[str, Any]) -> AsyncIterator[bytes]:
    yield json_line(number=int(asked["number"]))


@pytest.mark.parametrize("question", [b'{"ask": "number", "number": 1e400}', b'{"ask": "number", "number": [1]}', 60_000 * b"["])
async def test_a_question_that_nobody_understands_is_told_so(tmp_path: Path, question: bytes) -> None:
    server = ControlServer(tmp_path, {"number": number})
    await server.start()
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / NAME))
    writer.write(question + b"\n")
    assert "error" in json.loads(await asyncio.wait_for(reader.readline(), 20))
    writer.close()
    await server.stop()


async def test_who_goes_before_the_answer_is_not_written_to(tmp_path: Path) -> None:
    class Gone:
        def is_closing(self) -> bool:
            return True

        def write(self, data: bytes) -> None:
            raise RuntimeError("the handler is closed")  # as uvloop says it

        async def drain(self) -> None:
            pass

    server = ControlServer(tmp_path, {"echo": echo, "refuse": refuse})
    for question in (b'{"ask": "echo", "word": "hm"}', b'{"ask": "nonsense"}'):
        await server._answer(question, Gone())  # type: ignore[arg-type]  # all that is asked of a writer
