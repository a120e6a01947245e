"""The `emp-pipe` command's door: says what to install when only the base package is there, else hands over to `cli.py`."""

from __future__ import annotations

import sys

from emp_pipe import hangups

_NEEDED = frozenset({"typer", "pydantic", "pydantic_core", "yaml", "prometheus_client", "apsw", "msgpack", "typing_extensions"})


def main() -> None:
    """Run the command; exit code 2 with advice when a package that it needs is not installed, whichever others are."""
    try:
        if sys.argv[1:2] == ["exec"]:  # it needs none of the rest, and an application waits for it
            from emp_pipe import cli_exec

            cli_exec.main(sys.argv[2:])
        if sys.argv[1:2] and sys.argv[1] in ("edge", "central", "run"):  # before anything that takes its time
            hangups.remember()
        from emp_pipe.cli import run_command

        run_command()
    except KeyboardInterrupt:  # before the event loop has taken the signal over
        sys.exit(130)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        print(
            f"emp-pipe: this is the base install, which workers import; the command needs more ({error.name} is missing).\n"
            'Install it with:  pip install "emp-pipe[edge]"   (or "emp-pipe[central]")',
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
