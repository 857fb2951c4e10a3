"""Closed-form, cross-fitted fit of a StackedMean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from dualflow.flows.design_choice import DesignChoice, PreparedScan
from dualflow.flows.local_linear_fit import RIDGES, SIGMAS, LocalLinearFit, RungTable, fit_local_linear
from dualflow.flows.regression_scans import RegressionScan
from dualflow.flows.rich_features import RichFeatures
from dualflow.flows.stacked_mean import StackedMean
from dualflow.flows.voxel_domain import extended
from dualflow.flows.voxel_features import blur, foreground

LADDER = (
    RungTable(SIGMAS, (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0), mirrored=True),
    RungTable(SIGMAS[:3], (10.0, 30.0, 100.0, 300.0, 1000.0)),
)
"""Candidates of the rich regression: a voxel with its mirror image, then the voxel alone."""
SPREAD_WIDTH = 1.5
"""Smoothing of the map of the residual spread, in voxels."""
SHOWN = 16
"""Scans on which the posterior of the coefficients is matched to the jackknife."""


def fit_stacked_mean(
    scans: Iterable[RegressionScan],
    model: StackedMean,
    *,
    ridges: Sequence[float] = RIDGES,
    sigmas: Sequence[float] = SIGMAS,
    ladder: Sequence[RungTable] = LADDER,
) -> tuple[StackedMean, list[Tensor], dict[str, Any]]:
    """Fit `model` in place; every choice is made by cross-fitting.

    No target of a scan's fold enters the regressions that predict the scan; the gains see it only through the
    cross-fitted images of other scans. Shared by all scans are the references of the sources, which see no target, the
    choices among candidates, the stacking weight, and the weight of the gain.

    Args:
        scans: training scans, iterated several times.
        model: receives the fit to all scans.
        ridges: candidate strengths of the plain regression, in scans.
        sigmas: candidate smoothing widths of the plain regression, in voxels.
        ladder: candidates of the rich regression, from coarse to fine.

    Returns:
        The model; the cross-fitted prediction `[1, D, H, W]` of each scan; the choices and errors.

    Raises:
        DataError: there is no scan, or all scans are in one fold.
    """
    scans = [scan.split(model.features.channels) for scan in scans]
    _, plain, facts = fit_local_linear(scans, model.plain, ridges=ridges, sigmas=sigmas)
    rich, choices = _fit_rich(scans, model, ladder)
    weight = stacking_weight(plain, rich, scans)
    images = [torch.lerp(*pair, weight) for pair in zip(plain, rich, strict=True)]
    model.weight.fill_(weight)
    held_out, gain = _fit_gain(scans, model, images)
    images = [image * (1 + one) for image, one in zip(images, held_out, strict=True)]
    return model, images, {**facts, **choices, "weight": weight, **gain}


def _fit_rich(
    scans: Sequence[RegressionScan], model: StackedMean, tables: Sequence[RungTable]
) -> tuple[list[Tensor], dict[str, Any]]:
    """Fit the rich regression in place; return its cross-fitted predictions `[1, D, H, W]`, and its choices."""
    rich, design = model.rich, model.features
    rich.side_mean.copy_(model.plain.side_mean)
    domain = torch.stack([scan.mask[0] for scan in scans]).any(dim=0)
    sides = torch.cat([rich.complete(scan.source[None], scan.side[None]) for scan in scans])
    prepared, facts = DesignChoice(design, scans, sides, domain).fit()
    fit = LocalLinearFit(rich, domain, max(scan.fold for scan in scans) + 1)
    for one in prepared:
        fit.add_features(_features(design, one), one.scan.target, one.scan.mask, one.scan.fold)
    ladder, rmse = fit.choose(tables)
    folds = sorted({scan.fold for scan in scans})
    laws = torch.stack([fit.climb(ladder, fold) for fold in folds])
    images, spread = [], torch.zeros(2, *rich.shape)
    for one in prepared:
        inside = foreground(one.scan.source[None])[0]
        image = torch.zeros(1, *rich.shape)
        image[0, domain] = (_features(design, one)[:, domain] * laws[folds.index(one.scan.fold)]).sum(dim=0)
        images.append(image * inside)
        spread += torch.cat([(images[-1] - one.scan.target).square(), torch.ones_like(image)]) * one.scan.mask
    rich.coefficients.copy_(extended(fit.coefficients(None, ladder), domain))
    errors, counts = blur(spread, SPREAD_WIDTH)
    shown = [_features(design, one)[:, domain] for one in prepared[:: max(len(prepared) // SHOWN, 1)][:SHOWN]]
    spread_map = (errors / counts.clamp_min(1e-3)).sqrt() * domain
    # A rung with mirror images solves twice the normal equations against one ridge.
    ridge = ladder[0].ridge / (2 if ladder[0].mirrored else 1)
    model.posterior.fit(fit.precision(ridge), extended(spread_map[None], domain)[0], shown, laws, domain)
    facts |= {"rich_ladder": [rung._asdict() for rung in ladder], "rich_rmse": rmse}
    return images, facts


def _features(design: RichFeatures, scan: PreparedScan) -> Tensor:
    return design.person(scan.scan.source, scan.harmonised, scan.abnormal, scan.side, scan.detail)


def stacking_weight(plain: Sequence[Tensor], rich: Sequence[Tensor], scans: Sequence[RegressionScan]) -> float:
    """Return the w in 0..1 with the least squared error of plain + w (rich - plain), of cross-fitted predictions."""
    product = square = 0.0
    for first, second, scan in zip(plain, rich, scans, strict=True):
        step = (second - first)[scan.mask].double()
        product += float(step @ (scan.target - first)[scan.mask].double())
        square += float(step @ step)
    return min(max(product / square, 0.0), 1.0) if square else 0.0


def _fit_gain(
    scans: Sequence[RegressionScan], model: StackedMean, images: Sequence[Tensor]
) -> tuple[Tensor, dict[str, Any]]:
    """Fit the gain to the cross-fitted images; return the gain of each scan by a fit without its fold, and facts."""
    gains, rows = [], []
    for scan, image in zip(scans, images, strict=True):
        mean, error = image[scan.mask], (scan.target - image)[scan.mask]
        gains.append(mean @ error / (mean @ mean).clamp_min(1e-12))
        rows.append(model.gain.describe(scan.source, model.plain.complete(scan.source[None], scan.side[None])))
    folds, subjects = [scan.fold for scan in scans], [scan.subject for scan in scans]
    return model.gain.fit(torch.stack(rows), torch.stack(gains), folds, subjects)
