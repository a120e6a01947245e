"""The native core: bytes to batches and batches to bytes. Held against the built module by stubtest in `make check`."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

from typing_extensions import Buffer

_Codec = Literal["none", "gzip", "zstd"]

__version__: str
IS_DEBUG_BUILD: bool

class CoreError(ValueError):
    """Bytes or arguments that the core cannot use. `kind` is an `ErrorKind` value, `offset` the byte at which it was seen."""

    kind: str
    offset: int

@final
class Normalizer:
    """The rules that turn what a sender wrote into OTLP log records; one per receiver, shared by its decoders."""

    def __new__(
        cls,
        *,
        stamp: Mapping[str, str] = ...,
        unfold: bool = True,
        aliases: Mapping[str, str] = ...,
        max_resources: int = 1024,
    ) -> Normalizer: ...

@final
class ForwardDecoder:
    """The sans-IO reader of one Fluent Forward connection, after its handshake. A buffer: socket bytes may land in its memory.

    `memoryview(decoder)` (after `reserve`) is the writable free space; `received` says how many bytes landed there."""

    def __new__(
        cls,
        normalizer: Normalizer,
        *,
        max_frame_bytes: int = 268435456,
        max_inflated_bytes: int = 268435456,
        max_entry_bytes: int = 67108864,
        max_depth: int = 64,
        stream_above_bytes: int = 8388608,
        accept_blocks: bool = False,
        peer: str = "",
    ) -> ForwardDecoder: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def reserve(self, size_hint_bytes: int) -> ForwardDecoder:
        """Make room for a read of about that many bytes; 0 gives memory back where nothing is pending. BufferError under a view."""
        ...
    def received(self, size_bytes: int, now_unix_nano: int) -> ForwardRead: ...
    def feed(self, data: Buffer, now_unix_nano: int) -> ForwardRead: ...
    def eof(self) -> ForwardRead: ...
    def set_time_correction_ns(self, correction_ns: int) -> None: ...
    @property
    def pending_bytes(self) -> int: ...

@final
class Chunk:
    """A chunk that asks for an ack: `ack` is the encoded answer; its rows are batch[row_start:row_end] (of this read)."""

    @property
    def id(self) -> bytes: ...
    @property
    def ack(self) -> bytes: ...
    @property
    def row_start(self) -> int: ...
    @property
    def row_end(self) -> int: ...
    @property
    def block_index(self) -> int:
        """Which of the read's blocks it is; -1: none, its rows are in the batch."""
        ...

@final
class Rejected:
    """Bytes that could not be used: `offset` counts from the connection's first byte, `data` is a bounded copy (1 MiB at most)."""

    @property
    def kind(self) -> str: ...
    @property
    def detail(self) -> str: ...
    @property
    def offset(self) -> int: ...
    @property
    def data(self) -> bytes: ...
    @property
    def records(self) -> int: ...

@final
class ForwardRead:
    """What one read of a socket completed."""

    @property
    def batch(self) -> Batch | None: ...
    @property
    def blocks(self) -> list[Block]: ...
    @property
    def chunks(self) -> list[Chunk]: ...
    @property
    def rejected(self) -> list[Rejected]: ...
    @property
    def received(self) -> int:
        """Records, the rejected entries included; the records of `blocks` too."""
        ...
    @property
    def frames(self) -> int: ...
    @property
    def fatal(self) -> Rejected | None:
        """The outer frame cannot be followed: dead-letter it, close, no ack."""
        ...
    @property
    def foreign_blocks(self) -> int:
        """Blocks refused because the peer may not send any."""
        ...
    @property
    def min_age_ns(self) -> int:
        """Arrival minus record time, the least over the rows; negative where a sender's clock is ahead. 0 without rows."""
        ...
    @property
    def resources_over_limit(self) -> int: ...
    @property
    def more(self) -> bool:
        """The batch is full and there is more to decode: submit it, then call `received(0, now)` before reading on."""
        ...

@final
class BodyPool:
    """The memory that the bodies of one receiver take after each other: warm pieces, few and of one size. A body that finds none, or
    outgrows its piece, has memory of its own, no more than it was granted."""

    def __new__(cls, *, piece_bytes: int = 524288, most_pieces: int = 8) -> BodyPool: ...
    def begin(self, start: Buffer, granted_bytes: int) -> Body:
        """Return a body that begins with these bytes and was granted so many in all."""
        ...
    @property
    def spare_pieces(self) -> int:
        """Pieces that no body has."""
        ...

@final
class Body:
    """A request's body; its memory goes back to the pool with its last reference.

    `memoryview(body)` is the writable room behind what has landed; `bytes` and `len` are of what has."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
    def landed(self, size_bytes: int) -> bool:
        """So many bytes were written into the room; return whether there is none left."""
        ...
    def grant(self, more_bytes: int) -> None:
        """Grant so many bytes more; the next view has them (BufferError where another view holds the memory in its place)."""
        ...
    def __len__(self) -> int: ...
    def __bytes__(self) -> bytes: ...

@final
class OtlpDecoder:
    """The decoder of a receiver's export requests of one signal; any number of threads may use it."""

    def __new__(
        cls, normalizer: Normalizer, *, signal: Literal["logs", "traces", "metrics"], max_inflated_bytes: int = 67108864
    ) -> OtlpDecoder: ...
    @property
    def signal(self) -> Literal["logs", "traces", "metrics"]: ...
    def decode(
        self,
        data: Buffer | Body | GrpcMessage,
        *,
        codec: _Codec = "none",
        encoding: Literal["protobuf", "json"] = "protobuf",
        now_unix_nano: int,
    ) -> OtlpRead:
        """Read one Export{Logs,Trace,Metrics}ServiceRequest. An item that cannot be used is set aside, the others are kept.

        CoreError: body_invalid (with the offset) where the request itself cannot be followed, too_large where it, inflated, is over the
        limit."""
        ...

@final
class HttpJsonDecoder:
    """The decoder of a receiver of records in JSON; any number of threads may use it."""

    def __new__(cls, normalizer: Normalizer, *, max_inflated_bytes: int = 67108864) -> HttpJsonDecoder: ...
    def decode(
        self,
        data: Buffer | Body,
        *,
        coding: Literal["none", "gzip", "zstd", "deflate"] = "none",
        form: Literal["json", "lines", "urlencoded"] = "json",
        tag: bytes,
        time: bytes,
        now_unix_nano: int,
    ) -> OtlpRead:
        """Read the body of one request: an object, an array of them, or one after another. What is no record is set aside.

        CoreError: body_invalid (with the offset) where nothing of it can be used or an array cannot be followed, too_large where it,
        inflated, is over the limit."""
        ...

@final
class LineParser:
    """The state of one file or stream of lines: any cut of bytes in, rows out. Lines over the limit are split, none is dropped."""

    def __new__(
        cls,
        normalizer: Normalizer,
        tag: str,
        *,
        format: str = "auto",
        resource: Mapping[str, str] = ...,
        max_line_bytes: int = 1048576,
        scope: str = "emp-pipe/lines",
        parts: int = 0,
        pattern: str | None = None,
        multiline: bool = True,
        record_start: str | None = None,
        utc_offset_s: int = 0,
        progress_interval_s: float = 10.0,
    ) -> LineParser:
        """`resource`: attributes of every row's resource. `parts`: of the line that is to come, those that are rows already (a restart).
        `pattern`: of `format="regex"`. `record_start`: lines that match begin a record, all others belong to the one above.
        `utc_offset_s`: of times that name no zone. Raises ValueError."""
        ...
    @staticmethod
    def check_pattern(pattern: str, *, named: bool) -> None:
        """Raise ValueError where a pattern cannot be used; `named`: it must have a named group."""
        ...
    def feed(self, data: Buffer, now_unix_nano: int) -> None:
        """Take the next bytes, which must not change before this returns."""
        ...
    def flush(self, now_unix_nano: int, *, at_end: bool = False) -> None:
        """End lines that wait for more of their kind; `at_end`: nothing follows, the last line is whole as it is."""
        ...
    def take(self) -> Batch | None:
        """The rows so far; None without one."""
        ...
    @property
    def pending_bytes(self) -> int:
        """Bytes at the end of what was fed that are in no row yet: go on from before them after a restart."""
        ...
    @property
    def parts(self) -> int:
        """Parts of the line that pends which are rows already."""
        ...
    @property
    def rows(self) -> int: ...
    @property
    def blank(self) -> int:
        """Lines without text, of which there is no row."""
        ...
    @property
    def split(self) -> int:
        """Rows that are a part of a line over the limit."""
        ...
    @property
    def unparsed(self) -> int:
        """Lines that are not what the format says; they are the body of their row."""
        ...
    @property
    def redrawn(self) -> int:
        """States of progress bars that were redrawn, of which there is no row."""
        ...
    @property
    def nul_bytes(self) -> int:
        """NUL bytes that were left out."""
        ...

@final
class SyslogStream:
    """The state of one connection of syslog by TCP."""

    @property
    def pending_bytes(self) -> int:
        """Bytes that have come and are in no row yet."""
        ...

@final
class SyslogDecoder:
    """The decoder of a syslog receiver, for all of its connections and datagrams. A row for each message; too long ones are several.

    `utc_offset_s`: of times that say no zone, seconds east of UTC."""

    def __new__(
        cls,
        normalizer: Normalizer,
        *,
        framing: Literal["auto", "octet_counting", "newline"] = "auto",
        max_message_bytes: int = 65536,
    ) -> SyslogDecoder: ...
    def stream(self, peer: str) -> SyslogStream:
        """Return the state of a new connection from an address."""
        ...

    def datagrams(self, packets: Sequence[tuple[bytes, str]], now_unix_nano: int, utc_offset_s: int) -> SyslogRead:
        """Read datagrams: each with the address that it came from."""
        ...

    def feed(self, stream: SyslogStream, data: Buffer, now_unix_nano: int, utc_offset_s: int) -> SyslogRead:
        """Read what has come on a connection, cut anywhere."""
        ...

    def flush(self, stream: SyslogStream, now_unix_nano: int, utc_offset_s: int) -> SyslogRead:
        """Nothing follows on a connection, or nothing has for long: what is there of a message is one."""
        ...

    @property
    def counts(self) -> list[tuple[str, int]]:
        """What was seen since the decoder was made, by name."""
        ...

@final
class SyslogRead:
    """What a read of a syslog receiver gave."""

    @property
    def batch(self) -> Batch | None: ...
    @property
    def rejected(self) -> list[Rejected]: ...
    @property
    def received(self) -> int:
        """Records, the rejected ones included."""
        ...

    @property
    def resources_over_limit(self) -> int: ...
    @property
    def ages(self) -> list[tuple[str, int]]:
        """By address of those that said a time: the least of arrival minus time, nanoseconds."""
        ...

@final
class OtlpRead:
    """What an export request held. Offsets of rejected items count from the request's first byte, inflated."""

    @property
    def batch(self) -> Batch | None: ...
    @property
    def received(self) -> int:
        """Items (of metrics: data points), the rejected ones included."""
        ...
    @property
    def rejected(self) -> list[Rejected]: ...
    @property
    def rejected_items(self) -> int: ...
    @property
    def resources_over_limit(self) -> int: ...

@final
class Batch:
    """Rows of one signal in memory, each an encoded OTLP message, with Arrow columns beside them. Immutable."""

    @property
    def signal(self) -> Literal["logs", "traces", "metrics"]: ...
    def __len__(self) -> int: ...
    @property
    def record_count(self) -> int:
        """What the books count: log records, spans, data points of metrics."""
        ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def resource_count(self) -> int: ...
    @property
    def error_count(self) -> int: ...
    @property
    def event_count(self) -> int: ...
    def to_arrow(self, columns: Sequence[str] | None = None) -> Columns:
        """A record batch (Arrow PyCapsule interface: `pyarrow.record_batch(...)` takes it) of the asked columns.

        Known: time_unix_nano, observed_time_unix_nano, severity_number, severity_text, body, trace_id, span_id, is_error, is_event, tag,
        row_bytes; any other name is an attribute of the row, else of its resource, as utf8 (null where absent; what is no string as
        JSON). None: all known ones, then the attributes that occur, at most 128 of them."""
        ...
    @staticmethod
    def from_arrow(records: Any, *, resource: Mapping[str, str] = ..., tag: str = "", observed_time_unix_nano: int = 0) -> Batch:
        """Log rows out of columns named as in `to_arrow`; every other column becomes an attribute, typed as the column is."""
        ...
    @staticmethod
    def from_otlp(
        data: bytes, *, signal: Literal["logs", "traces", "metrics"], codec: _Codec = "none", max_inflated_bytes: int = 268435456
    ) -> Batch:
        """The rows of an Export{Logs,Trace,Metrics}ServiceRequest; each keeps its own bytes, unknown fields included.

        CoreError (body_invalid, with the offset): what a protobuf parser would refuse is refused, at whatever level it is broken."""
        ...
    def slice(self, start: int, end: int) -> Batch:
        """Rows `start` to `end`, both clamped to the batch."""
        ...
    def filter(self, mask: Any) -> Batch:
        """The rows where `mask` (a boolean Arrow array, or a sequence of bools) is true."""
        ...
    def select_flag(self, flag: Literal["event", "error"]) -> Batch | None: ...
    def with_attributes(
        self, attributes: Mapping[str, Any], *, target: Literal["resource", "record"] = ..., overwrite: bool = False
    ) -> Batch:
        """A copy with attributes set: each value a scalar (str, int, float, bool, bytes) or an Arrow array with a value (or null) per row.

        The target is "resource" unless said otherwise. One that is there already is left alone unless `overwrite`; a key never occurs
        twice. CoreError (config_invalid): over 64 attributes, an array of another length, target="record" on metrics, values per row that
        would make over 1,024 resources."""
        ...
    def without_attributes(self, keys: Sequence[str]) -> Batch:
        """A copy without attributes of these keys, on rows (of metrics: not on points) and on resources."""
        ...
    def rows_with(self, needle: bytes) -> list[int]:
        """The rows that hold these bytes, ascending."""
        ...
    def marked(
        self, marks: Sequence[tuple[int, Mapping[str, str | int | float | bool]]], *, severity_number: int, severity_text: str
    ) -> Batch:
        """A copy in which some rows (by number) have another level, and attributes put over their own."""
        ...
    def to_block(self, codec: _Codec, *, topic: str, block_id: str) -> Block: ...
    def to_json_lines(self) -> bytes:
        """The fleet's standardised JSON for logs, OTLP JSON lines for traces and metrics; one line a row."""
        ...
    def to_forward(self, codec: _Codec, *, chunk: str, default_tag: str = "emp") -> list[ForwardFrame]: ...

@final
class Columns:
    """Columns of a batch, for whoever speaks the Arrow PyCapsule interface: `pyarrow.record_batch(columns)`."""

    @property
    def names(self) -> list[str]: ...
    def __len__(self) -> int:
        """Rows."""
        ...
    def __getitem__(self, name: str, /) -> Column: ...
    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]: ...
    def __arrow_c_schema__(self) -> object: ...

@final
class Column:
    """One column of a batch: `pyarrow.array(column)`."""

    def __len__(self) -> int: ...
    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]: ...

@final
class ForwardFrame:
    """One PackedForward message of one tag; `chunk` is unique within its call (`<chunk>.<n>` after the first)."""

    @property
    def tag(self) -> str: ...
    @property
    def chunk(self) -> str: ...
    @property
    def data(self) -> bytes: ...
    @property
    def records(self) -> int: ...

@final
class Block:
    """A batch as an OTLP export request, compressed, with its header. `memoryview(block)` is the payload, without a copy."""

    def __new__(cls, header: bytes, payload: bytes) -> Block: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    @property
    def header(self) -> bytes: ...
    @property
    def payload_bytes(self) -> int: ...
    @property
    def block_id(self) -> str: ...
    @property
    def topic(self) -> str: ...
    @property
    def signal(self) -> Literal["logs", "traces", "metrics"]: ...
    @property
    def codec(self) -> _Codec: ...
    @property
    def records(self) -> int:
        """What the books count: log records, spans, data points of metrics."""
        ...
    @property
    def errors(self) -> int: ...
    @property
    def events(self) -> int: ...
    @property
    def uncompressed_bytes(self) -> int: ...
    @property
    def min_time_unix_nano(self) -> int: ...
    @property
    def max_time_unix_nano(self) -> int: ...
    @property
    def decided(self) -> bool: ...
    @property
    def red_done(self) -> bool: ...
    @property
    def aggregated(self) -> bool: ...
    @property
    def tags(self) -> tuple[str, ...] | None:
        """Sorted, "" for rows without one. None: too many to list (more than 16)."""
        ...
    @property
    def services(self) -> tuple[str, ...] | None: ...
    @property
    def severities(self) -> tuple[int, ...]: ...
    def decode(self, max_inflated_bytes: int = 268435456) -> Batch: ...
    def payload(self, codec: _Codec) -> bytes:
        """The export request in a codec; the same bytes where it is the block's own."""
        ...
    def with_topic(self, topic: str) -> Block: ...
    def with_block_id(self, block_id: str) -> Block: ...
    def with_flags(self, *, decided: bool | None = None, red_done: bool | None = None, aggregated: bool | None = None) -> Block: ...
    def to_forward_frame(self) -> bytes:
        """The frame between two emp-pipes: the block verbatim, its chunk the block id."""
        ...
    def halve(self, block_ids: tuple[str, str]) -> tuple[Block, Block] | None:
        """Two blocks of half the rows each (of one metric: half its points); None when it is one record."""
        ...
    def split(self, shards: int) -> list[tuple[int, Block]]:
        """The parts that belong to each of so many shards of a log, by shard; a part's id is the block's with `.<shard>` behind it.

        Spans go by trace id, metrics by resource and name, log records by job id (else worker, else machine). CoreError: block_invalid."""
        ...

def encode_block(batches: Sequence[Batch], codec: _Codec, *, topic: str, block_id: str, level: int = 1) -> Block:
    """One block out of batches of one signal: equal resources and scopes are merged, rows copied once, then compressed."""
    ...

def merge_blocks(blocks: Sequence[Block], codec: _Codec, *, block_id: str) -> Block:
    """One block out of several of one signal: inflate, concatenate, compress."""
    ...

@final
class Redactor:
    """What is a secret, by names of keys and by what values look like; any number of threads may use it.

    CoreError (config_invalid) names the pattern that cannot be one. A capture group of a pattern of one's own is the secret, else the
    whole match; expressions are those of Rust's `regex`, on bytes: linear in time, no look-around, no back-references."""

    def __new__(
        cls,
        *,
        keys: Sequence[str],
        kept_keys: Sequence[str],
        patterns: Sequence[str],
        own_patterns: Mapping[str, str],
        mask: str,
        hash_key: str | None = None,
    ) -> Redactor: ...
    @staticmethod
    def pattern_names() -> list[str]: ...
    def batch(self, batch: Batch) -> Redacted:
        """A batch with its secrets replaced; its `batch` is the very one where it has none."""
        ...
    def bytes(self, data: Buffer) -> RedactedBytes:
        """Bytes of whatever kind with their secrets written over: as long as before."""
        ...
    def text(self, text: str) -> str: ...

@final
class Redacted:
    """`counts`: values that were masked, by the rule's name, where there are any."""

    @property
    def batch(self) -> Batch: ...
    @property
    def counts(self) -> dict[str, int]: ...

@final
class RedactedBytes:
    @property
    def data(self) -> bytes: ...
    @property
    def counts(self) -> dict[str, int]: ...

@final
class Aggregator:
    """Metrics added up to one point per stream and window; a window is what was taken since the last flush."""

    def __new__(cls, *, max_streams: int = 2000, max_exemplars: int = 5, idle_windows: int = 10) -> Aggregator: ...
    def take(self, block: Block, *, max_inflated_bytes: int = 268435456) -> AggregatorTaken:
        """Take a block of metrics in. CoreError (block_invalid), with nothing taken, where it cannot be read."""
        ...
    def flush(self, codec: _Codec, *, topic: str, block_prefix: str, level: int = 1) -> AggregatorFlushed:
        """Everything taken since the last flush, as blocks of at most 1 MiB that are flagged as aggregated."""
        ...
    def reset(self) -> None:
        """Forget everything."""
        ...
    def shrink(self) -> None:
        """Forget, right after a flush, which streams there are but for those flushed: for when memory is short."""
        ...
    @property
    def size_bytes(self) -> int:
        """About how many bytes it takes."""
        ...
    @property
    def stream_count(self) -> int:
        """Streams that it knows, those without a point in this window included."""
        ...

@final
class AggregatorTaken:
    """What was taken of a block: `points` can be read; `skipped` of them are past the limit of streams and have no place in another."""

    @property
    def points(self) -> int: ...
    @property
    def skipped(self) -> int: ...
    @property
    def unreadable(self) -> list[Rejected]:
        """Points that cannot be read, each with its metric's own fields."""
        ...

@final
class AggregatorFlushed:
    """A flushed window."""

    @property
    def blocks(self) -> list[Block]: ...
    @property
    def points(self) -> int: ...
    @property
    def overflowed(self) -> dict[str, int]:
        """By metric name: points past the limit of streams."""
        ...

@final
class RedMetrics:
    """Calls and durations out of spans, each weighted by the adjusted count of its `ot=th`."""

    def __new__(
        cls,
        *,
        namespace: str,
        unit: str,
        bounds: Sequence[float] | None,
        dimensions: Sequence[str],
        max_span_names: int,
        max_exemplars: int,
    ) -> RedMetrics:
        """`unit`: s or ms. `bounds`: of the duration's buckets, in the unit; None: an exponential histogram."""
        ...
    def take(self, block: Block, *, now_unix_nano: int, max_inflated_bytes: int = 268435456) -> RedTaken:
        """Count the spans of a block. CoreError (block_invalid), with nothing counted, where it cannot be read."""
        ...
    def flush(
        self, codec: _Codec, *, topic: str, block_prefix: str, start_unix_nano: int, end_unix_nano: int, level: int = 1
    ) -> list[Block]:
        """What was counted since the last flush, as blocks of at most 1 MiB: points of the time between two flushes."""
        ...
    def reset(self) -> None:
        """Forget what was counted."""
        ...

@final
class RedTaken:
    """What was taken of a block of spans: `overflowed` are counted without their name, `unreadable` not at all."""

    @property
    def spans(self) -> int: ...
    @property
    def overflowed(self) -> int: ...
    @property
    def unreadable(self) -> int: ...

@final
class Selection:
    """A compiled `only:` / `except:` rule (JSON of SelectionConfig, by field name)."""

    def __new__(cls, *, only: str | None = None, except_: str | None = None) -> Selection: ...
    def of_block(self, block: Block) -> Literal["all", "none", "some"]:
        """What the header alone proves; "some" means: open the block."""
        ...
    def apply(self, batch: Batch) -> Batch | None: ...

@final
class GrpcServerConnection:
    """The server's end of one HTTP/2 connection that carries unary calls: bytes in, events out; answers in, bytes out."""

    def __new__(cls, *, max_concurrent_streams: int, min_ping_interval_s: float) -> GrpcServerConnection: ...
    def received(self, buffer: Buffer, size_bytes: int) -> None:
        """Take the first bytes of a buffer; `next` reads them, and the buffer must not change before that returns None."""
        ...

    def next(self, now_s: float) -> GrpcCall | GrpcWants | GrpcMessage | GrpcNoMessage | GrpcGone | GrpcBroken | None:
        """The next event; None when all that was received is read."""
        ...

    def give_turn(self, stream: int) -> None:
        """Let as much of a call's message come as it has."""
        ...

    def grant(self, stream: int, more_bytes: int) -> None:
        """Grant memory to a message that wants it."""
        ...

    def respond(self, stream: int, message: bytes) -> bool:
        """Answer a call. False: the peer does not take its answers, and the connection is to be closed."""
        ...

    def fail(self, stream: int, status: int, message: str, trailers: Sequence[tuple[str, str]]) -> None:
        """Answer a call with a status that is not OK; what still comes of it is read away."""
        ...

    def reject(self, stream: int, http_status: int) -> None:
        """Answer a call that is none of gRPC in HTTP's words."""
        ...

    def drain(self) -> None:
        """Say that no call is taken any more; those under way go on."""
        ...

    def ping(self) -> None: ...
    def output(self) -> bytes:
        """What is to be sent now."""
        ...

    @property
    def awaits_pong(self) -> bool: ...
    @property
    def has_begun(self) -> bool:
        """The peer has said what a client of HTTP/2 begins with."""
        ...

    @property
    def is_greeted(self) -> bool:
        """The peer has told its settings."""
        ...

    @property
    def open_calls(self) -> int: ...

@final
class GrpcCall:
    """A call begins: unless it is ended its message is read."""

    @property
    def stream(self) -> int: ...
    @property
    def path(self) -> str: ...
    @property
    def problem(self) -> Literal["", "metadata", "method", "content type"]:
        """What is wrong with it; "" where nothing is."""
        ...

    def header(self, name: str) -> str:
        """The values of all headers of that name, joined by commas; "" without one."""
        ...

@final
class GrpcWants:
    """A message needs memory: `grant` it, or end the call."""

    @property
    def stream(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def granted_bytes(self) -> int: ...
    @property
    def more_bytes(self) -> int: ...

@final
class GrpcMessage:
    """The message of a call, as it came. `len` is its bytes; `OtlpDecoder.decode` reads it where it lies."""

    @property
    def stream(self) -> int: ...
    @property
    def flag(self) -> int:
        """The first byte of its prefix: 1 where it is compressed."""
        ...

    def __len__(self) -> int: ...
    def __bytes__(self) -> bytes: ...

@final
class GrpcNoMessage:
    """The peer has ended a call before its message was whole; it waits for an answer."""

    @property
    def stream(self) -> int: ...
    @property
    def is_torn(self) -> bool: ...

@final
class GrpcGone:
    """The peer has given a call up."""

    @property
    def stream(self) -> int: ...

@final
class GrpcBroken:
    """The connection cannot go on; what the peer is told stands in the output."""

    @property
    def code(self) -> int:
        """HTTP/2's error code."""
        ...

    @property
    def why(self) -> str: ...

@final
class GrpcClientConnection:
    """The client's end of one HTTP/2 connection that carries unary calls: calls in, bytes out; bytes in, answers out."""

    def __new__(cls) -> GrpcClientConnection: ...
    def call(self, fields: Sequence[tuple[str, str]], block: Block, codec: _Codec) -> int | None:
        """Begin a call with the block's request in a codec as its message. None: the server takes no more calls now."""
        ...

    def cancel(self, stream: int) -> None: ...
    def received(self, buffer: Buffer, size_bytes: int) -> None:
        """Take the first bytes of a buffer; `next` reads them, and the buffer must not change before that returns None."""
        ...

    def next(self, now_s: float) -> GrpcAnswer | GrpcReset | GrpcGoAway | GrpcBroken | None:
        """The next event; None when all that was received is read."""
        ...

    def output(self, most_bytes: int) -> GrpcOutput:
        """What is to be sent now: of the messages at most about so many bytes."""
        ...

    def ping(self) -> None: ...
    def goaway(self) -> None: ...
    @property
    def has_room(self) -> bool:
        """A call may begin now."""
        ...

    @property
    def is_leaving(self) -> bool:
        """No call will begin on it any more."""
        ...

    @property
    def awaits_pong(self) -> bool: ...
    @property
    def is_greeted(self) -> bool:
        """The server has told its settings."""
        ...

    @property
    def open_calls(self) -> int: ...

@final
class GrpcOutput:
    """Bytes to be sent, where the core wrote them. `memoryview(output)` is them, without a copy."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __len__(self) -> int: ...

@final
class GrpcAnswer:
    """What the server says to a call."""

    @property
    def stream(self) -> int: ...
    @property
    def http_status(self) -> int: ...
    @property
    def grpc_status(self) -> int | None:
        """None where the server, or what stands before it, has not said one."""
        ...

    @property
    def message(self) -> str: ...
    @property
    def foreign_content_type(self) -> str | None:
        """The content type, where it is not that of gRPC."""
        ...

    @property
    def is_too_long(self) -> bool: ...
    @property
    def body(self) -> bytes | None:
        """The message, as it came; None where there is none that is whole."""
        ...

    @property
    def is_compressed(self) -> bool: ...
    @property
    def trailers(self) -> list[tuple[str, str]]: ...

@final
class GrpcReset:
    """The server ended a call without an answer."""

    @property
    def stream(self) -> int: ...
    @property
    def code(self) -> int: ...
    @property
    def is_untouched(self) -> bool:
        """The server has done nothing about it."""
        ...

@final
class GrpcGoAway:
    """The server takes no more calls on the connection; those that it has not touched are told by `GrpcReset` as well."""

    @property
    def code(self) -> int: ...
    @property
    def debug(self) -> str: ...

@final
class DestinationLimits:
    """What a destination accepts; 0 means no limit."""

    def __new__(
        cls,
        *,
        max_age_s: float = 0.0,
        max_ahead_s: float = 0.0,
        max_body_bytes: int = 0,
        max_log_attributes: int = 0,
        max_span_attributes: int = 0,
        max_span_events: int = 0,
        max_trace_spans: int = 0,
        max_key_bytes: int = 0,
        max_value_bytes: int = 0,
    ) -> DestinationLimits: ...
    def block_passes(self, block: Block, now_unix_nano: int) -> bool: ...
    def apply(self, batch: Batch, now_unix_nano: int) -> Limited: ...

@final
class Limited:
    """A batch made to fit: what passes, what the destination would refuse, and how many values were shortened or left out, by limit."""

    @property
    def batch(self) -> Batch | None: ...
    @property
    def expired(self) -> Batch | None:
        """Rows that are too old, or too far ahead. They become dead letters."""
        ...
    @property
    def trace_too_large(self) -> Batch | None:
        """Spans past those that the destination takes of a trace. They become dead letters."""
        ...
    @property
    def truncated(self) -> dict[str, int]:
        """How often each limit applied, by its name; rows set apart are counted too."""
        ...

@final
class ExportResponse:
    @property
    def rejected(self) -> int: ...
    @property
    def message(self) -> str: ...

def parse_export_response(data: Buffer) -> ExportResponse:
    """The partial success of an Export…ServiceResponse (protobuf)."""
    ...

def parse_status(data: Buffer) -> str:
    """The message of a google.rpc.Status (protobuf); "" where it is none."""
    ...

def parse_retry_delay_s(data: Buffer, *, in_status: bool) -> float | None:
    """The seconds that a google.rpc.RetryInfo (protobuf) asks to wait; `in_status`: it is a detail of a google.rpc.Status.

    None where it says nothing usable: bytes that are none, no delay, a delay that is not above 0."""
    ...

@final
class Sampler:
    """Keeps a percentage of rows by rules, the same ones on every machine. Errors and events are kept, metrics are not touched."""

    def __new__(cls, rules: str) -> Sampler:
        """`rules` is JSON, the first that matches a row counts. CoreError: config_invalid."""
        ...
    def apply(self, batch: Batch) -> Sampled: ...

@final
class Sampled:
    """What sampling left of a batch."""

    @property
    def batch(self) -> Batch | None:
        """The very batch that was given where nothing changes; None: nothing is left."""
        ...
    @property
    def dropped(self) -> dict[str, int]:
        """Rows that were left out, by the rule's name, where there are any."""
        ...
    @property
    def malformed_tracestate(self) -> int:
        """Spans whose tracestate is malformed or full, and was left as it is."""
        ...

@final
class Filter:
    """Drops rows by rules, or keeps one in so many: the first of each N that the rule sees."""

    def __new__(cls, rules: str) -> Filter:
        """`rules` is JSON, the first that matches a row decides. CoreError: config_invalid."""
        ...
    def apply(self, batch: Batch) -> Filtered: ...

@final
class RateLimiter:
    """Keeps so many records a second of each source, tag or service."""

    def __new__(cls, rules: str, max_buckets: int) -> RateLimiter:
        """`rules` is JSON, the first that matches a row decides. CoreError: config_invalid."""
        ...
    def apply(self, batch: Batch, now_nano: int) -> Filtered:
        """`now_nano` is of a clock that does not jump."""
        ...
    @property
    def bucket_count(self) -> int: ...

@final
class Filtered:
    """What rules left of a batch."""

    @property
    def batch(self) -> Batch | None:
        """The very batch that was given where nothing is left out; None: nothing is left."""
        ...
    @property
    def dropped(self) -> dict[str, int]:
        """Records that were left out, by the rule's name, where there are any."""
        ...

@final
class TailSampler:
    """Decides whole traces. Blocks go in with `take`; `tick` says which have ended and what of them goes on."""

    def __new__(cls, settings: str) -> TailSampler:
        """`settings` is JSON. CoreError (config_invalid) names the policy."""
        ...
    def restore(self, values: Sequence[bytes]) -> None:
        """Begin anew with the values of the commits that were made."""
        ...
    def take(self, offset: int, block: Block, now_unix_nano: int) -> None:
        """Take a block in, in the order of offsets. CoreError (block_invalid): then it is not held."""
        ...
    def tick(
        self, now_unix_nano: int, *, at_once: bool, codec: _Codec, id_prefix: str, first_number: int, level: int = 1
    ) -> TailTick | None:
        """What is due now; None where nothing is. Outputs get ids of `id_prefix` and numbers from `first_number` on.

        `at_once`: kept rows do not wait for the rest of their block. What is returned counts as done: commit it, or `restore`."""
        ...
    @property
    def policy_names(self) -> list[str]: ...
    @property
    def open_traces(self) -> int: ...
    @property
    def decided_traces(self) -> int:
        """Decisions that are remembered."""
        ...
    @property
    def held_blocks(self) -> int: ...
    @property
    def memory_bytes(self) -> int:
        """What the summaries take; blocks not counted."""
        ...
    @property
    def counts(self) -> dict[str, int]:
        """What has been counted since it was made: `policy.<name>.traces`, `….spans`, `dropped.traces`, `dropped.spans`, `why.<cause>`,
        `late.kept`, `late.dropped`, `without_trace_id`, `malformed_tracestate`."""
        ...

@final
class TailTick:
    """What one commit of a tail sampler does."""

    @property
    def acks(self) -> list[int]:
        """The offsets of blocks that have ended."""
        ...
    @property
    def skipped(self) -> dict[int, int]:
        """By offset: rows that were left out, where there are any."""
        ...
    @property
    def broken(self) -> dict[int, int]:
        """By offset: rows that cannot be read, where there are any."""
        ...
    @property
    def outputs(self) -> list[Block]:
        """Blocks of the topic `traces`, flagged as decided."""
        ...
    @property
    def state(self) -> tuple[int, bytes] | None:
        """The number and the value of what a restart has to know."""
        ...
    @property
    def deletes(self) -> list[int]:
        """Numbers of values that are needed no more."""
        ...
