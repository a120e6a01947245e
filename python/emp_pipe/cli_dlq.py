"""`emp-pipe dlq list|show|retry|drop`: dead letters of a running process or of a stopped one's log.

JSON lines for programs, a table for people; whatever a sender wrote, a terminal only shows it. Not here: the answers (`dlq.py`), how a
process is asked or its log opened (`cli_admin.py`).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from emp_pipe.cli_admin import DataDir, FileOption, ask_or_open, config_of
from emp_pipe.dlq import DeadLetterDesk, printable
from emp_pipe.log.protocol import DeadReason, Log
from emp_pipe.registry import nearest

app = typer.Typer(help="Dead letters: what was given up, with its bytes.", no_args_is_help=True)

Ids = Annotated[list[int] | None, typer.Argument(help="Ids of letters, as `dlq list` shows them.", show_default=False)]
Component = Annotated[str | None, typer.Option("--component", help="Only those that this destination, deriver or receiver gave up.")]
Reason = Annotated[str | None, typer.Option("--reason", help="Only those with this reason, such as refused or expired.")]
Since = Annotated[str | None, typer.Option("--since", help="Only those given up since: 2h, 30m, 7d ago, or 2026-01-31T12:00 (UTC).")]
Until = Annotated[str | None, typer.Option("--until", help="Only those given up before: written as for --since.")]
After = Annotated[int, typer.Option("--after", help="Only letters with a higher id.")]
All = Annotated[bool, typer.Option("--all", help="All letters, where nothing else says which.")]
Json = Annotated[bool | None, typer.Option("--json/--table", help="JSON lines, or a table. Default: a table on a terminal, else JSON.")]
JsonOnly = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]

_AGO = re.compile(r"(\d{1,9})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_MOST_IDS = 2000


@app.command("list")
def list_letters(
    ids: Ids = None,
    component: Component = None,
    reason: Reason = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="The most letters shown.")] = 100,
    after: After = 0,
    directory: DataDir = None,
    config: FileOption = None,
    as_json: Json = None,
) -> None:
    """List dead letters: who gave them up, when, why, after how many attempts, and how their bytes begin."""
    question = {"ask": "dlq list", **_which(ids, component, reason, since, until), "limit": limit, "after": after}
    letters = _ask(directory, config, question)
    if as_json or (as_json is None and not sys.stdout.isatty()):
        _print_lines(letters)
        return
    shown = 0
    for letter in letters:
        if not shown:
            typer.echo(
                f"{'ID':>8}  {'GIVEN UP (UTC)':<19}  {'COMPONENT':<24}  {'REASON':<15}  {'RECORDS':>8}  {'BYTES':>10}  {'TRIES':>5}  DETAIL"
            )
        typer.echo(_table_line(letter))
        shown += 1
        after = letter["id"]
    if not shown:
        typer.echo("no dead letters" if len(question) == 3 and not question["after"] else "no dead letters like this")
    elif shown == limit:
        typer.echo(f"there may be more: --after {after}")


def _table_line(letter: dict[str, Any]) -> str:
    detail = letter["detail"] if letter["rows"] or not letter["payload_start"] else f"{letter['detail']} | {letter['payload_start']}"
    cells = (
        f"{letter['id']:>8}",
        f"{_utc(letter['time_unix_nano']):<19}",
        f"{_cut(letter['component'], 24):<24}",
        f"{letter['reason']:<15}",
        f"{letter['records']:>8,}",
        f"{letter['payload_bytes']:>10,}",
        f"{letter['attempts']:>5}",
        _cut(detail, 100),
    )
    return "  ".join(cells)


def _cut(text: str, most: int) -> str:
    shown = printable(text[: most + 1])
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def _utc(unix_nano: int) -> str:
    try:
        return datetime.fromtimestamp(unix_nano / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "?"


@app.command("show")
def show(
    ids: Ids = None,
    component: Component = None,
    reason: Reason = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="The most letters shown.")] = 10,
    rows: Annotated[int, typer.Option("--rows", min=1, max=1_000_000, help="The most rows shown of a letter.")] = 1000,
    after: After = 0,
    directory: DataDir = None,
    config: FileOption = None,
) -> None:
    """Show what is in dead letters, as JSON lines: the facts of a letter, then its rows, or its bytes where they are none."""
    question = {"ask": "dlq show", **_which(ids, component, reason, since, until), "limit": limit, "rows": rows, "after": after}
    if not _print_lines(_ask(directory, config, question)):
        typer.echo("emp-pipe: no dead letters like this", err=True)
        sys.exit(1)


@app.command("retry")
def retry(
    ids: Ids = None,
    component: Component = None,
    reason: Reason = None,
    since: Since = None,
    until: Until = None,
    everything: All = False,
    directory: DataDir = None,
    config: FileOption = None,
    as_json: JsonOnly = False,
) -> None:
    """Send rows again to the destination that gave them up, and to no other. Exit code 1 where some could not go back."""
    which = _named(_which(ids, component, reason, since, until), everything)
    total: dict[str, Any] = {}
    for answer in _ask(directory, config, {"ask": "dlq retry", **which}):
        if as_json:
            _print_lines(iter([answer]))
        if "refused" in answer:
            total = answer
        elif not answer["retried"] and not as_json:
            typer.echo(f"emp-pipe: letter {answer['id']} cannot go back: {printable(answer['why'])}", err=True)
    if not total:
        typer.echo("emp-pipe: it ended before it had answered: start it and ask again; what went back does not go back twice", err=True)
        sys.exit(1)
    if not as_json:
        typer.echo(f"{total['retried']:,} dead letters ({total['records']:,} records) went back, {total['refused']:,} could not")
    if total["refused"] or not total["retried"]:
        sys.exit(1)


@app.command("drop")
def drop(
    ids: Ids = None,
    component: Component = None,
    reason: Reason = None,
    since: Since = None,
    until: Until = None,
    everything: All = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    directory: DataDir = None,
    config: FileOption = None,
    as_json: JsonOnly = False,
) -> None:
    """Delete dead letters for good, counted. Asks first."""
    which = _named(_which(ids, component, reason, since, until), everything)
    (count,) = _ask(directory, config, {"ask": "dlq count", **which})
    if not count["letters"]:
        typer.echo("emp-pipe: no dead letters like this", err=True)
        sys.exit(1)
    if not yes:
        what = f"{count['letters']:,} dead letters ({count['records']:,} records, {count['size_bytes']:,} bytes)"
        typer.confirm(f"Delete {what} for good?", abort=True, err=True)
    (answer,) = _ask(directory, config, {"ask": "dlq drop", **which, "up_to": count["up_to"]})
    if as_json:
        _print_lines(iter([answer]))
    else:
        typer.echo(f"{answer['dropped']:,} dead letters ({answer['records']:,} records) were deleted")


def _which(ids: list[int] | None, component: str | None, reason: str | None, since: str | None, until: str | None) -> dict[str, Any]:
    """Return the conditions that were given, as a question has them."""
    known = [str(one) for one in DeadReason]
    if reason is not None and reason not in known:
        like = nearest(reason, known)
        raise typer.BadParameter(f"{'did you mean ' + like + '? ' if like else ''}There are {', '.join(known)}", param_hint="--reason")
    if ids and len(ids) > _MOST_IDS:
        raise typer.BadParameter(f"at most {_MOST_IDS:,} at once", param_hint="IDS")
    now = datetime.now(UTC)
    which = {
        "ids": ids or None,
        "component": component,
        "reason": reason,
        "since_unix_nano": _unix_nano(since, now, "--since"),
        "until_unix_nano": _unix_nano(until, now, "--until"),
    }
    return {key: value for key, value in which.items() if value is not None}


def _unix_nano(text: str | None, now: datetime, option: str) -> int | None:
    if text is None:
        return None
    try:
        if ago := _AGO.fullmatch(text):
            moment = now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        else:
            moment = datetime.fromisoformat(text)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return int(moment.timestamp() * 1e6) * 1000
    except (ValueError, OverflowError):
        raise typer.BadParameter("write 30s, 15m, 2h, 7d (ago), or a time such as 2026-01-31T12:00", param_hint=option) from None


def _named(which: dict[str, Any], everything: bool) -> dict[str, Any]:
    """Refuse to change all letters where nobody said so."""
    if not which and not everything:
        raise typer.BadParameter("say which: ids, --component, --reason, --since, --until, or --all")
    if which and everything:
        raise typer.BadParameter("--all and a condition contradict each other", param_hint="--all")
    return which


def _print_lines(answers: Iterator[dict[str, Any]]) -> int:
    """Print answers as JSON lines; return how many there were."""
    number = 0
    try:
        for answer in answers:
            number += 1
            typer.echo(printable(json.dumps(answer, ensure_ascii=False)))
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stderr.close()  # or the interpreter complains of it once more
        sys.exit(0)
    return number


def _ask(directory: Path | None, file: Path | None, question: dict[str, Any]) -> Iterator[dict[str, Any]]:
    config = config_of(directory, file)

    def on_stopped(log: Log) -> AsyncIterator[dict[str, Any]]:
        return DeadLetterDesk(log, config.dead_letters.redactor()).answer(question)

    return ask_or_open(config, question, on_stopped)
