"""Agreement over people, region by region."""

import numpy as np
import pandas as pd
import pytest

from dualflow.commit import commit_text
from dualflow.config import parse_config
from dualflow.evaluation.metrics import intraclass_correlation
from dualflow.imaging.regions import RegionMap, region_map
from dualflow.layout import training_key
from dualflow.modalities import MODALITIES
from dualflow.report.region_agreement import COLUMNS, SHOWN, agreement_table, region_agreement, study_agreement
from dualflow.report.region_means import RegionMeans

NAMES = ("ctx-lh-inferiortemporal", "ctx-rh-inferiortemporal", "ctx-lh-cuneus")
ATLAS = RegionMap(np.repeat([1, 2, 3], 4).reshape(3, 2, 2), NAMES, (4.0, 4.0, 4.0))


def values(people: int, seed: int = 0, noise: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Real and synthetic means of the regions `[people, 3]`; the synthetic ones are too high by 0.1, 0.2 and -0.3."""
    real = 1.2 + 0.1 * np.random.default_rng(1).normal(size=(people, 3))
    return real, real + [0.1, 0.2, -0.3] + noise * np.random.default_rng(seed + 2).normal(size=real.shape)


def means(real: np.ndarray, synthetic: np.ndarray, scans: list[str] | None = None) -> RegionMeans:
    """Region means of scans, by default one of each person."""
    scans = scans or [f"sub-{number:02d}" for number in range(len(real))]
    return RegionMeans(tuple(scans), NAMES, real, synthetic)


def test_each_region_is_compared_over_people():
    """Bias, limits, r and ICC are those of its values; the meta-region is the mean over its voxels."""
    real, synthetic = values(30)
    rows = region_agreement([means(real, synthetic)], ATLAS)
    assert tuple(rows.columns) == COLUMNS
    by_region = rows.set_index("region")
    assert list(by_region.index[by_region["kind"] == "region"]) == list(NAMES)
    for column, name in enumerate(NAMES):
        entry, difference = by_region.loc[name], synthetic[:, column] - real[:, column]
        assert entry["people"] == 30
        assert entry["bias"] == pytest.approx(difference.mean())
        assert entry["high"] - entry["bias"] == pytest.approx(1.96 * difference.std(ddof=1))
        assert entry["bias"] - entry["low"] == pytest.approx(1.96 * difference.std(ddof=1))
        pair = np.stack([real[:, column], synthetic[:, column]], axis=1)
        assert entry["r"] == pytest.approx(np.corrcoef(pair.T)[0, 1])
        assert entry["icc"] == pytest.approx(intraclass_correlation(pair))
    assert by_region.loc["temporal", "bias"] == pytest.approx((synthetic - real)[:, :2].mean())
    assert by_region.loc["temporal", "kind"] == "meta-region"


def test_visits_are_averaged_and_unknown_ones_left_out():
    """A person with many visits counts once, and one whose image never shows the region does not count."""
    real, synthetic = values(25)
    once = region_agreement([means(real, synthetic)], ATLAS)
    rows = np.repeat(np.arange(25), np.where(np.arange(25) == 3, 4, 1))
    change = np.where(rows == 3, np.cumsum(rows == 3) - 2.5, 0.0)[:, None]
    scans = [f"sub-{person:02d}_ses-{visit}" for visit, person in enumerate(rows)]
    often = region_agreement([means(real[rows] + change, synthetic[rows] - change, scans)], ATLAS)
    pd.testing.assert_frame_equal(once, often)
    real[4, 2] = np.nan
    fewer = region_agreement([means(real, np.where(np.isnan(real), np.nan, synthetic))], ATLAS).set_index("region")
    assert fewer["people"].to_dict() == dict.fromkeys(once["region"], 25) | {NAMES[2]: 24, "occipital": 24}
    assert np.isfinite(fewer.loc[NAMES[2], "r"])


def test_scores_of_seeds_are_averaged_and_not_their_predictions():
    """The mean of several predictions correlates better than one of them."""
    (real, first), (_, second) = values(40, 0, 0.2), values(40, 1, 0.2)
    both, one, two, mean = (
        region_agreement([means(real, synthetic) for synthetic in seeds], ATLAS)["r"]
        for seeds in ((first, second), (first,), (second,), ((first + second) / 2,))
    )
    np.testing.assert_allclose(both, (one + two) / 2)
    assert (both < mean).all()


@pytest.mark.parametrize("people", [1, 19, 20])
def test_few_people_have_no_correlation(people):
    """Bias and limits need two people, r and ICC twenty; the table says so."""
    rows = region_agreement([means(*values(people))], ATLAS)
    assert np.isfinite(rows[["r", "icc"]].to_numpy()).all() == (people == 20)
    assert np.isfinite(rows[["bias", "low", "high"]].to_numpy()).all() == (people > 1)
    table = agreement_table(rows, MODALITIES["FDG"], "dualflow")
    assert ("no r and no ICC" in table.caption) == (people < 20)
    assert ("r over people" in table.frame) == ("know" in table.caption) == (people >= 20)


def test_the_report_shows_the_regions_with_the_largest_bias():
    """After all meta-regions, whatever their bias; names are readable."""
    entry = {"kind": "region", "people": 30, "low": -0.2, "high": 0.2, "r": 0.5, "icc": 0.4}
    regions = [entry | {"region": f"ctx-lh-region{i}", "bias": 0.01 * i * (-1) ** i} for i in range(SHOWN + 5)]
    rows = pd.DataFrame([entry | {"kind": "meta-region", "region": "AD signature", "bias": 0.001}, *regions])
    table = agreement_table(rows, MODALITIES["FDG"], "dualflow")
    assert list(table.frame["Region"][:3]) == ["AD signature", f"region{SHOWN + 4}, left", f"region{SHOWN + 3}, left"]
    assert len(table.frame) == 1 + SHOWN
    assert table.frame.iloc[2].tolist()[1:] == ["30", "-0.150", "-0.200 to +0.200", "0.50", "0.40"]
    assert f"the {SHOWN} of {SHOWN + 5} regions" in table.caption


def test_all_seeds_of_the_main_model_are_read(tmp_path):
    """From the tables of its evaluations; those of other models are not needed."""
    config = parse_config({
        "study": {"name": "x", "results": str(tmp_path), "side": ["age"]},
        "train": {"seeds": [0, 1]}, "preprocess": {"spacing_mm": 8.0, "shape": [24, 32, 24]},
    })  # fmt: skip
    names = region_map(config.preprocess).names[:3]
    for seed in config.train.seeds:
        real, synthetic = values(20, seed)
        table = pd.DataFrame([
            (f"sub-{person:02d}", region, real[person, column], synthetic[person, column])
            for person in range(20) for column, region in enumerate(names)
        ], columns=["scan", "region", "real", "estimate"])  # fmt: skip
        path = config.layout.table(f"regions_{training_key(config.model.preset, seed)}")
        commit_text(path, table.to_csv(sep="\t", index=False))
    rows = study_agreement(config).set_index("region")
    bias = np.mean([values(20, seed)[1] - values(20, seed)[0] for seed in (0, 1)], axis=(0, 1))
    np.testing.assert_allclose(rows.loc[list(names), "bias"], bias)
