"""The roles: what the environment makes of an edge and of central, each value with the variable it came from."""

from __future__ import annotations

from typing import Any

import pytest

from emp_pipe import environment as env
from emp_pipe.errors import ConfigError
from emp_pipe.roles import central, edge

KEY = {"FLUENTD_SHARED_KEY": "hunter2"}


def exporters(layer: Any) -> dict[str, Any]:
    found: dict[str, Any] = layer.values["exporters"]
    return found


@pytest.mark.parametrize("role", [edge, central])
def test_a_role_without_any_destination_keeps_records_in_files(role: Any) -> None:
    layer = role.expand({})
    assert exporters(layer) == {"file": {}}
    assert layer.place(("exporters", "file")) == "no destination is set"


def test_an_edge_listens_on_loopback_only() -> None:
    assert edge.expand({}).values["receivers"] == {"forward": {"listen": "127.0.0.1:24224"}}


def test_an_edge_sends_to_central_where_its_host_is_set_and_nowhere_else() -> None:
    layer = edge.expand({"FLUENTD_HOST": "central.internal", "DASH0_AUTH_TOKEN": "t", **KEY})
    assert list(exporters(layer)) == ["forward/central"]
    settings = exporters(layer)["forward/central"]
    assert settings["shared_key"] == {"env": "FLUENTD_SHARED_KEY"}
    assert "tls" in settings
    assert layer.place(("exporters", "forward/central")) == "environment FLUENTD_HOST"


def test_an_edge_sends_to_central_without_tls_on_the_plain_port_or_where_it_is_told_so() -> None:
    for more in ({"FLUENTD_PORT": "24224"}, {"FLUENTD_SECURE": "false"}):
        assert "tls" not in exporters(edge.expand({"FLUENTD_HOST": "c", **more}))["forward/central"]


def test_a_key_for_central_does_not_open_a_port_on_the_edge() -> None:
    assert list(edge.expand({"FLUENTD_HOST": "c", **KEY}).values["receivers"]) == ["forward"]


@pytest.mark.parametrize("name", ["DASH0_AUTH_TOKEN", "DASH0_API_KEY"])
@pytest.mark.parametrize("role", [edge, central])
def test_either_token_sends_to_dash0(role: Any, name: str) -> None:
    layer = role.expand({name: "t", "DASH0_DATASET": "prod", "DASH0_ENDPOINT": "ingress.example:4317"})
    settings = exporters(layer)["otlp_http/dash0"]
    assert settings["endpoint"] == "https://ingress.example"
    assert settings["dataset"] == "prod"
    assert settings["token"] == {"env": name}


def test_dash0_can_be_switched_off_although_its_token_is_set() -> None:
    assert list(exporters(edge.expand({"DASH0_AUTH_TOKEN": "t", "DASH0_ENABLED": "false"}))) == ["file"]


def test_a_flag_that_is_neither_true_nor_false_is_an_error_that_names_the_variable() -> None:
    with pytest.raises(ConfigError, match="environment DASH0_ENABLED"):
        edge.expand({"DASH0_AUTH_TOKEN": "t", "DASH0_ENABLED": "maybe"})


def test_an_otlp_endpoint_gets_its_headers_percent_decoded() -> None:
    layer = edge.expand({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Bearer%20x, a=b=c"})
    assert exporters(layer)["otlp_http"] == {"endpoint": "http://c:4318", "headers": {"Authorization": "Bearer x", "a": "b=c"}}


def test_a_malformed_header_list_is_an_error_that_names_the_variable() -> None:
    with pytest.raises(ConfigError, match="environment OTEL_EXPORTER_OTLP_HEADERS"):
        edge.expand({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_HEADERS": "nonsense"})


@pytest.mark.parametrize("role", [edge, central])
@pytest.mark.parametrize("name", ["HUB_REDIS_URL", "REDIS_URL"])
def test_the_job_queues_redis_is_never_named_in_a_configuration(role: Any, name: str) -> None:
    assert "redis://queue" not in repr(role.expand({name: "redis://queue"}))


def test_an_edge_stamps_who_this_machine_and_service_are() -> None:
    layer = edge.expand(
        {
            "MACHINE_ID": "gpu-7f3a",
            "WORKER_ID": "worker-001",
            "SERVICE_NAME": "worker",
            "OTEL_RESOURCE_ATTRIBUTES": "service.name=from-attributes,team=ml",
            "OTEL_SERVICE_NAME": "wins",
            "NODE_ENV": "production",
        }
    )
    stamp = layer.values["normalize"]["stamp"]
    assert stamp["machine_id"] == "gpu-7f3a"
    assert stamp["worker_id"] == "worker-001"
    assert stamp["service.name"] == "wins"
    assert stamp["team"] == "ml"
    assert stamp["deployment.environment.name"] == "production"
    assert stamp["host.name"]


def test_central_stamps_nothing() -> None:
    assert "normalize" not in central.expand({"MACHINE_ID": "railway-abc", "SERVICE_NAME": "x"}).values


def test_central_listens_for_edges_where_a_key_is_set() -> None:
    receivers = central.expand(KEY).values["receivers"]
    assert receivers["forward"]["listen"] == "127.0.0.1:24224"
    assert receivers["forward/secure"]["listen"] == "*:24225"
    assert receivers["forward/secure"]["shared_key"] == {"env": "FLUENTD_SHARED_KEY"}


@pytest.mark.parametrize("name", ["PORT", "HEALTH_PORT"])
def test_the_platforms_port_is_bound_on_all_interfaces(name: str) -> None:
    layer = central.expand({name: "9000"})
    assert layer.values["http"]["listen"] == "*:9000"
    assert layer.place(("http", "listen")) == f"environment {name}"


def test_the_machine_id_is_given_or_the_platforms_or_the_same_every_time() -> None:
    assert env.machine_id({"MACHINE_ID": "gpu-1", "RAILWAY_REPLICA_ID": "x"}) == "gpu-1"
    assert env.machine_id({"RAILWAY_REPLICA_ID": "abcdef0123456789"}) == "railway-abcdef012345"
    assert env.machine_id({}) == env.machine_id({})


def test_no_secret_of_the_environment_enters_a_layer() -> None:
    layer = edge.expand({"FLUENTD_HOST": "c", "FLUENTD_SHARED_KEY": "hunter2"})
    assert "hunter2" not in repr(layer)
    assert "hunter3" not in repr(edge.expand({"DASH0_API_KEY": "hunter3"}))
