"""One layer of configuration: plain values, and for each of them the place that it came from.

A YAML file is a layer (places: `emp.yaml:7`), and so is what a role makes of the environment (places: `environment FLUENTD_HOST`). Layers
are merged, the upper one first in line, and only then checked, so that an error names the place of the very key that is wrong.
Not here: what the keys mean (`config.py`), how YAML is read (`config_yaml.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

KeyPath = tuple[str | int, ...]


@dataclass(slots=True)
class Layer:
    """Values as a YAML file would hold them; `places` says where each key stands, `variables` which `${VAR}` a value was made of."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)
    variables: dict[KeyPath, str] = field(default_factory=dict)
    origin: str = ""
    """The whole layer's name, for what has no place of its own."""
    offered: set[KeyPath] = field(default_factory=set)
    """Components that a role has for those who need them: without anybody they are left out, and no mistake."""
    filled: set[KeyPath] = field(default_factory=set)
    """Where a value was put together with a `${VAR}`."""

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

    def filled_from_environment(self, path: KeyPath) -> bool:
        """Whether a value, or a part of it, was taken from an environment variable."""
        return path in self.variables or path in self.filled

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
    result.filled = {path for path in lower.filled if path not in upper.places} | upper.filled
    result.offered = {path for path in lower.offered if path not in upper.places} | upper.offered
    return result
