"""The environment that `emp-pipe exec` gives an application: where its telemetry goes, who it is, and what instruments it.

A function from the user's environment to the variables that are to be set. What the user has set stays as it is; of lists (resource
attributes, headers) the user's own keys stay. emp-pipe samples, so the application does not: `parentbased_always_on`.
Not here: what the command is (`exec_program.py`), starting it (`cli_exec.py`), what variables mean to emp-pipe itself (`environment.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from emp_pipe import environment as env
from emp_pipe.control_client import ask
from emp_pipe.exec_program import Language, Program, PythonFindings, find_node_register, ignores_python_path, without_injected

HERE = Path(__file__).resolve().parent
PYTHON_SITE = str(HERE / "otel_site")
NODE_FILE = str(HERE / "otel_node.cjs")
PROTOCOLS = ("http/protobuf", "grpc", "http/json")
TOKEN = "EMP_OTLP_TOKEN"
ENDPOINT, PROTOCOL, HEADERS = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_HEADERS"
RESOURCE, SERVICE = "OTEL_RESOURCE_ATTRIBUTES", "OTEL_SERVICE_NAME"
_EDGE_PATIENCE_S = 2.0
_ALWAYS = {
    "OTEL_TRACES_EXPORTER": "otlp",
    "OTEL_METRICS_EXPORTER": "otlp",
    "OTEL_LOGS_EXPORTER": "otlp",
    "OTEL_TRACES_SAMPLER": "parentbased_always_on",
    "OTEL_PROPAGATORS": "tracecontext,baggage",
    "OTEL_METRIC_EXPORT_INTERVAL": "30000",
}
# Node's other detectors ask metadata services that are not there, put a random service.instance.id over ours, or send the command line,
# which may hold secrets. The last one wins.
_NODE_DETECTORS = "container,host,os,env"
# The characters that W3C baggage allows in a value, less those that some SDK reads differently.
_SAFE = "!#$&'()*+-./:<>?@[]^_`{|}~"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the options of the command say; "" where they say nothing."""

    endpoint: str = ""
    protocol: str = ""
    service_name: str = ""
    worker_id: str = ""


@dataclass(frozen=True, slots=True)
class Edge:
    """What the edge that runs on this machine says of itself: addresses by protocol, and the machine_id that it stamps."""

    machine_id: str = ""
    endpoints: Mapping[str, str] = field(default_factory=dict)


def running_edge(environment: env.Environment) -> Edge:
    """Return what the edge that runs on this machine says of itself; an empty answer where none runs or this user may not ask."""
    given, _ = env.first(environment, "EMP_DATA_DIR")
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError, LookupError, RuntimeError):
        data_dir = Path(given) if given else env.default_data_dir(environment, "edge")
        answer = json.loads(next(iter(ask(data_dir, {"ask": "identity"}, _EDGE_PATIENCE_S)), b"{}"))
        endpoints: dict[str, str] = {}
        for id, said in answer.get("listening", {}).items():
            kind = {"otlp_grpc": "grpc", "otlp_http": "http"}.get(id.partition("/")[0])
            if kind and said["addresses"] and not said["tls"]:
                host, port = said["addresses"][0]
                endpoints.setdefault(kind, f"http://{reachable(f'[{host}]:{port}' if ':' in host else f'{host}:{port}')}")
        return Edge(str(answer.get("machine_id", "")), endpoints)
    return Edge()


@dataclass(slots=True)
class Prepared:
    """The variables to set, and what the user should know, a line each."""

    variables: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def prepare(environment: env.Environment, wanted: Wanted, program: Program, edge: Edge, python: PythonFindings | None) -> Prepared:
    """Return what to add to the environment of an application. `python`: what its interpreter said, where it is one."""
    prepared = Prepared()
    _put_destination(prepared, environment, wanted, edge, python)
    _put_identity(prepared, environment, wanted, program, edge)
    for name, value in _ALWAYS.items():
        if not environment.get(name):
            prepared.variables[name] = value
    if program.language is Language.PYTHON and python is not None:
        _instrument_python(prepared, environment, program, python)
    elif program.language is Language.NODE:
        _instrument_node(prepared, environment, program)
    else:
        prepared.notes.append(
            f"{os.path.basename(program.path)} is neither Python nor Node: its environment is set, nothing instruments it "
            "(--language says what a wrapper starts)"
        )
    return prepared


def _put_destination(prepared: Prepared, environment: env.Environment, wanted: Wanted, edge: Edge, python: PythonFindings | None) -> None:
    users, asked = environment.get(ENDPOINT, "").strip(), wanted.protocol or environment.get(PROTOCOL, "").strip()
    if users and not wanted.endpoint:
        prepared.notes.append(f"{ENDPOINT} is set to {_without_password(users)} and stays: telemetry goes there (--endpoint overrides it)")
        protocol = asked or _protocol_of_port(users)
    else:
        protocol = asked or (_protocol_of_port(wanted.endpoint) if wanted.endpoint else "") or _exportable(prepared, python)
        prepared.variables[ENDPOINT] = wanted.endpoint or _endpoint_of(prepared, environment, protocol, edge)
        _put_token(prepared, environment)
    if protocol and (wanted.protocol or not environment.get(PROTOCOL)):
        prepared.variables[PROTOCOL] = protocol


def _exportable(prepared: Prepared, python: PythonFindings | None) -> str:
    """Return the default protocol, or the one for which the application's Python has an exporter when it has none for that."""
    if python is not None and "grpc" in python.parts and "http/protobuf" not in python.parts:
        prepared.notes.append("only the gRPC exporter is installed for this Python: OTLP over gRPC it is")
        return "grpc"
    return "http/protobuf"


def _endpoint_of(prepared: Prepared, environment: env.Environment, protocol: str, edge: Edge) -> str:
    """Return the address of the edge on this machine: what it says itself, else what its environment would say, else the usual port."""
    kind = "grpc" if protocol == "grpc" else "http"
    if found := edge.endpoints.get(kind):
        return found
    usual, variable = env.OTLP_LISTEN[f"otlp_{kind}"]
    listen = env.first(environment, variable)[0].partition(",")[0].strip()
    if listen.lower() == "off" or edge.machine_id:
        prepared.notes.append(f"the edge on this machine has no otlp_{kind} without TLS: nothing will arrive by {protocol}")
    return f"http://{reachable(listen if listen.lower() not in ('', 'off') else usual)}"


def reachable(listen: str) -> str:
    """Return the address by which a listener on `host:port` is reached from its own machine."""
    host, _, port = listen.rpartition(":")
    return f"127.0.0.1:{port}" if host.strip("[]0.:") in ("", "*") else listen


def _protocol_of_port(endpoint: str) -> str:
    try:
        port = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}").port
    except ValueError:
        return ""
    return {4317: "grpc", 4318: "http/protobuf"}.get(port or 0, "")


def _put_token(prepared: Prepared, environment: env.Environment) -> None:
    token, _ = env.first(environment, TOKEN)
    if not token:
        return
    given = environment.get(HEADERS, "").strip().strip(",")
    names = {unquote(item.partition("=")[0]).strip().lower() for item in given.split(",")}
    if "authorization" not in names:
        ours = f"authorization={quote(f'Bearer {token}', safe='')}"
        prepared.variables[HEADERS] = f"{given},{ours}" if given else ours


def _put_identity(prepared: Prepared, environment: env.Environment, wanted: Wanted, program: Program, edge: Edge) -> None:
    users, broken = _users_attributes(environment)
    if broken:
        prepared.notes.append(f"{RESOURCE} has parts that are not key=value, left out: {', '.join(broken)}")
    ours = {key: value for key, (value, _) in env.identity({**environment, RESOURCE: "", SERVICE: ""}).items()}
    if edge.machine_id and not environment.get("MACHINE_ID", "").strip():
        ours["machine_id"] = edge.machine_id
    if wanted.worker_id:
        ours["worker_id"] = wanted.worker_id
    name = wanted.service_name or ours.pop("service.name", "") or ours.get("service_type", "") or _name_of(program)
    ours.pop("service.name", None)
    merged = {**ours, **users}
    merged.setdefault("service.instance.id", instance_id(merged["machine_id"], merged.get("worker_id", "")))
    prepared.variables[RESOURCE] = ",".join(f"{quote(key, safe='._-/')}={quote(value, safe=_SAFE)}" for key, value in merged.items())
    if wanted.service_name or (name and not environment.get(SERVICE) and "service.name" not in users):
        prepared.variables[SERVICE] = name


def _users_attributes(environment: env.Environment) -> tuple[dict[str, str], list[str]]:
    """Return the user's own resource attributes, decoded, and what could not be read: an application starts whatever they are."""
    read: dict[str, str] = {}
    broken: list[str] = []
    for item in environment.get(RESOURCE, "").split(","):
        key, equals, value = item.partition("=")
        if equals and key.strip():
            read[unquote(key.strip())] = unquote(value.strip())
        elif item.strip():
            broken.append(item.strip())
    return read, broken


def instance_id(machine_id: str, worker_id: str) -> str:
    """Return the one name of a worker in the fleet, as the core derives it for records: `machine-gpu-7f3a.worker-001`."""
    own = worker_id.removeprefix(f"{machine_id}-")
    return f"machine-{machine_id}.{own}" if own else f"machine-{machine_id}"


def _name_of(program: Program) -> str:
    """Return a service name for an application that nobody named: that of what is run."""
    stem = os.path.basename(program.script or program.path)
    return re.sub(r"\.(py|pyc|js|cjs|mjs|ts|sh)$", "", stem) or stem


def _instrument_python(prepared: Prepared, environment: env.Environment, program: Program, found: PythonFindings) -> None:
    where = program.interpreter
    variables = prepared.variables
    if found.failure:
        prepared.notes.append(f"{where} {found.failure}: its environment is set, nothing instruments it")
        return
    if flag := ignores_python_path(program.arguments):
        prepared.notes.append(f"Python's {flag} shuts auto-instrumentation out: the environment is set, nothing instruments it")
        return
    if not found.auto_directory:
        prepared.notes.append(
            f"opentelemetry-instrument is not installed for {where}: its environment is set, nothing instruments it "
            "(pip install opentelemetry-distro opentelemetry-exporter-otlp-proto-http)"
        )
        return
    protocol = variables.get(PROTOCOL) or environment.get(PROTOCOL, "")
    lacking = [
        package
        for part, package in (("distro", "opentelemetry-distro"), (protocol, f"an exporter for {protocol}"))
        if part and part not in found.parts
    ]
    if lacking:
        prepared.notes.append(f"{' and '.join(lacking)} not installed for {where}: it will be instrumented and export nothing")
    if "logging" not in found.parts and not environment.get("OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED"):
        variables["OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED"] = "true"  # the SDK's own handler, where no package brings one
    users = without_injected(environment.get("PYTHONPATH", ""), PYTHON_SITE)
    wraps_itself = os.path.basename(program.path) == "opentelemetry-instrument"
    variables["PYTHONPATH"] = os.pathsep.join([*([] if wraps_itself else [found.auto_directory]), PYTHON_SITE, *users])


def _instrument_node(prepared: Prepared, environment: env.Environment, program: Program) -> None:
    if not environment.get("OTEL_NODE_RESOURCE_DETECTORS"):
        prepared.variables["OTEL_NODE_RESOURCE_DETECTORS"] = _NODE_DETECTORS
    register = find_node_register(program.directory, environment)
    users = environment.get("NODE_OPTIONS", "").strip()
    wanted = [NODE_FILE]
    if "auto-instrumentations-node" in users:
        pass  # the user loads it; ours goes behind it
    elif register:
        wanted.insert(0, register)
    else:
        prepared.notes.append(
            f"@opentelemetry/auto-instrumentations-node is not installed in {program.directory}: the environment is set, nothing "
            "instruments it (npm install @opentelemetry/api @opentelemetry/auto-instrumentations-node)"
        )
    ours = [f"--require {_node_word(file)}" for file in wanted if file not in users]
    prepared.variables["NODE_OPTIONS"] = " ".join([*([users] if users else []), *ours])


def _node_word(text: str) -> str:
    """Return a word as NODE_OPTIONS has to hold it."""
    if not re.search(r'[\s"\\]', text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else url


def masked(name: str, value: str) -> str:
    """Return a variable's value for showing: no header's value, no password in an address."""
    if name.endswith("_HEADERS"):
        return ",".join(f"{item.partition('=')[0]}=***" for item in value.split(",") if item)
    return _without_password(value) if name.endswith("_ENDPOINT") else value
