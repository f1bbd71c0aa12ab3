"""Where a run comes from: the command line, the code that it ran, and the packages around it.

The code is that of the working folder where this is in a git repository, else hasten's own checkout. Secrets
are taken out of all of it before anybody keeps it.
"""

from __future__ import annotations

import functools
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Self

from hasten.platform import redaction

COMMIT: Final = "mlflow.source.git.commit"
BRANCH: Final = "mlflow.source.git.branch"
REPOSITORY: Final = "mlflow.source.git.repoURL"
COMMAND: Final = "hasten.command"
CHANGES: Final = "hasten.git_changes"
VERSION: Final = "hasten.version"
OWN_COMMIT: Final = "hasten.commit"
PATCH: Final = "git_diff.patch"
REQUIREMENTS: Final = "requirements.txt"
LARGEST_PATCH: Final = 1_000_000  # bytes

_GIT_SECONDS: Final = 10.0
_LONGEST: Final = 4_000  # characters of a tag
_MOST_NAMES: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The command and the state of its code. Without git the last fields are empty.

    ``changes`` says in words how the working tree differs from ``commit``; ``patch`` holds the difference of
    tracked files, up to ``LARGEST_PATCH`` bytes. ``own_commit`` is hasten's, where it runs from a checkout.
    """

    command: str
    version: str
    commit: str = ""
    branch: str = ""
    repository: str = ""
    changes: str = ""
    patch: str = ""
    own_commit: str = ""

    def tags(self) -> dict[str, str]:
        known = {
            COMMAND: self.command[:_LONGEST],
            VERSION: self.version,
            COMMIT: self.commit,
            BRANCH: self.branch,
            REPOSITORY: self.repository,
            CHANGES: self.changes,
            OWN_COMMIT: self.own_commit if self.own_commit != self.commit else "",
        }
        return {name: value for name, value in known.items() if value}

    def files(self) -> dict[str, bytes]:
        """What a run keeps beside its tags."""
        return {PATCH: self.patch.encode()} if self.patch else {}

    def steps(self) -> list[str]:
        """The commands that bring back the code and the packages."""
        steps = [f"git checkout {self.commit}"] if self.commit else []
        steps += [f"git apply {PATCH}"] if self.patch else []
        return [*steps, f"pip install -r {REQUIREMENTS}"]

    def document(self) -> dict[str, str]:
        """Plain JSON, from which ``from_document`` makes an equal one."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        return cls(**{name: str(document.get(name, "")) for name in cls.__dataclass_fields__})


@functools.cache
def current() -> Provenance:
    """That of this process, looked up once."""
    return gathered(Path.cwd(), sys.argv)


def gathered(folder: Path, arguments: Sequence[str]) -> Provenance:
    """That of a command which was given in ``folder``; what git does not tell in time is left out."""
    own = _root(Path(__file__).parent)
    root = _root(folder) or own
    known: dict[str, str] = {}
    if root is not None:
        known = {
            "commit": _git(root, "rev-parse", "HEAD").strip(),
            "branch": _git(root, "symbolic-ref", "--short", "-q", "HEAD").strip(),
            "repository": redaction.text(_git(root, "remote", "get-url", "origin").strip()),
            **_difference(root),
        }
    return Provenance(
        command=redaction.command_line([_program(arguments[0]), *arguments[1:]]),
        version=metadata.version("hasten"),
        own_commit=_git(own, "rev-parse", "HEAD").strip() if own else "",
        **known,
    )


def packages() -> str:
    """What is installed here, as pip takes it; what did not come from an index is a comment."""
    lines: dict[str, str] = {}
    for found in metadata.distributions():
        name = found.metadata["Name"]
        if name:  # the first one on the path is the one that is imported
            lines.setdefault(name.lower(), _requirement(found))
    head = f"# Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    return "\n".join([head, *(lines[name] for name in sorted(lines)), ""])


def _requirement(found: metadata.Distribution) -> str:
    name, origin = found.metadata["Name"], json.loads(found.read_text("direct_url.json") or "{}")
    if "vcs_info" in origin:
        kind, commit = origin["vcs_info"]["vcs"], origin["vcs_info"]["commit_id"]
        return f"{name} @ {kind}+{redaction.text(origin['url'])}@{commit}"
    if origin:
        return f"# {name}=={found.version}, from a folder or a file"
    return f"{name}=={found.version}"


def _program(path: str) -> str:
    name = Path(path).name
    return "hasten" if name == "__main__.py" else name  # python -m hasten.platform


def _root(folder: Path) -> Path | None:
    """The working tree that a folder is in."""
    answer = _git(folder, "rev-parse", "--show-toplevel").strip()
    return Path(answer) if answer else None


def _difference(root: Path) -> dict[str, str]:
    """How the working tree differs from its commit: in words, and as a patch without secrets."""
    lines = _git(root, "status", "--porcelain", "--untracked-files=normal").splitlines()
    untracked = [line[3:] for line in lines if line.startswith("??")]
    changed = len(lines) - len(untracked)
    if not lines:
        return {"changes": "none"}
    found = {"changes": f"{changed} changed, {len(untracked)} untracked"}
    # Programs that a repository names for its differences are not run.
    patch = _git(root, "diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD") if changed else ""
    if not patch:
        return found
    names = [f"# untracked, not in here: {name}" for name in untracked[:_MOST_NAMES]]
    content = "\n".join([*names, redaction.patch(patch)])
    if len(content.encode()) > LARGEST_PATCH:
        kept = content.encode()[:LARGEST_PATCH].decode(errors="ignore").rpartition("\n")[0]
        content = f"{kept}\n# cut off after {LARGEST_PATCH:,} bytes\n"
    return found | {"patch": content}


def _git(folder: Path, *arguments: str) -> str:
    """What git prints; nothing where it is not installed, fails, or takes too long."""
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_GIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""
