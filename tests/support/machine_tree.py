"""A tree of directories that stands for a machine, for tests of what discovery finds on it."""

from __future__ import annotations

from pathlib import Path

from emp_pipe.discovery import Discovery, Finding, discover
from emp_pipe.receivers.tail_scan import Patterns

KNOWN = ("tail", "journald", "kmsg", "docker", "kubernetes", "gpu_metrics", "host_metrics", "checks")


class Machine:
    """A tree that stands for a machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.known: tuple[str, ...] = KNOWN
        self.variables = {"EMP_DISCOVERY_ROOT": str(root), "PATH": str(root / "bin")}

    def has(self, *paths: str, text: str = "a line\n") -> None:
        for path in paths:
            file = self.root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

    def has_program(self, name: str) -> None:
        self.has(f"bin/{name}")
        (self.root / "bin" / name).chmod(0o755)

    def found(self) -> Discovery:
        return discover(self.variables, self.known)

    def one(self, component: str) -> Finding:
        matching = [finding for finding in self.found().findings if finding.component == component]
        assert len(matching) == 1, self.found()
        return matching[0]

    def components(self) -> list[str]:
        return [finding.component for finding in self.found().findings]

    def read(self, component: str) -> set[str]:
        """Return the files that the tail of a finding reads, below the root, as the tail itself sees them."""
        settings = self.one(component).settings
        files = Patterns(settings["include"], settings["exclude"]).files(lambda path, why: None)
        return {str(Path(path).relative_to(self.root)) for path in files}

    def left_out(self) -> dict[str, str]:
        return {str(Path(one.where).relative_to(self.root)): one.why for one in self.found().left_out}
