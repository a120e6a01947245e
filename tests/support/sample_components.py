"""Components for tests of the configuration: settings of every shape, no behaviour."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from emp_pipe.component import ComponentConfig, Context
from emp_pipe.secret import Secret


class SampleTls(ComponentConfig):
    cert_file: Path = Field(description="PEM.")


class SampleConfig(ComponentConfig):
    listen: str = Field("127.0.0.1:1", description="Where.")
    size: int = Field(7, description="How much.")
    text: str = Field("", description="What.")
    url: str = Field("", description="An address that may hold a password.")
    ports: tuple[int, ...] = Field((), description="Several.")
    secret: Secret | None = Field(None, description="Not to be told.")
    tls: SampleTls | None = Field(None, description="Nested.")


class Sample:
    CONFIG = SampleConfig

    def __init__(self, id: str, config: SampleConfig, context: Context) -> None:
        self.id = id


class SampleBuffer:
    CONFIG = ComponentConfig
