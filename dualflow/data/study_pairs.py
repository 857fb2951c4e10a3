"""The usable pairs of a preprocessed study, and their splits as datasets in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import pandas as pd
import torch

from dualflow.config import Config
from dualflow.data.dataset import Item, PairDataset, iterate_pairs, load_pairs
from dualflow.data.index import read_pairs
from dualflow.data.preprocessed_scan import PreprocessedScan
from dualflow.data.quarantine import usable
from dualflow.data.side_encoder import SideEncoder
from dualflow.digests import digest_of, sha256
from dualflow.errors import DataError
from dualflow.layout import Layout, Scan


def usable_pairs(config: Config) -> pd.DataFrame:
    """Rows of the index whose scans are preprocessed and not excluded.

    Only manifests are read; `load_split` verifies the volumes as it reads them.

    Raises:
        DataError: a scan is not preprocessed, or none is usable.
    """
    pairs = read_pairs(config.layout)
    scans = [PreprocessedScan.from_manifest(config.layout, Scan.parse(key)) for key in pairs["scan"]]
    rows = usable(pairs, [scan.quarantine for scan in scans if scan.quarantine is not None])
    if rows.empty:
        raise DataError(f"no usable scan is left; {config.layout.quarantine} lists the reasons")
    return rows


def scan_digests(layout: Layout, scans: Iterable[str]) -> dict[str, str]:
    """Return the hash of the manifest of each preprocessed scan, given by keys."""
    return {key: sha256(layout.scan_manifest(Scan.parse(key))) for key in scans}


ScanValues = list[tuple[str, str, list[float]]]
"""Key, hash and side values of each scan of a split."""


def scan_values(scans: Iterable[str], sides: Iterable[torch.Tensor], digests: Mapping[str, str]) -> ScanValues:
    """Return what identifies the scans of a split to a model that learns from them.

    Args:
        scans: keys.
        sides: side values [S] of each.
        digests: hash of the manifest of each.
    """
    return [(key, digests[key], side.tolist()) for key, side in zip(scans, sides, strict=True)]


def learning_digest(encoder: SideEncoder, training: ScanValues, validation: ScanValues) -> str:
    """Return the digest of what the models of a study learn from: scans and side values, by split."""
    # Units of the columns by their ranges: the last digits of means and deviations differ between machines.
    columns = [{**column, "mean": None, "sd": None} for column in encoder.to_dict()["columns"]]
    return digest_of({"side": columns, "splits": [training, validation]})


def load_split(config: Config, pairs: pd.DataFrame, split: str, encoder: SideEncoder) -> PairDataset:
    """The preprocessed scans of one split."""
    return load_pairs(config.layout, pairs[pairs["split"] == split], config.study, encoder)


def iterate_split(config: Config, pairs: pd.DataFrame, split: str, encoder: SideEncoder) -> Iterator[Item]:
    """The preprocessed scans of one split, one at a time: those without a target may be many."""
    return iterate_pairs(config.layout, pairs[pairs["split"] == split], config.study, encoder)


def learning_pairs(config: Config) -> tuple[pd.DataFrame, SideEncoder, PairDataset, PairDataset]:
    """Usable rows of the index, the side encoder fitted on the training scans, and the training and validation scans.

    Raises:
        DataError: there are no training pairs.
    """
    pairs = usable_pairs(config)
    encoder = SideEncoder.fit(pairs[pairs["split"] == "train"], config.study.side)
    training, validation = (load_split(config, pairs, split, encoder) for split in ("train", "validation"))
    if not len(training):
        raise DataError("no training pairs are left; check the splits and the excluded scans")
    return pairs, encoder, training, validation
