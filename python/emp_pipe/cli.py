"""The `emp-pipe` command: reads the environment once, makes a configuration out of role, file and options, and starts what was asked for.

Exit codes: 0 done, 1 it failed while it ran, 2 the command or its configuration is wrong. Own log lines and errors go to stderr.
Not here: what runs (`pipeline.py`), what a role is (`roles/`), talking to a running process (`control.py`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from emp_pipe import __version__, cli_admin, cli_dlq, cli_exec, cli_init, cli_test, discovery, environment, environment_redis, job_queue
from emp_pipe.config import COMPONENT_SECTIONS, PipelineConfig, build
from emp_pipe.config_layer import Layer, merged
from emp_pipe.config_print import render
from emp_pipe.config_secrets import written_out
from emp_pipe.control import NAME as CONTROL_SOCKET
from emp_pipe.discovery import Discovery
from emp_pipe.discovery_print import table
from emp_pipe.errors import ConfigError, EmpPipeError, ErrorKind
from emp_pipe.roles import central as central_role
from emp_pipe.roles import edge as edge_role

app = typer.Typer(
    name="emp-pipe",
    help="A durable telemetry pipeline: Fluent Forward and OTLP in, OTLP out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cli_admin.use_locator(lambda directory, file: _locate(directory, file))
app.command()(cli_admin.tap)
app.add_typer(cli_admin.groups_app, name="groups")
app.add_typer(cli_dlq.app, name="dlq")
app.add_typer(cli_init.init_app, name="init")
ROLES: dict[str, Callable[[environment.Environment], Layer]] = {"edge": edge_role.expand, "central": central_role.expand}


_STAMPED_ID = ("normalize", "stamp", "machine_id")


@dataclass(frozen=True, slots=True)
class Sources:
    """All that a configuration is made of; `load` can be called again when the file has changed."""

    role: str
    file: Path | None
    settings: tuple[str, ...] = ()
    data_dir: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def load(self) -> tuple[PipelineConfig, Layer]:
        """Return the checked configuration and the layer that it came from. Raises ConfigError."""
        written = self._written()
        base = self._base(written)
        if environment.names_a_destination(written):
            environment.drop_file(base)
        environment_redis.drop_redis(base, written)
        layer = merged(base, written, COMPONENT_SECTIONS)
        self._put_settings(layer)
        if self.data_dir is not None:
            layer.put(("data_dir",), str(self.data_dir), place="--data-dir")
        if layer.places.get(_STAMPED_ID) == base.places.get(_STAMPED_ID) is not None:
            layer.put(_STAMPED_ID, layer.values.get("machine_id"), place=layer.place(("machine_id",)))  # it is named once
        environment_redis.put_spool(layer, self.environment)
        config = build(layer)
        if config.buffer_type == "redis":
            job_queue.refuse(str(getattr(config.buffer, "url", "")), self.environment, layer.place(("buffer", "url")))
        return config, layer

    def found(self) -> Discovery | None:
        """Return what this machine has to read, where an edge looks for it by itself; else None. Raises ConfigError."""
        if self.role != "edge" or not discovery.wanted(self.environment, has_file=self.file is not None):
            return None
        return discovery.discover(self.environment)

    def what_is_read(self, config: PipelineConfig) -> Sequence[str]:
        """Return the lines that say what was found on this machine and is read; none where nothing was looked for."""
        found = self.found()
        return table(found.used_by(config.receivers)) if found is not None else ()

    def _written(self) -> Layer:
        if self.file is None:
            return Layer()
        from emp_pipe.config_yaml import read_yaml  # most edges have no file and do without it

        layer = read_yaml(self.file, self.environment)
        layer.values.pop("tests", None)  # they are for `emp-pipe test` alone
        return layer

    def tests(self) -> object:
        """Return what the file has under `tests:`, unchecked."""
        from emp_pipe.config_yaml import read_yaml

        return read_yaml(self.file, self.environment).values.get("tests") if self.file is not None else None

    def _put_settings(self, layer: Layer) -> None:
        if self.settings:
            from emp_pipe.config_yaml import put_setting

            for setting in self.settings:
                put_setting(layer, setting)

    def _base(self, written: Layer) -> Layer:
        """Return what the file is laid over: this role, or the roles that the file names itself (`roles: [edge, central]`)."""
        if self.role in ROLES:
            layer = ROLES[self.role](self.environment)
            if (found := self.found()) is not None:
                found.put(layer)
            return layer
        base = Layer(origin="the command line")
        environment.put_process(base, self.environment, self.role)
        environment_redis.put_redis(base, self.environment)
        named = written.values.pop("roles", [])
        if not isinstance(named, list) or not all(name in ROLES for name in named):
            raise ConfigError(ErrorKind.CONFIG_INVALID, place=written.place(("roles",)), detail="roles must be a list of edge, central")
        variables = self.environment
        if len(named) > 1:  # what the edge would send to central is here already
            variables = {name: value for name, value in variables.items() if name not in ("FLUENTD_HOST", "EMP_TRACES_METRICS_TO")}
        for name in named:
            base = merged(ROLES[name](variables), base, COMPONENT_SECTIONS)
        return base


ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="A YAML file that is laid over the role.")]
PrintOption = Annotated[bool, typer.Option("--print-config", help="Print every setting with where it came from, and exit.")]
DataDirOption = Annotated[Path | None, typer.Option("--data-dir", help="Where the buffer and the `file` exporter write.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="One setting, such as --set http.listen=127.0.0.1:9000. May be repeated.")
]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"emp-pipe {__version__}")
        raise typer.Exit


@app.command()
def edge(
    config: ConfigOption = None, print_config: PrintOption = False, data_dir: DataDirOption = None, settings: SetOption = None
) -> None:
    """Run the edge: what this machine has, and Forward and OTLP on loopback, go to central (FLUENTD_HOST), Dash0, OTLP, or files."""
    _start(Sources("edge", config, tuple(settings or ()), data_dir, dict(os.environ)), print_config)


@app.command()
def central(
    config: ConfigOption = None, print_config: PrintOption = False, data_dir: DataDirOption = None, settings: SetOption = None
) -> None:
    """Run central: Forward (FLUENTD_SHARED_KEY) and OTLP in (EMP_OTLP_TOKEN), out to Dash0 (DASH0_AUTH_TOKEN), OTLP, or files."""
    _start(Sources("central", config, tuple(settings or ()), data_dir, dict(os.environ)), print_config)


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="The YAML file that says what to run.")],
    print_config: PrintOption = False,
    data_dir: DataDirOption = None,
    settings: SetOption = None,
) -> None:
    """Run any composition of receivers, processors and exporters."""
    _start(Sources("run", file, tuple(settings or ()), data_dir, dict(os.environ)), print_config)


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(help="The YAML file to check.")],
    role: Annotated[str, typer.Option(help="The role that the file is laid over: edge, central or run.")] = "run",
) -> None:
    """Check a configuration; opens no socket and no file but this one."""
    if role not in ("run", *ROLES):
        raise typer.BadParameter("must be edge, central or run", param_hint="--role")
    config, layer = Sources(role, file, environment=dict(os.environ)).load()
    for warning in written_out(config, layer):
        typer.echo(f"emp-pipe: warning: {warning}", err=True)
    typer.echo(f"{file}: ok ({_counted(config)})")


@app.command("test")
def sample_lines(
    file: Annotated[Path, typer.Argument(help="The YAML file with `tests:`.")],
    role: Annotated[str, typer.Option(help="The role that the file is laid over: edge, central or run.")] = "run",
) -> None:
    """Send the sample lines of a configuration through its parsers and processors, show the records, compare them with what is expected."""
    if role not in ("run", *ROLES):
        raise typer.BadParameter("must be edge, central or run", param_hint="--role")
    sources = Sources(role, file, environment=dict(os.environ))
    config, _ = sources.load()
    if not cli_test.main(config, sources.tests(), file):
        sys.exit(1)


@app.command("exec", context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []})
def execute(context: typer.Context) -> None:
    """Start an application with the OTEL_* environment of this machine and worker: emp-pipe exec -- COMMAND …"""
    cli_exec.main(context.args)


def _counted(config: PipelineConfig) -> str:
    parts = []
    for word, section in (("receiver", config.receivers), ("processor", config.processors), ("exporter", config.exporters)):
        parts.append(f"{len(section)} {word}{'' if len(section) == 1 else 's'}")
    return ", ".join(parts)


def _start(sources: Sources, print_config: bool) -> None:
    config, layer = sources.load()
    if print_config:
        typer.echo(render(config, layer), nl=False)
        return
    if not config.receivers or not config.exporters:
        missing = "receivers" if not config.receivers else "exporters"
        raise ConfigError(
            ErrorKind.CONFIG_INVALID, place=layer.place((missing,)), detail=f"no {missing} are set", advice="add at least one"
        )
    from emp_pipe.process import run_until_stopped  # what runs is heavy; a check needs none of it

    sys.exit(run_until_stopped(config, layer, sources.load, sources.what_is_read))


def _locate(directory: Path | None, file: Path | None) -> PipelineConfig:
    """Return the configuration of the process that an administrative command is about."""
    variables = dict(os.environ)
    if directory is None and file is None and not variables.get("EMP_DATA_DIR"):
        found = [path for role in ("edge", "central", "run") if (path := environment.default_data_dir(variables, role)).is_dir()]
        running = [path for path in found if (path / CONTROL_SOCKET).exists()] or found
        if not running and environment_redis.chosen(variables):
            running = [environment.default_data_dir(variables, "central")]
        if len(running) != 1:
            what = f"several data directories are in use ({', '.join(map(str, running))})" if running else "no data directory was found"
            raise ConfigError(ErrorKind.CONFIG_INVALID, place="--data-dir", detail=what, advice="name one with --data-dir")
        directory = running[0]
    config, _ = Sources("run", file, data_dir=directory, environment=variables).load()
    return config


def run_command() -> None:
    """Run the command line; errors that emp-pipe raises on purpose become their text and an exit code."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except ConfigError as error:
        typer.echo(f"emp-pipe: {error}", err=True)
        sys.exit(2)
    except EmpPipeError as error:
        typer.echo(f"emp-pipe: {error}", err=True)
        sys.exit(1)
