"""Which process a lease is of, so that one that died on this machine need not be waited for.

A name holds the kernel's boot, the PID namespace, the PID and when the process began. Only a process of the same boot and namespace can say
that another is dead: containers that share a machine id have namespaces of their own, machines that were cloned have boots of their own,
and a namespace's number is given again only after all in it have ended. Where the kernel does not tell, nobody is said to be dead.
"""

from __future__ import annotations

import os
from pathlib import Path


def name_of_this(machine_id: str, token: str) -> str:
    """Return a name of this process, unique with its token."""
    pid = os.getpid()
    return f"{machine_id}-{pid}-{token}@{_house()}.{pid}.{_began(pid)}"


def is_dead(name: str) -> bool:
    """Return whether the process of a name has certainly ended; False where that cannot be known from here."""
    try:
        house, pid_text, began = name.rpartition("@")[2].rsplit(".", 2)
        pid = int(pid_text)
    except ValueError:
        return False
    if not house or house != _house() or not began or pid <= 0:
        return False
    try:
        os.kill(pid, 0)  # unlike a look into /proc it is not misled where processes of other users are hidden there
    except ProcessLookupError:
        return True
    except OSError:
        return False
    now = _began(pid)
    return bool(now) and now != began


def _house() -> str:
    """Return the boot and the PID namespace; empty where the kernel does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}.{os.stat('/proc/self/ns/pid').st_ino}" if boot else ""
    except OSError:
        return ""


def _began(pid: int) -> str:
    """Return when a process began, in ticks since the boot; empty where it cannot be seen."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
