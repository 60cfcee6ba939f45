"""The public API: what `trionet.__all__` promises is there, once, and documented."""

from __future__ import annotations

import inspect
import re
from importlib import metadata

import pytest

import trionet


def test_names_are_unique():
    """No name is listed twice."""
    assert len(trionet.__all__) == len(set(trionet.__all__))


def test_version_is_that_of_the_distribution():
    """`trionet.__version__` is what pip says, where the package is installed."""
    try:
        installed = metadata.version("trionet")
    except metadata.PackageNotFoundError:
        pytest.skip("run from a checkout that is not installed")
    assert trionet.__version__ == installed


@pytest.mark.parametrize("name", sorted(set(trionet.__all__)))
def test_name_is_there_and_documented(name):
    """Every public class and function exists and has a docstring of its own."""
    thing = getattr(trionet, name)
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        return  # a constant or a type alias; the module that defines it says what it is
    assert (thing.__doc__ or "").strip(), f"trionet.{name} has no docstring"
    if inspect.isclass(thing) and thing.__bases__ != (object,):
        assert thing.__doc__ != thing.__bases__[0].__doc__, f"trionet.{name} borrows its base's docstring"


@pytest.mark.parametrize("name", sorted(set(trionet.__all__)))
def test_public_methods_are_documented(name):
    """Every public method and property that trionet defines says what it does."""
    thing = getattr(trionet, name)
    if not inspect.isclass(thing):
        return
    for attribute, value in vars(thing).items():
        if attribute.startswith("_") or not (inspect.isroutine(value) or isinstance(value, property)):
            continue
        assert inspect.getdoc(getattr(thing, attribute)), f"trionet.{name}.{attribute} has no docstring"


def test_nothing_public_is_left_out():
    """A name without underscore at the top level is exported or a submodule."""
    public = {n for n, v in vars(trionet).items() if re.match("[A-Za-z]", n) and not inspect.ismodule(v)}
    assert public - {"annotations"} <= set(trionet.__all__)
