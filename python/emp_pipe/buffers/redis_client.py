"""The way to the Redis that holds the log: where it is, who we are to it, and what its refusals mean.

`RedisClientConfig` is the part of the buffer's settings that says so, `connect` makes redis-py's asyncio client of it (one server, or a
cluster), `log_error` turns whatever that client raises into a LogError with advice. The client never sends a command a second time: after
a lost answer nobody but the log knows whether the command took effect, so the log asks with the operation's id.

redis-py is imported when a client is made, not before. Not here: what is stored (`redis.py`), what the server promises (`redis_server.py`).
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from emp_pipe.clock import Clock
from emp_pipe.component import ComponentConfig
from emp_pipe.errors import ConfigError, ErrorKind, LogError
from emp_pipe.logs import RateLimitedLogger, get_logger
from emp_pipe.secret import Secret
from emp_pipe.tls import TlsClientConfig, WatchedContext

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster

    Client: TypeAlias = Redis | RedisCluster

_USUAL_PORT = 6379
_READ_BYTES = 1 << 18


class RedisAddress(ComponentConfig):
    """What a URL says: `redis://user:password@host:port/database`, `rediss://` with TLS, `unix:///path?db=database`."""

    host: str = ""
    port: int = _USUAL_PORT
    path: str = ""
    database: int = 0
    tls: bool = False
    username: str = ""
    password: str = Field("", repr=False)

    @property
    def place(self) -> str:
        """What an error names: no user, no password."""
        if self.path:
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}{f'/{self.database}' if self.database else ''}"


def parse_address(url: str) -> RedisAddress:
    """Return what a URL says. Raises ValueError, whose text holds nothing of the URL."""
    if not url.isprintable() or " " in url:
        raise ValueError("must be one line without spaces")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("must be a redis://, rediss:// or unix:// address; characters such as / in a password: %2F") from None
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ValueError("must be a redis://, rediss:// or unix:// address")
    if parts.netloc.count("@") > 1:
        raise ValueError("has an @ in its password: write it as %40, or set `password`")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if set(query) - {"db"} or parts.fragment:
        raise ValueError("takes no parameters but ?db=: what else can be set has settings of its own (`password`, `tls`, `timeout_s`)")
    database = query.get("db", "" if parts.scheme == "unix" else parts.path.strip("/"))
    if database and (not database.isascii() or not database.isdigit() or int(database) > 1_000_000):
        raise ValueError("ends in a database that is not a number: redis://host:6379/0")
    if parts.scheme == "unix":
        if not parts.path.strip("/") or parts.hostname:
            raise ValueError("must name a socket: unix:///run/redis/redis.sock")
    elif not parts.hostname or port == 0:
        raise ValueError("names no host: redis://host:6379")
    return RedisAddress(
        host=parts.hostname or "",
        port=port or _USUAL_PORT,
        path=unquote(parts.path) if parts.scheme == "unix" else "",
        database=int(database or 0),
        tls=parts.scheme == "rediss",
        username=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
    )


class RedisClientConfig(ComponentConfig):
    """Where the Redis is, and who we are to it."""

    url: str = Field(
        repr=False,
        description="redis://host:6379/0, rediss:// for TLS, or unix:///path/redis.sock. Never the Redis of the job queue.",
    )
    username: str = Field("", description="The ACL user; by default the URL's, else Redis' `default` user.")
    password: Secret | None = Field(None, description="The password, where the URL holds none. A file is read again at each connection.")
    cluster: bool = Field(False, description="The address is a node of a Redis Cluster; the others are found through it.")
    tls: TlsClientConfig = Field(TlsClientConfig.model_validate({}), description="For rediss:// addresses.")
    connect_timeout_s: PositiveFloat = Field(5.0, description="The time that a connection may take, handshake and login included.")
    timeout_s: PositiveFloat = Field(10.0, description="The time that an answer may take; then the connection is given up.")
    max_connections: PositiveInt = Field(64, description="The most connections to a server.")

    @field_validator("url")
    @classmethod
    def _url_is_an_address(cls, value: str) -> str:
        parse_address(value)
        return value

    @model_validator(mode="after")
    def _parts_agree(self) -> RedisClientConfig:
        address = self.address
        if address.password and self.password is not None:
            raise ValueError("`url` holds a password and `password` is set: leave one out")
        if address.username and self.username and address.username != self.username:
            raise ValueError("`url` names another user than `username`: leave one out")
        if self.tls != TlsClientConfig.model_validate({}) and not address.tls:
            raise ValueError("`tls` is set and `url` does not begin with rediss://")
        if self.cluster and address.path:
            raise ValueError("a cluster is not reached through a unix socket")
        if self.cluster and address.database:
            raise ValueError("a cluster has only database 0")
        return self

    @property
    def address(self) -> RedisAddress:
        return parse_address(self.url)


class Trouble(StrEnum):
    """Why Redis did not do what it was asked: what the log and the fallback tell apart."""

    UNREACHABLE = "unreachable"
    TIMED_OUT = "timed_out"
    CREDENTIALS = "credentials"
    PERMISSION = "permission"
    LOADING = "loading"
    READ_ONLY = "read_only"
    OUT_OF_MEMORY = "out_of_memory"
    CLUSTER_DOWN = "cluster_down"
    NOT_REDIS = "not_redis"
    CLUSTER_SETTING = "cluster_setting"
    DISK = "disk"
    OTHER = "other"


_ADVICE: dict[Trouble, str] = {
    Trouble.UNREACHABLE: "check that Redis runs, and `buffer.url` (EMP_BUFFER_REDIS_URL): rediss:// where it speaks TLS, and only there",
    Trouble.TIMED_OUT: "Redis or the network is slow, or `buffer.timeout_s` too short; it is tried again",
    Trouble.CREDENTIALS: "set the right `buffer.username` and `buffer.password` (EMP_BUFFER_REDIS_PASSWORD)",
    Trouble.PERMISSION: "give the ACL user the commands and the key pattern that docs/redis.md lists",
    Trouble.LOADING: "nothing to do: Redis reads and writes its data after a start; it is tried again",
    Trouble.READ_ONLY: "name the primary in `buffer.url`; after a failover it is tried again",
    Trouble.OUT_OF_MEMORY: "raise Redis' `maxmemory`, or find the destination that is behind: `emp-pipe groups list`",
    Trouble.CLUSTER_DOWN: "see `CLUSTER INFO`: a part of the cluster has no primary; it is tried again",
    Trouble.NOT_REDIS: "name the port on which Redis listens, with rediss:// where it speaks TLS and redis:// where it does not",
    Trouble.CLUSTER_SETTING: "set `buffer.cluster` (EMP_BUFFER_REDIS_CLUSTER) to true for a Redis Cluster, and only for one",
    Trouble.DISK: "see Redis' own log: it cannot write its append-only file or its snapshots",
    Trouble.OTHER: "see Redis' own log; it is tried again",
}


class RedisLogError(LogError):
    """A LogError with what was wrong with Redis; where the answer was lost, only the operation's id tells whether it took effect."""

    def __init__(self, trouble: Trouble, *, place: str, detail: str) -> None:
        kind = ErrorKind.LOG_FULL if trouble is Trouble.OUT_OF_MEMORY else ErrorKind.LOG_IO
        super().__init__(kind, place=place, detail=detail, advice=_ADVICE[trouble], trouble=trouble.value)
        self.trouble = trouble

    @property
    def answer_lost(self) -> bool:
        """Whether the command may have taken effect all the same."""
        return self.trouble in (Trouble.UNREACHABLE, Trouble.TIMED_OUT)

    @property
    def passing(self) -> bool:
        """Whether it may end by itself: a start waits for that, and for nothing that somebody has to mend here."""
        return self.trouble in (Trouble.UNREACHABLE, Trouble.TIMED_OUT, Trouble.LOADING, Trouble.CLUSTER_DOWN)


def log_error(error: Exception, place: str) -> RedisLogError:
    """Return what redis-py, a socket or TLS raised as a LogError that says what to do."""
    if isinstance(error, RedisLogError):
        return error
    return RedisLogError(trouble := _trouble(error), place=place, detail=_detail(trouble, error))


def _trouble(error: Exception) -> Trouble:
    from redis import exceptions as redis

    text = str(error)
    lowered = text.lower()
    code = str(getattr(error, "status_code", "") or text.partition(" ")[0])
    if isinstance(error, redis.MovedError) or "cluster mode is not enabled" in lowered or "cluster support disabled" in lowered:
        return Trouble.CLUSTER_SETTING
    if isinstance(error, redis.RedisClusterException) and isinstance(error.__cause__, Exception):
        return _trouble(error.__cause__)
    if isinstance(error, (redis.AuthenticationError, redis.AuthenticationWrongNumberOfArgsError)) or code in ("NOAUTH", "WRONGPASS"):
        return Trouble.CREDENTIALS
    if isinstance(error, redis.NoPermissionError) or code == "NOPERM":
        return Trouble.PERMISSION
    if isinstance(error, redis.BusyLoadingError):
        return Trouble.LOADING
    if isinstance(error, redis.ReadOnlyError) or code in ("READONLY", "NOREPLICAS"):
        return Trouble.READ_ONLY
    if isinstance(error, redis.OutOfMemoryError) or code == "OOM" or "oom command not allowed" in lowered:
        return Trouble.OUT_OF_MEMORY
    if code == "MISCONF":
        return Trouble.DISK
    if isinstance(error, (redis.ClusterDownError, redis.MasterDownError, redis.SlotNotCoveredError)) or code in (
        "CLUSTERDOWN",
        "MASTERDOWN",
    ):
        return Trouble.CLUSTER_DOWN
    if isinstance(error, redis.InvalidResponse) or "protocol error" in lowered or _is_not_tls(error):
        return Trouble.NOT_REDIS
    if isinstance(error, (redis.TimeoutError, TimeoutError)):
        return Trouble.UNREACHABLE if "connecting" in lowered else Trouble.TIMED_OUT
    if isinstance(error, (redis.ConnectionError, OSError)):
        return Trouble.UNREACHABLE
    return Trouble.OTHER


def _is_not_tls(error: BaseException | None) -> bool:
    """Whether a handshake met something that does not speak TLS."""
    while error is not None:
        if isinstance(error, ssl.SSLError) and error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
            return True
        error = error.__cause__ or error.__context__
    return False


_SAID = {
    Trouble.LOADING: "Redis is loading its data",
    Trouble.CREDENTIALS: "Redis refuses our user or password",
    Trouble.PERMISSION: "Redis does not allow this user what the log needs",
    Trouble.READ_ONLY: "this Redis takes no writes: it is a replica, or has too few",
    Trouble.OUT_OF_MEMORY: "Redis has reached its maxmemory",
    Trouble.CLUSTER_DOWN: "the Redis Cluster does not serve all of its slots",
    Trouble.NOT_REDIS: "what answers there does not speak Redis' protocol this way",
    Trouble.CLUSTER_SETTING: "the setting says a cluster and the server is none, or the other way round",
    Trouble.TIMED_OUT: "Redis did not answer in time",
    Trouble.UNREACHABLE: "no connection to Redis",
    Trouble.DISK: "Redis cannot write to its disk and refuses to go on",
    Trouble.OTHER: "Redis refused",
}


def _detail(trouble: Trouble, error: Exception) -> str:
    """Return our words, and the server's or the system's in brackets: one line, bounded."""
    said = "".join(character if character.isprintable() else " " for character in str(error)).strip().rstrip(".")
    return f"{_SAID[trouble]} ({said[:300] or type(error).__name__})"


def connect(config: RedisClientConfig, place: str, clock: Clock) -> Client:
    """Return a client; it connects when it is first used. Raises ConfigError: a secret or a certificate that cannot be had, no redis-py.

    RESP2, so that every version of Redis answers in the same shapes; a command is sent once and never repeated by the client."""
    try:
        from redis.asyncio import Redis, RedisCluster
        from redis.asyncio.connection import Connection, ConnectionPool, UnixDomainSocketConnection
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError as error:
        raise ConfigError(
            ErrorKind.CONFIG_INVALID,
            place=place,
            detail=f"the Redis client is not installed ({error})",
            advice="pip install 'emp-pipe[central]'",
        ) from None
    address = config.address
    connection_class = Connection if not address.tls else _tls_connection(config.tls, place, clock)
    settings: dict[str, Any] = {
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_error": [],
        "health_check_interval": 0,
        "socket_timeout": config.timeout_s,
        "socket_connect_timeout": config.connect_timeout_s,
        "socket_read_size": _READ_BYTES,
        "max_connections": config.max_connections,
        "driver_info": None,  # CLIENT SETINFO would be one more command to be allowed
        "credential_provider": _credentials(config, place),
    }
    if config.cluster:
        cluster = RedisCluster(host=address.host, port=address.port, **settings)
        # RedisCluster makes its own kind of TLS connection, which knows neither our contexts nor their reload
        cluster.connection_kwargs["connection_class"] = connection_class
        for node in cluster.startup_nodes:
            node.connection_class = connection_class
        return cluster
    if address.path:
        settings |= {"connection_class": UnixDomainSocketConnection, "path": address.path}
    else:
        settings |= {"connection_class": connection_class, "host": address.host, "port": address.port}
    return Redis.from_pool(ConnectionPool(db=address.database, **settings))


def _tls_connection(config: TlsClientConfig, place: str, clock: Clock) -> Any:
    """Return a class of connections that takes the context of now, so that a renewed certificate serves the next connection."""
    from redis.asyncio.connection import Connection

    contexts = WatchedContext.of_client(config, clock, place)

    class TlsConnection(Connection):
        def _connection_arguments(self) -> Mapping[str, Any]:
            arguments = {**super()._connection_arguments(), "ssl": contexts.current()}
            return arguments | {"server_hostname": config.server_name} if config.server_name else arguments

    return TlsConnection


def _credentials(config: RedisClientConfig, place: str) -> Any:
    """Return what gives redis-py user and password at each connection; None where the server asks for none."""
    from redis.credentials import CredentialProvider

    address = config.address
    username = config.username or address.username
    if config.password is None and not address.password and not username:
        return None
    secret = config.password
    log = RateLimitedLogger(get_logger("redis"), interval_s=60.0)

    class Credentials(CredentialProvider):
        """The password of now: one that was rotated in its file serves the next connection."""

        def __init__(self) -> None:
            self._password = address.password if secret is None else secret.reveal(f"{place}: password")

        def get_credentials(self) -> tuple[str] | tuple[str, str]:
            if secret is not None:
                try:
                    self._password = secret.reveal(f"{place}: password")
                except ConfigError as error:
                    log.warning(place, "%s The password read before stays in use.", error)
            return (username, self._password) if username else (self._password,)

        async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
            return self.get_credentials()

    return Credentials()


async def ping(client: Client, place: str, timeout_s: float = math.inf) -> None:
    """Return when Redis has answered. Raises RedisLogError."""
    try:
        async with asyncio.timeout(None if math.isinf(timeout_s) else timeout_s):
            await cast("Any", client).ping()
    except Exception as error:
        raise log_error(error, place) from error
