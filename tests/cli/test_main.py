"""The `trionet` command: its help, its errors, its exit codes; in this process, by `main`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import trionet
from trionet.cli import main as main_module
from trionet.cli import output, run
from trionet.cli.main import COMMANDS, main
from trionet.cli.serve import default_text
from trionet.cli.values import FIELDS
from trionet.errors import ConfigurationError

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    """A folder without settings, an environment without them, 80 columns."""
    monkeypatch.chdir(tmp_path)
    for name in ("TRIONET_CONFIG", "TRIONET_ADMIN", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


def broken(error):
    """A command that ends by an exception."""

    def build(_):
        def app(_):
            raise error

        return app

    return build


def test_the_help_lists_commands_and_exit_codes(capsys):
    """What a stranger needs fits into 80 columns."""
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert f"\n  {name} " in text
    for code in ("0  ", "1  ", "2  ", "130"):
        assert f"\n  {code}" in text
    assert max(map(len, text.splitlines())) <= 80


def test_without_arguments_it_is_the_help(capsys):
    """A name alone explains itself."""
    assert main([]) == 0
    assert "Commands:" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys):
    """With what else a report of a problem needs."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"trionet {trionet.__version__} (Python 3.")


def test_help_imports_no_command():
    """The list of commands is quick: none of their modules is loaded for it."""
    ask = (
        "import sys; from trionet.cli.main import main; main(['--help']); "
        "print([name for name in sys.modules if name.startswith('trionet.cli.')], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True, cwd=ROOT)
    names = {"trionet.cli.main", "trionet.cli.output", "trionet.cli.help"}
    assert set(eval(done.stderr.strip().splitlines()[-1])) == names


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_page_of_help(capsys, name):
    """Each is there, has its docstring, and fits into 80 columns but for the examples."""
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: trionet {name}")
    assert len(text.splitlines()) > 5
    assert max(len(line) for line in text.splitlines() if "trionet" not in line) <= 100


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["sevre"], "error: there is no command 'sevre' here; did you mean serve?"),
        (["--verison"], "error: there is no option '--verison' here; did you mean --version?"),
        (["serve", "--prot", "1"], "error: Unknown option: --prot. Did you mean --port?"),
        (["serve", "a", "b"], "error: there is one argument too many: 'b'"),
        (["serve", "a", "--port", "x"], "error: option --port is 'x'; it must be a whole number"),
        (["serve", "a", "--config", "no.toml"], "error: no.toml cannot be read: No such file or directory"),
        (["serve", "a", "--json"], "error: option --json goes with --show-settings"),
        (["serve", "a", "--tls-cert", "no.pem"], "error: option --tls-cert"),
        (["serve", "a", "--reload-dirs", "none-here"], "error: option --reload-dirs: there is no folder"),
        (["demo", "chatt"], "error: there is no demo 'chatt'; did you mean chat?"),
        (["demo", "chat", "--port", "70000"], "error: option --port is 70000; it must be a port"),
        (["health", "ftp://x/"], "error: 'ftp://x/' is not what can be asked"),
        (["health"], "error: whom to ask? Give a URL"),
        (["completion", "tcsh"], "error: Invalid value"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_says_why(capsys, arguments, said):
    """The error names what was given and what is near or allowed; nothing goes to stdout."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(said)
    assert captured.out == ""


@pytest.mark.parametrize(
    "error, code", [(KeyboardInterrupt(), 130), (ConfigurationError("no"), 2), (BrokenPipeError(), 1)]
)
def test_an_exception_that_is_no_bug_is_an_exit_code(monkeypatch, error, code):
    """Interrupted, misconfigured, or read no further: no traceback."""
    monkeypatch.setattr(main_module, "build", broken(error))
    monkeypatch.setattr(main_module.os, "dup2", lambda *_: None)
    with Path("out").open("w", encoding="utf-8") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert main(["serve"]) == code


def test_an_exception_that_is_a_bug_is_shown(monkeypatch):
    """What nobody expected is not hidden."""
    monkeypatch.setattr(main_module, "build", broken(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["serve"])


def test_without_the_extra_it_says_how_to_get_it(monkeypatch, capsys):
    """One line on stderr, and exit code 2."""
    monkeypatch.delitem(sys.modules, "trionet.cli.main")
    monkeypatch.setitem(sys.modules, "cyclopts", None)
    assert run(["--help"]) == 2
    assert capsys.readouterr().err == (
        "trionet: the command needs cyclopts, which the extra brings: pip install 'trionet[cli]'\n"
    )


def test_another_module_that_is_missing_is_no_matter_of_the_extra(monkeypatch):
    """A broken installation shows itself."""
    monkeypatch.delitem(sys.modules, "trionet.cli.main")
    monkeypatch.setitem(sys.modules, "trionet.cli.help", None)
    with pytest.raises(ModuleNotFoundError, match=r"trionet\.cli\.help"):
        run(["--help"])


def test_the_completion_script_knows_the_options(capsys):
    """All commands, and the options of `serve`."""
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert "--max-connections-per-address" in script
    assert "complete -F" in script


def test_the_wheel_has_the_script_and_the_demo():
    """What pyproject.toml says of the command is there to be installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["scripts"]["trionet"] == f"{run.__module__}:{run.__name__}"
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert all(Path(ROOT, source, "__init__.py").exists() for source in included)


def test_the_page_has_every_setting():
    """docs/howto/command.md has a row for each: its name, its default and its help, as the command has them."""
    page = (ROOT / "docs" / "howto" / "command.md").read_text("utf-8")
    rows = [
        f"| `{name}` | {default_text(field) or ''} | {field.metadata['help'].replace('|', chr(92) + '|')} |"
        for name, field in FIELDS.items()
    ]
    if [line for line in page.splitlines() if line.startswith("| `")] != rows:
        pytest.fail("the rows of the table have to be:\n" + "\n".join(rows))


# --- what is printed


def test_a_table_in_a_pipe_has_whole_lines(capsys, monkeypatch):
    """Not folded, not cut, no brackets taken for markup, no colour."""
    monkeypatch.delenv("COLUMNS")
    output.show_table(("name", "n"), [("x" * 200, "1"), ("[/bold]", "22")], title="all", right=("n",))
    title, head, first, second = capsys.readouterr().out.splitlines()
    assert title == "all"
    assert head == f"{'name':<200}   n"
    assert first == "x" * 200 + "   1"
    assert second == f"{'[/bold]':<200}  22"


def test_a_table_on_a_terminal_folds(capsys, monkeypatch):
    """It has the width of the terminal; colours only if NO_COLOR is not set."""
    monkeypatch.setattr(output.Console, "is_terminal", True)
    monkeypatch.setenv("NO_COLOR", "1")
    output.show_table(("name", "n"), [("[x]" * 60, "1")], title="all")
    text = capsys.readouterr().out
    assert "\x1b[3" not in text
    text = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("[x]") > 50


def test_json_is_one_document(capsys):
    """Indented, or on one line; what JSON has not is refused."""
    output.emit_json({"a": "ü"})
    output.emit_json({"a": [1, None]}, compact=True)
    assert capsys.readouterr().out == '{\n  "a": "ü"\n}\n{"a":[1,null]}\n'
    with pytest.raises(ValueError, match="float"):
        output.emit_json(float("nan"))


# --- trionet serve --show-settings


def test_show_settings_says_where_each_comes_from(capsys, monkeypatch, tmp_path):
    """A table of all settings; what is secret is not shown, and is no option."""
    (tmp_path / "trionet.toml").write_text("[serve]\nport = 81\n")
    monkeypatch.setenv("TRIONET_TLS_KEY_PASSWORD", "geheim")
    monkeypatch.delenv("COLUMNS")
    assert main(["serve", "x:y", "--show-settings", "--max-memory", "1G"]) == 2
    assert "there is no certificate to it" in capsys.readouterr().err
    assert main(["serve", "--tls-key-password", "x"]) == 2
    capsys.readouterr()
    monkeypatch.delenv("TRIONET_TLS_KEY_PASSWORD")
    assert main(["serve", "x:y", "--show-settings", "--max-memory", "1G", "--no-debug"]) == 0
    rows = {line.split()[0]: line.split(None, 2)[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["port"] == ["81", "trionet.toml:2: port"]
    assert rows["max_memory"] == ["1073741824", "option --max-memory"]
    assert rows["debug"] == ["false", "option --debug"]
    assert rows["grace"] == ["30"]
    assert "geheim" not in str(rows)


def test_show_settings_as_json(capsys):
    """The same for programs; without an application, too."""
    assert main(["serve", "--show-settings", "--json", "--workers", "2"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["workers"] == {"value": 2, "from": "option", "source": "option --workers"}
    assert shown["app"]["value"] is None
