"""Which source files have changed: for restarting while developing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

__all__ = ["changed_sources"]

_SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages", "build", "dist", "venv"})
_MOST = 20_000  # files: a home directory by mistake must not keep a processor busy


def changed_sources(folders: Iterable[str], known: dict[str, float]) -> list[str]:
    """Paths of Python and TOML files below `folders` that changed since `known`, which is brought up to date.

    The first call, with an empty `known`, reports nothing. Hidden folders are left out, and where a virtual
    environment or a build puts its files.
    """
    first = not known
    found: dict[str, float] = {}
    for folder in folders:
        for path in _sources(folder):
            try:
                found[path] = os.stat(path).st_mtime
            except OSError:
                continue
            if len(found) >= _MOST:
                break
    changed = [] if first else [path for path, time in found.items() if known.get(path) != time]
    if not first:
        changed += [path for path in known if path not in found]
    known.clear()
    known.update(found)
    return changed


def _sources(folder: str) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _SKIPPED]
        for name in files:
            if name.endswith((".py", ".toml")):
                yield f"{root}{os.sep}{name}"
