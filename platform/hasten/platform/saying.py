"""How a command says what went wrong."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from hasten.trainers.errors import HastenError


def say(error: HastenError) -> None:
    """Print an error that a user can act on, to stderr."""
    console = Console(stderr=True, highlight=False)
    console.print(Text.assemble(("error ", "bold red"), str(error)), soft_wrap=True)
