"""The pages say nothing that is not there: links, make targets, test folders, environment variables and component types are looked up."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from emp_pipe.registry import BUILT_IN, Kind
from tests.unit.test_repository import ROOT, tracked_files

PAGES = sorted(path for path in tracked_files() if path.suffix == ".md")
MAKEFILE = (ROOT / "Makefile").read_text()


def text_of(page: Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_into_the_repository_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text_of(page))
    missing = [link for link in links if not (ROOT / page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_make_target_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"(?:`|^ {4})make ([a-z][a-z-]*)", text_of(page), re.MULTILINE))
    targets = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))
    assert named - targets == set()


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_path_of_a_test_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(r"`(tests/[\w./*-]+)`", text_of(page))
    assert [name for name in named if not list(ROOT.glob(name.rstrip("/")))] == []


def test_every_variable_in_the_readme_is_read_by_the_code() -> None:
    code = "".join((ROOT / f"python/emp_pipe/{name}.py").read_text() for name in ("environment", "environment_redis"))
    code += "".join(path.read_text() for path in sorted((ROOT / "python/emp_pipe/roles").glob("*.py")))
    named = set(re.findall(r"\b((?:EMP|FLUENTD|DASH0|OTEL|MACHINE)_[A-Z0-9_]+)", (ROOT / "README.md").read_text()))
    assert named
    assert {name for name in named if name not in code} == set()


def test_every_extra_that_a_page_or_an_advice_names_can_be_installed() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    sources = [*PAGES, *(path for path in tracked_files() if path.suffix == ".py" and path.parts[0] == "python")]
    named = {name for page in sources for name in re.findall(r"(?:emp-pipe|\.whl\))\[([a-z]+)\]", text_of(page))}
    assert "central" in named
    assert named - extras == set()


def test_the_protocol_page_names_every_receiver_and_exporter() -> None:
    page = (ROOT / "docs/protocols.md").read_text()
    types = {*BUILT_IN[Kind.RECEIVERS], *BUILT_IN[Kind.EXPORTERS]}
    assert {name for name in types if f"`{name}`" not in page} == set()


def test_every_make_target_is_listed_by_make_help_or_is_a_part_of_one_that_is() -> None:
    phony = re.findall(r"^\.PHONY: ([a-z-]+)$", MAKEFILE, re.MULTILINE)
    listed = re.findall(r"^([a-z][a-z-]*):.*## ", MAKEFILE, re.MULTILINE)
    parts = set(re.findall(r"(?:check|test)-[a-z]+", MAKEFILE))
    assert {target for target in phony if target not in listed and target not in parts} == set()
