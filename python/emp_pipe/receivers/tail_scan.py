"""Which files the patterns name, and which directories have to be watched so that a new one is seen.

Not here: how directories are watched (`tail_watch.py`), what is done with the files (`tail_reader.py`).
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch

_MOST_DIRECTORIES = 8192


class Patterns:
    """Globs of what is read, and of what of it is not; `**` is any number of directories. `reads` may leave out more files, by path."""

    def __init__(self, include: Sequence[str], exclude: Sequence[str], reads: Callable[[str], bool] | None = None) -> None:
        self._include = [os.path.abspath(os.path.expanduser(pattern)) for pattern in include]
        self._exclude = [os.path.expanduser(pattern) for pattern in exclude]
        self._reads = reads

    def excluded(self, path: str) -> bool:
        """Return whether a path, or its last part, is named by `exclude`."""
        name = os.path.basename(path)
        return any(fnmatch(name, pattern) or fnmatch(path, pattern) for pattern in self._exclude)

    def files(self, refuse: Callable[[str, str], None]) -> dict[str, os.stat_result]:
        """Return the regular files, by path. `refuse` is told of what is none, and of what cannot be looked at."""
        found: dict[str, os.stat_result] = {}
        for path in self._paths():
            if path in found or self.excluded(path):
                continue
            try:
                known = os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                refuse(path, f"it cannot be looked at ({error.strerror})")
                continue
            if stat.S_ISREG(known.st_mode):
                if self._reads is None or self._reads(path):
                    found[path] = known
            elif not stat.S_ISDIR(known.st_mode):
                refuse(path, "not_regular")
        return found

    def _paths(self) -> Iterator[str]:
        for pattern in self._include:
            yield from sorted(glob.iglob(pattern, recursive=True, include_hidden=True))

    def directories(self) -> tuple[set[str], bool]:
        """Return the directories in which a matching file or directory may appear, and whether all that are named outright are there."""
        found: set[str] = set()
        complete = True
        for pattern in self._include:
            parts = pattern.split(os.sep)
            magic = next((index for index, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
            fixed = os.sep.join(parts[:magic]) or os.sep
            complete = complete and os.path.isdir(fixed)
            for level in range(magic, len(parts)):
                above = os.sep.join(parts[:level]) or os.sep
                found.update(path.rstrip(os.sep) or os.sep for path in glob.iglob(above + os.sep, recursive=True, include_hidden=True))
                if len(found) > _MOST_DIRECTORIES:
                    return found, False
        return found, complete
