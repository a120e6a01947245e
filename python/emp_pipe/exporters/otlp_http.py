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
from pydantic import Field, field_validator
from yarl import URL

from emp_pipe.component import Context, Parcel, Sent, Signal
from emp_pipe.delivery.http_answers import error_of
from emp_pipe.delivery.http_client import BlockPayload, open_session, read_answer
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
        self._clock = context.clock
        self._limits = config.limits()
        addresses = {signal.value: config.address(signal) for signal in Signal}
        self._urls = {signal: URL(address) for signal, address in addresses.items() if address is not None}
        self._headers: CIMultiDict[str] = CIMultiDict()
        self._tls: WatchedContext | None = None
        self._session: aiohttp.ClientSession | None = None

    @property
    def codec(self) -> str:
        return self.config.compression

    @property
    def limits(self) -> DestinationLimits | None:
        return self._limits

    async def open(self) -> None:
        """Read keys and certificates. Raises ConfigError; opens no connection."""
        headers: CIMultiDict[str] = CIMultiDict(self.config.revealed_headers(self.id))
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
        headers = self._headers
        if done := Done.of(block).words:
            headers = CIMultiDict(headers, **{DONE_HEADER: done})
        try:
            async with session.post(
                url,
                data=BlockPayload(block),
                headers=headers,
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
    except (ValueError, TypeError, AttributeError, RecursionError):
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
