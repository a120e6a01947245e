"""A secret in the configuration: written out, or taken from an environment variable or a file when the component starts.

    shared_key: s3cret                      # the value itself
    shared_key: {env: FLUENTD_SHARED_KEY}
    shared_key: {file: /run/secrets/forward}

Checking a configuration neither reads the file nor needs the variable; `reveal()` does, at start and at each reload, so that a key can
be rotated. The value never shows in `repr`, errors or `--print-config`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, model_validator

from emp_pipe.component import ComponentConfig
from emp_pipe.errors import ConfigError, ErrorKind


class Secret(ComponentConfig):
    """Where a secret comes from: exactly one of `value` (or just the text in place of the mapping), `env`, `file`."""

    value: SecretStr | None = Field(None, description="The secret itself.")
    env: str | None = Field(None, min_length=1, description="The environment variable that holds it.")
    file: Path | None = Field(None, description="The file that holds it; white space at its end is left out.")

    @model_validator(mode="before")
    @classmethod
    def _text_is_the_value(cls, given: Any) -> Any:
        return {"value": given} if isinstance(given, str | SecretStr) else given

    @model_validator(mode="after")
    def _exactly_one(self) -> Secret:
        if sum(source is not None for source in (self.value, self.env, self.file)) != 1:
            raise ValueError("give the secret itself, or one of `env` and `file`")
        return self

    def reveal(self, place: str) -> str:
        """Return the secret. Raises ConfigError naming `place` where the variable or the file gives none."""
        if self.value is not None:
            text = self.value.get_secret_value()
        elif self.env is not None:
            text = os.environ.get(self.env, "")
        else:
            assert self.file is not None
            try:
                text = self.file.read_text(encoding="utf-8").rstrip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(ErrorKind.CONFIG_INVALID, place=place, detail=f"{self.file} cannot be read ({error})") from None
        if not text:
            source = f"the variable {self.env}" if self.env else f"the file {self.file}" if self.file else "the value"
            raise ConfigError(ErrorKind.CONFIG_INVALID, place=place, detail=f"the secret is empty: {source} gives no text")
        return text
