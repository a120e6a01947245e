"""OTLP over gRPC: to a Collector, another emp-pipe, or any OTLP endpoint on 4317.

One `send` is one unary call with a block's export request as it lies in memory: with `compression: gzip` as it was compressed once.
What a status means is in `delivery/grpc_answers.py`, a connection in `delivery/grpc_client.py`; retries, merging, limits and selection are
the delivery loop's.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, PositiveInt, field_validator

from emp_pipe import __version__
from emp_pipe.component import Context, Parcel, Sent, Signal
from emp_pipe.delivery.grpc_answers import code_name, code_of_http, error_of, retry_delay_s, unpadded_base64
from emp_pipe.delivery.grpc_client import Address, CallReset, GrpcLine, LineLost
from emp_pipe.delivery.otlp import OtlpDestinationConfig, check_header_names, partial_success, printable, unreadable_answer
from emp_pipe.done import DONE_HEADER, Done
from emp_pipe.errors import DeliveryError, ErrorKind, Retry
from emp_pipe.secret import Secret
from emp_pipe.tls import WatchedContext

if TYPE_CHECKING:  # a configuration can be checked without the native core
    from emp_pipe._core import Block, DestinationLimits, GrpcAnswer

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
"""What servers and proxies say of a connection behind them that ended or never was."""
_MOST_TIMEOUT_MS = 99_999_999
_TRIES = 3
_CODE_OF_RESET = {7: "UNAVAILABLE", 8: "CANCELLED", 11: "UNAVAILABLE", 12: "PERMISSION_DENIED"}
"""HTTP/2's REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM (gRPC's own RESOURCE_EXHAUSTED would mean a quota) and INADEQUATE_SECURITY."""
_MOST_UNANSWERED = 2
"""After so many calls in a row without any answer the next one gets a new connection: the old one may lead nowhere."""


class OtlpGrpcConfig(OtlpDestinationConfig):
    """Where to send, and what to show there."""

    endpoint: str | None = Field(
        None, description="http://host:4317 (plain) or https://host:4317 (TLS), for all signals. Port, if none: 4317, with https 443."
    )
    headers: Mapping[str, Secret] = Field(default_factory=dict, description="Metadata sent with every call, such as Authorization.")
    compression: Literal["none", "gzip"] = Field(
        "none", description="gzip sends what the log holds as it was compressed once; none is for the same machine or network."
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

    def address(self, signal: Signal) -> str | None:
        own: str | None = getattr(self, f"{signal.value}_endpoint")
        return own or self.endpoint or (f"https://{self.dash0_host}:{_DASH0_PORT}" if self.preset == "dash0" else None)


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
        self._fields: dict[str, list[tuple[str, str]]] = {}
        self._tls: WatchedContext | None = None
        self._lines: dict[tuple[str, int], GrpcLine] = {}
        self._replaced: list[GrpcLine] = []
        self._turn = 0
        self._open = False

    @property
    def codec(self) -> str:
        return self.config.compression

    @property
    def limits(self) -> DestinationLimits | None:
        return self._limits

    async def open(self) -> None:
        """Read keys and certificates. Raises ConfigError; opens no connection."""
        headers = [(name.lower(), value) for name, value in self.config.revealed_headers(self.id).items()]
        encoding = [("grpc-encoding", "gzip")] if self.config.compression == "gzip" else []
        self._fields = {
            signal: [
                (":method", "POST"),
                (":scheme", address.scheme),
                (":path", _METHODS[signal]),
                (":authority", address.netloc),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
                ("user-agent", f"emp-pipe/{__version__}"),
                *encoding,
                *headers,
            ]
            for signal, address in self._addresses.items()
        }
        if any(address.scheme == "https" for address in self._addresses.values()):
            self._tls = WatchedContext.of_client(self.config.tls, self._clock, self.id, ["h2"])
        self._open = True

    async def send(self, parcel: Parcel) -> Sent:
        """Send a parcel. Raises DeliveryError."""
        block = parcel.block
        if not self._open:
            raise DeliveryError(ErrorKind.UNREACHABLE, place=self.id, detail="the exporter is closed")
        if block.signal not in self._addresses:
            raise DeliveryError(ErrorKind.REFUSED, place=self.id, detail=f"no address for {block.signal}", retry=Retry.AFTER_CONFIG_CHANGE)
        left_s = max(min(parcel.deadline_monotonic_s - self._clock.monotonic_s(), self.config.timeout_s), 0.001)
        fields = [*self._fields[block.signal], ("grpc-timeout", f"{min(int(left_s * 1000) + 1, _MOST_TIMEOUT_MS)}m")]
        if done := Done.of(block).words:
            fields.append((DONE_HEADER, done))
        try:
            async with asyncio.timeout(left_s):
                answer = await self._call(block, fields)
        except TimeoutError:
            raise self._error("DEADLINE_EXCEEDED", f"no answer within {left_s:.3g} s", (), block) from None
        except CallReset as reset:
            raise self._error(_CODE_OF_RESET.get(reset.code, "INTERNAL"), f"the server ended the call ({reset})", (), block) from None
        except LineLost as lost:
            advice = "check the destination's certificate, or set `tls.ca_file` and `tls.server_name`" if lost.is_untrusted else ""
            detail = f"no connection to {self._addresses[block.signal].netloc} ({printable(str(lost))})"
            raise DeliveryError(ErrorKind.UNREACHABLE, place=self.id, detail=detail, advice=advice, code="UNAVAILABLE") from None
        return self._sent(answer, block)

    async def close(self, deadline_monotonic_s: float) -> None:
        self._open = False
        lines = [*self._lines.values(), *self._replaced]
        self._lines, self._replaced = {}, []
        for line in lines:
            await line.close()

    # --- connections --------------------------------------------------------------------------------

    async def _call(self, block: Block, fields: Sequence[tuple[str, str]]) -> GrpcAnswer:
        """Return the answer. A call that a leaving server has not touched goes to the next connection at once."""
        for tries_left in reversed(range(_TRIES)):
            line = self._line(block.signal)
            line.in_flight += 1
            try:
                answer = await line.call(fields, block, self.config.compression)
                line.unanswered = 0
                return answer
            except LineLost as lost:
                if not (lost.is_untouched and line.was_connected and tries_left):
                    raise
            except CallReset:
                line.unanswered = 0
                raise
            except asyncio.CancelledError:  # nobody waits for it any longer, or its time is over
                line.unanswered += 1
                raise
            finally:
                line.in_flight -= 1
                await self._close_replaced()
        raise AssertionError("the last try returns or raises")

    def _line(self, signal: str) -> GrpcLine:
        """Return a line to a signal's address: a new one where certificates have changed, or the old one is lost or does not answer."""
        address = self._addresses[signal]
        tls = self._tls.current() if self._tls is not None and address.scheme == "https" else None
        self._turn = (self._turn + 1) % self.config.connections
        key = (address.netloc, self._turn)
        line = self._lines.get(key)
        if line is not None and (line.address.tls is not tls or not line.is_usable or line.unanswered >= _MOST_UNANSWERED):
            self._replaced.append(line)
            line = None
        if line is None:
            port = address.port or _DEFAULT_PORTS[address.scheme]
            leads_to = Address(f"{address.hostname}", port, tls, self.config.tls.server_name)
            line = self._lines[key] = GrpcLine(leads_to, keepalive_s=self.config.keepalive_s)
        return line

    async def _close_replaced(self) -> None:
        """Close the lines that were replaced and whose last call has ended."""
        ended = [line for line in self._replaced if not line.in_flight]
        self._replaced = [line for line in self._replaced if line.in_flight]
        for line in ended:
            await line.close()

    # --- answers ------------------------------------------------------------------------------------

    def _sent(self, answer: GrpcAnswer, block: Block) -> Sent:
        if answer.is_too_long and answer.http_status == 200:  # only a success has a message; to send it again would repeat
            return Sent(0, "the answer is too long to be read")
        if answer.grpc_status == 0:
            body = answer.body or b""
            rejected, message = (0, unreadable_answer(body)) if answer.is_compressed else partial_success(body)
            return Sent(min(rejected, block.records), message)
        trailers = [(name, unpadded_base64(value) if name.endswith("-bin") else value) for name, value in answer.trailers]
        if answer.grpc_status is not None:
            code, message = code_name(answer.grpc_status), printable(answer.message)
        else:
            code, message = code_of_http(answer.http_status), f"HTTP status {answer.http_status} and no grpc-status"
        if code == "UNAVAILABLE" and _OF_A_CONNECTION.search(message) and retry_delay_s(trailers) is None:
            detail = f"no connection to {self._addresses[block.signal].netloc}, or none behind it ({message})"
            raise DeliveryError(ErrorKind.UNREACHABLE, place=self.id, detail=detail, code=code)
        raise self._error(code, message, trailers, block)

    def _error(self, code: str, message: str, trailers: Sequence[tuple[str, str | bytes]], block: Block) -> DeliveryError:
        advice = self.config.key_advice
        return error_of(code, message, trailers, place=self.id, request_bytes=block.uncompressed_bytes, key_advice=advice)


CONFIG = OtlpGrpcConfig
COMPONENT = OtlpGrpcExporter
