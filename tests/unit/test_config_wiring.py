"""Parts of a configuration that are right each for itself and do not fit together are refused, with advice."""

from __future__ import annotations

from typing import Any

import pytest

from emp_pipe.component import ComponentConfig, ExporterConfig, SelectionConfig
from emp_pipe.config_wiring import Problem, problems, signals_taken
from emp_pipe.exporters.forward import ForwardExporterConfig
from emp_pipe.exporters.otlp_http import OtlpHttpConfig
from emp_pipe.receivers.otlp_http import OtlpHttpConfig as OtlpHttpReceiverConfig
from tests.unit.test_config import problems as problems_of_file

ANY = ComponentConfig()
ALL = ExporterConfig.model_validate({})


def only(*signals: str) -> ExporterConfig:
    return ExporterConfig(only=SelectionConfig(signals=tuple(signals)))  # type: ignore[arg-type]  # as a file has them


def found(receivers: Any = None, processors: Any = None, exporters: Any = None) -> list[Problem]:
    return list(problems(receivers or {}, processors or {}, exporters if exporters is not None else {"file": ALL}))


@pytest.mark.parametrize("type_name", ["tail_sample", "red_metrics", "aggregate"])
def test_two_of_what_a_process_has_once_are_refused(type_name: str) -> None:
    (problem,) = found(processors={f"{type_name}/a": ANY, f"{type_name}/b": ANY})
    assert problem.path == ("processors", f"{type_name}/b")
    assert f"there can be one {type_name}" in problem.detail
    assert f"put what {type_name}/b says into {type_name}/a" in problem.advice


def test_all_three_of_them_fit_together() -> None:
    assert found(processors={"red_metrics": ANY, "tail_sample": ANY, "aggregate": ANY, "enrich/a": ANY, "enrich/b": ANY}) == []


@pytest.mark.parametrize(
    ("processor", "taken", "made"),
    [
        ("tail_sample", ("logs", "metrics"), "traces"),
        ("red_metrics", ("logs", "traces"), "metrics"),
        ("aggregate/x", ("logs", "traces"), "metrics"),
    ],
)
def test_what_nobody_takes_is_not_made(processor: str, taken: tuple[str, ...], made: str) -> None:
    (problem,) = found(processors={processor: ANY}, exporters={"noop": only(*taken)})
    assert problem.detail == f"processors.{processor} makes {made}, and no exporter takes {made}"
    assert f"add {made} to the `only.signals`" in problem.advice
    assert f"`{processor}: false`" in problem.advice
    assert found(processors={processor: ANY}, exporters={"noop": only(*taken), "file": only(made)}) == []


def test_an_exporter_without_a_selection_takes_every_signal() -> None:
    assert signals_taken("file", ALL) == {"logs", "traces", "metrics"}
    assert signals_taken("file", only("traces")) == {"traces"}


def test_by_forward_without_a_key_only_logs_are_taken() -> None:
    assert signals_taken("forward/central", ForwardExporterConfig(endpoint=("c",))) == {"logs"}
    keyed = ForwardExporterConfig.model_validate({"endpoint": "c", "shared_key": "k"})
    assert signals_taken("forward/central", keyed) == {"logs", "traces", "metrics"}
    (problem,) = found(processors={"aggregate": ANY}, exporters={"forward/central": ForwardExporterConfig(endpoint=("c",))})
    assert "no exporter takes metrics" in problem.detail


def test_one_id_for_a_processor_and_an_exporter_is_refused() -> None:
    (problem,) = found(processors={"my:Thing": ANY}, exporters={"my:Thing": ALL})
    assert "my:Thing is a processor and an exporter" in problem.detail


@pytest.mark.parametrize("listen", ["4318", "127.0.0.1:4318", "*:4318", "localhost:4318", "[::1]:4318", "0.0.0.0:4318"])
@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:4318", "http://localhost:4318/", "http://[::1]:4318"])
def test_an_exporter_to_a_receiver_of_the_same_process_is_refused(listen: str, endpoint: str) -> None:
    receivers = {"otlp_http": OtlpHttpReceiverConfig(listen=(listen,), allow_unauthenticated=True)}
    (problem,) = found(receivers, exporters={"otlp_http": OtlpHttpConfig(endpoint=endpoint)})
    assert problem.path == ("exporters", "otlp_http", "endpoint")
    assert "records would go round in a circle" in problem.detail


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:4319", "http://central:4318", "https://ingress.example"])
def test_an_exporter_to_elsewhere_is_not(endpoint: str) -> None:
    receivers = {"otlp_http": OtlpHttpReceiverConfig(listen=("4318",))}
    assert found(receivers, exporters={"otlp_http": OtlpHttpConfig(endpoint=endpoint)}) == []


def test_what_does_not_fit_is_named_with_its_line() -> None:
    lines = problems_of_file('receivers:\n  forward: {listen: 24224}\nexporters:\n  forward:\n    endpoint: "127.0.0.1:24224"\n')
    assert lines == [
        "emp.yaml:6: exporters.forward.endpoint is where forward of this very process listens: records would go round in a circle; "
        "name another destination, or another `listen` of forward."
    ]
