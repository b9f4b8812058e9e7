"""Every version of a model, with what it was made of and how it did, in MLflow's registry.

Needs the extra ``monitor``. The default store is an SQLite file with a folder beside it; a team
gives the address of its MLflow server instead.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from shipyard.errors import MonitoringError
from shipyard.serving import Classifier, load_model

CHAMPION, PREVIOUS = "champion", "previous"  # aliases: the version that serves, the one before
FOLDER, FILE = "model", "model.onnx"

# MLflow tells about its tables, and draws a bar for a file of a few kilobytes.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


@dataclass(frozen=True)
class Entry:
    """One registered version: how it did, on which data and code it was made."""

    name: str
    version: str
    metrics: dict[str, float]
    data_version: str
    git_commit: str
    signature: dict[str, list[dict]]
    aliases: tuple[str, ...]


class Registry:
    """The versions of models at ``address``: a folder, or the address of an MLflow server.

    Raises:
        MonitoringError: from every method, where the registry is gone, locked, or lacks what
            was asked for. Whoever serves a model goes on with the one in memory.
    """

    def __init__(self, address: str | os.PathLike[str], experiment: str = "shipyard"):
        text = os.fspath(address)
        self._artifacts = None
        if "://" not in text:
            folder = Path(text).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            text = f"sqlite:///{folder / 'registry.db'}"
            self._artifacts = (folder / "artifacts").as_uri()
        with _explained("open the registry"):
            self._client = MlflowClient(tracking_uri=text, registry_uri=text)
            self._experiment = self._experiment_of(experiment)

    def _experiment_of(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found:
            return found.experiment_id
        try:
            return self._client.create_experiment(name, self._artifacts)
        except MlflowException:  # another writer was faster
            return self._client.get_experiment_by_name(name).experiment_id

    def register(
        self,
        name: str,
        path: str | os.PathLike[str],
        *,
        metrics: dict[str, float],
        data_version: str,
        git_commit: str | None = None,
    ) -> Entry:
        """Register the ONNX file at ``path`` as the next version of ``name``.

        The file is loaded first, so that what is registered can be served; its signature (names,
        types and shapes of input and output) is read from the graph and stored beside it.

        Args:
            data_version: which data it was trained on, such as `fingerprint` of them.
            git_commit: the commit of the code; the default is that of the working folder.

        Raises:
            ModelError: the file cannot be served.
        """
        classifier = load_model(path)
        tags = {
            "data_version": data_version,
            "git_commit": git_commit or current_commit(),
            "sha256": classifier.sha256,
            "signature": json.dumps(signature_of(classifier)),
        }
        with _explained(f"register {name}"):
            run = self._client.create_run(self._experiment, tags=tags, run_name=name).info
            for key, value in metrics.items():
                self._client.log_metric(run.run_id, key, value)
            with tempfile.TemporaryDirectory() as folder:
                shutil.copyfile(path, Path(folder) / FILE)
                self._client.log_artifacts(run.run_id, folder, FOLDER)
            self._client.set_terminated(run.run_id)
            with contextlib.suppress(MlflowException):  # it is there, from an earlier version
                self._client.create_registered_model(name)
            source = f"{run.artifact_uri}/{FOLDER}"
            found = self._client.create_model_version(name, source, run.run_id, tags)
            return self._entry(found)

    def find(self, name: str) -> list[Entry]:
        """All versions of ``name``, the newest first."""
        with _explained(f"look for {name}"):
            found = self._client.search_model_versions(f"name = '{name}'")
            numbers = sorted((int(version.version) for version in found), reverse=True)
            return [self._entry(self._client.get_model_version(name, str(n))) for n in numbers]

    def get(self, name: str, alias: str = CHAMPION) -> Entry:
        """The version that ``alias`` points at."""
        with _explained(f"find {name}@{alias}"):
            return self._entry(self._client.get_model_version_by_alias(name, alias))

    def load(self, name: str, alias: str = CHAMPION) -> Classifier:
        """The model that ``alias`` points at, loaded and tried once."""
        with _explained(f"load {name}@{alias}"), tempfile.TemporaryDirectory() as folder:
            version = self._client.get_model_version_by_alias(name, alias)
            local = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{version.source}/{FILE}", dst_path=folder
            )
            return load_model(local)

    def promote(self, name: str, version: str) -> Entry:
        """Let the alias champion point at ``version``, and previous at the champion so far."""
        with _explained(f"promote version {version} of {name}"):
            self._client.get_model_version(name, version)
            now = self._champion(name)
            if now and now != version:
                self._client.set_registered_model_alias(name, PREVIOUS, now)
            self._client.set_registered_model_alias(name, CHAMPION, version)
        return self.get(name)

    def roll_back(self, name: str) -> Entry:
        """Let champion and previous change places."""
        return self.promote(name, self.get(name, PREVIOUS).version)

    def _champion(self, name: str) -> str | None:
        try:
            return self._client.get_model_version_by_alias(name, CHAMPION).version
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def _entry(self, found: ModelVersion) -> Entry:
        metrics = self._client.get_run(found.run_id).data.metrics
        tags = found.tags
        return Entry(
            found.name, str(found.version), metrics, tags.get("data_version", ""),
            tags.get("git_commit", ""), json.loads(tags.get("signature", "{}")),
            tuple(found.aliases),
        )  # fmt: skip


def signature_of(classifier: Classifier) -> dict[str, list[dict]]:
    """Inputs and outputs of the graph in the form of MLflow's signatures; −1: any batch size.

    Written by hand, since MLflow's own class for it needs pandas.
    """

    def tensor(found: Any) -> dict:
        shape = [n if isinstance(n, int) else -1 for n in found.shape]
        dtype = found.type.removeprefix("tensor(").removesuffix(")").replace("float", "float32")
        return {
            "name": found.name, "type": "tensor", "tensor-spec": {"dtype": dtype, "shape": shape}
        }  # fmt: skip

    session = classifier.session
    return {
        "inputs": [tensor(found) for found in session.get_inputs()],
        "outputs": [tensor(found) for found in session.get_outputs()],
    }


def fingerprint(*arrays: np.ndarray) -> str:
    """A short hash of data: the same arrays in the same order give the same text."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def current_commit() -> str:
    """The commit of the working folder, with "+" where files differ from it; else "unknown"."""
    try:
        commit, changes = (
            subprocess.run(
                ["git", *command], capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit}+" if changes else commit


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """MLflow's and the store's errors as one that says what to do."""
    try:
        yield
    except (MlflowException, OSError) as error:
        raise MonitoringError(
            f"Cannot {what}: {error}. The registry may be gone or locked, or lack it; the model "
            "that serves is in memory and goes on."
        ) from error
