"""Two ordinary services in Python, for tests: one calls the other over HTTP inside a job. They know OpenTelemetry, and nothing of emp-pipe.

service_app.py serve          prints its port, answers one request, ends
service_app.py call URL JOB   calls it within a span, the job in the baggage
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from opentelemetry import baggage, context, metrics, trace

log = logging.getLogger("service")
tracer = trace.get_tracer("service")


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        return


def _answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    with tracer.start_as_current_span("render"):
        log.warning("rendering %s", environ["PATH_INFO"])
        if "fail" in environ["PATH_INFO"]:
            trace.get_current_span().set_status(trace.StatusCode.ERROR, "out of memory")
        metrics.get_meter("service").create_counter("renders").add(1)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]


def serve() -> None:
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

    server = make_server("127.0.0.1", 0, OpenTelemetryMiddleware(_answer), handler_class=_Quiet)
    print(server.server_port, flush=True)
    server.handle_request()
    server.server_close()


def call(url: str, job: str) -> None:
    import requests

    token = context.attach(baggage.set_baggage("user_id", "not to be copied", baggage.set_baggage("job_id", job)))
    with tracer.start_as_current_span("submit"):
        log.warning("submitting")
        print(requests.get(url, timeout=20).text)
    context.detach(token)
    with tracer.start_as_current_span("idle"):
        log.warning("no job")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        call(*sys.argv[2:])
