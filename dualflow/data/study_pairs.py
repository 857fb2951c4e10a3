"""The usable pairs of a preprocessed study, and their splits as datasets in memory."""

from __future__ import annotations

import pandas as pd

from dualflow.config import Config
from dualflow.data.dataset import PairDataset, load_pairs
from dualflow.data.index import read_pairs
from dualflow.data.quarantine import Quarantine, usable
from dualflow.data.side_encoder import SideEncoder
from dualflow.errors import DataError
from dualflow.layout import Scan
from dualflow.manifest import read_manifest


def usable_pairs(config: Config) -> pd.DataFrame:
    """Rows of the index whose scans are preprocessed and not quarantined.

    Raises:
        DataError: a scan has not been preprocessed, or none is usable.
    """
    pairs = read_pairs(config.layout)
    refused = []
    for key in pairs["scan"]:
        path = config.layout.scan_manifest(Scan.parse(key))
        manifest = read_manifest(path)
        if manifest is None:
            raise DataError(f"{key}: not preprocessed, or changed since ({path}); run the preprocess step again")
        if (quarantine := Quarantine.of_manifest(key, manifest)) is not None:
            refused.append(quarantine)
    kept = usable(pairs, refused)
    if kept.empty:
        raise DataError(f"no usable scan is left; the reasons are in {config.layout.quarantine}")
    return kept


def load_split(config: Config, pairs: pd.DataFrame, split: str, encoder: SideEncoder) -> PairDataset:
    """The preprocessed scans of one split."""
    return load_pairs(config.layout, pairs[pairs["split"] == split], config.study, encoder)


def learning_pairs(config: Config) -> tuple[pd.DataFrame, SideEncoder, PairDataset, PairDataset]:
    """Usable rows of the index, the side encoder fitted on those to learn from, and the scans to train and validate on.

    Raises:
        DataError: there is nothing to train on.
    """
    pairs = usable_pairs(config)
    encoder = SideEncoder.fit(pairs[pairs["split"] == "train"], config.study.side)
    training, validation = (load_split(config, pairs, split, encoder) for split in ("train", "validation"))
    if not len(training):
        raise DataError("no training pairs are left; check the splits and the quarantine table")
    return pairs, encoder, training, validation
