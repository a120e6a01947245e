"""The configuration: what can be set, how a layer of values becomes a checked `PipelineConfig`, and how it is printed.

Every component's settings are a frozen pydantic model beside the component; a misspelt key is an error that names file, line, key and the
nearest valid key. Checking opens no socket and no file: a secret that is kept in a file is read when its component starts.
Not here: YAML and its lines (`config_layer.py`), what a role expands to (`roles/`). Read next: `pipeline.py`.
"""

from __future__ import annotations

import ipaddress
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ByteSize, Field, PositiveFloat, PositiveInt, SecretStr, SerializeAsAny, ValidationError, field_validator
from pydantic_core import ErrorDetails

from emp_pipe.component import ComponentConfig, http_address
from emp_pipe.config_layer import KeyPath, Layer, path_text
from emp_pipe.config_wiring import problems
from emp_pipe.errors import ConfigError, ErrorKind
from emp_pipe.redaction import DeadLettersConfig
from emp_pipe.registry import Kind, find, nearest, type_of
from emp_pipe.secret import Secret
from emp_pipe.tls import TlsServerConfig

COMPONENT_SECTIONS = frozenset({"receivers", "processors", "exporters"})
MASK = "***"
_URL_PASSWORD = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_Model = TypeVar("_Model", bound=BaseModel)


class ListenAddress(NamedTuple):
    """`*:8080` (host None: all interfaces), `127.0.0.1:8080`, `[::1]:8080`."""

    host: str | None
    port: int

    @property
    def is_local(self) -> bool:
        if self.host is None:
            return False
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_listen(text: str) -> ListenAddress:
    """Return the address that `http.listen` names. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError(f"{text!r} is not an address; write host:port, or *:port for all interfaces")
    host = host.removeprefix("[").removesuffix("]")
    return ListenAddress(None if host in ("*", "") else host, int(port))


class HttpConfig(ComponentConfig):
    """The one HTTP port: `/healthz`, `/readyz`, `/metrics`."""

    enabled: bool = Field(True, description="Serve the HTTP port at all.")
    listen: str = Field(
        "127.0.0.1:8080", description="Address and port. On an address that others reach, all but the two health paths need `key`."
    )
    key: Secret | None = Field(None, description="Asked for as `Authorization: Bearer <key>` on all paths but the two health paths.")
    allow_unauthenticated: bool = Field(
        False,
        description="INSECURE: serve everything without a key on any address: whoever reaches it sees metrics and state.",
    )
    tls: TlsServerConfig | None = Field(None, description="Speak TLS; with client_ca_file, mutual TLS.")
    max_connections: PositiveInt = Field(64, description="The most connections open at once.")
    max_connections_per_address: PositiveInt = Field(32, description="The most connections open at once from one address.")
    max_refusals_per_address_per_s: PositiveFloat = Field(
        10.0, description="The most wrong keys of one address a second; over it, for seconds, it gets nothing but the two health paths."
    )
    max_head_bytes: Annotated[int, Field(ge=1024)] = Field(8192, description="The longest request line with its headers.")
    timeout_s: PositiveFloat = Field(
        30.0, description="The time that TLS, a request, or taking its answer may take, each; also the silence between two requests."
    )

    @field_validator("listen")
    @classmethod
    def _listen_is_an_address(cls, value: str) -> str:
        parse_listen(value)
        return value


class NormalizeConfig(ComponentConfig):
    """How what senders write becomes the standard schema; the same for every receiver."""

    unfold: bool = Field(True, description="Unfold a JSON or logfmt object that stands inside `message` or `log`.")
    aliases: Mapping[str, str] = Field(default_factory=dict, description="Further names of standard fields: `jobID: job_id`.")
    stamp: Mapping[str, str] = Field(default_factory=dict, description="Resource attributes that every resource gets that lacks them.")


class ShutdownConfig(ComponentConfig):
    """How emp-pipe stops."""

    deadline_s: PositiveFloat = Field(
        20.0, description="From SIGTERM to exit. What is not delivered by then stays in the buffer for the next start."
    )


class SelfMetricsConfig(ComponentConfig):
    """emp-pipe's own metrics as OTLP, beside `/metrics`. They go straight to the endpoint, never through the pipeline."""

    otlp_endpoint: str | None = Field(None, description="Such as http://127.0.0.1:4318; `/v1/metrics` is appended. Unset: not sent.")
    headers: Mapping[str, Secret] = Field(default_factory=dict, description="Sent with every request, such as Authorization.")
    interval_s: PositiveFloat = Field(30.0, description="The time between two exports.")

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_an_http_address(cls, value: str | None) -> str | None:
        return None if value is None else http_address(value)


class BufferChoice(ComponentConfig):
    """Stands for the buffer's own settings until its type is known; `type` is sqlite, redis or memory."""

    type: str = "sqlite"


class PipelineConfig(ComponentConfig):
    """All that one process does. Component ids are `type` or `type/name`."""

    role: Literal["edge", "central", "run"] = Field("run", description="Said in handshakes and in `/readyz`.")
    data_dir: Path = Field(Path("emp-pipe-data"), description="Where the buffer and the `file` exporter write.")
    machine_id: str = Field("", description="`{type}-{identifier}`. Default: MACHINE_ID, else made of what identifies this machine.")
    http: HttpConfig = Field(HttpConfig.model_validate({}), description="The HTTP port.")
    buffer_type: str = Field("sqlite", description="sqlite, redis or memory.")
    buffer: SerializeAsAny[ComponentConfig] = Field(
        description="The durable log: `sqlite`, `memory`, or a map with `type`, which is how `redis` gets its `url`."
    )
    receivers: Mapping[str, SerializeAsAny[ComponentConfig]] = Field(default_factory=dict, description="Where records come from.")
    processors: Mapping[str, SerializeAsAny[ComponentConfig]] = Field(
        default_factory=dict,
        description="What every batch passes before the buffer, in this order; those that derive (tail_sample, red_metrics, "
        "aggregate) read the buffer and write to it, in whatever order they stand here.",
    )
    exporters: Mapping[str, SerializeAsAny[ComponentConfig]] = Field(default_factory=dict, description="Where records go.")
    normalize: NormalizeConfig = Field(NormalizeConfig.model_validate({}), description="How records become the standard schema.")
    shutdown: ShutdownConfig = Field(ShutdownConfig.model_validate({}), description="How emp-pipe stops.")
    self_metrics: SelfMetricsConfig = Field(SelfMetricsConfig.model_validate({}), description="emp-pipe's own metrics as OTLP.")
    dead_letters: DeadLettersConfig = Field(DeadLettersConfig.model_validate({}), description="What is given up, and its secrets.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least level of emp-pipe's own log lines.")

    @field_validator("machine_id")
    @classmethod
    def _machine_id_is_one_word(cls, value: str) -> str:
        if value and (not value.isprintable() or " " in value or len(value) > 200):
            raise ValueError("must be one word of at most 200 characters, such as gpu-7f3a")
        return value


class ConfigErrors(ConfigError):
    """Several errors of one configuration; the first stands for all, `errors` lists them."""

    def __init__(self, errors: list[ConfigError]) -> None:
        first = errors[0]
        super().__init__(first.kind, place=first.place, detail=first.detail, advice=first.advice)
        self.errors = errors

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


def build(layer: Layer) -> PipelineConfig:
    """Return the checked configuration that a layer describes.

    Raises ConfigErrors with all that is wrong, each with file, line, key path, and the nearest valid key of an unknown one."""
    errors: list[ConfigError] = []
    values = dict(layer.values)
    for section in sorted(COMPONENT_SECTIONS):
        if section in values:
            values[section] = _components(Kind(section), values[section], layer, errors)
    values["buffer"], values["buffer_type"] = _buffer(values.get("buffer"), layer, errors)
    for section in ("http", "normalize", "shutdown", "self_metrics", "dead_letters"):
        if section in values and values[section] is None:
            values[section] = {}
    if "buffer_type" in layer.values:
        errors.append(_unknown_key(layer, ("buffer_type",), _top_level_keys()))
    result = _validated(PipelineConfig, values, (), layer, errors)
    if result is not None and not errors:
        found = list(problems(result.receivers, result.processors, result.exporters))
        needless = {problem.path[1] for problem in found if problem.path in layer.offered}
        if needless:
            kept = {name: settings for name, settings in result.processors.items() if name not in needless}
            result = result.model_copy(update={"processors": kept})
        errors += [
            ConfigError(ErrorKind.CONFIG_INVALID, place=layer.place(problem.path), detail=problem.detail, advice=problem.advice)
            for problem in found
            if problem.path not in layer.offered
        ]
    if errors or result is None:
        raise ConfigErrors(errors)
    return result


def _components(kind: Kind, section: Any, layer: Layer, errors: list[ConfigError]) -> dict[str, ComponentConfig]:
    if section is None:
        return {}
    if isinstance(section, list) and all(isinstance(item, str) for item in section):
        section = dict.fromkeys(section)
    if not isinstance(section, dict):
        errors.append(_invalid(layer, (kind,), f"{kind} must be a map of component ids, such as `{kind}: {{forward: }}`"))
        return {}
    configs: dict[str, ComponentConfig] = {}
    for component_id, settings in section.items():
        path: KeyPath = (kind, component_id)
        _, slash, name = component_id.partition("/")
        if slash and (not name or not name.isprintable() or " " in name):
            errors.append(_invalid(layer, path, f"{path_text(path)}: a component id is `type` or `type/name`"))
            continue
        found = _component(kind, type_of(component_id), settings, path, layer, errors)
        if found is not None:
            configs[component_id] = found
    return configs


def _component(kind: Kind, type_name: str, settings: Any, path: KeyPath, layer: Layer, errors: list[ConfigError]) -> ComponentConfig | None:
    try:
        component_type = find(kind, type_name)
    except ConfigError as error:
        place = layer.place((*path, "type"))  # a buffer's type is a setting of its own
        errors.append(ConfigError(error.kind, place=place, detail=f"{path_text(path)}: {error.detail}", advice=error.advice))
        return None
    if settings is None:
        settings = {}
    if not isinstance(settings, dict):
        errors.append(_invalid(layer, path, f"{path_text(path)} must be a map of settings, or empty for the defaults"))
        return None
    return _validated(component_type.config, settings, path, layer, errors)


def _buffer(section: Any, layer: Layer, errors: list[ConfigError]) -> tuple[ComponentConfig, str]:
    settings = {"type": section} if isinstance(section, str) else section if section is not None else {}
    if not isinstance(settings, dict):
        errors.append(_invalid(layer, ("buffer",), "buffer must be a type (sqlite, memory) or a map with `type` (sqlite, redis, memory)"))
        settings = {}
    type_name = str(settings.get("type", "sqlite"))
    config = _component(Kind.BUFFERS, type_name, {k: v for k, v in settings.items() if k != "type"}, ("buffer",), layer, errors)
    return config or BufferChoice(), type_name


def _validated(model: type[_Model], values: Any, path: KeyPath, layer: Layer, errors: list[ConfigError]) -> _Model | None:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        for problem in found:
            at = problem["loc"]
            if problem["type"] == "too_short" and any(len(one["loc"]) > len(at) and one["loc"][: len(at)] == at for one in found):
                continue  # it is too short because what is in it is wrong, which is said
            where = (*path, *_known_part(problem["loc"], path, layer))
            if problem["type"] == "extra_forbidden":
                valid = _top_level_keys() if not where[:-1] else _keys_at(model, problem["loc"][:-1])
                errors.append(_unknown_key(layer, where, valid))
            elif problem["type"] == "missing":
                errors.append(_invalid(layer, where, f"{path_text(where)} must be set"))
            else:
                errors.append(_invalid(layer, where, f"{path_text(where)}: {_message(problem)}"))
        return None


def _message(problem: ErrorDetails) -> str:
    """Return pydantic's words in those of a YAML file."""
    message = problem["msg"].removeprefix("Value error, ").replace(" after validation", "")
    message = re.sub(r"\b([Tt])uple\b", lambda found: "List" if found[1] == "T" else "list", message)
    if problem["type"] == "string_type" and isinstance(problem["input"], bool | int | float):
        message += " (YAML reads on, off, yes, no and numbers as something else: write it in quotes)"
    return f"{message[:1].lower()}{message[1:]}"


def _known_part(loc: tuple[str | int, ...], path: KeyPath, layer: Layer) -> tuple[str | int, ...]:
    """Return pydantic's location without the names of union members and validators, which are no keys of the file."""
    kept: list[str | int] = []
    for index, key in enumerate(loc):
        if index == 0 or (index == len(loc) - 1 and not _is_member_name(key)) or (*path, *kept, key) in layer.places:
            kept.append(key)
    return tuple(kept)


def _is_member_name(key: str | int) -> bool:
    return isinstance(key, str) and any(mark in key for mark in "[](")


def _keys_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """Return the keys that are valid where `loc` leads to."""
    at: type[BaseModel] | None = model
    for key in loc:
        if at is None:
            return []
        by_key = {field.alias or name: field.annotation for name, field in at.model_fields.items()}
        at = _model_in(by_key[str(key)]) if str(key) in by_key else at
    return [field.alias or name for name, field in at.model_fields.items()] if at is not None else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, Annotated, tuple, list, dict, Mapping):
        return next((found for argument in get_args(annotation) if (found := _model_in(argument)) is not None), None)
    return next((found for argument in get_args(annotation) if (found := _model_in(argument)) is not None), None)


def _top_level_keys() -> list[str]:
    return [name for name in PipelineConfig.model_fields if name != "buffer_type"]


def _unknown_key(layer: Layer, where: KeyPath, valid: list[str]) -> ConfigError:
    like = nearest(str(where[-1]), valid)
    suggestion = f"did you mean {like!r}? " if like else ""
    return ConfigError(
        ErrorKind.CONFIG_UNKNOWN_KEY,
        place=layer.place(where),
        detail=f"{path_text(where)} is not a setting",
        advice=f"{suggestion}{'V' if like else 'v'}alid here: {', '.join(sorted(valid))}" if valid else "",
        key=path_text(where),
    )


def _invalid(layer: Layer, where: KeyPath, detail: str) -> ConfigError:
    return ConfigError(ErrorKind.CONFIG_INVALID, place=layer.place(where), detail=detail, key=path_text(where))


def revealed_secrets(value: Any, place: str) -> tuple[int, ...]:
    """Return what stands for the secrets that settings name, as they are now where they are kept: it differs after a rotation.

    Raises ConfigError that names the setting, `place` and the path below it, where a secret cannot be had."""
    if isinstance(value, Secret):
        return (hash(value.reveal(place)),)
    if isinstance(value, BaseModel):
        return tuple(part for name in type(value).model_fields for part in revealed_secrets(getattr(value, name), f"{place}.{name}"))
    if isinstance(value, Mapping):
        return tuple(part for name, item in value.items() for part in revealed_secrets(item, f"{place}.{name}"))
    if isinstance(value, (tuple, list)):
        return tuple(part for index, item in enumerate(value) for part in revealed_secrets(item, f"{place}[{index}]"))
    return ()


def explicit(config: PipelineConfig) -> Iterator[tuple[KeyPath, Any]]:
    """Yield every setting with its path, defaults included, secrets masked; maps and models are walked, empty ones yielded as {}."""

    def walk(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
        if isinstance(value, BaseModel) and not isinstance(value, Secret):
            items = {field.alias or name: getattr(value, name) for name, field in type(value).model_fields.items()}
            if isinstance(value, PipelineConfig):
                items.pop("buffer_type")
            if path == ("buffer",):
                items = {"type": config.buffer_type, **items}
        elif isinstance(value, Mapping):
            items = {str(key): item for key, item in value.items()}
        else:
            yield path, _plain(value)
            return
        if not items:
            yield path, {}
        for key, item in items.items():
            yield from walk(item, (*path, key))

    yield from walk(config, ())


def _plain(value: Any) -> Any:
    if isinstance(value, Secret):
        return MASK if value.value is not None else {"env": value.env} if value.env else {"file": str(value.file)}
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, ByteSize):
        return int(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return _URL_PASSWORD.sub(MASK, str(value))
