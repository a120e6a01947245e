"""`emp-pipe exec` as a user who may not look everywhere. The permissions are real."""

from __future__ import annotations

import tempfile
from pathlib import Path

from emp_pipe.exec_program import find_node_package
from tests.support.nobody import nobody


def test_a_folder_on_node_s_path_that_is_closed_to_the_user_is_passed_over() -> None:
    with tempfile.TemporaryDirectory(prefix="node-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        closed, open_one = root / "closed", root / "open"
        for one in (closed / "modules/tracing", open_one / "tracing", root / "app"):
            one.mkdir(parents=True)
        closed.chmod(0)
        with nobody():
            found = find_node_package(root / "app", {"NODE_PATH": f"{closed / 'modules'}:{open_one}"}, "tracing")
        closed.chmod(0o755)
    assert found == open_one / "tracing"
