"""Sphinx configuration; `nox -s docs` builds with every warning an error."""

from __future__ import annotations

import trionet

project = "trionet"
author = "trionet contributors"
copyright = "2026, trionet contributors"
version = release = trionet.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.doctest"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "trionet"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_default_options = {"members": True, "show-inheritance": True}

# The build needs no network, hence no inventories of other projects: what is not ours is not a link.
# A reference to trionet itself must resolve.
nitpick_ignore_regex = [
    ("py:.*", r"(?!trionet\.).*"),
    # What signatures mention and nobody outside needs: the machinery's own words.
    (
        "py:class",
        r"trionet\..*\.(Parked|Waiter|Rare|RequestBody|ProtocolInterface|AcceptGate|Control|Chunk|_\w+)",
    ),
    ("py:class", r"trionet\..*\.(RawStream|StreamConnection|Codec|Format|Receiver|ControlledBus)"),
    ("py:(class|obj)", r"trionet\..*\.(S|M|M_co)"),  # type variables
]


def resolve_public_alias(app, env, node, contnode):
    """Link `trionet.protocols.websocket.WebSocket` to `trionet.WebSocket`, where it is documented."""
    name = node.get("reftarget", "").rpartition(".")[2]
    if node.get("refdomain") != "py" or name not in trionet.__all__:
        return None
    target = f"trionet.{name}"
    if target == node["reftarget"]:
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, contnode)


def setup(app):
    """Register the resolver."""
    app.connect("missing-reference", resolve_public_alias)
