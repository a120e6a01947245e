"""What the environment says of a buffer in Redis: `EMP_BUFFER_REDIS_URL` chooses it, further variables say who we are to it.

Not here: the settings themselves (`buffers/redis_client.py`), the Redis in which it never is (`job_queue.py`).
"""

from __future__ import annotations

from emp_pipe import environment as env
from emp_pipe.config_layer import Layer

_REDIS = "EMP_BUFFER_REDIS_"


def chosen(environment: env.Environment) -> bool:
    """Whether the environment says that the log is in Redis."""
    return bool(env.first(environment, f"{_REDIS}URL")[0])


def put_redis(layer: Layer, environment: env.Environment) -> None:
    """Put the buffer in Redis where EMP_BUFFER_REDIS_URL says so: it alone does, never the job queue's variables."""
    if not env.put(layer, ("buffer", "url"), environment, f"{_REDIS}URL"):
        return
    layer.put(("buffer", "type"), "redis", place=f"environment {_REDIS}URL")
    env.put(layer, ("buffer", "username"), environment, f"{_REDIS}USERNAME")
    env.put(layer, ("buffer", "prefix"), environment, f"{_REDIS}PREFIX")
    for source, name in (("env", f"{_REDIS}PASSWORD"), ("file", f"{_REDIS}PASSWORD_FILE")):
        if value := env.first(environment, name)[0]:
            layer.put(("buffer", "password", source), name if source == "env" else value, place=f"environment {name}")
    for setting in ("ca_file", "cert_file", "key_file"):
        env.put(layer, ("buffer", "tls", setting), environment, f"{_REDIS}TLS_{setting.upper()}")
    if env.flag(environment, f"{_REDIS}CLUSTER", False):
        layer.put(("buffer", "cluster"), True, place=f"environment {_REDIS}CLUSTER")


def drop_redis(layer: Layer, written: Layer) -> None:
    """Take `put_redis` back where a file names another buffer: its settings are not that one's."""
    asked = written.values.get("buffer")
    kind = asked.get("type", "redis") if isinstance(asked, dict) else asked
    if kind not in (None, "redis") and layer.place(("buffer", "type")) == f"environment {_REDIS}URL":
        layer.values.pop("buffer", None)
