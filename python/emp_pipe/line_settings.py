"""How lines are read: the settings that every receiver of lines has, and the core's parser made of them.

Not here: what the formats are (Rust core, `lines/formats/`). For users: `docs/formats.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from emp_pipe.component import ComponentConfig

if TYPE_CHECKING:
    from emp_pipe._core import LineParser, Normalizer

Format = Literal[
    "auto",
    "plain",
    "json",
    "logfmt",
    "docker",
    "cri",
    "syslog",
    "nginx_access",
    "nginx_error",
    "python",
    "bracketed",
    "comfyui",
    "regex",
]


class LineSettings(ComponentConfig):
    """Settings of how lines are read."""

    format: Format = Field("auto", description="How lines are read; `auto`: each by its look; see [formats](formats.md).")
    pattern: str | None = Field(
        None, min_length=1, max_length=4096, description="With `format: regex`: a regular expression whose named groups are the fields."
    )
    multiline: bool = Field(True, description="Whether the lines of a trace (Python, Node, Java, Go, Rust) are one record.")
    record_start: str | None = Field(
        None, min_length=1, max_length=4096, description="Lines that match begin a record, all others belong to the one above."
    )
    utc_offset_s: int = Field(0, ge=-86_400, le=86_400, description="The zone of times that name none, in seconds east of UTC.")
    progress_interval_s: float = Field(10.0, ge=0, le=86_400, description="How often a progress bar that redraws itself is a record.")

    @model_validator(mode="after")
    def _patterns(self) -> Self:
        if (self.pattern is None) is (self.format == "regex"):
            raise ValueError("format regex needs a pattern" if self.pattern is None else "a pattern is of format regex")
        if self.pattern is not None or self.record_start is not None:
            from emp_pipe._core import LineParser

            if self.pattern is not None:
                LineParser.check_pattern(self.pattern, named=True)
            if self.record_start is not None:
                LineParser.check_pattern(self.record_start, named=False)
        return self


def make_parser(
    settings: LineSettings,
    normalizer: Normalizer,
    tag: str,
    *,
    scope: str,
    resource: Mapping[str, str] | None = None,
    max_line_bytes: int = 1 << 20,
    parts: int = 0,
) -> LineParser:
    """Return the parser of one file or stream."""
    from emp_pipe._core import LineParser

    return LineParser(
        normalizer,
        tag,
        format=settings.format,
        resource=resource or {},
        max_line_bytes=max_line_bytes,
        scope=scope,
        parts=parts,
        pattern=settings.pattern,
        multiline=settings.multiline,
        record_start=settings.record_start,
        utc_offset_s=settings.utc_offset_s,
        progress_interval_s=settings.progress_interval_s,
    )
