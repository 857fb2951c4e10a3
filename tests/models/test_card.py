"""The model card: JSON round trip and validation."""

import gc
import json
import shutil
import time
from functools import reduce

import pytest
from pydantic import ValidationError

from dualflow.config import StudyConfig
from dualflow.errors import CheckpointError
from dualflow.models.card import ModelCard, StudyRecord
from dualflow.models.store import load_model

HUGE, NAN, INF = 10**30, float("nan"), float("inf")
NESTED, MISSING = "<nested>", "<missing>"
HOSTILE = [
    ("format", 2), ("format", "1"), ("format", [1]),
    ("name", 1), ("name", None), ("name", "x" * 1000), ("name", MISSING),
    ("seed", "0"), ("seed", -1), ("seed", 0.5), ("seed", HUGE), ("seed", True),
    ("kind", ["flow"]), ("kind", MISSING), ("kind", "unet"),
    ("spec", None), ("spec", []), ("spec", "dualflow"), ("spec", {}),
    ("spec.levels", 0), ("spec.levels", -1), ("spec.levels", HUGE), ("spec.levels", "3"), ("spec.levels", 3.0),
    ("spec.steps", [1_000_000, 1, 1]), ("spec.steps", [128, 128, 128]), ("spec.steps", [-1, 1, 1]),
    ("spec.steps", "abc"), ("spec.steps", [1]), ("spec.steps", [[1], 1, 1]), ("spec.steps", [NAN, 1, 1]),
    ("spec.steps", NESTED), ("spec.steps", [1] * 100_000),
    ("spec.hidden", [HUGE, 8, 8]), ("spec.hidden", [2048, 2048, 2048]), ("spec.hidden", MISSING),
    ("spec.context_channels", 10**9), ("spec.context_channels", 1024), ("spec.transition_steps", 10**6),
    ("spec.transition_steps", 64), ("spec.prior_kernel", 10**6 + 1), ("spec.prior_kernel", 31),
    ("spec.low_rank", 10**12), ("spec.low_rank", 65536), ("spec.low_rank", -1),
    ("spec.prediction_samples", 10**9), ("spec.residual_scale", NAN), ("spec.residual_scale", INF),
    ("spec.residual_scale", -1.0), ("spec.residual_scale", "1"), ("spec.injector", 1), ("spec.source", ["glow"]),
    ("spec.unknown", 1),
    ("options", []), ("options.width", 10**12), ("options.width", -1), ("options.width", "8"),
    ("shape", [1 << 40] * 3), ("shape", [1024] * 3), ("shape", [-16, 16, 16]), ("shape", [16, 16]),
    ("shape", ["16", 16, 16]), ("shape", [16.5, 16, 16]), ("shape", 16), ("shape", [512, 512, 512]),
    ("study", 1), ("study.name", 5), ("study.side", "age"), ("study.extra_sources", ["T2w"] * 100_000),
    ("study.extra_sources", ["T2w"] * 15), ("study.extra_sources", "FLAIR"), ("study.target", MISSING),
    ("side", None), ("side", []), ("side.columns", 3), ("side.columns", [1]), ("side.columns", [None]),
    ("side.columns", [{"kind": ["Continuous"]}]), ("side.columns", [{"kind": "Continuous", "name": "age"}]),
    ("side.columns", [{"kind": "Continuous", "name": 1, "mean": 70.0, "sd": 8.0}]),
    ("side.columns", [{"kind": "Continuous", "name": "age", "mean": NAN, "sd": 8.0}]),
    ("side.columns", [{"kind": "Continuous", "name": "age", "mean": 70.0, "sd": -1.0}]),
    ("side.columns", [{"kind": "Continuous", "name": "age", "mean": 70.0, "sd": 10**400}]),
    ("side.columns", [{"kind": "Continuous", "name": "age", "mean": 70.0, "sd": "8"}]),
    ("side.columns", [{"kind": "Continuous", "name": "age", "mean": 70.0, "sd": 8.0, "colour": 1}]),
    ("side.columns", [{"kind": "Categorical", "name": "sex", "levels": "FM"}]),
    ("side.columns", [{"kind": "Categorical", "name": "sex", "levels": [str(level) for level in range(100_000)]}]),
    ("side.columns", [{"kind": "Continuous", "name": "age", "mean": 70.0, "sd": 8.0}] * 4000),
    ("preprocess", "x"), ("preprocess.aligned", "x"), ("preprocess.aligned", 1), ("preprocess.spacing_mm", INF),
    ("preprocess.spacing_mm", "4"), ("preprocess.shape", [1 << 30] * 3), ("preprocess.shape", [0, 1, 1]),
    ("preprocess.reference_region", "moon"), ("preprocess.scanner_resolution_mm", {"x": NAN}),
    ("preprocess.pet_window_s", [NAN, 1.0]), ("preprocess.workers", -1),
    ("constant_spread.voxel", NAN), ("constant_spread.voxel", -1.0), ("constant_spread.regions", 10**9),
    ("constant_spread", [1, 2, 3]), ("parameters", -1), ("parameters", "many"),
    ("training", []), ("training.seconds", NAN), ("training.best_step", 1.5), ("training.base", {"x": "y"}),
    ("training.calibration", {"x": INF}), ("training.mean", NESTED),
    ("weights_sha256", 0), ("weights_sha256", "0" * 64), ("dualflow", None), ("torch", ["2"]),
    ("extra", "y" * 2_000_000),
]  # fmt: skip
"""Field of the card of a small flow, and a value that no training writes."""


def test_a_card_survives_json(card):
    """Spec, side encoder and preprocessing are restored as objects."""
    restored = ModelCard.model_validate_json(card.model_dump_json())
    assert restored == card
    assert restored.side.names == ["age"]
    assert restored.spec.low_rank == 2


def test_a_card_holds_no_path_of_the_study():
    """The study record has modalities and column names, but no paths."""
    study = StudyConfig(name="x", bids="somewhere", side=("age",), extra_sources=("FLAIR",))
    record = StudyRecord.of(study)
    assert record.extra_sources == ("FLAIR",)
    assert "somewhere" not in record.model_dump_json()


def test_a_card_counts_its_source_channels(card):
    """One channel for the main source, and one for each extra source."""
    study = card.study.model_copy(update={"extra_sources": ("FLAIR", "T2w")})
    assert card.model_copy(update={"study": study}).source_channels == 3


def test_an_unknown_field_is_refused(card):
    """A card with unknown fields, as of a later version, is not partly read."""
    with pytest.raises(ValidationError):
        ModelCard.model_validate(card.model_dump() | {"colour": "blue"})


@pytest.fixture(scope="module")
def loaded_folder(model_folder):
    """Folder of a small flow that was loaded once, because the first load imports parts of torch."""
    load_model(model_folder)
    return model_folder


@pytest.fixture
def _no_collection():
    """Keep the garbage of earlier tests, because collecting it can take a second of the time that a test measures."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collection")
@pytest.mark.parametrize(("field", "value"), HOSTILE, ids=lambda part: repr(part)[:40])
def test_a_hostile_card_is_refused_at_once(loaded_folder, tmp_path, field, value):
    """Nothing of the claimed size is built: the error is one line and takes less than a second."""
    shutil.copytree(loaded_folder, tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    content = json.loads(path.read_text())
    *parents, name = field.split(".")
    section = reduce(lambda node, parent: node[parent], parents, content)
    if value is MISSING:
        del section[name]
    else:
        section[name] = "NESTED" if value is NESTED else value
    path.write_text(json.dumps(content).replace('"NESTED"', "[" * 5000 + "]" * 5000))
    start = time.thread_time()
    with pytest.raises(CheckpointError) as error:
        load_model(tmp_path / "model")
    assert time.thread_time() - start < 1
    assert "\n" not in str(error.value)


def test_a_card_of_100_mb_is_not_read(loaded_folder, tmp_path):
    """The size of the file is checked first."""
    shutil.copytree(loaded_folder, tmp_path / "model")
    with (tmp_path / "model" / "model.json").open("ab") as stream:
        stream.truncate(100 << 20)
    with pytest.raises(CheckpointError, match=r"104,857,600 bytes, expected at most 1,048,576"):
        load_model(tmp_path / "model")


def test_a_shown_commit_tells_of_changed_code(card):
    assert card.model_copy(update={"commit": "0123456789abcdef"}).short_commit == "0123456789ab"
    assert card.model_copy(update={"commit": "0123456789abcdef-dirty"}).short_commit == "0123456789ab-dirty"
    assert card.model_copy(update={"commit": ""}).short_commit == ""
