"""The real command with the processors `filter` and `rate_limit`: each of their settings, through the Forward socket."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from fluent import sender

from emp_pipe.processors.filter import FilterConfig
from emp_pipe.processors.rate_limit import RateLimitConfig
from tests.support.command import run, running, until
from tests.support.command_bench import Bench, rows_in

LAST = "the last one"
GIVEN: list[tuple[str, dict[str, Any]]] = [
    ("app.api", {"message": "step", "level": "debug", "kind": "poll", "service_type": "api"}),
    ("app.api", {"message": "GET /health", "level": "info", "kind": "poll", "service_type": "api"}),
    ("app.worker", {"message": "failed", "level": "error", "kind": "job", "service_type": "worker"}),
    ("app.worker", {"message": "no level", "kind": "job", "service_type": "worker"}),
]
ALL = {record["message"] for _, record in GIVEN}


def send(bench: Bench, records: list[tuple[str, dict[str, Any]]]) -> None:
    client = sender.FluentSender("", host="127.0.0.1", port=bench.port, timeout=20.0)
    for tag, record in [*records, ("last", {"message": LAST, "level": "fatal", "kind": "last"})]:
        assert client.emit(tag, record), client.last_error
    client.close()


def kept(bench: Bench) -> list[str]:
    """Return the messages that came through, once the last one has."""
    rows = until(lambda: (found := [row["message"] for row in rows_in(bench.data_dir)]) and LAST in found and found, "the last record")
    return [message for message in rows if message != LAST]


@pytest.mark.parametrize(
    ("settings", "dropped", "rule"),
    [
        ("min_severity: info", {"step"}, "min_severity"),
        ("rules: [{max_severity: info}]", {"step", "GET /health"}, "rules[0]"),
        ("rules: [{min_severity: error, max_severity: error, name: loud}]", {"failed"}, "loud"),
        ("rules: [{tags: ['app.w*'], name: w}]", {"failed", "no level"}, "w"),
        ("rules: [{services: ['work*'], name: w}]", {"failed", "no level"}, "w"),
        ("rules: [{attributes: {kind: 'po*'}, name: polls}]", {"step", "GET /health"}, "polls"),
        ("rules: [{matches: {body: '^GET /h'}, name: health}]", {"GET /health"}, "health"),
        ("rules: [{matches: {kind: '^j.b$'}, name: jobs}]", {"failed", "no level"}, "jobs"),
        ("rules: [{signals: [logs], tags: ['app.*'], name: logs}]", ALL, "logs"),
        ("rules: [{signals: [traces], name: spans}]", set(), "spans"),
        ("rules: [{matches: {body: step}, action: keep}, {tags: ['app.**'], name: others}]", ALL - {"step"}, "others"),
        ("rules: [{tags: ['app.**'], keep_one_in: 4, name: few}]", ALL - {"step"}, "few"),
        ("on_error: stop, min_severity: warn", {"step", "GET /health"}, "min_severity"),
    ],
)
def test_each_setting_of_a_filter_leaves_out_what_it_names_and_counts_it(
    tmp_path: Path, settings: str, dropped: set[str], rule: str
) -> None:
    bench = Bench(tmp_path)
    bench.write(processors=f"{{filter: {{{settings}}}}}")
    with running(*bench.arguments):
        send(bench, GIVEN)
        assert set(kept(bench)) == ALL - dropped
        assert bench.metric("emp_pipe_filter_dropped_records_total", component="filter", reason=rule) == len(dropped)
        assert bench.metric("emp_pipe_processor_dropped_records_total", component="filter") == len(dropped)


@pytest.mark.parametrize(
    ("settings", "passed"),
    [
        ("rules: [{by: all, records_per_s: 0.001, burst: 3, name: it}]", 3),
        ("rules: [{by: tag, records_per_s: 0.001, burst: 3, tags: ['app.**'], name: it}]", 6),
        ("rules: [{by: service, records_per_s: 0.001, burst: 2, name: it}]", 4),
        ("rules: [{by: source, records_per_s: 0.001, burst: 2, name: it}]", 8),
        ("rules: [{by: all, records_per_s: 0.001, burst: 3, spare_errors: false, min_severity: info, max_severity: info, name: it}]", 3),
        ("rules: [{records_per_s: 0.001, name: it}], max_sources: 100", 4),
        ("rules: [{records_per_s: 100, name: it}]", 40),
    ],
)
def test_each_setting_of_a_rate_limit_keeps_so_many_and_counts_the_others(tmp_path: Path, settings: str, passed: int) -> None:
    bench = Bench(tmp_path)
    bench.write(processors=f"{{rate_limit: {{{settings}}}}}")
    records = [
        (f"app.{number % 2}", {"message": f"m{number}", "level": "info", "service_type": ("api", "worker")[number // 2 % 2]})
        for number in range(40)
    ]
    with running(*bench.arguments) as process:
        send(bench, records)
        assert len(kept(bench)) == passed
        assert bench.metric("emp_pipe_rate_limit_dropped_records_total", component="rate_limit", reason="it") == 40 - passed
    said = "\n".join(process.messages())
    counts = re.findall(r"above a limit were left out.*: (\d+) by it;", said)
    assert sum(map(int, counts)) == 40 - passed, said
    assert len(counts) <= 2, f"at once, and the rest at the stop: {said}"


@pytest.mark.parametrize(("kind", "config"), [("filter", FilterConfig), ("rate_limit", RateLimitConfig)])
def test_every_setting_is_printed(tmp_path: Path, kind: str, config: type[Any]) -> None:
    bench = Bench(tmp_path)
    bench.write(processors=f"{{{kind}: }}")
    printed = yaml.safe_load(run("run", str(bench.file), "--print-config").stdout)["processors"][kind]
    assert printed.keys() == config.model_fields.keys()


@pytest.mark.parametrize(
    ("processor", "said"),
    [
        ("filter: {rules: [{max_severity: loud}]}", "loud"),
        ("filter: {rules: [{matches: {body: '('}}]}", "regex"),
        ("filter: {rules: [{keep_one_in: 0}]}", "keep_one_in"),
        ("filter: {rules: [{action: keep, keep_one_in: 5}]}", "keep_one_in"),
        ("filter: {rules: [{tag: x}]}", "tag"),
        ("rate_limit: {rules: [{by: tag}]}", "records_per_s"),
        ("rate_limit: {rules: [{records_per_s: -1}]}", "records_per_s"),
        ("rate_limit: {rules: [{records_per_s: 1, min_severity: loud}]}", "loud"),
    ],
)
def test_a_setting_that_cannot_be_is_said_at_the_start(tmp_path: Path, processor: str, said: str) -> None:
    bench = Bench(tmp_path)
    bench.write(processors=f"{{{processor}}}")
    result = run(*bench.arguments)
    assert result.returncode != 0
    assert said in result.stderr
