"""What a component is: its configuration, and the protocols of receivers, processors and exporters.

A component's id is `type` or `type/name` (`forward`, `forward/secure`, `otlp_http/dash0`) and is the same word in configuration, logs
and metrics. Its config class is frozen and stands beside it, in the same file. Read next: `pipeline.py`, which wires them together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, PositiveFloat, PositiveInt
from pydantic_core import CoreSchema, core_schema

from emp_pipe.clock import Clock
from emp_pipe.done import NOTHING_DONE, Done
from emp_pipe.log.protocol import ChunkKey, DeadLetter, Delivery, Rejection, Topic
from emp_pipe.self_metrics import Metrics

if TYPE_CHECKING:  # a configuration can be checked without the native core
    from emp_pipe._core import Batch, Block, Normalizer


@dataclass(frozen=True, slots=True)
class Wiring:
    """What else runs in this process, for derivers: whose output whose input is."""

    red_runs: bool = False
    tail_samples: bool = False
    aggregates: bool = False
    codec: Literal["none", "gzip", "zstd"] = "gzip"
    """What blocks are compressed with, so that most go out as they lie."""
    parts: int = 1
    """How many instances of a deriver this process has, one for each part of the log: what it may hold is divided by it."""


@dataclass(frozen=True, slots=True)
class Context:
    """What every component is given beside its id and its config: `ForwardReceiver(id, config, context)`."""

    clock: Clock
    metrics: Metrics
    data_dir: Path
    machine_id: str
    role: str
    """"edge", "central" or "run": said in handshakes and in `/readyz`."""
    normalizer: Normalizer | None = None
    """The rules of this process, for every receiver the same; None: the defaults, `Normalizer()`."""
    wiring: Wiring = Wiring()
    log_name: Callable[[], str] = lambda: ""
    """What the log is called that several processes share; empty where it is this one's alone, or not known yet."""


class Signal(StrEnum):
    LOGS = "logs"
    TRACES = "traces"
    METRICS = "metrics"


class ComponentConfig(BaseModel):
    """The base of every component's settings: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class FileMode(int):
    """The permissions of a file, shown as everybody writes them: in octal."""

    def __str__(self) -> str:
        return f"{int(self):04o}"

    __repr__ = __str__

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.chain_schema(
            [
                core_schema.no_info_plain_validator_function(_from_octal),
                core_schema.int_schema(ge=0, le=0o777),
                core_schema.no_info_plain_validator_function(cls),
            ]
        )


def _from_octal(given: Any) -> Any:
    """YAML reads 0660 as an octal number, and leaves "0660" and 0o660 as text."""
    if isinstance(given, str):
        return int(given.lower().removeprefix("0o"), 8)
    return given


def http_address(value: str) -> str:
    """Return a setting that is an HTTP address. Raises ValueError where it is none, or holds a password, which would be printed."""
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        usable = usable and value.isprintable() and " " not in value and bool((parts.hostname or "").encode("idna"))
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("must be an http:// or https:// address")
    if parts.username or parts.password:
        raise ValueError("must not hold a password: use `headers`")
    return value


class SelectionConfig(ComponentConfig):
    """Which rows: every condition given must hold (within one condition any value will do)."""

    signals: tuple[Signal, ...] = Field((), description="logs, traces, metrics.")
    tags: tuple[str, ...] = Field((), description="Fluent tags; `*` matches within a part, `**` any number of parts.")
    min_severity: str | None = Field(None, description="The lowest level, such as warn. Rows without severity do not match.")
    services: tuple[str, ...] = Field((), description="service.name values.")
    attributes: Mapping[str, str] = Field(default_factory=dict, description="Attribute or resource key to the value that it must have.")


class ExporterConfig(ComponentConfig):
    """What every exporter can be told, beside its own settings. The delivery loop reads it."""

    only: SelectionConfig | None = Field(None, description="Send only the rows that match.")
    except_: SelectionConfig | None = Field(None, alias="except", description="Leave out the rows that match.")
    required: bool | None = Field(None, description="Stop receivers rather than lose a record when this destination is behind.")
    quota_bytes: PositiveInt = Field(8 << 30, description="What this destination may hold in the buffer.")
    quota_age_s: PositiveFloat | None = Field(None, description="Older blocks count as past the quota.")
    start: Annotated[str, Field(pattern="^(oldest|newest)$")] = Field("oldest", description="Where a new destination begins.")
    max_request_bytes: PositiveInt = Field(3_670_016, description="The most bytes of a request, before compression.")
    max_concurrency: PositiveInt = Field(16, description="The most requests under way at once.")
    timeout_s: PositiveFloat = Field(30.0, description="The time that one attempt may take.")
    retry_initial_s: PositiveFloat = Field(0.5, description="The first upper bound of the full-jitter wait.")
    retry_max_s: PositiveFloat = Field(30.0, description="The largest upper bound of the full-jitter wait.")


class ProcessorConfig(ComponentConfig):
    """What every processor can be told, beside its own settings. The pipeline reads it."""

    on_error: Literal["pass", "stop"] = Field(
        "pass",
        description="When the processor fails: pass the batch unchanged, counted and logged (one that derives begins anew from its last "
        "commit, which loses nothing); or stop emp-pipe, with nothing acknowledged.",
    )


@dataclass(slots=True)
class Arrival:
    """What a receiver got in one go and now owes an acknowledgement for.

    `received` counts records, the invalid ones included. `dead` holds the invalid ones' bytes. `blocks` came whole from another emp-pipe.
    `chunks` are remembered for an hour so that a repeat is acked and not appended (only set where duplicates are to be found): such an
    arrival is one unit, a repeat only when all of its chunks were seen. So a receiver that finds duplicates submits chunk by chunk.
    """

    receiver: str
    batch: Batch | None = None
    done: Done = NOTHING_DONE
    """What its sender has done with the batch's rows; blocks say it themselves."""
    blocks: Sequence[Block] = ()
    received: int = 0
    invalid: int = 0
    refused: int = 0
    dropped: int = 0
    """Rows that a processor left out by rule; the intake sets it, receivers do not."""
    dead: Sequence[DeadLetter] = ()
    chunks: Sequence[ChunkKey] = ()
    checkpoints: Mapping[str, bytes] = field(default_factory=dict)


class Intake(Protocol):
    """Where receivers hand over what arrived. It runs the processors, then appends to the log."""

    def submit(self, arrival: Arrival) -> asyncio.Future[None]:
        """Return a future that is done when the arrival is on stable storage: acknowledge in its callback, not before.

        It fails with LogError (LOG_FULL, LOG_IO, LOG_CLOSED): then nothing may be acknowledged."""
        ...

    @property
    def admitting(self) -> bool:
        """False: stop reading (pause the sockets, answer 503) until `wait_admitting` returns."""
        ...

    async def wait_admitting(self) -> None: ...

    async def checkpoint_get(self, name: str) -> bytes | None:
        """Return a checkpoint as the last durable arrival that carried it left it, None where there was none.

        Raises LogError where the log cannot be asked now: ask again, and begin with nothing before it has answered."""
        ...


class Receiver(Protocol):
    """Turns outside bytes into arrivals. `run` opens the sockets, calls `started.set()`, and owns every task until `stop`."""

    id: str

    async def run(self, intake: Intake, started: asyncio.Event) -> None: ...

    async def stop(self, deadline_monotonic_s: float) -> None:
        """Take nothing new, acknowledge what becomes durable before the deadline, close."""
        ...


class Processor(Protocol):
    """Sees every batch before the log, in the order of the configuration. Vectorised: no per-record Python.

    `process` may return the batch, a changed copy, or None to drop it whole (counted as dropped by rule). It may be called from a thread of
    a pool, one call at a time for each processor. One that keeps lines of log back has `speak(last=…)`: called about once a second whether
    batches come or not, beside `process`, and with `last` when it is replaced or emp-pipe stops."""

    id: str

    def process(self, batch: Batch) -> Batch | None: ...


@dataclass(slots=True)
class Derived:
    """What a deriver made at a tick, for one atomic commit: `acks` and `rejections` end deliveries, `outputs` are filed under the topic of
    their header, `state_puts` and `state_deletes` change what `restore` is given after a restart."""

    acks: Sequence[Delivery] = ()
    skipped_records: Mapping[int, int] = field(default_factory=dict)
    """By offset of an ack: its rows that were not used (counted as skipped in the books)."""
    rejections: Sequence[Rejection] = ()
    outputs: Sequence[Block] = ()
    state_puts: Mapping[str, bytes] = field(default_factory=dict)
    state_ttl_s: float | None = None
    state_deletes: Sequence[str] = ()


class Deriver(Protocol):
    """A processor that needs memory of the past: a group of the log. One commit ends what it read and files what it made of it.

    The loop that drives it (`delivery/derive.py`) calls one method at a time, in a thread of its pool: a deriver has no lock and no clock,
    and a restart is simply the same deliveries again, in the same order, after `restore` with the state of the last commit."""

    id: str
    config: ProcessorConfig

    @property
    def reads(self) -> frozenset[Topic]: ...

    @property
    def writes(self) -> frozenset[Topic]:
        """Topics that its outputs may have; of those that no group reads the loop files nothing."""
        ...

    @property
    def tick_s(self) -> float:
        """How often `tick` is called, seconds."""
        ...

    @property
    def max_held_bytes(self) -> int:
        """Above this much payload in deliveries that have not ended, a tick comes early and reading waits for it."""
        ...

    def restore(self, state: Mapping[str, bytes]) -> None:
        """Begin anew with the state of the last commit; called before the first `take`, and again when a commit turned out stale."""
        ...

    def take(self, delivery: Delivery, now_unix_nano: int) -> None:
        """Take a delivery in; once each, in the order of offsets. Raises CoreError where the block cannot be read: it is dead-lettered."""
        ...

    def tick(self, now_unix_nano: int, *, final: bool) -> Derived | None:
        """Return what is due; None where nothing is. `final`: the process stops, and what can be ended at once should be.

        What is returned is committed, repeated until it is; the next `take` or `tick` comes after that."""
        ...

    def close(self) -> None:
        """The loop has ended, no other call follows: let go of what outlives it, such as gauges that are read from it."""
        ...


@dataclass(frozen=True, slots=True)
class Parcel:
    """What an exporter is asked to send once: an export request, already selected, limited and merged for it."""

    block: Block
    attempt: int
    deadline_monotonic_s: float


@dataclass(frozen=True, slots=True)
class Sent:
    """A delivered parcel: `rejected_records` were refused by the destination in a partial success (never retried)."""

    rejected_records: int = 0
    message: str = ""


class Exporter(Protocol):
    """Sends parcels to one destination. No retry, queue or counting in here: the delivery loop does all that.

    `send` raises DeliveryError. `codec` is what payload bytes it wants ("none", "gzip", "zstd"; "any": as the block lies). `limits` are the
    destination's (None: none). The loop opens it when it starts and closes it when it stops."""

    id: str
    config: ExporterConfig

    @property
    def codec(self) -> str: ...

    @property
    def merges(self) -> bool:
        """Several small blocks may become one request. False: each block goes alone and keeps its id."""
        ...

    @property
    def ordered(self) -> bool:
        """Parcels arrive one at a time, in the order of the log, also over retries."""
        ...

    async def open(self) -> None: ...

    async def send(self, parcel: Parcel) -> Sent: ...

    async def close(self, deadline_monotonic_s: float) -> None: ...

    @property
    def limits(self) -> Any | None:
        """`_core.DestinationLimits` or None."""
        ...
