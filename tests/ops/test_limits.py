"""Descriptor limits: raised where the system allows, reported where not."""

from __future__ import annotations

import logging

import pytest

from trionet.ops import limits

resource = pytest.importorskip("resource")


class FakeResource:
    """The calls of `resource` that are used, on limits of our own."""

    RLIMIT_NOFILE = resource.RLIMIT_NOFILE
    RLIM_INFINITY = resource.RLIM_INFINITY

    def __init__(self, soft, hard, refuse=None):
        self.limits = soft, hard
        self.refuse = refuse

    def getrlimit(self, which):
        assert which == self.RLIMIT_NOFILE
        return self.limits

    def setrlimit(self, which, new):
        if self.refuse is not None:
            raise self.refuse
        self.limits = new


@pytest.fixture
def fake(monkeypatch):
    """Return a function that puts other limits in the place of this process's."""

    def install(*args, **kwargs):
        made = FakeResource(*args, **kwargs)
        monkeypatch.setattr(resource, "getrlimit", made.getrlimit)
        monkeypatch.setattr(resource, "setrlimit", made.setrlimit)
        return made

    return install


def test_the_soft_limit_is_raised_to_the_hard_one(fake):
    """A process may raise its own soft limit, and both are returned as they are then."""
    made = fake(1024, 4096)
    assert limits.raise_descriptor_limit() == (4096, 4096)
    assert made.limits == (4096, 4096)


def test_a_limit_that_is_high_enough_is_left_alone(fake):
    """Nothing is set where nothing is to be gained."""
    fake(4096, 4096, refuse=AssertionError("must not be called"))
    assert limits.raise_descriptor_limit() == (4096, 4096)


@pytest.mark.parametrize("error", [PermissionError("no"), ValueError("not allowed")])
def test_a_refusal_is_logged_and_lived_with(fake, caplog, error):
    """A container that forbids it costs connections, not the server."""
    fake(1024, 4096, refuse=error)
    with caplog.at_level(logging.WARNING, "trionet"):
        assert limits.raise_descriptor_limit() == (1024, 4096)
    assert "the limit on open files stays at 1024" in caplog.text


@pytest.mark.parametrize(
    "soft,reserve,fit",
    [(1024, 64, 960), (100, 64, 36), (10, 64, 1), (resource.RLIM_INFINITY, 64, 2**31 - 64), (1024, 0, 1024)],
)
def test_connections_that_fit(fake, soft, reserve, fit):
    """One descriptor each, besides the reserve, and always at least one."""
    fake(soft, resource.RLIM_INFINITY)
    assert limits.connections_that_fit(reserve) == fit


def test_without_such_a_limit_there_is_room(monkeypatch):
    """Where the system has no descriptor limit, none is invented and none is raised."""
    monkeypatch.setattr(limits, "descriptor_limit", lambda: None)
    assert limits.raise_descriptor_limit() is None
    assert limits.connections_that_fit() == 2**31


def test_this_process_has_a_limit():
    """The real call answers with two numbers in order."""
    soft, hard = limits.descriptor_limit()
    assert 0 < soft <= hard
