"""What an HTTP answer to a POST of telemetry means, by the rules of OTLP/HTTP; shared by everything that sends over HTTP.

429, 502, 503, 504 are tried again, with Retry-After in seconds or as a date. 400 and its like refuse the data: it is split down to the row.
What only a change of configuration can mend (401, 403, 404 …) stays buffered. One deviation, on purpose: OTLP calls a 500 final, but real
backends answer 500 while they are down, and to give up all that is sent meanwhile would be a loss. So it is tried again, and held against
the data only where other data passes (`maybe_poisoned`, see `attempts.py`).
"""

from __future__ import annotations

import math
from email.utils import parsedate_to_datetime

from emp_pipe.errors import DeliveryError, ErrorKind, Retry

_THROTTLED = frozenset({429})
_LATER = frozenset({408, 425, 502, 503, 504})
_KEY = frozenset({401, 403, 407})
_CONFIGURATION = {
    402: "the account is out of budget; settle it with the destination",
    404: "check `endpoint`: there is nothing at this path",
    405: "check `endpoint`: it takes no POST",
    406: "check `endpoint`: it does not speak OTLP over HTTP with protobuf",
    415: "check `compression` and `endpoint`: the destination does not take this encoding",
    421: "check `endpoint`: the server does not answer for this host",
    431: "check `headers`: they are too large for the destination",
    501: "check `endpoint`: it does not take this signal",
    505: "check `endpoint`: it does not speak HTTP/1.1",
}


def retry_after_s(value: str | None, now_unix_nano: int, date: str | None = None) -> float | None:
    """Return the seconds that a Retry-After header asks for (seconds or an HTTP date); None where it says nothing usable.

    `date`: the answer's own Date. Where it has one, that is the clock by which the other date was made, and ours may have been set."""
    if not value:
        return None
    text = value.strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - _seconds_of(date, now_unix_nano / 1e9)
        except (ValueError, OverflowError, TypeError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _seconds_of(date: str | None, else_s: float) -> float:
    try:
        return parsedate_to_datetime(date).timestamp() if date else else_s
    except (ValueError, OverflowError, TypeError):
        return else_s


def error_of(
    status: int,
    message: str,
    *,
    place: str,
    retry_after: str | None,
    now_unix_nano: int,
    date: str | None = None,
    key_advice: str = "",
) -> DeliveryError:
    """Return what an answer that is not 2xx means. `message` is what the destination says in its body."""
    detail = f"HTTP {status}" + (f": {message}" if message else "")
    if status in _KEY:
        return DeliveryError(ErrorKind.UNAUTHENTICATED, place=place, detail=f"key refused ({detail})", advice=key_advice, status=status)
    if status in _THROTTLED or (status in _LATER and retry_after):
        wait_s = retry_after_s(retry_after, now_unix_nano, date)
        return DeliveryError(ErrorKind.THROTTLED, place=place, detail=detail, retry_after_s=wait_s, status=status)
    if status in _LATER:
        return DeliveryError(ErrorKind.SERVER_ERROR, place=place, detail=detail, status=status)
    if status == 413:
        return DeliveryError(ErrorKind.TOO_LARGE, place=place, detail=detail, status=status)
    if status in _CONFIGURATION or status < 400:
        advice = _CONFIGURATION.get(status, "check `endpoint`: the destination redirects, and redirects are not followed")
        return DeliveryError(ErrorKind.REFUSED, place=place, detail=detail, advice=advice, retry=Retry.AFTER_CONFIG_CHANGE, status=status)
    if status >= 500:
        return DeliveryError(ErrorKind.SERVER_ERROR, place=place, detail=detail, status=status, maybe_poisoned=True)
    return DeliveryError(ErrorKind.REFUSED, place=place, detail=detail, retry=Retry.SMALLER, status=status)
