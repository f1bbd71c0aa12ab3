"""What the store keeps of a run's or a study's page in the tracking server, so that it can be made again."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from hasten.platform.identity import RunIdentity
from hasten.platform.provenance import Provenance
from hasten.trainers.store import Folder

_FILE: Final = "tracking.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keepsake:
    """A run as the tracking server showed it, where it came from, and the small files that it began with."""

    identity: RunIdentity
    source: Provenance
    files: Mapping[str, bytes] = field(default_factory=dict)


def write(
    uri: str, identity: RunIdentity, source: Provenance, files: Mapping[str, bytes] | None = None
) -> None:
    """Keep it in the folder of the run or the study, in place of an earlier one.

    Raises:
        Fault: the storage failed.
    """
    texts = {path: content.decode() for path, content in (files or {}).items()}
    content = {"identity": identity.document(), "provenance": source.document(), "files": texts}
    Folder(uri).write(_FILE, json.dumps(content, indent=1).encode())


def read(uri: str) -> Keepsake | None:
    """What is kept there; None where nothing is, or nothing that can be read.

    Raises:
        Fault: the storage failed.
    """
    content = Folder(uri).read(_FILE)
    if content is None:
        return None
    try:
        known = json.loads(content)
        return Keepsake(
            identity=RunIdentity.from_document(known["identity"]),
            source=Provenance.from_document(known["provenance"]),
            files={path: text.encode() for path, text in known["files"].items()},
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        log.warning("%s/%s is damaged and is passed over: %s", uri, _FILE, error)
        return None
