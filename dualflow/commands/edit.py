"""`dualflow edit`: a measured target under other side information, as a series of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualflow.commit import commit_text
from dualflow.config import Config
from dualflow.data.dataset import Item, load_pairs
from dualflow.data.raw_scans import preprocess_section
from dualflow.data.side_encoder import Categorical, Continuous, SideEncoder
from dualflow.data.study_pairs import usable_pairs
from dualflow.data.tsv import table_text
from dualflow.data.unseen_voxels import scored
from dualflow.digests import ascii_name
from dualflow.errors import CheckpointError, ConfigError, DataError
from dualflow.flows.model import DualFlow
from dualflow.imaging.affines import MNI
from dualflow.imaging.intensity import in_view
from dualflow.imaging.meta_regions import meta_region_weights, meta_regions, with_meta_regions
from dualflow.imaging.model_grid import model_grid
from dualflow.imaging.regions import RegionMap, region_map
from dualflow.imaging.sidecar import PROGRAM
from dualflow.imaging.volume import write_volume
from dualflow.inference.edit import Subject, edit
from dualflow.inference.predict import load_predictor
from dualflow.layout import TEMPLATE_SPACE, Scan, bids_path
from dualflow.manifest import read_manifest
from dualflow.modalities import modality
from dualflow.models.card import ModelCard
from dualflow.report.edit_figure import edit_figure
from dualflow.report.style import write_figure
from dualflow.training.device import device_of, select_device

TABLE, PICTURE = "regions.tsv", "series.png"
"""Files of an edit beside its images."""
REGION_COLUMNS = ("region", "suvr", "measured")
"""Columns of the table of an edit, beside that of the edited value."""
DISCLAIMER = (
    "What a model ascribes to the edited value, with everything else of the person kept. An association among training "
    "subjects: not a prediction of what would happen to the person, and not a measurement."
)


def edit_scan(config: Config, scan: str, column: str, values: Sequence[str], name: str = "") -> None:
    """Write the target of a scan under each value of a side column: images, a table of regions, and a picture.

    Raises:
        ConfigError: the column or a value is unknown to the model.
        DataError: the scan is unknown, has no measured target, or is preprocessed otherwise than the model's scans.
        CheckpointError: the model is not a flow.
    """
    key = scan if scan.startswith("sub-") else f"sub-{scan}"
    layout, row = config.layout, modality(config.study.target)
    predictor = load_predictor(
        layout.model(name or config.model.preset, config.train.seeds[0]), select_device(config.train.device)
    )
    card = predictor.card
    if predictor.flow is None:
        raise CheckpointError(f"{card.label} is not a flow and has no latents to keep; choose a flow")
    pairs = usable_pairs(config)
    chosen = pairs[pairs["scan"] == key]
    if chosen.empty or not chosen["target"].iloc[0]:
        raise DataError(f"{key}: no usable scan with a measured {config.study.target}; {layout.pairs} lists the scans")
    _require_same_preprocessing(config, card, Scan.parse(key))
    item = load_pairs(layout, chosen, config.study, card.side)[0]
    people = edited_rows(chosen, card.side, column, values)
    images, error = edited_images(predictor.flow, item, card.side.encode(people))
    mask, regions = item["mask"][0].numpy(), region_map(config.preprocess)
    folder, label = layout.edit(Scan.parse(key), column), list(map(str, values))
    affine = model_grid(config.preprocess)[0]
    # The table and the picture of other values go first: no image is ever beside those of others.
    for earlier in (folder / TABLE, folder / PICTURE, *folder.glob("*_desc-edit*")):
        earlier.unlink(missing_ok=True)
    for value, image in zip(label, images, strict=True):
        desc = edit_label(column, value)
        path = bids_path(layout.root, Scan.parse(key), row, space=TEMPLATE_SPACE, res="model", desc=desc)
        facts = {"Edit": {column: value}, "Units": row.unit, "SyntheticModel": card.label}
        sidecar = {"Description": DISCLAIMER, "Synthetic": True, **facts, "GeneratedBy": [PROGRAM]}
        write_volume(folder / path.name, image, affine, sidecar=sidecar, codes=MNI)
    table = _region_series(images, item, mask, regions, column, label)
    commit_text(folder / TABLE, table_text(table.round(5)))
    measured = item["target"][0].numpy()
    figure = edit_figure(item["source"][0].numpy(), measured, images, mask, row, column, label, table)
    write_figure(folder / PICTURE, figure)
    wide = table[table["region"].isin(list(meta_regions()))].pivot(index="region", columns=column, values="suvr")
    print(wide[label].round(3).to_string())
    print(f"\nwithout a change, the flow returns the measured image to {error:.1e} {row.unit}")
    print(f"images, regions.tsv and series.png are in {folder}\n{DISCLAIMER}")


def _require_same_preprocessing(config: Config, card: ModelCard, scan: Scan) -> None:
    """Check that a scan was preprocessed as the model's were: its intensities have no other unit.

    Raises:
        DataError: it was not.
    """
    study = config.study.model_copy(update=card.study.model_dump(include={"source", "extra_sources", "target"}))
    manifest = read_manifest(config.layout.scan_manifest(scan), verify=False) or {}
    trained = preprocess_section(study, card.preprocess)
    for now in (manifest.get("config", {}), preprocess_section(config.study, config.preprocess)):
        # A card names a mask of the study, and has no digest of it.
        if other := [name for name in trained if name in now and trained[name] != now[name]]:
            values = "; ".join(f"{now[name]} here, {trained[name]} there" for name in other)
            raise DataError(
                f"{scan.key}: {', '.join(other)} of its preprocessing or of the study differs from that of "
                f"{card.label} ({values}); train it again"
            )


def edit_label(column: str, value: str) -> str:
    """The BIDS label of an edit; a minus and a decimal point become letters, so that values stay distinct."""
    return "edit" + ascii_name(f"{column}{value.replace('-', 'm').replace('.', 'p')}", "")


def edited_rows(scan: pd.DataFrame, encoder: SideEncoder, column: str, values: Sequence[str]) -> pd.DataFrame:
    """The row of a scan once per value of `column`.

    Raises:
        ConfigError: the model does not take the column, or a value is no number or no level of its training.
    """
    if column in REGION_COLUMNS:
        raise ConfigError(f"the edits of '{column}' have a column of that name in regions.tsv; train with another name")
    rows = {one.name: one for one in encoder.columns}
    if not values or len({edit_label(column, value) for value in values}) < len(values):
        raise ConfigError(f"values '{', '.join(values)}' of {column}; give one or more different values")
    if column not in rows:
        raise ConfigError(f"the model has no side column '{column}'; choose from: {', '.join(rows) or 'none'}")
    row = rows[column]
    _warn_unknown(row, scan)
    edited: list[Any]
    if isinstance(row, Categorical):
        edited = [row.level(value) for value in values]
        if None in edited:
            unknown = values[edited.index(None)]
            raise ConfigError(f"{column} = {unknown} is unknown to the model; choose from: {', '.join(row.levels)}")
    else:
        if row.mean is None or not row.sd:
            seen = "no values" if row.mean is None else "one value alone"
            raise ConfigError(
                f"the model saw {seen} of '{column}' in training and learnt nothing from it; edit another"
            )
        edited = [_number(column, value) for value in values]
        _warn_outside(row, edited)
    return pd.concat([scan] * len(edited), ignore_index=True).assign(**{column: edited})


def _number(column: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{column} = {value} is no number, as it was in training")
    return number


def _warn_unknown(row: Categorical | Continuous, scan: pd.DataFrame) -> None:
    if row.name not in scan or np.isnan(row.encode(scan[row.name])).any():
        print(
            f"warning: {row.name} of this scan is unknown, so each image also has the change from unknown to the "
            "value; compare the images with each other, not with the measured one"
        )


def _warn_outside(row: Continuous, values: Sequence[float]) -> None:
    if row.low is None or row.high is None:
        return
    if outside := [value for value in values if not row.low <= value <= row.high]:
        print(f"warning: {row.name} = {outside[0]:g} lies outside of the training range {row.low:g} to {row.high:g}")


def edited_images(flow: DualFlow, item: Item, sides: Tensor) -> tuple[list[NDArray[np.float32]], float]:
    """Return the target under each row of side values `[E, S]`, 0 outside the mask, and the error without a change.

    Voxels outside the target's field of view hold the flow's mean before the change.
    """
    device = device_of(flow)
    target, source, side, mask = (item[name][None].to(device) for name in ("target", "source", "side", "mask"))
    shown = scored(item)[None].to(device)
    # A voxel that was not measured is what the flow expects there, and not an uptake of 0.
    target = torch.where(mask & ~shown, flow.mean(source, side), target)
    subject = Subject(target, source, side, mask)
    images = []
    for row in sides:
        image = edit(flow, subject, side=row[None].to(device)).where(mask, torch.zeros(()).to(device))
        images.append(image[0, 0].float().cpu().numpy())
    error = (edit(flow, subject) - subject.target).abs()[mask].max()
    return images, float(error)


def _region_series(
    images: Sequence[NDArray[np.float32]],
    item: Item,
    mask: NDArray[np.bool_],
    regions: RegionMap,
    column: str,
    values: Sequence[str],
) -> pd.DataFrame:
    """Region and meta-region means of each image, beside the measured ones, all over the voxels that were measured.

    A region of which less than MINIMUM_SHOWN was measured is NaN.
    """
    target = item["target"][0].numpy()
    shown = in_view(target, mask)
    seen = regions.measured(shown, mask)
    names, weights = meta_region_weights(seen, shown)

    def means(image: NDArray[np.float32]) -> NDArray[np.float64]:
        return with_meta_regions(seen.means(image, shown), weights)

    measured = means(target)
    parts = [
        pd.DataFrame({"region": [*regions.names, *names], column: value, "suvr": means(image), "measured": measured})
        for value, image in zip(values, images, strict=True)
    ]
    return pd.concat(parts, ignore_index=True)
