"""The core alone on OTLP/JSON: requests to batches, beside Python's `json.loads` merely parsing the same text.

Run by `python -m bench` in a process of its own; prints one JSON object. CPU time of this thread, both sides on the same requests in turns.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict

from bench.otlp_data import OtlpData, Signal, build
from bench.otlp_proof import request_class

REQUESTS = 20
ROWS_PER_REQUEST = 500
SIGNALS: tuple[Signal, ...] = ("logs", "traces", "metrics")


def json_request(signal: Signal, body: bytes) -> bytes:
    """Return a request as OTLP/JSON, which has ids in hex and enums as numbers, as an SDK writes it: without spaces."""
    message = MessageToDict(request_class(signal).FromString(body), use_integers_for_enums=True)
    _ids_in_hex(message)
    return json.dumps(message, separators=(",", ":")).encode()


def _ids_in_hex(value: Any) -> None:
    if isinstance(value, list):
        for item in value:
            _ids_in_hex(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in ("traceId", "spanId", "parentSpanId"):
                value[key] = base64.b64decode(item).hex()
            else:
                _ids_in_hex(item)


def decode(signal: Signal, texts: Sequence[bytes]) -> int:
    from emp_pipe._core import Normalizer, OtlpDecoder

    decoder = OtlpDecoder(Normalizer(), signal=signal)
    received = 0
    for text in texts:
        read = decoder.decode(text, codec="none", encoding="json", now_unix_nano=time.time_ns())
        if read.batch is None or read.rejected_items:
            raise RuntimeError("a request did not give its rows")
        received += read.received
    return received


def loads(_: Signal, texts: Sequence[bytes]) -> int:
    for text in texts:
        json.loads(text)
    return len(texts) * ROWS_PER_REQUEST


def check_fields(signal: Signal, text: bytes, body: bytes) -> None:
    """Raise unless JSON and protobuf of one request give the same export bytes."""
    from emp_pipe._core import Normalizer, OtlpDecoder, encode_block

    decoder = OtlpDecoder(Normalizer(), signal=signal)
    payloads = []
    for data, encoding in ((text, "json"), (body, "protobuf")):
        batch = decoder.decode(data, codec="none", encoding=encoding, now_unix_nano=1).batch  # type: ignore[arg-type]
        if batch is None:
            raise RuntimeError("a request gave no rows")
        payload = encode_block([batch], "none", topic=signal, block_id="bench").payload("none")
        payloads.append(request_class(signal).FromString(payload))
    if payloads[0] != payloads[1]:
        raise RuntimeError(f"{signal}: the rows of the JSON request are not those of the protobuf request")


def _cpu_us_per_row(function: Callable[[Signal, Sequence[bytes]], int], signal: Signal, texts: Sequence[bytes]) -> float:
    began_ns = time.process_time_ns()
    rows = function(signal, texts)
    if rows != REQUESTS * ROWS_PER_REQUEST:
        raise RuntimeError(f"{rows} rows instead of {REQUESTS * ROWS_PER_REQUEST}")
    return (time.process_time_ns() - began_ns) / 1e3 / rows


def main() -> None:
    pairs = int(sys.argv[1])
    results = {}
    for signal in SIGNALS:
        bodies = build(OtlpData(signal, REQUESTS * ROWS_PER_REQUEST, ROWS_PER_REQUEST)).requests
        texts = [json_request(signal, body) for body in bodies]
        check_fields(signal, texts[0], bodies[0])
        decode(signal, texts)
        values: list[float] = []
        references: list[float] = []
        for pair in range(pairs):
            sides = [(decode, values), (loads, references)]
            for function, into in sides if pair % 2 == 0 else reversed(sides):
                into.append(_cpu_us_per_row(function, signal, texts))
        results[signal] = {"values": values, "references": references}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
