"""What a fleet needs before its first start.

`emp-pipe init edge`: what a machine has to read, as a configuration. `emp-pipe init certs`: an authority and certificates, and the lines
that put them to use on central and on each machine.

Not here: how they are made (`certificates.py`), how things are found (`discovery.py`).
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, cast

import typer

from emp_pipe import certificates
from emp_pipe.certificates import KEY_TYPES, Authority, Issued, KeyType
from emp_pipe.discovery import discover
from emp_pipe.discovery_print import as_yaml, table
from emp_pipe.errors import ConfigError, ErrorKind

init_app = typer.Typer(help="Make what a fleet needs before its first start.", no_args_is_help=True)
_CENTRAL = "central"


@init_app.callback()
def _init() -> None:
    """Make what a fleet needs before its first start."""


@init_app.command()
def certs(
    directory: Annotated[Path, typer.Option("--dir", "-d", help="Where the authority and the certificates lie.")] = Path("certs"),
    central: Annotated[
        list[str] | None, typer.Option("--central", help="A host name or address by which edges reach central. May be repeated.")
    ] = None,
    machine: Annotated[
        list[str] | None, typer.Option("--machine", help="A machine: NAME, or NAME=HOST,HOST for names to listen on. May be repeated.")
    ] = None,
    renew: Annotated[
        list[str] | None, typer.Option("--renew", help="Issue anew, with a new key, what was issued for NAME. May be repeated.")
    ] = None,
    key_type: Annotated[str, typer.Option("--key-type", help="ecdsa (P-256), rsa (3072 bits) or ed25519.")] = "ecdsa",
    days: Annotated[int, typer.Option("--days", min=1, help="How long a certificate is valid.")] = 397,
    ca_days: Annotated[int, typer.Option("--ca-days", min=1, help="How long a new authority is valid.")] = 3650,
    force: Annotated[bool, typer.Option("--force", help="Overwrite certificates that are there.")] = False,
    new_ca: Annotated[bool, typer.Option("--new-ca", help="With --force: a new authority; nothing issued before is trusted.")] = False,
) -> None:
    """Make an authority and certificates for central and its machines; keys are readable by their owner only."""
    certificates.check_installed()
    if key_type not in KEY_TYPES:
        raise typer.BadParameter(f"must be {', '.join(KEY_TYPES)}", param_hint="--key-type")
    if new_ca and not force:
        raise typer.BadParameter("needs --force: nothing that was issued before is trusted any more", param_hint="--new-ca")
    kind, now = cast("KeyType", key_type), datetime.now(UTC)
    machines = [_named(text) for text in machine or ()]
    wanted = ([(_CENTRAL, list(central))] if central else []) + machines
    for name, hosts in wanted:
        certificates.check_names(name, hosts)
    if not wanted and not renew:
        raise ConfigError(
            ErrorKind.CONFIG_INVALID,
            place="init certs",
            detail="names nobody to issue a certificate for",
            advice="give --central HOST, --machine NAME or --renew NAME",
        )
    if Authority.exists(directory) and not new_ca:
        authority = Authority.open(directory)
        typer.echo(f"uses {authority.cert_file}, valid until {authority.not_after:%Y-%m-%d}")
    elif renew:
        raise ConfigError(
            ErrorKind.CONFIG_NOT_FOUND, place=str(directory), detail="there is no authority", advice="name its directory with --dir"
        )
    else:
        authority = Authority.create(directory, key_type=kind, days=ca_days, now=now, force=new_ca)
        typer.echo(f"made {authority.cert_file}, valid until {authority.not_after:%Y-%m-%d}")
        typer.echo(f"made {authority.key_file}: who has it can issue certificates; keep it away from the fleet")
    for name, hosts in wanted:
        _tell(authority.issue(name, hosts, key_type=kind, days=days, now=now, force=force))
    for name in renew or ():
        _tell(authority.renew(name, key_type=kind, days=days, now=now))
        typer.echo(f"  put both files in place of the old ones on {name}: a running emp-pipe takes them within seconds")
    if wanted:
        typer.echo(_use(authority, central[0] if central else "CENTRAL_HOST", [name for name, _ in machines] or ["NAME"]))


@init_app.command()
def edge(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file to write; without it the YAML is printed.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Look for what there is to read on this machine, and write it down as a configuration with comments."""
    found = discover(dict(os.environ))
    text = as_yaml(found)
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        with output.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        detail = f"it cannot be written ({error.strerror})"
        advice = "give --force to overwrite it" if isinstance(error, FileExistsError) else "name another file with --output"
        raise ConfigError(ErrorKind.CONFIG_NOT_FOUND, place=str(output), detail=detail, advice=advice) from error
    for line in table(found):
        typer.echo(line, err=True)
    typer.echo(f"made {output}; to use it: emp-pipe edge --config {output}", err=True)


def _named(text: str) -> tuple[str, list[str]]:
    name, _, hosts = text.partition("=")
    return name.strip(), [host.strip() for host in hosts.split(",") if host.strip()]


def _tell(issued: Issued) -> None:
    typer.echo(f"made {issued.cert_file}, {issued.key_file} for {', '.join(issued.hosts)}, valid until {issued.not_after:%Y-%m-%d}")


def _use(authority: Authority, host: str, machines: list[str]) -> str:
    directory = authority.directory.absolute()
    return f"""
On central (emp-pipe central), with {directory}/{{ca.pem,central.pem,central.key}} copied there:

  EMP_TLS_CERT_FILE={directory}/central.pem
  EMP_TLS_KEY_FILE={directory}/central.key
  EMP_TLS_CLIENT_CA_FILE={directory}/ca.pem
  FLUENTD_SHARED_KEY=...   # one secret of your own for the fleet, such as: openssl rand -hex 32

or in YAML:

  receivers:
    forward/secure:
      listen: "*:24225"
      shared_key: {{env: FLUENTD_SHARED_KEY}}
      tls: {{cert_file: {directory}/central.pem, key_file: {directory}/central.key, client_ca_file: {directory}/ca.pem}}

On a machine (emp-pipe edge), here {machines[0]}, with its two files and ca.pem copied there:

  FLUENTD_HOST={host}
  EMP_TLS_CA_FILE={directory}/ca.pem
  EMP_TLS_CLIENT_CERT_FILE={directory}/{machines[0]}.pem
  EMP_TLS_CLIENT_KEY_FILE={directory}/{machines[0]}.key
  FLUENTD_SHARED_KEY=...   # the same

or in YAML:

  exporters:
    forward/central:
      endpoint: {host}:24225
      shared_key: {{env: FLUENTD_SHARED_KEY}}
      tls: {{ca_file: {directory}/ca.pem, cert_file: {directory}/{machines[0]}.pem, key_file: {directory}/{machines[0]}.key}}"""
