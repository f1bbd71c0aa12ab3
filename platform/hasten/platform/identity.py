"""What makes a run in the tracking server the same run: its experiment and its identity tags.

A run is found again by these and continued, whoever killed it and whichever launcher goes on with it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from hasten.trainers.errors import ConfigError

KIND: Final = "kind"
NAME: Final = "hasten.name"
FINGERPRINT: Final = "hasten.fingerprint"
STUDY: Final = "hasten.study"
TRIAL: Final = "hasten.trial"
ARM: Final = "hasten.arm"
SEED: Final = "hasten.seed"
ATTEMPT: Final = "hasten.attempt"
STOPPED_BY: Final = "hasten.stopped_by"
NOTE: Final = "mlflow.note.content"

_SEARCHED: Final = (NAME, FINGERPRINT, STUDY, TRIAL)
_SEARCHED_STUDY: Final = (STUDY,)  # a study is its name: editing its arms does not make it another one


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """The data that a run saw: ``digest`` is its manifest's, ``source`` a URI without credentials."""

    name: str
    digest: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIdentity:
    """A run as the tracking server should show it.

    ``kind`` is ``trial``, ``study``, ``run`` or whatever else the views filter by. ``params`` are dotted
    keys and hold only what identifies the run. ``note`` is Markdown for the run's page.
    """

    experiment: str
    name: str
    kind: str = "run"
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    parent_run_id: str | None = None
    note: str = ""
    dataset: Dataset | None = None

    def searched(self) -> dict[str, str]:
        """The tags that tell this run from every other run of its experiment."""
        keys = _SEARCHED_STUDY if self.kind == "study" and STUDY in self.tags else _SEARCHED
        tags = {NAME: self.name, **self.tags}
        return {KIND: self.kind} | {key: tags[key] for key in keys if key in tags}

    def slug(self) -> str:
        """A folder name that is the same for the same run, and readable."""
        searched = self.searched()
        identity = json.dumps([self.experiment, sorted(searched.items())])
        name = searched.get(TRIAL) or searched.get(NAME, self.kind)
        readable = re.sub(r"[^A-Za-z0-9.=_-]+", "-", f"{self.experiment}-{name}").strip("-.")[:80]
        return f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"

    def document(self) -> dict[str, Any]:
        """Plain JSON, from which ``from_document`` makes an equal identity."""
        document = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return document | {
            "tags": dict(self.tags),
            "params": {key: text(value) for key, value in self.params.items()},
            "dataset": asdict(self.dataset) if self.dataset else None,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> RunIdentity:
        dataset = document["dataset"]
        return cls(**{**document, "dataset": Dataset(**dataset) if dataset else None})


def text(value: object) -> str:
    """A parameter's value as the server shows it: numbers that read as numbers, JSON for lists."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None or isinstance(value, (list, tuple, dict)):
        return json.dumps(value, default=str)
    return str(value)


def quoted(value: str) -> str:
    """A string in a search filter, whose language has two kinds of quotes and no escape.

    Raises:
        ConfigError: the value has both kinds.
    """
    if "'" in value and '"' in value:
        raise ConfigError(value, "a name cannot have both kinds of quotes")
    return f'"{value}"' if "'" in value else f"'{value}'"
