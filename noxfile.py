"""Every check of the project, one session each: `nox` runs the default ones, `nox -l` lists all.

Arguments behind `--` reach the tool of the session: `nox -s tests-3.13 -- -k handshake -x`.
Dependencies and Python versions are read from pyproject.toml; nothing is listed twice.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"  # test with what the machine has, do not go and fetch
# A Python that is not here is skipped with a line, also where CI is set.
nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "yes"

ROOT = Path(__file__).parent
PARALLEL = ("-n", "auto")  # one process for each core; `-- -n 0` shows prints and reaches a debugger
ALL = ("-m", "not browser")
# Tests that start supervisors, workers, brokers and examples take a fifth of the time and depend little on Python: they
# run on the newest and on the oldest one. `-- -m "not browser"` runs them anywhere.
QUICK = ("-m", "not browser and not processes")
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
SUPPORTED = nox.project.python_versions(PYPROJECT)


def interpreters() -> dict[str, Path]:
    """Return a working CPython for each supported version this machine has.

    A file on PATH is not enough: the shims of a version manager exist for versions that are not active and
    then fail, so each candidate is asked for its version.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")
    found: dict[str, Path] = {}
    for version in SUPPORTED:
        name = f"python{version}"
        candidates = [Path(sys.base_prefix, "bin", name)]
        candidates += [Path(folder, name) for folder in os.get_exec_path()]
        candidates += sorted(pyenv.glob(f"{version}.*/bin/{name}"), reverse=True)
        for path in filter(Path.exists, candidates):
            ask = "import sys; print(sys.implementation.name, '%d.%d' % sys.version_info[:2])"
            answer = subprocess.run([path, "-I", "-c", ask], capture_output=True, text=True, check=False)
            if answer.stdout.strip() == f"cpython {version}":
                found[version] = path
                break
    return found


FOUND = interpreters()
OLDEST, NEWEST = next(iter(FOUND), SUPPORTED[0]), next(reversed(FOUND), SUPPORTED[-1])
# Tests start hundreds of interpreters, which would compile everything each time where PYTHONDONTWRITEBYTECODE is set.
os.environ.setdefault("UV_COMPILE_BYTECODE", "1")
# nox and uv look on PATH only; the folders go in front so that a broken shim is not met first.
_folders = dict.fromkeys(str(path.parent) for path in FOUND.values())
os.environ["PATH"] = os.pathsep.join([*_folders, os.environ["PATH"]])


def install(session: nox.Session, *groups: str, extras: str = "", pins: tuple[str, ...] = ()) -> None:
    """Install the checkout as a user would, as a wheel, with dependency groups beside it."""
    requirements = nox.project.dependency_groups(PYPROJECT, *groups)
    session.install(f".{extras}", *requirements, *pins, silent=True)
    if session.venv_backend != "uv":
        # uv sees by its cache-keys that a file changed; pip would keep the old wheel.
        session.install("--force-reinstall", "--no-deps", ".", silent=True)


def lowest(requirements: list[str]) -> tuple[str, ...]:
    """Return the lowest versions that the requirements allow, as pins."""
    return tuple(requirement.replace(">=", "==") for requirement in requirements)


def existing(*names: str) -> list[str]:
    """Return those of the paths that this checkout has."""
    return [name for name in names if (ROOT / name).exists()]


# The ends of what is supported: the newest Python with the newest dependencies and, in `cover`, the oldest with the
# lowest. Those between have sessions of their own: `nox -s tests-3.12`.
nox.options.sessions = [
    "lint",
    "typing",
    *(f"tests-{version}" for version in FOUND if version == NEWEST),
    "cover",
    "docs",
    "browser",
]


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format with ruff (every rule, minus those pyproject.toml names with a reason)."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "lint"), silent=True)
    session.run("ruff", "check", *session.posargs, ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def typing(session: nox.Session) -> None:
    """Check types with mypy --strict: the package, the examples, and the API as users type it."""
    install(session, "typing")
    session.run("mypy", *(session.posargs or existing("trionet", "examples", "tests/typing")))


@nox.session(python=SUPPORTED)
def tests(session: nox.Session) -> None:
    """Run the test suite on every supported Python that the machine has."""
    install(session, "test")
    marked = ALL if session.python in {OLDEST, NEWEST} else QUICK
    session.run("pytest", *PARALLEL, *marked, *session.posargs)


@nox.session(python=OLDEST)
def cover(session: nox.Session) -> None:
    """Run the suite with the lowest supported version of each dependency, and measure branch coverage.

    The bound is `fail_under` in pyproject.toml. Memory means nothing under a tracer: `tests` bounds it.
    """
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    names = ("trio-websocket", "isal", "cli", "redis", "prometheus", "otel")
    pins = lowest([*project["dependencies"], *(pin for name in names for pin in extras[name])])
    install(session, "cover", pins=pins)
    session.run("coverage", "erase")
    session.run(
        "coverage", "run", "-m", "pytest", *PARALLEL, "-m", "not browser and not measured", *session.posargs
    )
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")
    # The tests talk to a current websockets; of the lowest one only the C mask is ours to check.
    session.install(*lowest(extras["speed"]), silent=True)
    check = (
        "from trionet.wire.masking import apply_mask as a, apply_mask_py as b; k = b'abcd'; d = bytes(300); "
    )
    session.run("python", "-c", check + "assert a is not b and a(d, k) == b(d, k)", silent=True)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation (warnings are errors) and run its examples."""
    install(session, "docs")
    out = ROOT / "docs" / "_build"
    strict = ("-n", "-W", "--keep-going", "-q")
    session.run("sphinx-build", *strict, "-b", "html", "docs", str(out / "html"), *session.posargs)
    session.run("sphinx-build", *strict, "-b", "doctest", "docs", str(out / "doctest"))
    session.run("python", "-m", "doctest", "README.md")


@nox.session
def browser(session: nox.Session) -> None:
    """Drive the examples in headless Chromium (CHROMIUM names one that is not on PATH)."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        session.skip(f"no Chromium: none of {', '.join(names)} is on PATH and CHROMIUM is not set")
    install(session, "browser")
    session.run("pytest", "-m", "browser", *session.posargs, env={"CHROMIUM": chromium})


@nox.session(default=False)
def conformance(session: nox.Session) -> None:
    """Run the Autobahn fuzzing client against examples/echo.py; 12 and 13, compression, take most of the time."""
    install(session, extras="[speed]")
    session.run("python", "tests/conformance/autobahn.py", *session.posargs)


@nox.session(default=False)
def conformance_client(session: nox.Session) -> None:
    """Run trionet's client against the Autobahn fuzzing server."""
    install(session, extras="[speed]")
    session.run("python", "tests/conformance/autobahn_client.py", *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure examples/echo.py against floors and peers in one run; `-- --quick` is short."""
    install(session, "bench", extras="[speed]")
    session.run("python", "tests/bench/bench.py", *session.posargs)


@nox.session(default=False)
def million(session: nox.Session) -> None:
    """Hold a million connections on this machine and measure them; `-- --connections N` for any other number."""
    install(session, extras="[cli,speed]")
    session.run("python", "tests/bench/million.py", *session.posargs)


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Run the property tests with very many more examples."""
    install(session, "test")
    session.run("pytest", "-m", "hypothesis", "--hypothesis-profile=fuzz", "--timeout=0", *session.posargs)
