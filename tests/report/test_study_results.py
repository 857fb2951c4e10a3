"""Results of a whole study, gathered from the tables of evaluation."""

import pandas as pd
import pytest
from comparison import study_values, train_and_score

from dualflow.commit import commit_text
from dualflow.config import parse_config
from dualflow.errors import DataError
from dualflow.report.study_results import gather_results, read_result

FLOW_COLUMNS = {"nll_true": 1.0, "nll_wrong": 2.0, "nll_blurred": 1.5, "bits_in_mask": 1.4}
FLOW_COLUMNS |= {f"mae_{kind}": 0.2 for kind in ("temperature0", "one_sample", "sample_mean")}
FLOW_COLUMNS |= {"sample_seconds": 0.5, "round_trip_float32": 1e-6, "round_trip_float64": 1e-15}


@pytest.fixture
def config(tmp_path):
    """A study of three flows, two seeds and a ceiling, without baselines."""
    values = study_values(tmp_path) | {"baselines": {"models": []}}
    config = parse_config(values | {"evaluate": {"bootstrap": 100, "stress": 2}})
    for name, seed in config.trainings:
        train_and_score(config, name, seed, 10, mae=0.1 + 0.1 * (name == "wide"), **FLOW_COLUMNS)
        stress = pd.DataFrame({"samples": [2], "nonfinite_voxels": [seed], "largest": [3.0]})
        commit_text(config.layout.stress(name, seed), stress.to_csv(sep="\t", index=False))
    ceiling = pd.DataFrame({"model": "oracle", "seed": 0, "scan": ["sub-1_ses-1"], "mae": 0.01})
    commit_text(config.layout.table("scans_ceilings"), ceiling.to_csv(sep="\t", index=False))
    return config


def test_models_and_ceilings_are_summarised(config):
    """Ceilings have a summary, but no paired difference; every training has its card."""
    results = gather_results(config, ("oracle",))
    assert list(dict.fromkeys(results.summary["model"])) == ["dualflow", "dual_glow", "wide", "oracle"]
    assert set(results.differences["model"]) == {"dual_glow", "wide"}
    assert set(results.differences["reference"]) == {"dualflow"}
    assert list(results.likelihood["model"]) == ["dualflow", "dual_glow", "wide"]
    assert list(results.cards) == [f"{name} seed {seed}" for name, seed in config.trainings]
    assert list(results.tables) == ["summary", "differences", "likelihood"]


def test_stress_tests_are_summed_over_seeds(config):
    """Two seeds of two samples are four samples; a study without stress tests has no totals."""
    totals = gather_results(config, ("oracle",)).stress
    assert totals["samples"].tolist() == [4, 4, 4]
    assert totals["nonfinite_voxels"].tolist() == [1, 1, 1]
    without = config.with_fields("evaluate", stress=0)
    assert gather_results(without, ("oracle",)).stress is None


def test_a_missing_table_is_named_with_the_remedy(config):
    """The error is one line with the file and the command that writes it."""
    path = config.layout.table("scans_wide_seed-1")
    path.unlink()
    with pytest.raises(DataError, match=r"scans_wide_seed-1\.tsv: is missing; `dualflow run` evaluates the models"):
        gather_results(config, ("oracle",))
    with pytest.raises(DataError, match="is missing"):
        read_result(path)
