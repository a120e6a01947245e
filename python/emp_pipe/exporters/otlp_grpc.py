"""OTLP over gRPC: to a Collector, another emp-pipe, or any OTLP endpoint on 4317.

One `send` is one unary call with a block's export request as it lies in memory; grpcio sees bytes and nothing else. What the status means
is in `delivery/grpc_answers.py`; retries, merging, limits and selection are the delivery loop's: grpcio's own retries are off.

grpcio cannot send bytes that are already compressed, and its own gzip costs several times what ours does: requests go uncompressed unless
`compression: gzip` is set (`docs/decisions/004-otlp-grpc-out.md`). grpcio is imported when an exporter opens.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, PositiveInt, field_validator, model_validator

from emp_pipe import __version__
from emp_pipe.component import Context, Parcel, Sent, Signal
from emp_pipe.delivery.otlp import OtlpDestinationConfig, check_header_names, partial_success, printable
from emp_pipe.done import DONE_HEADER, Done
from emp_pipe.errors import ConfigError, DeliveryError, ErrorKind, Retry
from emp_pipe.secret import Secret
from emp_pipe.tls import ClientPem, Watched, client_pem

if TYPE_CHECKING:  # a configuration can be checked without the native core
    from emp_pipe._core import Block, DestinationLimits

_METHODS = {
    "logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
}
_METADATA_NAME = re.compile(r"[0-9A-Za-z_.-]+")
_OWN_METADATA = re.compile(
    rf"content-type|te|host|user-agent|content-length|transfer-encoding|connection|grpc-.*|{DONE_HEADER}", re.IGNORECASE
)
_DEFAULT_PORTS = {"http": 4317, "https": 443}
_DASH0_PORT = 4317
_OF_A_CONNECTION = re.compile(
    r"stream removed|socket closed|connection (?:reset|refused|aborted|closed)|broken pipe|recvmsg|sendmsg|failed to connect"
    r"|cancelling all calls|goaway|transport closed|endpoint closing|ping timeout|keepalive|dns resolution",
    re.IGNORECASE,
)
"""What grpcio says of a connection that ended or never was."""
_MOST_ANSWER_BYTES = 64 << 10
_MOST_UNANSWERED = 2
"""After so many calls in a row without any answer the next one gets a new connection: the old one may lead nowhere."""


class OtlpGrpcConfig(OtlpDestinationConfig):
    """Where to send, and what to show there."""

    endpoint: str | None = Field(
        None, description="http://host:4317 (plain) or https://host:4317 (TLS), for all signals. Port, if none: 4317, with https 443."
    )
    headers: Mapping[str, Secret] = Field(default_factory=dict, description="Metadata sent with every call, such as Authorization.")
    compression: Literal["none", "gzip"] = Field(
        "none", description="gzip is grpcio's own: several times the cost of otlp_http's. For networks where bytes cost more."
    )
    connections: Annotated[PositiveInt, Field(le=64)] = Field(1, description="Connections to each address; calls take turns on them.")
    keepalive_s: Annotated[float, Field(ge=10)] = Field(
        30.0, description="How long a connection with calls under way may be silent before it is asked whether it is alive."
    )

    @field_validator("endpoint", "logs_endpoint", "traces_endpoint", "metrics_endpoint")
    @classmethod
    def _is_a_grpc_address(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "")
        if parts.path.strip("/") or parts.query or parts.fragment:
            raise ValueError("a gRPC address has no path: write http://host:4317, or use `otlp_http`")
        return value

    @field_validator("headers")
    @classmethod
    def _headers_are_metadata(cls, value: Mapping[str, Secret]) -> Mapping[str, Secret]:
        check_header_names(value, allowed=_METADATA_NAME, what="a name for gRPC metadata", own=_OWN_METADATA)
        for name in value:
            if name.lower().endswith("-bin"):
                raise ValueError(f"{name} is for bytes, which a configuration cannot hold")
        return value

    @model_validator(mode="after")
    def _what_grpcio_can_do(self) -> OtlpGrpcConfig:
        if self.tls.insecure_skip_verify:
            raise ValueError("grpcio always checks certificates: set `tls.ca_file` and `tls.server_name`, or use `otlp_http`")
        return self

    def address(self, signal: Signal) -> str | None:
        own: str | None = getattr(self, f"{signal.value}_endpoint")
        return own or self.endpoint or (f"https://{self.dash0_host}:{_DASH0_PORT}" if self.preset == "dash0" else None)


class _Line:
    """A channel (one connection) to an address. One that was replaced is closed when its last call has ended.

    To make one costs 0.1 ms, so a broken one is not mended but replaced."""

    def __init__(self, channel: Any, pem: ClientPem | None) -> None:
        self.channel = channel
        self.pem = pem
        # Bytes in, bytes out: without serializers grpcio hands over what it is given.
        self.calls = {signal: channel.unary_unary(method) for signal, method in _METHODS.items()}
        self.in_flight = 0
        self.unanswered = 0
        self.broken = False


class OtlpGrpcExporter:
    """Calls Export."""

    merges = True
    ordered = False

    def __init__(self, id: str, config: OtlpGrpcConfig, context: Context) -> None:
        self.id = id
        self.config = config
        self._clock = context.clock
        self._limits = config.limits()
        addresses = {signal.value: config.address(signal) for signal in Signal}
        self._addresses = {signal: urlsplit(address) for signal, address in addresses.items() if address is not None}
        self._metadata: list[tuple[str, str]] = []
        self._tls: Watched[ClientPem] | None = None
        self._lines: dict[tuple[str, int], _Line] = {}
        self._replaced: list[_Line] = []
        self._turn = 0
        self._open = False

    @property
    def codec(self) -> str:
        return "none"  # gzip is put on by grpcio

    @property
    def limits(self) -> DestinationLimits | None:
        return self._limits

    async def open(self) -> None:
        """Read keys and certificates. Raises ConfigError; opens no connection."""
        try:
            import grpc.aio  # noqa: F401
        except ImportError as error:
            detail, advice = f"grpcio cannot be imported ({error})", "install emp-pipe[edge] or emp-pipe[central]"
            raise ConfigError(ErrorKind.CONFIG_INVALID, place=self.id, detail=detail, advice=advice) from error
        self._metadata = [(name.lower(), value) for name, value in self.config.revealed_headers(self.id).items()]
        if any(address.scheme == "https" for address in self._addresses.values()):
            tls = self.config.tls
            self._tls = Watched(lambda: client_pem(tls, self.id), tls.files(), self._clock, self.id)
        self._open = True

    async def send(self, parcel: Parcel) -> Sent:
        """Send a parcel. Raises DeliveryError."""
        block = parcel.block
        if not self._open:
            raise DeliveryError(ErrorKind.UNREACHABLE, place=self.id, detail="the exporter is closed")
        if block.signal not in self._addresses:
            raise DeliveryError(ErrorKind.REFUSED, place=self.id, detail=f"no address for {block.signal}", retry=Retry.AFTER_CONFIG_CHANGE)
        import grpc

        left_s = min(parcel.deadline_monotonic_s - self._clock.monotonic_s(), self.config.timeout_s)
        done = Done.of(block).words
        metadata = [*self._metadata, (DONE_HEADER, done)] if done else self._metadata
        line = self._line(block.signal)
        line.in_flight += 1
        try:
            answer = await line.calls[block.signal](block.payload("none"), timeout=max(left_s, 0.001), metadata=metadata)
            line.unanswered = 0
        except grpc.aio.AioRpcError as error:
            line.unanswered = line.unanswered + 1 if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else 0
            if _is_answered_unreadably(error):
                return Sent(0, "the answer is too long to be read")
            raise self._error(error, line, block) from error
        except asyncio.CancelledError:
            line.unanswered += 1
            raise
        finally:
            line.in_flight -= 1
            await self._close_replaced()
        rejected, message = partial_success(answer)
        return Sent(min(rejected, block.records), message)

    async def close(self, deadline_monotonic_s: float) -> None:
        self._open = False
        lines = [*self._lines.values(), *self._replaced]
        self._lines, self._replaced = {}, []
        for line in lines:
            await line.channel.close()

    # --- connections --------------------------------------------------------------------------------

    def _line(self, signal: str) -> _Line:
        """Return a line to a signal's address: a new one where certificates have changed, or the old one is broken or does not answer."""
        address = self._addresses[signal]
        pem = self._tls.current() if self._tls is not None and address.scheme == "https" else None
        self._turn = (self._turn + 1) % self.config.connections
        key = (address.netloc, self._turn)
        line = self._lines.get(key)
        if line is not None and (line.pem is not pem or line.broken or line.unanswered >= _MOST_UNANSWERED):
            self._replaced.append(line)
            line = None
        if line is None:
            line = self._lines[key] = _Line(self._channel(f"{address.hostname}", address.port, pem), pem)
        return line

    async def _close_replaced(self) -> None:
        """Close the lines that were replaced and whose last call has ended."""
        ended = [line for line in self._replaced if not line.in_flight]
        self._replaced = [line for line in self._replaced if line.in_flight]
        for line in ended:
            await line.channel.close()

    def _channel(self, host: str, port: int | None, pem: ClientPem | None) -> Any:
        import grpc
        import grpc.aio

        target = f"{f'[{host}]' if ':' in host else host}:{port or _DEFAULT_PORTS['http' if pem is None else 'https']}"
        options: list[tuple[str, Any]] = [
            ("grpc.primary_user_agent", f"emp-pipe/{__version__}"),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", _MOST_ANSWER_BYTES),
            ("grpc.keepalive_time_ms", int(self.config.keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.min_reconnect_backoff_ms", 10_000),  # the time that connecting may take
            ("grpc.enable_retries", 0),
            ("grpc.service_config_disable_resolution", 1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        compression = grpc.Compression.Gzip if self.config.compression == "gzip" else grpc.Compression.NoCompression
        if pem is None:
            return grpc.aio.insecure_channel(target, options, compression)
        if self.config.tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.config.tls.server_name))
        credentials = grpc.ssl_channel_credentials(pem.roots, pem.key, pem.chain)
        return grpc.aio.secure_channel(target, credentials, options, compression)

    # --- answers ------------------------------------------------------------------------------------

    def _error(self, error: Any, line: _Line, block: Block) -> DeliveryError:
        import grpc

        from emp_pipe.delivery.grpc_answers import error_of

        code, message, trailers = error.code().name, printable(error.details() or ""), tuple(error.trailing_metadata() or ())
        # Where the connection does not stand any more the status is grpcio's own, not the server's. The channel may learn of it last.
        stands = line.channel.get_state() is grpc.ChannelConnectivity.READY and not _OF_A_CONNECTION.search(message)
        if code == "UNAVAILABLE" and not trailers and not stands:
            # The next attempt gets a new channel: this one would wait for minutes; the pace is the delivery loop's.
            line.broken = True
            untrusted = any(word in message.lower() for word in ("handshake", "certificate", "verification"))
            advice = "check the destination's certificate, or set `tls.ca_file` and `tls.server_name`" if untrusted else ""
            detail = f"no connection to {self._addresses[block.signal].netloc} ({message})"
            return DeliveryError(ErrorKind.UNREACHABLE, place=self.id, detail=detail, advice=advice, code=code)
        advice = self.config.key_advice
        return error_of(code, message, trailers, place=self.id, request_bytes=block.uncompressed_bytes, key_advice=advice)


def _is_answered_unreadably(error: Any) -> bool:
    """Whether it is a success whose answer is too long to be one: sending again would repeat."""
    return error.code().name == "RESOURCE_EXHAUSTED" and "CLIENT: Received message larger than max" in (error.details() or "")


CONFIG = OtlpGrpcConfig
COMPONENT = OtlpGrpcExporter
