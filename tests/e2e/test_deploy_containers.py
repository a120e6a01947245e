"""`deploy/` for containers, Railway and PM2: each file is what its platform documents, and what it starts runs and passes records on.

The schemas here hold what our files use, strictly: a key that the platform's documentation does not know is not in them. The Dockerfile's
own steps are run by `tests/interop/test_deploy_dockerfile.py`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import trustme
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tests.support.command import ROOT, Running, environment, free_port, run, running
from tests.support.command_bench import send, wait_for_rows
from tests.support.redis_server import RedisServer, needs_redis

DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
KEY = "a key of the test's"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


# Compose: the Compose Specification

Duration = Annotated[str, Field(pattern=r"^(\d+(us|ms|s|m|h))+$")]


class Build(Strict):
    context: str
    dockerfile: str
    target: str


class Health(Strict):
    test: list[str]
    interval: Duration
    timeout: Duration
    retries: int


class Dependency(Strict):
    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]


class Service(Strict):
    image: str | None = None
    build: Build | None = None
    command: list[str] | None = None
    environment: dict[str, str] = {}
    ports: list[Annotated[str, Field(pattern=r"^127\.0\.0\.1:\d+:\d+$")]] = []
    """To this machine alone: Docker's ports pass by its firewall."""
    volumes: list[Annotated[str, Field(pattern=r"^[a-z]+:/[a-z/-]+$")]] = []
    depends_on: dict[str, Dependency] = {}
    healthcheck: Health | None = None
    read_only: bool = False
    tmpfs: list[str] = []
    cap_drop: list[Literal["ALL"]] = []
    security_opt: list[str] = []
    stop_grace_period: Duration | None = None
    restart: Literal["no", "always", "on-failure", "unless-stopped"]


class Compose(Strict):
    services: dict[str, Service]
    volumes: dict[str, dict[str, Any]]


# Railway: config as code. Numbers are numbers: its parser refuses text there.


class RailwayBuild(Strict):
    builder: Literal["RAILPACK", "DOCKERFILE"]
    dockerfilePath: str


class RailwayDeploy(Strict):
    startCommand: str
    healthcheckPath: Annotated[str, Field(pattern="^/")]
    healthcheckTimeout: int
    restartPolicyType: Literal["ON_FAILURE", "ALWAYS", "NEVER"]
    drainingSeconds: int


class Railway(Strict):
    schema_: Literal["https://railway.com/railway.schema.json"] = Field(alias="$schema")
    build: RailwayBuild
    deploy: RailwayDeploy


# PM2: ecosystem file


class Pm2App(Strict):
    name: str
    script: str
    args: list[str]
    interpreter: Literal["none"]
    exec_mode: Literal["fork", "cluster"]
    autorestart: bool
    exp_backoff_restart_delay: int
    kill_timeout: int


class Pm2(Strict):
    apps: list[Pm2App]


def compose() -> Compose:
    return Compose.model_validate(yaml.safe_load((DEPLOY / "docker-compose.yaml").read_text()))


def railway() -> Railway:
    return Railway.model_validate_json((DEPLOY / "railway.json").read_text())


@pytest.fixture(scope="module")
def pm2() -> Pm2:
    if shutil.which("node") is None:
        pytest.skip("not run: PM2's file is JavaScript, and there is no Node.js (to run it put node on PATH)")
    code = "process.stdout.write(JSON.stringify(require(process.argv[1])))"
    done = subprocess.run(["node", "-e", code, DEPLOY / "pm2.config.cjs"], capture_output=True, text=True, timeout=30, check=True)
    return Pm2.model_validate_json(done.stdout)


def variables_of(service: str, **given: str) -> dict[str, str]:
    """Return a service's environment as compose makes it, of what its caller has set."""

    def value(found: re.Match[str]) -> str:
        name, default = found[1], found[2]
        return given.get(name) or (default or "")

    return {
        name: re.sub(r"\$\{(\w+)(?::-([^}]*)|:\?[^}]*)\}", value, text) for name, text in compose().services[service].environment.items()
    }


def test_the_compose_file_is_one_and_fits_together() -> None:
    file = compose()
    for name, service in file.services.items():
        assert (service.image is None) != (service.build is None), name
        assert service.depends_on.keys() <= file.services.keys()
        assert {volume.partition(":")[0] for volume in service.volumes} <= file.volumes.keys()
        if service.build is not None:
            assert re.search(rf"^FROM base AS {service.build.target}$", DOCKERFILE, re.MULTILINE)
            assert (DEPLOY / service.build.context / service.build.dockerfile).samefile(DEPLOY / "Dockerfile")
            # a deadline of ours, after which what is left stays in the buffer, has to fit into what the platform waits
            assert int((service.stop_grace_period or "0s").removesuffix("s")) > 20
            assert (service.read_only, service.cap_drop) == (True, ["ALL"])
        for other, dependency in service.depends_on.items():
            asked = file.services[other]
            assert dependency.condition != "service_healthy" or asked.healthcheck or (asked.build and "\nHEALTHCHECK " in DOCKERFILE)


@pytest.mark.parametrize("name", ["stop_grace", "enviroment"])
def test_a_key_that_compose_does_not_know_would_be_seen(name: str) -> None:
    file = yaml.safe_load((DEPLOY / "docker-compose.yaml").read_text())
    file["services"]["edge"][name] = "1s"
    with pytest.raises(ValidationError, match=name):
        Compose.model_validate(file)


def test_every_variable_of_the_compose_file_is_one_that_emp_pipe_reads() -> None:
    code = "".join(path.read_text() for path in [*ROOT.glob("python/emp_pipe/environment*.py"), *ROOT.glob("python/emp_pipe/roles/*.py")])
    file = compose()
    named = {*file.services["edge"].environment, *file.services["central"].environment}
    assert {name for name in named if not re.search(rf"\b{name}\b", code)} == set()


@pytest.mark.parametrize("role", ["edge", "central"])
def test_emp_pipe_takes_what_the_compose_file_sets(role: str) -> None:
    done = run(role, "--print-config", **variables_of(role, FLUENTD_SHARED_KEY=KEY))
    assert done.returncode == 0, done.stderr
    wanted = {"edge": "central:24225", "central": "redis://redis:6379/0"}[role]
    assert wanted in done.stdout
    assert KEY not in done.stdout


@needs_redis
def test_with_the_compose_file_s_variables_a_record_goes_through_edge_redis_and_central(tmp_path: Path) -> None:
    forward, at_central = free_port(), free_port()
    central = variables_of("central", FLUENTD_SHARED_KEY=KEY)
    edge = variables_of("edge", FLUENTD_SHARED_KEY=KEY)
    assert (edge["FLUENTD_HOST"], edge["FLUENTD_PORT"], central["PORT"]) == ("central", "24225", "8080")
    with RedisServer() as server:
        central |= {"EMP_BUFFER_REDIS_URL": server.url, "PORT": str(free_port()), "EMP_FORWARD_LISTEN": f"127.0.0.1:{at_central}"}
        edge |= {"FLUENTD_HOST": "127.0.0.1", "FLUENTD_PORT": str(at_central), "PORT": str(free_port())}
        quiet = ("--set", f"receivers.forward.listen=127.0.0.1:{free_port()}")
        with (
            running("central", "--data-dir", str(tmp_path / "central"), *quiet, **central),
            running("edge", "--data-dir", str(tmp_path / "edge"), "--set", f"receivers.forward.listen=127.0.0.1:{forward}", **edge),
        ):
            send(forward, 3)
            rows = wait_for_rows(tmp_path / "central", 3)
    assert sorted(row["message"] for row in rows) == ["record 0", "record 1", "record 2"]


def test_railway_s_file_is_one_and_its_image_is_central() -> None:
    file = railway()
    assert (ROOT / file.build.dockerfilePath).samefile(DEPLOY / "Dockerfile")
    assert re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.MULTILINE)[-1] == "central", "Railway builds the last one"
    assert file.deploy.drainingSeconds > 20, "longer than shutdown.deadline_s"
    with pytest.raises(ValidationError, match="drainingSeconds"):
        Railway.model_validate_json((DEPLOY / "railway.json").read_text().replace('"drainingSeconds": 30', '"drainingSeconds": "30"'))


def test_railway_s_start_command_starts_a_central_with_the_certificate_of_its_variables(tmp_path: Path) -> None:
    deploy = railway().deploy
    certificate = trustme.CA().issue_cert("127.0.0.1")
    words = [word.replace("/tmp/", f"{tmp_path}/") for word in shlex.split(deploy.startCommand)]
    program = tmp_path / "emp-pipe"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m emp_pipe "$@"\n')
    program.chmod(0o755)
    port, anywhere = free_port(), "127.0.0.1:0"
    variables = environment(
        PORT=str(port),
        RAILWAY_VOLUME_MOUNT_PATH=str(tmp_path / "volume"),
        FLUENTD_SHARED_KEY=KEY,
        CENTRAL_PEM=certificate.cert_chain_pems[0].bytes().decode(),
        CENTRAL_KEY=certificate.private_key_pem.bytes().decode(),
        EMP_TLS_CERT_FILE=str(tmp_path / "central.pem"),
        EMP_TLS_KEY_FILE=str(tmp_path / "central.key"),
        EMP_FORWARD_LISTEN=f"127.0.0.1:{free_port()}",
        EMP_OTLP_GRPC_LISTEN=anywhere,
        EMP_OTLP_HTTP_LISTEN=anywhere,
        EMP_HTTP_JSON_LISTEN=anywhere,
    )
    variables["PATH"] = f"{tmp_path}{os.pathsep}{variables['PATH']}"
    (tmp_path / "volume").mkdir()
    process = subprocess.Popen(words, env=variables, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        command = Running(process)
        command.wait_for("health: ")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{deploy.healthcheckPath}", timeout=20) as answer:
            assert answer.status == 200
        assert (tmp_path / "central.key").stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "volume/emp-pipe/central/log").is_dir()
        process.terminate()
        assert command.wait() == 0, "the shell has given its place to emp-pipe, which gets the signal"
    finally:
        process.kill()
        process.wait()


def test_pm2_s_file_is_one_and_its_command_is_one_that_emp_pipe_has(pm2: Pm2) -> None:
    (app,) = pm2.apps
    assert app.kill_timeout > 20_000, "longer than shutdown.deadline_s"
    done = run(*app.args, "--print-config")
    assert done.returncode == 0, done.stderr
    assert "/workspace/emp-pipe" in done.stdout


def test_the_images_run_as_nobody_s_root_and_are_asked_for_their_health() -> None:
    for target in ("edge", "central"):
        stage = DOCKERFILE.split(f"FROM base AS {target}\n")[1].split("\nFROM ")[0]
        steps = re.findall(r"^([A-Z]+) (.*)$", stage, re.MULTILINE)
        assert ("USER", "10001:10001") in steps
        assert [name for name, _ in steps].index("USER") < [name for name, _ in steps].index("ENTRYPOINT")
        (entry,) = [text for name, text in steps if name == "ENTRYPOINT"]
        assert json.loads(entry) == ["emp-pipe", target]


def test_the_health_check_of_the_images_says_yes_of_one_that_runs_and_no_of_one_that_does_not(tmp_path: Path) -> None:
    (check,) = re.findall(r"^HEALTHCHECK .*? CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    words = [sys.executable, *json.loads(check)[1:]]
    port = str(free_port())

    def asked() -> int:
        return subprocess.run(words, env=environment(PORT=port), capture_output=True, timeout=30, check=False).returncode

    assert asked() != 0
    with running("edge", "--data-dir", str(tmp_path), "--set", f"receivers.forward.listen=127.0.0.1:{free_port()}", PORT=port):
        assert asked() == 0
