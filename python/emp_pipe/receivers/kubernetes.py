"""Logs of the pods of this node, as kubelet lays them out: `/var/log/pods/NAMESPACE_POD_UID/CONTAINER/N.log`, in CRI's format.

The path says whose they are; nothing is asked of the cluster. Reading, rotation (`0.log.20251124-120000.gz`) and positions are the file
tail's (`tail.py`), what a path says is in `container_files.py`.
"""

from __future__ import annotations

import asyncio

from pydantic import Field

from emp_pipe.component import ComponentConfig, Context, Intake
from emp_pipe.receivers.container_files import ResourceTail, resource_of_pod_log


class KubernetesConfig(ComponentConfig):
    """Settings of the receiver of pods' logs."""

    include: tuple[str, ...] = Field(
        ("/var/log/pods/*/*/*.log",), min_length=1, description="Globs of the files; their last three parts say whose they are."
    )


class KubernetesReceiver:
    """See the module's head."""

    def __init__(self, id: str, config: KubernetesConfig, context: Context) -> None:
        self.id = id
        self.config = config
        self._tail = ResourceTail(id, config.include, "kubernetes", context, resource_of_pod_log)

    async def run(self, intake: Intake, started: asyncio.Event) -> None:
        await self._tail.run(intake, started)

    async def stop(self, deadline_monotonic_s: float) -> None:
        await self._tail.stop(deadline_monotonic_s)


CONFIG = KubernetesConfig
COMPONENT = KubernetesReceiver
