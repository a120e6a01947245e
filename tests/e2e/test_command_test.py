"""`emp-pipe test FILE`: sample lines through parsers and processors, shown and compared with what is expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command import run

_HEAD = """
receivers:
  tail/app: {include: ["/nowhere/*.log"], format: python}
  tail/web: {include: ["/nowhere/*.log"], format: nginx_access}
processors: {redact: {}}
exporters: {noop: {}}
tests:
"""
_GOOD = """
  - name: a failed job is an error
    receiver: tail/app
    lines: |
      2025-10-09 08:53:20,000 - app.web - ERROR - failed
      Traceback (most recent call last):
        File "x.py", line 1
      ValueError: bad
      2025-10-09 08:53:21,000 - app.web - INFO - next
    expect:
      - {level: error, message: failed, exception.type: ValueError, job_id: null}
      - {level: info, message: next, timestamp: "2025-10-09T08:53:21.000Z"}
  - name: a request
    receiver: tail/web
    lines: '10.0.0.7 - - [09/Oct/2025:08:53:20 +0000] "GET / HTTP/1.1" 200 31'
    expect: [{url.path: /, http.response.status_code: 200}]
"""


def _file(directory: Path, tests: str) -> str:
    path = directory / "emp.yaml"
    path.write_text(_HEAD.lstrip() + tests)
    return str(path)


def test_expectations_that_are_met_end_with_zero_and_show_the_records(tmp_path: Path) -> None:
    ended = run("test", _file(tmp_path, _GOOD))
    assert ended.returncode == 0, ended.stderr
    assert "ok a failed job is an error (2 records)" in ended.stdout
    assert '"exception.type": "ValueError"' in ended.stdout
    assert "2 tests, 0 failed" in ended.stdout
    assert list(tmp_path.iterdir()) == [tmp_path / "emp.yaml"], "nothing was opened"


@pytest.mark.parametrize(
    ("expect", "said"),
    [
        ("[{level: warn}]", 'record 1: expected level to be "warn", it is "error"'),
        ("[{job_id: job-1}]", 'record 1: expected job_id to be "job-1", it is absent'),
        ("[{level: null}]", 'record 1: expected level to be null, it is "error"'),
        ("[]", "expected 0 records, got 1"),
        ("[{level: error}, {}]", "expected 2 records, got 1"),
    ],
)
def test_an_expectation_that_is_not_met_says_what_is_there_and_ends_with_one(expect: str, said: str, tmp_path: Path) -> None:
    tests = f"  - {{name: one, receiver: tail/app, lines: 'ERROR:app:failed', expect: {expect}}}\n"
    ended = run("test", _file(tmp_path, tests))
    assert ended.returncode == 1
    assert "FAILED one" in ended.stdout
    assert said in ended.stdout


def test_processors_see_the_records(tmp_path: Path) -> None:
    tests = """
  - name: masked
    receiver: tail/app
    lines: 'password=hunter2 user=ann'
    expect: [{user: ann, password: "[redacted]"}]
"""
    ended = run("test", _file(tmp_path, tests))
    assert ended.returncode == 0, ended.stdout
    assert "hunter2" not in ended.stdout


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        ("  []\n", "has no tests"),
        ("  - {name: one, receiver: tail/ap, lines: x}\n", "did you mean tail/app?"),
        ("  - {name: one, line: x}\n", "tests.0"),
    ],
)
def test_tests_that_cannot_be_run_are_said_with_where(tests: str, said: str, tmp_path: Path) -> None:
    ended = run("test", _file(tmp_path, tests))
    assert ended.returncode == 2
    assert said in ended.stderr


def test_other_commands_leave_the_tests_alone(tmp_path: Path) -> None:
    file = _file(tmp_path, _GOOD)
    assert run("validate", file).returncode == 0
    assert "tests" not in run("run", file, "--print-config").stdout
