"""What the README shows is what works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    if "_build" not in page.parts
    for number, block in enumerate(BLOCK.findall(page.read_text("utf-8")), 1)
]


@pytest.mark.parametrize("block", BLOCKS)
def test_example_code_runs_up_to_main(block):
    """Each Python block of the pages is a module that can be imported: names and keyword arguments exist."""
    exec(compile(block, "<page>", "exec"), {"__name__": "page"})


def test_ci_runs_the_command_of_the_readme():
    """The test command that the README gives is, to the letter, the one that CI runs last."""
    command = (ROOT / ".ci" / "run").read_text("utf-8").strip().splitlines()[-1]
    assert command in (ROOT / "README.md").read_text("utf-8").splitlines()
