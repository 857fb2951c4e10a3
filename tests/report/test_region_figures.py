"""Figures of region means."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from dualflow.evaluation.agreement import agreement
from dualflow.imaging.atlas import short_name
from dualflow.imaging.meta_regions import meta_regions
from dualflow.imaging.regions import RegionMap
from dualflow.modalities import MODALITIES
from dualflow.report.region_figures import agreement_plot, region_errors, side_effects
from dualflow.report.region_means import RegionMeans
from dualflow.report.style import to_png

ROW = MODALITIES["FDG"]
REGIONS = [f"ctx-{side}h-{name}" for side in "lr" for name in ("cuneus", "inferiortemporal", "superiorfrontal")]


@pytest.fixture
def means() -> RegionMeans:
    """Eight people of six regions, of which the right cuneus is far too high."""
    rng = np.random.default_rng(0)
    real = 1 + 0.1 * rng.normal(size=(8, 6))
    synthetic = real + 0.02 * rng.normal(size=(8, 6))
    synthetic[:, 3] += 0.4
    return RegionMeans(tuple(f"sub-{i}" for i in range(8)), tuple(REGIONS), real, synthetic)


@pytest.fixture
def atlas() -> RegionMap:
    """The regions as slabs of 1 to 6 voxels."""
    labels = np.repeat(np.arange(7), [3, 1, 2, 3, 4, 5, 6])
    return RegionMap(labels[None, None], tuple(REGIONS), (4.0, 4.0, 4.0))


def test_a_meta_region_is_a_mean_over_voxels(means, atlas):
    """As in the tables, where large regions count more; it is unknown if one of its regions is."""
    real = means.real.copy()
    real[0, 3] = np.nan
    means = replace(means, real=real)
    for name, (found, _) in means.meta_regions(atlas).items():
        inside = np.array([short_name(region) in meta_regions()[name] for region in REGIONS])
        weights = inside * np.arange(1.0, 7.0)
        assert found[0] == pytest.approx(weights[inside] @ real[0, inside] / weights.sum(), nan_ok=True)
        assert found[1] == pytest.approx(weights @ real[1] / weights.sum())


def test_the_agreement_plot_draws_bias_and_limits(means):
    """Three lines lie at the bias and the limits, and the region with the largest error is named."""
    figure = agreement_plot(means, ROW)
    heights = [line.get_ydata()[0] for line in figure.axes[0].lines]
    limits = agreement(means.real, means.synthetic)
    assert heights[:3] == pytest.approx([limits.high, limits.bias, limits.low])
    assert figure.legends[0].get_texts()[0].get_text() == "cuneus, right"
    assert to_png(figure) == to_png(agreement_plot(means, ROW))


def test_the_worst_regions_are_named_first(means):
    """Rows are sorted by mean absolute error, and all regions have a row or belong to the others."""
    labels = [label.get_text() for label in region_errors(means).axes[0].get_yticklabels()]
    assert labels[0] == "cuneus, right"
    assert len(labels) == 6


def test_effects_are_drawn_for_numbers_and_categories(means, atlas):
    """A number has a line per image, a category a mean per level; unknown values are left out."""
    side = pd.DataFrame({"age": [60.0, 65, 70, 75, 80, np.nan, 62, 71], "diagnosis": ["AD", "CN"] * 4})
    figure = side_effects(means.meta_regions(atlas), side, ROW)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    groups = list(means.meta_regions(atlas))
    assert [axes.get_title(loc="left") for axes in shown] == groups * 2
    dots, line = shown[0].lines[:2]
    assert len(dots.get_xdata()) == 7
    slope = np.polyfit(side["age"].drop(5), np.delete(means.meta_regions(atlas)[groups[0]][0], 5), 1)[0]
    assert np.diff(line.get_ydata()) / np.diff(line.get_xdata()) == pytest.approx(slope)
    assert [text.get_text() for text in shown[-1].get_xticklabels()] == ["AD", "CN"]
    assert to_png(side_effects(means.meta_regions(atlas), side, ROW, columns=2))


def test_dollar_signs_in_names_are_no_formulas(means, atlas):
    """Columns and levels may have any character."""
    side = pd.DataFrame({"$a_b^c^d$": [60.0, 65, 70, 75, 80, 62, 71, 66], "income": [r"$\frac$", "$20k-$50k_"] * 4})
    figure = side_effects(means.meta_regions(atlas), side, ROW)
    assert to_png(figure)
    levels = [text.get_text() for text in [axes for axes in figure.axes if axes.get_visible()][-1].get_xticklabels()]
    assert levels == ["$20k-$50k_", r"$\frac$"]
