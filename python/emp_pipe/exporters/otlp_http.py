"""OTLP over HTTP with protobuf: to Dash0, a Collector, or any OTLP endpoint.

One `send` is one POST of a block's payload as it lies in memory. What the answer means is in `delivery/http_answers.py`; retries, merging,
limits and selection are the delivery loop's. With `preset: dash0` the address, the headers and Dash0's documented limits are set.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from emp_pipe.component import Context, Parcel, Sent, Signal
from emp_pipe.delivery.http_answers import error_of
from emp_pipe.delivery.http_client import HttpClient, Target
from emp_pipe.delivery.http_link import DEADLINES, Reply
from emp_pipe.delivery.otlp import OtlpDestinationConfig, check_header_names, partial_success, printable, unreadable_answer
from emp_pipe.done import DONE_HEADER, Done
from emp_pipe.errors import DeliveryError, ErrorKind, Retry
from emp_pipe.secret import Secret
from emp_pipe.tls import WatchedContext

if TYPE_CHECKING:  # a configuration can be checked without the native core
    from emp_pipe._core import DestinationLimits

_PROTOBUF = "application/x-protobuf"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OWN_HEADERS = re.compile(rf"content-type|content-encoding|content-length|transfer-encoding|host|{DONE_HEADER}", re.IGNORECASE)


class OtlpHttpConfig(OtlpDestinationConfig):
    """Where to send, and what to show there."""

    endpoint: str | None = Field(None, description="The base address; /v1/logs, /v1/traces and /v1/metrics are appended.")
    logs_endpoint: str | None = Field(None, description="The full address for logs, in place of the one under `endpoint`.")
    compression: Literal["gzip", "zstd", "none"] = Field("gzip", description="How request bodies are compressed.")

    @field_validator("headers")
    @classmethod
    def _headers_are_not_ours(cls, value: Mapping[str, Secret]) -> Mapping[str, Secret]:
        check_header_names(value, allowed=_HEADER_NAME, what="a header name", own=_OWN_HEADERS)
        return value

    def address(self, signal: Signal) -> str | None:
        own: str | None = getattr(self, f"{signal.value}_endpoint")
        if own is not None:
            return own
        base = self.endpoint or (f"https://{self.dash0_host}" if self.preset == "dash0" else None)
        return None if base is None else f"{base.rstrip('/')}/v1/{signal.value}"


class OtlpHttpExporter:
    """Posts export requests."""

    merges = True
    ordered = False

    def __init__(self, id: str, config: OtlpHttpConfig, context: Context) -> None:
        self.id = id
        self.config = config
        self._context = context
        self._limits = config.limits()
        self._addresses = {signal.value: config.address(signal) for signal in Signal}
        self._headers: dict[str, str] = {}
        self._targets: dict[tuple[str, Done], Target] = {}
        """By signal, and by what the sender of the rows has done with them."""
        self._client: HttpClient | None = None

    @property
    def codec(self) -> str:
        return self.config.compression

    @property
    def limits(self) -> DestinationLimits | None:
        return self._limits

    async def open(self) -> None:
        """Read keys and certificates. Raises ConfigError; opens no connection."""
        headers = {"Content-Type": _PROTOBUF, **self.config.revealed_headers(self.id)}
        if self.config.compression != "none":
            headers["Content-Encoding"] = self.config.compression
        self._headers = headers
        self._targets.clear()
        tls = None
        if any(address is not None and address.lower().startswith("https:") for address in self._addresses.values()):
            tls = WatchedContext.of_client(self.config.tls, self._context.clock, self.id)
        self._client = HttpClient(
            self.id,
            self._context,
            max_connections=self.config.max_concurrency,
            tls=tls,
            server_name=self.config.tls.server_name,
            deadlines=DEADLINES._replace(first_byte_s=self.config.timeout_s),
        )

    async def send(self, parcel: Parcel) -> Sent:
        """Post a parcel. Raises DeliveryError."""
        block, client = parcel.block, self._client
        if client is None:
            raise DeliveryError(ErrorKind.UNREACHABLE, place=self.id, detail="the exporter is closed")
        reply = await client.post(self._target(block.signal, Done.of(block)), memoryview(block))
        return self._sent(reply, block.records)

    async def close(self, deadline_monotonic_s: float) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _target(self, signal: str, done: Done) -> Target:
        target = self._targets.get((signal, done))
        if target is None:
            address = self._addresses.get(signal)
            if address is None:
                raise self._error(ErrorKind.REFUSED, f"no address for {signal}", retry=Retry.AFTER_CONFIG_CHANGE)
            headers = {**self._headers, DONE_HEADER: done.words} if any(done) else self._headers
            target = self._targets[signal, done] = Target.of(address, headers, self.id)
        return target

    def _sent(self, reply: Reply, records: int) -> Sent:
        content_type, body = reply.content_type, reply.body
        if 200 <= reply.status < 300:
            if body and content_type == "text/html":
                advice = "check `endpoint`: it is a web page, not an OTLP endpoint"
                raise self._error(ErrorKind.REFUSED, f"HTTP {reply.status} with a web page", Retry.AFTER_CONFIG_CHANGE, advice)
            rejected, message = _partial_success(content_type, body)
            return Sent(min(rejected, records), message)
        raise error_of(
            reply.status,
            _message(content_type, body),
            place=self.id,
            retry_after=reply.head.headers.get("retry-after"),
            now_unix_nano=self._context.clock.unix_nano(),
            date=reply.head.headers.get("date"),
            key_advice=self.config.key_advice,
        )

    def _error(self, kind: ErrorKind, detail: str, retry: Retry | None = None, advice: str = "") -> DeliveryError:
        # The detail may quote what the other side sent.
        return DeliveryError(kind, place=self.id, detail=printable(detail), retry=retry, advice=advice)


def _partial_success(content_type: str, body: bytes) -> tuple[int, str]:
    """Return rejected records and the message of a 2xx answer; an answer that cannot be read is a success: sending again would repeat."""
    if content_type != "application/json":
        return partial_success(body)
    try:
        partial = json.loads(body).get("partialSuccess") or {} if body else {}
        rejected = next((int(value) for key, value in partial.items() if key.startswith("rejected")), 0)
        return max(rejected, 0), printable(str(partial.get("errorMessage", "")))
    except (ValueError, OverflowError, TypeError, AttributeError, RecursionError):  # 1e999 is a number that no integer is
        return 0, unreadable_answer(body)


def _message(content_type: str, body: bytes) -> str:
    """Return what an error answer says, shortened and printable."""
    if not body:
        return ""
    from emp_pipe._core import CoreError, parse_status

    try:
        if content_type == _PROTOBUF:
            return printable(parse_status(body))
        if content_type == "application/json":
            return printable(str(json.loads(body).get("message", "")))
    except (CoreError, ValueError, AttributeError, RecursionError):
        return ""
    return printable(body[:400].decode("utf-8", "replace")) if content_type == "text/plain" else ""


CONFIG = OtlpHttpConfig
COMPONENT = OtlpHttpExporter
