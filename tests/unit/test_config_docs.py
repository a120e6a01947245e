"""The configuration reference is written out of the settings classes and cannot fall behind them."""

from __future__ import annotations

import pytest

from emp_pipe import config_docs
from emp_pipe.component import ExporterConfig, ProcessorConfig
from emp_pipe.config import PipelineConfig
from emp_pipe.registry import BUILT_IN, Kind, find

TYPES = [(kind, name) for kind in Kind for name in BUILT_IN[kind]]


def test_the_reference_is_up_to_date() -> None:
    assert config_docs.main(["--check"]) == 0


def test_a_reference_that_is_not_up_to_date_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(config_docs, "page", lambda: "other")
    assert config_docs.main(["--check"]) == 1


@pytest.mark.parametrize(("kind", "name"), TYPES, ids=lambda value: str(value))
def test_every_setting_of_every_component_is_described(kind: Kind, name: str) -> None:
    page = config_docs.page()
    settings = find(kind, name).config
    common = set(ExporterConfig.model_fields) | set(ProcessorConfig.model_fields)
    assert f"### {name}" in page
    for key, field in settings.model_fields.items():
        assert field.description, f"{kind} {name}: {key} says nothing of itself"
        assert key in common or f"`{field.alias or key}`" in page


def test_every_top_level_setting_is_described() -> None:
    page = config_docs.page()
    for key, field in PipelineConfig.model_fields.items():
        assert field.description
        assert f"| `{key}` |" in page or key == "buffer_type"
