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
    assert edge.expand({}).values["receivers"] == {
        "forward": {"listen": "127.0.0.1:24224"},
        "otlp_grpc": {"listen": "4317"},  # a port alone: loopback, for nobody has to show anything
        "otlp_http": {"listen": "4318"},
        "http_json": {"listen": "9880"},
    }


@pytest.mark.parametrize("role", [edge, central])
def test_a_token_guards_both_otlp_ports(role: Any) -> None:
    receivers = role.expand({"EMP_OTLP_TOKEN": "hunter2"}).values["receivers"]
    for name, port in (("otlp_grpc", "4317"), ("otlp_http", "4318")):
        assert receivers[name] == {"listen": port, "token": {"env": "EMP_OTLP_TOKEN"}}


def test_central_speaks_tls_on_its_otlp_ports_where_a_certificate_is_set_and_an_edge_speaks_plainly_to_its_own_machine() -> None:
    variables = {"EMP_OTLP_TOKEN": "t", "EMP_TLS_CERT_FILE": "/c", "EMP_TLS_KEY_FILE": "/k"}
    for name in ("otlp_grpc", "otlp_http"):
        assert central.expand(variables).values["receivers"][name]["tls"] == {"cert_file": "/c", "key_file": "/k"}
        assert "tls" not in edge.expand(variables).values["receivers"][name]


@pytest.mark.parametrize("role", [edge, central])
def test_the_otlp_ports_can_be_moved_and_switched_off(role: Any) -> None:
    receivers = role.expand({"EMP_OTLP_GRPC_LISTEN": "127.0.0.1:5317", "EMP_OTLP_HTTP_LISTEN": "off"}).values["receivers"]
    assert receivers["otlp_grpc"] == {"listen": "127.0.0.1:5317"}
    assert "otlp_http" not in receivers


@pytest.mark.parametrize("role", [edge, central])
def test_http_json_has_a_token_and_an_address_of_its_own(role: Any) -> None:
    guarded = role.expand({"EMP_HTTP_JSON_TOKEN": "hunter2"}).values["receivers"]["http_json"]
    assert guarded == {"listen": "9880", "token": {"env": "EMP_HTTP_JSON_TOKEN"}}
    moved = role.expand({"EMP_HTTP_JSON_LISTEN": "127.0.0.1:9881"}).values["receivers"]["http_json"]
    assert moved == {"listen": "127.0.0.1:9881"}
    assert "http_json" not in role.expand({"EMP_HTTP_JSON_LISTEN": "off"}).values["receivers"]


def test_an_edge_sends_everything_to_central_where_its_host_and_key_are_set() -> None:
    layer = edge.expand({"FLUENTD_HOST": "central.internal", **KEY})
    assert list(exporters(layer)) == ["forward/central"]
    assert "only" not in exporters(layer)["forward/central"]
    settings = exporters(layer)["forward/central"]
    assert settings["shared_key"] == {"env": "FLUENTD_SHARED_KEY"}
    assert "tls" in settings
    assert layer.place(("exporters", "forward/central")) == "environment FLUENTD_HOST"


def test_an_edge_sends_to_central_without_tls_on_the_plain_port_or_where_it_is_told_so() -> None:
    for more in ({"FLUENTD_PORT": "24224"}, {"FLUENTD_SECURE": "false"}):
        assert "tls" not in exporters(edge.expand({"FLUENTD_HOST": "c", **more}))["forward/central"]


def test_a_key_for_central_does_not_open_a_port_on_the_edge() -> None:
    assert "forward/secure" not in edge.expand({"FLUENTD_HOST": "c", **KEY}).values["receivers"]


CENTRAL = {"FLUENTD_HOST": "central.internal", **KEY}
DASH0 = {"DASH0_AUTH_TOKEN": "t"}
OTLP = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
NOT_LOGS = {"signals": ["traces", "metrics"]}


@pytest.mark.parametrize("asked", [{}, {"EMP_TRACES_METRICS_TO": "auto"}, {"EMP_TRACES_METRICS_TO": "direct"}])
def test_an_edge_with_credentials_for_dash0_sends_traces_and_metrics_there_and_logs_to_central(asked: dict[str, str]) -> None:
    found = exporters(edge.expand({**CENTRAL, **DASH0, **asked}))
    assert list(found) == ["forward/central", "otlp_http/dash0"]
    assert found["forward/central"]["only"] == {"signals": ["logs"]}
    assert found["otlp_http/dash0"]["only"] == NOT_LOGS


@pytest.mark.parametrize("variables", [{**CENTRAL}, {**CENTRAL, "EMP_TRACES_METRICS_TO": "auto", **DASH0, "DASH0_ENABLED": "false"}])
def test_an_edge_without_them_sends_all_three_to_central(variables: dict[str, str]) -> None:
    found = exporters(edge.expand(variables))
    assert list(found) == ["forward/central"]
    assert "only" not in found["forward/central"]


def test_an_edge_can_be_told_to_send_traces_and_metrics_by_central_although_it_has_credentials() -> None:
    assert list(exporters(edge.expand({**CENTRAL, **DASH0, "EMP_TRACES_METRICS_TO": "central"}))) == ["forward/central"]


def test_an_edge_can_be_told_to_send_traces_and_metrics_straight_to_another_otlp_endpoint() -> None:
    assert list(exporters(edge.expand({**CENTRAL, **OTLP}))) == ["forward/central"]
    found = exporters(edge.expand({**CENTRAL, **OTLP, "EMP_TRACES_METRICS_TO": "direct"}))
    assert found["otlp_http"] == {"endpoint": "http://collector:4318", "only": NOT_LOGS}
    assert found["forward/central"]["only"] == {"signals": ["logs"]}


def test_an_edge_without_a_central_sends_all_three_where_its_logs_go() -> None:
    assert "only" not in exporters(edge.expand(DASH0))["otlp_http/dash0"]
    assert exporters(edge.expand({"EMP_TRACES_METRICS_TO": "direct"})) == {"file": {}}


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"EMP_TRACES_METRICS_TO": "somewhere"}, "must be auto, direct or central"),
        ({"EMP_TRACES_METRICS_TO": "central"}, "no central is named; set FLUENTD_HOST"),
        ({**CENTRAL, "EMP_TRACES_METRICS_TO": "direct"}, "nothing says where to; set DASH0_AUTH_TOKEN or OTEL_EXPORTER_OTLP_ENDPOINT"),
    ],
)
def test_a_way_that_leads_nowhere_is_an_error_that_says_what_to_set(variables: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        edge.expand(variables)
    assert error.value.place == "environment EMP_TRACES_METRICS_TO"


@pytest.mark.parametrize(
    ("variables", "all_of_them"),
    [
        ({}, True),
        (DASH0, True),
        ({**CENTRAL, **DASH0}, True),
        ({**CENTRAL, **OTLP, "EMP_TRACES_METRICS_TO": "direct"}, True),
        (CENTRAL, False),
        ({"FLUENTD_HOST": "c"}, False),
        ({**CENTRAL, **DASH0, "EMP_TRACES_METRICS_TO": "central"}, False),
    ],
)
def test_an_edge_samples_and_counts_only_what_does_not_come_by_a_central(variables: dict[str, str], all_of_them: bool) -> None:
    expected = {"redact": {}} | ({name: {} for name in env.TRACES_METRICS_PROCESSORS} if all_of_them else {"aggregate": {}})
    assert edge.expand(variables).values["processors"] == expected


@pytest.mark.parametrize("variables", [{}, DASH0, OTLP, KEY])
def test_central_samples_counts_and_merges(variables: dict[str, str]) -> None:
    assert list(central.expand(variables).values["processors"]) == ["redact", *env.TRACES_METRICS_PROCESSORS]


def test_without_a_shared_key_traces_and_metrics_go_to_central_by_otlp() -> None:
    found = exporters(edge.expand({"FLUENTD_HOST": "central.internal", "FLUENTD_PORT": "24224", "EMP_OTLP_TOKEN": "t"}))
    assert found["forward/central"] == {"endpoint": "central.internal:24224", "only": {"signals": ["logs"]}}
    assert found["otlp_http/central"] == {
        "endpoint": "http://central.internal:4318",
        "token": {"env": "EMP_OTLP_TOKEN"},
        "only": NOT_LOGS,
    }


def test_the_otlp_address_of_central_follows_tls_and_can_be_given() -> None:
    assert exporters(edge.expand({"FLUENTD_HOST": "c"}))["otlp_http/central"]["endpoint"] == "https://c:4318"
    assert exporters(edge.expand({"FLUENTD_HOST": "::1"}))["otlp_http/central"]["endpoint"] == "https://[::1]:4318"
    given = {"FLUENTD_HOST": "c", "EMP_CENTRAL_OTLP_ENDPOINT": "https://otlp.example"}
    assert exporters(edge.expand(given))["otlp_http/central"]["endpoint"] == "https://otlp.example"


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_COLLECTOR_ENDPOINT"])
@pytest.mark.parametrize("endpoint", ["http://localhost:4318", "127.0.0.1:4317", "http://[::1]:4318/"])
def test_an_endpoint_that_tells_applications_of_this_machines_own_port_is_no_destination(name: str, endpoint: str) -> None:
    assert exporters(edge.expand({name: endpoint})) == {"file": {}}
    moved = {"EMP_OTLP_HTTP_LISTEN": "127.0.0.1:5318", "EMP_OTLP_GRPC_LISTEN": "127.0.0.1:5317"}
    assert list(exporters(edge.expand({name: endpoint, **moved}))) == ["otlp_http"], "somebody else listens there now"


def test_a_grpc_address_without_a_scheme_is_tls_unless_it_is_said_to_be_insecure() -> None:
    by_grpc = {
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "c:4317",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "t:4317",
    }
    assert exporters(edge.expand(by_grpc)) == {"otlp_grpc": {"endpoint": "https://c:4317", "traces_endpoint": "https://t:4317"}}
    insecure = exporters(edge.expand({**by_grpc, "OTEL_EXPORTER_OTLP_INSECURE": "true"}))
    assert insecure == {"otlp_grpc": {"endpoint": "http://c:4317", "traces_endpoint": "http://t:4317"}}
    collector = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_COLLECTOR_ENDPOINT": "c:4317"}
    assert exporters(edge.expand(collector)) == {"otlp_grpc": {"endpoint": "http://c:4317"}}


def test_a_collectors_endpoint_is_a_destination_after_the_usual_variable() -> None:
    assert exporters(edge.expand({"OTEL_COLLECTOR_ENDPOINT": "http://collector:4318"}))["otlp_http"]["endpoint"] == "http://collector:4318"
    both = {"OTEL_COLLECTOR_ENDPOINT": "http://collector:4318", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://other:4318"}
    assert exporters(edge.expand(both))["otlp_http"]["endpoint"] == "http://other:4318"


def test_an_otlp_endpoint_is_spoken_to_in_the_protocol_that_is_named() -> None:
    layer = edge.expand({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    assert exporters(layer) == {"otlp_grpc": {"endpoint": "http://c:4317"}}
    assert list(exporters(edge.expand({**OTLP, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}))) == ["otlp_http"]


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
