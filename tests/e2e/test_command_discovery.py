"""`emp-pipe edge` without configuration on a machine that has something to read, and `emp-pipe init edge`: the real command."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.command import Running, free_port, run, running, until
from tests.support.command_bench import rows_in


class Machine:
    """A tree that stands for a machine, and an edge on it."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "machine"
        self.data_dir = directory / "data"
        self.variables = {"EMP_DISCOVERY": "auto", "EMP_DISCOVERY_ROOT": str(self.root), "MACHINE_ID": "gpu-test"}
        self.arguments = ["edge", "--data-dir", str(self.data_dir), "--set", f"http.listen=127.0.0.1:{free_port()}"]
        self.arguments += ["--set", f"receivers.forward.listen=127.0.0.1:{free_port()}"]
        self.log("workspace/logs/api-out.log", "from the application")
        self.log("workspace/logs/api-combined.log", "from the application")
        self.log("workspace/ComfyUI/logs/output-gpu0.log", "from ComfyUI")

    def log(self, path: str, line: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as lines:
            lines.write(f"{line}\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def _messages(machine: Machine) -> list[str]:
    return sorted(row["message"] for row in rows_in(machine.data_dir))


def _said(command: Running, part: str) -> list[str]:
    return [message for message in command.messages() if part in message]


def test_an_edge_without_configuration_reads_what_its_machine_has_and_says_so(machine: Machine) -> None:
    with running(*machine.arguments, **machine.variables) as command:
        until(lambda: len(_messages(machine)) == 2, "a line of each")
        machine.log("workspace/logs/api-out.log", "another")
        until(lambda: len(_messages(machine)) == 3, "the next line")
        command.process.terminate()
        assert command.wait() == 0
    assert _messages(machine) == ["another", "from ComfyUI", "from the application"], "the combined file repeats the other"
    assert _said(command, "tail/pm2")
    assert _said(command, "tail/comfyui")
    assert _said(command, "api-out.log holds the same lines")
    assert {row.get("service_type") for row in rows_in(machine.data_dir) if row["message"] == "from ComfyUI"} == {"comfyui"}


def test_with_a_file_an_edge_reads_what_the_file_says(machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "emp.yaml"
    file.write_text("log_level: info\n")
    shown = run(*machine.arguments, "--config", str(file), "--print-config", **machine.variables).stdout
    assert "tail/pm2" not in shown
    assert "forward:" in shown


def test_with_a_file_it_can_look_around_all_the_same(machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "emp.yaml"
    file.write_text("receivers: {tail/comfyui: false}\n")
    variables = machine.variables | {"EMP_DISCOVERY": "on"}
    shown = run(*machine.arguments, "--config", str(file), "--print-config", **variables).stdout
    assert "tail/pm2:" in shown
    assert "tail/comfyui:" not in shown, "the file has the last word"


def test_the_table_at_the_start_says_what_the_file_leaves_out(machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "emp.yaml"
    file.write_text("receivers: {tail/comfyui: false}\n")
    with running(*machine.arguments, "--config", str(file), **machine.variables | {"EMP_DISCOVERY": "on"}) as command:
        until(lambda: _messages(machine) == ["from the application"], "what the file did not leave out")
    assert _said(command, "the configuration leaves tail/comfyui out")
    assert not _said(command, "ComfyUI's logs")


def test_a_reload_that_finds_the_same_says_it_no_second_time(machine: Machine) -> None:
    with running(*machine.arguments, **machine.variables) as command:
        until(lambda: len(_messages(machine)) == 2, "a line of each")
        command.signal(signal.SIGHUP)
        until(lambda: _said(command, "reloaded"), "the reload")
        command.process.terminate()
        assert command.wait() == 0
    assert len(_said(command, "tail/pm2  ")) == 1


def test_it_can_be_switched_off(machine: Machine) -> None:
    shown = run(*machine.arguments, "--print-config", **machine.variables | {"EMP_DISCOVERY": "off"}).stdout
    assert "tail/" not in shown


def test_a_central_looks_for_nothing(machine: Machine) -> None:
    shown = run("central", "--data-dir", str(machine.data_dir), "--print-config", **machine.variables).stdout
    assert "tail/pm2" not in shown


def test_where_each_receiver_was_found_is_shown(machine: Machine) -> None:
    shown = run(*machine.arguments, "--print-config", **machine.variables).stdout
    (line,) = (line for line in shown.splitlines() if line.strip().startswith("tail/pm2:"))
    assert "# found: PM2 and its applications" in line
    assert str(machine.root / "workspace/logs") in line


def test_a_wrong_word_is_named(machine: Machine) -> None:
    refused = run(*machine.arguments, "--print-config", **machine.variables | {"EMP_DISCOVERY": "perhaps"})
    assert refused.returncode == 2
    assert "EMP_DISCOVERY" in refused.stderr


def test_a_reload_reads_what_has_come_since(machine: Machine) -> None:
    with running(*machine.arguments, **machine.variables) as command:
        until(lambda: len(_messages(machine)) == 2, "a line of each")
        machine.log("var/log/nginx/error.log", "from nginx")
        command.signal(signal.SIGHUP)
        until(lambda: "from nginx" in _messages(machine), "the line of what came later")
        until(lambda: _said(command, "nginx's access and error logs"), "the table with what came later")
        assert len(_said(command, "tail/pm2  ")) == 2, "the table is said whole"


def test_what_was_found_can_be_written_down_and_used(machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "found.yaml"
    made = run("init", "edge", "--output", str(file), **machine.variables)
    assert made.returncode == 0, made.stderr
    assert "tail/pm2" in made.stderr
    assert "# Left out:" in file.read_text()
    checked = run("validate", "--role", "edge", str(file), **machine.variables)
    assert checked.returncode == 0, checked.stderr
    with running(*machine.arguments, "--config", str(file), **machine.variables):
        until(lambda: _messages(machine) == ["from ComfyUI", "from the application"], "a line of each")


def test_a_file_that_is_there_is_overwritten_only_by_force(machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("mine")
    refused = run("init", "edge", "--output", str(file), **machine.variables)
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    assert file.read_text() == "mine"
    assert run("init", "edge", "--output", str(file), "--force", **machine.variables).returncode == 0
    assert "tail/pm2:" in file.read_text()


def test_without_a_file_what_was_found_is_printed(machine: Machine) -> None:
    printed = run("init", "edge", **machine.variables)
    assert printed.returncode == 0
    assert "  tail/pm2:\n" in printed.stdout
    assert "  # PM2 and its applications: 1 file\n" in printed.stdout
