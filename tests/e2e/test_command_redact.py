"""The real command with the processor `redact`: each of its settings, and every signal, from the socket to the destination."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from emp_pipe.processors.redact import RedactConfig
from tests.support.command import free_port, run, running, until
from tests.support.command_bench import Bench, rows_in, wait_for_rows
from tests.support.dead_letters import log_bytes
from tests.support.otlp_post import post, spans
from tests.support.otlp_samples import rich_metric

GIVEN = {
    "password": "hunter2",
    "pin": "1234",
    "token_type": "bearer-type",
    "session_token": "tok-secret",
    "note": "url postgres://hub:dbpass1@db/x and badge-4711 of a@example.org with apiKey=k3y",
}


def sent(bench: Bench) -> dict[str, str]:
    """Send one record through the process, and return what its destination got of it."""
    from fluent import sender

    client = sender.FluentSender("app", host="127.0.0.1", port=bench.port, timeout=20.0)
    assert client.emit(None, {"message": "hello", **GIVEN}), client.last_error
    client.close()
    (row,) = wait_for_rows(bench.data_dir, 1)
    found: dict[str, str] = {}

    def walk(value: object) -> None:
        for key, item in value.items() if isinstance(value, dict) else ():
            if key in GIVEN:
                found[key] = str(item)
            walk(item)

    walk(row)
    return found


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        (
            "",
            {
                "password": "[redacted]",
                "session_token": "[redacted]",
                "note": "hub:[redacted]@db/x and badge-4711 of a@example.org with apiKey=[redacted]",
            },
        ),
        ("mask: '#'", {"password": "#", "session_token": "#"}),
        ("keys: [pin]", {"password": "[redacted]", "pin": "[redacted]", "session_token": "[redacted]"}),
        (
            "builtin_keys: false, keys: [pin]",
            {"pin": "[redacted]", "note": "hub:[redacted]@db/x and badge-4711 of a@example.org with apiKey=k3y"},
        ),
        ("kept_keys: [session_token]", {"password": "[redacted]", "token_type": "[redacted]"}),
        ("patterns: [email]", {"note": "hub:dbpass1@db/x and badge-4711 of [redacted] with apiKey=k3y"}),
        (
            "patterns: [], extra_patterns: {badge: 'badge-([0-9]+)'}",
            {"note": "hub:dbpass1@db/x and badge-[redacted] of a@example.org with apiKey=k3y"},
        ),
        ("on_error: stop", {"password": "[redacted]"}),
    ],
    ids=["defaults", "mask", "keys", "builtin_keys", "kept_keys", "patterns", "extra_patterns", "on_error"],
)
def test_each_setting_is_at_work_between_socket_and_destination(tmp_path: Path, settings: str, changed: dict[str, str]) -> None:
    bench = Bench(tmp_path)
    bench.write(processors=f"{{redact: {{{settings}}}}}")
    with running(*bench.arguments):
        got = sent(bench)
        for key, value in changed.items():
            assert got[key].endswith(value), f"{key} is {got[key]!r}"
        unchanged = GIVEN.keys() - changed.keys() - {"note", "password", "session_token"}
        assert {key: got[key] for key in unchanged} == {key: GIVEN[key] for key in unchanged}
        if not settings:
            assert bench.metric("emp_pipe_redact_masked_values_total", component="redact", reason="key") == 2
            assert bench.metric("emp_pipe_redact_masked_values_total", reason="url_password") == 1
            assert bench.metric("emp_pipe_redact_masked_values_total", reason="key_value") == 1


def test_every_setting_is_printed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write(processors="{redact: {keys: [pin]}}")
    printed = yaml.safe_load(run("run", str(bench.file), "--print-config").stdout)["processors"]["redact"]
    assert printed.keys() == RedactConfig.model_fields.keys()
    assert printed["keys"] == ["pin"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("extra_patterns: {badge: '('}", "extra_patterns: pattern badge: regex parse error"),
        ("extra_patterns: {badge: 'x*'}", "pattern badge matches the empty text"),
        ("patterns: [jwtt]", "patterns"),
        ("mask: ''", "mask"),
        ("extra_keys: [pin]", "'extra_keys' is not a setting"),
    ],
)
def test_a_setting_that_cannot_be_is_an_error_of_the_configuration(tmp_path: Path, settings: str, said: str) -> None:
    bench = Bench(tmp_path)
    bench.write(processors=f"{{redact: {{{settings}}}}}")
    result = run("validate", str(bench.file))
    assert result.returncode == 2
    assert said.replace("'extra_keys'", "processors.redact.extra_keys") in result.stderr


def test_spans_and_metrics_are_masked_and_nothing_of_a_secret_is_in_the_buffer(tmp_path: Path) -> None:
    from random import Random

    bench, port = Bench(tmp_path), free_port()
    bench.write(
        receivers=f'{{otlp_http: {{listen: "127.0.0.1:{port}"}}}}',
        processors="{redact: }",
        exporters="{file: , error: {kind: unreachable}}",  # its group holds all that came
    )
    given = spans(["GET /x?token=hunter2span", "fine"], Random(1), now_unix_nano=1_790_000_000_000_000_000, db_password="hunter2attribute")
    given.resource_spans[0].scope_spans[0].spans[0].status.message = "refused: password=hunter2status"
    metric = rich_metric("histogram")
    metric.resource_metrics[0].resource.attributes.add(key="api_key").value.string_value = "hunter2metric"
    with running(*bench.arguments):
        assert (post(port, given), post(port, metric)) == (200, 200)

        def written() -> str:
            return "".join(path.read_text() for path in (bench.data_dir / "records").rglob("*.json*"))

        until(lambda: "fine" in written() and "resourceMetrics" in written(), "both signals")
        text = written()
        assert "hunter2" not in text
        assert text.count("[redacted]") >= 5, "name, status, both spans' attributes, the metric's resource"
        assert b"hunter2" not in log_bytes(bench.data_dir)
        assert rows_in(bench.data_dir) == []
        assert json.loads(bench.get("/readyz")[1])["ready"] is True
