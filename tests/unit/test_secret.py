"""Secrets: where one cannot be had, the error names the setting and the source, and no file is read without end."""

from __future__ import annotations

from pathlib import Path

import pytest

from emp_pipe.config import revealed_secrets
from emp_pipe.data_dir import owned
from emp_pipe.errors import ConfigError
from emp_pipe.receivers.forward import ForwardConfig
from emp_pipe.secret import Secret


def test_a_key_file_without_end_is_refused_and_not_read_to_its_end():
    with pytest.raises(ConfigError, match="/dev/zero is longer than 65,536 bytes"):
        Secret(file=Path("/dev/zero")).reveal("forward: shared_key")


def test_a_key_file_that_is_no_text_is_named_and_none_of_its_bytes_told(tmp_path: Path):
    file = tmp_path / "key"
    file.write_bytes(b"\xff\xfehunter2")
    with pytest.raises(ConfigError) as caught:
        Secret(file=file).reveal("forward: shared_key")
    assert str(file) in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_secret_that_cannot_be_had_is_named_with_its_component_and_setting():
    config = ForwardConfig.model_validate({"clients": [{"network": "10.0.0.0/8", "shared_key": {"file": "/nonexistent/key"}}]})
    with pytest.raises(ConfigError) as caught:
        revealed_secrets(config, "forward/edge")
    assert caught.value.place == "forward/edge.clients[0].shared_key[0]"
    assert "No such file" in caught.value.detail


def test_a_data_directory_with_a_zero_byte_in_its_name_is_a_named_error():
    with pytest.raises(ConfigError, match="data_dir"), owned(Path("/tmp/a\0b")):
        pass
