"""The demo's senders: client libraries as an application uses them, unmodified, each logging to the edge in Fluent Forward."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from fluent import handler as fluent_handler
from fluent import sender as fluent_sender

from demo.story import Entry

NODE_PACKAGE = "@fluent-org/logger@1.0.10"
NODE_CLIENT = Path(__file__).with_name("node_client.cjs")


class ClientError(Exception):
    """A client could not be installed or did not deliver."""


def log_with_fluent_logger(entries: Sequence[Entry], port: int) -> None:
    """`fluent-logger` of PyPI: one message per call, over one connection."""
    with fluent_sender.FluentSender("worker", host="127.0.0.1", port=port, nanosecond_precision=True) as sender:
        for entry in entries:
            if not sender.emit("jobs", {"level": entry.level, "message": entry.message, **entry.fields}):
                raise ClientError(f"fluent-logger: {sender.last_error}")


def log_with_standard_logging(entries: Sequence[Entry], port: int) -> None:
    """Python's own `logging` with the Forward handler: level and logger name come from the logging record."""
    handler = fluent_handler.FluentHandler("api.jobs", host="127.0.0.1", port=port, nanosecond_precision=True)
    handler.setFormatter(fluent_handler.FluentRecordFormatter({"level": "%(levelname)s", "source": "%(name)s"}, format_json=False))
    logger = logging.Logger("queue.api", logging.DEBUG)
    logger.addHandler(handler)
    levels = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
    for entry in entries:
        logger.log(levels[entry.level], {"message": entry.message, **entry.fields})
    handler.close()


def install_node_client(cache_dir: Path) -> str | None:
    """Install `@fluent-org/logger` in the cache. Returns why it cannot be used, or None."""
    if not (shutil.which("node") and shutil.which("npm")):
        return "Node.js (node and npm) is not installed"
    if (cache_dir / "node_modules/@fluent-org/logger").is_dir():
        return None
    cache_dir.mkdir(parents=True, exist_ok=True)
    (cache_dir / "package.json").write_text('{"private": true}\n')
    npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", NODE_PACKAGE]
    try:
        result = subprocess.run(npm, cwd=cache_dir, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return f"npm did not install {NODE_PACKAGE} within 120 s"
    if result.returncode:
        said = (result.stderr or result.stdout).strip().splitlines() or ["no message"]
        return f"npm could not install {NODE_PACKAGE}: {said[-1]}"
    return None


def log_with_node(entries: Sequence[Entry], port: int, cache_dir: Path) -> None:
    """`@fluent-org/logger` of npm: PackedForward with acks; returns when the edge has acknowledged every record."""
    lines = "".join(json.dumps({"level": e.level, "message": e.message, **e.fields}) + "\n" for e in entries)
    environment = {**os.environ, "NODE_PATH": str(cache_dir.resolve() / "node_modules")}
    try:
        result = subprocess.run(
            ["node", str(NODE_CLIENT), str(port)], input=lines, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ClientError("@fluent-org/logger: no acknowledgement within 60 s") from error
    if result.returncode:
        raise ClientError(f"@fluent-org/logger: {result.stderr.strip()[-500:]}")
