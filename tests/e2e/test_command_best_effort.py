"""A best-effort destination that is dead, with a tiny quota, beside one that is well: the receiver never stops."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.command import free_port, running, until
from tests.support.command_bench import Bench, send, wait_for_rows

RECORDS, ROUNDS = 200, 10


def test_a_dead_best_effort_destination_at_a_tiny_quota_never_stops_a_receiver(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    dead = f"{{endpoint: 'http://127.0.0.1:{free_port()}', required: false, quota_bytes: 1, retry_initial_s: 0.05, retry_max_s: 0.2}}"
    bench.write(exporters=f"{{file: {{required: true}}, otlp_http/dead: {dead}}}")

    def ended(group: str, outcome: str, reason: str = "") -> float:
        return bench.metric("emp_pipe_group_records_total", topic="logs", group=group, outcome=outcome, reason=reason)

    with running(*bench.arguments) as process:
        for number in range(ROUNDS):
            send(bench.port, RECORDS, start=number * RECORDS)
            status, body = bench.get("/readyz")
            assert status == 200, f"receivers wait for a destination that may lose records: {json.loads(body)['reason']}"
        wait_for_rows(bench.data_dir, ROUNDS * RECORDS)
        until(lambda: ended("file", "acked") == ROUNDS * RECORDS, "the well one has all")
        until(lambda: ended("otlp_http/dead", "dropped", "quota") > 0, "the dead one loses its oldest, counted")
        held = bench.groups()["otlp_http/dead"]["held_records"]
        assert ended("otlp_http/dead", "appended") == ROUNDS * RECORDS
        assert ended("otlp_http/dead", "dropped", "quota") + held == ROUNDS * RECORDS, "a record is gone without a count"
        assert not [line for line in process.messages() if "receivers wait" in line]
