"""`dualflow impute`: measured and drawn region values of every scan of a study."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from dualflow.arrays import Doubles
from dualflow.commands.imputation_plan import STEP, imputation_options, imputing_weights
from dualflow.commands.imputation_terms import imputation_terms
from dualflow.commands.learning_data import LearningData
from dualflow.commands.make_index import require_analyses
from dualflow.commit import commit_json, commit_text
from dualflow.config import Config, ImputeConfig
from dualflow.data.dataset import Item
from dualflow.data.study_pairs import iterate_split
from dualflow.data.tsv import read_table
from dualflow.digests import sha256
from dualflow.errors import ConfigError, DataError
from dualflow.flows.interface import ConditionalSampler
from dualflow.imaging.affines import MNI
from dualflow.imaging.meta_regions import MetaRegions, group_regions, meta_region_weights, meta_regions
from dualflow.imaging.model_grid import model_grid
from dualflow.imaging.regions import RegionMap, grey_matter_names, region_map
from dualflow.imaging.sidecar import PROGRAM
from dualflow.imaging.volume import write_volume
from dualflow.imputation.completion import StudyRegions, complete
from dualflow.imputation.draw_volumes import draw_volumes
from dualflow.imputation.imputed_table import ImputedTable
from dualflow.imputation.region_values import cross_fitted_images, region_values
from dualflow.inference.convert import scan_seed
from dualflow.inference.predict import load_predictor
from dualflow.layout import Layout, Scan, sidecar_path
from dualflow.manifest import write_manifest
from dualflow.modalities import modality
from dualflow.models.card import ModelCard
from dualflow.process import keep_freed_memory
from dualflow.progress import track
from dualflow.training.device import select_device

VOLUME = "Joint draw of a target that was not measured; its region means are those of the table of imputed regions"
SPLITS = ("train", "validation", "test", "convert")


def impute(config: Config, name: str = "") -> None:
    """Draw the regions of every scan without a target, with `impute.model` or model `name`.

    Raises:
        ConfigError: the terms cannot be used, or the model has no distribution.
        DataError: too few targets are measured.
    """
    keep_freed_memory()
    options, layout = config.impute or ImputeConfig(), config.layout
    name, seed = name or config.imputing_model, config.train.seeds[0]
    predictor = load_predictor(layout.model(name, seed), select_device(config.train.device))
    data, regions = LearningData.load(config), region_map(config.preprocess)
    groups = _groups(options, regions)
    card, model = predictor.card, predictor.model
    if card.data_digest != data.digest:
        raise DataError(
            f"{card.label} learnt from other scans, splits or side values than this study's, so it cannot be told "
            "which scans it has not seen; train it again"
        )
    side = [column.name for column in card.side.columns]
    formula = imputation_terms(options, side, data.pairs)
    if options.analyses:  # they may have been added since the index, which checks them too
        require_analyses(options, side if (data.pairs["target"] == "").any() else None, data.pairs)
    if not isinstance(model, ConditionalSampler):
        raise ConfigError(f"model {card.label} has no distribution; choose a flow, or a baseline with a spread")
    scans = _StudyScans(config, options, model, card, data, regions)
    study = scans.region_values(groups)
    table = data.pairs.set_index("scan").loc[study.keys].reset_index()
    completed = complete(study, formula, table, options.draws, options.seed)
    values, facts = completed.values, dict(completed.facts)
    facts |= {"Model": card.label, "ModelWeights": card.weights_sha256, "Seed": options.seed}
    facts |= {"ReferenceRegion": config.preprocess.without_folders().reference_region, "Target": config.study.target}
    # A grid may have no voxel of some meta-regions.
    known, all_names = np.flatnonzero(np.isfinite(values).any(axis=(0, 1))), [*regions.names, *groups]
    names = [all_names[position] for position in known]
    result = ImputedTable(study.keys, names, values[:, :, known], study.observed, facts)
    path = layout.imputed_regions
    files = {"regions": path, **scans.write_volumes(study.keys, values)}
    # Volumes and replicates of an earlier run belong to another table.
    _remove_other_volumes(layout, files.values())
    layout.imputation_replicates.unlink(missing_ok=True)
    commit_text(path, result.text())
    commit_json(sidecar_path(path), result.sidecar())
    if completed.replicates is not None:
        files["replicates"] = layout.imputation_replicates
        completed.replicates.regions(known).write(layout.imputation_replicates, ~study.observed, sha256(path))
    write_manifest(
        layout.manifest(STEP),
        step=STEP,
        outputs=files,
        inputs={"model": card.weights_sha256, "pairs": sha256(layout.pairs)},
        config={STEP: imputation_options(options)},
        facts={"weights": imputing_weights(config, name)},
    )
    _print(result, layout)
    note_sessions(result.subjects)


@dataclass(frozen=True)
class _StudyScans:
    """The scans of a study and the model that imputes.

    Attributes:
        config: of the study.
        options: of the imputation.
        model: the model.
        card: its card.
        data: what it learnt from.
        regions: the atlas on the model grid.
    """

    config: Config
    options: ImputeConfig
    model: ConditionalSampler
    card: ModelCard
    data: LearningData
    regions: RegionMap

    def region_values(self, groups: MetaRegions) -> StudyRegions:
        """Values of all scans."""
        data, options = self.data, self.options
        missing = bool((data.pairs["target"] == "").any())
        cache = data.closed_form_cache(self.config.layout)
        images = cross_fitted_images(self.model, data.filled[0], cache) if missing else None
        study, draws = StudyRegions(), options.draws if missing else 0
        for split in SPLITS:
            for index, item in enumerate(self._split(split, f"impute, {split} scans")):
                image: Tensor | None = images[index] if images is not None and split == "train" else None
                seed = scan_seed(options.seed, Scan.parse(item["scan"]))
                study.keys.append(item["scan"])
                study.values.append(region_values(self.model, item, self.regions, draws, seed, image))
                study.cross_fitted.append(split != "train" or image is not None)
                study.weights.append(meta_region_weights(self.regions, item["mask"][0].numpy(), groups)[1])
        return study

    def write_volumes(self, keys: Sequence[str], values: Doubles) -> dict[str, Path]:
        """Write the first draws of the scans without a target as volumes on the model grid; return the files.

        Args:
            keys: of all scans.
            values: their completed tables, regions first.
        """
        row, files = modality(self.config.study.target), dict[str, Path]()
        affine, count = model_grid(self.config.preprocess)[0], min(self.options.volumes, self.options.draws)
        for item in self._split("convert", "write imputed volumes") if count else ():
            scan = Scan.parse(item["scan"])
            rows = values[:count, keys.index(item["scan"]), : len(self.regions.names)]
            volumes = draw_volumes(self.model, item, self.regions, rows, scan_seed(self.options.seed, scan))
            for number, volume in enumerate(volumes, 1):
                path = self.config.layout.imputed_volume(scan, row, number)
                sidecar = {"Description": VOLUME, "Synthetic": True, "Draw": number, "Units": row.unit}
                sidecar |= {"SyntheticModel": self.card.label, "GeneratedBy": [PROGRAM]}
                write_volume(path, volume, affine, codes=MNI, sidecar=sidecar)
                files[f"{scan.key}/{number}"] = path
        return files

    def _split(self, split: str, label: str) -> Iterable[Item]:
        """The scans of a split with a progress bar; all but the training scans are read one at a time."""
        if split == "train":
            return track(self.data.training.items, label)
        items = iterate_split(self.config, self.data.pairs, split, self.card.side)
        return track(items, label, int((self.data.pairs["split"] == split).sum()))


def _remove_other_volumes(layout: Layout, keep: Iterable[Path]) -> None:
    """Remove the volumes of earlier runs, of any target; Snakemake has removed the manifest that lists them."""
    kept = {file for path in keep for file in (path, sidecar_path(path))}
    for file in set(layout.imputed_volumes()) - kept:
        file.unlink()


def _groups(options: ImputeConfig, regions: RegionMap) -> MetaRegions:
    if options.meta_regions is None:
        return meta_regions()
    table = read_table(options.meta_regions)
    if missing := [name for name in ("meta_region", "region") if name not in table]:
        raise DataError(f"{options.meta_regions}: no column {missing[0]}; expected the columns meta_region and region")
    if table.empty or table[["meta_region", "region"]].isna().to_numpy().any():
        raise DataError(
            f"{options.meta_regions}: has no row or an empty cell; write the meta-region in the row of each of its "
            "regions"
        )
    if same := sorted(set(table["meta_region"]) & set(regions.names)):
        raise DataError(f"{options.meta_regions}: meta-region {same[0]} has the name of a region; rename it")
    known = grey_matter_names()
    if unknown := [name for name in table["region"] if name not in known]:
        raise DataError(
            f"{options.meta_regions}: '{unknown[0]}' is no region of the atlas; write its name without hemisphere and "
            f"ctx-, one of: {', '.join(sorted(known))}"
        )
    return group_regions(table)


def note_sessions(subjects: Sequence[str]) -> None:
    """Say what several scans of a subject mean for the draws, which count them as independent given their sources."""
    if repeated := len(subjects) - len(set(subjects)):
        print(
            f"note: {repeated} scans are further sessions of a subject; a measured target at another session does not "
            "narrow a draw (see Limits of the page on group statistics)"
        )


def _print(table: ImputedTable, layout: Layout) -> None:
    drawn = int((~table.observed).sum())
    print(f"{len(table.scans)} scans: {int(table.observed.sum())} measured, {drawn} drawn {len(table.values)} times")
    if drawn:
        share, learnt = table.facts["ExplainedByModel"], table.facts["Learnt"]
        print(f"{learnt} measured scans inform the draws, by predictions that did not learn from them")
        print(f"the model explains {share:.0%} of what {table.facts['Terms']} leave (median over regions)")
    print(f"regions   {layout.imputed_regions}")
