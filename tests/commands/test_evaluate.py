"""The step that scores trained models: its device, and the warning of the stress test."""

import pandas as pd
import pytest
import torch

from dualflow.commands import evaluate as module
from dualflow.commands.convert_study import convert
from dualflow.commands.evaluate import _stress, evaluate
from dualflow.config import parse_config
from dualflow.errors import ConfigError
from dualflow.evaluation.stress import COLUMNS


def test_models_are_scored_on_the_device_of_the_training():
    """A GPU that the training asks for and that is absent is an error of `train.device`."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    config = parse_config({"study": {"name": "tiny"}, "train": {"device": "cuda"}})
    with pytest.raises(ConfigError, match=r"train\.device = cuda"):
        evaluate(config, ["dualflow"], 0)
    with pytest.raises(ConfigError, match=r"train\.device = cuda"):
        convert(config, "dualflow", 0)


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
