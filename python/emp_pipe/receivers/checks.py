"""The checks receiver: asks services whether they are up, every 30 s. How long each took and what it told are metrics, a change an event.

    probe ─▶ Outcome ─▶ state (down after `down_after` failures, up after one success) ─▶ event `service_down`, `service_up`
                 └─▶ check.up, check.duration, what the service tells (queue, VRAM, Redis' memory)

States are kept in the log as a checkpoint beside the event that tells of a change, so a restart repeats none and misses none. With no
setting it finds the ComfyUIs of this machine. Not here: the probes (`checks_probes.py`, `checks_redis.py`), the base (`readings.py`).
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from emp_pipe.component import Arrival, ComponentConfig, Context, http_address
from emp_pipe.delivery.http_client import Target
from emp_pipe.errors import LogError
from emp_pipe.event_records import event_batch
from emp_pipe.hanging import StillHangs
from emp_pipe.processes import Identity, Processes
from emp_pipe.readings import Attributes, ReadingConfig, ReadingReceiver, Readings
from emp_pipe.receivers.checks_probes import UP, ComfyUiProbe, HttpProbe, Outcome, TcpProbe, outcome_of
from emp_pipe.receivers.checks_redis import RedisPlace, RedisProbe
from emp_pipe.receivers.checks_states import State, States
from emp_pipe.secret import Secret
from emp_pipe.tls import TlsClientConfig, WatchedContext

if TYPE_CHECKING:
    from emp_pipe._core import Batch

_KINDS = ("http", "tcp", "process", "comfyui", "redis")
_MOST_AT_ONCE = 32
_MOST_FOUND = 64
_ASK_AGAIN_S = 1.0
_TAG = "checks"


class CheckConfig(ComponentConfig):
    """One service. Exactly one of `http`, `tcp`, `process`, `comfyui`, `redis` says how it is asked."""

    name: str = Field(min_length=1, max_length=200, description="What the service is called, in metrics and events.")
    http: str | None = Field(None, description="An address that is asked by GET. No redirect is followed.")
    tcp: str | None = Field(None, description="host:port that takes a connection.")
    process: str | None = Field(None, description="A regular expression that is found in the command line of a process that runs.")
    comfyui: str | None = Field(None, description="The address of a ComfyUI: `/system_stats` and `/queue` are asked.")
    redis: str | None = Field(None, description="redis://host:port, rediss://host:port or unix:///path: PING and INFO are asked.")
    service: str = Field("", description="`service.name` of its events; default: `name`.")
    expect_status: tuple[int, ...] = Field((), description="http: the statuses that it may answer with; default: all below 400.")
    expect_body: str | None = Field(None, description="http: a text that stands in the first 64 KiB of its answer.")
    headers: Mapping[str, Secret] = Field(default_factory=dict, description="http, comfyui: sent with every request.")
    username: str = Field("", description="redis: the user.")
    password: Secret | None = Field(None, description="redis: the password.")
    tls: TlsClientConfig | None = Field(None, description="How a server's certificate is checked; default: by the system's authorities.")
    timeout_s: PositiveFloat | None = Field(None, description="The time that an answer may take; default: that of all checks.")
    down_after: PositiveInt = Field(2, description="So many failures one after another make it down.")
    up_after: PositiveInt = Field(1, description="So many successes one after another make it up.")

    @field_validator("http", "comfyui")
    @classmethod
    def _is_an_http_address(cls, value: str | None) -> str | None:
        return None if value is None else http_address(value)

    @field_validator("tcp")
    @classmethod
    def _is_a_host_and_a_port(cls, value: str | None) -> str | None:
        if value is not None:
            _host_port(value)
        return value

    @field_validator("redis")
    @classmethod
    def _is_a_redis(cls, value: str | None) -> str | None:
        if value is not None:
            RedisPlace.parse(value)
        return value

    @field_validator("process")
    @classmethod
    def _pattern_compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"is no regular expression ({error})") from error
        return value

    @model_validator(mode="after")
    def _asked_in_one_way(self) -> CheckConfig:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(_KINDS)}" + (f", not {' and '.join(given)}" if given else ""))
        return self

    @property
    def kind(self) -> str:
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)

    @property
    def target(self) -> str:
        return str(getattr(self, self.kind))


class ChecksConfig(ReadingConfig):
    """Settings of service checks."""

    timeout_s: PositiveFloat = Field(5.0, description="The time that an answer may take.")
    checks: tuple[CheckConfig, ...] = Field((), description="The services.")
    find_comfyui: bool = Field(True, description="Check every ComfyUI that runs here, as `comfyui-<port>`, until it is gone for a day.")

    @field_validator("checks")
    @classmethod
    def _names_are_unique(cls, value: tuple[CheckConfig, ...]) -> tuple[CheckConfig, ...]:
        names = [check.name for check in value]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two checks are called {', '.join(sorted(twice))}")
        return value


class Probe(Protocol):
    """Looks at a service once. Raises OSError, TimeoutError, EOFError or DeliveryError where it cannot be reached."""

    async def look(self, readings: Readings, of: Attributes) -> Outcome: ...


class _ProcessProbe:
    """A process that runs, among those of the last scan."""

    def __init__(self, pattern: str, identities: Mapping[int, Identity]) -> None:
        self._pattern = re.compile(pattern)
        self.identities = identities

    async def look(self, readings: Readings, of: Attributes) -> Outcome:
        found = [pid for pid, each in self.identities.items() if pid != os.getpid() and self._pattern.search(each.command_line)]
        readings.up_down_counter("check.processes", len(found), "{process}", of)
        return UP if found else Outcome("absent", f"no process has {self._pattern.pattern!r} in its command line")


@dataclass(slots=True)
class _Check:
    """A service that is checked, and how."""

    config: CheckConfig
    probe: Probe
    timeout_s: float
    host: str
    port: int

    @property
    def attributes(self) -> dict[str, str | int]:
        of: dict[str, str | int] = {"check.name": self.config.name, "check.type": self.config.kind}
        return of | {"server.address": self.host, "server.port": self.port} if self.port else of | {"server.address": self.host}


class ChecksReceiver(ReadingReceiver):
    """Checks services."""

    scope = "emp_pipe.checks"
    config: ChecksConfig

    def __init__(self, id: str, config: ChecksConfig, context: Context) -> None:
        super().__init__(id, config, context)
        self.config = config
        self._checks: dict[str, _Check] = {}
        self._found: dict[str, _Check] = {}
        self._processes = Processes()
        self._identities: dict[int, Identity] = {}
        self._states: States | None = None
        self._at_once = asyncio.Semaphore(_MOST_AT_ONCE)

    async def begin(self) -> None:
        self._checks = {check.name: self._made(check) for check in self.config.checks}
        for check in self._checks.values():
            self.log.info("checks %s: %s %s", check.config.name, check.config.kind, check.config.target)
        if not self._checks and not self.config.find_comfyui:
            self.log.info("there is nothing to check; list services under `checks`")

    # --- one reading ------------------------------------------------------------------------------------

    async def read(self) -> Sequence[Batch | Arrival]:
        states = await self._restored()
        await self._scan(states)
        checks = {**self._found, **self._checks}
        readings = self.readings()
        looks = await asyncio.gather(*(self._look(check, readings.now_unix_nano) for check in checks.values()))
        records: list[dict[str, Any]] = []
        for check, (outcome, found, took_s) in zip(checks.values(), looks, strict=True):
            readings.take(found)
            readings.gauge("check.up", int(outcome.is_up), "1", check.attributes)
            readings.gauge("check.duration", took_s, "s", check.attributes)
            change = states.take(check.config.name, outcome.is_up, readings.now_unix_nano, check.config.down_after, check.config.up_after)
            if change is not None:
                records.append(_record(check, outcome, change, readings.now_unix_nano, took_s))
                level = self.log.info if outcome.is_up else self.log.warning
                level("%s", records[-1]["message"])
        states.keep(checks)
        batches: list[Batch | Arrival] = []
        now, machine_id = readings.now_unix_nano, self._context.machine_id
        resource = {"machine_id": machine_id} if machine_id else None
        events = event_batch(records, normalizer=self._normalizer, tag=_TAG, now_unix_nano=now, resource=resource)
        if events is not None:
            batches.append(self.arrival(events, {self._checkpoint: states.to_bytes()}))
        try:
            metrics = self.to_batch(readings)
        except ValueError:  # then the events of this look must not be lost with it: the states have changed
            self._failed.inc()
            self.said.exception("metrics", "what was measured is left out")
        else:
            batches += [metrics] if metrics is not None else []
        return batches

    @property
    def _checkpoint(self) -> str:
        return f"{self.id}: states"

    async def _restored(self) -> States:
        """Return the states as they were when they were last told. Waits for a log that cannot be asked: a change would be told again."""
        while self._states is None:
            assert self.intake is not None
            try:
                self._states = States.of_bytes(await self.intake.checkpoint_get(self._checkpoint))
            except LogError as error:
                self.said.warning("states", "the last states cannot be read yet (%s)", error)
                await self._context.clock.sleep(_ASK_AGAIN_S)
        return self._states

    async def _look(self, check: _Check, now_unix_nano: int) -> tuple[Outcome, Readings, float]:
        """Look at a service; whatever it does, this returns in time."""
        found = Readings(now_unix_nano)
        async with self._at_once:
            began_s = self._context.clock.monotonic_s()
            try:
                async with asyncio.timeout(check.timeout_s):
                    outcome = await check.probe.look(found, check.attributes)
            except Exception as error:  # whatever a service makes of its probe, the looks beside it are taken and told
                understood = outcome_of(error, check.timeout_s)
                if understood is None:
                    self.said.exception(check.config.name, "%s: the check failed", check.config.name)
                outcome = understood or Outcome("failed", f"the check failed ({type(error).__name__})")
            took_s = self._context.clock.monotonic_s() - began_s
        (self._failed if outcome.error == "failed" else self._read_well).inc()
        return outcome, found, took_s

    # --- processes --------------------------------------------------------------------------------------

    async def _scan(self, states: States) -> None:
        """See which processes run, where a check asks for them, and which ComfyUIs there are."""
        patterns = [check.probe for check in self._checks.values() if isinstance(check.probe, _ProcessProbe)]
        if not patterns and not self.config.find_comfyui:
            return
        try:
            identities = await self.calls.call("processes", lambda: self._processes.identify(self._processes.scan()), self.config.timeout_s)
        except (OSError, TimeoutError, StillHangs) as error:
            self.said.warning("processes", "processes cannot be listed (%s)", error or type(error).__name__)
            identities = {}
        for probe in patterns:
            probe.identities = identities
        if self.config.find_comfyui:
            self._find_comfyui(identities, states)

    def _find_comfyui(self, identities: Mapping[int, Identity], states: States) -> None:
        """Check each ComfyUI that runs and that no check of the configuration asks; one that is gone too, until it is forgotten."""
        asked = {check.port for check in self._checks.values() if check.config.kind == "comfyui"}
        ports = {identity.comfyui_port for identity in identities.values() if identity.comfyui_port is not None} - asked
        remembered = {int(match[1]) for name in states.names if (match := re.fullmatch(r"comfyui-(\d{1,5})", name))}
        now = self._context.clock.unix_nano()
        for port in sorted(ports | (remembered - asked)):
            name = f"comfyui-{port}"
            if name in self._checks or (port not in ports and states.forget(name, now)):
                self._found.pop(name, None)
            elif name not in self._found and len(self._found) < _MOST_FOUND and 0 < port < 1 << 16:
                self._found[name] = self._made(CheckConfig(name=name, comfyui=f"http://127.0.0.1:{port}"))  # type: ignore[call-arg]
                self.log.info("checks %s: a ComfyUI of this machine", name)

    # --- making -----------------------------------------------------------------------------------------

    def _made(self, config: CheckConfig) -> _Check:
        """Return a check. Raises ConfigError where a secret or a certificate cannot be used."""
        place = f"{self.id}: {config.name}"
        headers = {name: value.reveal(f"{place}: headers.{name}") for name, value in config.headers.items()}
        settings = config.tls or TlsClientConfig.model_validate({})
        parts = urlsplit(config.target if config.kind in ("http", "comfyui", "redis") else "")
        is_tls = parts.scheme in ("https", "rediss")
        tls = WatchedContext.of_client(settings, self._context.clock, f"{place}: tls") if is_tls else None
        host, port = parts.hostname or "", parts.port or (443 if is_tls else 80)
        probe: Probe
        if config.http is not None:
            Target.of(config.http, headers, place)
            probe = HttpProbe(
                config.http, headers, config.expect_status, config.expect_body, self.id, self._context, tls, settings.server_name
            )
        elif config.comfyui is not None:
            Target.of(config.comfyui, headers, place)
            probe = ComfyUiProbe(config.comfyui, headers, self.id, self._context, tls, settings.server_name)
        elif config.redis is not None:
            at = RedisPlace.parse(config.redis)
            host, port = at.path or at.host, at.port
            password = config.password.reveal(f"{place}: password") if config.password is not None else ""
            probe = RedisProbe(at, config.username, password, tls, settings.server_name)
        elif config.tcp is not None:
            host, port = _host_port(config.tcp)
            probe = TcpProbe(host, port)
        else:
            host, port = "", 0
            probe = _ProcessProbe(config.process or "", {})
        return _Check(config, probe, config.timeout_s or self.config.timeout_s, host, port)


def _record(check: _Check, outcome: Outcome, change: State, now_unix_nano: int, took_s: float) -> dict[str, Any]:
    """Return the event that a service has changed its state. `change` is the state that it was in."""
    config = check.config
    name = config.name
    lasted_s = (now_unix_nano - change.since_unix_nano) / 1e9 if change.status != "unknown" else None
    if outcome.is_up:
        message = f"{name} is up" + (f" again, after {lasted_s:.0f} s" if change.status == "down" and lasted_s is not None else "")
    else:
        message = f"{name} is down: {outcome.why}"
    record: dict[str, Any] = {
        "timestamp": now_unix_nano,
        "event_type": "service_up" if outcome.is_up else "service_down",
        "level": "info" if outcome.is_up else "error",
        "message": message,
        "service": config.service or name,
        "health_status": "up" if outcome.is_up else "down",
        "previous_status": change.status,
        "duration_ms": round(took_s * 1000, 3),
        **{key: value for key, value in check.attributes.items() if value != ""},
    }
    if lasted_s is not None:
        record["previous_status_s"] = round(lasted_s, 3)
    if outcome.error:
        record |= {"error": outcome.why, "error_type": outcome.error}
    if outcome.status_code is not None:
        record["http.response.status_code"] = outcome.status_code
    return record


def _host_port(text: str) -> tuple[str, int]:
    """Return what `host:port` says. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ValueError(f"{text!r} is not host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


CONFIG = ChecksConfig
COMPONENT = ChecksReceiver
