"""Registered models in MLflow: versions are folders of files without pickle, and the alias `champion` names the best.

A version is an MLflow logged model with an `MLmodel` file, which has the signature, the folder `bundle`, and the scores
on the held-out people. Its tags have the digest of the bundle, so registering the same bundle twice adds one version.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dualflow.commit import commit_text, committing
from dualflow.config import TrackingConfig, checked, public_uri
from dualflow.digests import sha256
from dualflow.errors import CheckpointError, CommitError, ConfigError, DualflowError
from dualflow.temporaries import scratch_folder
from dualflow.tracking.deadline import with_deadline
from dualflow.tracking.mlflow_calls import is_permanent_error
from dualflow.tracking.mlflow_store import ensure_experiment, find_run, open_store

CHAMPION = "champion"
WEIGHTS = "dualflow.weights_sha256"
"""Tag of a version with the hash of its weights."""
BUNDLE_FOLDER, BUNDLE_INDEX, SCORES = "bundle", "bundle.json", "held_out.json"
BUNDLE_TAG, SCORES_TAG = "dualflow.bundle_sha256", "dualflow.held_out_digest"
MAX_SCORES = 1 << 20
"""Largest table of scores in bytes that is read."""
WAIT_S = 15
"""Seconds to wait until a server has created a version, less than the deadline of a call."""
_NAME = re.compile(r"^[A-Za-z0-9_.-]+$")
_SECRETS = re.compile(r"(?<=//)(?:\S*|[^/@]*)@|(?<=password=)[^\s&'\"]+")
"""Credentials in the text of an error, which may quote a URI."""


@dataclass(frozen=True)
class Signature:
    """Sizes of a model's tensors.

    Attributes:
        channels: number of source channels, those of the detail included.
        side: number of side features S.
        shape: model grid D, H, W.
    """

    channels: int
    side: int
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        number: as MLflow counts, from "1".
        created: whether this call created it; False if the same bundle was registered before.
    """

    number: str
    created: bool


@dataclass(frozen=True)
class Champion:
    """The version that the alias `champion` names.

    Attributes:
        number: of the version.
        scores: JSON of its scores on the held-out people; None if it was registered without.
        weights: hash of its weights; None without the tag WEIGHTS.
    """

    number: str
    scores: str | None
    weights: str | None


class ModelRegistry:
    """The registered model of one name.

    Args:
        name: name of the registered model.
        uri: MLflow tracking URI: a local SQLite file or a server.

    Raises:
        ConfigError: the name or the URI cannot be used.
        CommitError: the store cannot be opened.
    """

    def __init__(self, name: str, uri: str) -> None:
        check_name(name)
        self.name, self.config = name, tracking_config(uri)
        with self._connection():
            self.client: Any = open_store(self.config)

    def register(
        self,
        bundle: Path,
        signature: Signature,
        *,
        experiment: str,
        model: str,
        tags: Mapping[str, str],
        scores: str | None = None,
        training: Mapping[str, str] | None = None,
    ) -> Version:
        """Register a bundle as a new version, unless it is registered already.

        Args:
            bundle: folder with `bundle.json`.
            signature: sizes of the model's tensors.
            experiment: MLflow experiment of the logged model.
            model: name of the logged model.
            tags: of the version.
            scores: JSON of the scores on the held-out people.
            training: tags of the run that trained the model; the logged model and that run refer to each other.

        Raises:
            CommitError: the server is unreachable or refuses the version.
        """
        digest = sha256(bundle / BUNDLE_INDEX)
        with self._connection():
            self._create_name()
            earlier = self.client.search_model_versions(f"name = '{self.name}' and tags.`{BUNDLE_TAG}` = '{digest}'")
            # Files that were published without scores, or with scores of other people, are a version of their own.
            if scores is not None:
                earlier = [version for version in earlier if version.tags.get(SCORES_TAG) == tags[SCORES_TAG]]
            if earlier:
                return Version(str(min(int(version.version) for version in earlier)), created=False)
            experiment_id = ensure_experiment(self.client, self.config, experiment)
            run_id = None if training is None else find_run(self.client, experiment_id, training)
            logged = self.client.create_logged_model(
                experiment_id, name=model, source_run_id=run_id, tags=dict(tags), model_type="dualflow"
            )
            try:
                self.client.log_model_artifacts(logged.model_id, str(bundle), BUNDLE_FOLDER)
                with scratch_folder() as folder:
                    _write_description(folder, signature, logged.model_id, scores)
                    self.client.log_model_artifacts(logged.model_id, str(folder))
                self.client.finalize_logged_model(logged.model_id, "READY")
            except Exception:
                with suppress(Exception):
                    self.client.finalize_logged_model(logged.model_id, "FAILED")
                raise
            if run_id is not None:
                self.client.log_outputs(run_id, [_output(logged.model_id)])
            created = self.client.create_model_version(
                self.name,
                logged.artifact_location,
                tags={**tags, BUNDLE_TAG: digest},
                model_id=logged.model_id,
                await_creation_for=WAIT_S,
            )
            return Version(str(created.version), created=True)

    def champion(self) -> Champion | None:
        """The champion; None if there is none yet.

        Raises:
            CommitError: the server is unreachable.
            CheckpointError: its scores are too large to be a table of scores.
        """
        with self._connection():
            number = self.client.get_registered_model(self.name).aliases.get(CHAMPION)
            if number is None:
                return None
            version = self.client.get_model_version(self.name, number)
            source = self.client.get_model_version_download_uri(self.name, number)
            return Champion(str(number), _read_scores(source), version.tags.get(WEIGHTS))

    def set_champion(self, number: str) -> None:
        """Move the alias `champion` to a version.

        Raises:
            CommitError: the server is unreachable.
        """
        with self._connection():
            self.client.set_registered_model_alias(self.name, CHAMPION, number)

    def _create_name(self) -> None:
        from mlflow import MlflowException

        try:
            self.client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    @contextmanager
    def _connection(self) -> Iterator[None]:
        """Report every error of a store or a server as a CommitError."""
        try:
            yield
        except DualflowError:
            raise
        except Exception as error:
            verb = "refuses" if is_permanent_error(error) else "does not answer; no step is lost, so repeat"
            raise CommitError(
                f"MLflow at {public_uri(self.config.uri)} {verb} the registration of '{self.name}': {reason(error)}"
            ) from error


def _output(model_id: str) -> Any:
    from mlflow.entities import LoggedModelOutput

    return LoggedModelOutput(model_id, step=0)


def tracking_config(uri: str) -> TrackingConfig:
    """The configuration of a store; artifacts of a SQLite file lie beside it.

    Raises:
        ConfigError: the URI cannot be used.
    """
    values: dict[str, object] = {"uri": uri}
    if uri.startswith("sqlite:///"):
        values["artifacts"] = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts"
    return checked(TrackingConfig, values, "--tracking")


def check_name(name: str) -> None:
    """Refuse a name that cannot be part of `models:/NAME@ALIAS`.

    Raises:
        ConfigError: it has other characters.
    """
    if not _NAME.match(name):
        raise ConfigError(f"registered model '{name}': expected letters, digits, '_', '-' and '.'; choose another name")


def reason(error: Exception) -> str:
    """The first line of an error of MLflow, shortened, without credentials."""
    text = " ".join(str(error).split()) or type(error).__name__
    return _SECRETS.sub("", text)[:300]


def _read_scores(source: str) -> str | None:
    from mlflow.artifacts import download_artifacts, list_artifacts

    listing = with_deadline(partial(list_artifacts, artifact_uri=source))
    # Paths are relative to the store, whose root depends on its kind.
    files = {file.path.rpartition("/")[2]: file.file_size for file in listing}
    if SCORES not in files:
        return None
    if (files[SCORES] or 0) > MAX_SCORES:
        raise CheckpointError(f"{SCORES} of the champion has {files[SCORES]:,} bytes, expected a table of scores")
    with scratch_folder() as folder:
        download = partial(download_artifacts, artifact_uri=f"{source}/{SCORES}", dst_path=str(folder))
        return Path(with_deadline(download, MAX_SCORES)).read_text()


def _write_description(folder: Path, signature: Signature, model_id: str, scores: str | None) -> None:
    """Write `MLmodel`, and the scores if there are any."""
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    single, grid = np.dtype("float32"), signature.shape
    inputs = [
        TensorSpec(single, (-1, signature.channels, *grid), "source"),
        TensorSpec(single, (-1, signature.side), "side"),
    ]
    outputs = [TensorSpec(single, (-1, 1, *grid), "target")]
    model = Model(signature=ModelSignature(Schema(inputs), Schema(outputs)), model_id=model_id)
    model.add_flavor("dualflow", data=BUNDLE_FOLDER)
    with committing(folder / "MLmodel") as temp:
        model.save(str(temp))
    if scores is not None:
        commit_text(folder / SCORES, scores)
