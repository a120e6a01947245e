"""What the process does for the pipeline beside running it."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from emp_pipe.process import leave_out_of_collections
from tests.support.command import environment as command_environment


def test_what_start_up_made_is_not_walked_by_later_collections() -> None:
    thresholds = gc.get_threshold()
    try:
        leave_out_of_collections()
        objects = gc.get_objects()
        assert gc.get_freeze_count() > 10 * len(objects)
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)


_BUFFERS = """
import resource
from emp_pipe.process import keep_freed_memory

def faults_of_a_buffer() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        first, second = bytearray(400_000), bytearray(400_000)
        del first, second
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(keep_freed_memory(), faults_of_a_buffer())
"""


def kept_and_faults(**environment: str) -> tuple[str, int]:
    command = [sys.executable, "-c", _BUFFERS]
    done = subprocess.run(command, env=command_environment(**environment), capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="not run: it looks at glibc's allocator (to run it use Linux)")
def test_large_buffers_come_from_memory_that_was_there_before() -> None:
    kept, faults = kept_and_faults()
    assert kept == "True"
    assert faults < 1_000, "200 pages for each buffer once, not for each of a hundred"


def test_what_the_environment_says_of_the_allocator_stands() -> None:
    kept, _ = kept_and_faults(MALLOC_ARENA_MAX="2")
    assert kept == "False"
