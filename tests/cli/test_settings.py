"""The settings of `trionet serve`: which source counts, and what is said about each that is wrong."""

from __future__ import annotations

import tomllib

import pytest

from trionet.cli.files import find_document
from trionet.cli.settings import error_text, read
from trionet.cli.values import FIELDS
from trionet.errors import ConfigurationError
from trionet.ops.settings import ServeSettings, processors


def from_toml(source, options=None, environ=None):
    """Read with a trionet.toml of this text."""
    return read({"app": "x:y", **(options or {})}, environ or {}, tomllib.loads(source), source=source)


def test_an_option_counts_more_than_the_environment_and_that_more_than_the_file():
    """Each of three settings comes from the most important source that has it."""
    found = read(
        {"app": "x:y", "port": "1"},
        {"TRIONET_PORT": "2", "TRIONET_GRACE": "2"},
        {"serve": {"port": 3, "grace": 3, "backlog": 3}},
    )
    values = found.checked()
    assert (values.port, values.grace, values.backlog) == (1, 2.0, 3)
    kinds = [found.origins[name].kind for name in ("port", "grace", "backlog", "host")]
    assert kinds == ["option", "environment", "file", "default"]


@pytest.mark.parametrize(
    "name, text, value",
    [
        ("port", "0", 0),
        ("workers", "auto", processors()),
        ("workers", "3", 3),
        ("grace", "1.5", 1.5),
        ("debug", "Yes", True),
        ("reload", "off", False),
        ("unix_mode", "660", 0o660),
        ("unix_mode", "0o600", 0o600),
        ("max_memory", "512M", 512 << 20),
        ("max_memory", "2 GiB", 2 << 30),
        ("max_memory", "none", None),
        ("worker_timeout", "none", None),
        ("log_level", "WARNING", "warning"),
        ("reload_dirs", "src, lib", ("src", "lib")),
    ],
)
def test_a_text_is_read_as_what_the_setting_is(name, text, value):
    """Numbers, flags, sizes, permissions and lists as people write them into a variable."""
    needs = {"unix_mode": {"unix": "/s"}, "debug": {"admin": "127.0.0.1:1"}}
    found = read({"app": "x:y", **needs.get(name, {})}, {f"TRIONET_{name.upper()}": text})
    assert getattr(found.checked(), name) == value


def test_the_values_of_toml_have_their_types():
    """A number, a list, a flag and a text, as TOML has them."""
    values = from_toml(
        '[serve]\nport = 0\ngrace = 3\nreload_dirs = ["a", "b"]\nreload = true\nhost = "::1"'
    ).checked()
    assert (values.port, values.grace, values.reload_dirs) == (0, 3, ("a", "b"))
    assert (values.reload, values.host) == (True, "::1")


def test_every_wrong_setting_is_named_with_its_source():
    """All errors come at once; each says where the value was set, what it is, and what it may be."""
    found = from_toml(
        '# shop\n[serve]\nworkers = "many"\nreload_dirs = [1]\n', {"port": "70000"}, {"TRIONET_GRACE": "soon"}
    )
    assert found.values is None
    assert sorted(found.errors) == [
        "environment variable TRIONET_GRACE is 'soon'; it must be a number",
        "option --port is 70000; it must be a port, 0 to 65535 (0: any free one)",
        "trionet.toml:3: workers is 'many'; it must be a number, or auto",
        'trionet.toml:4: reload_dirs is (1,); it must be a list of texts, as ["src", "lib"]',
    ]
    assert error_text(found.errors).startswith("4 settings are wrong\n  ")


@pytest.mark.parametrize(
    "name, text, part",
    [
        ("port", "http", "must be a whole number"),
        ("port", "-1", "0 to 65535"),
        ("debug", "perhaps", "must be true or false"),
        ("unix_mode", "rw", "as chmod takes them"),
        ("max_memory", "much", "a number of bytes"),
        ("max_loop_lag", "nan", "must be a number"),
        ("max_loop_lag", "0", "greater than 0"),
        ("overload_action", "panic", "one of wait, reset, answer"),
        ("log_format", "xml", "one of text, logfmt, json"),
        ("pool_size", "0", "1 or greater"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(name, text, part):
    """Whatever the kind of setting, the error names the option, the value and what it must be."""
    (error,) = read({"app": "x:y", name: text}, {}).errors
    assert error.startswith(f"option --{name.replace('_', '-')} is ")
    assert text.lower() in error
    assert part in error


@pytest.mark.parametrize(
    "line, error",
    [
        ("port = true", "port is true; it must be a whole number"),
        ("debug = 1", "debug is 1; it must be true or false"),
        ("host = 1", "host is 1; it must be text in quotes"),
        ("grace = nan", "grace is nan; it must be a number"),
        ("port = 80.5", "port is 80.5; it must be a whole number"),
        ("log_format = 1", "log_format is 1; it must be one of text, logfmt, json"),
        ("prot = 1", "prot is no setting; did you mean port?"),
        ("max-connections = 1", "max-connections is no setting; did you mean max_connections?"),
        ("[serve.tls]", "tls is no setting"),
    ],
)
def test_a_file_is_held_to_the_types_and_names(line, error):
    """A wrong type, or a key that is none, is an error with its line."""
    assert from_toml(f"[serve]\n{line}\n").errors == [f"trionet.toml:2: {error}"]


def test_a_setting_outside_the_table_is_not_ignored():
    """Keys at the top of trionet.toml, and tables it has not, are errors that say what to do."""
    assert from_toml("port = 1\n[sevre]\ngrace = 1\n").errors == [
        "trionet.toml:1: port belongs in the table [serve]; write [serve] above it",
        "trionet.toml:2: sevre is no table of this file; did you mean serve?",
    ]


def test_what_the_environment_has_for_others_is_let_be():
    """A near miss is warned of; what Kubernetes puts there, and what is empty, does not stop the server."""
    environ = {
        "TRIONET_PORT": "tcp://10.0.0.1:80",
        "TRIONET_SERVICE_HOST": "10.0.0.1",
        "TRIONET_WORKER": "4",
        "TRIONET_UNIX": "",
        "TRIONET_CONFIG": "x.toml",
    }
    found = read({"app": "x:y"}, environ)
    assert found.checked().port == 8080
    first, second = found.warnings
    assert "enableServiceLinks" in first
    assert second == "environment variable TRIONET_WORKER is no setting; did you mean TRIONET_WORKERS?"


@pytest.mark.parametrize(
    "options, part",
    [
        ({"tls_key": "k"}, "option --tls-key: there is no certificate to it; set tls_cert"),
        ({"unix_mode": "600"}, "option --unix-mode: there is no Unix socket; set unix"),
        (
            {"unix": "/s", "port": "1"},
            "option --unix and option --port: only one place to listen is possible",
        ),
        ({"drain_window": "9", "grace": "3"}, "option --drain-window is 9, longer than grace (3)"),
        ({"debug": "1"}, "option --debug: /debug/ is served on the admin address; set admin"),
        ({"admin": "9090"}, "option --admin is '9090'; it must be host:port, or unix:/path"),
        ({"admin": "unix:"}, "option --admin names no path"),
        ({"admin": "0.0.0.0:9"}, "option --admin is '0.0.0.0:9', which other machines reach"),
        ({"admin": "10.0.0.1:9"}, "by --admin-public (TRIONET_ADMIN_PUBLIC=1)"),
        ({"admin": ":8080"}, "8080 is the port of the server"),
        ({"unix": "/s", "admin": "unix:/s"}, "option --admin is the path of the server itself"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options, part):
    """One error, which names where the setting was set that cannot be."""
    (error,) = read({"app": "x:y", **options}, {}).errors
    assert part in error


@pytest.mark.parametrize("admin", ["127.0.0.1:9", "[::1]:9", "localhost:9", "unix:/run/a", ":9"])
def test_an_admin_address_that_only_this_machine_reaches_is_taken(admin):
    """The loopback addresses and Unix sockets need no permission."""
    assert read({"app": "x:y", "admin": admin}, {}).checked().admin == admin


def test_a_public_admin_address_is_taken_when_told():
    """As in a container, by the environment."""
    environ = {"TRIONET_ADMIN": "0.0.0.0:9", "TRIONET_ADMIN_PUBLIC": "1"}
    assert read({"app": "x:y"}, environ).checked().admin == "0.0.0.0:9"


def test_the_place_to_listen_of_the_more_important_source_wins():
    """An option --unix takes the place of the host and port of a file, which count as not given."""
    found = from_toml('[serve]\nhost = "::1"\nport = 1', {"unix": "/s"})
    values = found.checked()
    assert (values.unix, values.host, values.port) == ("/s", "127.0.0.1", 8080)
    assert found.origins["port"].kind == "default"


def test_without_anything_to_serve_it_says_how_to_say_it():
    """The application may come from anywhere, but has to."""
    (error,) = read({}, {}).errors
    assert "TRIONET_APP" in error
    assert read({}, {}, need_app=False).checked().app == ""
    with pytest.raises(ConfigurationError, match="nothing to serve"):
        read({}, {}).checked()


def test_what_was_read_is_the_settings():
    """A setting that nobody sets has the default of `ServeSettings`, whatever that is."""
    assert read({"app": "x:y"}, {}).checked() == ServeSettings(app="x:y")
    assert set(read({}, {}).origins) == set(FIELDS)


# --- the file


def test_the_file_is_looked_for_in_the_folder(tmp_path):
    """trionet.toml, else pyproject.toml if it has the table; else none."""
    assert find_document(None, str(tmp_path)) is None
    project = tmp_path / "pyproject.toml"
    project.write_text("[project]\nname = 'x'\n")
    assert find_document(None, str(tmp_path)) is None
    project.write_text("[tool.trionet.serve]\nport = 1\n\n[tool.trionet.sevre]\n")
    document = find_document(None, str(tmp_path))
    assert document is not None
    found = read({"app": "x:y"}, {}, document.content, table=document.table, source=document.source, file="p")
    assert (found.checked().port, found.origins["port"].label) == (1, "p:2: port")
    (tmp_path / "trionet.toml").write_text("[serve]\nport = 2\n")
    document = find_document(None, str(tmp_path))
    assert document is not None
    assert document.content == {"serve": {"port": 2}}


@pytest.mark.parametrize(
    "content, part",
    [(None, "cannot be read: No such file"), (b"port = ", "is no TOML"), (b"\xff", "is not UTF-8")],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, part):
    """Absent, no TOML, no text: each says which file and why."""
    path = tmp_path / "shop.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=part) as caught:
        find_document(str(path))
    assert str(path) in str(caught.value)
