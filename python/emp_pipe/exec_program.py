"""What a command line starts: Python, Node or something else, and what OpenTelemetry brings along where it runs.

Looks at file names, the first line of scripts and `node_modules` folders; the interpreter itself is asked once, and only a Python one.
Not here: which variables follow from it (`exec_environment.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_PYTHON = re.compile(r"(?:python|pypy)[0-9.]*(?:\.exe)?")
_NODE = frozenset({"node", "nodejs"})
_LONG_SHEBANG = re.compile(rb"'''exec' \"?([^\"\n]+?)\"? \"\$0\"")  # what pip writes where a shebang would be too long
_MOST_SHEBANG_BYTES = 1024
_PROBE_PATIENCE_S = 20.0
# Asked of the interpreter that will run the application. Nothing of OpenTelemetry is imported but its empty parent packages.
_PROBE = """
import importlib.util as u, json, sys
def spec(name):
    try:
        return u.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
auto = spec("opentelemetry.instrumentation.auto_instrumentation")
there = [name for name in sys.argv[1:] if spec(name)]
print("\\n" + json.dumps({"auto": list(auto.submodule_search_locations)[0] if auto else "", "there": there}))
"""
_AUTO_INSTRUMENTATION = os.path.join("opentelemetry", "instrumentation", "auto_instrumentation")
PYTHON_PARTS = {
    "distro": "opentelemetry.distro",
    "grpc": "opentelemetry.exporter.otlp.proto.grpc",
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http",
    "logging": "opentelemetry.instrumentation.logging",
}
_REGISTER = ("@opentelemetry", "auto-instrumentations-node")


class Language(StrEnum):
    PYTHON = "python"
    NODE = "node"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Program:
    """What a command starts. `arguments`: what its interpreter gets, flags first; `script`: what it runs, where that can be told."""

    language: Language
    path: str
    interpreter: str
    arguments: tuple[str, ...]
    script: str = ""

    @property
    def directory(self) -> Path:
        """Where the application's own packages are looked for."""
        return Path(os.path.realpath(self.script)).parent if self.script and os.path.exists(self.script) else Path.cwd()


@dataclass(frozen=True, slots=True)
class PythonFindings:
    """What an interpreter can import. `auto_directory` is "" where there is no auto-instrumentation; `parts`: keys of PYTHON_PARTS."""

    auto_directory: str = ""
    parts: frozenset[str] = frozenset()
    failure: str = ""


def find_program(command: Sequence[str], search_path: str) -> str:
    """Return the file that a command names, as execvp finds it. Raises FileNotFoundError, PermissionError."""
    name = command[0]
    if found := shutil.which(name, path=search_path):
        return found
    candidates = [name] if os.sep in name else [os.path.join(part or ".", name) for part in search_path.split(os.pathsep)]
    if any(os.path.exists(candidate) for candidate in candidates):
        raise PermissionError(name)
    raise FileNotFoundError(name)


def recognise(command: Sequence[str], path: str, search_path: str, language: Language | None = None) -> Program:
    """Return what a command starts. `language`: what the user says it is, where a wrapper hides it."""
    interpreter = path
    flags: tuple[str, ...] = ()
    kind = _language_of(path)
    script = ""
    if kind is Language.OTHER and (shebang := _shebang(path, search_path)):
        interpreter, flags = shebang
        kind, script = _language_of(interpreter), path
    if language is not None and language is not kind:
        interpreter = shutil.which("python3" if language is Language.PYTHON else "node", path=search_path) or ""
        return Program(language, path, interpreter, ())
    if script:
        return Program(kind, path, interpreter, (*flags, script, *command[1:]), script)
    return Program(kind, path, interpreter, tuple(command[1:]), _script_among(command[1:], kind))


def _language_of(path: str) -> Language:
    for name in (os.path.basename(path), os.path.basename(os.path.realpath(path))):
        if _PYTHON.fullmatch(name):
            return Language.PYTHON
        if name in _NODE:
            return Language.NODE
    return Language.OTHER


def _shebang(path: str, search_path: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the interpreter of a script and what it is given before the script; None for what is no script."""
    try:
        with open(path, "rb") as file:
            head = file.read(_MOST_SHEBANG_BYTES)
    except OSError:
        return None
    if not head.startswith(b"#!"):
        return None
    if trampoline := _LONG_SHEBANG.search(head):
        return os.fsdecode(trampoline[1]), ()
    words = os.fsdecode(head[2:].partition(b"\n")[0]).split()
    if words and os.path.basename(words[0]) == "env":
        words = [word for word in words[1:] if word not in ("-S", "-i") and "=" not in word]
        if words:
            words[0] = shutil.which(words[0], path=search_path) or words[0]
    return (words[0], tuple(words[1:])) if words else None


_FLAGS_WITH_A_VALUE = {
    Language.PYTHON: frozenset({"-W", "-X", "--check-hash-based-pycs"}),
    Language.NODE: frozenset({"-r", "--require", "--import", "--loader", "--experimental-loader", "-C", "--conditions", "--env-file"}),
    Language.OTHER: frozenset[str](),
}


def _script_among(arguments: Sequence[str], language: Language) -> str:
    """Return what an interpreter is told to run: a file, or the name after Python's `-m`; "" where there is none."""
    rest = iter(arguments)
    for argument in rest:
        if language is Language.PYTHON and argument in ("-m", "-c"):
            return next(rest, "") if argument == "-m" else ""
        if argument == "--":
            return next(rest, "")
        if argument in _FLAGS_WITH_A_VALUE[language]:
            next(rest, "")
        elif not argument.startswith("-"):
            return argument
    return ""


def ignores_python_path(arguments: Sequence[str]) -> str:
    """Return the flag by which Python is told to ignore PYTHONPATH or sitecustomize (-I, -E, -S), "" when there is none."""
    rest = iter(arguments)
    for argument in rest:
        if argument in _FLAGS_WITH_A_VALUE[Language.PYTHON]:
            next(rest, "")
        elif not argument.startswith("-") or argument.startswith("--") or argument == "-" or argument[1:2] in ("m", "c", "W", "X"):
            break
        else:
            for letter in argument[1:]:
                if letter in "IES":
                    return f"-{letter}"
    return ""


def without_injected(python_path: str, *own: str) -> list[str]:
    """Return the parts of a PYTHONPATH that are not auto-instrumentation or our own from a command further up."""
    return [part for part in python_path.split(os.pathsep) if part and part not in own and not part.endswith(_AUTO_INSTRUMENTATION)]


def ask_python(interpreter: str, environment: Mapping[str, str], own: str) -> PythonFindings:
    """Return what the interpreter finds with the application's environment; a failure is a finding, the application starts anyway."""
    asked = {**environment, "PYTHONPATH": os.pathsep.join(without_injected(environment.get("PYTHONPATH", ""), own))}
    try:
        done = subprocess.run(
            [interpreter, "-c", _PROBE, *PYTHON_PARTS.values()],
            env=asked,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_PATIENCE_S,
            check=False,
        )
        answer = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return PythonFindings(failure=f"gave no answer in {_PROBE_PATIENCE_S:.0f} s")
    except (OSError, ValueError, IndexError) as error:
        return PythonFindings(failure=f"could not be asked ({error})" if isinstance(error, OSError) else "could not be asked")
    there = frozenset(key for key, module in PYTHON_PARTS.items() if module in answer["there"])
    return PythonFindings(answer["auto"], there)


def find_node_package(directory: Path, environment: Mapping[str, str], *name: str) -> Path | None:
    """Return the folder of a package as Node resolves it from a directory: node_modules of it and of those above it, then NODE_PATH."""
    folders = [above / "node_modules" for above in (directory, *directory.parents) if above.name != "node_modules"]
    folders += [Path(part) for part in environment.get("NODE_PATH", "").split(os.pathsep) if part]
    # `Path.is_dir` raises where a folder above is closed to this user: there Node finds nothing either.
    return next((found for folder in folders if os.path.isdir(found := folder.joinpath(*name))), None)


def find_node_register(directory: Path, environment: Mapping[str, str]) -> str:
    """Return the file that starts Node's auto-instrumentation when it is required, "" where it is not installed."""
    package = find_node_package(directory, environment, *_REGISTER)
    if package is None:
        return ""
    target: object = None
    with contextlib.suppress(OSError, ValueError, AttributeError):
        target = json.loads((package / "package.json").read_bytes()).get("exports", {}).get("./register")
    while isinstance(target, dict):
        target = target.get("require", target.get("default"))
    file = package / (target if isinstance(target, str) else "build/src/register.js")
    return str(file) if os.path.isfile(file) else ""
