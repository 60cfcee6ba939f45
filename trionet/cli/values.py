"""What a text, or a value of TOML, means for a setting: by the type its field has in `ServeSettings`."""

from __future__ import annotations

import math
import re
import types
import typing
from typing import Any, Literal

import attrs

from trionet.ops.settings import ServeSettings

__all__ = ["FIELDS", "TYPES", "convert", "is_secret", "wording"]

FIELDS: dict[str, attrs.Attribute[Any]] = attrs.fields_dict(ServeSettings)
TYPES: dict[str, Any] = typing.get_type_hints(ServeSettings)

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def is_secret(name: str) -> bool:
    """Whether a setting is neither shown, nor an option, which everyone on the machine could read."""
    return FIELDS[name].repr is False


def convert(name: str, value: Any) -> Any:
    """Return what a text, or a value of TOML, means for a setting; raises `ValueError` for what it cannot mean."""
    wanted = TYPES[name]
    kinds = set(typing.get_args(wanted)) if isinstance(wanted, types.UnionType) else {wanted}
    if isinstance(value, str):
        if types.NoneType in kinds and value.lower() == "none":
            return None
        return _parse(name, value, kinds)
    if isinstance(value, (list, tuple)):
        fits = typing.get_origin(wanted) is tuple and all(isinstance(item, str) for item in value)
        value = tuple(value)
    elif isinstance(value, bool):  # which is an int, too
        fits = bool in kinds
    elif isinstance(value, float):
        fits = float in kinds and math.isfinite(value)
    else:
        fits = isinstance(value, int) and bool(kinds & {int, float})
    if fits:
        return value
    shown = str(value).lower() if isinstance(value, bool) else repr(value)  # as TOML has it
    raise ValueError(f"is {shown}; it must be {wording(wanted)}")


def _parse(name: str, text: str, kinds: set[Any]) -> Any:
    """Read a text as what the setting is."""
    if bool in kinds:
        if text.lower() in {"1", "true", "yes", "on"}:
            return True
        if text.lower() in {"0", "false", "no", "off"}:
            return False
        raise ValueError(f"is {text!r}; it must be true or false")
    if name == "unix_mode":  # as chmod(1) reads it
        if not re.fullmatch(r"(0o)?[0-7]+", text):
            raise ValueError(f"is {text!r}; it must be permissions as chmod takes them, as 660")
        return int(text.removeprefix("0o"), 8)
    if name == "max_memory":
        if not (size := re.fullmatch(r"(\d+)\s*([KMGT]?)(?:i?B)?", text)):
            raise ValueError(f"is {text!r}; it must be a number of bytes, as 536870912 or 512M")
        return int(size[1]) * UNITS[size[2]]
    if int in kinds:
        if re.fullmatch(r"[+-]?\d[\d_]*", text):
            return int(text)
        if FIELDS[name].converter is not None:
            return text  # it has words of its own
        raise ValueError(f"is {text!r}; it must be a whole number")
    if float in kinds:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"is {text!r}; it must be a number")
        return number
    if any(typing.get_origin(kind) is tuple for kind in kinds):
        return tuple(filter(None, (part.strip() for part in text.split(","))))
    return text


def wording(wanted: Any) -> str:
    """Say in words what type is wanted."""
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text in quotes"}
    for kind in typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,):
        if kind in words:
            return words[kind]
        if typing.get_origin(kind) is tuple:
            return 'a list of texts, as ["src", "lib"]'
        if typing.get_origin(kind) is Literal:
            return "one of " + ", ".join(typing.get_args(kind))
    return str(wanted)  # pragma: no cover - a type that has no words yet
