"""The configuration: errors name file, line, key and the nearest valid key; what is printed can be run again and holds no secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from emp_pipe.config import PipelineConfig, build
from emp_pipe.config_layer import Layer, merged
from emp_pipe.config_print import render
from emp_pipe.config_yaml import parse_yaml, read_yaml
from emp_pipe.errors import ConfigError, ErrorKind
from emp_pipe.registry import BUILT_IN, Kind, type_of

HEAD = 'buffer: {type: "tests.support.sample_components:SampleBuffer"}\n'
RECEIVER = "tests.support.sample_components:Sample"


def layer(text: str, **environment: str) -> Layer:
    return parse_yaml(HEAD + text, "emp.yaml", environment)


def config(text: str, **environment: str) -> PipelineConfig:
    return build(layer(text, **environment))


def problems(text: str, **environment: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config(text, **environment)
    return str(caught.value).splitlines()


def test_a_misspelt_top_level_key_is_named_with_file_line_and_nearest_key() -> None:
    (problem,) = problems("data_dri: /tmp/x\n")
    assert problem.startswith("emp.yaml:2: data_dri is not a setting; did you mean 'data_dir'?")


def test_a_misspelt_key_of_a_component_is_named_with_its_line_and_the_nearest_key() -> None:
    (problem,) = problems(f'receivers:\n  "{RECEIVER}/a":\n    size: 3\n    lisen: "127.0.0.1:1"\n')
    assert problem.startswith(f"emp.yaml:5: receivers.{RECEIVER}/a.lisen is not a setting; did you mean 'listen'?")


def test_a_misspelt_key_in_a_nested_map_is_named_with_its_line() -> None:
    _, problem = problems(f'receivers:\n  "{RECEIVER}":\n    tls:\n      cert_fiel: /x\n')
    assert problem.startswith("emp.yaml:5: ")
    assert "tls.cert_fiel is not a setting; did you mean 'cert_file'?" in problem


def test_an_unknown_component_type_is_named_with_the_nearest_type() -> None:
    (problem,) = problems("processors:\n  enrihc: {attributes: {a: b}}\n")
    assert problem.startswith("emp.yaml:3: processors.enrihc: there is no processor of type 'enrihc'; did you mean 'enrich'?")


def test_a_list_of_which_an_element_is_wrong_is_not_called_too_short_as_well() -> None:
    (problem,) = problems("processors:\n  tail_sample:\n    policies:\n    - {type: probability}\n")
    assert problem.startswith("emp.yaml:5: processors.tail_sample.policies[0]: a policy of type probability needs 'percent'")


def test_values_of_another_type_are_named_in_the_words_of_the_file() -> None:
    (empty,) = problems("processors: {tail_sample: {policies: []}}\n")
    assert "policies: list should have at least 1 item, not 0" in empty
    (word,) = problems("processors: {tail_sample: {policies: error}}\n")
    assert "policies: input should be a valid list" in word
    (switch,) = problems("http: {listen: off}\n")
    assert "http.listen: input should be a valid string (YAML reads on, off, yes, no and numbers as something else" in switch


def test_a_key_that_is_like_no_other_is_told_which_there_are() -> None:
    (problem,) = problems("http: {qqq: 1}\n")
    assert "http.qqq is not a setting; valid here: " in problem


def test_a_wrong_value_is_named_with_its_line_and_without_the_value() -> None:
    (problem,) = problems(f'receivers:\n  "{RECEIVER}":\n    size: "s3cret"\n')
    assert problem.startswith(f"emp.yaml:4: receivers.{RECEIVER}.size: ")
    assert "s3cret" not in problem


@pytest.mark.parametrize("address", ["localhost:4318", "ftp://host", "http://", "https://ingress dash0", "http://user:hunter2@host:4318"])
def test_an_endpoint_of_own_metrics_that_cannot_work_or_holds_a_password_is_refused(address: str) -> None:
    (problem,) = problems(f'self_metrics: {{otlp_endpoint: "{address}"}}\n')
    assert problem.startswith("emp.yaml:2: self_metrics.otlp_endpoint: must")
    assert "hunter2" not in problem


def test_a_wrong_item_of_a_list_is_named_with_its_line_and_index() -> None:
    (problem,) = problems(f'receivers:\n  "{RECEIVER}":\n    ports:\n      - 1\n      - none\n')
    assert problem.startswith(f"emp.yaml:6: receivers.{RECEIVER}.ports[1]: ")


def test_a_setting_that_must_be_set_is_named_with_the_line_of_its_component() -> None:
    (problem,) = problems("processors:\n  enrich:\n")
    assert problem.startswith("emp.yaml:3: processors.enrich.attributes must be set")


def test_all_errors_of_a_file_are_told_at_once() -> None:
    assert len(problems("data_dri: /tmp\nlog_level: loud\nprocessors: {nix: }\n")) == 3


def test_a_key_that_stands_twice_is_an_error_with_both_lines() -> None:
    (problem,) = problems("log_level: info\nlog_level: debug\n")
    assert problem.startswith("emp.yaml:3: log_level stands twice (first in line 2)")


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\ta: 1", "'", "a: !!python/object:os.system x", "&a [*a]", "- 1", "just text"])
def test_text_that_is_no_map_of_settings_is_an_error_with_its_place(text: str) -> None:
    with pytest.raises(ConfigError, match=r"emp\.yaml"):
        build(parse_yaml(text, "emp.yaml", {}))


def test_aliases_cannot_blow_up_the_memory() -> None:
    levels = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))
    with pytest.raises(ConfigError, match="repeats too much"):
        parse_yaml(f"a0: &a0 [x]\n{levels}\n", "emp.yaml", {})


def test_an_empty_component_has_its_defaults() -> None:
    assert config(f'receivers:\n  "{RECEIVER}":\n').receivers[RECEIVER].model_dump()["size"] == 7


def test_components_of_one_type_are_told_apart_by_their_names() -> None:
    assert list(config(f'receivers: {{"{RECEIVER}/a": , "{RECEIVER}/b": }}').receivers) == [f"{RECEIVER}/a", f"{RECEIVER}/b"]


def test_a_component_id_without_a_name_after_the_slash_is_an_error() -> None:
    (problem,) = problems('processors: {"enrich/": {attributes: {a: b}}}')
    assert "a component id is `type` or `type/name`" in problem


def test_a_merge_key_brings_the_settings_of_its_anchor() -> None:
    result = config(f'receivers:\n  "{RECEIVER}/a": &a {{size: 3}}\n  "{RECEIVER}/b":\n    <<: *a\n    ports: [1]\n')
    assert result.receivers[f"{RECEIVER}/b"].model_dump()["size"] == 3


def test_environment_variables_are_filled_in() -> None:
    assert config("data_dir: ${BASE}/x${N:-5}", BASE="/srv").data_dir == Path("/srv/x5")


def test_an_environment_variable_cannot_bring_yaml() -> None:
    assert config("machine_id: ${ID}", ID="a:{b}").machine_id == "a:{b}"


def test_two_dollar_signs_are_one() -> None:
    assert config("machine_id: a$${b}").machine_id == "a${b}"


def test_a_variable_that_is_not_set_is_an_error_that_names_it() -> None:
    (problem,) = problems("machine_id: ${NOPE}")
    assert problem.startswith("emp.yaml:2: machine_id needs the environment variable NOPE, which is not set; set NOPE")


def test_a_malformed_variable_is_an_error() -> None:
    (problem,) = problems("machine_id: ${not-a-name")
    assert "is not a variable" in problem


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nix\.yaml: cannot be read") as caught:
        read_yaml(tmp_path / "nix.yaml", {})
    assert caught.value.kind is ErrorKind.CONFIG_NOT_FOUND


def test_a_printed_configuration_reads_back_as_the_same_configuration() -> None:
    given = layer(
        f'receivers:\n  "{RECEIVER}/a": {{size: 3, text: "a: #$${{b}}\\n", tls: {{cert_file: /c}}}}\n'
        "processors:\n  enrich: {attributes: {'yes': 'no', n: 1, f: 0.5, t: true}}\n"
        "normalize: {stamp: {service.name: x}}\n"
    )
    first = build(given)
    assert build(parse_yaml(render(first, given), "printed.yaml", {})) == first


def test_a_printed_configuration_says_where_each_value_came_from() -> None:
    given = layer("log_level: debug\n")
    assert "log_level: debug  # emp.yaml:2" in render(build(given), given).splitlines()


def test_a_printed_configuration_holds_no_secret() -> None:
    given = layer(
        f"http:\n  key: hunter2\n"
        f'receivers:\n  "{RECEIVER}/a": {{secret: hunter3, url: "http://user:hunter4@host/"}}\n  "{RECEIVER}/b": {{secret: "${{KEY}}"}}\n',
        KEY="hunter5",
    )
    text = render(build(given), given)
    assert "hunter" not in text
    assert 'key: "***"' in text
    assert "secret: ${KEY}" in text


def test_a_secret_in_an_error_is_not_told() -> None:
    assert "hunter2" not in "\n".join(problems(f'receivers: {{"{RECEIVER}": {{secret: [hunter2]}}}}'))


def test_a_component_of_the_upper_layer_replaces_the_lower_one_and_false_removes_it() -> None:
    lower = parse_yaml("receivers: {a: {x: 1, y: 2}, b: {x: 1}}\nhttp: {listen: l, key: k}\n", "role", {})
    upper = parse_yaml("receivers: {a: {x: 3}, b: false}\nhttp: {listen: m}\n", "file", {})
    result = merged(lower, upper, frozenset({"receivers"}))
    assert result.values == {"receivers": {"a": {"x": 3}}, "http": {"listen": "m", "key": "k"}}
    assert result.place(("receivers", "a", "x")) == "file:1"
    assert result.place(("http", "key")) == "role:2"
    assert result.place(("http", "listen")) == "file:2"


EVERYTHING = """
role: edge
data_dir: /srv/emp
machine_id: gpu-1
http: {listen: "*:9000", key: {env: HTTP_KEY}}
buffer: {type: %s, max_bytes: 1000000}
receivers:
  forward/a: {listen: ["127.0.0.1:1", "[::1]:2"], tls: {cert_file: /c, key_file: /k}, shared_key: [{env: A}, {file: /b}]}
  forward/b:
  otlp_grpc: {listen: "127.0.0.1:4", token: {env: T}, client_tokens: {ci: {file: /t}}, keepalive_s: 30}
  otlp_http: {listen: ["127.0.0.1:3"], tls: {cert_file: /c, key_file: /k, client_ca_file: /a}, token: [{env: T}, {env: U}]}
  http_json: {listen: ["127.0.0.1:5"], tls: {cert_file: /c, key_file: /k}, token: {env: T}, max_request_bytes: 1000, idle_timeout_s: 5}
  syslog: {listen: "*:6514", udp: [], tls: {cert_file: /c, key_file: /k, client_ca_file: /a}, allowed_peers: [10.0.0.0/8]}
  tail:
  journald:
  kmsg:
  docker:
  kubernetes:
  host_metrics:
  gpu_metrics:
  checks:
  system_logs:
processors:
  enrich: {attributes: {a: b, n: 1}, target: record, on_error: stop}
  redact: {builtin_keys: false, keys: [pin], kept_keys: [a], patterns: [jwt, email], extra_patterns: {badge: 'b-[0-9]+'}, mask: "#"}
  redact/hashed: {replace_by: hash, hash_key: {env: K}}
  filter: {min_severity: info, rules: [{name: x, tags: [a], attributes: {k: v}, matches: {body: "^x"}, keep_one_in: 10}, {action: keep}]}
  rate_limit: {max_sources: 5, rules: [{services: [a], by: tag, records_per_s: 5, burst: 9, spare_errors: false}]}
  sample: {logs_percent: 50, services: {api: {logs_percent: 5}}, rules: [{signal: logs, services: ["a*"], max_severity: debug, percent: 1}]}
  tail_sample:
    policies:
      - {type: error}
      - {type: slow, min_duration_s: 5, max_duration_s: 60}
      - {type: and, name: few, policies: [{type: error}, {type: not, policy: {type: probability, percent: 5}}]}
      - {type: attribute, key: tenant, values: ["a*"], min: 1, max: 2}
      - {type: attribute, name: paid, key: paid, is_true: true, where: span}
      - {type: rate_limit, traces_per_s: 5}
  red_metrics: {unit: ms, histogram: explicit, bounds_s: [0.1, 2], dimensions: [tenant], max_span_names: 50}
  aggregate: {interval_s: 10, max_streams: 100, max_exemplars: 0}
exporters:
  otlp_http/dash0: {preset: dash0, token: {env: T}, dataset: prod, only: {signals: [logs], min_severity: warn}}
  otlp_grpc: {endpoint: "http://c:4317", compression: gzip, connections: 2, keepalive_s: 60, metrics_endpoint: "https://m", token: {env: T}}
  otlp_http: {endpoint: "http://c:4318", headers: {X-A: {env: X}}, except: {tags: ["a.**"], attributes: {k: v}}}
  forward: {endpoint: ["a:1", "b:2"], in_order: true, tls: {}, shared_key: {file: /k}, required: false, quota_age_s: 60}
  file: {max_files: 2}
  stdout:
  noop:
  error: {kind: throttled, rate: 0.5}
normalize: {unfold: false, aliases: {jobID: job_id}, stamp: {region: eu}}
self_metrics: {otlp_endpoint: "http://c:4318", headers: {Authorization: {env: H}}, interval_s: 5}
shutdown: {deadline_s: 3}
dead_letters: {redact: false, rules: {keys: [pin]}}
log_level: debug
"""


@pytest.mark.parametrize("buffer", ["sqlite", "memory"])
def test_every_setting_of_every_component_can_be_written_printed_and_read_back(buffer: str) -> None:
    given = parse_yaml(EVERYTHING % buffer, "emp.yaml", {})
    first = build(given)
    printed = render(first, given)
    assert build(parse_yaml(printed, "printed.yaml", {})) == first
    for kind, section in ((Kind.RECEIVERS, first.receivers), (Kind.PROCESSORS, first.processors), (Kind.EXPORTERS, first.exporters)):
        assert {type_of(name) for name in section} == set(BUILT_IN[kind])
        for settings in section.values():
            for name, field in type(settings).model_fields.items():
                assert f" {field.alias or name}:" in printed
