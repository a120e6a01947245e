"""A tail without a process around it: real files, a clock that the test moves, and a log that is a list."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

from emp_pipe._core import LineParser, Normalizer
from emp_pipe.receivers.tail_position import Position, decode
from emp_pipe.receivers.tail_reader import Reader
from emp_pipe.receivers.tail_report import Report
from emp_pipe.receivers.tail_scan import Patterns
from emp_pipe.receivers.tail_settings import TailConfig
from emp_pipe.receivers.tail_watch import Watcher
from emp_pipe.self_metrics import Metrics


class Tailing:
    """A directory, and a tail of it that can be killed and started again. `rows` and `checkpoints` are what is durable."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.directory = directory
        settings.setdefault("include", (str(directory / "*.log"),))
        self.config = TailConfig.model_validate({"rotate_wait_s": 5.0, **settings})
        self.metrics = Metrics()
        self.rows: list[dict[str, Any]] = []
        self.checkpoints: dict[str, bytes] = {}
        self.now_s = 1000.0
        self.round_sizes: list[list[str]] = []
        self.start()

    # the files

    def path(self, name: str) -> Path:
        return self.directory / name

    def write(self, name: str, data: str | bytes) -> Path:
        path = self.path(name)
        with path.open("ab") as file:
            file.write(data.encode() if isinstance(data, str) else data)
        return path

    # the tail

    def start(self) -> None:
        patterns = Patterns(self.config.include, self.config.exclude)
        self.reader = Reader("tail", self.config, patterns, Watcher(self.config.watch), Report("tail", self.metrics), self._parser)
        index = self.checkpoints.get(self.reader.index_name)
        stored: dict[str, list[Position]] = {}
        ended: dict[str, list[Position]] = {}
        for key in json.loads(index) if index is not None else ():
            stored[key] = decode(self.checkpoints.get(self.reader.name(key), b"[]"))
            ended[key] = decode(self.checkpoints.get(self.reader.ended_name(key), b"[]"))
        self.reader.start(stored, self.now_s, is_first=index is None, ended=ended)

    def kill(self) -> None:
        """What was read and is not durable is gone with the process."""
        self.reader.close()

    def restart(self) -> None:
        self.kill()
        self.start()

    def round(self) -> bool:
        """Do one round and make what it gave durable; return whether there is more to do at once."""
        done = self.reader.round(self.now_s, 1_700_000_000_000_000_000)
        names = []
        for arrival in (one for chain in done.chains for one in chain):
            if arrival.batch is not None:
                lines = [json.loads(line) for line in arrival.batch.to_json_lines().splitlines()]
                assert arrival.received == len(lines)
                names += [str(line["file.name"]) for line in lines]
                self.rows += lines
            self.checkpoints.update(arrival.checkpoints)
        self.round_sizes.append(names)
        return done.more

    def pump(self, for_s: float = 0.5) -> list[str]:
        """Go on until nothing is left to do, and for so long on the tail's clock; return the messages so far."""
        until_s = self.now_s + for_s
        while True:
            rounds = 0
            while self.round():
                rounds += 1
                assert rounds < 10_000, "the tail never rests"
            if self.now_s >= until_s:
                break
            self.now_s += 0.25
        return self.messages

    def pass_s(self, seconds: float) -> list[str]:
        return self.pump(seconds)

    @property
    def messages(self) -> list[str]:
        return [str(row["message"]) for row in self.rows]

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"emp_pipe_{name}_total", {"component": "tail", **labels}) or 0.0

    def _parser(self, path: str, parts: int) -> LineParser:
        return LineParser(
            Normalizer(),
            "tail",
            resource={"file.name": Path(path).name},
            max_line_bytes=self.config.max_line_bytes,
            parts=parts,
        )


def numbered(start: int, end: int) -> str:
    return "".join(f"line {number}\n" for number in range(start, end))


def lines(start: int, end: int) -> list[str]:
    return [f"line {number}" for number in range(start, end)]


def pack(path: Path) -> None:
    """As gzip does: the time of the last change is kept."""
    known = path.stat()
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    os.utime(packed, ns=(known.st_atime_ns, known.st_mtime_ns))
    path.unlink()


def shift(path: Path, suffix: str = "") -> None:
    """Rename app.log to app.log.1, what was app.log.1 to app.log.2, …"""
    for number in range(8, 0, -1):
        for packed in ("", ".gz"):
            older = path.with_name(f"{path.name}.{number}{packed}")
            if older.exists():
                older.rename(path.with_name(f"{path.name}.{number + 1}{packed}"))
    path.rename(path.with_name(f"{path.name}.1"))
