"""The step that scores trained models: its device, and the warning of the stress test."""

from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch

from dualflow import __version__
from dualflow.commands import evaluate as module
from dualflow.commands.convert_study import convert
from dualflow.commands.evaluate import _score_scans, _stress, evaluate
from dualflow.commit import commit_text
from dualflow.config import parse_config
from dualflow.data.dataset import PairDataset
from dualflow.errors import ConfigError, DataError
from dualflow.evaluation.mean_error import MeanError
from dualflow.evaluation.stress import COLUMNS
from dualflow.imaging.intensity import INSIDE
from dualflow.imaging.regions import RegionMap
from dualflow.inference.predict import Prediction
from dualflow.layout import Layout
from dualflow.manifest import manifest_outputs, read_manifest, write_manifest
from dualflow.tracking.source_version import COMMIT, source_version
from dualflow.tracking.tracked_run import Run


def test_models_are_scored_on_the_device_of_the_training():
    """A GPU that the training asks for and that is absent is an error of `train.device`."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    config = parse_config({"study": {"name": "tiny"}, "train": {"device": "cuda"}})
    with pytest.raises(ConfigError, match=r"train\.device = cuda"):
        evaluate(config, ["dualflow"], 0)
    with pytest.raises(ConfigError, match=r"train\.device = cuda"):
        convert(config, "dualflow", 0)


@pytest.fixture
def scored(monkeypatch, tmp_path, phantoms):
    """Configuration of a study whose scans are scored without a model."""
    config = parse_config({"study": {"name": "tiny", "results": str(tmp_path)}})
    table, shape = pd.DataFrame({"scan": phantoms.scans}), config.preprocess.shape
    errors = MeanError(shape)
    errors.add(*np.ones((2, *shape), np.float32), np.ones(shape, bool), weight=1)
    results = module._ScoredScans(table, table, table, [np.zeros((2, 0))] * len(phantoms), errors, b"")
    predictor = SimpleNamespace(card=SimpleNamespace(side=None, weights_sha256="0"), flow=None)
    pairs = pd.DataFrame({"scan": phantoms.scans, "subject": phantoms.subjects, "split": "test"})
    stand_ins = {
        "load_predictor": predictor,
        "usable_pairs": pairs,
        "scan_digests": {},
        "region_map": SimpleNamespace(names=()),
        "load_split": phantoms,
        "_score_scans": results,
        "_log": None,
        "model_run": nullcontext(Run()),
    }
    for name, value in stand_ins.items():
        monkeypatch.setattr(module, name, _returning(value))
    return config


def _returning(value):
    return lambda *_, **__: value


def test_tables_of_other_options_go(scored):
    """The report would link a classification or a stress test of an earlier model."""
    layout = scored.layout
    earlier = [layout.downstream("dualflow", 0), layout.stress("dualflow", 0)]
    for path in earlier:
        commit_text(path, "of an earlier configuration\n")
    evaluate(scored, ["dualflow"], 0)
    assert not [path for path in earlier if path.exists()]
    assert set(layout.tables.glob("*.tsv")) == _tables(layout)


@pytest.fixture
def logged():
    """What an evaluation of two people logs, of whom one has two visits."""
    run = Mock(spec=Run)
    card = SimpleNamespace(name="dualflow", seed=0, training=SimpleNamespace(precision=""), options={})
    scores = pd.DataFrame({"model": "dualflow", "seed": 0, "scan": ["sub-1_ses-1", "sub-1_ses-2", "sub-2"]})
    scores = scores.assign(mae=0.1, bits_in_mask=2.0, bits_slack=[0.1, 0.3, 0.4])
    config = parse_config({"study": {"name": "tiny"}, "evaluate": {"samples": 8, "background_steps": 64}})
    module._log(run, config, SimpleNamespace(card=card), pd.DataFrame({"split": [], "scan": []}), {}, scores)
    return run


def test_an_evaluated_run_has_the_code_and_the_options_of_the_evaluation(logged):
    """They are tags, because MLflow keeps the first value of a parameter; the run's commit is that of the training."""
    tags = logged.tags.call_args.args[0]
    assert tags["evaluated_at"] == (source_version().get(COMMIT) or __version__)
    assert (tags["evaluate.samples"], tags["evaluate.background_steps"]) == ("8", "64")
    assert COMMIT not in tags


def test_the_slack_of_the_bits_is_tracked_beside_them(logged):
    """A mean over people; without it two bounds of different annealing look comparable."""
    scores = logged.scores.call_args.args[0]
    assert scores["test/bits_in_mask_bits_per_voxel"] == pytest.approx(2.0)
    assert scores["test/bits_slack_bits_per_voxel"] == pytest.approx(0.3)


def test_a_model_that_learnt_from_test_people_is_refused(scored):
    """Its scores would be too good; only steps that are run one by one can leave an earlier model."""
    for learnt in (["sub-99", "sub-01_ses-2"], ["sub-99"]):
        manifest = scored.layout.training_manifest("dualflow", 0)
        write_manifest(manifest, step="train", outputs={}, inputs=dict.fromkeys(learnt, "0"), config={})
        with nullcontext() if learnt == ["sub-99"] else pytest.raises(DataError, match=r"learnt from .* people: 01;"):
            evaluate(scored, ["dualflow"], 0)


def test_a_region_hardly_in_view_is_not_scored(monkeypatch, held_out):
    """A few voxels at the edge of the field of view are no region mean, for which a model could be wrong."""
    config = parse_config({"study": {"name": "tiny"}, "preprocess": {"spacing_mm": 12.0, "shape": [16, 16, 16]}})
    stand_ins = {"flow_scores": {}, "closed_form_bits": {}, "attainable_target": None, "_picture": b""}
    for name, value in stand_ins.items():
        monkeypatch.setattr(module, name, _returning(value))
    item, labels = dict(held_out[0]), np.zeros((16, 16, 16), int)
    brain = item["mask"][0].numpy()
    labels[:, :8], labels[:, 8:] = 1, 2
    target = item["target"].clone()
    target[:, :, 9:] = float(INSIDE)
    edge = item["mask"].clone()
    edge[:, :, :8], edge[:, :, 9:] = False, False
    samples = np.stack([target[0].numpy()] * 4) + np.linspace(-0.1, 0.1, 4, dtype=np.float32)[:, None, None, None]
    samples += 5 * edge[0].numpy()
    monkeypatch.setattr(module, "_predict", _returning(Prediction(samples.mean(0), samples.std(0), samples)))
    predictor = SimpleNamespace(flow=None, model=None)
    regions, test = RegionMap(labels, ("a", "b"), (12.0, 12.0, 12.0)), PairDataset([{**item, "target": target}])
    results = _score_scans(config, "flow", 0, predictor, test, regions)
    assert 0 < (labels == 2)[brain & edge[0].numpy()].sum() < 0.9 * ((labels == 2) & brain).sum()
    scores = results.scores.iloc[0]
    assert scores["mae"] > 0.1
    assert scores["region_mae"] < 1e-3
    assert scores["region_crps"] < 0.1
    assert scores["energy_score"] < 0.1
    assert scores["region_coverage_95"] == 1
    real, estimate, whole = results.region_means[0]
    np.testing.assert_allclose(estimate[0], real[0], rtol=1e-3)
    assert np.isnan([real[1], estimate[1]]).all()
    assert np.isfinite(whole).all()
    curve = results.reliability.set_index(["kind", "level"])["coverage"]
    assert curve["region", 0.5] == 1


def _tables(layout: Layout) -> set:
    """Tables in the manifest of the evaluation."""
    path = layout.manifest("evaluate/dualflow_seed-0")
    outputs = manifest_outputs(path, read_manifest(path)).values()
    return {file.path for file in outputs if file.path.suffix == ".tsv"}


def test_non_finite_voxels_cause_a_warning(monkeypatch, capsys, phantoms):
    """Standard error names the model and the number of non-finite voxels; a sound flow causes no output."""
    config = parse_config({"study": {"name": "tiny"}, "evaluate": {"stress": 4}})
    for nonfinite in (0, 5):
        table = pd.DataFrame(
            [(1.0, "own", 2, nonfinite, 1.0), (1.0, "other", 2, nonfinite, 1.0)], columns=list(COLUMNS)
        )
        monkeypatch.setattr(module, "stress", lambda *_, table=table: table)
        _stress(None, phantoms, config, "flow, seed 0")
        errors = capsys.readouterr().err
        assert ("warning: flow, seed 0: 10 voxels" in errors) == bool(nonfinite)
