"""What the process does for the pipeline beside running it."""

from __future__ import annotations

import gc

from emp_pipe.process import leave_out_of_collections


def test_what_start_up_made_is_not_walked_by_later_collections() -> None:
    thresholds = gc.get_threshold()
    try:
        leave_out_of_collections()
        objects = gc.get_objects()
        assert gc.get_freeze_count() > 10 * len(objects)
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
