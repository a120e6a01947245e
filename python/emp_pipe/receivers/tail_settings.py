"""The settings of a tail. They are beside `tail.py`, which is about running, for `tail_reader.py` needs them too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, PositiveFloat, field_validator

from emp_pipe.line_settings import LineSettings

INCLUDE = ("/workspace/logs/*.log", "/workspace/ComfyUI/logs/*.log", "~/.pm2/logs/*.log")
EXCLUDE = ("*-combined.log", "*.gz", "*.bz2", "*.xz", "*.zst", "*.zip")
FROM_NAME = {"worker_id": r"(worker[-_]?\d+)", "gpu.index": r"gpu[-_]?(\d+)"}


class TailConfig(LineSettings):
    """Settings of a file tail."""

    include: tuple[str, ...] = Field(INCLUDE, min_length=1, description="Globs of the files; `**` is any number of directories.")
    exclude: tuple[str, ...] = Field(
        EXCLUDE, description="Globs of names or paths that are left out. What rotation packed is found all the same."
    )
    from_: Literal["checkpoint", "beginning", "end"] = Field(
        "checkpoint",
        alias="from",
        description="Where reading starts: `checkpoint`: where the last run stopped, a new file from its beginning; `end`: likewise, but "
        "what is there at the very first start is left out; `beginning`: all of every file, at every start.",
    )
    tag: str = Field("tail.*", description="The tag of the rows; `*` is the file's name without its ending.")
    attributes: Mapping[str, str] = Field(default_factory=dict, description="Resource attributes of all rows.")
    from_name: Mapping[str, str] = Field(
        default_factory=lambda: dict(FROM_NAME),
        description="Resource attributes out of the file's name: each a regular expression; its first group, else all, is the value.",
    )
    max_line_bytes: int = Field(1 << 20, ge=64, le=16 << 20, description="Longer lines are split, and each part is marked.")
    max_open_files: int = Field(512, ge=4, description="The most descriptors; of more files those that are quiet are closed meanwhile.")
    watch: Literal["auto", "poll"] = Field(
        "auto", description="How changes are seen: `auto`: by inotify where it works; `poll`: by looking every `poll_interval_s`."
    )
    poll_interval_s: PositiveFloat = Field(0.25, le=60, description="How often files that grow, or cannot be watched, are looked at.")
    rotate_wait_s: float = Field(5.0, ge=0, le=3600, description="So long a file that was rotated away may still be written to.")
    flush_s: PositiveFloat = Field(1.0, le=3600, description="So long lines that belong together wait for the next of them.")

    @field_validator("from_name")
    @classmethod
    def _names(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for key, pattern in value.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{key}: no regular expression ({error})") from error
        return value
