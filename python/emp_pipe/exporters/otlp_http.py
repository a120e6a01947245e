"""OTLP over HTTP with protobuf: to Dash0, a Collector, or any OTLP endpoint.

One `send` is one POST of a block's payload as it lies in memory. What the answer means is in `delivery/http_answers.py`; retries, merging,
limits and selection are the delivery loop's. With `preset: dash0` the address, the headers and Dash0's documented limits are set.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import aiohttp
from multidict import CIMultiDict
from pydantic import Field, field_validator, model_validator
from yarl import URL

from emp_pipe.component import Context, ExporterConfig, Parcel, Sent, Signal, http_address
from emp_pipe.delivery.http_answers import error_of
from emp_pipe.delivery.http_client import BlockPayload, open_session, read_answer
from emp_pipe.errors import ConfigError, DeliveryError, ErrorKind, Retry
from emp_pipe.secret import Secret
from emp_pipe.tls import TlsClientConfig, WatchedContext

if TYPE_CHECKING:  # a configuration can be checked without the native core
    from emp_pipe._core import DestinationLimits

_PROTOBUF = "application/x-protobuf"
_DATASET = re.compile(r"[A-Za-z0-9_-]{3,26}")
_OWN_HEADERS = frozenset({"content-type", "content-encoding", "content-length", "transfer-encoding", "host"})
_HOUR_S = 3600.0
_DASH0_REGION = "eu-west-1"
DASH0_LIMITS: Mapping[str, float] = {
    # A minute under the documented six hours: a request takes time, and a refusal at the edge of the limit costs a whole request.
    "max_age_s": 6 * _HOUR_S - 60,
    "max_ahead_s": 72 * _HOUR_S,
    "max_body_bytes": 4096,
    "max_log_attributes": 16,
    "max_span_attributes": 32,
    "max_span_events": 8,
    "max_trace_spans": 2000,
    "max_key_bytes": 128,
    "max_value_bytes": 2048,
}


class OtlpHttpConfig(ExporterConfig):
    """Where to send, and what to show there."""

    endpoint: str | None = Field(None, description="The base address; /v1/logs, /v1/traces and /v1/metrics are appended.")
    logs_endpoint: str | None = Field(None, description="The full address for logs, in place of the one under `endpoint`.")
    traces_endpoint: str | None = Field(None, description="The full address for traces.")
    metrics_endpoint: str | None = Field(None, description="The full address for metrics.")
    headers: Mapping[str, Secret] = Field(default_factory=dict, description="Sent with every request, such as Authorization.")
    compression: Literal["gzip", "zstd", "none"] = Field("gzip", description="How request bodies are compressed.")
    tls: TlsClientConfig = Field(TlsClientConfig.model_validate({}), description="For https addresses.")
    preset: Literal["dash0"] | None = Field(None, description="dash0: its address, headers and documented limits.")
    token: Secret | None = Field(None, description="Sent as `Authorization: Bearer …`.")
    dataset: str | None = Field(None, description="Dash0's dataset: 3 to 26 of A-Z a-z 0-9 _ -. Default: that of the token.")
    region: str | None = Field(None, pattern=r"^[a-z0-9-]{3,40}$", description="Dash0's region, when no `endpoint` is set.")

    @field_validator("endpoint", "logs_endpoint", "traces_endpoint", "metrics_endpoint")
    @classmethod
    def _is_an_http_address(cls, value: str | None) -> str | None:
        return None if value is None else http_address(value)

    @field_validator("headers")
    @classmethod
    def _headers_are_not_ours(cls, value: Mapping[str, Secret]) -> Mapping[str, Secret]:
        for name in value:
            if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
                raise ValueError(f"{name!r} is not a header name")
            if name.lower() in _OWN_HEADERS:
                raise ValueError(f"{name} is set by the exporter")
        return value

    @field_validator("dataset")
    @classmethod
    def _dataset_is_one(cls, value: str | None) -> str | None:
        if value is not None and not _DATASET.fullmatch(value):
            raise ValueError("must be 3 to 26 characters of A-Z a-z 0-9 _ -")
        return value

    @model_validator(mode="after")
    def _belongs_together(self) -> OtlpHttpConfig:
        if self.preset is None:
            for name in ("dataset", "region"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`{name}` belongs to `preset: dash0`")
        elif self.token is None and "authorization" not in {name.lower() for name in self.headers}:
            raise ValueError("`preset: dash0` needs a `token`")
        wanted = self.only.signals if self.only is not None and self.only.signals else tuple(Signal)
        lacking = [signal.value for signal in wanted if self.address(signal) is None]
        if lacking:
            raise ValueError(f"no address for {', '.join(lacking)}: set `endpoint`, or leave them out with `only: {{signals: […]}}`")
        return self

    def address(self, signal: Signal) -> str | None:
        """Return where a signal is sent, None where nothing says it."""
        own: str | None = getattr(self, f"{signal.value}_endpoint")
        if own is not None:
            return own
        base = self.endpoint
        if base is None and self.preset == "dash0":
            base = f"https://ingress.{self.region or _DASH0_REGION}.aws.dash0.com"
        return None if base is None else f"{base.rstrip('/')}/v1/{signal.value}"


class OtlpHttpExporter:
    """Posts export requests."""

    merges = True
    ordered = False

    def __init__(self, id: str, config: OtlpHttpConfig, context: Context) -> None:
        self.id = id
        self.config = config
        self._clock = context.clock
        self._limits: DestinationLimits | None = None
        if config.preset == "dash0":
            from emp_pipe._core import DestinationLimits

            self._limits = DestinationLimits(**DASH0_LIMITS)  # type: ignore[arg-type]
        addresses = {signal.value: config.address(signal) for signal in Signal}
        self._urls = {signal: URL(address) for signal, address in addresses.items() if address is not None}
        self._headers: CIMultiDict[str] = CIMultiDict()
        self._tls: WatchedContext | None = None
        self._session: aiohttp.ClientSession | None = None
        self._key_advice = "set DASH0_AUTH_TOKEN (and DASH0_DATASET), or `token`" if config.preset == "dash0" else ""

    @property
    def codec(self) -> str:
        return self.config.compression

    @property
    def limits(self) -> DestinationLimits | None:
        return self._limits

    async def open(self) -> None:
        """Read keys and certificates. Raises ConfigError; opens no connection."""
        headers: CIMultiDict[str] = CIMultiDict()
        for name, secret in self.config.headers.items():
            headers[name] = _header_value(secret, f"{self.id}: headers.{name}")
        if self.config.token is not None:
            headers["Authorization"] = f"Bearer {_header_value(self.config.token, f'{self.id}: token')}"
        if self.config.dataset is not None:
            headers["Dash0-Dataset"] = self.config.dataset
        headers["Content-Type"] = _PROTOBUF
        if self.config.compression != "none":
            headers["Content-Encoding"] = self.config.compression
        self._headers = headers
        if any(url.scheme == "https" for url in self._urls.values()):
            self._tls = WatchedContext.of_client(self.config.tls, self._clock, self.id)
        self._session = open_session(max_connections=self.config.max_concurrency)

    async def send(self, parcel: Parcel) -> Sent:
        """Post a parcel. Raises DeliveryError."""
        block = parcel.block
        session, url = self._session, self._urls.get(block.signal)
        if session is None:
            raise DeliveryError(ErrorKind.UNREACHABLE, place=self.id, detail="the exporter is closed")
        if url is None:
            raise self._error(ErrorKind.REFUSED, f"no address for {block.signal}", retry=Retry.AFTER_CONFIG_CHANGE)
        tls = self._tls.current() if self._tls is not None and url.scheme == "https" else True
        try:
            async with session.post(
                url,
                data=BlockPayload(block),
                headers=self._headers,
                ssl=tls,
                server_hostname=self.config.tls.server_name if tls is not True else None,
                allow_redirects=False,
            ) as response:
                body = await read_answer(response)
        except aiohttp.ClientConnectorCertificateError as error:
            advice = "check the destination's certificate, or set `tls.ca_file`"
            raise self._error(ErrorKind.UNREACHABLE, f"certificate not accepted ({error.certificate_error})", advice=advice) from error
        except aiohttp.ClientConnectorError as error:
            raise self._error(ErrorKind.UNREACHABLE, f"cannot connect to {url.host}:{url.port} ({error.os_error})") from error
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError) as error:
            raise self._error(ErrorKind.UNREACHABLE, f"connection to {url.host} broke before the answer ({error})") from error
        except TimeoutError as error:
            raise self._error(ErrorKind.TIMED_OUT, f"no answer from {url.host} ({error or 'timed out'})") from error
        except aiohttp.ClientError as error:
            raise self._error(ErrorKind.SERVER_ERROR, f"{url.host} answers with something that is not HTTP") from error
        return self._sent(response, body, block.records)

    async def close(self, deadline_monotonic_s: float) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()
            await asyncio.sleep(0)  # let the transports notice

    def _sent(self, response: aiohttp.ClientResponse, body: bytes, records: int) -> Sent:
        content_type = response.content_type if "Content-Type" in response.headers else ""
        if 200 <= response.status < 300:
            if body and content_type == "text/html":
                advice = "check `endpoint`: it is a web page, not an OTLP endpoint"
                raise self._error(ErrorKind.REFUSED, f"HTTP {response.status} with a web page", Retry.AFTER_CONFIG_CHANGE, advice)
            rejected, message = _partial_success(content_type, body)
            return Sent(min(rejected, records), message)
        raise error_of(
            response.status,
            _message(content_type, body),
            place=self.id,
            retry_after=response.headers.get("Retry-After"),
            now_unix_nano=self._clock.unix_nano(),
            key_advice=self._key_advice,
        )

    def _error(self, kind: ErrorKind, detail: str, retry: Retry | None = None, advice: str = "") -> DeliveryError:
        # The detail may quote what the other side sent.
        return DeliveryError(kind, place=self.id, detail=_printable(detail), retry=retry, advice=advice)


def _header_value(secret: Secret, place: str) -> str:
    text = secret.reveal(place)
    if not text.isprintable() or not text.isascii():
        raise ConfigError(ErrorKind.CONFIG_INVALID, place=place, detail="a header's value must be printable ASCII")
    return text


def _partial_success(content_type: str, body: bytes) -> tuple[int, str]:
    """Return rejected records and the message of a 2xx answer; an answer that cannot be read is a success: sending again would repeat."""
    if not body:
        return 0, ""
    from emp_pipe._core import CoreError, parse_export_response

    try:
        if content_type == "application/json":
            partial = json.loads(body).get("partialSuccess") or {}
            rejected = next((int(value) for key, value in partial.items() if key.startswith("rejected")), 0)
            return max(rejected, 0), _printable(str(partial.get("errorMessage", "")))
        response = parse_export_response(body)
    except (CoreError, ValueError, TypeError, AttributeError, RecursionError):
        return 0, f"the answer cannot be read ({content_type or 'no content type'}, {len(body)} bytes)"
    return max(response.rejected, 0), _printable(response.message)


def _message(content_type: str, body: bytes) -> str:
    """Return what an error answer says, shortened and printable."""
    if not body:
        return ""
    from emp_pipe._core import CoreError, parse_status

    try:
        if content_type == _PROTOBUF:
            return _printable(parse_status(body))
        if content_type == "application/json":
            return _printable(str(json.loads(body).get("message", "")))
    except (CoreError, ValueError, AttributeError, RecursionError):
        return ""
    return _printable(body[:400].decode("utf-8", "replace")) if content_type == "text/plain" else ""


def _printable(text: str) -> str:
    """Return a line that is safe to log, at most 300 characters."""
    return "".join(char if char.isprintable() else " " for char in text[:300]).strip()


CONFIG = OtlpHttpConfig
COMPONENT = OtlpHttpExporter
