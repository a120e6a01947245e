"""The asking side of the control socket; imports nothing heavy, for `emp-pipe exec` asks before every application that it starts.

Not here: who answers (`control.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAME = "control.sock"
_MOST_PATH_BYTES = 100


@contextlib.contextmanager
def short_path(data_dir: Path) -> Iterator[str]:
    """Give a path that fits into a socket address, however deep the data directory lies."""
    path = str(data_dir / NAME)
    if len(os.fsencode(path)) <= _MOST_PATH_BYTES:
        yield path
        return
    directory = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{NAME}"
    finally:
        os.close(directory)


def ask(data_dir: Path, question: dict[str, Any], patience_s: float | None = None) -> Iterator[bytes]:
    """Yield the lines that the process on a data directory answers with.

    Raises ConnectionError when none runs there, TimeoutError when it is silent for longer than `patience_s`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(patience_s)
        try:
            with short_path(data_dir) as path:
                connection.connect(path)
        except OSError as error:
            raise ConnectionError(f"no emp-pipe runs on {data_dir}") from error
        connection.sendall(json.dumps(question).encode() + b"\n")
        with connection.makefile("rb") as lines:
            yield from lines
