"""The OTLP/gRPC receiver: Logs, Trace and Metrics Export over HTTP/2, on TCP and TLS.

Listeners and the life of connections are in `emp_pipe/request_receiving.py`, the bytes of one in `emp_pipe/grpc_connection.py` and in the
core, how a call is judged in `otlp_grpc_calls.py`, what happens with a request in `emp_pipe/otlp_intake.py`. gRPC does not inflate: the
core does, under our limit.
"""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt

from emp_pipe.accepting import CutConnections
from emp_pipe.bearer import BearerTokens
from emp_pipe.component import Intake
from emp_pipe.listening import Listen, listen_setting
from emp_pipe.otlp_intake import OtlpIntake
from emp_pipe.receivers.otlp_grpc_calls import Service
from emp_pipe.request_receiving import RequestReceiver, RequestReceiverConfig


class OtlpGrpcConfig(RequestReceiverConfig):
    """Settings of an OTLP/gRPC receiver."""

    listen: Listen = listen_setting("4317", "a token or a certificate")
    max_concurrent_reads: PositiveInt = Field(32, description="The most requests over 1 MiB received at once; others wait.")
    max_streams_per_connection: PositiveInt = Field(1000, description="The most requests under way on one connection.")
    head_timeout_s: PositiveFloat = Field(10.0, description="The time that TLS, and then the first frames of a client, may take, each.")
    keepalive_s: PositiveFloat = Field(60.0, description="A client that is silent for so long is asked whether it is there.")
    keepalive_timeout_s: PositiveFloat = Field(20.0, description="The time it has to answer that.")
    min_ping_interval_s: PositiveFloat = Field(10.0, description="Clients that ping more often are turned away (too_many_pings).")


class OtlpGrpcReceiver(RequestReceiver):
    """Takes OTLP by gRPC."""

    config: OtlpGrpcConfig
    protocols = ("h2",)

    def make_service(self, intake: Intake, tokens: BearerTokens, cut: CutConnections) -> Service:
        otlp = OtlpIntake(self.id, self.config, self._context, intake)
        return Service(self.config, tokens, otlp, cut, self._context.clock)


CONFIG = OtlpGrpcConfig
COMPONENT = OtlpGrpcReceiver
