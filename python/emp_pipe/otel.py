"""job_id from W3C baggage on an application's spans, and on the log records inside them: for Python applications with OpenTelemetry.

    from emp_pipe import otel
    otel.copy_baggage()              # once, when the SDK is set up; `emp-pipe exec` and auto-instrumentation do it by themselves
    with otel.job("job-123"): ...    # every span and log in here has the job_id, in this process and in those that it calls

Stands alone: imports nothing of emp-pipe, and OpenTelemetry only when called, for it runs inside the application. Its counterpart for
Node is `otel_node.cjs`. Of what comes in over the network only the listed keys are copied, and only up to `MOST_CHARACTERS`.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk._logs import LogRecordProcessor
    from opentelemetry.sdk.trace import SpanProcessor

KEYS = ("job_id", "session_id")
KEYS_VARIABLE = "EMP_OTEL_BAGGAGE_KEYS"
MOST_CHARACTERS = 256
"""A longer value is no id: it is not copied, for half of one would be a wrong one."""
NODE_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "otel_node.cjs")
"""The same for Node: `node --require`."""
_DONE = "_emp_pipe_copies_baggage"


def keys_from_environment() -> tuple[str, ...]:
    """Return the baggage keys that are copied: EMP_OTEL_BAGGAGE_KEYS, separated by commas, else `KEYS`."""
    given = os.environ.get(KEYS_VARIABLE)
    return KEYS if given is None else tuple(key.strip() for key in given.split(",") if key.strip())


def copy_baggage(tracer_provider: Any = None, logger_provider: Any = None, keys: Sequence[str] | None = None) -> bool:
    """Make the SDK's providers (default: the global ones) copy baggage; return whether one does now. A second call changes nothing."""
    from opentelemetry import _logs, trace

    wanted = tuple(keys) if keys is not None else keys_from_environment()
    tracers = tracer_provider if tracer_provider is not None else trace.get_tracer_provider()
    loggers = logger_provider if logger_provider is not None else _logs.get_logger_provider()
    copies = [_add(tracers, "add_span_processor", span_processor, wanted)]
    copies.append(_add(loggers, "add_log_record_processor", log_processor, wanted, front="_multi_log_record_processor"))
    return any(copies)


def instrumented() -> None:
    """What auto-instrumentation calls when the SDK is set up (entry point `opentelemetry_pre_instrument`): an application starts anyway."""
    try:
        copy_baggage()
    except Exception:  # whatever SDK is there, and whatever is wrong with it: a missing job_id must not keep an application from starting
        logging.getLogger(__name__).warning("job_id from baggage is not copied onto spans and logs", exc_info=True)


def _add(provider: Any, method: str, make: Any, keys: Sequence[str], front: str = "") -> bool:
    add = getattr(provider, method, None)
    if add is None:  # the API without an SDK
        return False
    if not getattr(provider, _DONE, False):
        add(make(keys))
        setattr(provider, _DONE, True)
        # Log processors run in their order, and the one that exports was there first: ours has to see a record before it.
        many = getattr(provider, front, None) if front else None
        processors = getattr(many, "_log_record_processors", ())
        if isinstance(processors, tuple) and len(processors) > 1:
            many._log_record_processors = (processors[-1], *processors[:-1])  # type: ignore[union-attr]
    return True


def copied(context: Context | None, keys: Sequence[str], present: Mapping[str, Any]) -> dict[str, str]:
    """Return what is to be added for a span or a log record that starts in a context: from baggage, else from the span around it."""
    from opentelemetry import baggage, trace

    found: dict[str, str] = {}
    around: Mapping[str, Any] = getattr(trace.get_current_span(context), "attributes", None) or {}
    for key in keys:
        if key not in present:
            value = baggage.get_baggage(key, context) or around.get(key)
            if isinstance(value, str) and 0 < len(value) <= MOST_CHARACTERS:
                found[key] = value
    return found


def span_processor(keys: Sequence[str] = KEYS) -> SpanProcessor:
    """Return a span processor that copies baggage onto spans as they start."""
    from opentelemetry.sdk.trace import Span, SpanProcessor

    class BaggageSpanProcessor(SpanProcessor):
        def on_start(self, span: Span, parent_context: Context | None = None) -> None:
            for key, value in copied(parent_context, keys, span.attributes or {}).items():
                span.set_attribute(key, value)

    return BaggageSpanProcessor()


def log_processor(keys: Sequence[str] = KEYS) -> LogRecordProcessor:
    """Return a log record processor that copies baggage onto records; it belongs before the one that exports."""
    from opentelemetry.sdk._logs import LogRecordProcessor

    class BaggageLogProcessor(LogRecordProcessor):
        def on_emit(self, log_record: Any) -> None:
            record = log_record.log_record
            added = copied(record.context, keys, record.attributes or {})
            if not added:
                return
            if record.attributes is None:
                record.attributes = added
            else:
                with contextlib.suppress(TypeError):  # attributes that an application made immutable
                    for key, value in added.items():
                        record.attributes[key] = value

        def shutdown(self) -> None:
            """There is nothing to end."""

        def force_flush(self, timeout_millis: int = 30000) -> bool:
            return True

    return BaggageLogProcessor()


@contextlib.contextmanager
def job(job_id: str) -> Iterator[None]:
    """Put a job_id into the baggage for as long as the block runs."""
    from opentelemetry import baggage, context

    token = context.attach(baggage.set_baggage("job_id", job_id))
    try:
        yield
    finally:
        context.detach(token)
