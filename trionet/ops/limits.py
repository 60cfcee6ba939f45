"""How many descriptors the system grants: each connection needs one."""

from __future__ import annotations

import logging

__all__ = ["DEFAULT_RESERVE", "connections_that_fit", "raise_descriptor_limit"]

log = logging.getLogger("trionet")

#: Descriptors kept for listeners, pollers, files and libraries.
DEFAULT_RESERVE = 64


def descriptor_limit() -> tuple[int, int] | None:
    """Soft and hard RLIMIT_NOFILE (setrlimit(2)); None where there is no such limit, as on Windows."""
    try:
        import resource
    except ImportError:  # pragma: no cover
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = 2**31
    return (
        unlimited if soft == resource.RLIM_INFINITY else soft,
        unlimited if hard == resource.RLIM_INFINITY else hard,
    )


def raise_descriptor_limit() -> tuple[int, int] | None:
    """Raise the soft limit to the hard one; returns both as they are then. A refusal is logged, not raised."""
    limit = descriptor_limit()
    if limit is None or limit[0] >= limit[1]:
        return limit
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        log.warning("the limit on open files stays at %d: %s", limit[0], error)
    return descriptor_limit()


def connections_that_fit(reserve: int = DEFAULT_RESERVE) -> int:
    """Connections that fit into the soft limit, besides `reserve` descriptors for everything else."""
    limit = descriptor_limit()
    return max(1, limit[0] - reserve) if limit is not None else 2**31
