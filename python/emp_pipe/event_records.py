"""Log records that emp-pipe makes itself (operational events, what a kernel or a journal said), out of dictionaries.

They go through the decoder that reads JSON by HTTP, so they are normalised as everybody's are: `level`, `message`, `timestamp`,
`event_type` and the other names of the standard schema mean here what they mean there.
Not here: which events there are (the receivers that make them).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emp_pipe._core import Batch, HttpJsonDecoder, Normalizer


def event_batch(
    records: Sequence[Mapping[str, Any]],
    *,
    normalizer: Normalizer | None,
    tag: str,
    now_unix_nano: int,
    resource: Mapping[str, str | int] | None = None,
) -> Batch | None:
    """Return a batch of one row for each record, in order; None where there is no record.

    A record says when it happened in `timestamp` (Unix nanoseconds, or any form that the standard schema takes); without one it is
    `now_unix_nano`. `resource`: attributes that the rows' resources lack. `normalizer`: `Context.normalizer`. Values that JSON cannot
    hold are kept as text. Raises ValueError for a record that is nested deeper than the schema allows."""
    if not records:
        return None
    read = _decoder(normalizer).decode(_json(records), tag=tag.encode(), time=b"", now_unix_nano=now_unix_nano)
    if read.rejected:
        raise ValueError(f"a record cannot be kept: {read.rejected[0].detail}")
    batch = read.batch
    if batch is None or not resource:
        return batch
    return batch.with_attributes(resource)


@lru_cache(maxsize=8)
def _decoder(normalizer: Normalizer | None) -> HttpJsonDecoder:
    from emp_pipe._core import HttpJsonDecoder, Normalizer

    return HttpJsonDecoder(normalizer or Normalizer())


def _json(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Return records as one array: written in one call, not one for each."""
    try:
        text = _STRICT.encode(records)
    except ValueError:  # a number that is none, which JSON has no word for
        text = _STRICT.encode(_with_text_for_no_numbers(records))
    return text.encode("utf-8", "replace")


def _as_text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, (bytes, bytearray)) else str(value)


def _with_text_for_no_numbers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _with_text_for_no_numbers(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_text_for_no_numbers(inner) for inner in value]
    if isinstance(value, float) and not (-float("inf") < value < float("inf")):
        return str(value)
    return value


_STRICT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_as_text, allow_nan=False)
