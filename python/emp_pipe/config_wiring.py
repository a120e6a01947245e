"""What does not fit together in a configuration although each part of it is right: found before anything is built.

Two tail samplers, an aggregator whose metrics nobody takes, an exporter that would send to a receiver of the same process.
Not here: what plugins read and write, which is known once they are built (`deriving.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from emp_pipe.component import ComponentConfig, Signal
from emp_pipe.config_layer import KeyPath
from emp_pipe.registry import type_of

ONCE = {
    "tail_sample": "each would keep its own part of the traces",
    "red_metrics": "every call would be counted twice",
    "aggregate": "every point would be counted twice",
}
"""Processors of which a process has one, and why."""
_MAKES = {"tail_sample": Signal.TRACES, "red_metrics": Signal.METRICS, "aggregate": Signal.METRICS}
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_ANY = frozenset({"", "*", "0.0.0.0", "::"})  # noqa: S104 — compared, not bound


class Problem(NamedTuple):
    """What does not fit, at which key, and what to do about it."""

    path: KeyPath
    detail: str
    advice: str


def problems(
    receivers: Mapping[str, ComponentConfig], processors: Mapping[str, ComponentConfig], exporters: Mapping[str, ComponentConfig]
) -> Iterator[Problem]:
    """Yield what does not fit together."""
    for name in processors.keys() & exporters.keys():
        yield Problem(("processors", name), f"{name} is a processor and an exporter", f"give one of them a name: {name}/in")
    yield from _twice(processors)
    if exporters:
        yield from _unread(processors, exporters)
    yield from _to_itself(receivers, exporters)


def _twice(processors: Mapping[str, ComponentConfig]) -> Iterator[Problem]:
    for type_name, why in ONCE.items():
        names = [name for name in processors if type_of(name) == type_name]
        if len(names) > 1:
            detail = f"{' and '.join(names)}: there can be one {type_name} in a process, for {why}"
            yield Problem(("processors", names[1]), detail, f"put what {names[1]} says into {names[0]}, and remove it")


def _unread(processors: Mapping[str, ComponentConfig], exporters: Mapping[str, ComponentConfig]) -> Iterator[Problem]:
    taken = {signal for name, settings in exporters.items() for signal in signals_taken(name, settings)}
    for name in processors:
        made = _MAKES.get(type_of(name))
        if made is not None and made not in taken:
            yield Problem(
                ("processors", name),
                f"processors.{name} makes {made.value}, and no exporter takes {made.value}",
                f"add {made.value} to the `only.signals` of an exporter, or remove {name} (in a file laid over a role: `{name}: false`)",
            )


def signals_taken(name: str, settings: Any) -> frozenset[Signal]:
    """Return the signals that an exporter takes: those that its `only` lets through, by Forward without a key at most logs."""
    only = getattr(settings, "only", None)
    taken = frozenset(only.signals if only is not None and only.signals else Signal)
    return taken & {Signal.LOGS} if type_of(name) == "forward" and getattr(settings, "shared_key", None) is None else taken


def _to_itself(receivers: Mapping[str, ComponentConfig], exporters: Mapping[str, ComponentConfig]) -> Iterator[Problem]:
    listening = {place: name for name, settings in receivers.items() for place in _listens(settings)}
    for name, settings in exporters.items():
        for key, (host, port) in _addresses(settings):
            receiver = listening.get((host, port)) or (listening.get(("", port)) if host == _HERE else None)
            if receiver is not None:
                yield Problem(
                    ("exporters", name, key),
                    f"exporters.{name}.{key} is where {receiver} of this very process listens: records would go round in a circle",
                    f"name another destination, or another `listen` of {receiver}",
                )


_HERE = "here"


def _host(host: str) -> str:
    """Return one name for all that mean this machine's loopback, "" for all interfaces."""
    host = host.strip("[]").lower()
    return "" if host in _ANY else _HERE if host in _LOCAL else host


def _listens(settings: Any) -> Iterator[tuple[str, int]]:
    listen = getattr(settings, "listen", ())
    for entry in (listen,) if isinstance(listen, str) else listen:
        host, colon, port = str(entry).rpartition(":")
        if port.isdigit() and int(port):
            yield (_host(host) if colon else _HERE), int(port)


def _addresses(settings: Any) -> Iterator[tuple[str, tuple[str, int]]]:
    for key in ("endpoint", "logs_endpoint", "traces_endpoint", "metrics_endpoint"):
        given = getattr(settings, key, None) or ()
        for address in (given,) if isinstance(given, str) else given:
            try:
                parts = urlsplit(address if "://" in address else f"//{address}")
                host, port = parts.hostname, parts.port
            except ValueError:
                continue
            if host and port:
                yield key, (_host(host), port)
