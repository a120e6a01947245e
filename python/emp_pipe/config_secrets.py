"""Secrets that stand in the configuration itself, and where: whoever reads the file, its backups or the process list has them too.

A value that the environment filled in (`${NAME}`) does not stand there. Not here: what a secret is (`secret.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from emp_pipe.config import PipelineConfig
from emp_pipe.config_layer import KeyPath, Layer, path_text
from emp_pipe.secret import Secret

_SECRET_HEADER = re.compile(r"auth|key|token|secret|passw|cookie|credential", re.IGNORECASE)
_PASSWORD_IN_ADDRESS = re.compile(r"://[^/@\s]*:[^/@\s]+@")


def written_out(config: PipelineConfig, layer: Layer) -> Iterator[str]:
    """Yield a warning for each secret that is written out: where, which, and what to do instead."""
    for path in _inline(config, ()):
        around = [path[:length] for length in range(1, len(path) + 1)] + [(*path, "value")]
        if any(layer.filled_from_environment(one) for one in around):
            continue
        place = layer.place(path)
        if not place.startswith("environment "):
            yield (
                f"{place}: {path_text(path)}: the secret itself stands here; write {{env: NAME}} or {{file: /path}} in its place, and "
                "change the secret where others have read it"
            )


def _inline(value: Any, path: KeyPath) -> Iterator[KeyPath]:
    if isinstance(value, Secret):
        # A header may be anything; only what looks like a credential is spoken of.
        if value.value is not None and not (len(path) > 1 and path[-2] == "headers" and not _SECRET_HEADER.search(str(path[-1]))):
            yield path
    elif isinstance(value, str):
        if _PASSWORD_IN_ADDRESS.search(value):
            yield path
    elif isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            yield from _inline(getattr(value, name), (*path, field.alias or name))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _inline(item, (*path, str(key)))
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from _inline(item, (*path, index))
