"""What the demo's clients log: jobs of an AI job queue on three machines, in the shape that its services really write."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MODELS = ("sdxl-turbo", "flux-dev", "wan-2.2", "llama-3-8b")
FAILURES = (
    ("memory", "CUDA out of memory: tried to allocate 2.40 GiB"),
    ("timeout", "no progress for 120 s"),
    ("model", "checkpoint sha256 does not match"),
)


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine of the fleet and the client library that its services log with."""

    machine_id: str
    service_type: str
    workers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One call of a logger. `fields` holds `demo_id`, which no other entry has: it is how the demo finds each record again."""

    level: str
    message: str
    fields: dict[str, Any]


def job_entries(machine: Machine, worker_id: str, fails: bool, dice: random.Random) -> Iterator[Entry]:
    """Yield what one job logs from its receipt to its end."""
    job_id = f"job-{uuid.UUID(int=dice.getrandbits(128), version=4)}"
    model = dice.choice(MODELS)

    def entry(level: str, event_type: str, status: str, message: str, **more: Any) -> Entry:
        fields = {
            "machine_id": machine.machine_id,
            "worker_id": worker_id,
            "service_type": machine.service_type,
            "job_id": job_id,
            "event_type": event_type,
            "job_status": status,
            "model": model,
            "demo_id": uuid.UUID(int=dice.getrandbits(128), version=4).hex,
        }
        return Entry(level, message, {**fields, **more})

    duration_ms = dice.randrange(2_000, 60_000)
    yield entry("info", "job_received", "received", f"Job received for {model}", queue_position=dice.randrange(1, 40))
    yield entry("info", "job_started", "processing", "Job started", resource_allocation={"gpu": dice.randrange(8), "vram_gb": 24})
    for progress in (25, 50, 75):
        yield entry("debug", "job_progress", "processing", f"Job at {progress} %", progress=progress)
    if dice.random() < 0.3:
        yield entry("warn", "job_progress", "processing", "GPU is hot: clocks lowered", gpu_celsius=dice.randrange(84, 92))
    if fails:
        error_type, error = dice.choice(FAILURES)
        yield entry("error", "job_failed", "failed", f"Job failed: {error}", error=error, error_type=error_type, duration=duration_ms)
    else:
        yield entry("info", "job_completed", "completed", f"Job completed in {duration_ms / 1000:.1f} s", duration=duration_ms)


def machine_entries(machine: Machine, jobs_per_worker: int, seed: int) -> list[Entry]:
    """Return everything that one machine logs, its workers interleaved; about one job in five fails, at least one."""
    dice = random.Random(f"{seed}:{machine.machine_id}")
    entries: list[Entry] = []
    for job in range(jobs_per_worker):
        running = [
            list(job_entries(machine, worker, fails=(job + index) % 5 == 2, dice=dice)) for index, worker in enumerate(machine.workers)
        ]
        while any(running):
            entries.append(dice.choice([left for left in running if left]).pop(0))
    return entries
