"""Fresh random ConnectorLogger records and the Fluent Forward frames that carry them.

Every record has a `job_id` of `job-` and 32 hex digits that no other record of the pool has: that is how the sink knows, without
decoding, that nothing was lost or repeated. A pool is made once per benchmark run and shared through a file by the load generator
(which frames the entries) and the sink (which checks what arrived). About 380 bytes of msgpack a record, as the fleet's loggers send.
"""

from __future__ import annotations

import datetime
import pickle
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

TAG = "worker.comfyui"
WORDS = (
    "sampling",
    "latent",
    "model",
    "loaded",
    "cached",
    "prompt",
    "queued",
    "decode",
    "checkpoint",
    "finished",
    "node",
    "tensor",
    "retry",
)
_LEVELS = ("debug", "info", "info", "info", "info", "info", "warn", "error")


@dataclass(frozen=True, slots=True)
class Pool:
    """Encoded entries, `[EventTime, record]` each, and the id of each one, in the same order."""

    entries: Sequence[bytes]
    ids: Sequence[bytes]

    def save(self, path: Path) -> None:
        path.write_bytes(pickle.dumps((self.entries, self.ids), protocol=5))

    @staticmethod
    def load(path: Path) -> Pool:
        # The file was written by this program a moment ago, in a folder of its own.
        entries, ids = pickle.loads(path.read_bytes())
        return Pool(entries, ids)


def make_pool(count: int, seed: int | None = None) -> Pool:
    """Return `count` records with random ids, of random machines (40 with 4 workers each), within the last minute."""
    rng = random.Random(seed)
    pack = msgpack.Packer(use_bin_type=True).pack
    machines = [f"gpu-{rng.getrandbits(32):08x}" for _ in range(40)]
    start_ms = time.time_ns() // 1_000_000 - 60_000
    entries: list[bytes] = []
    ids: list[bytes] = []
    for index in range(count):
        time_ms = start_ms + index * 60_000 // count
        unique = f"{rng.getrandbits(128):032x}"
        record = _record(rng, rng.choice(machines), unique, time_ms)
        event_time = msgpack.ExtType(0, (time_ms // 1000).to_bytes(4, "big") + (time_ms % 1000 * 1_000_000).to_bytes(4, "big"))
        entries.append(pack([event_time, record]))
        ids.append(unique.encode())
    return Pool(entries, ids)


def _record(rng: random.Random, machine_id: str, unique: str, time_ms: int) -> dict[str, Any]:
    stamp = datetime.datetime.fromtimestamp(time_ms / 1000, datetime.UTC)
    worker = rng.randrange(4)
    progress = rng.randrange(101)
    return {
        "timestamp": f"{stamp:%Y-%m-%dT%H:%M:%S}.{time_ms % 1000:03d}Z",
        "level": rng.choice(_LEVELS),
        "message": " ".join(rng.choices(WORDS, k=3)),
        "machine_id": machine_id,
        "worker_id": f"worker-{worker:03d}",
        "service_type": "comfyui",
        "connector_id": f"comfyui-gpu{worker}",
        "event_type": "job_progress",
        "job_id": f"job-{unique}",
        "job_status": "processing",
        "progress": progress,
        "duration_ms": rng.randrange(60_000) / 8,
        "queue_position": rng.randrange(200),
        "trace_id": f"{rng.getrandbits(128):032x}",
        "span_id": f"{rng.getrandbits(64):016x}",
    }


def packed_forward(entries: Sequence[bytes], chunk: str | None) -> bytes:
    """Return one PackedForward message of the entries; with a chunk it asks for an ack."""
    option: dict[str, Any] = {"size": len(entries)}
    if chunk is not None:
        option["chunk"] = chunk
    return bytes(msgpack.packb([TAG, b"".join(entries), option], use_bin_type=True))


def message_mode(entry: bytes) -> bytes:
    """Return an entry, `[time, record]`, as one Message mode frame `[tag, time, record]` without options."""
    if entry[0] != 0x92:
        raise ValueError("an entry is an array of two")
    return b"\x93" + bytes(msgpack.packb(TAG)) + entry[1:]


def decode_entry(entry: bytes) -> tuple[int, dict[str, Any]]:
    """Return time_unix_nano and the record of an entry."""
    event_time, record = msgpack.unpackb(entry)
    seconds, nanos = int.from_bytes(event_time.data[:4], "big"), int.from_bytes(event_time.data[4:], "big")
    return seconds * 1_000_000_000 + nanos, record
