"""An edge and a central started as a deployment starts them: by role, from environment variables, on ports of their own."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from demo.processes import write_certificates
from tests.support.command import Running, free_port, running

KEY = "roles-key"
QUICK = {
    "processors.aggregate.interval_s": "0.3",
    "processors.tail_sample.decision_wait_s": "1",
    "processors.red_metrics.interval_s": "0.1",
}
"""What a test does not want to wait half a minute for."""


@dataclass
class Role:
    """One process; its ports are there before it runs."""

    name: str
    directory: Path
    http_port: int
    forward_port: int
    otlp_port: int
    grpc_port: int
    process: Running | None = None

    @classmethod
    def of(cls, name: str, directory: Path) -> Role:
        return cls(name, directory / name, free_port(), free_port(), free_port(), free_port())

    @contextmanager
    def running(self, *, leave_out: tuple[str, ...] = (), settings: dict[str, str] | None = None, **variables: str) -> Iterator[Role]:
        """Run it; `leave_out`: processors that this one does not have, so that nothing can be set of them."""
        wanted = {
            "http.listen": f"127.0.0.1:{self.http_port}",
            "receivers.forward.listen": f"127.0.0.1:{self.forward_port}",
            **{key: value for key, value in QUICK.items() if key.split(".")[1] not in leave_out},
            **(settings or {}),
        }
        arguments = [part for key, value in wanted.items() for part in ("--set", f"{key}={value}")]
        otlp = {"EMP_OTLP_GRPC_LISTEN": f"127.0.0.1:{self.grpc_port}", "EMP_OTLP_HTTP_LISTEN": f"127.0.0.1:{self.otlp_port}"}
        otlp["EMP_HTTP_JSON_LISTEN"] = "127.0.0.1:0"
        with running(
            self.name, "--data-dir", str(self.directory), *arguments, **{**otlp, "MACHINE_ID": f"gpu-{self.name}", **variables}
        ) as process:
            self.process = process
            yield self

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Return all that `/metrics` says."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/metrics", timeout=20) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric over all samples that have the labels."""
        wanted = set(labels.items())
        return sum(value for (sample, has), value in self.samples().items() if sample == f"emp_pipe_{name}" and wanted <= has)

    def held(self) -> float:
        return self.metric("group_held_records")

    def assert_balanced(self) -> None:
        """Hold both equations of the books against what `/metrics` says."""
        rows: dict[tuple[str, str], dict[str, float]] = {}
        for (name, labels), value in self.samples().items():
            of = dict(labels)
            if name == "emp_pipe_receiver_records_total":
                rows.setdefault(("receiver", of["component"]), {})[of["outcome"]] = value
            elif name in ("emp_pipe_group_records_total", "emp_pipe_group_held_records"):
                terms = rows.setdefault((of["topic"], of["group"]), {})
                what = of.get("outcome", "held")
                terms[what] = terms.get(what, 0.0) + value
        assert rows
        for key, terms in rows.items():
            whole, parts = ("received", ("appended", "invalid", "refused", "dropped", "duplicate"))
            if key[0] != "receiver":
                whole, parts = ("appended", ("acked", "dead", "dropped", "skipped", "held"))
            assert terms[whole] == sum(terms.get(part, 0.0) for part in parts), f"{self.name}: the books of {key} do not balance: {terms}"


@dataclass
class EdgeAndCentral:
    """An edge, a central, and what the edge must know to find and believe it."""

    edge: Role
    central: Role
    secure_port: int
    directory: Path

    @classmethod
    def of(cls, directory: Path) -> EdgeAndCentral:
        write_certificates(directory)
        return cls(Role.of("edge", directory), Role.of("central", directory), free_port(), directory)

    @property
    def for_central(self) -> dict[str, str]:
        return {
            "FLUENTD_SHARED_KEY": KEY,
            "EMP_FORWARD_LISTEN": f"127.0.0.1:{self.secure_port}",
            "EMP_TLS_CERT_FILE": str(self.directory / "cert.pem"),
            "EMP_TLS_KEY_FILE": str(self.directory / "key.pem"),
        }

    @property
    def for_edge(self) -> dict[str, str]:
        return {
            "FLUENTD_HOST": "127.0.0.1",
            "FLUENTD_PORT": str(self.secure_port),
            "FLUENTD_SECURE": "true",
            "FLUENTD_SHARED_KEY": KEY,
            "EMP_TLS_CA_FILE": str(self.directory / "ca.pem"),
        }
