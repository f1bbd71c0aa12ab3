"""The model registry: MLflow's second door."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException

from hasten.platform.identity import FINGERPRINT
from hasten.platform.registry import packaging
from hasten.trainers.errors import Fault

CHAMPION: Final = "champion"
PREVIOUS: Final = "previous"
CHALLENGER: Final = "challenger"
CALIBRATION: Final = "hasten.calibration"
"""The tag of a version with the URIs of its recipe's runs under other seeds, as JSON."""
RUN_URI: Final = "hasten.run_uri"
"""The tag of a registered version that leads to its run."""
# Its bars would mix with ours.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
_OF_A_RUN: Final = re.compile(r"/runs/[^/]+-([0-9a-f]{12})(?:/|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of a registered model."""

    number: str
    run_id: str
    tags: Mapping[str, str]
    made: float = 0.0
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Registry:
    """The versions of one registered model. Every method raises ``Fault`` where the server fails."""

    uri: str
    model: str

    def versions(self) -> list[Version]:
        """All versions, newest first."""
        with self._speaking():
            found = self._client().search_model_versions(f"name = '{self.model}'")
            return sorted((_version(each) for each in found), key=lambda each: -int(each.number))

    def champion(self) -> Version | None:
        """The version that carries the alias ``champion``."""
        return self.aliased(CHAMPION)

    def aliased(self, alias: str) -> Version | None:
        """The version that carries an alias."""
        with self._speaking():
            try:
                return _version(self._client().get_model_version_by_alias(self.model, alias))
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise

    def register(
        self,
        folder: Path,
        *,
        run_id: str,
        tags: Mapping[str, str],
        metadata: Mapping[str, str] = {},
        note: str = "",
    ) -> Version:
        """Upload a packaged model as an output of its run, and make it a version.

        Args:
            folder: from :func:`hasten.trainers.generation.packaged.write`.
            run_id: of the run that trained it.
            tags: of the version, there as soon as it is.
            metadata: what goes into the model itself.
            note: of the version, in Markdown.
        """
        with self._speaking(), packaging.packed(folder, metadata) as model:
            client = self._client()
            run = client.get_run(run_id)
            logged = client.create_logged_model(
                run.info.experiment_id, name=self.model, source_run_id=run_id, model_type="hasten"
            )
            client.log_model_artifacts(logged.model_id, str(model))
            client.finalize_logged_model(logged.model_id, "READY")
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
            try:
                client.create_registered_model(self.model)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            made = client.create_model_version(
                self.model,
                source=logged.artifact_location,
                run_id=run_id,
                tags=dict(tags),
                description=note,
                model_id=logged.model_id,
                await_creation_for=0,
            )
            return _version(made)

    def download(self, version: Version, folder: Path) -> Path:
        """Everything that a version holds, below ``folder``; where its packaged model lies there."""
        with self._speaking():
            place = download_artifacts(
                f"models:/{self.model}/{version.number}", dst_path=str(folder), tracking_uri=self.uri
            )
        return Path(place) / packaging.PIPELINE

    def aliases(self) -> dict[str, str]:
        """Which version each alias names."""
        with self._speaking():
            try:
                found = self._client().get_registered_model(self.model)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return {}
                raise
            return {alias: str(number) for alias, number in found.aliases.items()}

    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        with self._speaking():
            for key, value in tags.items():
                self._client().set_model_version_tag(self.model, version.number, key, value)

    def nominate(self, version: Version) -> None:
        """Let the alias ``challenger`` name a version."""
        with self._speaking():
            self._client().set_registered_model_alias(self.model, CHALLENGER, version.number)

    def promote(self, version: Version) -> None:
        """Make a version the champion; the one that was it keeps the alias ``previous``.

        ``previous`` moves first: a crash in between leaves the old champion in place, and whoever does it
        again repairs it.
        """
        known = self.aliases()
        with self._speaking():
            client, old = self._client(), known.get(CHAMPION)
            if old is not None and old != version.number:
                client.set_registered_model_alias(self.model, PREVIOUS, old)
            client.set_registered_model_alias(self.model, CHAMPION, version.number)
            if known.get(CHALLENGER) == version.number:
                client.delete_registered_model_alias(self.model, CHALLENGER)

    def _client(self) -> MlflowClient:
        return _client(self.uri)

    def _speaking(self) -> AbstractContextManager[None]:
        return _speaking(self.uri)


def models(uri: str) -> dict[str, dict[str, str]]:
    """The registered models at a server, and which version each of their aliases names.

    Raises:
        Fault: the server failed.
    """
    with _speaking(uri):
        client, token, found = _client(uri), None, {}
        while True:
            page = client.search_registered_models(page_token=token)
            for model in page:
                found[model.name] = {alias: str(number) for alias, number in model.aliases.items()}
            token = page.token
            if not token:
                return found


def registered_fingerprints(uri: str) -> frozenset[str]:
    """The fingerprints of the runs that versions of any model at a server rest on.

    What a version was made from, by its tag with its run's address, else by the MLflow run that it names; and
    its recipe's runs under other seeds.

    Raises:
        Fault: the server failed.
    """
    with _speaking(uri):
        client = _client(uri)
        known: set[str] = set()
        for found in _all_versions(client):
            known.update(_fingerprints(found.tags.get(CALIBRATION, "")))
            if fingerprint := _fingerprint(client, found):
                known.add(fingerprint)
        return frozenset(known)


def _fingerprints(addresses: str) -> list[str]:
    """Of the runs whose addresses a tag lists, as JSON."""
    known = json.loads(addresses) if addresses else []
    return [found[1] for address in known if (found := _OF_A_RUN.search(address))]


def _all_versions(client: MlflowClient) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_model_versions(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _fingerprint(client: MlflowClient, found: Any) -> str | None:
    """Of the run that a version was made from; None where it is not known to be one of ours."""
    if address := _OF_A_RUN.search(found.tags.get(RUN_URI, "")):
        return address[1]
    if not found.run_id:
        return None
    try:
        tags: Mapping[str, str] = client.get_run(found.run_id).data.tags
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return tags.get(FINGERPRINT)


def _client(uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def _speaking(uri: str) -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        raise Fault(uri, f"the model registry failed: {str(error).splitlines()[0][:200]}") from error


def _version(found: Any) -> Version:
    made = found.creation_timestamp / 1000.0
    return Version(number=str(found.version), run_id=str(found.run_id), tags=dict(found.tags), made=made)
