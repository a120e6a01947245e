"""What the environment says of a buffer in Redis: `EMP_BUFFER_REDIS_URL` chooses it, further variables say who we are to it.

Not here: the settings themselves (`buffers/redis_client.py`), the Redis in which it never is (`job_queue.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emp_pipe import environment as env
from emp_pipe.config_layer import Layer

_REDIS = "EMP_BUFFER_REDIS_"
_VOLUME = "RAILWAY_VOLUME_MOUNT_PATH"


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
    env.put(layer, ("buffer", "shards"), environment, f"{_REDIS}SHARDS")
    for source, name in (("env", f"{_REDIS}PASSWORD"), ("file", f"{_REDIS}PASSWORD_FILE")):
        if value := env.first(environment, name)[0]:
            layer.put(("buffer", "password", source), name if source == "env" else value, place=f"environment {name}")
    for setting in ("ca_file", "cert_file", "key_file"):
        env.put(layer, ("buffer", "tls", setting), environment, f"{_REDIS}TLS_{setting.upper()}")
    if env.flag(environment, f"{_REDIS}CLUSTER", False):
        layer.put(("buffer", "cluster"), True, place=f"environment {_REDIS}CLUSTER")
    if (word := env.first(environment, f"{_REDIS}SPOOL")[0]) and word.lower() != "auto":
        layer.put(("buffer", "spool", "enabled"), env.flag(environment, f"{_REDIS}SPOOL", True), place=f"environment {_REDIS}SPOOL")
    env.put(layer, ("buffer", "spool", "directory"), environment, f"{_REDIS}SPOOL_DIR")


def drop_redis(layer: Layer, written: Layer) -> None:
    """Take `put_redis` back where a file names another buffer: its settings are not that one's."""
    asked = written.values.get("buffer")
    kind = asked.get("type", "redis") if isinstance(asked, dict) else asked
    if kind not in (None, "redis") and layer.place(("buffer", "type")) == f"environment {_REDIS}URL":
        layer.values.pop("buffer", None)


def put_spool(layer: Layer, environment: env.Environment) -> None:
    """Say whether a log in Redis has a spool on this disk, where nobody has said: it has one where the disk seems to outlive the process.

    Railway announces a volume; elsewhere a data directory (or a directory for the spool) that somebody has named is taken for one."""
    buffer = layer.values.get("buffer")
    if not isinstance(buffer, dict) or buffer.get("type") != "redis":
        return
    spool = buffer.get("spool")
    if spool is not None and (not isinstance(spool, dict) or spool.get("enabled", "auto") != "auto"):
        return
    lasts, why = _lasts(layer, environment, spool or {})
    layer.put(("buffer", "spool", "enabled"), lasts, place=why)


def _lasts(layer: Layer, environment: env.Environment, spool: Mapping[str, Any]) -> tuple[bool, str]:
    where = Path(str(spool.get("directory") or layer.values.get("data_dir", "")))
    volume, _ = env.first(environment, _VOLUME)
    if volume:
        lasts = where.absolute().is_relative_to(volume)
        return lasts, f"{where} is {'' if lasts else 'not '}on {_VOLUME}"
    if env.first(environment, "RAILWAY_PROJECT_ID", "RAILWAY_ENVIRONMENT_ID", "RAILWAY_SERVICE_ID")[0]:
        return False, f"Railway without a volume: no {_VOLUME}"
    if spool.get("directory"):
        return True, "buffer.spool.directory is named"
    if env.first(environment, "STATE_DIRECTORY")[0] and layer.place(("data_dir",)) == env.STATE_PLACE:
        return True, "environment STATE_DIRECTORY"
    named = bool(layer.values.get("data_dir")) and layer.place(("data_dir",)) != env.STATE_PLACE
    return named, f"data_dir: {layer.place(('data_dir',))}" if named else "nobody has named a data_dir that lasts"
