"""`emp-pipe exec [options] -- COMMAND…`: starts an application so that its telemetry reaches the edge on this machine, as this worker's.

The command takes the place of this process: signals, stdin and the exit code are its own. Reached from `__main__.py` without the rest of
the command line, so that it starts fast and works from the base install. Exit codes before that: 2 wrong options, 126 not executable,
127 not found.
Not here: which variables are set (`exec_environment.py`).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from emp_pipe.exec_environment import PROTOCOLS, PYTHON_SITE, Wanted, masked, prepare, running_edge
from emp_pipe.exec_program import Language, ask_python, find_program, recognise

_NOT_EXECUTABLE, _NOT_FOUND = 126, 127


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="emp-pipe exec",
        usage="emp-pipe exec [options] -- COMMAND [ARGUMENT ...]",
        description="Start an application with the OTEL_* environment of this machine and worker; Python and Node are instrumented where "
        "OpenTelemetry's packages for that are installed beside them. What is set already stays.",
        allow_abbrev=False,
    )
    parser.add_argument("--protocol", choices=PROTOCOLS, default="", help="how telemetry is sent (default: http/protobuf)")
    parser.add_argument("--endpoint", default="", metavar="URL", help="where it is sent to (default: the edge on this machine)")
    parser.add_argument("--service-name", default="", metavar="NAME", help="service.name (default: SERVICE_NAME, SERVICE_TYPE, program)")
    parser.add_argument("--worker-id", default="", metavar="ID", help="worker_id (default: WORKER_ID)")
    parser.add_argument("--language", choices=("python", "node"), help="what a wrapper such as a shell script starts")
    parser.add_argument("--print", action="store_true", dest="show", help="print what would be set, secrets masked, and start nothing")
    parser.add_argument("--quiet", action="store_true", help="say nothing about what is missing")
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str]) -> NoReturn:
    """Run the command; it does not return."""
    parser = _parser()
    given = parser.parse_args(arguments)
    command: list[str] = given.command[1:] if given.command[:1] == ["--"] else given.command
    if not command or not command[0]:
        parser.error("which command? For example:  emp-pipe exec -- python app.py")
    environment = dict(os.environ)
    search_path = environment.get("PATH", os.defpath)
    try:
        path = find_program(command, search_path)
    except FileNotFoundError:
        _fail(f"{command[0]}: there is no such command", _NOT_FOUND)
    except PermissionError:
        _fail(f"{command[0]}: it is not executable", _NOT_EXECUTABLE)
    program = recognise(command, path, search_path, Language(given.language) if given.language else None)
    python = ask_python(program.interpreter, environment, PYTHON_SITE) if program.language is Language.PYTHON else None
    wanted = Wanted(given.endpoint, given.protocol, given.service_name, given.worker_id)
    prepared = prepare(environment, wanted, program, running_edge(environment), python)
    if not given.quiet:
        for note in prepared.notes:
            print(f"emp-pipe exec: {note}", file=sys.stderr)
    if given.show:
        for name, value in sorted(prepared.variables.items()):
            print(f"{name}={masked(name, value)}")
        sys.exit(0)
    sys.stderr.flush()
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and the application would inherit that
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execve(path, command, {**environment, **prepared.variables})
    except OSError as error:  # a script without a right first line, a program for another processor
        _fail(f"{command[0]}: {error.strerror}", _NOT_EXECUTABLE)


def _fail(text: str, code: int) -> NoReturn:
    print(f"emp-pipe exec: {text}", file=sys.stderr)
    sys.exit(code)
