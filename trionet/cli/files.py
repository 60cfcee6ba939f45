"""Which TOML file has the settings, and what it says."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import attrs

from trionet.cli.settings import TABLE
from trionet.errors import ConfigurationError

__all__ = ["Document", "find_document"]

_IN_PYPROJECT = ("tool", "trionet", TABLE)


@attrs.frozen
class Document:
    """A file that was read: `content` is it parsed, `table` where in it the settings are, `source` its text."""

    file: str
    table: tuple[str, ...]
    content: dict[str, Any]
    source: str


def find_document(path: str | None, folder: str = ".") -> Document | None:
    """Read the file at `path`; without one ``trionet.toml`` in `folder`, else ``pyproject.toml`` if it has the table.

    Raises `ConfigurationError` for a file that cannot be read or is no TOML.
    """
    if path is not None:
        return _read(Path(path))
    own = Path(folder, "trionet.toml")
    if own.exists():
        return _read(own)
    project = Path(folder, "pyproject.toml")
    if project.exists():
        document = _read(project)
        part: Any = document.content
        for name in _IN_PYPROJECT:
            part = part.get(name) if isinstance(part, dict) else None
        if part is not None:
            return document
    return None


def _read(path: Path) -> Document:
    try:
        source = path.read_text("utf-8")
        content = tomllib.loads(source)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is no TOML: {error}") from error
    table = _IN_PYPROJECT if path.name == "pyproject.toml" else (TABLE,)
    return Document(str(path), table, content, source)
