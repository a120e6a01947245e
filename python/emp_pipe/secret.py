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

_MOST_BYTES = 65_536
"""A key file is small: what is longer (a device, a log) is the wrong file, and is not read to its end."""


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
                with self.file.open("rb") as file:
                    content = file.read(_MOST_BYTES + 1)
                text = content.decode("utf-8").rstrip()
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else str(error).partition(" in position")[0]
                raise ConfigError(ErrorKind.CONFIG_INVALID, place=place, detail=f"{self.file} cannot be read ({why})") from None
            if len(content) > _MOST_BYTES:
                detail = f"{self.file} is longer than {_MOST_BYTES:,} bytes: it holds no secret"
                raise ConfigError(ErrorKind.CONFIG_INVALID, place=place, detail=detail)
        if not text:
            source = f"the variable {self.env}" if self.env else f"the file {self.file}" if self.file else "the value"
            raise ConfigError(ErrorKind.CONFIG_INVALID, place=place, detail=f"the secret is empty: {source} gives no text")
        return text
