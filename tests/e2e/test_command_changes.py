"""The real command: a reload changes what changed, and plugins are found, run, and lose nothing when they fail."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest
from fluent import sender

from tests.support.command import ROOT, free_port, run, running
from tests.support.command_bench import Bench, rows_in, send, wait_for_rows


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_sighup_swaps_what_changed_and_leaves_the_rest_up(bench: Bench) -> None:
    second_port = free_port()
    with running(*bench.arguments) as process:
        client = sender.FluentSender("app", host="127.0.0.1", port=bench.port, timeout=20.0)
        assert client.emit(None, {"message": "before"})
        wait_for_rows(bench.data_dir, 1)
        said = len(process.messages())
        bench.write(
            receivers=f'{{forward: {{listen: "127.0.0.1:{bench.port}"}}, forward/new: {{listen: "127.0.0.1:{second_port}"}}}}',
            processors="{enrich: {attributes: {region: eu}}}",
            exporters="{file: , noop: }",
        )
        process.signal(signal.SIGHUP)
        process.wait_for("reloaded: started forward/new, noop; changed the processors", after=said)
        assert client.emit(None, {"message": "after"})  # the connection of the receiver that did not change is still up
        client.close()
        send(second_port, 1)
        rows = {row["message"]: row for row in wait_for_rows(bench.data_dir, 3)}
        assert "region" not in rows["before"]
        assert rows["after"]["region"] == "eu"
        assert set(bench.groups()) == {"file", "noop"}
        said = len(process.messages())
        bench.write(exporters="{file: {max_files: 3}}")
        process.signal(signal.SIGHUP)
        process.wait_for("reloaded: stopped forward/new, noop; changed file; changed the processors", after=said)
        assert set(bench.groups()) == {"file"}
        send(bench.port, 1, start=10)
        wait_for_rows(bench.data_dir, 4)


def test_sighup_with_a_wrong_file_changes_nothing_and_says_why(bench: Bench) -> None:
    with running(*bench.arguments) as process:
        bench.write(exporters="{fiel: }")
        process.signal(signal.SIGHUP)
        said = process.wait_for("was not reloaded")
        assert f"{bench.file}:7: exporters.fiel" in said
        assert "did you mean 'file'?" in said
        send(bench.port, 1)
        wait_for_rows(bench.data_dir, 1)


def test_sighup_with_a_port_that_is_taken_leaves_the_rest_up_and_says_so(bench: Bench) -> None:
    with socket.socket() as other, running(*bench.arguments) as process:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        bench.write(receivers=f'{{forward: {{listen: "127.0.0.1:{bench.port}"}}, forward/new: {{listen: "127.0.0.1:{taken}"}}}}')
        process.signal(signal.SIGHUP)
        process.wait_for("reloaded")
        assert bench.get("/readyz")[0] == 503
        send(bench.port, 1)
        wait_for_rows(bench.data_dir, 1)


def test_sighup_with_other_rules_for_records_applies_them_to_what_comes_next(bench: Bench) -> None:
    with running(*bench.arguments) as process:
        send(bench.port, 1)
        wait_for_rows(bench.data_dir, 1)
        bench.write(more="normalize: {stamp: {region: eu}}")
        process.signal(signal.SIGHUP)
        process.wait_for("reloaded: changed forward")
        send(bench.port, 1, start=1)
        rows = {row["message"]: row for row in wait_for_rows(bench.data_dir, 2)}
    assert "region" not in rows["record 0"]
    assert rows["record 1"]["region"] == "eu"


def test_sighup_takes_a_key_that_has_changed_in_its_file_on_both_sides(bench: Bench, tmp_path: Path) -> None:
    secure, key_file = free_port(), tmp_path / "key"
    key_file.write_text("old")
    (tmp_path / "central").mkdir()
    at_central = Bench(tmp_path / "central")
    at_central.write(receivers=f'{{forward: {{listen: "127.0.0.1:{secure}", shared_key: {{file: {key_file}}}}}}}')
    bench.write(exporters=f'{{forward: {{endpoint: "127.0.0.1:{secure}", shared_key: {{file: {key_file}}}}}}}')
    with running(*at_central.arguments) as central, running(*bench.arguments) as edge:
        send(bench.port, 1)
        wait_for_rows(at_central.data_dir, 1)
        key_file.write_text("new")
        central.signal(signal.SIGHUP)
        central.wait_for("reloaded")
        edge.signal(signal.SIGHUP)
        edge.wait_for("reloaded: changed forward")
        send(bench.port, 1, start=1)
        wait_for_rows(at_central.data_dir, 2)
        assert bench.get("/readyz")[0] == 200


def test_a_failing_plugin_loses_nothing_and_is_named(bench: Bench) -> None:
    plugin = "tests.support.failing_processor:Failing"
    bench.write(processors=f'{{"{plugin}": }}')
    with running(*bench.arguments) as process:
        send(bench.port, 30)
        wait_for_rows(bench.data_dir, 30)
        process.wait_for(f"{plugin}: the processor failed on")
        assert bench.metric("emp_pipe_processor_failed_records_total", component=plugin) == 30


def test_a_failing_plugin_that_shall_stop_stops_with_an_error_that_names_it(bench: Bench) -> None:
    plugin = "tests.support.failing_processor:FailingAndStopping"
    bench.write(processors=f'{{"{plugin}": {{on_error: stop}}}}')
    with running(*bench.arguments) as process:
        send(bench.port, 1)
        assert process.wait() == 1
        assert any(line.startswith(f"emp-pipe: {plugin}: the processor failed on 1 records") for line in process.lines)
    assert rows_in(bench.data_dir) == []


def test_the_example_plugin_marks_slow_jobs(bench: Bench) -> None:
    bench.write(processors='{"slow_jobs:SlowJobs": {limit_ms: 100}}')
    with running(*bench.arguments, PYTHONPATH=str(ROOT / "examples")):
        client = sender.FluentSender("app", host="127.0.0.1", port=bench.port, timeout=20.0)
        for number, fields in enumerate(({"duration_ms": 50}, {"duration_ms": 101.5}, {})):
            assert client.emit(None, {"message": f"record {number}", **fields})
        client.close()
        rows = {row["message"]: row for row in wait_for_rows(bench.data_dir, 3)}
    assert "slow" not in rows["record 0"]
    assert rows["record 1"]["slow"] is True
    assert "slow" not in rows["record 2"]


def test_a_plugin_is_found_by_its_entry_point(bench: Bench, tmp_path: Path) -> None:
    package = tmp_path / "site"
    (package / "emp_slow-1.0.dist-info").mkdir(parents=True)
    (package / "emp_slow-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: emp-slow\nVersion: 1.0\n")
    (package / "emp_slow-1.0.dist-info" / "entry_points.txt").write_text("[emp_pipe.processors]\nslow_jobs = slow_jobs:SlowJobs\n")
    path = os.pathsep.join([str(package), str(ROOT / "examples")])
    bench.write(processors="{slow_jobs: {limit_ms: 100}}")
    assert run("validate", str(bench.file), PYTHONPATH=path).returncode == 0
    bench.write(processors="{slow_job: }")
    assert "did you mean 'slow_jobs'?" in run("validate", str(bench.file), PYTHONPATH=path).stderr
