"""Component types: built in, installed, or by dotted path; loaded when named and not before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import emp_pipe
from emp_pipe.errors import ConfigError
from emp_pipe.registry import BUILT_IN, Kind, find, known_types, type_of


@pytest.mark.parametrize("kind", list(Kind))
def test_every_built_in_type_is_a_module_that_is_one_and_none_is_missing(kind: Kind) -> None:
    package = Path(emp_pipe.__file__).parent / kind
    modules = {path.stem for path in package.glob("*.py") if "\nCOMPONENT = " in path.read_text(encoding="utf-8")}
    assert modules == set(BUILT_IN[kind])
    for name in BUILT_IN[kind]:
        found = find(kind, name)
        assert (found.name, found.kind) == (name, kind)


def test_a_component_id_leads_to_its_type() -> None:
    assert type_of("forward/secure") == "forward"
    assert type_of("a.b:C/x") == "a.b:C"


def test_an_unknown_type_is_an_error_with_the_nearest_type() -> None:
    with pytest.raises(ConfigError, match="did you mean 'otlp_http'"):
        find(Kind.EXPORTERS, "otlphttp")


def test_a_type_of_another_kind_is_unknown() -> None:
    with pytest.raises(ConfigError, match="there is no receiver of type 'file'"):
        find(Kind.RECEIVERS, "file")


def test_a_class_can_be_named_by_its_dotted_path() -> None:
    found = find(Kind.PROCESSORS, "tests.support.sample_components:Sample")
    assert found.component.__name__ == "Sample"
    assert found.config.__name__ == "SampleConfig"


@pytest.mark.parametrize(
    "name", ["no.such.module:X", "tests.support.sample_components:Nope", "tests.support.sample_components:SampleConfig.x"]
)
def test_a_path_that_leads_nowhere_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        find(Kind.PROCESSORS, name)


def test_what_is_no_component_is_an_error_that_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="CONFIG"):
        find(Kind.PROCESSORS, "tests.support.command:PATIENCE_S")


def test_known_types_hold_the_built_in_ones() -> None:
    assert set(BUILT_IN[Kind.EXPORTERS]) <= set(known_types(Kind.EXPORTERS))


def test_no_component_is_imported_before_a_configuration_names_it() -> None:
    early = ("emp_pipe.receivers.", "emp_pipe.exporters.", "aiohttp", "pyarrow", "apsw")
    code = f"import sys, emp_pipe.cli; print([m for m in sys.modules if m.startswith({early!r})])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"
