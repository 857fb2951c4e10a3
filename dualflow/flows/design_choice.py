"""Choice of a stacked mean's features by cross-fitting: harmonisation, detail, contrast and abnormality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise, product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dualflow.flows.abnormality import NO_ABNORMALITY, AbnormalityRow, abnormality_rows
from dualflow.flows.harmonise import HARMONISATIONS, Harmonise, quantiles
from dualflow.flows.regional_law import RegionalLaw
from dualflow.flows.regression_scans import RegressionScan
from dualflow.flows.rich_features import ABNORMAL, RichFeatures
from dualflow.flows.usual_source import deviations_from_others
from dualflow.flows.voxel_features import foreground

SCREENED = 256
"""Largest number of scans on which features are compared. With few, the noise hides what rare lesions explain."""
MIN_REDUCTION = 1e-4
"""Share of the error that features must remove; less is rounding."""


class PreparedScan(NamedTuple):
    """A training scan with the images that its features are made of.

    Attributes:
        scan: the scan.
        side: complete side values, centred, `[1, S]`.
        harmonised: its harmonised source `[C, D, H, W]`.
        abnormal: its abnormality map `[D, H, W]`, by a reference without the scans of this subject.
        detail: its harmonised detail `[C, D, H, W]`; None if the features do not use it.
    """

    scan: RegressionScan
    side: Tensor
    harmonised: Tensor
    abnormal: Tensor
    detail: Tensor | None


class DesignChoice:
    """Fits RichFeatures to training scans, choosing among its candidates by the cross-fitted error of a RegionalLaw.

    All scans give the reference (quantiles, usual source); up to SCREENED of them are compared.

    Args:
        design: the features, fitted in place.
        scans: training scans.
        sides: their complete side values, centred, `[N, S]`.
        domain: `[D, H, W]` bool, the union of the training masks.
    """

    def __init__(self, design: RichFeatures, scans: Sequence[RegressionScan], sides: Tensor, domain: Tensor) -> None:
        self.design, self.scans, self.domain = design, scans, domain
        self.sides = torch.split(sides, 1)
        self.folds = max(scan.fold for scan in scans) + 1
        self.tissue_count = design.tissue.count(sides.shape[1], design.channels)
        order = torch.randperm(len(scans), generator=torch.Generator().manual_seed(0))
        self.screened: list[int] = order[:SCREENED].sort().values.tolist()

    def fit(self) -> tuple[list[PreparedScan], dict[str, Any]]:
        """Fit the design; return the prepared scans and the choices."""
        design = self.design
        design.fit_contrast(torch.stack([quantiles(scan.source).flatten() for scan in self.scans]))
        facts = self._choose_harmonisation()
        design.harmonise.fit([scan.source for scan in self.scans], facts["harmonisation"])
        pairs = [design.harmonise.scan(scan.source, scan.detail) for scan in self.scans]
        harmonised, details = [image for image, _ in pairs], [detail for _, detail in pairs]
        facts |= self._choose_detail(harmonised, details)
        masks = [foreground(scan.source[None])[0, 0] for scan in self.scans]
        images = list(zip(harmonised, masks, strict=True))
        design.abnormality.fit(images)
        deviations = list(deviations_from_others(design.abnormality, images, [scan.subject for scan in self.scans]))
        details = details if design.detailed else [None] * len(details)
        facts |= self._choose_blocks(harmonised, details, deviations)
        abnormal = map(design.abnormality.combined, deviations)
        return list(map(PreparedScan, self.scans, self.sides, harmonised, abnormal, details)), facts

    def _choose_harmonisation(self) -> dict[str, Any]:
        """Choose the row of HARMONISATIONS of each channel, one channel after the other."""
        choice, rmse = [0] * self.design.channels, list[float]()
        for channel in range(self.design.channels):
            errors = {}
            for row in range(len(HARMONISATIONS)):
                choice[channel] = row
                errors[row] = self._harmonised_error(choice)
            choice[channel] = min(errors, key=errors.__getitem__)
            rmse += errors.values()
        return {"harmonisation": choice, "harmonisation_rmse": rmse}

    def _harmonised_error(self, choice: Sequence[int]) -> float:
        harmonise = Harmonise(self.design.channels)
        harmonise.fit([self.scans[index].source for index in self.screened], choice)
        return self._error(lambda index: self._tissue(index, harmonise.scan(self.scans[index].source)[0], None))

    def _error(self, features: Callable[[int], Tensor]) -> float:
        """Return the cross-fitted error with tissue features `[P, D, H, W]` of the screened scans, by position."""
        law = RegionalLaw(self.domain, self.folds, self.tissue_count)
        for index in self.screened:
            scan = self.scans[index]
            law.add(features(index), scan.target[0], scan.mask[0], scan.fold)
        return law.rmse()

    def _tissue(self, index: int, harmonised: Tensor, detail: Tensor | None) -> Tensor:
        """Return the tissue features `[P, D, H, W]` of a scan."""
        return self.design.tissue(harmonised[None], self.sides[index], None if detail is None else detail[None])[0]

    def _choose_detail(self, harmonised: Sequence[Tensor], details: Sequence[Tensor | None]) -> dict[str, Any]:
        """Choose whether the tissue maps use the detail, if all scans have it."""
        self.design.uses_detail.fill_(False)
        if any(detail is None for detail in details):
            return {}
        without = self._error(lambda index: self._tissue(index, harmonised[index], None))
        with_detail = self._error(lambda index: self._tissue(index, harmonised[index], details[index]))
        self.design.uses_detail.fill_(with_detail < (1 - MIN_REDUCTION) * without)
        return {"detail": self.design.detailed, "detail_rmse": [without, with_detail]}

    def _choose_blocks(
        self, harmonised: Sequence[Tensor], details: Sequence[Tensor | None], deviations: Sequence[Tensor]
    ) -> dict[str, Any]:
        """Choose whether the contrast helps, and which abnormality; features that do not help become 0."""
        design, abnormality = self.design, self.design.abnormality
        candidates = self._candidates(deviations)
        rows = {row.name: row for row in candidates}
        sizes = [self.tissue_count, design.contrast_count, *[ABNORMAL] * len(rows)]
        tissue, contrast, *abnormal = (list(range(*bounds)) for bounds in pairwise([0, *accumulate(sizes)]))
        law = RegionalLaw(self.domain, self.folds, sum(sizes))
        for index in self.screened:
            scan = self.scans[index]
            base = self._tissue(index, harmonised[index], details[index])
            parts = [base, design.contrast_features(scan.source, base)]
            for row, load in candidates.items():
                abnormality.choose(row, load=load)
                parts.append(design.abnormal_features(abnormality.combined(deviations[index]), base))
            law.add(torch.cat(parts), scan.target[0], scan.mask[0], scan.fold)
        blocks = {NO_ABNORMALITY.name: list[int](), **dict(zip(rows, abnormal, strict=True))}
        errors = {
            (use, name): law.rmse([*tissue, *(contrast if use else []), *block])
            for use, (name, block) in product((False, True), blocks.items())
        }
        simplest = (False, NO_ABNORMALITY.name)
        use, name = min(errors, key=errors.__getitem__)
        if errors[use, name] > (1 - MIN_REDUCTION) * errors[simplest]:
            use, name = simplest
        if not use:
            design.axis.zero_()
        abnormality.choose(rows.get(name, NO_ABNORMALITY), deviations)
        table = {f"{block}{' and contrast' * joined}": error for (joined, block), error in errors.items()}
        return {"contrast": use, "abnormality": name, "design_rmse": table}

    def _candidates(self, deviations: Sequence[Tensor]) -> dict[AbnormalityRow, float]:
        """Return the abnormalities that enough of the screened people show, and their typical loads of a hemisphere.

        Enough have a voxel of it if they are as many as its features. Fewer people do not tell its features apart:
        their errors would be taken for its effect, and a new person with more abnormal tissue would get a multiple.
        """
        abnormality, candidates = self.design.abnormality, dict[AbnormalityRow, float]()
        for row in abnormality_rows(self.design.channels):
            abnormality.choose(row)
            totals = abnormality.totals([deviations[index] for index in self.screened])
            shown = {
                self.scans[index].subject for index, total in zip(self.screened, totals, strict=True) if total >= 1
            }
            if len(shown) >= ABNORMAL:
                candidates[row] = float(totals.mean()) / 2
        return candidates
