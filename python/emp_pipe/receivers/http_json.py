"""The HTTP JSON receiver: records as JSON by `POST`, one object, an array, or one after another, usually each on a line of its own.

The tag is the path (`/app.web`, or `/app/web`), the time may be in the query (`?time=1760000000.5`), as Fluentd's `in_http` has it. An
answer comes when the records are durable. What is no record becomes a dead letter, its neighbours are kept and the answer counts it.
Listeners are in `emp_pipe/request_receiving.py`, connections in `emp_pipe/http_receiving.py`, the way of a request in
`emp_pipe/otlp_intake.py`, what is asked and answered in `emp_pipe/http_json_service.py`.
"""

from __future__ import annotations

from emp_pipe.accepting import CutConnections
from emp_pipe.bearer import BearerTokens
from emp_pipe.component import Intake
from emp_pipe.http_json_service import HttpJsonIntake, HttpJsonService
from emp_pipe.http_receiving import HttpReceiverConfig, HttpService
from emp_pipe.listening import Listen, listen_setting
from emp_pipe.request_receiving import RequestReceiver


class HttpJsonConfig(HttpReceiverConfig):
    """Settings of an HTTP JSON receiver."""

    listen: Listen = listen_setting("9880", "a token or a certificate")


class HttpJsonReceiver(RequestReceiver):
    """Takes records in JSON by HTTP."""

    config: HttpJsonConfig

    def make_service(self, intake: Intake, tokens: BearerTokens, cut: CutConnections) -> HttpService:
        middle = HttpJsonIntake(self.id, self.config, self._context, intake)
        return HttpJsonService(self.config, tokens, middle, cut, self._context.clock)


CONFIG = HttpJsonConfig
COMPONENT = HttpJsonReceiver
