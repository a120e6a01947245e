"""What was found, for people: the table at the start, and the commented YAML of `emp-pipe init edge`.

Not here: the looking (`discovery.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from emp_pipe.discovery import Discovery

_WIDEST = 60


def table(found: Discovery) -> list[str]:
    """Return the lines that say what is read and why, and what is left out."""
    lines = []
    if found.findings:
        rows = [("reads", "by", "where", "why"), *((one.what, one.component, one.where, one.why) for one in found.findings)]
        lines += _columns(rows)
    else:
        lines.append("found nothing to read on this machine but what is sent to it")
    if found.left_out:
        lines += _columns([("left out", "why"), *((one.where, one.why) for one in found.left_out)])
    return lines


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [min(max(len(row[column]) for row in rows), _WIDEST) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def as_yaml(found: Discovery) -> str:
    """Return a configuration for `emp-pipe edge --config` that reads what was found, with why beside each part."""
    lines = [
        "# What emp-pipe found on this machine. To use it: emp-pipe edge --config THIS_FILE",
        "# With a file an edge looks for nothing by itself: what is not here is not read. What others send to it (Forward,",
        "# OTLP, HTTP JSON), and where it sends to, is as without a file.",
        "receivers:" if found.findings else "receivers: {}",
    ]
    for finding in found.findings:
        lines += [
            "",
            f"  # {_one_line(finding.what)}: {_one_line(finding.why)}",
            f"  {finding.component}:{'' if finding.settings else ' {}'}",
        ]
        for key, value in finding.settings.items():
            if isinstance(value, list):
                lines += [f"    {key}:", *(f"      - {_scalar(item)}" for item in value)]
            elif isinstance(value, dict):
                lines += [f"    {key}:", *(f"      {inner}: {_scalar(item)}" for inner, item in value.items())]
            else:
                lines.append(f"    {key}: {_scalar(value)}")
    if found.left_out:
        lines += ["", "# Left out:", *(f"#   {_one_line(one.where)}: {_one_line(one.why)}" for one in found.left_out)]
    return "\n".join(lines) + "\n"


def _scalar(value: Any) -> str:
    """Return a value as YAML takes it; `$` would begin a variable."""
    return json.dumps(value.replace("$", "$$"), ensure_ascii=False) if isinstance(value, str) else json.dumps(value)


def _one_line(text: str) -> str:
    """Return a text that cannot end a comment: a file's name may hold anything."""
    return "".join(character if character.isprintable() else "?" for character in text)
