"""A processor plugin: marks every record of a job that took longer than a limit with `slow: true`.

Use it by its path, `processors: {"slow_jobs:SlowJobs": {limit_ms: 60000}}` (with this directory on PYTHONPATH), or install it under a
name of its own: `[project.entry-points."emp_pipe.processors"]  slow_jobs = "slow_jobs:SlowJobs"`.
"""

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from emp_pipe.component import ProcessorConfig


class SlowJobsConfig(ProcessorConfig):
    limit_ms: float = Field(60_000, description="A job that took longer is slow.")


class SlowJobs:
    CONFIG = SlowJobsConfig

    def __init__(self, id, config, context):
        self.id = id
        self.limit_ms = config.limit_ms

    def process(self, batch):
        duration_ms = pc.cast(pa.record_batch(batch.to_arrow(["duration_ms"]))["duration_ms"], pa.float64())
        slow = pc.greater(duration_ms, self.limit_ms)
        return batch.with_attributes({"slow": pc.if_else(slow, True, None)}, target="record")  # null: no attribute
