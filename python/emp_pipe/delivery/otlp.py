"""What the two OTLP exporters share: the settings of a destination, Dash0's preset, and the reading of a partial success.

Not here: what a status means (`http_answers.py`, `grpc_answers.py`), how a request is made (`exporters/otlp_http.py`, `otlp_grpc.py`).
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, field_validator, model_validator

from emp_pipe.component import ExporterConfig, Signal, http_address
from emp_pipe.errors import ConfigError, ErrorKind
from emp_pipe.secret import Secret
from emp_pipe.tls import TlsClientConfig

if TYPE_CHECKING:  # a configuration can be checked without the native core
    from emp_pipe._core import DestinationLimits

_DATASET = re.compile(r"[A-Za-z0-9_-]{3,26}")
_DASH0_REGION = "eu-west-1"
_HOUR_S = 3600.0
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


class OtlpDestinationConfig(ExporterConfig):
    """What an OTLP destination can be told over either protocol; `address` is the protocol's."""

    endpoint: str | None = Field(None, description="The address of all signals.")
    logs_endpoint: str | None = Field(None, description="The address for logs, in place of `endpoint`.")
    traces_endpoint: str | None = Field(None, description="The same for traces.")
    metrics_endpoint: str | None = Field(None, description="The same for metrics.")
    headers: Mapping[str, Secret] = Field(default_factory=dict, description="Sent with every request, such as Authorization.")
    tls: TlsClientConfig = Field(TlsClientConfig.model_validate({}), description="For https addresses.")
    preset: Literal["dash0"] | None = Field(None, description="dash0: its address, headers and documented limits.")
    token: Secret | None = Field(None, description="Sent as `Authorization: Bearer …`.")
    dataset: str | None = Field(None, description="Dash0's dataset: 3 to 26 of A-Z a-z 0-9 _ -. Default: that of the token.")
    region: str | None = Field(None, pattern=r"^[a-z0-9-]{3,40}$", description="Dash0's region, when no `endpoint` is set.")

    @field_validator("endpoint", "logs_endpoint", "traces_endpoint", "metrics_endpoint")
    @classmethod
    def _is_an_http_address(cls, value: str | None) -> str | None:
        return None if value is None else http_address(value)

    @field_validator("dataset")
    @classmethod
    def _dataset_is_one(cls, value: str | None) -> str | None:
        if value is not None and not _DATASET.fullmatch(value):
            raise ValueError("must be 3 to 26 characters of A-Z a-z 0-9 _ -")
        return value

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
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

    @abstractmethod  # default ports and paths are the protocol's; and pydantic's models are ABCs, so this one alone cannot be made
    def address(self, signal: Signal) -> str | None:
        """Return where a signal is sent, None where nothing says it."""

    @property
    def dash0_host(self) -> str:
        return f"ingress.{self.region or _DASH0_REGION}.aws.dash0.com"

    @property
    def key_advice(self) -> str:
        """What to do about a key that was refused; "" where the error's own advice will do."""
        return "set DASH0_AUTH_TOKEN (and DASH0_DATASET), or `token`" if self.preset == "dash0" else ""

    def limits(self) -> DestinationLimits | None:
        """Return the limits that the preset documents."""
        if self.preset is None:
            return None
        from emp_pipe._core import DestinationLimits

        return DestinationLimits(**DASH0_LIMITS)  # type: ignore[arg-type]  # whole numbers where they are wanted

    def revealed_headers(self, exporter_id: str) -> dict[str, str]:
        """Return `headers`, `token` and `dataset` as they are sent. Raises ConfigError where one cannot be."""
        headers = {name: _header_value(secret, f"{exporter_id}: headers.{name}") for name, secret in self.headers.items()}
        if self.token is not None:
            headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
            headers["Authorization"] = f"Bearer {_header_value(self.token, f'{exporter_id}: token')}"
        if self.dataset is not None:
            headers["Dash0-Dataset"] = self.dataset
        return headers


def check_header_names(names: Iterable[str], *, allowed: re.Pattern[str], what: str, own: re.Pattern[str]) -> None:
    """Raise ValueError for a name that is not `what` a protocol's names are, or is the exporter's `own` to set."""
    for name in names:
        if not allowed.fullmatch(name):
            raise ValueError(f"{name!r} is not {what}")
        if own.fullmatch(name):
            raise ValueError(f"{name} is set by the exporter")


def partial_success(body: bytes) -> tuple[int, str]:
    """Return rejected records and the message of a success (protobuf); one that cannot be read is a success: sending again would repeat."""
    if not body:
        return 0, ""
    from emp_pipe._core import CoreError, parse_export_response

    try:
        response = parse_export_response(body)
    except CoreError:
        return 0, unreadable_answer(body)
    return max(response.rejected, 0), printable(response.message)


def unreadable_answer(body: bytes) -> str:
    return f"the answer of {len(body)} bytes cannot be read"


def printable(text: str) -> str:
    """Return a line that is safe to log, at most 300 characters."""
    return "".join(char if char.isprintable() else " " for char in text[:300]).strip()


def _header_value(secret: Secret, place: str) -> str:
    text = secret.reveal(place)
    if not text.isprintable() or not text.isascii():
        raise ConfigError(ErrorKind.CONFIG_INVALID, place=place, detail="a header's value must be printable ASCII")
    return text
