"""The edge: one process on every machine. Forward in on loopback, out to central, else to Dash0, an OTLP endpoint, or files.

Only a function from the environment to a layer of configuration; `emp-pipe edge --print-config` shows what it gives.
Not here: what the variables mean (`environment.py`).
"""

from __future__ import annotations

from emp_pipe import environment as env
from emp_pipe.config_layer import Layer


def expand(environment: env.Environment) -> Layer:
    """Return what an edge is, given the environment. Raises ConfigError for a variable that cannot be read."""
    layer = Layer(origin="role edge")
    env.put_process(layer, environment, "edge")
    env.put_stamp(layer, environment)
    _put_receivers(layer, environment)
    _put_exporters(layer, environment)
    return layer


def _put_receivers(layer: Layer, environment: env.Environment) -> None:
    layer.put(("receivers", "forward", "listen"), "127.0.0.1:24224", place="role edge")
    key, name = env.first(environment, "EMP_FORWARD_SHARED_KEY")
    if key:
        env.put_secure_forward(layer, environment, key_name=name)


def _put_exporters(layer: Layer, environment: env.Environment) -> None:
    if env.put_central(layer, environment):
        return  # central is the one destination: it passes everything on
    to_dash0 = env.put_dash0(layer, environment)
    to_otlp = env.put_otlp(layer, environment)
    if not to_dash0 and not to_otlp:
        env.put_file(layer)
