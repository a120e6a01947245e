"""What is found on a machine: a tree of directories for each thing that there is to find."""

from __future__ import annotations

import glob
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from emp_pipe import discovery
from emp_pipe.config_layer import Layer
from emp_pipe.discovery import Discovery
from emp_pipe.discovery_print import as_yaml, table
from emp_pipe.errors import ConfigError
from emp_pipe.receivers.tail_scan import Patterns
from tests.support.machine_tree import KNOWN, Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_an_empty_machine_has_nothing_to_read(machine: Machine) -> None:
    assert machine.found() == Discovery()
    assert table(machine.found()) == ["found nothing to read on this machine but what is sent to it"]


# --- PM2 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["root/.pm2/logs", "home/ubuntu/.pm2/logs", "workspace/logs"])
def test_the_logs_of_pm2_are_found_wherever_the_fleet_has_them(machine: Machine, folder: str) -> None:
    machine.has(f"{folder}/api-out.log", f"{folder}/api-error.log")
    assert machine.read("tail/pm2") == {f"{folder}/api-out.log", f"{folder}/api-error.log"}
    assert machine.one("tail/pm2").why == "2 files"


def test_what_pm2_itself_says_is_read(machine: Machine) -> None:
    machine.has("root/.pm2/pm2.log", "root/.pm2/logs/api-out.log")
    assert machine.read("tail/pm2") == {"root/.pm2/pm2.log", "root/.pm2/logs/api-out.log"}


def test_the_home_that_pm2_was_given_is_found(machine: Machine) -> None:
    machine.has("srv/pm2/logs/api-out.log")
    machine.variables["PM2_HOME"] = str(machine.root / "srv/pm2")
    assert machine.read("tail/pm2") == {"srv/pm2/logs/api-out.log"}


def test_a_combined_log_beside_its_halves_is_left_out(machine: Machine) -> None:
    machine.has("workspace/logs/api-out.log", "workspace/logs/api-error.log", "workspace/logs/api-combined.log")
    assert machine.read("tail/pm2") == {"workspace/logs/api-out.log", "workspace/logs/api-error.log"}
    assert machine.left_out() == {"workspace/logs/api-combined.log": "api-error.log and api-out.log hold the same lines"}


def test_a_combined_log_without_its_halves_is_read(machine: Machine) -> None:
    machine.has("workspace/logs/api-out.log", "workspace/logs/web-combined.log")
    assert machine.read("tail/pm2") == {"workspace/logs/api-out.log", "workspace/logs/web-combined.log"}
    assert machine.left_out() == {}


def test_a_file_that_comes_later_is_read_too(machine: Machine) -> None:
    machine.has("workspace/logs/api-out.log")
    settings = machine.one("tail/pm2").settings
    machine.has("workspace/logs/worker-out.log")
    files = Patterns(settings["include"], settings["exclude"]).files(lambda path, why: None)
    assert str(machine.root / "workspace/logs/worker-out.log") in files


def test_what_rotation_packed_is_no_log_of_its_own(machine: Machine) -> None:
    machine.has("workspace/logs/api-out.log", "workspace/logs/api-out__2026-01-01.log.gz")
    assert machine.read("tail/pm2") == {"workspace/logs/api-out.log"}


def test_what_emp_pipe_says_under_pm2_is_not_read_by_it(machine: Machine) -> None:
    machine.has("workspace/logs/emp-pipe-out.log", "workspace/logs/emp-pipe-error.log", "workspace/logs/api-out.log")
    machine.variables["pm_out_log_path"] = str(machine.root / "workspace/logs/emp-pipe-out.log")
    machine.variables["pm_err_log_path"] = str(machine.root / "workspace/logs/emp-pipe-error.log")
    assert machine.read("tail/pm2") == {"workspace/logs/api-out.log"}
    assert set(machine.left_out().values()) == {"it is emp-pipe's own"}


def test_what_pm2_logrotate_copied_of_a_file_that_is_left_out_is_left_out_too(machine: Machine) -> None:
    rotated = "__2026-01-01_00-00-00.log"
    machine.has(*(f"workspace/logs/{name}.log" for name in ("api-out", "api-combined", "emp-pipe-out")))
    machine.has(*(f"workspace/logs/{name}{rotated}" for name in ("api-combined", "emp-pipe-out", "api-out")))
    machine.variables["pm_out_log_path"] = str(machine.root / "workspace/logs/emp-pipe-out.log")
    assert machine.read("tail/pm2") == {"workspace/logs/api-out.log", f"workspace/logs/api-out{rotated}"}
    assert machine.one("tail/pm2").why == "2 files"


def test_a_folder_that_is_a_link_to_another_is_read_once(machine: Machine) -> None:
    machine.has("root/.pm2/logs/api-out.log")
    (machine.root / "workspace").mkdir()
    (machine.root / "workspace/logs").symlink_to(machine.root / "root/.pm2/logs")
    assert machine.read("tail/pm2") == {"root/.pm2/logs/api-out.log"}
    assert machine.left_out() == {"workspace/logs": f"it is the same folder as {machine.root}/root/.pm2/logs"}


# --- other files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["workspace/ComfyUI", "opt/ComfyUI", "root/ComfyUI"])
def test_the_logs_of_comfyui_are_found(machine: Machine, folder: str) -> None:
    machine.has(f"{folder}/logs/output-gpu0.log", f"{folder}/user/comfyui.log")
    assert machine.read("tail/comfyui") == {f"{folder}/logs/output-gpu0.log", f"{folder}/user/comfyui.log"}
    assert machine.one("tail/comfyui").settings["attributes"] == {"service_type": "comfyui"}


def test_a_comfyui_that_is_installed_is_checked(machine: Machine) -> None:
    machine.has("opt/ComfyUI/main.py")
    assert machine.components() == ["checks"]
    assert machine.one("checks").settings == {}


def test_comfyui_is_found_where_the_environment_says_it_is(machine: Machine) -> None:
    machine.has("srv/comfy/logs/output-gpu0.log")
    machine.variables["COMFYUI_PATH"] = str(machine.root / "srv/comfy")
    assert machine.read("tail/comfyui") == {"srv/comfy/logs/output-gpu0.log"}


def test_the_logs_of_nginx_are_found(machine: Machine) -> None:
    machine.has("var/log/nginx/access.log", "var/log/nginx/error.log")
    assert machine.read("tail/nginx") == {"var/log/nginx/access.log", "var/log/nginx/error.log"}
    assert machine.components() == ["tail/nginx"]


def test_the_logs_of_applications_are_found(machine: Machine) -> None:
    machine.has("var/log/redis/redis-server.log", "var/log/myapp.log", "var/log/supervisor/worker.log")
    expected = {"var/log/redis/redis-server.log", "var/log/myapp.log", "var/log/supervisor/worker.log"}
    assert machine.read("tail/applications") == expected


def test_what_a_package_manager_wrote_is_no_log_of_an_application(machine: Machine) -> None:
    machine.has("var/log/dpkg.log", "var/log/apt/history.log", "var/log/alternatives.log", "var/log/lastlog", "var/log/installer/x.log")
    assert machine.components() == []


def test_the_systems_logs_are_read_where_there_is_no_journal(machine: Machine) -> None:
    machine.has("var/log/auth.log", "var/log/kern.log", "var/log/syslog")
    assert set(machine.one("tail/system").settings["include"]) == {
        str(machine.root / f"var/log/{n}") for n in ("auth.log", "kern.log", "syslog")
    }


def test_a_pipe_is_no_log(machine: Machine) -> None:
    (machine.root / "var/log").mkdir(parents=True)
    os.mkfifo(machine.root / "var/log/pipe.log")
    assert machine.components() == []


def test_a_file_that_may_not_be_read_is_left_out_and_said(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has("var/log/secret.log", "var/log/open.log")
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("secret.log"))
    assert machine.read("tail/applications") == {"var/log/open.log"}
    assert machine.left_out() == {"var/log/secret.log": "it may not be read by this user"}


def test_a_folder_whose_name_is_a_pattern_is_read_by_its_name(machine: Machine) -> None:
    machine.has("var/log/app[1]/x.log", "var/log/app1/y.log", "var/log/app*/z.log")
    assert machine.read("tail/applications") == {"var/log/app[1]/x.log", "var/log/app1/y.log", "var/log/app*/z.log"}


def test_names_that_are_no_text_do_no_harm(machine: Machine) -> None:
    machine.has("var/log/good.log")
    (Path(os.fsdecode(os.fsencode(machine.root) + b"/var/log/\xff.log"))).write_text("x")
    assert machine.read("tail/applications") == {"var/log/good.log"}
    as_yaml(machine.found()).encode()


def test_a_folder_of_too_many_files_is_looked_at_up_to_a_bound(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "_MOST_ENTRIES", 3)
    machine.has(*(f"workspace/logs/{n}.log" for n in range(9)))
    assert machine.one("tail/pm2").why == "3 files"
    assert len(machine.read("tail/pm2")) == 9


# --- what is no file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["var/log/journal", "run/log/journal"])
def test_the_journal_is_read_and_what_repeats_it_is_not(machine: Machine, folder: str) -> None:
    machine.has_program("journalctl")
    machine.has(f"{folder}/0123/system.journal", "var/log/syslog", "dev/kmsg")
    assert machine.one("journald").settings == {"directory": str(machine.root / folder)}
    assert machine.components() == ["journald"]
    assert machine.left_out() == {"var/log/syslog": "the journal has the same lines"}


def test_a_journal_without_journalctl_is_left_out_and_the_files_are_read(machine: Machine) -> None:
    machine.has("var/log/journal/0123/system.journal", "var/log/syslog")
    assert machine.components() == ["tail/system"]
    assert machine.left_out() == {"var/log/journal": "there is no journalctl here to read it with"}


def test_a_journal_without_journalctl_leaves_the_kernels_messages_to_be_read_from_the_kernel(machine: Machine) -> None:
    machine.has("var/log/journal/0123/system.journal", "dev/kmsg")
    assert machine.components() == ["kmsg"]


def test_the_kernels_messages_are_read_where_there_is_no_journal(machine: Machine) -> None:
    machine.has("dev/kmsg")
    assert machine.one("kmsg").settings == {"path": str(machine.root / "dev/kmsg")}


def test_dockers_socket_is_found(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine.root / "run").mkdir()
    monkeypatch.chdir(machine.root / "run")  # a socket's path has to be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("docker.sock")
        assert machine.one("docker").settings == {"socket": str(machine.root / "run/docker.sock")}


def test_a_file_in_the_place_of_dockers_socket_is_none(machine: Machine) -> None:
    machine.has("run/docker.sock")
    assert machine.components() == []


def test_dockers_socket_that_may_not_be_used_is_left_out_with_what_helps(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine.root / "run").mkdir()
    monkeypatch.chdir(machine.root / "run")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("docker.sock")
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        assert machine.components() == []
        assert "add the user to the group" in machine.left_out()["run/docker.sock"]


def test_the_logs_of_pods_are_found(machine: Machine) -> None:
    machine.has("var/log/pods/default_api-0_1234/api/0.log")
    assert machine.components() == ["kubernetes"]
    pattern = machine.one("kubernetes").settings["include"][0]
    assert glob.glob(pattern) == [str(machine.root / "var/log/pods/default_api-0_1234/api/0.log")]


def test_gpus_are_found(machine: Machine) -> None:
    machine.has("dev/nvidia0", "dev/nvidia1", "dev/nvidiactl", "proc/driver/nvidia/version")
    assert (machine.one("gpu_metrics").what, machine.one("gpu_metrics").settings) == ("2 GPUs", {})


def test_xids_are_told_once_where_the_kernels_messages_are_read_too(machine: Machine) -> None:
    machine.has("dev/nvidia0", "dev/kmsg")
    assert machine.one("gpu_metrics").settings == {"xid_events": False}


def test_the_machine_itself_is_read(machine: Machine) -> None:
    machine.has("proc/stat")
    assert machine.components() == ["host_metrics"]


@pytest.mark.parametrize("missing", KNOWN)
def test_what_this_emp_pipe_cannot_read_is_no_finding(machine: Machine, missing: str) -> None:
    machine.has_program("journalctl")
    machine.has("proc/stat", "dev/nvidia0", "var/log/journal/0123/system.journal", "workspace/logs/api-out.log")
    machine.known = tuple(name for name in KNOWN if name != missing)
    assert missing not in {component.partition("/")[0] for component in machine.components()}


# --- what is made of it -----------------------------------------------------------------------------------------------


def test_each_finding_is_a_receiver_with_where_it_was_found_as_its_place(machine: Machine) -> None:
    machine.has("proc/stat", "workspace/logs/api-out.log")
    layer = Layer()
    machine.found().put(layer)
    assert layer.values["receivers"]["host_metrics"] == {}
    assert layer.values["receivers"]["tail/pm2"]["include"] == [f"{machine.root}/workspace/logs/*.log"]
    assert layer.places["receivers", "tail/pm2"].startswith("found: PM2 and its applications, ")


def test_the_table_says_what_is_read_by_whom_and_why(machine: Machine) -> None:
    machine.has("workspace/logs/api-out.log", "workspace/logs/api-combined.log")
    said = table(machine.found())
    assert said[0].split() == ["reads", "by", "where", "why"]
    assert [word for word in ("PM2", "tail/pm2", "/workspace/logs/*.log", "1 file") if word not in said[1]] == []
    assert said[2].split() == ["left", "out", "why"]
    assert "api-combined.log" in said[3]


def test_what_is_written_down_is_what_was_found(machine: Machine) -> None:
    machine.has("proc/stat", "dev/nvidia0", "dev/kmsg", "workspace/logs/api-out.log", "var/log/app $1 'x\"/y.log")
    machine.has("workspace/ComfyUI/logs/output-gpu0.log")
    found = machine.found()
    written: dict[str, Any] = yaml.safe_load(as_yaml(found))["receivers"]
    assert written["tail/applications"]["include"] == [f"{machine.root}/var/log/app $$1 'x\"/*.log"]
    unescaped = json.loads(json.dumps(written).replace("$$", "$"))  # `$` begins a variable, `$$` is one
    assert unescaped == {finding.component: {**finding.settings} for finding in found.findings}


def test_a_name_cannot_end_a_comment(machine: Machine) -> None:
    machine.has("workspace/logs/x\nreceivers: {}\n-combined.log", "workspace/logs/x\nreceivers: {}\n-out.log")
    assert list(yaml.safe_load(as_yaml(machine.found()))["receivers"]) == ["tail/pm2"]


@pytest.mark.parametrize(
    ("said", "has_file", "looks"),
    [("", False, True), ("", True, False), ("auto", True, False), ("on", True, True), ("off", False, False), ("ON", True, True)],
)
def test_it_is_looked_for_without_a_file_unless_the_environment_says_otherwise(said: str, has_file: bool, looks: bool) -> None:
    assert discovery.wanted({"EMP_DISCOVERY": said}, has_file=has_file) is looks


def test_another_word_than_on_off_and_auto_is_refused() -> None:
    with pytest.raises(ConfigError, match="is none of auto, on, off"):
        discovery.wanted({"EMP_DISCOVERY": "perhaps"}, has_file=False)
