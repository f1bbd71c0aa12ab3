"""Secrets taken out of what is shown and kept: a command line, an address, the difference to a commit."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Final

HIDDEN: Final = "[redacted]"

_SHORTEST: Final = 6  # characters of a value that is looked for: shorter ones are also words
_FOLDERS: Final = frozenset({"PWD", "OLDPWD"})  # not what their names say
# What a secret's name ends with: AWS_SECRET_ACCESS_KEY, db.password, hub-token.
_NAMES: Final = (
    r"(?:(?<![A-Za-z])pass|password|passwd|passphrase|pwd|secrets?|tokens?|credentials?|auth|authorization"
    r"|bearer|signature|(?:api|access|private|secret|account|encryption|signing|session)[_.-]?key(?:[_.-]?id)?)"
)
_NAME: Final = re.compile(f"{_NAMES}$", re.IGNORECASE)
_OPTION: Final = re.compile(r"--?[A-Za-z][\w.-]*")
_SETTING: Final = re.compile(r"(?P<name>[A-Za-z_][\w.-]*)(?P<between>\s*[=:]\s*)(?P<value>\S.*)", re.DOTALL)
_QUOTED: Final = r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'"
_START: Final = rf"(?P<name>[\w.-]*{_NAMES})(?P<between>[\"']?\s*[=:]\s*)"
_IN_TEXT: Final = re.compile(rf"{_START}(?:{_QUOTED}|(?:(?:Bearer|Basic)\s+)?[^\s\"',;&}}]+)", re.IGNORECASE)
# In code a name says little, `tokens = split(text)` is no secret: a literal, or a line of a settings file.
_IN_CODE: Final = (
    re.compile(rf"{_START}(?:{_QUOTED})", re.IGNORECASE),
    re.compile(
        rf"(?<=^[+ -])\s*(?:export\s+|-\s+)?{_START}[^\s\"'()\[\]{{}}]{{6,}}(?=\s*$)",
        re.IGNORECASE | re.MULTILINE,
    ),
)
_SHAPES: Final = (
    (re.compile(r"(?<=://)[^/\s@'\"]+@"), f"{HIDDEN}@"),  # user and password in an address
    (re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}\b"), HIDDEN),  # AWS
    (
        re.compile(r"\b(?:gh[oprsu]|github_pat|glpat|hf|dapi|npm|pypi|xox[abeprs])[_-]?[A-Za-z0-9_-]{20,}"),
        HIDDEN,
    ),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{16,}"), HIDDEN),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"), HIDDEN),  # a JSON web token
    (re.compile(r"\b(?:Bearer|Basic)\s+(?=\S*[0-9=])[A-Za-z0-9+/=._~-]{8,}"), HIDDEN),
    (
        re.compile(
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
        ),
        HIDDEN,
    ),
)


def is_secret(name: str) -> bool:
    """Whether a variable, an option or a key is one whose value nobody should see, by its name."""
    return bool(_NAME.search(name))


def command_line(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """A command line as a shell takes it, without the values of secrets.

    ``environment`` is ``os.environ`` unless given: the values of its secret variables are looked for, too.
    """
    shown: list[str] = []
    hides_next = False
    for argument in arguments:
        is_option = _OPTION.fullmatch(argument) is not None
        shown.append(HIDDEN if hides_next and not is_option else _argument(argument, environment))
        hides_next = is_option and is_secret(argument)
    return " ".join(part if HIDDEN in part and "'" not in part else shlex.quote(part) for part in shown)


def text(words: str, environment: Mapping[str, str] | None = None) -> str:
    """Any text without what looks like a secret, by its name or its shape."""
    return _IN_TEXT.sub(_hidden, _by_shape(words, environment))


def patch(words: str, environment: Mapping[str, str] | None = None) -> str:
    """The difference to a commit without what looks like a secret; its code stays as it is."""
    words = _by_shape(words, environment)
    for place in _IN_CODE:
        words = place.sub(_hidden, words)
    return words


def _hidden(found: re.Match[str]) -> str:
    return found.string[found.start() : found.end("between")] + HIDDEN


def _argument(argument: str, environment: Mapping[str, str] | None) -> str:
    dashes = argument[: len(argument) - len(argument.lstrip("-"))]
    setting = _SETTING.fullmatch(argument[len(dashes) :])
    if setting and is_secret(setting["name"]):
        return f"{dashes}{setting['name']}{setting['between']}{HIDDEN}"
    return text(argument, environment)


def _by_shape(words: str, environment: Mapping[str, str] | None) -> str:
    for value in _values(os.environ if environment is None else environment):
        words = words.replace(value, HIDDEN)
    for shape, instead in _SHAPES:
        words = shape.sub(instead, words)
    return words


def _values(environment: Mapping[str, str]) -> list[str]:
    """The values of secret variables, the longest first: one may be a part of another."""
    found = {
        value
        for name, value in environment.items()
        if is_secret(name) and name not in _FOLDERS and len(value) >= _SHORTEST
    }
    return sorted(found, key=len, reverse=True)
