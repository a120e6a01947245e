"""The real command, before anything runs: version, validate, --print-config, and what it says when it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.command import ROOT, environment, free_port, run

VALID = """
http: {listen: "127.0.0.1:0"}
buffer: memory
receivers:
  forward: {listen: "127.0.0.1:0"}
exporters:
  noop:
"""


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return tmp_path / "emp.yaml"


def test_the_version_is_told() -> None:
    from emp_pipe import __version__

    assert run("--version").stdout == f"emp-pipe {__version__}\n"


def test_the_bare_command_shows_what_there_is() -> None:
    result = run()
    for command in ("edge", "central", "run", "validate", "tap", "groups", "dlq"):
        assert command in result.stdout + result.stderr


def test_a_valid_file_is_said_to_be_valid(written: Path) -> None:
    written.write_text(VALID)
    result = run("validate", str(written))
    assert (result.returncode, result.stdout) == (0, f"{written}: ok (1 receiver, 0 processors, 1 exporter)\n")


def test_a_wrong_key_is_named_with_file_line_path_and_the_nearest_key(written: Path) -> None:
    written.write_text(VALID.replace('listen: "127.0.0.1:0"}\nexporters', 'lisetn: "127.0.0.1:0"}\nexporters'))
    for command in ("validate", "run"):
        result = run(command, str(written))
        assert result.returncode == 2
        assert f"emp-pipe: {written}:5: receivers.forward.lisetn is not a setting; did you mean 'listen'?" in result.stderr
        assert "Traceback" not in result.stderr


def test_a_file_that_does_not_exist_is_named() -> None:
    result = run("run", "/nonexistent/emp.yaml")
    assert result.returncode == 2
    assert "/nonexistent/emp.yaml: cannot be read" in result.stderr


def test_a_file_without_receivers_does_not_run(written: Path) -> None:
    written.write_text("exporters: {noop: }\n")
    result = run("run", str(written))
    assert result.returncode == 2
    assert "no receivers are set" in result.stderr


def test_what_a_role_makes_of_traces_and_metrics_is_left_out_where_only_logs_are_taken(written: Path) -> None:
    written.write_text('exporters: {file: false, forward: {endpoint: "central.example:24224"}}\n')
    result = run("edge", "--config", str(written), "--print-config")
    assert result.returncode == 0, result.stderr
    assert list(yaml.safe_load(result.stdout)["processors"]) == ["redact"]
    written.write_text(written.read_text() + "processors: {aggregate: {interval_s: 10}}\n")
    result = run("edge", "--config", str(written), "--print-config")
    assert result.returncode == 2
    assert "aggregate makes metrics, and no exporter takes metrics" in result.stderr


def test_a_wrong_variable_is_named() -> None:
    result = run("edge", "--print-config", PORT="80x")
    assert result.returncode == 2
    assert "environment PORT" in result.stderr


def test_a_single_setting_can_be_set_and_a_wrong_one_is_named() -> None:
    assert "log_level: debug  # --set log_level" in run("edge", "--set", "log_level=debug", "--print-config").stdout
    result = run("edge", "--set", "receivers.forward.lisetn=x", "--print-config")
    assert result.returncode == 2
    assert "--set receivers.forward.lisetn: receivers.forward.lisetn is not a setting; did you mean 'listen'?" in result.stderr


@pytest.mark.parametrize("role", ["edge", "central"])
@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"FLUENTD_HOST": "central.example", "FLUENTD_SHARED_KEY": "hunter2", "MACHINE_ID": "gpu-1"},
        {"DASH0_AUTH_TOKEN": "hunter2", "DASH0_DATASET": "prod", "PORT": "9000"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Bearer%20hunter2"},
        {"EMP_FORWARD_SHARED_KEY": "hunter2", "EMP_TLS_CERT_FILE": "/c", "EMP_TLS_KEY_FILE": "/k", "EMP_HTTP_KEY": "hunter2"},
    ],
    ids=["nothing set", "central", "dash0", "otlp", "listening"],
)
def test_what_a_role_prints_is_a_file_that_is_valid_and_holds_no_secret(role: str, variables: dict[str, str], written: Path) -> None:
    printed = run(role, "--print-config", **variables)
    assert printed.returncode == 0, printed.stderr
    assert "hunter2" not in printed.stdout + printed.stderr
    for name in ("MACHINE_ID", "PORT", "DASH0_DATASET", "FLUENTD_HOST"):
        used = role == "edge" or name != "FLUENTD_HOST"
        assert not used or name not in variables or f"# environment {name}" in printed.stdout
    written.write_text(printed.stdout)
    again = run("validate", str(written), **variables)
    assert again.returncode == 0, again.stderr


def test_a_file_laid_over_a_role_changes_what_it_names_and_nothing_else(written: Path) -> None:
    written.write_text("exporters: {noop: , file: false}\n")
    result = run("edge", "--config", str(written), "--print-config")
    assert "  noop:" in result.stdout
    assert "  file:" not in result.stdout
    assert "127.0.0.1:24224" in result.stdout


@pytest.mark.parametrize("exporters", ["{noop: }", "[noop]", "{noop: , file/mine: }"])
def test_a_file_that_names_a_destination_replaces_the_stand_in_for_none(written: Path, exporters: str) -> None:
    written.write_text(f"exporters: {exporters}\n")
    result = run("edge", "--config", str(written), "--print-config")
    assert "  noop:" in result.stdout, result.stderr
    assert "  file:" not in result.stdout


@pytest.mark.parametrize("text", ["receivers: {forward: {listen: 24225}}", "exporters: {}", "exporters: {file: {max_files: 3}}"])
def test_a_file_that_names_no_other_destination_leaves_records_in_files(written: Path, text: str) -> None:
    written.write_text(text + "\n")
    result = run("edge", "--config", str(written), "--print-config")
    assert "  file:" in result.stdout, result.stderr


def test_both_roles_fit_into_one_file() -> None:
    result = run("run", str(ROOT / "examples" / "both-roles.yaml"), "--print-config", FLUENTD_SHARED_KEY="k", FLUENTD_HOST="c")
    assert result.returncode == 0, result.stderr
    assert "  forward:" in result.stdout
    assert "  forward/secure:" in result.stdout
    assert "forward/central" not in result.stdout


def test_both_roles_in_one_process_send_all_three_signals_where_central_does_and_do_each_step_once() -> None:
    variables = {"FLUENTD_SHARED_KEY": "k", "FLUENTD_HOST": "c", "DASH0_AUTH_TOKEN": "t", "EMP_TRACES_METRICS_TO": "central"}
    printed = run("run", str(ROOT / "examples" / "both-roles.yaml"), "--print-config", **variables).stdout.splitlines()
    section = printed[printed.index("exporters:") :]
    assert [line.split("#")[0].strip() for line in section if line.startswith("  ") and line[2] != " "][:1] == ["otlp_http/dash0:"]
    assert "    only: null" in section
    for name in ("red_metrics", "tail_sample", "aggregate"):
        assert len([line for line in printed if line.startswith(f"  {name}:")]) == 1


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "examples").glob("*.yaml")))
def test_every_example_is_valid(name: str) -> None:
    role = "edge" if name.startswith("edge") else "run"
    result = run("validate", "--role", role, str(ROOT / "examples" / name), PYTHONPATH=str(ROOT / "examples"), DASH0_AUTH_TOKEN="t")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("missing", ["typer", "pydantic", "apsw", "msgpack", "prometheus_client"])
def test_the_base_install_says_what_to_install_whatever_else_is_there(missing: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from emp_pipe.__main__ import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code, "edge"],
        env=environment(PORT=str(free_port()), EMP_DATA_DIR=str(tmp_path), DASH0_AUTH_TOKEN="t"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert 'pip install "emp-pipe[edge]"' in result.stderr
    assert "Traceback" not in result.stderr


def test_the_machine_id_of_a_file_is_the_one_that_records_are_stamped_with(written: Path) -> None:
    written.write_text("machine_id: gpu-of-file\n")
    printed = run("edge", "--config", str(written), "--print-config", MACHINE_ID="gpu-of-environment").stdout
    assert printed.count("machine_id: gpu-of-file") == 2
    assert "gpu-of-environment" not in printed
    written.write_text("machine_id: gpu-of-file\nnormalize: {stamp: {machine_id: other}}\n")
    assert "    machine_id: other" in run("edge", "--config", str(written), "--print-config").stdout


_TO_DASH0 = {"DASH0_AUTH_TOKEN": "t"}
_TO_OTLP = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
_SECURE = {"EMP_FORWARD_SHARED_KEY": "k", "EMP_TLS_CERT_FILE": "/c", "EMP_TLS_KEY_FILE": "/k"}
_VARIABLES: list[tuple[str, str, dict[str, str], str]] = [
    ("MACHINE_ID", "gpu-9", {}, "machine_id: gpu-9"),
    ("WORKER_ID", "worker-9", {}, "worker_id: worker-9"),
    ("SERVICE_NAME", "render", {}, "service.name: render"),
    ("OTEL_SERVICE_NAME", "otel-render", {"SERVICE_NAME": "other"}, "service.name: otel-render"),
    ("SERVICE_TYPE", "comfyui", {}, "service_type: comfyui"),
    ("SERVICE_VERSION", "v1.2", {}, "service.version: v1.2"),
    ("TELEMETRY_ENV", "staging", {"NODE_ENV": "production"}, "deployment.environment.name: staging"),
    ("NODE_ENV", "production", {}, "deployment.environment.name: production"),
    ("OTEL_RESOURCE_ATTRIBUTES", "team=ml,a=b", {}, "team: ml"),
    ("EMP_DATA_DIR", "/elsewhere", {}, "data_dir: /elsewhere"),
    ("RAILWAY_VOLUME_MOUNT_PATH", "/volume", {}, "data_dir: /volume/emp-pipe/edge"),
    ("PORT", "9000", {}, 'listen: "*:9000"'),
    ("HEALTH_PORT", "9001", {}, 'listen: "*:9001"'),
    ("EMP_HTTP_KEY", "secret", {}, "key: ${EMP_HTTP_KEY}"),
    ("EMP_LOG_LEVEL", "warning", {}, "log_level: warning"),
    ("EMP_SELF_METRICS_ENDPOINT", "http://127.0.0.1:4318", {}, "otlp_endpoint: "),
    ("FLUENTD_HOST", "central.example", {}, "central.example:24225"),
    ("FLUENTD_PORT", "24224", {"FLUENTD_HOST": "c"}, "c:24224"),
    ("FLUENTD_SHARED_KEY", "k", {"FLUENTD_HOST": "c"}, "env: FLUENTD_SHARED_KEY"),
    ("FLUENTD_SECURE", "true", {"FLUENTD_HOST": "c", "FLUENTD_PORT": "5"}, "insecure_skip_verify: false"),
    ("EMP_TLS_CA_FILE", "/ca.pem", {"FLUENTD_HOST": "c"}, "ca_file: /ca.pem"),
    ("EMP_TLS_CLIENT_CERT_FILE", "/cc.pem", {"FLUENTD_HOST": "c", "EMP_TLS_CLIENT_KEY_FILE": "/k"}, "cert_file: /cc.pem"),
    ("EMP_TLS_CLIENT_KEY_FILE", "/ck.pem", {"FLUENTD_HOST": "c", "EMP_TLS_CLIENT_CERT_FILE": "/c"}, "key_file: /ck.pem"),
    ("EMP_ALLOW_UNAUTHENTICATED", "true", {"EMP_OTLP_HTTP_LISTEN": "*:4318"}, "allow_unauthenticated: true"),
    ("EMP_FORWARD_SHARED_KEY", "k", {}, 'listen: ["*:24225"]'),
    ("EMP_FORWARD_LISTEN", "127.0.0.1:5", _SECURE, 'listen: ["127.0.0.1:5"]'),
    ("EMP_TLS_CERT_FILE", "/c.pem", _SECURE, "cert_file: /c.pem"),
    ("EMP_TLS_KEY_FILE", "/k.pem", _SECURE, "key_file: /k.pem"),
    ("EMP_TLS_CLIENT_CA_FILE", "/cca.pem", _SECURE, "client_ca_file: /cca.pem"),
    ("EMP_OTLP_TOKEN", "secret", {}, "token: "),
    ("EMP_OTLP_GRPC_LISTEN", "127.0.0.1:5317", {}, 'listen: ["127.0.0.1:5317"]'),
    ("EMP_HTTP_JSON_LISTEN", "127.0.0.1:5880", {}, 'listen: ["127.0.0.1:5880"]'),
    ("EMP_HTTP_JSON_TOKEN", "hunter2", {}, "EMP_HTTP_JSON_TOKEN"),
    ("EMP_OTLP_HTTP_LISTEN", "127.0.0.1:5318", {}, 'listen: ["127.0.0.1:5318"]'),
    ("EMP_TRACES_METRICS_TO", "direct", {"FLUENTD_HOST": "c", "DASH0_AUTH_TOKEN": "t"}, "signals: [traces, metrics]"),
    ("EMP_CENTRAL_OTLP_ENDPOINT", "https://otlp.example", {"FLUENTD_HOST": "c"}, '  endpoint: "https://otlp.example"'),
    ("OTEL_COLLECTOR_ENDPOINT", "http://collector:4318", {}, '  endpoint: "http://collector:4318"'),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, "  otlp_grpc:"),
    (
        "OTEL_EXPORTER_OTLP_INSECURE",
        "true",
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        '  endpoint: "http://c:4317"',
    ),
    ("DASH0_AUTH_TOKEN", "t", {}, "env: DASH0_AUTH_TOKEN"),
    ("DASH0_API_KEY", "t", {}, "env: DASH0_API_KEY"),
    ("DASH0_DATASET", "staging", _TO_DASH0, "dataset: staging"),
    ("DASH0_ENDPOINT", "ingress.example:4317", _TO_DASH0, '  endpoint: "https://ingress.example"'),
    ("DASH0_LOGS_ENDPOINT", "logs.example:4317", _TO_DASH0, '  logs_endpoint: "https://logs.example/v1/logs"'),
    ("DASH0_TRACES_ENDPOINT", "https://t.example/x", _TO_DASH0, '  traces_endpoint: "https://t.example/x"'),
    ("DASH0_METRICS_ENDPOINT", "m.example", _TO_DASH0, '  metrics_endpoint: "https://m.example/v1/metrics"'),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318", {}, '  endpoint: "http://c:4318"'),
    ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://c/l", _TO_OTLP, '  logs_endpoint: "http://c/l"'),
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c/t", _TO_OTLP, '  traces_endpoint: "http://c/t"'),
    ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://c/m", _TO_OTLP, '  metrics_endpoint: "http://c/m"'),
    ("OTEL_EXPORTER_OTLP_HEADERS", "x-a=secret", _TO_OTLP, "x-a: "),
]


# They say how another variable's value is to be used: that one's name is printed.
_NOT_NAMED = ("FLUENTD_SECURE", "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_INSECURE")


@pytest.mark.parametrize(("name", "value", "others", "printed"), _VARIABLES, ids=[each[0] for each in _VARIABLES])
def test_each_variable_sets_what_the_reference_says(name: str, value: str, others: dict[str, str], printed: str) -> None:
    result = run("edge", "--print-config", **(others | {name: value}))
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if printed in line]
    assert lines, result.stdout
    assert any(name in line for line in lines) or name in _NOT_NAMED, lines
    assert "secret" not in result.stdout
    assert f"`{name}`" in (ROOT / "docs" / "configuration.md").read_text()


def test_dash0_is_switched_off_by_its_variable() -> None:
    assert "dash0" not in run("edge", "--print-config", DASH0_AUTH_TOKEN="t", DASH0_ENABLED="false").stdout.lower()


def test_ctrl_c_while_the_command_is_loading_leaves_no_stack_trace(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)\n")
    result = run("validate", "x.yaml", PYTHONPATH=str(tmp_path))
    assert (result.returncode, result.stderr) == (130, "")
