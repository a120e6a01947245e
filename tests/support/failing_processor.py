"""A plugin that fails on every batch, and one that is right: for tests of what the pipeline does with them."""

from __future__ import annotations

from typing import Any

from emp_pipe.component import ComponentConfig, Context


class Failing:
    CONFIG = ComponentConfig

    def __init__(self, id: str, config: ComponentConfig, context: Context) -> None:
        self.id = id

    def process(self, batch: Any) -> Any:
        raise ZeroDivisionError("a plugin's mistake")


class FailingAndStopping(Failing):
    from emp_pipe.component import ProcessorConfig as CONFIG
