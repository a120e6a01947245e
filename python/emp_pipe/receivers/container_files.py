"""The file tail for logs whose place says whose they are: containers' and pods'. Whose is said by the path, and by what lies beside it.

Not here: reading, rotation, positions (`tail.py`), and which containers there are (`docker.py`, `kubernetes.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence

from emp_pipe.component import Context
from emp_pipe.receivers.docker_containers import Container, of_config_file
from emp_pipe.receivers.tail import TailReceiver
from emp_pipe.receivers.tail_settings import TailConfig

_MOST_CONFIG_BYTES = 4 << 20
_POD = re.compile(r"([a-z0-9.-]+)_([a-z0-9.-]+)_([A-Za-z0-9-]+)")


class ResourceTail(TailReceiver):
    """A tail whose files' resources come from a function of their path; another may leave files out."""

    def __init__(
        self,
        id: str,
        include: Sequence[str],
        tag: str,
        context: Context,
        resource_of: Callable[[str], Mapping[str, str]],
        reads: Callable[[str], bool] | None = None,
    ) -> None:
        super().__init__(id, TailConfig.model_validate({"include": tuple(include), "tag": tag, "from_name": {}}), context)
        self._resource_of = resource_of
        self._reads = reads

    def reads(self, path: str) -> bool:
        return self._reads is None or self._reads(path)

    def resource_of(self, path: str) -> dict[str, str]:
        return {**super().resource_of(path), **self._resource_of(path)}


def container_of_log(path: str) -> Container:
    """Return the container that a json-file log is of, by the daemon's own file beside it; without one only its id is known."""
    directory = os.path.dirname(path)
    id = os.path.basename(directory)
    try:
        with open(os.path.join(directory, "config.v2.json"), "rb") as file:
            found = of_config_file(file.read(_MOST_CONFIG_BYTES))
    except OSError:
        found = None
    return found or Container(id)


def resource_of_pod_log(path: str) -> dict[str, str]:
    """Return what `…/pods/NAMESPACE_POD_UID/CONTAINER/N.log` says; nothing where a path has another form."""
    pod, container, name = path.split(os.sep)[-3:] if path.count(os.sep) >= 3 else ("", "", "")
    found = _POD.fullmatch(pod)
    if found is None or not container:
        return {}
    resource = {
        "k8s.namespace.name": found[1],
        "k8s.pod.name": found[2],
        "k8s.pod.uid": found[3],
        "k8s.container.name": container,
        "service.name": container,
        "service.namespace": found[1],
    }
    number = name.partition(".")[0]
    if number.isascii() and number.isdigit():
        resource["k8s.container.restart_count"] = number
    return resource
