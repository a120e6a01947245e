"""What every receiver by HTTP shares: what its connections ask of it, and the limits by which one is closed.

Listeners and stops are in `emp_pipe/request_receiving.py`, the bytes of a connection in `emp_pipe/http_connection.py`, what happens with
a whole request in `emp_pipe/otlp_intake.py`. What is asked for and what is answered is the receiver's: `receivers/otlp_http.py`,
`receivers/http_json.py`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveFloat

from emp_pipe.accepting import Cut, CutConnections
from emp_pipe.bearer import BearerTokens
from emp_pipe.clock import Clock
from emp_pipe.http_connection import HttpConnection, State
from emp_pipe.http_head import BadRequest, RequestHead
from emp_pipe.http_reply import Response
from emp_pipe.otlp_answers import Code, Outcome
from emp_pipe.otlp_intake import OtlpIntake
from emp_pipe.request_receiving import RequestReceiverConfig, RequestService
from emp_pipe.tls import common_name

if TYPE_CHECKING:  # a configuration can be checked without the native core
    from emp_pipe._core import Body

_LINGER_S = 3.0


class HttpReceiverConfig(RequestReceiverConfig):
    """What every receiver that takes requests by HTTP can be told."""

    max_head_bytes: Annotated[int, Field(ge=1024)] = Field(16_384, description="The longest request line with its headers.")
    head_timeout_s: PositiveFloat = Field(10.0, description="The time that TLS and the headers of a request may take.")
    idle_timeout_s: PositiveFloat = Field(180.0, description="A connection that is silent between requests for so long is closed.")


class HttpService(RequestService[HttpConnection]):
    """What the connections share, and how long each may take.

    A receiver adds the rules by which a head is judged, and the answers."""

    def __init__(self, config: HttpReceiverConfig, tokens: BearerTokens, otlp: OtlpIntake, cut: CutConnections, clock: Clock) -> None:
        from emp_pipe._core import BodyPool

        super().__init__(config, tokens, otlp, cut, clock)
        self.max_head_bytes = config.max_head_bytes
        self.bodies = BodyPool()
        self._config = config

    # --- connections --------------------------------------------------------------------------------

    def _connection(self, address: str) -> HttpConnection:
        return HttpConnection(self, address)

    def close_if_overdue(self, connection: HttpConnection, now_s: float) -> None:
        config, state = self._config, connection.state
        waited_s = now_s - connection.since_s
        if state is State.CLOSING:
            if waited_s >= _LINGER_S:
                connection.abort()
        elif state is State.HEAD:
            self._cut_while_waiting_for_a_head(connection, waited_s)
        elif state is not State.BUSY and waited_s >= config.request_timeout_s:
            self.cut.count(Cut.REQUEST_TIMED_OUT)
            if state is State.DISCARD:  # it has its answer: another one would be taken for that to its next request
                connection.close()
                return
            message = f"the request did not come whole within {config.request_timeout_s:g} s"
            connection.refuse(self._early_refusal(connection, Outcome(Code.DEADLINE_EXCEEDED, message)))

    def _cut_while_waiting_for_a_head(self, connection: HttpConnection, waited_s: float) -> None:
        """Its headers drip, it does not take its answers, or it is idle: the last is no offence and not counted."""
        config = self._config
        if connection.answers_unread:
            if waited_s < (config.request_timeout_s if connection.is_idle else config.head_timeout_s):
                return
            self.cut.count(Cut.ANSWERS_UNREAD)
            self.log.warning(Cut.ANSWERS_UNREAD, "%s: closed, it did not take its answers", connection.peer)
            connection.abort()
        elif not connection.is_idle:
            if waited_s >= config.head_timeout_s:
                self.cut.count(Cut.HEAD_TIMED_OUT)
                self.log.warning(Cut.HEAD_TIMED_OUT, "%s: closed, its headers did not come in time", connection.peer)
                connection.close()
        elif waited_s >= config.idle_timeout_s:
            connection.close()

    def drain(self, connection: HttpConnection) -> None:
        """The receiver stops: see `HttpConnection.drain`."""
        if connection.drain():
            connection.refuse(self._early_refusal(connection, self.otlp.stopping_refusal()))

    @abstractmethod
    def _early_refusal(self, connection: HttpConnection, outcome: Outcome) -> Response:
        """Return the answer to a request of which at most the head has come."""

    # --- requests -----------------------------------------------------------------------------------

    @abstractmethod
    def begin(self, connection: HttpConnection, head: RequestHead) -> Response | None: ...

    @abstractmethod
    def grant(self, connection: HttpConnection, more_bytes: int) -> Response | None: ...

    @abstractmethod
    def complete(self, connection: HttpConnection, head: RequestHead, body: bytes | Body, granted_bytes: int) -> None: ...

    @abstractmethod
    def malformed(self, connection: HttpConnection, error: BadRequest) -> Response: ...

    def release(self, granted_bytes: int) -> None:
        self.otlp.release(granted_bytes)

    def client_of(self, connection: HttpConnection, headers: Mapping[str, str]) -> str | None:
        """Return the name of who asks; None without a valid token, which counts against the address whatever is asked for."""
        client = self._tokens.client_of(headers.get("authorization", ""))
        if client is None and self.places.strike(connection.address):  # on this connection it would go on
            connection.last = True
        return client

    def peer_of(self, connection: HttpConnection, client: str) -> str:
        """Return who sends, as dead letters say it: the token's name, else the certificate's, and the address."""
        if not client and self._config.tls is not None and self._config.tls.client_ca_file is not None:
            client = common_name(connection.certificate())
        return f"{client} ({connection.peer})" if client else connection.peer
