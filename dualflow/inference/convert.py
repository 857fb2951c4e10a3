"""Conversion of one preprocessed scan: verdict, synthetic volumes on its native grid, and region table."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from dualflow.arrays import Bools, Singles
from dualflow.commit import commit_json, commit_text
from dualflow.config import ConvertConfig
from dualflow.data.dataset import Item
from dualflow.data.preprocessed_scan import PreprocessedScan
from dualflow.data.quarantine import without_folders
from dualflow.data.tsv import table_text
from dualflow.errors import DataError
from dualflow.imaging.input_figures import input_figures
from dualflow.imaging.record import native_codes, to_native
from dualflow.imaging.regions import RegionMap, region_map
from dualflow.imaging.result_figure import JPEG_QUALITY, result_figure
from dualflow.imaging.stopwatch import Stopwatch
from dualflow.imaging.volume import read_volume, write_volume
from dualflow.inference.conversion_files import remove_files
from dualflow.inference.conversion_record import ORIGIN, SIDE, STEP, VERDICT, conversion_inputs, is_converted
from dualflow.inference.predict import Prediction, Predictor, load_predictor
from dualflow.inference.provenance import deviation_sidecar, region_sidecar, volume_sidecar
from dualflow.inference.region_table import region_table
from dualflow.inference.training_reference import Reference, load_reference
from dualflow.inference.verdict import Outcome, Verdict, judge_input, judge_output
from dualflow.layout import Layout, Scan, sidecar_path
from dualflow.manifest import remove_step, write_manifest
from dualflow.modalities import Modality, modality

QUANTILES = (5, 50, 95)
"""Percentiles of the quantile maps."""
DRAWN = ("synth", "synthstd")
"""Images of the picture of a result, by BIDS `desc`."""


@dataclass(frozen=True)
class Converter:
    """All that the conversions of a dataset share.

    Attributes:
        predictor: the model.
        reference: what its training scans look like; None of a model without one.
        regions: the atlas on the model grid.
        layout: where outputs go.
        source: modality of the main source.
        target: modality of the target.
        config: how samples are drawn.
        force: whether refused scans are converted too.
    """

    predictor: Predictor
    reference: Reference | None
    regions: RegionMap
    layout: Layout
    source: Modality
    target: Modality
    config: ConvertConfig
    force: bool = False

    @classmethod
    def load(
        cls,
        model: Path,
        device: torch.device | str,
        layout: Layout,
        source: str,
        target: str,
        config: ConvertConfig,
        *,
        force: bool = False,
    ) -> Self:
        """Load a model for conversion.

        Args:
            model: its folder.
            device: where it runs.
            layout: where outputs go.
            source: name of the main source's modality.
            target: name of the target's modality.
            config: how samples are drawn.
            force: whether refused scans are converted too.

        Raises:
            CheckpointError: the folder holds no model, a broken one, or one of another version.
        """
        predictor = load_predictor(model, device)
        reference, regions = load_reference(model, predictor.card), region_map(predictor.card.preprocess)
        return cls(predictor, reference, regions, layout, modality(source), modality(target), config, force)

    def convert_if_needed(self, item: Item, side: Mapping[str, Any], raw: Path, origin: str = "") -> Path:
        """Convert a preprocessed scan unless that is done and unchanged; return its manifest.

        The manifest's facts hold the verdict. The files of an earlier conversion are removed first, because it may have
        written others. On an error, no file is left.

        Args:
            item: the scan, as `data.dataset.load_pairs` reads it.
            side: its raw side values by column; None if unknown.
            raw: its raw source, for the picture.
            origin: digest of where it is from, to record; '' for none.
        """
        scan = Scan.parse(item["scan"])
        manifest, section = self.layout.manifest(f"{STEP}/{scan.key}"), self.config.model_dump(mode="json")
        inputs = conversion_inputs(self.predictor.card, self.layout, scan, side)
        if not is_converted(manifest, inputs, self.config, force=self.force):
            self.remove(scan)
            clock = Stopwatch()
            try:
                verdict, files = self._convert(item, side, raw, clock)
                facts = {VERDICT: verdict.to_dict(), SIDE: dict(side), **({ORIGIN: origin} if origin else {})}
                commit_json(self.layout.conversion_seconds(scan), clock.rounded())
                write_manifest(manifest, step=STEP, outputs=files, inputs=inputs, config=section, facts=facts)
            except BaseException:  # no manifest lists the files written so far
                self.remove(scan)
                raise
        return manifest

    def remove(self, scan: Scan) -> None:
        """Remove the conversion of a scan: its manifest, the files that it lists, and those of an unfinished one."""
        remove_step(self.layout.manifest(f"{STEP}/{scan.key}"))
        remove_files(self.layout, scan, self.source, self.target)

    def _convert(
        self, item: Item, side: Mapping[str, Any], raw: Path, clock: Stopwatch
    ) -> tuple[Verdict, dict[str, Path]]:
        """Judge a scan, and convert it unless it is refused."""
        scan = Scan.parse(item["scan"])
        mask = item["mask"][0].numpy()
        preprocessed = PreprocessedScan.from_manifest(self.layout, scan)
        record = preprocessed.record()
        with clock("verdict"):
            card = self.predictor.card
            names = (card.study.source, *card.study.extra_sources)
            sources = dict(zip(names, item["source"].numpy(), strict=False))  # the detail of each may follow
            verdict = judge_input(self.reference, card.side, sources, mask, input_figures(record), side)
        if verdict.outcome is Outcome.REFUSED and not self.force:
            return verdict, {}
        with clock("predict"):
            prediction = self._predict(item)
        config = self.config
        verdict |= judge_output(
            self.reference, prediction, mask, self.target.unit, samples=config.samples, temperature=config.temperature
        )
        brain = preprocessed.volume("mask_native").array > 0.5
        with clock("write"):
            files, images = self._write(scan, prediction, verdict, mask, record, brain, side)
        with clock("figure"):
            try:
                files["figure"] = self._draw(scan, raw, verdict, images, record, brain)
            except DataError as error:  # such as a raw scan that is away
                reason = without_folders(str(error), raw.parent)
                print(f"warning: {scan.key}: converted without a picture: {reason}", file=sys.stderr)
        return verdict, files

    def _predict(self, item: Item) -> Prediction:
        config = self.config
        return self.predictor.predict(
            item["source"],
            item["side"],
            item["mask"],
            samples=config.samples,
            temperature=config.temperature,
            seed=scan_seed(config.seed, Scan.parse(item["scan"])),
            keep=config.samples if config.quantiles else config.keep_samples,
            regions=self.regions,
        )

    def _write(
        self,
        scan: Scan,
        prediction: Prediction,
        verdict: Verdict,
        mask: Bools,
        record: Mapping[str, Any],
        brain: Bools,
        side: Mapping[str, Any],
    ) -> tuple[dict[str, Path], dict[str, Singles]]:
        """Write volumes, region table and sidecars; return the files, and by `desc` the images of DRAWN and deviations.

        Each volume is interpolated once, from the model grid to the native grid, and masked with `brain` there.
        """
        layout, card = self.layout, self.predictor.card
        sampling = None if prediction.samples is None else self.config
        volumes = volumes_of(prediction, self.config)
        files = {desc: layout.synthetic(scan, self.source, self.target, desc) for desc in volumes}
        sidecars = {desc: volume_sidecar(desc, card, self.target, sampling, side, verdict, record) for desc in volumes}
        for name, lesion_map in verdict.lesion_maps.items():
            volumes[desc := f"deviation_{name}"] = lesion_map
            files[desc] = layout.deviation(scan, self.source, modality(name))
            sidecars[desc] = deviation_sidecar(card, name)
        images = {}
        nearest = nearest_inside(mask)
        for desc, volume in volumes.items():
            # Interpolation with the zeros outside the mask would darken the edge of the brain.
            native, affine = to_native(volume[nearest], record, background=0.0)
            image = np.where(brain, native, np.float32(0))
            write_volume(files[desc], image, affine, sidecar=sidecars[desc], codes=native_codes(record))
            if desc in DRAWN or desc.startswith("deviation"):  # memory does not grow with the number of samples
                images[desc] = image
        files["regions"] = layout.region_table(scan, self.source, self.target)
        commit_json(sidecar_path(files["regions"]), region_sidecar(card, self.target, sampling))
        table = region_table(prediction, mask, self.regions, temperature=self.config.temperature)
        commit_text(files["regions"], table_text(table))
        return files, images

    def _draw(
        self,
        scan: Scan,
        raw: Path,
        verdict: Verdict,
        images: Mapping[str, Singles],
        record: Mapping[str, Any],
        brain: Bools,
    ) -> Path:
        """Draw the native `images` beside the raw source, in the template's orientation.

        Raises:
            DataError: the raw source cannot be read, or is on another grid.
        """
        path = self.layout.figure(scan, "synth")
        source = read_volume(raw, verified=True, nan_as_zero=self.source.never_zero)
        deviations = [np.abs(image) for desc, image in images.items() if desc.startswith("deviation")]
        canvas = result_figure(
            source=source.array,
            mean=images["synth"],
            std=images.get("synthstd"),
            affine=np.array(record["source_to_template"]) @ source.affine,
            unit=self.target.unit,
            window=self.target.window,
            title=f"{scan.key}: {verdict.outcome}",
            mask=brain,
            flagged=np.any([image > image.max() / 2 for image in deviations], axis=0) if deviations else None,
            source_name=self.source.suffix,
            target_name=self.target.tracer or self.target.suffix,
        )
        canvas.save(path, quality=JPEG_QUALITY)
        return path


def volumes_of(prediction: Prediction, config: ConvertConfig) -> dict[str, Singles]:
    """The volumes `[D, H, W]` to write, by BIDS `desc`; no standard deviation where it is unknown."""
    volumes = {"synth": prediction.mean}
    if prediction.samples is not None or prediction.std.any():
        volumes["synthstd"] = prediction.std
    if prediction.samples is not None and prediction.sample_mean is not None:
        volumes["synthmean"] = prediction.sample_mean
        for index, sample in enumerate(prediction.samples[: config.keep_samples], 1):
            volumes[f"synth{index:02d}"] = sample
        if config.quantiles:
            # The i-th of K samples lies at probability i / (K + 1), the share of further samples that fall below it.
            maps = np.percentile(prediction.samples, QUANTILES, axis=0, method="weibull").astype(np.float32)
            volumes |= {f"synthq{percentile:02d}": image for percentile, image in zip(QUANTILES, maps, strict=True)}
    return volumes


def nearest_inside(mask: Bools) -> tuple[NDArray[np.intp], ...]:
    """Index of the nearest voxel inside the mask `[D, H, W]`, for each voxel; each voxel itself for an empty mask."""
    if not mask.any():
        return tuple(np.indices(mask.shape))
    return tuple(distance_transform_edt(~mask, return_distances=False, return_indices=True))


def scan_seed(seed: int, scan: Scan) -> int:
    """Seed that depends on `seed` and this scan only, so that its samples do not depend on the other scans."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{scan.key}".encode()).digest()[:4], "little")
