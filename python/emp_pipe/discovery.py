"""What there is to read on this machine, found without configuration: which receiver reads what, why, and what is left out.

Looks at names, links and permissions only; opens no file of an application and writes nothing. A directory is listed up to a bound. It asks
by `os.path`, where `pathlib` raises for what a user may not look into (a home of root's, for most). With
`root` the machine is a tree below another directory (a host that is mounted into a container). A finding whose receiver this emp-pipe does
not have is no finding. Not here: how findings are shown and written down (`discovery_print.py`), who uses them (`cli.py`).
"""

from __future__ import annotations

import glob
import os
import shutil
import stat
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from emp_pipe.config_layer import Layer
from emp_pipe.environment import Environment, first
from emp_pipe.errors import ConfigError, ErrorKind
from emp_pipe.registry import BUILT_IN, Kind, type_of

_MOST_ENTRIES = 10_000
_MOST_HOMES = 100
_PACKED = ("*.gz", "*.bz2", "*.xz", "*.zst", "*.zip")
_COMBINED = "-combined.log"
_ROTATED = "__"
"""pm2-logrotate copies x.log to x__DATE.log: what is left out is left out under that name too."""
_COMFYUI = ("workspace/ComfyUI", "opt/ComfyUI", "root/ComfyUI", "app/ComfyUI", "ComfyUI")
_SYSTEM_JOURNAL = "system.journal"
_SYSTEM_LOGS = ("syslog", "messages", "auth.log", "secure", "kern.log", "daemon.log", "user.log")
"""What a syslog daemon writes: the journal has all of it, where there is one."""
_OF_THE_SYSTEM = frozenset(
    {*_SYSTEM_LOGS, "dpkg.log", "alternatives.log", "bootstrap.log", "fontconfig.log", "boot.log", "dnf.log", "yum.log"}
)
_FOLDERS_OF_THE_SYSTEM = frozenset(
    {"journal", "nginx", "apt", "installer", "sysstat", "unattended-upgrades", "private", "containers", "pods"}
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One receiver, with the settings that it needs here."""

    component: str
    what: str
    where: str
    why: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that is there and is not read."""

    where: str
    why: str


@dataclass(slots=True)
class Discovery:
    """Everything that was found."""

    findings: list[Finding] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def used_by(self, receivers: Container[str]) -> Discovery:
        """Return it with what a configuration does not read among what is left out."""
        unused = [
            LeftOut(one.where, f"the configuration leaves {one.component} out") for one in self.findings if one.component not in receivers
        ]
        return Discovery([one for one in self.findings if one.component in receivers], [*self.left_out, *unused])

    def put(self, layer: Layer) -> None:
        """Put a receiver for each finding into a layer, with the finding as its place."""
        for finding in self.findings:
            place = f"found: {finding.what}, {finding.where}"
            at = ("receivers", finding.component)
            layer.put(at, {}, place=place)
            layer.places[at] = place
            for key, value in finding.settings.items():
                layer.put((*at, key), value, place=place)


def wanted(environment: Environment, *, has_file: bool) -> bool:
    """Return whether to look around: without a configuration file, unless EMP_DISCOVERY says otherwise (on, off). Raises ConfigError."""
    word, _ = first(environment, "EMP_DISCOVERY")
    if word.lower() not in ("", "auto", "on", "off"):
        raise ConfigError(
            ErrorKind.CONFIG_INVALID, place="environment EMP_DISCOVERY", detail="is none of auto, on, off", advice="use one of them"
        )
    return word.lower() == "on" or (word.lower() in ("", "auto") and not has_file)


def discover(environment: Environment, known: Iterable[str] = BUILT_IN[Kind.RECEIVERS]) -> Discovery:
    """Return what this machine has, for the receivers that are `known`. EMP_DISCOVERY_ROOT: the machine's tree, where it is not `/`."""
    looking = _Looking(Path(first(environment, "EMP_DISCOVERY_ROOT")[0] or "/"), environment, frozenset(known))
    for look in (
        looking.at_journal,
        looking.at_kernel,
        looking.at_pm2,
        looking.at_comfyui,
        looking.at_nginx,
        looking.at_system_logs,
        looking.at_applications,
        looking.at_docker,
        looking.at_kubernetes,
        looking.at_gpus,
        looking.at_host,
    ):
        look()
    return looking.found


class _Looking:
    def __init__(self, root: Path, environment: Environment, known: frozenset[str]) -> None:
        self.found = Discovery()
        self._root = root
        self._environment = environment
        self._known = known
        self._folders: dict[Path, str] = {}
        """By real path, what is read of a folder: through a link it would be read twice."""
        self._has_journal = False

    # --- each kind of thing ---------------------------------------------------------------------------------

    def at_journal(self) -> None:
        for folder in ("var/log/journal", "run/log/journal"):
            place = self._root / folder
            machines = [path for path in self._entries(place) if os.path.isdir(path)]
            if not machines:
                continue
            if shutil.which("journalctl", path=first(self._environment, "PATH")[0] or os.defpath) is None:
                self._leave_out(place, "there is no journalctl here to read it with")
            elif not any(map(self._may_follow, machines)):
                self._leave_out(place, "it may not be read by this user: add the user to the group systemd-journal")
            else:
                settings = {} if self._root == Path("/") else {"directory": str(place)}
                self._has_journal = self._add("journald", "the journal", str(place), "services, logins and the kernel", settings)
            return

    def at_kernel(self) -> None:
        kmsg = self._root / "dev/kmsg"
        if self._has_journal or not os.path.exists(kmsg):
            return
        if not os.access(kmsg, os.R_OK):
            self._leave_out(kmsg, "it may not be read by this user: the kernel's messages, GPU errors among them")
            return
        settings = {} if self._root == Path("/") else {"path": str(kmsg)}
        self._add("kmsg", "the kernel's messages", str(kmsg), "there is no journal that is read", settings)

    def at_pm2(self) -> None:
        folders = [self._root / "workspace/logs"]
        homes = [home for home in (first(self._environment, "PM2_HOME")[0],) if home]
        own_home = first(self._environment, "HOME")[0]
        candidates = [*map(Path, homes), *([Path(own_home) / ".pm2"] if own_home and self._root == Path("/") else [])]
        candidates += [home / ".pm2" for home in [self._root / "root", *self._entries(self._root / "home")[:_MOST_HOMES]]]
        daemons = {os.path.realpath(path): path for folder in candidates if self._is_file(path := folder / "pm2.log")}
        readable = [path for path in daemons.values() if self._may_read(path)]
        logs = [folder / "logs" for folder in candidates]
        self._tail("pm2", "PM2 and its applications", [*logs, *folders], files=readable, own={*self._own_files()})

    def at_comfyui(self) -> None:
        installed = [self._root / place for place in _COMFYUI]
        if path := first(self._environment, "COMFYUI_PATH")[0]:
            installed.insert(0, Path(path))
        folders = [folder / name for folder in installed for name in ("logs", "user")]
        self._tail("comfyui", "ComfyUI's logs", folders, attributes={"service_type": "comfyui"})
        if there := [folder for folder in installed if os.path.isdir(folder)]:
            self._add(
                "checks", "whether each ComfyUI answers", str(there[0]), "ComfyUI is installed: those that run are asked for their queue"
            )

    def at_nginx(self) -> None:
        self._tail("nginx", "nginx's access and error logs", [self._root / "var/log/nginx"], attributes={"service.name": "nginx"})

    def at_system_logs(self) -> None:
        paths = [path for name in _SYSTEM_LOGS if self._is_file(path := self._root / "var/log" / name)]
        if paths and self._has_journal:
            for path in paths:
                self._leave_out(path, "the journal has the same lines")
            return
        readable = [path for path in paths if self._may_read(path)]
        if readable:
            where = ", ".join(map(str, readable))
            self._add(
                "tail/system",
                "the system's logs",
                where,
                "there is no journal that is read",
                {"include": [glob.escape(str(path)) for path in readable]},
            )

    def at_applications(self) -> None:
        log = self._root / "var/log"
        loose = [
            path for path in self._entries(log) if path.name.endswith(".log") and path.name not in _OF_THE_SYSTEM and self._is_file(path)
        ]
        readable = [path for path in loose if self._may_read(path)]
        folders = [path for path in self._entries(log) if path.name not in _FOLDERS_OF_THE_SYSTEM and os.path.isdir(path)]
        self._tail("applications", "logs of applications", folders, files=readable)

    def at_docker(self) -> None:
        for name in ("var/run/docker.sock", "run/docker.sock"):
            socket = self._root / name
            try:
                if not stat.S_ISSOCK(socket.stat().st_mode):
                    continue
            except OSError:
                continue
            if not os.access(socket, os.R_OK | os.W_OK):
                self._leave_out(socket, "it may not be used by this user: add the user to the group of the socket, usually docker")
                return
            settings = {} if self._root == Path("/") else {"socket": str(socket)}
            self._add("docker", "containers", str(socket), "Docker's socket is there", settings)
            return

    def at_kubernetes(self) -> None:
        pods = self._root / "var/log/pods"
        if any(os.path.isdir(path) for path in self._entries(pods)):
            settings = {} if self._root == Path("/") else {"include": [f"{glob.escape(str(pods))}/*/*/*.log"]}
            self._add("kubernetes", "pods", str(pods), "Kubernetes keeps its pods' logs there", settings)

    def at_gpus(self) -> None:
        driver = self._root / "proc/driver/nvidia/version"
        devices = [path for path in self._entries(self._root / "dev") if fnmatch(path.name, "nvidia[0-9]*")]
        if os.path.exists(driver) or devices:
            kernel_is_read = self._has_journal or any(finding.component == "kmsg" for finding in self.found.findings)
            settings = {"xid_events": False} if kernel_is_read else {}
            count = f"{len(devices)} GPU{'' if len(devices) == 1 else 's'}" if devices else "NVIDIA's driver"
            self._add("gpu_metrics", count, str(devices[0] if devices else driver), "NVIDIA's driver is loaded", settings)

    def at_host(self) -> None:
        if os.path.exists(self._root / "proc/stat"):
            self._add("host_metrics", "this machine", str(self._root / "proc"), "processors, memory, disks, network, processes")

    # --- what they share --------------------------------------------------------------------------------------

    def _add(self, component: str, what: str, where: str, why: str, settings: Mapping[str, Any] | None = None) -> bool:
        if type_of(component) not in self._known:
            return False
        self.found.findings.append(Finding(component, what, where, why, settings or {}))
        return True

    def _leave_out(self, path: Path, why: str) -> None:
        self.found.left_out.append(LeftOut(str(path), why))

    def _tail(
        self,
        name: str,
        what: str,
        folders: Iterable[Path],
        *,
        files: Iterable[Path] = (),
        attributes: Mapping[str, str] | None = None,
        own: Iterable[str] = (),
    ) -> None:
        """Add a tail of the `.log` files of folders, new ones as well, each folder once."""
        where = [str(path) for path in files]
        include, exclude, count = [*map(glob.escape, where)], [*_PACKED], len(where)
        for folder in folders:
            real = Path(os.path.realpath(folder))
            logs = [path for path in self._entries(folder) if path.name.endswith(".log") and self._is_file(path)]
            if not logs:
                if os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):
                    self._leave_out(folder, "it may not be looked into by this user")
                continue
            if real in self._folders:
                if self._folders[real] != str(folder):
                    self._leave_out(folder, f"it is the same folder as {self._folders[real]}")
                continue
            self._folders[real] = str(folder)
            mine = [path for path in logs if str(path) in own]
            for path in mine:
                self._leave_out(path, "it is emp-pipe's own")
            unread = [*mine, *self._combined([path for path in logs if path not in mine])]
            copies = tuple(f"{path.stem}{_ROTATED}" for path in unread)
            for path in unread:
                exclude += [glob.escape(str(path)), f"{glob.escape(str(path.with_suffix('')))}{_ROTATED}*.log"]
            others = [path for path in logs if path not in unread and not path.name.startswith(copies)]
            readable = [path for path in others if self._may_read(path)]
            if not readable:
                continue
            include.append(f"{glob.escape(str(folder))}/*.log")
            where.append(f"{folder}/*.log")
            count += len(readable)
        if include:
            settings = {"include": include, "exclude": exclude} | ({"attributes": dict(attributes)} if attributes else {})
            self._add(f"tail/{name}", what, ", ".join(where), f"{count} file{'' if count == 1 else 's'}", settings)

    def _combined(self, logs: list[Path]) -> list[Path]:
        """Return the files that only repeat others: PM2's `x-combined.log` beside `x-out.log` or `x-error.log`."""
        names = {path.name for path in logs}
        twice = []
        for path in logs:
            stem = path.name.removesuffix(_COMBINED)
            halves = sorted(names & {f"{stem}-out.log", f"{stem}-error.log"})
            if stem != path.name and halves:
                self._leave_out(path, f"{' and '.join(halves)} hold{'s' if len(halves) == 1 else ''} the same lines")
                twice.append(path)
        return twice

    def _own_files(self) -> Iterable[str]:
        """Return where PM2 writes what emp-pipe says itself, where PM2 has started it: reading that would feed on itself."""
        return (path for name in ("pm_out_log_path", "pm_err_log_path") if (path := first(self._environment, name)[0]))

    def _may_read(self, path: Path) -> bool:
        if os.access(path, os.R_OK):
            return True
        self._leave_out(path, "it may not be read by this user")
        return False

    @staticmethod
    def _may_follow(journal: Path) -> bool:
        """Return whether a journal tells this user of the system, and not of the user's own programs alone."""
        system = journal / _SYSTEM_JOURNAL
        return os.access(journal, os.R_OK | os.X_OK) and (not os.path.exists(system) or os.access(system, os.R_OK))

    def _entries(self, folder: Path) -> list[Path]:
        return sorted(_bounded(folder))

    @staticmethod
    def _is_file(path: Path) -> bool:
        return os.path.isfile(path)  # through a link, and no pipe or socket, which would hold a reader up


def _bounded(folder: Path) -> Iterable[Path]:
    found: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.isascii() and entry.name != entry.name.encode("utf-8", "replace").decode():
                    continue  # a name that is no text can stand in no configuration; a glob finds it all the same
                found.append(folder / entry.name)
                if len(found) >= _MOST_ENTRIES:
                    break
    except OSError:
        pass  # it is not there, or may not be listed
    return found
