"""One layer of configuration: plain values, and for each of them the place that it came from.

A YAML file is a layer (places: `emp.yaml:7`), and so is what a role makes of the environment (places: `environment FLUENTD_HOST`). Layers
are merged, the upper one first in line, and only then checked, so that an error names the place of the very key that is wrong.
Not here: what the keys mean. Read next: `config.py`.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from emp_pipe.errors import ConfigError, ErrorKind

KeyPath = tuple[str | int, ...]
_MOST_NODES = 100_000
_DEEPEST = 64
_MOST_FILE_BYTES = 4 << 20
_MERGE_TAG = "tag:yaml.org,2002:merge"
_VARIABLE = re.compile(r"\$(?:\$|\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}|\{([^}]*)\}?)")


@dataclass(slots=True)
class Layer:
    """Values as a YAML file would hold them; `places` says where each key stands, `variables` which `${VAR}` a value was made of."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)
    variables: dict[KeyPath, str] = field(default_factory=dict)
    origin: str = ""
    """The whole layer's name, for what has no place of its own."""

    def put(self, path: KeyPath, value: Any, *, variable: str = "", place: str = "") -> None:
        """Set one value, making the maps above it; `variable` names the environment variable that it came from."""
        at = self.values
        for key in path[:-1]:
            following = at.get(str(key))
            if not isinstance(following, dict):
                following = at[str(key)] = {}
            at = following
        at[str(path[-1])] = value
        if len(path) > 2 and (variable or place):
            self.places.setdefault(path[:2], place or f"environment {variable}")
        if variable:
            self.places[path] = place or f"environment {variable}"
            self.variables[path] = variable
        elif place:
            self.places[path] = place

    def place(self, path: KeyPath) -> str:
        """Return the place of a key, else of the nearest key above it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return self.origin


def path_text(path: KeyPath) -> str:
    """Return a key path as people write it: `exporters.otlp_http/dash0.headers`, `hosts[1]`."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


def merged(lower: Layer, upper: Layer, component_sections: frozenset[str]) -> Layer:
    """Return `upper` laid over `lower`. Maps are merged key by key, but a component that `upper` names replaces the lower one whole.

    A component set to `false` is left out."""
    result = Layer({}, {}, {}, upper.origin or lower.origin)

    def adopt(layer: Layer, path: KeyPath) -> None:
        for source, target in ((layer.places, result.places), (layer.variables, result.variables)):
            for known, value in source.items():
                if known[: len(path)] == path:
                    target[known] = value

    def join(below: Any, above: Any, path: KeyPath) -> Any:
        whole = len(path) == 2 and path[0] in component_sections
        if isinstance(below, dict) and isinstance(above, dict) and not whole:
            if path in upper.places:
                result.places[path] = upper.places[path]
            return {
                key: join(below[key], above[key], (*path, key)) if key in below and key in above else only(below, above, key, path)
                for key in [*below, *(key for key in above if key not in below)]
            }
        adopt(upper, path)
        return above

    def only(below: dict[str, Any], above: dict[str, Any], key: str, path: KeyPath) -> Any:
        adopt(lower if key in below else upper, (*path, key))
        return below[key] if key in below else above[key]

    result.values = join(lower.values, upper.values, ())
    for section in component_sections:
        components = result.values.get(section)
        if isinstance(components, dict):
            result.values[section] = {name: value for name, value in components.items() if value is not False}
    return result


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
