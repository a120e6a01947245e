"""A configuration as YAML text that `emp-pipe run` takes again: what is set with the place it came from, secrets masked.

Not here: checking (`config.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from emp_pipe.component import FileMode
from emp_pipe.config import MASK, PipelineConfig, explicit
from emp_pipe.config_layer import KeyPath, Layer

_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*\Z")
_YAML_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def render(config: PipelineConfig, layer: Layer) -> str:
    """Return the whole configuration as YAML, defaults included; what is not a default ends in a comment with its place.

    A secret that came from an environment variable, and an address with one in it, is printed as `${NAME}`, any other as `***`."""
    lines = [f"# {config.role}: every setting; a comment names where a value came from, values without one are defaults"]
    open_path: KeyPath = ()
    for path, value in explicit(config):
        shared = 0
        while shared < min(len(open_path), len(path) - 1) and open_path[shared] == path[shared]:
            shared += 1
        for depth in range(shared, len(path) - 1):
            above = path[: depth + 1]
            lines.append(f"{'  ' * depth}{_scalar(str(path[depth]))}:{_comment(layer, above) if depth == 1 else ''}")
        variable = layer.variables.get(path, "")
        text = f"${{{variable}}}" if variable and isinstance(value, str) and MASK in value else _value(value)
        lines.append(f"{'  ' * (len(path) - 1)}{_scalar(str(path[-1]))}: {text}{_comment(layer, path)}")
        open_path = path[:-1]
    return "\n".join(lines) + "\n"


def _comment(layer: Layer, path: KeyPath) -> str:
    place = layer.places.get(path, "")
    return f"  # {place}" if place else ""


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_scalar(str(key))}: {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, FileMode):
        return str(value)
    if isinstance(value, str):
        return _scalar(value)
    return json.dumps(value, default=str)


def _scalar(text: str) -> str:
    if _PLAIN.match(text) and text.lower() not in _YAML_WORDS:
        return text
    return json.dumps(text.replace("$", "$$"), ensure_ascii=False)


def differences(before: PipelineConfig, after: PipelineConfig) -> Iterator[str]:
    """Yield the paths of settings that differ, sections that hold components excepted; for the log line of a reload."""
    for name in type(before).model_fields:
        if name not in ("receivers", "processors", "exporters") and getattr(before, name) != getattr(after, name):
            yield name
