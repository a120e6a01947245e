"""The real command: `only` and `except` of an exporter in YAML decide which records go there, by each thing that they can name."""

from __future__ import annotations

from pathlib import Path

import pytest
from fluent import sender

from tests.support.command import running, until
from tests.support.command_bench import Bench, rows_in

_RECORDS = {
    "app.web": {"message": "web", "level": "error", "service": "api", "region": "eu"},
    "app.job": {"message": "job", "level": "warn", "service": "worker", "region": "us"},
    "sys": {"message": "sys", "level": "debug", "service": "cron", "region": "eu"},
}
_RULES = {
    "signals: [logs]": {"web", "job", "sys"},
    "signals: [traces]": set(),
    "tags: [app.*]": {"web", "job"},
    'tags: ["**"]': {"web", "job", "sys"},
    "tags: [sys, app.job]": {"job", "sys"},
    "min_severity: warn": {"web", "job"},
    "services: [api, cron]": {"web", "sys"},
    "attributes: {region: eu}": {"web", "sys"},
    "attributes: {region: eu}, min_severity: warn": {"web"},
}
"""A rule to what matches it."""


@pytest.mark.parametrize("word", ["only", "except"])
@pytest.mark.parametrize("rule", _RULES)
def test_each_rule_of_a_selection_in_a_file_decides_what_is_sent(tmp_path: Path, rule: str, word: str) -> None:
    bench = Bench(tmp_path)
    bench.write(exporters=f"{{file/all: , file/some: {{{word}: {{{rule}}}}}}}")
    wanted = _RULES[rule] if word == "only" else {"web", "job", "sys"} - _RULES[rule]
    with running(*bench.arguments):
        for tag, record in _RECORDS.items():
            client = sender.FluentSender(tag, host="127.0.0.1", port=bench.port, timeout=20.0)
            assert client.emit(None, record)
            client.close()
        until(lambda: len(rows_in(bench.data_dir / "records" / "all")) == 3, "all records in the one")
        books = {"topic": "logs", "group": "file/some"}

        def ended() -> float:
            return sum(bench.metric("emp_pipe_group_records_total", outcome=outcome, **books) for outcome in ("acked", "skipped"))

        if (word, rule) == ("only", "signals: [traces]"):
            assert bench.groups()["file/some"]["topics"] == ["traces"], "what is never wanted is not even held for it"
        else:
            until(lambda: ended() == 3, "each record delivered or skipped, and in the books")
            assert bench.metric("emp_pipe_group_records_total", outcome="acked", **books) == len(wanted)
    assert {row["message"] for row in rows_in(bench.data_dir / "records" / "some")} == wanted
