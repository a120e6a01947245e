"""The commands that look at a data directory: `tap`, `groups`, and what `dlq` (`cli_dlq.py`) shares with them. A running process is asked
over its control socket; a stopped one's log is opened here, under the directory's lock; one in Redis beside the replicas that use it. Not
here: starting anything (`cli.py`).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from emp_pipe import control, data_dir
from emp_pipe.clock import SystemClock
from emp_pipe.component import Context
from emp_pipe.config import PipelineConfig
from emp_pipe.errors import FACTS, EmpPipeError, ErrorKind, LogError
from emp_pipe.log.protocol import Log
from emp_pipe.registry import Kind, find
from emp_pipe.self_metrics import Metrics

groups_app = typer.Typer(help="The destinations' places in the buffer.", no_args_is_help=True)

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="The data directory of the process (default: the one that runs).")]
FileOption = Annotated[Path | None, typer.Option("--config", "-c", help="The configuration of the process, for its data directory.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
Locate = Callable[[Path | None, Path | None], PipelineConfig]
_locate: list[Locate] = []


def use_locator(locate: Locate) -> None:
    """Say how a data directory or a configuration file leads to a configuration; `cli.py` knows."""
    _locate[:] = [locate]


def config_of(directory: Path | None, file: Path | None) -> PipelineConfig:
    return _locate[0](directory, file)


def _answers(lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        answer = json.loads(line)
        if set(answer) == {"error"}:
            typer.echo(f"emp-pipe: {answer['error']}", err=True)
            sys.exit(1)
        yield answer


def tap(
    component: Annotated[str, typer.Argument(help="A component's id, such as forward or otlp_http/dash0.")],
    directory: DataDir = None,
    config: FileOption = None,
    rows_per_s: Annotated[int, typer.Option("--rows-per-s", help="The most rows shown a second; the others are counted.")] = 1000,
    limit: Annotated[int, typer.Option("--limit", "-n", help="End after so many rows; 0: never.")] = 0,
) -> None:
    """Show the rows that pass a component of the running process, as JSON lines, until Ctrl-C."""
    lines = control.ask(config_of(directory, config).data_dir, {"ask": "tap", "component": component, "rows_per_s": rows_per_s})
    shown = 0
    try:
        for line in lines:
            if line.startswith((b'{"tapped"', b'{"error"', b'{"tap_left_out_rows"')):
                for note in _answers(iter([line])):
                    typer.echo(_tap_note(note), err=True)
                continue
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
            shown += 1
            if limit and shown >= limit:
                return
    except ConnectionError as error:
        raise _not_running(error) from error
    except (KeyboardInterrupt, BrokenPipeError):
        return


def _tap_note(note: dict[str, Any]) -> str:
    if "tapped" in note:
        return f"emp-pipe: rows that pass {note['tapped']} follow"
    return f"emp-pipe: {note.get('tap_left_out_rows', 0):,} rows left out so far (see --rows-per-s)"


def _not_running(error: ConnectionError) -> EmpPipeError:
    return EmpPipeError(ErrorKind.CONFIG_INVALID, place="tap", detail=str(error), advice="start it, or name its --data-dir")


@groups_app.command("list")
def groups_list(directory: DataDir = None, config: FileOption = None, as_json: JsonOption = False) -> None:
    """List the groups: what each still holds, and how its destination fares."""
    settings = config_of(directory, config)
    state = "no emp-pipe runs here" if settings.buffer_type == "redis" else "emp-pipe is stopped"  # others may use a Redis

    async def on_stopped(log: Log) -> AsyncIterator[dict[str, Any]]:
        for row in _list_stopped(log, state):
            yield row

    rows = list(ask_or_open(settings, {"ask": "groups list"}, on_stopped))
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
        return
    if not rows:
        typer.echo("no groups: no exporter has been configured on this data directory yet")
        return
    typer.echo(f"{'GROUP':<28} {'KIND':<12} {'RECORDS HELD':>14} {'BYTES HELD':>14} {'OLDEST (s)':>11}  STATE")
    for row in rows:
        kind = "required" if row["required"] else "best effort"
        state = f"{row['state']}{': ' + row['error'] if row.get('error') else ''}"
        typer.echo(
            f"{row['group']:<28} {kind:<12} {row['held_records']:>14,} {row['held_bytes']:>14,} {row['oldest_age_s']:>11.1f}  {state}"
        )


@groups_app.command("reset")
def groups_reset(
    group: Annotated[str, typer.Argument(help="The group: an exporter's id.")],
    to: Annotated[str, typer.Option("--to", help="oldest: send again all that is held; newest: skip what is held, counted.")] = "newest",
    directory: DataDir = None,
    config: FileOption = None,
) -> None:
    """Move a group to the oldest or the newest block held."""
    if to not in ("oldest", "newest"):
        raise typer.BadParameter("must be oldest or newest", param_hint="--to")

    async def on_stopped(log: Log) -> AsyncIterator[dict[str, Any]]:
        await log.reset_group(_known(log, group), "oldest" if to == "oldest" else "newest")
        yield {"reset": group}

    list(ask_or_open(config_of(directory, config), {"ask": "groups reset", "group": group, "start": to}, on_stopped))
    typer.echo(f"{group}: reset to the {to} block held")


@groups_app.command("drop")
def groups_drop(
    group: Annotated[str, typer.Argument(help="The group that no exporter reads any more.")],
    directory: DataDir = None,
    config: FileOption = None,
) -> None:
    """Forget a group; what only it still holds is given up, counted."""

    async def on_stopped(log: Log) -> AsyncIterator[dict[str, Any]]:
        await log.drop_group(_known(log, group))
        yield {"dropped": group}

    list(ask_or_open(config_of(directory, config), {"ask": "groups drop", "group": group}, on_stopped))
    typer.echo(f"{group}: dropped")


def ask_or_open(
    config: PipelineConfig, question: dict[str, Any], on_stopped: Callable[[Log], AsyncIterator[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    """Yield the running process's answers; without one, do the same on the stopped log, or on the one that others have in Redis.

    Each answer is made when it is asked for: together they may be larger than the memory."""
    try:
        yield from _answers(control.ask(config.data_dir, question))
        return
    except ConnectionError:
        pass
    if config.buffer_type == "redis":  # it is no one directory's; who owns what is settled there
        yield from _one_by_one(_with_log(config, on_stopped))
        return
    if not config.data_dir.is_dir():
        raise EmpPipeError(
            ErrorKind.CONFIG_INVALID, place=str(config.data_dir), detail="there is no such data directory", advice="name it with --data-dir"
        )
    with data_dir.owned(config.data_dir):
        yield from _one_by_one(_with_log(config, on_stopped))


def _one_by_one(answers: AsyncGenerator[dict[str, Any], None]) -> Iterator[dict[str, Any]]:
    async def following() -> dict[str, Any] | None:
        return await anext(answers, None)

    with asyncio.Runner() as runner:
        try:
            while (answer := runner.run(following())) is not None:
                yield answer
        finally:
            runner.run(answers.aclose())  # it closes the log, also where nobody wants the rest


async def _with_log(config: PipelineConfig, work: Callable[[Log], AsyncIterator[dict[str, Any]]]) -> AsyncGenerator[dict[str, Any], None]:
    clock = SystemClock()
    context = Context(clock, Metrics(), config.data_dir.absolute(), config.machine_id, config.role)
    log: Log = find(Kind.BUFFERS, config.buffer_type).component("buffer", config.buffer, context)
    await log.open(None)
    try:
        async for answer in work(log):
            yield answer
    except LogError as error:
        if error.kind is not ErrorKind.LOG_STALE or error.advice != FACTS[error.kind].advice:
            raise
        raise LogError(error.kind, place=error.place, detail=error.detail, advice="run this command where that one runs") from None
    finally:
        await log.close(clock.monotonic_s() + 10.0)


def _list_stopped(log: Log, state: str) -> list[dict[str, Any]]:
    now = SystemClock().unix_nano()
    return [
        {
            "group": group.spec.name,
            "required": group.spec.required,
            "held_records": group.held_records,
            "held_bytes": group.held_bytes,
            "oldest_age_s": (now - group.oldest_append_unix_nano) / 1e9 if group.oldest_append_unix_nano else 0.0,
            "state": state,
            "error": "",
        }
        for group in log.usage().groups
    ]


def _known(log: Log, group: str) -> str:
    known = [found.spec.name for found in log.usage().groups]
    if group not in known:
        raise EmpPipeError(ErrorKind.CONFIG_INVALID, place=group, detail="there is no such group", advice=f"there are {', '.join(known)}")
    return group
