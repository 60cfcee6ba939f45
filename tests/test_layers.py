"""The architecture as a test: imports point downwards, `wire` does no I/O, folders have no import cycles."""

from __future__ import annotations

import ast
import graphlib
import itertools
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "trionet"

# A module may import what stands below its own rank, and its own folder. A dotted name ranks one module apart
# from its folder.
RANK = {
    "errors": 0,
    "_types": 0,
    "_version": 0,
    "wire": 1,
    "net": 1,
    "protocols": 2,
    "pubsub": 2,
    "ops.limits": 2,
    "ops.collector": 2,  # and tunes the garbage collector while it runs
    "server": 3,
    "bus": 3,  # the bus as browsers speak to it: pubsub and protocols joined
    "adapters": 4,
    "ops": 4,
    "client": 4,
    "testing": 4,
    "cli": 5,
    "__main__": 6,
    "__init__": 6,
}

# What `wire` must not know: I/O, clocks, randomness, threads, event loops.
IMPURE = {
    "asyncio",
    "datetime",
    "io",
    "mmap",
    "multiprocessing",
    "os",
    "pathlib",
    "random",
    "secrets",
    "select",
}
IMPURE |= {
    "selectors",
    "signal",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "trio",
    "uuid",
}


class Import(NamedTuple):
    """One module named by an import statement, and whether it is left out when the importer is loaded."""

    name: str
    deferred: bool


def module_of(path: Path) -> str:
    """Return the dotted name of a source file, with `__init__` spelled out."""
    return ".".join(["trionet", *path.relative_to(PACKAGE).with_suffix("").parts])


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def resolved(name: str) -> str:
    """Return the name under which MODULES has a module or package, or the name itself."""
    return f"{name}.__init__" if f"{name}.__init__" in MODULES else name


def imports(module: str) -> list[Import]:
    """Return every module that the source of `module` imports, at the top or inside a function."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    deferred = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, (ast.FunctionDef, ast.AsyncFunctionDef))
        or (isinstance(block, ast.If) and ast.unparse(block.test).endswith("TYPE_CHECKING"))
        for statement in block.body
        for node in ast.walk(statement)
    }
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(module.split(".")[: -node.level]) if node.level else ""
            origin = ".".join(filter(None, [base, node.module]))
            # `from package import module` names the module, `from module import name` only where it lives.
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                names.append(inner if inner in MODULES or resolved(inner) in MODULES else origin)
        found += [Import(name, id(node) in deferred) for name in names]
    return found


def ranked(module: str) -> str:
    """Return the longest prefix of a trionet module that RANK knows."""
    parts = module.split(".")[1:]
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in RANK:
            return ".".join(parts[:length])
    pytest.fail(f"{module} has no rank: say in RANK what it may import")


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module):
    """A module knows its own folder and lower layers only, also for type checkers."""
    home = ranked(module)
    for name, _ in imports(module):
        assert name != "trionet" or home == "__main__", f"{module} imports the package root"
        if name.startswith("trionet."):
            other = ranked(name)
            assert other == home or RANK[other] < RANK[home], f"{module} imports {name}, sideways or upwards"


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("trionet.wire.")])
def test_wire_does_no_io(module):
    """The sans-I/O layer is handed bytes, times and random keys; it fetches none."""
    assert not {name.split(".")[0] for name, _ in imports(module)} & IMPURE


@pytest.mark.parametrize("folder", sorted({name.rpartition(".")[0] for name in MODULES}))
def test_folders_have_no_import_cycle(folder):
    """Within a folder the modules have an order in which they load; what is chosen later may close a ring."""
    graph = {
        module: {
            resolved(name)
            for name, deferred in imports(module)
            if not deferred and resolved(name).rpartition(".")[0] == folder and resolved(name) != module
        }
        for module in MODULES
        if module.rpartition(".")[0] == folder
    }
    try:
        order = list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
    assert set(order) == set(itertools.chain(graph, *graph.values()))
