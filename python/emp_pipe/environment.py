"""What environment variables mean: the one place that reads them, each put into a layer of configuration with its name as its place.

`os.environ` is handed in once by the command; nothing else in emp-pipe looks at it. The job queue's own Redis (`HUB_REDIS_URL`,
`REDIS_URL`) appears nowhere here: nothing is ever stored there (`job_queue.py`).
Not here: which of these a role uses (`roles/`).
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from emp_pipe.config_layer import KeyPath, Layer
from emp_pipe.errors import ConfigError, ErrorKind

Environment = Mapping[str, str]
_FALSE = frozenset({"false", "0", "no", "off"})
_TRUE = frozenset({"true", "1", "yes", "on"})
_SIGNALS = ("logs", "traces", "metrics")
_GRPC_PORT = re.compile(r":4317/?$")
OTLP_LISTEN = {"otlp_grpc": ("4317", "EMP_OTLP_GRPC_LISTEN"), "otlp_http": ("4318", "EMP_OTLP_HTTP_LISTEN")}
"""The usual port of each OTLP receiver, and the variable that moves it."""
TRACES_METRICS_PROCESSORS = ("red_metrics", "tail_sample", "aggregate")
"""What becomes of traces and metrics before they leave for a backend."""
STATE_PLACE = "the place for this user's state"
_OFF = "off"
_HERE = frozenset({"localhost", "127.0.0.1", "::1"})

_NO_DESTINATION = "no destination is set"


def first(environment: Environment, *names: str) -> tuple[str, str]:
    """Return the first of the variables that is set and not empty, and its name; ("", "") when none is."""
    for name in names:
        if value := environment.get(name, "").strip():
            return value, name
    return "", ""


def flag(environment: Environment, name: str, default: bool) -> bool:
    """Return a variable that is true or false. Raises ConfigError for anything else."""
    value, _ = first(environment, name)
    word = value.lower()
    if not word:
        return default
    if word not in _TRUE | _FALSE:
        raise ConfigError(
            ErrorKind.CONFIG_INVALID, place=f"environment {name}", detail="is neither true nor false", advice="use true or false"
        )
    return word in _TRUE


def put(layer: Layer, path: KeyPath, environment: Environment, *names: str) -> bool:
    """Put the first set variable at a path; return whether one was set."""
    value, name = first(environment, *names)
    if name:
        layer.put(path, value, variable=name)
    return bool(name)


def pairs(environment: Environment, name: str) -> dict[str, str]:
    """Return a variable of the form `key=value,key=value`, percent-decoded (OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_HEADERS)."""
    result: dict[str, str] = {}
    for item in environment.get(name, "").split(","):
        if not item.strip():
            continue
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(
                ErrorKind.CONFIG_INVALID,
                place=f"environment {name}",
                detail="has a part that is not key=value",
                advice="separate pairs by commas",
            )
        result[unquote(key.strip())] = unquote(value.strip())
    return result


def put_process(layer: Layer, environment: Environment, role: str) -> None:
    """Put what every process has: role, data_dir, machine_id, the HTTP port, log level, own metrics."""
    layer.put(("role",), role)
    if not put(layer, ("data_dir",), environment, "EMP_DATA_DIR"):
        _, name = first(environment, "RAILWAY_VOLUME_MOUNT_PATH")
        place = f"environment {name}" if name else STATE_PLACE
        layer.put(("data_dir",), str(default_data_dir(environment, role)), place=place)
    if not put(layer, ("machine_id",), environment, "MACHINE_ID"):
        layer.put(("machine_id",), machine_id(environment), place="made of what identifies this machine")
    port, name = first(environment, "PORT", "HEALTH_PORT")
    if port:
        layer.put(("http", "listen"), f"*:{port}", place=f"environment {name}")
    put(layer, ("http", "key"), environment, "EMP_HTTP_KEY")
    _put_allowance(layer, ("http",), environment)
    put(layer, ("log_level",), environment, "EMP_LOG_LEVEL")
    put(layer, ("self_metrics", "otlp_endpoint"), environment, "EMP_SELF_METRICS_ENDPOINT")


def identity(environment: Environment) -> dict[str, tuple[str, str]]:
    """Return the resource attributes that say who this machine, worker and service are, each with the variable that it came from.

    What has no variable ("") is made of this machine. OTEL_RESOURCE_ATTRIBUTES is among the variables."""
    found: dict[str, tuple[str, str]] = {}

    def add(key: str, *names: str) -> None:
        value, name = first(environment, *names)
        if name:
            found[key] = (value, name)

    add("service.name", "SERVICE_NAME")
    add("service_type", "SERVICE_TYPE")
    add("service.version", "SERVICE_VERSION")
    add("deployment.environment.name", "TELEMETRY_ENV", "NODE_ENV")
    for key, value in pairs(environment, "OTEL_RESOURCE_ATTRIBUTES").items():
        found[key] = (value, "OTEL_RESOURCE_ATTRIBUTES")
    add("service.name", "OTEL_SERVICE_NAME")
    add("machine_id", "MACHINE_ID")
    add("worker_id", "WORKER_ID")
    found.setdefault("machine_id", (machine_id(environment), ""))
    found.setdefault("host.name", (socket.gethostname(), ""))
    return found


def put_stamp(layer: Layer, environment: Environment) -> None:
    """Put the resource attributes that an edge adds where a record lacks them: who this machine, worker and service are."""
    for key, (value, name) in identity(environment).items():
        layer.put(("normalize", "stamp", key), value, variable=name, place="" if name else "this machine")


def put_secure_forward(layer: Layer, environment: Environment, *, key_name: str) -> None:
    """Put the Forward receiver for other machines: TLS with a shared key on 24225."""
    at = ("receivers", "forward/secure")
    if not put(layer, (*at, "listen"), environment, "EMP_FORWARD_LISTEN"):
        layer.put((*at, "listen"), "*:24225", place=f"environment {key_name}")
    layer.put((*at, "shared_key", "env"), key_name, place=f"environment {key_name}")
    if put(layer, (*at, "tls", "cert_file"), environment, "EMP_TLS_CERT_FILE"):
        put(layer, (*at, "tls", "key_file"), environment, "EMP_TLS_KEY_FILE")
        put(layer, (*at, "tls", "client_ca_file"), environment, "EMP_TLS_CLIENT_CA_FILE")


def put_otlp_receivers(layer: Layer, environment: Environment, role: str) -> None:
    """Put the OTLP receivers: on loopback, or for everybody who has the token where one is set. `off` leaves one out."""
    token, token_name = first(environment, "EMP_OTLP_TOKEN")
    for type_name, (port, variable) in OTLP_LISTEN.items():
        at = ("receivers", type_name)
        listen, name = first(environment, variable)
        if listen.lower() == _OFF:
            continue
        layer.put((*at, "listen"), listen or port, place=f"environment {name}" if name else f"role {role}")
        _put_allowance(layer, at, environment)
        if token:
            layer.put((*at, "token", "env"), token_name, place=f"environment {token_name}")
        # Services on an edge speak plainly to their own machine; central is reached over a network.
        if token and role == "central" and put(layer, (*at, "tls", "cert_file"), environment, "EMP_TLS_CERT_FILE"):
            put(layer, (*at, "tls", "key_file"), environment, "EMP_TLS_KEY_FILE")


def put_http_json(layer: Layer, environment: Environment, role: str) -> None:
    """Put the HTTP JSON receiver: on loopback, or for everybody who has its token where one is set. `off` leaves it out."""
    at = ("receivers", "http_json")
    listen, name = first(environment, "EMP_HTTP_JSON_LISTEN")
    if listen.lower() == _OFF:
        return
    layer.put((*at, "listen"), listen or "9880", place=f"environment {name}" if name else f"role {role}")
    _put_allowance(layer, at, environment)
    if first(environment, "EMP_HTTP_JSON_TOKEN")[0]:
        layer.put((*at, "token", "env"), "EMP_HTTP_JSON_TOKEN", place="environment EMP_HTTP_JSON_TOKEN")
        if role == "central" and put(layer, (*at, "tls", "cert_file"), environment, "EMP_TLS_CERT_FILE"):
            put(layer, (*at, "tls", "key_file"), environment, "EMP_TLS_KEY_FILE")


def _put_allowance(layer: Layer, at: KeyPath, environment: Environment) -> None:
    if flag(environment, "EMP_ALLOW_UNAUTHENTICATED", False):
        layer.put((*at, "allow_unauthenticated"), True, place="environment EMP_ALLOW_UNAUTHENTICATED")


def traces_metrics_to(environment: Environment) -> tuple[str, str]:
    """Return where an edge's traces and metrics go, "direct" or "central", and what says so. Raises ConfigError."""
    asked, name = first(environment, "EMP_TRACES_METRICS_TO")
    asked, place = asked.lower(), f"environment {name}"
    central, _ = first(environment, "FLUENTD_HOST")
    if asked not in ("", "auto", "direct", "central"):
        detail = "must be auto, direct or central"
        raise ConfigError(ErrorKind.CONFIG_INVALID, place=place, detail=detail, advice="leave it out for auto")
    if asked == "central" and not central:
        detail = "is central, and no central is named"
        raise ConfigError(ErrorKind.CONFIG_INVALID, place=place, detail=detail, advice="set FLUENTD_HOST, or leave it out")
    if asked == "direct" and central and not dash0_token(environment)[0] and not otlp_destination(environment)[0]:
        raise ConfigError(
            ErrorKind.CONFIG_INVALID,
            place=place,
            detail="is direct, and nothing says where to",
            advice="set DASH0_AUTH_TOKEN or OTEL_EXPORTER_OTLP_ENDPOINT, or leave it out: then they go by central",
        )
    if asked in ("direct", "central"):
        return asked, place
    token_name = dash0_token(environment)[1]
    if central and not token_name:
        return "central", "no credentials for Dash0 here"
    return "direct", f"environment {token_name}" if central else "no FLUENTD_HOST"


def put_processors(layer: Layer, names: Iterable[str], place: str) -> None:
    """Put processors with their defaults, for the exporters that take what they make."""
    for name in names:
        layer.put(("processors", name), {}, place=place)
        layer.offered.add(("processors", name))


def put_only(layer: Layer, exporter: str, signals: Sequence[str], place: str) -> None:
    """Let an exporter take some signals and leave the others to others."""
    layer.put(("exporters", exporter, "only", "signals"), list(signals), place=place)


def put_central(layer: Layer, environment: Environment) -> bool:
    """Put an exporter to central where FLUENTD_HOST is set; return whether it was."""
    host, name = first(environment, "FLUENTD_HOST")
    if not host:
        return False
    at = ("exporters", "forward/central")
    port, port_name = first(environment, "FLUENTD_PORT")
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    layer.put((*at, "endpoint"), f"{host}:{port or 24225}", place=f"environment {f'{name}, {port_name}' if port else name}")
    if first(environment, "FLUENTD_SHARED_KEY")[0]:
        layer.put((*at, "shared_key", "env"), "FLUENTD_SHARED_KEY", place="environment FLUENTD_SHARED_KEY")
    if central_speaks_tls(environment):
        layer.put((*at, "tls"), {}, place="environment FLUENTD_SECURE")
        put(layer, (*at, "tls", "ca_file"), environment, "EMP_TLS_CA_FILE")
        put_client_certificate(layer, (*at, "tls"), environment)
    return True


def put_client_certificate(layer: Layer, at: KeyPath, environment: Environment) -> None:
    """Put what this machine shows to a central that asks for its certificate."""
    put(layer, (*at, "cert_file"), environment, "EMP_TLS_CLIENT_CERT_FILE")
    put(layer, (*at, "key_file"), environment, "EMP_TLS_CLIENT_KEY_FILE")


def put_central_otlp(layer: Layer, environment: Environment) -> str:
    """Put an exporter of traces and metrics to central by OTLP, for a central that is given no shared key; return its id.

    Without a key two emp-pipes do not recognise each other, and Forward itself knows logs alone."""
    exporter = "otlp_http/central"
    at = ("exporters", exporter)
    if not put(layer, (*at, "endpoint"), environment, "EMP_CENTRAL_OTLP_ENDPOINT"):
        host, name = first(environment, "FLUENTD_HOST")
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        scheme = "https" if central_speaks_tls(environment) else "http"
        layer.put((*at, "endpoint"), f"{scheme}://{host}:{OTLP_LISTEN['otlp_http'][0]}", place=f"environment {name}")
    if first(environment, "EMP_OTLP_TOKEN")[0]:
        layer.put((*at, "token", "env"), "EMP_OTLP_TOKEN", place="environment EMP_OTLP_TOKEN")
    put(layer, (*at, "tls", "ca_file"), environment, "EMP_TLS_CA_FILE")
    put_client_certificate(layer, (*at, "tls"), environment)
    return exporter


def central_speaks_tls(environment: Environment) -> bool:
    return flag(environment, "FLUENTD_SECURE", first(environment, "FLUENTD_PORT")[0] in ("", "24225"))


def dash0_token(environment: Environment) -> tuple[str, str]:
    """Return Dash0's token and the variable that has it; ("", "") where none is set or DASH0_ENABLED says false."""
    token, name = first(environment, "DASH0_AUTH_TOKEN", "DASH0_API_KEY")
    return (token, name) if token and flag(environment, "DASH0_ENABLED", True) else ("", "")


def put_dash0(layer: Layer, environment: Environment) -> bool:
    """Put an exporter to Dash0 where a token is set and DASH0_ENABLED does not say false; return whether it was."""
    token, name = dash0_token(environment)
    if not token:
        return False
    at = ("exporters", "otlp_http/dash0")
    layer.put((*at, "preset"), "dash0", place=f"environment {name}")
    layer.put((*at, "token", "env"), name, place=f"environment {name}")
    put(layer, (*at, "dataset"), environment, "DASH0_DATASET")
    for setting, variable in (
        ("endpoint", "DASH0_ENDPOINT"),
        *((f"{signal}_endpoint", f"DASH0_{signal.upper()}_ENDPOINT") for signal in _SIGNALS),
    ):
        endpoint, name = first(environment, variable)
        if endpoint:
            layer.put(
                (*at, setting),
                as_http_endpoint(endpoint, "" if setting == "endpoint" else f"/v1/{setting[:-9]}"),
                place=f"environment {name}",
            )
    return True


def otlp_destination(environment: Environment) -> tuple[str, str]:
    """Return the OTLP endpoint to send to and its variable; ("", "") where none is set.

    The same variables tell applications where to send: one that names this machine's own OTLP port means emp-pipe itself."""
    for variable in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_COLLECTOR_ENDPOINT"):
        endpoint, name = first(environment, variable)
        if endpoint and not _is_own_listener(endpoint, environment):
            return endpoint, name
    return "", ""


def _is_own_listener(endpoint: str, environment: Environment) -> bool:
    try:
        parts = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return False
    own = {(first(environment, variable)[0] or usual).rpartition(":")[2] for usual, variable in OTLP_LISTEN.values()}
    return host in _HERE and str(port) in own


def put_otlp(layer: Layer, environment: Environment) -> str:
    """Put an exporter to OTEL_EXPORTER_OTLP_ENDPOINT where it is set; return its id, "" where none is."""
    endpoint, name = otlp_destination(environment)
    if not endpoint:
        return ""
    by_grpc = first(environment, "OTEL_EXPORTER_OTLP_PROTOCOL")[0].lower() == "grpc"
    exporter = "otlp_grpc" if by_grpc else "otlp_http"
    at = ("exporters", exporter)
    layer.put((*at, "endpoint"), _with_scheme(endpoint, environment, by_grpc and name.startswith("OTEL_EXPORTER")), variable=name)
    for signal in _SIGNALS:
        of_signal, name = first(environment, f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
        if of_signal:
            layer.put((*at, f"{signal}_endpoint"), _with_scheme(of_signal, environment, by_grpc), variable=name)
    for key, value in pairs(environment, "OTEL_EXPORTER_OTLP_HEADERS").items():
        layer.put((*at, "headers", key), value, place="environment OTEL_EXPORTER_OTLP_HEADERS")
    return exporter


def _with_scheme(endpoint: str, environment: Environment, asks_for_tls: bool) -> str:
    """Return an address as a URL. One without a scheme means TLS for gRPC unless OTEL_EXPORTER_OTLP_INSECURE is set, as in SDKs."""
    if "://" in endpoint:
        return endpoint
    return f"{'https' if asks_for_tls and not flag(environment, 'OTEL_EXPORTER_OTLP_INSECURE', False) else 'http'}://{endpoint}"


def put_file(layer: Layer) -> None:
    """Put the exporter that keeps records under the data directory: what a role does when no destination is set."""
    layer.put(("exporters", "file"), {}, place=_NO_DESTINATION)


def names_a_destination(written: Layer) -> bool:
    """Whether a file says where records go; then a role's stand-in has nothing to stand in for."""
    exporters = written.values.get("exporters")
    if isinstance(exporters, dict):
        return any(settings is not False for settings in exporters.values())
    return bool(exporters)


def drop_file(layer: Layer) -> None:
    """Take `put_file` back."""
    if layer.place(("exporters", "file")) == _NO_DESTINATION:
        layer.values["exporters"].pop("file", None)


def as_http_endpoint(endpoint: str, path: str = "") -> str:
    """Return an OTLP/HTTP address for a destination that may be given as people give it for gRPC: `host:4317`.

    `path` is what a full address must have and one for gRPC lacks."""
    if "://" not in endpoint:
        endpoint = f"https://{endpoint}"
    base = _GRPC_PORT.sub("", endpoint)
    return base + path if not urlsplit(base).path.strip("/") else base


def machine_id(environment: Environment, machine_id_files: Iterable[str] = ("/etc/machine-id", "/var/lib/dbus/machine-id")) -> str:
    """Return `{type}-{identifier}` for this machine, the same after every restart: MACHINE_ID, else what the platform or the host knows."""
    given, _ = first(environment, "MACHINE_ID")
    if given:
        return given
    replica, _ = first(environment, "RAILWAY_REPLICA_ID", "RAILWAY_SERVICE_ID")
    if replica:
        return f"railway-{replica[:12]}"
    identity = socket.gethostname()
    for name in machine_id_files:
        try:
            text = Path(name).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text:
            identity = f"{text}@{identity}"
            break
    kind = "gpu" if Path("/proc/driver/nvidia").exists() else "host"
    return f"{kind}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def default_data_dir(environment: Environment, role: str) -> Path:
    """Return where a role keeps its data when nobody says where: on the platform's volume, else in the place for the user's state."""
    volume, _ = first(environment, "RAILWAY_VOLUME_MOUNT_PATH")
    return (Path(volume) if volume else _state_dir(environment)) / "emp-pipe" / role


def _state_dir(environment: Environment) -> Path:
    given, _ = first(environment, "STATE_DIRECTORY", "XDG_STATE_HOME")
    if given:
        return Path(given)
    return Path("/var/lib") if os.geteuid() == 0 else Path("~/.local/state").expanduser()
