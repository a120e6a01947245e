"""Central: what edges and services send to. Forward (secure on 24225, plain on loopback) and OTLP in; out to Dash0, OTLP, or files.

Only a function from the environment to a layer of configuration; `emp-pipe central --print-config` shows what it gives. Central stamps
nothing: a record keeps the identity that its edge gave it. Not here: what the variables mean (`environment.py`).
"""

from __future__ import annotations

from emp_pipe import environment as env
from emp_pipe import environment_redis
from emp_pipe.config_layer import Layer


def expand(environment: env.Environment) -> Layer:
    """Return what central is, given the environment. Raises ConfigError for a variable that cannot be read."""
    layer = Layer(origin="role central")
    env.put_process(layer, environment, "central")
    environment_redis.put_redis(layer, environment)
    layer.put(("receivers", "forward", "listen"), "127.0.0.1:24224", place="role central")
    key, name = env.first(environment, "EMP_FORWARD_SHARED_KEY", "FLUENTD_SHARED_KEY")
    if key:
        env.put_secure_forward(layer, environment, key_name=name)
    env.put_otlp_receivers(layer, environment, "central")
    env.put_http_json(layer, environment, "central")
    layer.put(("processors", "redact"), {}, place="role central")  # credentials; `redact: false` leaves it out
    env.put_processors(layer, env.TRACES_METRICS_PROCESSORS, "role central")
    to_dash0 = env.put_dash0(layer, environment)
    to_otlp = env.put_otlp(layer, environment)
    if not to_dash0 and not to_otlp:
        env.put_file(layer)
    return layer
