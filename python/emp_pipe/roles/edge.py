"""The edge: one process on every machine. Forward and OTLP in on loopback, out to central, else to Dash0, an OTLP endpoint, or files.

Logs go to central where there is one. Traces and metrics go straight to Dash0 where its credentials are here, else to central too
(EMP_TRACES_METRICS_TO). Straight means that what a central would do is done here, with what this machine sees; by central means that only
metrics are merged here.
Only a function from the environment to a layer of configuration; `emp-pipe edge --print-config` shows what it gives.
Not here: what the variables mean (`environment.py`).
"""

from __future__ import annotations

from emp_pipe import environment as env
from emp_pipe import environment_redis
from emp_pipe.config_layer import Layer

_NOT_LOGS = ("traces", "metrics")


def expand(environment: env.Environment) -> Layer:
    """Return what an edge is, given the environment. Raises ConfigError for a variable that cannot be read."""
    layer = Layer(origin="role edge")
    env.put_process(layer, environment, "edge")
    environment_redis.put_redis(layer, environment)
    env.put_stamp(layer, environment)
    _put_receivers(layer, environment)
    layer.put(("processors", "redact"), {}, place="role edge")  # credentials; `redact: false` leaves it out
    way, why = env.traces_metrics_to(environment)
    # What central does with traces and metrics is done here where they do not come by it; a block says what was done.
    env.put_processors(layer, env.TRACES_METRICS_PROCESSORS if way == "direct" else ("aggregate",), why)
    _put_exporters(layer, environment, way, why)
    return layer


def _put_receivers(layer: Layer, environment: env.Environment) -> None:
    layer.put(("receivers", "forward", "listen"), "127.0.0.1:24224", place="role edge")
    key, name = env.first(environment, "EMP_FORWARD_SHARED_KEY")
    if key:
        env.put_secure_forward(layer, environment, key_name=name)
    env.put_otlp_receivers(layer, environment, "edge")
    env.put_http_json(layer, environment, "edge")


def _put_exporters(layer: Layer, environment: env.Environment, way: str, why: str) -> None:
    to_central = env.put_central(layer, environment)
    if to_central and way == "central":
        if not env.first(environment, "FLUENTD_SHARED_KEY")[0]:
            why = "without FLUENTD_SHARED_KEY central takes only logs by Forward"
            env.put_only(layer, "forward/central", ["logs"], why)
            env.put_only(layer, env.put_central_otlp(layer, environment), _NOT_LOGS, why)
        return
    direct = ["otlp_http/dash0"] if env.put_dash0(layer, environment) else []
    if exporter := env.put_otlp(layer, environment):
        direct.append(exporter)
    if to_central:
        env.put_only(layer, "forward/central", ["logs"], why)
        for exporter in direct:
            env.put_only(layer, exporter, _NOT_LOGS, why)
    elif not direct:
        env.put_file(layer)
