"""What the Redis that holds the log promises: asked of every server at start and again now and then, and said in one sentence.

A Redis that may throw away what was acknowledged (`maxmemory-policy` other than `noeviction`), or that is too old, is refused. Everything
else that weakens the promise is said: in the durability sentence, as a warning, and in the fields of `/readyz`. What the server does not
let us ask (managed ones forbid CONFIG GET) is said too, and can be stated by hand: `buffer.stated`.

Not here: how to reach it (`redis_client.py`), what is stored (`redis.py`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveInt

from emp_pipe.buffers.redis_client import RedisClientConfig, RedisLogError, Trouble, log_error
from emp_pipe.component import ComponentConfig
from emp_pipe.errors import ConfigError, ErrorKind

if TYPE_CHECKING:
    from emp_pipe.buffers.redis_client import Client

_LEAST_VERSION = (6, 2)
_WAITAOF_VERSION = (7, 2)
_SMALL_BYTES = 64 << 20
_ASKED = ("appendonly", "appendfsync", "no-appendfsync-on-rewrite", "save", "maxmemory", "maxmemory-policy")


class Persistence(StrEnum):
    """What reaches Redis' disk, and when."""

    ALWAYS = "always"
    """Append-only file, synced before Redis answers."""
    EVERYSEC = "everysec"
    """Append-only file, synced about every second."""
    NO = "no"
    """Append-only file, synced when the kernel likes."""
    SNAPSHOTS = "snapshots"
    """RDB alone."""
    NONE = "none"


class RedisStated(ComponentConfig):
    """What you know of a Redis that does not let itself be asked; what can be asked counts more."""

    persistence: Persistence | None = Field(
        None, description="always, everysec or no (the append-only file's appendfsync), snapshots (RDB alone) or none."
    )
    noeviction: bool = Field(False, description="`maxmemory-policy` is `noeviction`: Redis never throws away what it holds.")
    maxmemory_bytes: PositiveInt | None = Field(None, description="Its `maxmemory`.")


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What one server says of itself; None where it could not be asked."""

    name: str
    version: tuple[int, ...]
    primary: bool
    replicas: int
    policy: str | None
    persistence: Persistence | None
    sync_stops_on_rewrite: bool
    snapshot_s: int | None
    maxmemory_bytes: int | None
    used_bytes: int
    write_error: str


@dataclass(frozen=True, slots=True)
class Promise:
    """What holds for the log as a whole: that of its weakest server. None: it could not be found out."""

    place: str
    name: str
    servers: int
    persistence: Persistence | None
    stated: bool
    """`persistence` was stated by hand, not asked."""
    sync_stops_on_rewrite: bool
    snapshot_s: int | None
    replicas: int
    waits_for_replicas: int
    waits_for_aof: bool
    policy: str | None
    maxmemory_bytes: int | None
    used_bytes: int
    warnings: Sequence[str]

    @property
    def survives_power_cut(self) -> bool | None:
        if self.persistence is None:
            return None
        if self.sync_stops_on_rewrite:
            return False
        return self.persistence is Persistence.ALWAYS or (self.waits_for_aof and self.persistence in (Persistence.EVERYSEC, Persistence.NO))

    @property
    def survives_kill(self) -> bool | None:
        """Whether a SIGKILL of Redis alone loses nothing: what was written but not synced lies in the kernel's memory.

        With `everysec` Redis holds a write back for up to two seconds while a sync before it has not ended."""
        if self.persistence is None or self.survives_power_cut:
            return self.survives_power_cut
        return self.persistence in (Persistence.ALWAYS, Persistence.NO)

    @property
    def survives_failover(self) -> bool:
        return self.replicas > 0 and self.waits_for_replicas > 0

    @property
    def durability(self) -> str:
        """One sentence: what a power cut, a SIGKILL of Redis and a failover may lose of what was acknowledged."""
        several = f"{self.servers} servers, " if self.servers > 1 else ""
        kept = _KEPT[self.persistence] if self.persistence is not None else "how it keeps its data could not be checked"
        by_hand = " as stated by hand" if self.stated else ""
        return f"{self.name} at {self.place} ({several}{kept}{by_hand}): {self.disk_losses}; {self._failover_losses()}"

    @property
    def disk_losses(self) -> str:
        if self.survives_power_cut:
            return "neither a power cut nor a SIGKILL of Redis loses anything that was acknowledged"
        match self.persistence:
            case Persistence.ALWAYS:  # no-appendfsync-on-rewrite
                return "a power cut while Redis rewrites its append-only file may lose what was acknowledged meanwhile"
            case Persistence.EVERYSEC:
                return (
                    "a power cut may lose the last two seconds of what was acknowledged, a SIGKILL of Redis as much while its disk is slow"
                )
            case Persistence.NO:
                return "a power cut may lose what was acknowledged in the last half minute or more, a SIGKILL of Redis nothing"
            case Persistence.SNAPSHOTS:
                every = f", taken after {self.snapshot_s} s at the earliest" if self.snapshot_s else ""
                return f"a power cut or a SIGKILL of Redis loses all that was acknowledged since the last snapshot{every}"
            case Persistence.NONE:
                return "a power cut, a SIGKILL or a restart of Redis loses everything that it holds"
            case _:
                return "what a power cut or a SIGKILL of Redis loses could not be checked"

    def _failover_losses(self) -> str:
        if not self.replicas:
            return "there is no replica: with its disk everything is lost that it holds"
        if self.waits_for_replicas:
            who = "a replica" if self.waits_for_replicas == 1 else f"{self.waits_for_replicas} replicas"
            return f"a failover loses nothing that was acknowledged ({who} had it before)"
        return "a failover may lose what was acknowledged and had not reached the replica (`wait_replicas` is 0)"

    @property
    def fields(self) -> dict[str, Any]:
        """For `/readyz`."""
        return {
            "server": self.name,
            "address": self.place,
            "servers": self.servers,
            "persistence": self.persistence.value if self.persistence is not None else "unknown",
            "persistence_is_stated": self.stated,
            "maxmemory_policy": self.policy or "unknown",
            "maxmemory_bytes": self.maxmemory_bytes,
            "used_memory_bytes": self.used_bytes,
            "replicas": self.replicas,
            "wait_replicas": self.waits_for_replicas,
            "survives": {"power_cut": self.survives_power_cut, "kill": self.survives_kill, "failover": self.survives_failover},
            "warnings": list(self.warnings),
        }


_KEPT: dict[Persistence, str] = {
    Persistence.ALWAYS: "append-only file, appendfsync always",
    Persistence.EVERYSEC: "append-only file, appendfsync everysec",
    Persistence.NO: "append-only file, appendfsync no",
    Persistence.SNAPSHOTS: "RDB snapshots alone",
    Persistence.NONE: "no persistence",
}
_WEAKEST = [Persistence.NONE, Persistence.SNAPSHOTS, Persistence.NO, Persistence.EVERYSEC, Persistence.ALWAYS]


async def examine(
    client: Client, config: RedisClientConfig, stated: RedisStated, place: str, *, wait_replicas: int = 0, wait_aof: bool = False
) -> Promise:
    """Ask every server that holds a part of the log, and return what that means.

    Raises ConfigError where the server cannot hold a log (it evicts, it is too old), and RedisLogError where it does not answer, is
    loading or is a replica."""
    try:
        servers = await _ask_all(client, place)
    except (ConfigError, RedisLogError):
        raise
    except Exception as error:
        raise log_error(error, place) from error
    for facts in servers:
        _refuse_unfit(facts, stated, place)
    return _promise(servers, config, stated, wait_replicas, wait_aof)


async def _ask_all(client: Any, place: str) -> list[ServerFacts]:
    if not hasattr(client, "get_primaries"):
        return [await _ask(client, {}, place)]
    await client.initialize()
    return [await _ask(client, {"target_nodes": node}, place) for node in client.get_primaries()]


async def _ask(client: Any, where: Mapping[str, Any], place: str) -> ServerFacts:
    info: Mapping[str, Any] = await client.info(**where)
    if not isinstance(info, Mapping) or "redis_version" not in info:
        raise RedisLogError(Trouble.NOT_REDIS, place=place, detail="INFO names no version of Redis")
    settings = await _settings(client, where)
    said = {**settings}
    said.setdefault("maxmemory-policy", str(info.get("maxmemory_policy", "")))
    said.setdefault("maxmemory", str(info.get("maxmemory", "")))
    maxmemory = said["maxmemory"]
    return ServerFacts(
        name=_name(info),
        version=_version(str(info["redis_version"])),
        primary=info.get("role", "master") == "master",
        replicas=_whole(info.get("connected_slaves", 0)),
        policy=said["maxmemory-policy"] or None,
        persistence=_persistence(info, settings),
        sync_stops_on_rewrite=settings.get("no-appendfsync-on-rewrite") == "yes",
        snapshot_s=_snapshot_s(settings.get("save", "")),
        maxmemory_bytes=int(maxmemory) if maxmemory.isdigit() else None,
        used_bytes=_whole(info.get("used_memory", 0)),
        write_error=_write_error(info),
    )


async def _settings(client: Any, where: Mapping[str, Any]) -> dict[str, str]:
    """Return what CONFIG GET says; what it may not say is absent. Each is asked alone: Redis before 7.0 takes one."""
    from redis.exceptions import ResponseError

    found: dict[str, str] = {}
    for name in _ASKED:
        try:
            answer = await client.config_get(name, **where)
        except ResponseError:  # forbidden to this user, or no such command here
            break
        for key, value in dict(answer or {}).items():
            key, value = (part.decode() if isinstance(part, bytes) else str(part) for part in (key, value))
            found[key] = value
    return found


def _name(info: Mapping[str, Any]) -> str:
    for product in ("valkey", "dragonfly"):
        if version := info.get(f"{product}_version"):
            return f"{product.capitalize()} {str(version).removeprefix('df-')[:40]}"
    return f"Redis {str(info['redis_version'])[:40]}"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:3] if part.isascii() and part.isdigit())


def _whole(value: Any) -> int:
    return int(value) if isinstance(value, int) else 0


def _persistence(info: Mapping[str, Any], settings: Mapping[str, str]) -> Persistence | None:
    appends = settings["appendonly"] == "yes" if "appendonly" in settings else _whole(info.get("aof_enabled", 0)) == 1
    if appends:
        sync = settings.get("appendfsync", "")
        return Persistence(sync) if sync in ("always", "everysec", "no") else None
    if "save" in settings:
        return Persistence.SNAPSHOTS if settings["save"].strip() else Persistence.NONE
    return None


def _snapshot_s(save: str) -> int | None:
    """Return the shortest time after which a snapshot is taken: 60 of `3600 1 60 10000`."""
    times = [int(part) for part in save.split()[::2] if part.isascii() and part.isdigit()]
    return min(times) if times else None


def _write_error(info: Mapping[str, Any]) -> str:
    if str(info.get("aof_last_write_status", "ok")) != "ok":
        return "its last write to the append-only file failed"
    if str(info.get("aof_last_bgrewrite_status", "ok")) != "ok":
        return "it could not write its append-only file anew"
    if str(info.get("rdb_last_bgsave_status", "ok")) != "ok":
        return "its last snapshot failed"
    return ""


def _refuse_unfit(facts: ServerFacts, stated: RedisStated, place: str) -> None:
    if not facts.primary:
        raise RedisLogError(Trouble.READ_ONLY, place=place, detail="this Redis is a replica: it takes no writes")
    if facts.version < _LEAST_VERSION:
        detail = f"{facts.name} is too old"
        raise ConfigError(ErrorKind.CONFIG_INVALID, place=place, detail=detail, advice="the log needs Redis 6.2 or later, or Valkey")
    if facts.policy is None and not stated.noeviction:
        raise ConfigError(
            ErrorKind.CONFIG_INVALID,
            place=place,
            detail="whether Redis throws away what was acknowledged could not be checked: it tells us no `maxmemory-policy`",
            advice="see to it that it is noeviction, and state so: `buffer.stated.noeviction: true`",
        )
    if facts.policy is not None and facts.policy != "noeviction":
        raise ConfigError(
            ErrorKind.CONFIG_INVALID,
            place=place,
            detail=f"`maxmemory-policy` is {facts.policy[:40]}: Redis would throw away what was acknowledged",
            advice="start Redis with `--maxmemory-policy noeviction` (now: CONFIG SET maxmemory-policy noeviction)",
        )


def _promise(servers: Sequence[ServerFacts], config: RedisClientConfig, stated: RedisStated, wait_replicas: int, wait_aof: bool) -> Promise:
    asked = [facts.persistence for facts in servers]
    persistence = None if None in asked else min((found for found in asked if found is not None), key=_WEAKEST.index)
    by_hand = persistence is None and stated.persistence is not None
    if by_hand:
        persistence = stated.persistence
    limits = [facts.maxmemory_bytes for facts in servers]
    known = [limit for limit in limits if limit is not None]
    # an unlimited server has no limit that could be the smallest; keys spread evenly, so the smallest counts for each
    maxmemory = None if not known else 0 if 0 in known else min(known) * len(servers)
    warnings: list[str] = []
    promise = Promise(
        place=config.address.place,
        name=servers[0].name,
        servers=len(servers),
        persistence=persistence,
        stated=by_hand,
        sync_stops_on_rewrite=any(facts.sync_stops_on_rewrite for facts in servers),
        snapshot_s=min((facts.snapshot_s for facts in servers if facts.snapshot_s), default=None),
        replicas=min(facts.replicas for facts in servers),
        waits_for_replicas=wait_replicas,
        waits_for_aof=wait_aof and all(facts.version >= _WAITAOF_VERSION for facts in servers),
        policy=servers[0].policy or ("noeviction" if stated.noeviction else None),
        maxmemory_bytes=stated.maxmemory_bytes if maxmemory is None else maxmemory,
        used_bytes=sum(facts.used_bytes for facts in servers),
        warnings=warnings,
    )
    warnings += _warnings(promise, servers, config, stated)
    return promise


def _warnings(promise: Promise, servers: Sequence[ServerFacts], config: RedisClientConfig, stated: RedisStated) -> list[str]:
    """Return what start-up warns of, each with what to do."""
    found: list[str] = []
    if promise.persistence is None:
        found.append(
            "how Redis keeps its data could not be checked (CONFIG GET is not allowed): allow it, or say it as `buffer.stated.persistence`"
        )
    elif not promise.survives_power_cut:
        settings = "--no-appendfsync-on-rewrite no" if promise.sync_stops_on_rewrite else ""
        if promise.persistence is not Persistence.ALWAYS:
            settings = f"--appendonly yes --appendfsync always {settings}".rstrip()
        found.append(f"{promise.disk_losses}: start Redis with `{settings}` for a log that loses nothing")
    if stated.persistence is not None and not promise.stated and stated.persistence is not promise.persistence:
        said = promise.persistence.value if promise.persistence else "unknown"
        found.append(f"`buffer.stated.persistence` says {stated.persistence.value}, Redis says {said}: Redis' word counts")
    if promise.waits_for_replicas > promise.replicas:
        found.append(
            f"`wait_replicas` is {promise.waits_for_replicas} and {promise.replicas} are connected: nothing is acknowledged until they are"
        )
    if not promise.maxmemory_bytes:
        unknown = promise.maxmemory_bytes is None
        how = "could not be asked: say it as `buffer.stated.maxmemory_bytes`" if unknown else "is not set: start Redis with `--maxmemory`"
        found.append(f"`maxmemory` {how}; without it Redis grows until the system ends it, and nothing tells receivers to wait before")
    elif promise.maxmemory_bytes < _SMALL_BYTES * promise.servers:
        found.append(
            f"`maxmemory` is only {promise.maxmemory_bytes >> 20} MiB: receivers wait as soon as a destination is away for moments"
        )
    found += [f"Redis says that {facts.write_error}: see its own log" for facts in servers if facts.write_error]
    if _is_read_on_the_way(config):
        found.append("what is sent to Redis is not encrypted, the password included: use rediss:// where strangers share the network")
    return found


def _is_read_on_the_way(config: RedisClientConfig) -> bool:
    address = config.address
    if address.tls or address.path or address.host == "localhost" or address.host.endswith(".railway.internal"):
        return False  # Railway's private network is encrypted
    try:
        return not ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return True
