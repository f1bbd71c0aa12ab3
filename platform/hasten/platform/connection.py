"""The services of a command, with lines on the screen for those that have to be started first."""

from __future__ import annotations

from rich.console import Console

from hasten.platform import settings
from hasten.platform.services import Services, connect
from hasten.platform.stack.parts import Event
from hasten.platform.stack_cli import StackProgress


def connected(console: Console, *, tracking: bool = False, ray: bool = False) -> Services:
    """The storage, and the other services that are asked for.

    Raises:
        ConfigError: the bucket is missing, its credentials are refused, or this machine cannot run the stack.
        Fault: a service does not start or does not answer.
    """
    with StackProgress(console) as lines:

        def tell(event: Event) -> None:
            if event.kind != "found":  # what runs already is not worth a line
                lines.tell(event)

        return connect(settings.load(), tracking=tracking, ray=ray, tell=tell)
