"""What the models of a study learn from, and the digests that tell one training from another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from dualflow.config import Config, training_values
from dualflow.data.dataset import PairDataset
from dualflow.data.side_encoder import SideEncoder
from dualflow.data.study_pairs import ScanValues, learning_digest, learning_pairs, scan_digests, scan_values
from dualflow.data.unseen_voxels import fill_unseen
from dualflow.digests import digest_of
from dualflow.errors import DataError
from dualflow.layout import Layout, Scan
from dualflow.manifest import read_manifest
from dualflow.revisions import REVISIONS
from dualflow.training.closed_form import ClosedFormCache
from dualflow.training.flow_spec import flow_spec


@dataclass(frozen=True)
class LearningData:
    """The scans that all models of a study learn from.

    Attributes:
        pairs: rows of the index.
        encoder: of the side columns, fitted on the training scans.
        training: training scans.
        validation: validation scans.
        digests: hash of the manifest of each training and validation scan.
    """

    pairs: pd.DataFrame
    encoder: SideEncoder
    training: PairDataset
    validation: PairDataset
    digests: dict[str, str]

    @classmethod
    def load(cls, config: Config) -> LearningData:
        """Read the preprocessed scans of a study.

        Raises:
            DataError: there are none, or another revision of the preprocessing made one.
        """
        pairs, encoder, training, validation = learning_pairs(config)
        scans = [*training.scans, *validation.scans]
        _require_revision(config.layout, scans)
        return cls(pairs, encoder, training, validation, scan_digests(config.layout, scans))

    def closed_form_cache(self, layout: Layout) -> ClosedFormCache:
        """Closed-form fits to the training scans, which the trainings of a study share."""
        return ClosedFormCache(layout.closed_form_cache, digest_of(self._values(self.training)))

    @cached_property
    def filled(self) -> tuple[PairDataset, PairDataset]:
        """Training and validation scans as models learn from them, by `fill_unseen`."""
        return fill_unseen(self.training, self.validation)

    @property
    def digest(self) -> str:
        """Digest of what the models learn from: scans and side values, by split."""
        return learning_digest(self.encoder, self._values(self.training), self._values(self.validation))

    def _values(self, dataset: PairDataset) -> ScanValues:
        return scan_values(dataset.scans, [item["side"] for item in dataset.items], self.digests)


def _require_revision(layout: Layout, scans: Sequence[str]) -> None:
    """Check that scans are those of today's preprocessing, as conversion prepares them and as the card will say."""
    for key in scans:
        manifest = read_manifest(layout.scan_manifest(Scan.parse(key)), verify=False) or {}
        if manifest.get("revision") != REVISIONS["preprocess"]:
            raise DataError(
                f"{key}: was made by revision {manifest.get('revision')} of the preprocessing, expected "
                f"{REVISIONS['preprocess']}; `dualflow run` repeats it"
            )


def fingerprint_of(config: Config, name: str, data: LearningData) -> str:
    """Digest of all inputs of a training except its seed; states with another digest are not resumed."""
    values = training_values(config, name)
    if "flow" in values or "model" in values:
        # The options that the configuration leaves out too: a later version may have other ones.
        values["layers"] = flow_spec(config.flows.get(name, config.model)).to_dict()
    return digest_of({"revision": REVISIONS["train"], "name": name, "scans": data.digest, **values})
