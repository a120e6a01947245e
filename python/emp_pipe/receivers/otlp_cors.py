"""Which web pages may send to an OTLP/HTTP receiver: the answers that browsers ask for (CORS). Source: the Fetch standard."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated

from pydantic import Field, field_validator

from emp_pipe.component import ComponentConfig
from emp_pipe.http_reply import Response

_ALWAYS_ALLOWED = ("authorization", "content-encoding", "content-type")
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/\s,]+", re.IGNORECASE)
_HEADER_NAMES = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+(?:[ \t]*,[ \t]*[-!#$%&'*+.^_`|~0-9A-Za-z]+)*")


class CorsConfig(ComponentConfig):
    """Which web pages may send."""

    allowed_origins: tuple[str, ...] = Field(
        min_length=1,
        description="Origins of pages, such as https://app.example.com; `*` stands for any part of a name, alone for every page.",
    )
    allowed_headers: tuple[str, ...] = Field(
        (), description="Headers that pages may send beside content-type, content-encoding and authorization; `*` allows all."
    )
    max_age_s: Annotated[int, Field(ge=0)] = Field(7200, description="How long a browser need not ask again.")

    @field_validator("allowed_origins")
    @classmethod
    def _origins_are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if _ORIGIN.fullmatch(origin) is None:
                raise ValueError(f"`{origin}` is no origin: write https://host, or https://host:port, without a path")
        return origins


class Cors:
    """The rules, ready to be asked. Without settings no page may send."""

    def __init__(self, config: CorsConfig | None) -> None:
        self._config = config
        parts = (
            []
            if config is None
            else [re.escape(origin).replace(r"\*", ".*" if origin == "*" else r"[^/]*") for origin in config.allowed_origins]
        )
        self._origins = re.compile("|".join(parts) or r"(?!)", re.IGNORECASE)
        allowed = set(_ALWAYS_ALLOWED) if config is None else {*_ALWAYS_ALLOWED, *(name.lower() for name in config.allowed_headers)}
        self._allowed_headers = allowed

    def headers_of(self, origin: str) -> str:
        """Return the header lines that let a page read the answer; "" where it may not."""
        if not origin or self._origins.fullmatch(origin) is None:
            return ""
        return (
            f"Access-Control-Allow-Origin: {origin}\r\nAccess-Control-Allow-Credentials: true\r\n"
            "Access-Control-Expose-Headers: Retry-After\r\nVary: Origin\r\n"
        )

    def preflight(self, method: str, headers: Mapping[str, str]) -> Response | None:
        """Return the answer to a browser that asks before it sends; None where the request is no such question, or no page may send.

        A page that may not send gets an answer without permission: its browser tells it."""
        if self._config is None or method != "OPTIONS" or "access-control-request-method" not in headers:
            return None
        lines = self.headers_of(headers.get("origin", ""))
        if lines:
            asked = headers.get("access-control-request-headers", "")
            names = asked.lower().replace(" ", "").replace("\t", "").split(",") if asked else []
            allowed = "*" in self._allowed_headers or self._allowed_headers.issuperset(names)
            if asked and allowed and _HEADER_NAMES.fullmatch(asked) is not None:
                lines += f"Access-Control-Allow-Headers: {asked}\r\n"
            lines += f"Access-Control-Allow-Methods: POST\r\nAccess-Control-Max-Age: {self._config.max_age_s}\r\n"
        return Response(HTTPStatus.NO_CONTENT, headers=lines or "Vary: Origin\r\n")
