"""`make demo`: the main job on this machine. Real clients log jobs to an edge; the edge sends to central over TLS; central exports OTLP.

    clients ──Forward──▶ emp-pipe edge ──Forward, TLS, shared key──▶ emp-pipe central ──OTLP/HTTP, gzip──▶ endpoint (or Dash0)

Exit code 0: every record that a client sent arrived exactly once. With DASH0_AUTH_TOKEN set, central exports to Dash0 instead of the local
endpoint. The parts: `story.py`, `clients.py`, `processes.py` (emp-pipe), `otlp_endpoint.py`, `arrivals.py` (the check), `table.py`.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from demo.arrivals import report_dash0, report_endpoint
from demo.clients import ClientError, install_node_client, log_with_fluent_logger, log_with_node, log_with_standard_logging
from demo.otlp_endpoint import OtlpEndpoint
from demo.processes import EmpPipe, ProcessError, free_port, write_certificates
from demo.story import Entry, Machine, machine_entries
from demo.table import step

NODE_CACHE = Path(".cache/demo-node")

COMFY = Machine("gpu-7f3a", "comfyui", ("worker-001", "worker-002"))
API = Machine("railway-abc123", "api", ("worker-001",))
NODE = Machine("gpu-b21c", "machine", ("worker-001", "worker-002"))


def send_everything(forward_port: int, jobs: int, seed: int, python_only: bool) -> dict[str, Entry]:
    """Let each client log its machine's jobs; return what was sent, by `demo_id`."""
    sent: dict[str, Entry] = {}

    def log(machine: Machine, client: str, send: object) -> None:
        entries = machine_entries(machine, jobs, seed)
        started = time.monotonic()
        assert callable(send)
        send(entries)
        sent.update({entry.fields["demo_id"]: entry for entry in entries})
        print(f"  {machine.machine_id:<15} {len(entries):>4} records with {client}, {time.monotonic() - started:.1f} s", flush=True)

    log(COMFY, "fluent-logger (Python)", lambda entries: log_with_fluent_logger(entries, forward_port))
    log(API, "the standard library's logging (Python)", lambda entries: log_with_standard_logging(entries, forward_port))
    missing = "--python-only" if python_only else install_node_client(NODE_CACHE)
    if missing:
        print(f"  {NODE.machine_id:<15} not run: {missing}", flush=True)
    else:
        log(NODE, "@fluent-org/logger (Node.js), with acks", lambda entries: log_with_node(entries, forward_port, NODE_CACHE))
    return sent


def run(jobs: int, seed: int, keep: Path | None, python_only: bool) -> bool:
    with ExitStack() as stack:
        directory = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="emp-pipe-demo-")))
        directory.mkdir(parents=True, exist_ok=True)
        write_certificates(directory)
        shared_key = secrets.token_urlsafe(24)
        edge_port, secure_port = free_port(), free_port()
        to_dash0 = bool(os.environ.get("DASH0_AUTH_TOKEN"))
        endpoint = None if to_dash0 else OtlpEndpoint()
        if endpoint is not None:
            stack.callback(endpoint.close)
            destination = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint.url}
        else:
            destination = {name: value for name, value in os.environ.items() if name.startswith("DASH0_")}

        step(f"Starting central (TLS and shared key on 127.0.0.1:{secure_port}; to {'Dash0' if to_dash0 else destination_text(endpoint)})")
        central = EmpPipe(
            "central",
            directory,
            {"receivers.forward.listen": f"127.0.0.1:{free_port()}"},
            {
                "FLUENTD_SHARED_KEY": shared_key,
                "EMP_FORWARD_LISTEN": f"127.0.0.1:{secure_port}",
                "EMP_TLS_CERT_FILE": str(directory / "cert.pem"),
                "EMP_TLS_KEY_FILE": str(directory / "key.pem"),
                **destination,
            },
        )
        stack.callback(central.stop)
        central.wait_ready()

        step(f"Starting edge (Fluent Forward on 127.0.0.1:{edge_port}; to central)")
        edge = EmpPipe(
            "edge",
            directory,
            {"receivers.forward.listen": f"127.0.0.1:{edge_port}"},
            {
                "FLUENTD_HOST": "localhost",
                "FLUENTD_PORT": str(secure_port),
                "FLUENTD_SECURE": "true",
                "FLUENTD_SHARED_KEY": shared_key,
                "EMP_TLS_CA_FILE": str(directory / "ca.pem"),
            },
        )
        stack.callback(edge.stop)
        edge.wait_ready()

        step(f"Clients log jobs to the edge (seed {seed})")
        sent = send_everything(edge_port, jobs, seed, python_only)

        if endpoint is not None:
            step("The OTLP endpoint has received")
            good = report_endpoint(sent, endpoint)
        else:
            step("Sending to Dash0")
            good = report_dash0(sent, central)
        edge.check_running()
        central.check_running()

        step("Stopping both (SIGTERM)")
        codes = {"edge": edge.stop(), "central": central.stop()}
        for role, code in codes.items():
            if code:
                print(f"✗ emp-pipe {role} ended with exit code {code}")
        return good and not any(codes.values())


def destination_text(endpoint: OtlpEndpoint | None) -> str:
    return f"OTLP at {endpoint.url}" if endpoint is not None else ""


def interrupted(signal_number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=6, help="jobs per worker")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3)), help="the same seed logs the same jobs")
    parser.add_argument("--keep", type=Path, help="keep data, certificates and both processes' logs in this directory")
    parser.add_argument("--python-only", action="store_true", help="leave the Node.js client out")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, interrupted)
    try:
        return 0 if run(options.jobs, options.seed, options.keep, options.python_only) else 1
    except KeyboardInterrupt:
        print("\nstopped; both processes have ended")
        return 130
    except (ProcessError, ClientError) as error:
        print(f"\n✗ {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
