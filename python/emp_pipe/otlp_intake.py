"""What both OTLP receivers do with a request, whatever brought it: decode, hand to the intake, say what became of it once it is durable.

    bytes ─▶ room? ─▶ decode (inline when small, else in a thread) ─▶ Arrival ─▶ intake ─▶ commit ─▶ Outcome

What is refused item by item becomes dead letters in the same append. Everything under way is within `max_total_bytes`: who does not fit
is asked to come again. A few calls per request, none per record. Not here: sockets and headers (`receivers/otlp_http.py`,
`receivers/otlp_grpc.py`), what is said in bytes (`otlp_answers.py`).
"""

from __future__ import annotations

import asyncio
import copy
import logging
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from emp_pipe.bearer import BearerConfig
from emp_pipe.component import Arrival, Context, Intake
from emp_pipe.done import NOTHING_DONE, Done
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.listening import Listen, allow_unauthenticated_setting, check_guard
from emp_pipe.log.protocol import DeadLetter, DeadReason
from emp_pipe.logs import RateLimitedLogger, get_logger
from emp_pipe.otlp_answers import DONE, Code, Encoding, Outcome, Signal
from emp_pipe.tls import TlsServerConfig

if TYPE_CHECKING:
    from emp_pipe._core import Body, GrpcMessage, Normalizer, OtlpRead, Rejected

Codec = Literal["none", "gzip", "zstd", "deflate"]
SIGNALS: tuple[Signal, ...] = ("logs", "traces", "metrics")

_INLINE_BYTES = 512 << 10
"""Up to here, inflated, decoding is cheaper on the event loop than in a thread and back (measured: 0.2 µs a log less)."""
_INLINE_COMPRESSED_BYTES = 128 << 10
_INLINE_JSON_BYTES = 64 << 10
_ROW_BYTES = 128
"""What a row takes of memory beside its bytes: its columns."""
_DECODE_THREADS = 2
_RETRY_AFTER_S = (1, 5)
"""Senders come back spread over this time; the Python exporter gives up after 10 s in all."""


_DEAD_REASON = {"too_large": DeadReason.TOO_LARGE, "body_invalid": DeadReason.BODY_INVALID}


class OtlpReceiverConfig(BearerConfig):
    """What both OTLP receivers can be told."""

    listen: Listen
    allow_unauthenticated: bool = allow_unauthenticated_setting()
    tls: TlsServerConfig | None = Field(None, description="Speak TLS on every address of `listen`; with client_ca_file, mutual TLS.")
    max_request_bytes: PositiveInt = Field(67_108_864, description="The largest request, as it comes and inflated.")
    max_total_bytes: PositiveInt = Field(
        268_435_456,
        description="What all requests under way together may hold until they are durable; over it clients are told to come again.",
    )
    request_timeout_s: PositiveFloat = Field(60.0, description="The time that a request may take to come whole.")

    @field_validator("listen")
    @classmethod
    def _it_listens(cls, listen: tuple[str, ...]) -> tuple[str, ...]:
        if not listen:
            raise ValueError("there is nothing to listen on")
        return listen

    @model_validator(mode="after")
    def _the_largest_request_has_room(self) -> OtlpReceiverConfig:
        if self.max_total_bytes < self.max_request_bytes:
            raise ValueError("`max_total_bytes` must be at least `max_request_bytes`")
        return self

    @model_validator(mode="after")
    def _strangers_stay_out(self) -> OtlpReceiverConfig:
        credentials = "`token`, or `tls` with `client_ca_file`"
        check_guard(self.listen, guarded=self.is_guarded, allowed=self.allow_unauthenticated, credentials=credentials)
        return self

    @property
    def is_guarded(self) -> bool:
        """Every client has to show a token or a certificate."""
        return self.asks_for_a_token or (self.tls is not None and self.tls.client_ca_file is not None)


@dataclass(slots=True)
class Counts:
    """Running totals; plain integers because a metric's lock costs more than the addition. `publish` hands them on."""

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By signal and code."""
    bytes: int = 0
    items: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    resources_over_limit: int = 0


class OtlpIntake:
    """The shared middle of an OTLP receiver. `answer` callbacks run on the event loop, once for each request."""

    prefix = "otlp"
    """What the names of its metrics begin with."""

    def __init__(self, receiver: str, config: OtlpReceiverConfig, context: Context, intake: Intake) -> None:
        from emp_pipe._core import Normalizer  # on use: a configuration is checked without the native core

        self.receiver = receiver
        self.stopping = False
        self.held_bytes = 0
        self.counts = Counts()
        self.log = RateLimitedLogger(get_logger(receiver))
        self._max_request_bytes = config.max_request_bytes
        self._max_total_bytes = config.max_total_bytes
        self._intake = intake
        self._clock = context.clock
        self._metrics = context.metrics
        self._published = Counts()
        normalizer = context.normalizer if context.normalizer is not None else Normalizer()

        self._decoders = self._make_decoders(normalizer, self._max_request_bytes)
        self._small_decoders = self._make_decoders(normalizer, min(_INLINE_BYTES, self._max_request_bytes))
        self._pool = ThreadPoolExecutor(_DECODE_THREADS, "otlp-decode")
        self._loop = asyncio.get_running_loop()
        self._idle: asyncio.Future[None] | None = None
        self._under_way: set[_Request] = set()

    def _make_decoders(self, normalizer: Normalizer, limit_bytes: int) -> Mapping[Signal, Any]:
        from emp_pipe._core import OtlpDecoder

        return {signal: OtlpDecoder(normalizer, signal=signal, max_inflated_bytes=limit_bytes) for signal in SIGNALS}

    # --- room ---------------------------------------------------------------------------------------

    def refusal(self, size_bytes: int = 0) -> Outcome | None:
        """Return why a request of so many bytes cannot be taken now; None where it can."""
        if size_bytes > self._max_request_bytes:
            return self.too_large()
        if self.stopping:
            return self.stopping_refusal()
        if not self._intake.admitting:
            return self._unavailable("the buffer is full")
        if self.held_bytes + size_bytes > self._max_total_bytes:
            return self._unavailable("too many requests are under way")
        return None

    def refusal_of_more(self, granted_bytes: int, more_bytes: int) -> Outcome | None:
        """The same for a request whose size is not known before, of which so many bytes have been granted."""
        if granted_bytes + more_bytes > self._max_request_bytes:
            return self.too_large()
        if self.held_bytes + more_bytes > self._max_total_bytes:
            return self._unavailable("too many requests are under way")
        return None

    def too_large(self) -> Outcome:
        return Outcome(
            Code.RESOURCE_EXHAUSTED,
            f"the request is larger than {self._max_request_bytes:,} bytes (max_request_bytes); send smaller batches",
        )

    def _unavailable(self, why: str) -> Outcome:
        return Outcome(
            Code.UNAVAILABLE, f"{why}; nothing of the request was kept, send it again", retry_after_s=random.randint(*_RETRY_AFTER_S)
        )

    def reserve(self, size_bytes: int) -> None:
        """Grant memory to a request that is being received; `release` gives it back, or `take` takes it over."""
        self.held_bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        self.held_bytes -= size_bytes

    async def finish(self, deadline_monotonic_s: float) -> None:
        """Take nothing new; return when all that is under way has been answered, at the latest at the deadline: then by a refusal."""
        self.stopping = True
        if self._under_way:
            self._idle = self._loop.create_future()
            await asyncio.wait([self._idle], timeout=max(deadline_monotonic_s - self._clock.monotonic_s(), 0.0))
        for request in list(self._under_way):
            self._end(request, self.stopping_refusal())

    def stopping_refusal(self) -> Outcome:
        return self._unavailable("emp-pipe is stopping")

    # --- the way of a request -----------------------------------------------------------------------

    def take(
        self,
        signal: Signal,
        body: bytes | Body | GrpcMessage,
        answer: Callable[[Outcome], None],
        *,
        codec: Codec,
        encoding: Encoding = "protobuf",
        peer: str = "",
        done: Done = NOTHING_DONE,
        reserved_bytes: int = 0,
        how: Any = None,
    ) -> None:
        """Take a request that has come whole; `answer` is called when it is durable, or refused. May call it at once.

        `how`: what a `_decode` of another kind needs to know."""
        self.held_bytes -= reserved_bytes
        refusal = self.refusal(len(body))
        if refusal is not None:
            self._answer(signal, refusal, answer)
            return
        if not body and encoding == "protobuf":  # an empty request succeeds
            self._answer(signal, DONE, answer)
            return
        request = _Request(self, signal, codec, encoding, peer, done, answer, len(body), how)
        self.counts.bytes += len(body)
        self.held_bytes += request.held_bytes
        self._under_way.add(request)
        is_plain = codec == "none"
        inline_bytes = _INLINE_JSON_BYTES if encoding == "json" else _INLINE_BYTES if is_plain else _INLINE_COMPRESSED_BYTES
        if len(body) <= inline_bytes:
            try:
                read = self._decode((self._decoders if is_plain else self._small_decoders)[signal], request, body)
            except ValueError as error:  # CoreError
                if is_plain or getattr(error, "kind", "") != ErrorKind.TOO_LARGE:
                    self._unreadable(request, error)
                    return
            else:
                self._submit(request, read)
                return
        future = self._loop.run_in_executor(self._pool, self._decode, self._decoders[signal], request, body)
        future.add_done_callback(request.decoded)

    def _decode(self, decoder: Any, request: _Request, body: bytes | Body | GrpcMessage) -> OtlpRead:
        read: OtlpRead = decoder.decode(body, codec=request.codec, encoding=request.encoding, now_unix_nano=self._clock.unix_nano())
        return read

    def _submit(self, request: _Request, read: OtlpRead) -> None:
        batch = read.batch
        rejected = read.rejected
        if batch is None and not rejected:  # nothing in it: nothing to keep
            self._end(request, DONE)
            return
        held_bytes = batch.size_bytes + _ROW_BYTES * len(batch) if batch is not None else 0
        self.held_bytes += held_bytes - request.held_bytes
        request.held_bytes = held_bytes
        if rejected:
            request.rejected_items = read.rejected_items
            first, more = rejected[0], f"; {read.rejected_items:,} in all" if read.rejected_items > 1 else ""
            request.refused = f"refused at byte {first.offset}: {first.detail}{more}"
        self.counts.items[request.signal] += read.received
        self.counts.resources_over_limit += read.resources_over_limit
        dead = self._dead_letters(request, rejected) if rejected else ()
        arrival = Arrival(self.receiver, batch=batch, done=request.done, received=read.received, invalid=request.rejected_items, dead=dead)
        self._intake.submit(arrival).add_done_callback(request.committed)

    def _dead_letters(self, request: _Request, rejected: Sequence[Rejected]) -> tuple[DeadLetter, ...]:
        now_unix_nano = self._clock.unix_nano()
        return tuple(
            DeadLetter(
                component=self.receiver,
                reason=_DEAD_REASON.get(one.kind, DeadReason.ENTRY_INVALID),
                detail=f"{request.signal}: {one.detail}",
                payload=one.data,
                records=one.records,
                peer=request.peer,
                offset=one.offset,
                time_unix_nano=now_unix_nano,
            )
            for one in rejected
        )

    # --- outcomes -----------------------------------------------------------------------------------

    def _unreadable(self, request: _Request, error: BaseException) -> None:
        kind = getattr(error, "kind", "")
        if kind == ErrorKind.TOO_LARGE:
            self._end(request, self.too_large())
        elif kind:
            self._end(request, Outcome(Code.INVALID_ARGUMENT, f"the {request.signal} request cannot be read: {error}"))
        else:
            self.log.log(logging.ERROR, "decode", "a request of %s could not be decoded: %r", request.peer, error)
            self._end(request, Outcome(Code.INTERNAL, "the request could not be decoded"))

    def _committed(self, request: _Request, future: asyncio.Future[None]) -> None:
        error = None if future.cancelled() else future.exception()
        if error is not None or future.cancelled():
            why = "emp-pipe is stopping" if error is None else "the buffer did not take it"
            if error is not None and not isinstance(error, LogError):
                self.log.log(logging.ERROR, "commit", "a request of %s could not be kept: %r", request.peer, error)
            self._end(request, self._unavailable(why))
            return
        if not request.rejected_items:
            self._end(request, DONE)
            return
        self.counts.rejected[request.signal] += request.rejected_items
        self._end(request, Outcome(Code.OK, request.refused, request.rejected_items))

    def _end(self, request: _Request, outcome: Outcome) -> None:
        if request not in self._under_way:  # it was given up when emp-pipe stopped
            return
        self._under_way.discard(request)
        self.held_bytes -= request.held_bytes
        self._answer(request.signal, outcome, request.answer)
        if self._idle is not None and not self._under_way and not self._idle.done():
            self._idle.set_result(None)

    def _answer(self, signal: Signal, outcome: Outcome, answer: Callable[[Outcome], None]) -> None:
        self.counts.requests[signal, outcome.code.name] += 1
        answer(outcome)

    def count(self, signal: str, outcome: Outcome) -> None:
        """Count a request that was refused before it got here."""
        self.counts.requests[signal, outcome.code.name] += 1

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def publish(self) -> None:
        """Hand the counts to the metrics."""
        counts, before = self.counts, self._published
        requests = self._metrics.counter(
            f"{self.prefix}_received_requests",
            unit="requests",
            help="Requests answered, by the code of the answer.",
            labels=("component", "signal", "code"),
        )
        for (signal, code), count in counts.requests.items():
            if gained := count - before.requests[signal, code]:
                requests.labels(self.receiver, signal, code).inc(gained)
        for name, gained, unit, text in (
            ("bytes", counts.bytes - before.bytes, "bytes", "Bytes of requests, before decompression."),
            (
                "resources_over_limit",
                counts.resources_over_limit - before.resources_over_limit,
                "records",
                "Records whose identity stayed on the record because the request had too many resources.",
            ),
        ):
            self._metrics.counter(f"{self.prefix}_received_{name}", unit=unit, help=text, labels=("component",)).labels(self.receiver).inc(
                gained
            )
        for what, now, then, text in (
            ("received", counts.items, before.items, "Records, spans and data points received, the invalid ones included."),
            ("rejected", counts.rejected, before.rejected, "Items that were refused in a partial success and became dead letters."),
        ):
            counter = self._metrics.counter(f"{self.prefix}_{what}_items", unit="items", help=text, labels=("component", "signal"))
            for signal, count in now.items():
                if gained := count - then[signal]:
                    counter.labels(self.receiver, signal).inc(gained)
        self._metrics.gauge(
            f"{self.prefix}_held_bytes", unit="bytes", help="Bytes of requests that are not yet durable.", labels=("component",)
        ).labels(self.receiver).set(self.held_bytes)
        self._published = copy.deepcopy(counts)


class _Request:
    """A request under way: what is needed to answer it."""

    __slots__ = ("answer", "codec", "done", "encoding", "held_bytes", "how", "owner", "peer", "refused", "rejected_items", "signal")

    def __init__(
        self,
        owner: OtlpIntake,
        signal: Signal,
        codec: Codec,
        encoding: Encoding,
        peer: str,
        done: Done,
        answer: Callable[[Outcome], None],
        held_bytes: int,
        how: Any,
    ) -> None:
        self.how = how
        self.owner = owner
        self.signal: Signal = signal
        self.codec: Codec = codec
        self.encoding: Encoding = encoding
        self.peer = peer
        self.done = done
        self.answer = answer
        self.held_bytes = held_bytes
        self.rejected_items = 0
        self.refused = ""

    def decoded(self, future: asyncio.Future[OtlpRead]) -> None:
        """The thread has decoded it, or could not."""
        if future.cancelled():
            self.owner._end(self, self.owner._unavailable("emp-pipe is stopping"))
        elif (error := future.exception()) is not None:
            self.owner._unreadable(self, error)
        else:
            self.owner._submit(self, future.result())

    def committed(self, future: asyncio.Future[None]) -> None:
        self.owner._committed(self, future)
