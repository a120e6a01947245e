"""Bearer tokens: who gets in, two at once, and what the settings refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from emp_pipe.bearer import BearerConfig, BearerTokens
from emp_pipe.errors import ConfigError


def tokens(**settings: object) -> BearerTokens:
    made = BearerTokens(BearerConfig.model_validate(settings), "otlp_http")
    made.prepare()
    return made


def test_without_a_token_everybody_gets_in() -> None:
    assert tokens().client_of("") == ""


@pytest.mark.parametrize("header", ["Bearer new", "bearer old", "BEARER  new "])
def test_two_tokens_are_valid_at_once(header: str) -> None:
    assert tokens(token=["old", "new"]).client_of(header) == ""


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Bearer olds", "Bearer ol", "Basic old", "old", "Bearer ö", "Bearer old,new"])
def test_anything_else_does_not_get_in(header: str) -> None:
    assert tokens(token=["old", "new"], client_tokens={"ci": "own"}).client_of(header) is None


def test_a_token_of_its_own_names_its_client() -> None:
    made = tokens(token="common", client_tokens={"ci": "one", "gpu-7": "two"})
    assert [made.client_of(f"Bearer {token}") for token in ("one", "two", "common")] == ["ci", "gpu-7", ""]


@pytest.mark.parametrize("settings", [{"token": " "}, {"token": ["good", "\t"]}, {"client_tokens": {"ci": "  "}}])
def test_a_token_of_white_space_is_refused_for_it_would_let_everybody_in(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="nothing but white space"):
        tokens(**settings)


def test_three_tokens_are_one_too_many() -> None:
    with pytest.raises(ValidationError):
        BearerConfig.model_validate({"token": ["a", "b", "c"]})


def test_a_token_in_a_file_is_read_again_by_the_next_reload(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    made = tokens(token={"file": str(file)})
    file.write_text("second\n")
    assert made.client_of("Bearer first") == ""
    made.prepare()
    assert made.client_of("Bearer first") is None
    assert made.client_of("Bearer second") == ""


def test_a_token_that_is_gone_is_an_error_that_names_the_setting_and_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    made = tokens(client_tokens={"ci": {"file": str(file)}})
    file.unlink()
    with pytest.raises(ConfigError, match=r"client_tokens\.ci"):
        made.prepare()
    assert made.client_of("Bearer first") == "ci"
