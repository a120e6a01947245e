"""`emp-pipe exec`: the command takes exec's place, with an environment by which its telemetry arrives as this worker's."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import PATIENCE_S, ROOT, environment, running
from tests.support.execution import attributes, execute, seen

PYTHON = sys.executable


# --- the command takes exec's place ---------------------------------------------------------------------------------------------


def test_the_exit_code_is_the_applications() -> None:
    assert execute("--", "sh", "-c", "exit 7").returncode == 7


def test_stdin_stdout_and_stderr_are_the_applications() -> None:
    done = execute("--quiet", "--", "sh", "-c", "cat; echo trouble >&2", stdin="one\ntwo\n")
    assert done.stdout == "one\ntwo\n"
    assert done.stderr == "trouble\n"


def test_arguments_reach_the_application_as_they_are() -> None:
    done = execute("--", PYTHON, "-I", "-c", "import sys; print(sys.argv[1:])", "--print", "a b", "--", "$HOME", "*")
    assert done.stdout == "['--print', 'a b', '--', '$HOME', '*']\n"


def test_the_dashes_before_the_command_may_be_left_out() -> None:
    assert execute("--service-name", "a", "sh", "-c", 'echo "$OTEL_SERVICE_NAME"').stdout == "a\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_signal_reaches_the_application_in_the_same_process(number: signal.Signals) -> None:
    code = f"trap 'echo got it; exit 3' {number.name[3:]}; echo $$; while :; do sleep 0.05; done"
    process = subprocess.Popen(
        [PYTHON, "-m", "emp_pipe", "exec", "--", "sh", "-c", code],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        process.send_signal(number)
        out, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    assert (out, process.returncode) == ("got it\n", 3)


def test_an_application_that_a_signal_ends_is_seen_to_end_by_it() -> None:
    assert execute("--", "sh", "-c", "kill -KILL $$").returncode == -signal.SIGKILL


def test_no_signal_is_ignored_that_was_not_before() -> None:
    command = ["grep", "SigIgn", "/proc/self/status"]
    without = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert execute("--", *command).stdout == without.stdout  # Python itself ignores SIGPIPE, and that would be inherited


def test_no_file_descriptor_is_left_open_in_the_application() -> None:
    done = execute("--", "sh", "-c", "ls /proc/self/fd | wc -l")
    assert int(done.stdout) == 4  # stdin, stdout, stderr, and the folder that ls reads


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["no-such-command"], 127, "emp-pipe exec: no-such-command: there is no such command"),
        (["./nothing/here"], 127, "emp-pipe exec: ./nothing/here: there is no such command"),
        (["{plain}"], 126, "emp-pipe exec: {plain}: it is not executable"),
        (["{garbage}"], 126, "emp-pipe exec: {garbage}: Exec format error"),
        ([], 2, "which command?"),
        ([""], 2, "which command?"),
    ],
    ids=["missing", "missing-path", "not-executable", "no-program", "none", "empty"],
)
def test_a_command_that_cannot_be_started_is_named(command: list[str], code: int, said: str, tmp_path: Path) -> None:
    places = {"plain": tmp_path / "plain.txt", "garbage": tmp_path / "garbage"}
    places["plain"].write_text("text")
    places["garbage"].write_bytes(b"\x00\x01\x02")
    places["garbage"].chmod(0o755)
    done = execute("--", *(word.format(**places) for word in command))
    assert done.returncode == code
    assert said.format(**places) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_option_is_named_and_nothing_starts() -> None:
    done = execute("--protocol", "carrier-pigeon", "--", "sh", "-c", "echo started")
    assert (done.returncode, done.stdout) == (2, "")
    assert "carrier-pigeon" in done.stderr


def test_the_help_of_the_whole_command_lists_it() -> None:
    done = subprocess.run(
        [PYTHON, "-m", "emp_pipe", "--help"], env=environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert "exec" in done.stdout
    assert "COMMAND" in execute("--help").stdout


def test_nothing_heavy_is_imported_before_the_application_starts() -> None:
    done = subprocess.run(
        [PYTHON, "-X", "importtime", "-m", "emp_pipe", "exec", "--", "true"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "emp_pipe.cli_exec" in imported
    heavy = {
        "asyncio",
        "pydantic",
        "typer",
        "yaml",
        "aiohttp",
        "grpc",
        "opentelemetry",
        "emp_pipe._core",
        "emp_pipe.cli",
        "emp_pipe.config",
    }
    assert imported & heavy == set()


# --- where telemetry goes -------------------------------------------------------------------------------------------------------


def test_telemetry_goes_to_the_edge_on_this_machine() -> None:
    variables = seen()
    assert variables["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://127.0.0.1:4318"
    assert variables["OTEL_EXPORTER_OTLP_PROTOCOL"] == "http/protobuf"
    assert {variables[f"OTEL_{signal}_EXPORTER"] for signal in ("TRACES", "METRICS", "LOGS")} == {"otlp"}
    assert "OTEL_EXPORTER_OTLP_HEADERS" not in variables


def test_emp_pipe_samples_so_the_application_does_not() -> None:
    variables = seen()
    assert variables["OTEL_TRACES_SAMPLER"] == "parentbased_always_on"
    assert variables["OTEL_PROPAGATORS"] == "tracecontext,baggage"
    assert variables["OTEL_METRIC_EXPORT_INTERVAL"] == "30000"


def test_grpc_by_option_goes_to_its_own_port() -> None:
    variables = seen("--protocol", "grpc")
    assert variables["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://127.0.0.1:4317"
    assert variables["OTEL_EXPORTER_OTLP_PROTOCOL"] == "grpc"


def test_the_protocol_that_the_user_has_set_chooses_the_port() -> None:
    variables = seen(OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
    assert variables["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://127.0.0.1:4317"
    assert variables["OTEL_EXPORTER_OTLP_PROTOCOL"] == "grpc"


@pytest.mark.parametrize(
    ("listen", "endpoint"),
    [
        ("127.0.0.1:14318", "http://127.0.0.1:14318"),
        ("*:14318", "http://127.0.0.1:14318"),
        ("[::]:1", "http://127.0.0.1:1"),
        ("[::1]:1", "http://[::1]:1"),
    ],
)
def test_a_listener_that_the_environment_moves_is_found(listen: str, endpoint: str) -> None:
    assert seen(EMP_OTLP_HTTP_LISTEN=listen)["OTEL_EXPORTER_OTLP_ENDPOINT"] == endpoint


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Run an edge on ports of its own choice; yields what an application has to be told: its data directory."""
    listens = ("receivers.forward.listen", "receivers.otlp_http.listen", "receivers.otlp_grpc.listen", "http.listen")
    settings = [word for name in listens for word in ("--set", f"{name}=127.0.0.1:0")]
    with running("edge", "--data-dir", str(tmp_path), *settings, MACHINE_ID="gpu-edge") as process:
        lines = [json.loads(line) for line in process.lines]
        found = {line["source"]: line["message"].split()[2] for line in lines if line["message"].startswith("listening on ")}
        yield {"EMP_DATA_DIR": str(tmp_path), "otlp_http": found["otlp_http"], "otlp_grpc": found["otlp_grpc"]}


def test_the_edge_that_runs_is_asked_for_its_addresses_and_the_name_of_the_machine(edge: dict[str, str]) -> None:
    http, grpc = edge.pop("otlp_http"), edge.pop("otlp_grpc")
    variables = seen(**edge)
    assert variables["OTEL_EXPORTER_OTLP_ENDPOINT"] == f"http://{http}"
    assert attributes(variables)["machine_id"] == "gpu-edge"
    assert attributes(variables)["service.instance.id"] == "machine-gpu-edge"
    assert seen("--protocol", "grpc", **edge)["OTEL_EXPORTER_OTLP_ENDPOINT"] == f"http://{grpc}"
    assert attributes(seen(MACHINE_ID="mine", **edge))["machine_id"] == "mine"


def test_a_listener_that_the_edge_does_not_have_is_said(tmp_path: Path) -> None:
    arguments = ("edge", "--data-dir", str(tmp_path), "--set", "receivers.forward.listen=127.0.0.1:0", "--set", "http.listen=127.0.0.1:0")
    without = {"EMP_OTLP_HTTP_LISTEN": "off", "EMP_OTLP_GRPC_LISTEN": "127.0.0.1:0"}
    with running(*arguments, **without):
        done = execute("--", "true", EMP_DATA_DIR=str(tmp_path))
    assert "the edge on this machine has no otlp_http without TLS" in done.stderr
    assert done.returncode == 0
    assert "has no otlp_http without TLS" in execute("--", "true", EMP_OTLP_HTTP_LISTEN="off").stderr


@pytest.mark.parametrize("answer", ["", "nonsense\n", "[]\n", '{"listening": {"otlp_http": {}}}\n', '{"listening": 1}\n'])
def test_something_else_in_the_place_of_the_edge_stops_nothing(answer: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "control.sock"))
        other.listen()

        def reply() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer.encode())

        replying = threading.Thread(target=reply)
        replying.start()
        variables = seen(EMP_DATA_DIR=str(tmp_path))
        replying.join(PATIENCE_S)
    assert variables["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://127.0.0.1:4318"


def test_an_edge_that_is_silent_is_not_waited_for_long(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "control.sock"))
        other.listen()
        assert seen(EMP_DATA_DIR=str(tmp_path))["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://127.0.0.1:4318"


def test_an_endpoint_by_option_overrides_all() -> None:
    variables = seen("--endpoint", "http://10.0.0.1:4317", OTEL_EXPORTER_OTLP_ENDPOINT="https://elsewhere.example")
    assert variables["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://10.0.0.1:4317"
    assert variables["OTEL_EXPORTER_OTLP_PROTOCOL"] == "grpc"


def test_the_token_goes_along_percent_encoded_beside_the_users_headers() -> None:
    variables = seen(EMP_OTLP_TOKEN="a b,c=%", OTEL_EXPORTER_OTLP_HEADERS="x-team=gpu")
    assert variables["OTEL_EXPORTER_OTLP_HEADERS"] == "x-team=gpu,authorization=Bearer%20a%20b%2Cc%3D%25"


def test_the_users_own_authorization_stays() -> None:
    variables = seen(EMP_OTLP_TOKEN="ours", OTEL_EXPORTER_OTLP_HEADERS="Authorization=Basic%20xyz")
    assert variables["OTEL_EXPORTER_OTLP_HEADERS"] == "Authorization=Basic%20xyz"


def test_the_edges_token_is_not_sent_to_an_endpoint_of_the_users() -> None:
    done = execute(
        "--", "sh", "-c", "env | grep ^OTEL", EMP_OTLP_TOKEN="hunter2", OTEL_EXPORTER_OTLP_ENDPOINT="https://me:secret@elsewhere.example"
    )
    assert "hunter2" not in done.stdout
    assert "OTEL_EXPORTER_OTLP_ENDPOINT=https://me:secret@elsewhere.example\n" in done.stdout
    assert "OTEL_EXPORTER_OTLP_PROTOCOL" not in done.stdout  # as the application has it: what is there is not known
    assert "OTEL_EXPORTER_OTLP_ENDPOINT is set to https://elsewhere.example and stays" in done.stderr
    assert "secret" not in done.stderr


# --- who it is ------------------------------------------------------------------------------------------------------------------

WORKER = {
    "MACHINE_ID": "gpu-7f3a",
    "WORKER_ID": "worker-001",
    "SERVICE_TYPE": "comfyui",
    "SERVICE_NAME": "render",
    "SERVICE_VERSION": "1.2",
    "TELEMETRY_ENV": "production",
}


def test_machine_worker_and_service_are_resource_attributes() -> None:
    variables = seen(**WORKER)
    assert variables["OTEL_SERVICE_NAME"] == "render"
    assert attributes(variables) == {
        "machine_id": "gpu-7f3a",
        "worker_id": "worker-001",
        "service_type": "comfyui",
        "service.version": "1.2",
        "service.instance.id": "machine-gpu-7f3a.worker-001",
        "host.name": socket.gethostname(),
        "deployment.environment.name": "production",
    }


def test_a_worker_id_that_begins_with_its_machine_gives_the_same_instance() -> None:
    found = attributes(seen(MACHINE_ID="gpu-7f3a", WORKER_ID="gpu-7f3a-worker-001"))
    assert found["worker_id"] == "gpu-7f3a-worker-001"
    assert found["service.instance.id"] == "machine-gpu-7f3a.worker-001"


def test_without_a_worker_the_machine_is_the_instance() -> None:
    found = attributes(seen(MACHINE_ID="gpu-7f3a"))
    assert "worker_id" not in found
    assert found["service.instance.id"] == "machine-gpu-7f3a"


def test_a_machine_that_nobody_named_has_the_name_that_its_edge_makes() -> None:
    shown = subprocess.run(
        [PYTHON, "-m", "emp_pipe", "edge", "--print-config"], env=environment(), capture_output=True, text=True, check=False
    )
    assert f"machine_id: {attributes(seen())['machine_id']} " in shown.stdout


def test_the_users_own_resource_attributes_win_and_the_rest_is_added() -> None:
    found = attributes(seen(OTEL_RESOURCE_ATTRIBUTES="worker_id=mine,team=a%2Cb,deployment.environment.name=test", **WORKER))
    assert found["worker_id"] == "mine"
    assert found["team"] == "a,b"
    assert found["deployment.environment.name"] == "test"
    assert found["machine_id"] == "gpu-7f3a"
    assert found["service.instance.id"] == "machine-gpu-7f3a.mine"


def test_resource_attributes_that_cannot_be_read_are_named_and_stop_nothing() -> None:
    done = execute("--", "sh", "-c", 'echo "$OTEL_RESOURCE_ATTRIBUTES"', OTEL_RESOURCE_ATTRIBUTES="team=a,nonsense,=x", MACHINE_ID="m")
    assert done.returncode == 0
    assert "not key=value, left out: nonsense, =x" in done.stderr
    assert "team=a" in done.stdout
    assert "nonsense" not in done.stdout


@pytest.mark.parametrize("value", ["käse 🧀", "a,b=c", '100% "x"; \\', "tab\there"])
def test_any_value_survives_the_way_through_the_environment(value: str) -> None:
    variables = seen(WORKER_ID=value, MACHINE_ID="m")
    assert attributes(variables)["worker_id"] == value
    assert variables["OTEL_RESOURCE_ATTRIBUTES"].isascii()


def test_a_service_name_that_the_user_has_set_stays() -> None:
    assert seen(OTEL_SERVICE_NAME="mine", **WORKER)["OTEL_SERVICE_NAME"] == "mine"
    variables = seen(OTEL_RESOURCE_ATTRIBUTES="service.name=mine", **WORKER)
    assert "OTEL_SERVICE_NAME" not in variables  # it would win over the attribute
    assert attributes(variables)["service.name"] == "mine"


def test_options_say_who_it_is_over_all_variables() -> None:
    variables = seen("--service-name", "here", "--worker-id", "w-9", OTEL_SERVICE_NAME="there", **WORKER)
    assert variables["OTEL_SERVICE_NAME"] == "here"
    assert attributes(variables)["worker_id"] == "w-9"


def test_a_service_that_nobody_named_is_called_by_its_type_else_by_its_script(tmp_path: Path) -> None:
    script = tmp_path / "thumbnailer.py"
    script.write_text("import os; print(os.environ['OTEL_SERVICE_NAME'])")
    assert execute("--", PYTHON, "-I", script).stdout == "thumbnailer\n"
    assert execute("--", PYTHON, "-I", script, SERVICE_TYPE="api").stdout == "api\n"


@pytest.mark.parametrize(
    "name",
    [
        *("OTEL_TRACES_SAMPLER", "OTEL_PROPAGATORS", "OTEL_METRIC_EXPORT_INTERVAL", "OTEL_EXPORTER_OTLP_PROTOCOL"),
        *("OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER", "OTEL_NODE_RESOURCE_DETECTORS"),
    ],
)
def test_a_variable_that_the_user_has_set_stays(name: str) -> None:
    assert seen(**{name: "grpc"})[name] == "grpc"


# --- showing it -----------------------------------------------------------------------------------------------------------------


def test_print_shows_what_would_be_set_and_starts_nothing(tmp_path: Path) -> None:
    done = execute("--print", "--", "touch", tmp_path / "started", EMP_OTLP_TOKEN="hunter2", **WORKER)
    assert done.returncode == 0
    assert not (tmp_path / "started").exists()
    lines = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert lines["OTEL_SERVICE_NAME"] == "render"
    assert lines["OTEL_EXPORTER_OTLP_HEADERS"] == "authorization=***"
    assert "hunter2" not in done.stdout + done.stderr
    assert "PATH" not in lines


def test_print_shows_nothing_that_differs_from_what_is_set() -> None:
    shown = dict(line.split("=", 1) for line in execute("--print", "--", PYTHON, "-I", **WORKER).stdout.splitlines())
    variables = seen(**WORKER)
    assert {name: variables[name] for name in shown} == shown
    before = environment(**WORKER)
    assert {name for name in variables if variables[name] != before.get(name)} - shown.keys() <= {"LC_CTYPE"}


@pytest.mark.parametrize("language", ["python", "node"])
def test_the_page_about_applications_names_every_variable_that_is_set(language: str) -> None:
    shown = execute("--print", "--language", language, "--", "sh", EMP_OTLP_TOKEN="t", **WORKER).stdout
    page = (ROOT / "docs/applications.md").read_text()
    names = {line.partition("=")[0] for line in shown.splitlines()}
    assert {"OTEL_RESOURCE_ATTRIBUTES", "OTEL_EXPORTER_OTLP_HEADERS"} <= names
    assert {name for name in names if f"`{name}`" not in page} == set()
