"""The Fluent Forward exporter: to another emp-pipe the block as it lies, to any other peer PackedForward; both wait for the ack.

Several endpoints are an order of preference: the next one is used while the first is down, and the first again when it is back.
To another emp-pipe the chunk id is the block id, the same on every retry, so that a repeat is recognised there. No retry in here: the
delivery loop does that. One connection: `forward_link.py`.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from emp_pipe.component import Context, ExporterConfig, Parcel, Sent, Signal
from emp_pipe.errors import DeliveryError, ErrorKind
from emp_pipe.exporters.forward_link import Endpoint, Identity, Link
from emp_pipe.forward_handshake import MAX_NAME_BYTES
from emp_pipe.log.protocol import Topic
from emp_pipe.logs import get_logger
from emp_pipe.secret import Secret
from emp_pipe.tls import TlsClientConfig, WatchedContext

_DEFAULT_PORT = 24224
_ENDPOINT = re.compile(r"^(?P<host>\[[0-9a-fA-F:.%\w]+\]|[^\[\]:\s/]+)(?::(?P<port>\d{1,5}))?$")
_INLINE_BELOW_BYTES = 65_536
_MOST_REMEMBERED_BLOCKS = 256

_OTHER_SIGNALS = "set a `shared_key` on both sides, or send traces and metrics by otlp_http or otlp_grpc"


class ForwardExporterConfig(ExporterConfig):
    """Settings of a Fluent Forward exporter."""

    endpoint: tuple[str, ...] = Field(
        min_length=1,
        description="host:port, or unix:///path. Several: the first that answers is used, and the first again when it is back.",
    )
    tls: TlsClientConfig | None = Field(None, description="Speak TLS. Give `{}` for the defaults.")
    shared_key: Secret | None = Field(None, description="The key that the peer asks for.")
    username: str = Field("", description="The user, where the peer asks for one.")
    password: Secret | None = Field(None, description="The user's password.")
    self_hostname: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="The name in the handshake; made of the machine's id, or of the buffer's where replicas share one.",
    )
    compression: Literal["none", "gzip", "zstd"] = Field(
        "gzip", description="For peers that are no emp-pipe; Fluent Bit understands gzip, fluentd 1.19 zstd too. Blocks go as they lie."
    )
    require_ack: bool = Field(True, description="Wait for the peer's ack. Without it what is on the way is lost when the connection is.")
    keepalive: bool = Field(True, description="Keep connections open between chunks.")
    connections: PositiveInt = Field(4, description="Connections to a peer that is no emp-pipe: one chunk at a time on each.")
    in_order: bool = Field(
        False,
        description="Send one chunk at a time, in the order of the buffer, also over retries: for a peer that writes entries down as they "
        "come. Slower: each chunk waits for the ack of the one before it.",
    )
    connect_timeout_s: PositiveFloat = Field(5.0, description="The time that connecting may take, TLS included.")
    handshake_timeout_s: PositiveFloat = Field(10.0, description="The time that the key's handshake may take.")
    ack_timeout_s: PositiveFloat = Field(
        20.0,
        description="The time that an ack may take; then the connection is closed and the chunk sent again, to the next endpoint where "
        "there are several. An emp-pipe knows a chunk that it has.",
    )
    retry_max_s: PositiveFloat = Field(
        5.0, description="The largest upper bound of the full-jitter wait: a peer that is back is used within so many seconds."
    )
    failback_s: PositiveFloat = Field(30.0, description="How often to try the first endpoint again while another one is used.")
    timeout_s: PositiveFloat = Field(90.0, description="The time that one attempt may take.")

    @field_validator("endpoint", mode="before")
    @classmethod
    def _one_endpoint_is_a_list(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given

    @field_validator("endpoint")
    @classmethod
    def _endpoints_are_addresses(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for entry in given:
            parse_endpoint(entry)
        return given

    @model_validator(mode="after")
    def _user_and_key(self) -> ForwardExporterConfig:
        if bool(self.username) != (self.password is not None):
            raise ValueError("`username` and `password` go together")
        if self.username and self.shared_key is None:
            raise ValueError("a user is named in the handshake, which needs a `shared_key`")
        if len(self.username.encode()) > MAX_NAME_BYTES:
            raise ValueError(f"`username` has more than {MAX_NAME_BYTES} bytes")
        if self.shared_key is None and self.only is not None and self.only.signals and Signal.LOGS not in self.only.signals:
            raise ValueError(f"without a `shared_key` only logs can be sent: {_OTHER_SIGNALS}")
        return self


def parse_endpoint(text: str) -> Endpoint:
    """Return what `host:port`, `host` or `unix:///path` names. Raises ValueError."""
    if text.startswith("unix://"):
        return Endpoint("", 0, text.removeprefix("unix://"))
    match = _ENDPOINT.match(text)
    if match is None or int(match["port"] or 1) not in range(1, 65536):
        raise ValueError(f"`{text}` is no address: write host:port, such as central.example:24225, or unix:///path")
    return Endpoint(match["host"].strip("[]"), int(match["port"] or _DEFAULT_PORT))


class ForwardExporter:
    """Sends blocks to the first of its endpoints that answers."""

    def __init__(self, id: str, config: ForwardExporterConfig, context: Context) -> None:
        self.id = id
        self.config = config
        self._context = context
        self._log = get_logger(id)
        self._endpoints = [parse_endpoint(text) for text in config.endpoint]
        self._identity = Identity("")
        self._tls: WatchedContext | None = None
        self._current = 0
        self._try_first_at_s = 0.0
        self._opening = asyncio.Lock()
        self._shared: Link | None = None
        self._peer_is_foreign = False
        self._slots = asyncio.Semaphore(config.connections)
        self._idle: list[Link] = []
        self._links: set[Link] = set()
        self._acked_frames: OrderedDict[str, set[str]] = OrderedDict()

    @property
    def topics(self) -> frozenset[Topic]:
        """What its group reads. Without a key no peer can be recognised as an emp-pipe, and Fluent's own messages have logs only."""
        return frozenset({Topic.LOGS}) if self.config.shared_key is None else frozenset({Topic.LOGS, Topic.TRACES, Topic.METRICS})

    @property
    def codec(self) -> str:
        return "any"

    @property
    def merges(self) -> bool:
        return False  # a chunk's composition and id are fixed until it is acked

    @property
    def ordered(self) -> bool:
        return self.config.in_order

    @property
    def limits(self) -> None:
        return None

    async def open(self) -> None:
        """Read secrets and certificates. Connects to nobody: a peer that is down must not stop a start. Raises ConfigError."""
        config, place = self.config, self.id
        self._identity = Identity(
            config.self_hostname or "",
            config.shared_key.reveal(f"{place}: shared_key") if config.shared_key is not None else "",
            config.username,
            config.password.reveal(f"{place}: password") if config.password is not None else "",
        )
        if config.tls is not None:
            self._tls = WatchedContext.of_client(config.tls, self._context.clock, f"{place}: tls")
        if config.shared_key is None:
            self._log.info("%s: sends logs only, for it has no `shared_key`; %s", place, _OTHER_SIGNALS)

    async def send(self, parcel: Parcel) -> Sent:
        """Return when the peer has acknowledged the parcel. Raises DeliveryError."""
        try:
            link = await self._shared_link()
            if link is not None:
                return await self._send_block(link, parcel)
            async with self._slots:
                return await self._send_alone(parcel)
        except DeliveryError as error:
            raise error.located(self.id) from None

    async def close(self, deadline_monotonic_s: float) -> None:
        for link in list(self._links):
            link.close()
        self._links.clear()
        self._idle.clear()
        self._shared = None

    # --- to another emp-pipe ------------------------------------------------------------------------

    async def _send_block(self, link: Link, parcel: Parcel) -> Sent:
        block = parcel.block
        await self._deliver(link, block.block_id, block.to_forward_frame(), parcel)
        if not self._keeps(link):
            link.retire()
        return Sent()

    async def _shared_link(self) -> Link | None:
        """The link that all chunks to an emp-pipe share; None: the peer is foreign. Now and then it moves back to the first endpoint."""
        async with self._opening:
            if self._peer_is_foreign:
                return None
            link = self._shared
            if link is None or not link.is_open:
                link = await self._open_any()
                if not link.is_emp_pipe:
                    self._peer_is_foreign = True
                    self._idle.append(link)
                    return None
                self._shared = link
                return link
        if self._current and self._is_time_for_the_first():
            try:
                first = await self._open(0)
            except DeliveryError:
                return link
            if first.is_emp_pipe:
                link.retire()
                self._use(0)
                self._shared = link = first
            else:
                first.close()
        return link

    # --- to any other peer --------------------------------------------------------------------------

    async def _send_alone(self, parcel: Parcel) -> Sent:
        """Send a parcel's frames one after another on a link that nobody else uses meanwhile."""
        link = await self._idle_link()
        if link.is_emp_pipe:
            self._peer_is_foreign = False
            self._shared = link
            return await self._send_block(link, parcel)
        try:
            await self._send_frames(link, parcel)
        except BaseException:
            link.abort()  # an ack may still be under way: the next chunk must not see it
            raise
        if self._keeps(link):
            self._idle.append(link)
        else:
            link.close()
        return Sent()

    async def _send_frames(self, link: Link, parcel: Parcel) -> None:
        block = parcel.block
        if block.signal != "logs":
            raise DeliveryError(
                ErrorKind.REFUSED,
                place=str(link.endpoint),
                detail=f"{block.signal} cannot be sent by Forward to a peer that is no emp-pipe",
                advice="send them by otlp_http or otlp_grpc, and set `only: {signals: [logs]}` here",
            )

        def encode() -> list[Any]:
            return list(block.decode().to_forward(self.config.compression, chunk=block.block_id))

        frames = encode() if block.uncompressed_bytes < _INLINE_BELOW_BYTES else await asyncio.to_thread(encode)
        acked = self._acked_frames.get(block.block_id, set())
        for frame in frames:
            if frame.chunk in acked:  # of an attempt that ended between two tags
                continue
            await self._deliver(link, frame.chunk, frame.data, parcel)
            acked.add(frame.chunk)
            self._remember(block.block_id, acked)
        self._acked_frames.pop(block.block_id, None)

    def _remember(self, block_id: str, acked: set[str]) -> None:
        self._acked_frames[block_id] = acked
        if len(self._acked_frames) > _MOST_REMEMBERED_BLOCKS:
            self._acked_frames.popitem(last=False)

    async def _idle_link(self) -> Link:
        go_to_first = self._current > 0 and self._is_time_for_the_first()
        while self._idle and not go_to_first:
            link = self._idle.pop()
            if link.is_open and link.endpoint == self._endpoints[self._current]:
                return link
            link.close()
        if go_to_first:
            try:
                link = await self._open(0)
            except DeliveryError:
                return await self._idle_link()
            self._use(0)
            return link
        return await self._open_any()

    # --- links --------------------------------------------------------------------------------------

    async def _deliver(self, link: Link, chunk: str, frame: bytes, parcel: Parcel) -> None:
        left_s = parcel.deadline_monotonic_s - self._context.clock.monotonic_s()
        timeout_s = max(min(left_s, self.config.ack_timeout_s), 0.001)
        try:
            if self.config.require_ack or link.is_emp_pipe:
                await link.deliver(chunk.encode(), frame, timeout_s)
            else:
                await link.deliver_unacknowledged(frame, timeout_s)
        except DeliveryError as error:
            if error.kind is ErrorKind.TIMED_OUT and link.endpoint == self._endpoints[self._current]:
                self._use((self._current + 1) % len(self._endpoints))
            raise

    async def _open_any(self) -> Link:
        """A link to the current endpoint, else to the first of the others that answers. Raises what is most telling of all errors."""
        errors: list[DeliveryError] = []
        order = [self._current, *(index for index in range(len(self._endpoints)) if index != self._current)]
        for index in order:
            try:
                link = await self._open(index)
            except DeliveryError as error:
                errors.append(error)
                continue
            self._use(index)
            return link
        worst = next((error for error in errors if error.kind is ErrorKind.UNAUTHENTICATED), errors[0])
        raise worst

    async def _open(self, index: int) -> Link:
        endpoint, tls = self._endpoints[index], self.config.tls
        link = await Link.open(
            endpoint,
            replace(self._identity, hostname=self._identity.hostname or self._own_name()),
            tls=self._tls.current() if self._tls is not None and not endpoint.path else None,
            server_name=(tls.server_name if tls is not None else None) or endpoint.host,
            connect_timeout_s=self.config.connect_timeout_s,
            handshake_timeout_s=self.config.handshake_timeout_s,
        )
        self._links = {other for other in self._links if not other.is_closed} | {link}
        return link

    def _own_name(self) -> str:
        """Whoever sends from one log is one sender: what another replica sent before is known to the peer when it comes again."""
        context = self._context
        return f"{context.log_name() or context.machine_id}.{context.role}"[:200]

    def _use(self, index: int) -> None:
        if index != self._current:
            self._log.warning("%s: sending to %s now, %s before", self.id, self._endpoints[index], self._endpoints[self._current])
            self._current = index
            self._try_first_at_s = self._context.clock.monotonic_s() + self.config.failback_s

    def _is_time_for_the_first(self) -> bool:
        now_s = self._context.clock.monotonic_s()
        if now_s < self._try_first_at_s:
            return False
        self._try_first_at_s = now_s + self.config.failback_s
        return True

    def _keeps(self, link: Link) -> bool:
        return self.config.keepalive and link.keepalive and link.is_open


CONFIG = ForwardExporterConfig
COMPONENT = ForwardExporter
