"""Node applications under `emp-pipe exec`: how auto-instrumentation is found and loaded. The real one: `tests/interop/`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.execution import execute

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="not run: there is no Node.js (to run it put node on PATH)")
TELL = (
    "console.log(JSON.stringify({loaded: globalThis.loaded ?? [], options: process.env.NODE_OPTIONS, arguments: process.argv.slice(2)}));"
)
OURS = "otel_node.cjs"


def register(folder: Path, *, name: str = "build/src/register.js", exports: object = "") -> Path:
    """Put something in the place of auto-instrumentation that says that it was loaded."""
    package = folder / "node_modules/@opentelemetry/auto-instrumentations-node"
    (package / name).parent.mkdir(parents=True)
    (package / name).write_text("(globalThis.loaded ??= []).push('register');")
    described = {"exports": {"./register": exports}} if exports else {}
    (package / "package.json").write_text(json.dumps(described))
    return package / name


@pytest.fixture
def application(tmp_path: Path) -> Path:
    folder = tmp_path / "an application"  # with a space, as NODE_OPTIONS has to take it
    folder.mkdir()
    (folder / "app.js").write_text(TELL)
    return folder


def tell(*command: str | Path, cwd: Path | None = None, **variables: str) -> tuple[dict[str, object], str]:
    done = execute("--", *command, cwd=cwd, **variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_auto_instrumentation_is_found_from_the_applications_folder(application: Path) -> None:
    register(application)
    told, said = tell("node", application / "app.js", "one", "two three")
    assert (told["loaded"], told["arguments"], said) == (["register"], ["one", "two three"], "")


def test_it_is_found_in_the_folders_above(application: Path) -> None:
    register(application.parent)
    assert tell("node", application / "app.js")[0]["loaded"] == ["register"]


def test_it_is_found_from_the_working_folder_when_no_script_is_named(application: Path) -> None:
    register(application)
    assert tell("node", "-e", TELL, cwd=application)[0]["loaded"] == ["register"]


def test_it_is_found_by_node_path(application: Path, tmp_path: Path) -> None:
    register(tmp_path / "elsewhere")
    assert tell("node", application / "app.js", NODE_PATH=str(tmp_path / "elsewhere/node_modules"))[0]["loaded"] == ["register"]


def test_it_is_found_through_a_link_to_the_script(application: Path, tmp_path: Path) -> None:
    register(application)
    (tmp_path / "link.js").symlink_to(application / "app.js")
    assert tell("node", tmp_path / "link.js")[0]["loaded"] == ["register"]


@pytest.mark.parametrize(
    "exports", ["./other/start.js", {"require": "./other/start.js", "import": "./x.mjs"}, {"default": "./other/start.js"}]
)
def test_the_package_says_where_its_register_is(exports: object, application: Path) -> None:
    register(application, name="other/start.js", exports=exports)
    assert tell("node", application / "app.js")[0]["loaded"] == ["register"]


def test_flags_of_node_before_the_script_are_seen_as_such(application: Path) -> None:
    register(application)
    (application / "before.js").write_text("(globalThis.loaded ??= []).push('before');")
    told, _ = tell("node", "--no-warnings", "--require", application / "before.js", application / "app.js")
    assert set(told["loaded"]) == {"register", "before"}  # type: ignore[call-overload]


def test_a_script_with_node_in_its_first_line_is_instrumented(application: Path) -> None:
    register(application)
    script = application / "serve"
    script.write_text(f"#!/usr/bin/env node\n{TELL}\n")
    script.chmod(0o755)
    assert tell(script)[0]["loaded"] == ["register"]


def test_without_the_package_the_environment_is_set_and_one_line_says_so(application: Path) -> None:
    told, said = tell("node", application / "app.js", WORKER_ID="w")
    assert told["loaded"] == []
    assert str(told["options"]).endswith(OURS)  # an application may set the SDK up itself
    (line,) = said.splitlines()
    assert line.startswith("emp-pipe exec: @opentelemetry/auto-instrumentations-node is not installed in ")
    assert "npm install" in line


def test_the_users_node_options_stay_and_come_first(application: Path) -> None:
    register(application)
    told, _ = tell("node", application / "app.js", NODE_OPTIONS="--no-deprecation")
    assert str(told["options"]).startswith("--no-deprecation --require ")
    assert told["loaded"] == ["register"]


def test_a_register_that_the_user_loads_is_not_loaded_twice(application: Path) -> None:
    file = register(application)
    told, _ = tell("node", application / "app.js", NODE_OPTIONS=f'--require "{file}"')
    assert told["loaded"] == ["register"]
    assert str(told["options"]).endswith(OURS)


def test_an_exec_within_an_exec_loads_nothing_twice(application: Path) -> None:
    register(application)
    once, _ = tell("node", application / "app.js")
    twice, said = tell("node", application / "app.js", NODE_OPTIONS=str(once["options"]))
    assert (twice, said) == (once, "")


def test_a_broken_package_stops_nothing(application: Path) -> None:
    file = register(application)
    (file.parent.parent.parent / "package.json").write_text("{")
    file.unlink()
    told, said = tell("node", application / "app.js")
    assert told["loaded"] == []
    assert "is not installed" in said
