"""Classes of connections put together from traits, so that an idle connection has no word for what it does not do.

A trait is a class with empty ``__slots__`` that overrides methods of `Connection` (or of a subclass, if it makes sense
for that only), calls `super`, and names in `words` what it remembers about a connection:

    class Rated(WebSocket):
        __slots__ = NO_SLOTS
        words = ("allowance",)

All words lie in one class below everything else. Classes with the same words have the same layout, so that a
connection may change its class: one that is served plain HTTP after all loses what is for WebSockets only.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from trionet.net.connection import Connection

__all__ = ["NO_SLOTS", "compose", "retarget", "room_for"]

NO_SLOTS: tuple[str, ...] = ()  # not a literal, so that mypy does not take it for all the words there are


@cache
def _layout(words: tuple[str, ...]) -> type[Connection]:
    def begin(self: Any, *args: Any) -> None:
        Connection.__init__(self, *args)
        for word in words:  # a connection may get a trait later, with its class
            setattr(self, word, None)

    return type("Layout", (Connection,), {"__slots__": words, "__init__": begin})


@cache
def _build(base: Any, traits: tuple[Any, ...], words: tuple[str, ...]) -> type[Connection]:
    own = [trait for trait in traits if issubclass(base, _target(trait))]
    # What is for all connections is closest to the wire.
    own.sort(key=lambda trait: _target(trait) is Connection)
    bases: tuple[Any, ...]
    if base.__basicsize__ > Connection.__basicsize__:  # it has words itself, and need not be exchanged
        bases, slots = (*own, base), words
    else:
        bases, slots = (*own, base, _layout(words)) if base is not Connection else (*own, _layout(words)), ()
    built: Any = type(base.__name__, bases, {"__slots__": slots, "__module__": base.__module__})
    built.made_of = (base, traits, words)
    return built  # type: ignore[no-any-return]


def _target(trait: type[Connection]) -> type:
    """What a trait is for: its first base."""
    return trait.__bases__[0]


def compose(base: type[Connection], *traits: type[Connection]) -> type[Connection]:
    """Return the class of connections that are `base` with `traits`; the first overrides the later ones.

    Those for some kind of connection override those for any.
    `base` may be composed itself. The same arguments give the same class.
    """
    kind, inner, words = _parts(base)
    for trait in traits:
        words = tuple(sorted({*words, *trait.words}))  # type: ignore[attr-defined]
    if not traits and not inner:
        return base
    return _build(kind, (*(t for t in traits if t not in inner), *inner), words)


def retarget(cls: type[Connection], base: type[Connection]) -> type[Connection]:
    """`cls` for another `base`, in the same layout: traits that are not for that base are left out.

    `base` may be composed; what it has is added, if `cls` has the words for it.
    """
    kind, added, _ = _parts(base)
    _, traits, words = _parts(cls)
    if not words and not traits:
        return base
    return _build(kind, (*(t for t in traits if t not in added), *added), words)


def room_for(*classes: type[Connection]) -> type[Connection]:
    """Return a plain `Connection` in a layout with room for all that any of `classes` remembers: it can become each.

    A word begins as None, whatever its trait would begin it with.
    """
    words = tuple(sorted({word for cls in classes for word in _parts(cls)[2]}))
    return _build(Connection, (), words) if words else Connection


def _parts(cls: Any) -> tuple[Any, tuple[Any, ...], tuple[str, ...]]:
    return vars(cls).get("made_of") or (cls, (), ())
