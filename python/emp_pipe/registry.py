"""Which component types exist, and where their classes are: built in, installed as plugins, or named by dotted path.

A built-in type `forward` of receivers is the module `emp_pipe.receivers.forward`, which exposes CONFIG and COMPONENT; it is imported when
a configuration names it, not before. A plugin is an entry point in the group `emp_pipe.receivers`, `emp_pipe.processors` or
`emp_pipe.exporters` that names such a module, or a class; a class can be named without an installation too: `my_package.my_module:MyClass`.
Not here: what is done with the classes. Read next: `config.py`, `pipeline.py`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from types import ModuleType
from typing import Any

from emp_pipe.component import ComponentConfig
from emp_pipe.errors import ConfigError, ErrorKind


class Kind(StrEnum):
    """The sections of a configuration that hold components, and the packages that hold their modules."""

    RECEIVERS = "receivers"
    PROCESSORS = "processors"
    BUFFERS = "buffers"
    EXPORTERS = "exporters"


BUILT_IN: dict[Kind, tuple[str, ...]] = {
    Kind.RECEIVERS: (
        "forward",
        "otlp_grpc",
        "otlp_http",
        "http_json",
        "syslog",
        "tail",
        "journald",
        "kmsg",
        "docker",
        "kubernetes",
        "system_logs",
        "host_metrics",
        "gpu_metrics",
        "checks",
    ),
    Kind.PROCESSORS: ("enrich", "redact", "filter", "rate_limit", "sample", "tail_sample", "red_metrics", "aggregate"),
    Kind.BUFFERS: ("sqlite", "redis", "memory"),
    Kind.EXPORTERS: ("otlp_http", "otlp_grpc", "forward", "file", "stdout", "noop", "error"),
}


@dataclass(frozen=True, slots=True)
class ComponentType:
    """A type that a configuration can name: its settings class, and its class, built as `component(id, config, context)`."""

    name: str
    kind: Kind
    config: type[ComponentConfig]
    component: Any


def type_of(component_id: str) -> str:
    """Return the type in a component's id: `forward` of `forward/secure`."""
    return component_id.partition("/")[0]


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the known word that is most like `word`, or "" when none is."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.55)
    return found[0] if found else ""


@cache
def _plugins(kind: Kind) -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=f"emp_pipe.{kind}")}


def known_types(kind: Kind) -> list[str]:
    """Return the names of all types of a kind that are installed here."""
    return [*BUILT_IN[kind], *(name for name in _plugins(kind) if name not in BUILT_IN[kind])]


def find(kind: Kind, name: str) -> ComponentType:
    """Return the type `name`. Raises ConfigError without a place: unknown (with the nearest known), or a plugin that cannot be imported."""
    if name in BUILT_IN[kind]:
        return _of_module(kind, name, importlib.import_module(f"emp_pipe.{kind}.{name}"))
    point = _plugins(kind).get(name)
    if point is None and ":" not in name:
        like = nearest(name, known_types(kind))
        raise ConfigError(
            ErrorKind.CONFIG_UNKNOWN_KEY,
            detail=f"there is no {str(kind)[:-1]} of type {name!r}",
            advice=f"{f'did you mean {like!r}? ' if like else ''}Known: {', '.join(known_types(kind))}",
        )
    module_name, _, class_name = (point.value if point else name).partition(":")
    try:
        module = importlib.import_module(module_name.strip())
        if not class_name:
            return _of_module(kind, name, module)
        component = getattr(module, class_name.strip())
    except Exception as error:  # whatever a plugin does when it is imported is its author's to mend, and must name it
        raise ConfigError(
            ErrorKind.CONFIG_INVALID,
            detail=f"{str(kind)[:-1]} {name!r} cannot be loaded ({type(error).__name__}: {error})",
            advice="install its package, or correct its name",
        ) from error
    return _checked(kind, name, getattr(component, "CONFIG", getattr(module, "CONFIG", ComponentConfig)), component)


def _of_module(kind: Kind, name: str, module: ModuleType) -> ComponentType:
    return _checked(kind, name, getattr(module, "CONFIG", ComponentConfig), getattr(module, "COMPONENT", None))


def _checked(kind: Kind, name: str, config: Any, component: Any) -> ComponentType:
    if not (isinstance(config, type) and issubclass(config, ComponentConfig)) or not callable(component):
        raise ConfigError(
            ErrorKind.CONFIG_INVALID,
            detail=f"{str(kind)[:-1]} {name!r} has no CONFIG (a ComponentConfig class) or no COMPONENT",
            advice="see `examples/` for the shape of a plugin",
        )
    return ComponentType(name, kind, config, component)


def imported(kind: Kind, name: str) -> bool:
    """Return whether a built-in type's module has been imported (heavy ones must not be, before a configuration names them)."""
    return f"emp_pipe.{kind}.{name}" in sys.modules
