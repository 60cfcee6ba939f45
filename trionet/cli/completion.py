"""``trionet completion``: what makes the Tab key know the commands and options."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

from trionet.errors import ConfigurationError

__all__ = ["completion"]


Shell = Literal["bash", "zsh", "fish"]
SHELLS: tuple[Shell, ...] = ("bash", "zsh", "fish")


def completion(shell: Shell | None = None, /) -> int:
    """Print the completion script of a shell.

    Examples::

      eval "$(trionet completion bash)"        in ~/.bashrc
      trionet completion zsh > ~/.zfunc/_trionet
      trionet completion fish > ~/.config/fish/completions/trionet.fish

    Args:
        shell: for which shell; without this the one that $SHELL names
    """
    from trionet.cli.main import build

    own = Path(os.environ.get("SHELL", "")).name
    chosen = shell or next((name for name in SHELLS if name == own), None)
    if chosen is None:
        raise ConfigurationError("which shell? Say bash, zsh or fish")
    sys.stdout.write(build().generate_completion(shell=chosen))
    return 0
