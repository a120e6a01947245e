"""`emp-pipe test FILE`: the lines under the file's `tests:` through a receiver's parser and the processors, shown and compared with what is
expected of them. Nothing is opened, listened on or sent; processors that derive over time (`tail_sample`, `aggregate`, …) are left out.

Not here: how lines are read (`line_settings.py`), how the file is read (`cli.py`). For users: `docs/formats.md`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from pydantic import Field, TypeAdapter, ValidationError

from emp_pipe.clock import SystemClock
from emp_pipe.component import ComponentConfig, Context, Processor
from emp_pipe.config import PipelineConfig
from emp_pipe.errors import ConfigError, ErrorKind
from emp_pipe.line_settings import LineSettings, make_parser
from emp_pipe.registry import Kind, find, nearest, type_of
from emp_pipe.self_metrics import Metrics

_ABSENT = object()


class SampleTest(ComponentConfig):
    """Lines, and what is expected of their records."""

    name: str = Field(min_length=1, description="Said with the result.")
    receiver: str = Field("", description="Whose settings read the lines; may be left out where one receiver reads lines.")
    lines: str = Field(description="As they stand in a file.")
    expect: tuple[Mapping[str, Any], ...] | None = Field(
        None, description="One map for each record, in order; keys that are not named may be anything, `null`: there is no such key."
    )


def main(config: PipelineConfig, tests: Any, file: Path) -> bool:
    """Run and show all; return whether every expectation was met. Raises ConfigError."""
    samples = _checked(tests, file)
    context = _context(config)
    failed = 0
    for sample in samples:
        records = run(sample, config, context, file)
        faults = compared(records, sample.expect)
        failed += bool(faults)
        verdict = "FAILED" if faults else ("ok" if sample.expect is not None else "shown")
        typer.echo(f"{verdict} {sample.name} ({len(records)} record{'' if len(records) == 1 else 's'})")
        for record in records:
            typer.echo(f"  {json.dumps(record, ensure_ascii=False)}")
        for fault in faults:
            typer.echo(f"  {fault}")
    typer.echo(f"{len(samples)} test{'' if len(samples) == 1 else 's'}, {failed} failed")
    return not failed


def run(sample: SampleTest, config: PipelineConfig, context: Context, file: Path) -> list[dict[str, Any]]:
    """Return the records that the lines become."""
    settings = _settings(sample, config, file)
    assert context.normalizer is not None
    limit_bytes = int(getattr(settings, "max_line_bytes", 1 << 20))
    resource = getattr(settings, "attributes", {})
    parser = make_parser(
        settings, context.normalizer, "test", scope="emp-pipe/test", resource=resource if isinstance(resource, Mapping) else {},
        max_line_bytes=limit_bytes,
    )  # fmt: skip
    now_unix_nano = context.clock.unix_nano()
    parser.feed(sample.lines.encode(), now_unix_nano)
    parser.flush(now_unix_nano, at_end=True)
    batch = parser.take()
    for processor in _processors(config, context):
        if batch is not None:
            batch = processor.process(batch)
    return [] if batch is None else [json.loads(line) for line in batch.to_json_lines().splitlines()]


def compared(records: Sequence[Mapping[str, Any]], expect: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """Return what is not as expected, a sentence each."""
    if expect is None:
        return []
    faults = []
    if len(records) != len(expect):
        faults.append(f"expected {len(expect)} records, got {len(records)}")
    for number, (record, wanted) in enumerate(zip(records, expect, strict=False), start=1):
        for key, value in wanted.items():
            found = record.get(key, _ABSENT)
            if value is None and found is _ABSENT:
                continue
            if found is _ABSENT:
                faults.append(f"record {number}: expected {key} to be {json.dumps(value)}, it is absent")
            elif found != value or isinstance(found, bool) is not isinstance(value, bool):
                faults.append(f"record {number}: expected {key} to be {json.dumps(value)}, it is {json.dumps(found, ensure_ascii=False)}")
    return faults


def _checked(tests: Any, file: Path) -> list[SampleTest]:
    if not tests:
        raise ConfigError(
            ErrorKind.CONFIG_INVALID,
            place=str(file),
            detail="has no tests",
            advice="write sample lines under `tests:`; see docs/formats.md",
        )
    try:
        return TypeAdapter(list[SampleTest]).validate_python(tests)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in ("tests", *problem["loc"]))
        raise ConfigError(ErrorKind.CONFIG_INVALID, place=f"{file}: {where}", detail=problem["msg"]) from None


def _settings(sample: SampleTest, config: PipelineConfig, file: Path) -> LineSettings:
    readers = {id: settings for id, settings in config.receivers.items() if isinstance(settings, LineSettings)}
    if not sample.receiver:
        return next(iter(readers.values())) if len(readers) == 1 else LineSettings.model_validate({})
    if sample.receiver in readers:
        return readers[sample.receiver]
    close = nearest(sample.receiver, readers)
    detail = f"{sample.receiver} reads no lines" if sample.receiver in config.receivers else f"there is no receiver {sample.receiver}"
    raise ConfigError(
        ErrorKind.CONFIG_INVALID, place=f"{file}: test {sample.name}", detail=detail, advice=f"did you mean {close}?" if close else ""
    )


def _context(config: PipelineConfig) -> Context:
    from emp_pipe._core import Normalizer

    rules = config.normalize
    normalizer = Normalizer(stamp=dict(rules.stamp), unfold=rules.unfold, aliases=dict(rules.aliases))
    return Context(SystemClock(), Metrics(), config.data_dir.absolute(), config.machine_id, config.role, normalizer)


def _processors(config: PipelineConfig, context: Context) -> list[Processor]:
    found = []
    for id, settings in config.processors.items():
        component = find(Kind.PROCESSORS, type_of(id)).component
        if hasattr(component, "process"):
            found.append(component(id, settings, context))
    return found
