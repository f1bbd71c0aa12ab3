"""How commands say things: what went wrong, and how long something takes."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from hasten.trainers.errors import HastenError


def say(error: HastenError) -> None:
    """Print an error that a user can act on, to stderr."""
    console = Console(stderr=True, highlight=False)
    console.print(Text.assemble(("error ", "bold red"), str(error)), soft_wrap=True)


def duration(seconds: float) -> str:
    """A length of time as people say it: ``95 s``, ``40 min``, ``7 h 05 min``, ``12 d``."""
    if seconds < 120:
        return f"{max(seconds, 0.0):.0f} s"
    minutes = int(seconds // 60)
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes < 48 * 60 else f"{minutes // 1440} d"
