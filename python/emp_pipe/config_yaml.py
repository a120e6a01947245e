"""YAML to a layer of configuration: plain values with the line of every key, `${VAR}` filled in, a repeated key refused.

Imported when there is a file or a `--set`; an edge without either does without it. Not here: what the keys mean (`config.py`).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from emp_pipe.config_layer import KeyPath, Layer, path_text
from emp_pipe.errors import ConfigError, ErrorKind

_MOST_NODES = 100_000
_DEEPEST = 64
_MOST_FILE_BYTES = 4 << 20
_MERGE_TAG = "tag:yaml.org,2002:merge"
_VARIABLE = re.compile(r"\$(?:\$|\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}|\{([^}]*)\}?)")


def read_yaml(path: Path, environment: Mapping[str, str]) -> Layer:
    """Return the layer that a YAML file holds, `${VAR}` and `${VAR:-default}` filled in from the environment.

    Raises ConfigError with file and line: unreadable file, bad YAML, duplicate key, variable that is not set."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(ErrorKind.CONFIG_NOT_FOUND, place=str(path), detail=f"cannot be read ({error.strerror})") from error
    if len(data) > _MOST_FILE_BYTES:
        raise ConfigError(ErrorKind.CONFIG_INVALID, place=str(path), detail=f"is larger than {_MOST_FILE_BYTES:,} bytes")
    return parse_yaml(data, str(path), environment)


def parse_yaml(data: bytes | str, name: str, environment: Mapping[str, str]) -> Layer:
    """Return the layer that YAML text holds; `name` stands for it in places."""
    try:
        root = yaml.compose(data, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigError(
            ErrorKind.CONFIG_INVALID, place=place, detail=f"is not valid YAML: {error.problem or error.context}", advice="correct this line"
        ) from error
    except (yaml.YAMLError, RecursionError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(ErrorKind.CONFIG_INVALID, place=name, detail=f"is not valid YAML: {reason}", advice="correct the file") from error
    layer = Layer(origin=name)
    if root is None:
        return layer
    values = _Reader(layer, name, environment).value(root, (), 0)
    if values is None:
        return layer
    if not isinstance(values, dict):
        raise ConfigError(ErrorKind.CONFIG_INVALID, place=f"{name}:1", detail="the file is not a map of settings", advice="start with keys")
    layer.values = values
    return layer


class _Reader:
    """Turns YAML nodes into plain values and notes the line of every key."""

    def __init__(self, layer: Layer, name: str, environment: Mapping[str, str]) -> None:
        self._layer = layer
        self._name = name
        self._environment = environment
        self._constructor = yaml.SafeLoader("")
        self._nodes = 0

    def value(self, node: yaml.Node, path: KeyPath, depth: int) -> Any:
        self._nodes += 1
        if self._nodes > _MOST_NODES or depth > _DEEPEST:
            raise self._error(node, path, "is nested too deeply or repeats too much through aliases")
        if isinstance(node, yaml.MappingNode):
            return self._map(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                self._layer.places[*path, index] = self._place(item)
                items.append(self.value(item, (*path, index), depth + 1))
            return items
        return self._scalar(node, path)

    def _map(self, node: yaml.MappingNode, path: KeyPath, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        lines: dict[str, int] = {}
        inherited: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE_TAG:
                inherited.extend(value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node])
                continue
            key = self._key(key_node, path)
            if key in lines:
                raise self._error(key_node, (*path, key), f"stands twice (first in line {lines[key]})", "keep one of the two")
            lines[key] = key_node.start_mark.line + 1
            self._layer.places[*path, key] = self._place(key_node)
            result[key] = self.value(value_node, (*path, key), depth + 1)
        for parent in inherited:
            if not isinstance(parent, yaml.MappingNode):
                raise self._error(parent, path, "`<<` needs a map")
            for key_node, value_node in parent.value:
                key = self._key(key_node, path)
                if key not in result:
                    self._layer.places[*path, key] = self._place(key_node)
                    result[key] = self.value(value_node, (*path, key), depth + 1)
        return result

    def _key(self, node: yaml.Node, path: KeyPath) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, path, "has a key that is not plain text")
        return str(node.value)

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Hashable:
        try:
            value = self._constructor.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            raise self._error(node, path, f"has a value that YAML cannot read ({str(error).splitlines()[0]})") from error
        if isinstance(value, str):
            return self._substituted(value, node, path)
        if isinstance(value, (bool, int, float)) or value is None:
            return value
        return str(node.value)  # a date, say, is text here

    def _substituted(self, text: str, node: yaml.Node, path: KeyPath) -> str:
        if "$" not in text:
            return text

        def replacement(match: re.Match[str]) -> str:
            if match.group(0) == "$$":
                return "$"
            name, default, wrong = match.groups()
            if name is None:
                raise self._error(node, path, f"has `${{{wrong}}}`, which is not a variable", "write ${NAME}, or $$ for a dollar sign")
            found = self._environment.get(name)
            if found:
                self._layer.filled.add(path)
            if match.group(0) == text:
                self._layer.variables[path] = name
            if found is None and default is None:
                raise self._error(node, path, f"needs the environment variable {name}, which is not set", f"set {name}")
            return found or default or ""

        return _VARIABLE.sub(replacement, text)

    def _place(self, node: yaml.Node) -> str:
        return f"{self._name}:{node.start_mark.line + 1}"

    def _error(self, node: yaml.Node, path: KeyPath, detail: str, advice: str = "") -> ConfigError:
        where = path_text(path)
        return ConfigError(
            ErrorKind.CONFIG_INVALID, place=self._place(node), detail=f"{where} {detail}" if where else detail, advice=advice
        )


def put_setting(layer: Layer, text: str) -> None:
    """Put one `--set key.path=value` into a layer; the value is read as YAML. A key with dots stands in quotes."""
    key, equals, value = text.partition("=")
    parts = tuple(quoted or plain for quoted, plain in re.findall(r'"([^"]+)"|([^."]+)', key.strip()))
    if not equals or not parts:
        raise ConfigError(ErrorKind.CONFIG_INVALID, place=f"--set {key}", detail="is not of the form key.path=value", advice="add `=value`")
    layer.put(parts, parse_yaml(f"value: {value}", f"--set {key}", {}).values.get("value"), place=f"--set {key}")
