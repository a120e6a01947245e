"""Adds the same attributes to every row that lacks them: to the resource by default, where destinations do not count them.

Not here: attributes that depend on the row; for those write a plugin (`examples/`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from emp_pipe.component import Context, ProcessorConfig

if TYPE_CHECKING:
    from emp_pipe._core import Batch


class EnrichConfig(ProcessorConfig):
    attributes: Mapping[str, str | bool | int | float] = Field(description="Attribute to the value that it gets.")
    target: Literal["resource", "record"] = Field("resource", description="Where the attributes are put.")
    overwrite: bool = Field(False, description="Also where the attribute has a value already.")


class Enrich:
    def __init__(self, id: str, config: EnrichConfig, context: Context) -> None:
        self.id = id
        self._config = config

    def process(self, batch: Batch) -> Batch | None:
        return batch.with_attributes(self._config.attributes, target=self._config.target, overwrite=self._config.overwrite)


CONFIG = EnrichConfig
COMPONENT = Enrich
