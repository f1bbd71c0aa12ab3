"""What can go wrong in the user's words: the key or endpoint, what is wrong, what to do.

The command line prints these without a traceback and exits with ``exit_code``.
Any other exception is a defect of hasten and keeps its traceback.
"""

from __future__ import annotations

from typing import ClassVar


class HastenError(Exception):
    """A failure that a user can understand and act on.

    ``subject`` is a dotted key (``curriculum.mu``), a path or an endpoint; ``remedy`` may be empty.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, subject: str, problem: str, remedy: str = "") -> None:
        super().__init__(subject, problem, remedy)
        self.subject = subject
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        sentence = f"{self.subject}: {self.problem}"
        return f"{sentence}\n  {self.remedy}" if self.remedy else sentence


class ConfigError(HastenError):
    """Bad input: an unknown or ill-typed key, an impossible value, resources that can never be met."""

    exit_code: ClassVar[int] = 2


class Fault(HastenError):
    """The world failed: a server down, a disk full, training diverged."""


class Diverged(Fault):
    """Training ran into infinity: the same run would again."""


class Exhausted(Fault):
    """Memory did not suffice, however little was taken at a time: it would not again."""


class Lost(Fault):
    """A process went away in the middle of its work; another attempt may be spared that."""


class NodeLost(Lost):
    """A process went away because its whole machine did."""


class Away(Fault):
    """A server does not answer, or answers that it cannot: it may be back soon."""


class Stopped(HastenError):
    """Stopped before the end, in a state from which the same command resumes."""

    exit_code: ClassVar[int] = 3
