"""Reference of a model: fitting, saving and loading."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dualflow.commit import commit_text
from dualflow.data.dataset import PairDataset
from dualflow.digests import sha256
from dualflow.errors import CheckpointError
from dualflow.inference.predict import Prediction, load_predictor
from dualflow.inference.training_reference import (
    REGISTRATION,
    FigureRanges,
    Reference,
    has_enough_people,
    load_reference,
    output_figures,
)
from dualflow.inference.typicality import RATE, Typicality
from tests.conftest import phantom

FIGURES = {
    "template_mi": 0.6,
    "template_dice": 0.95,
    "coverage": 1.0,
    "mask_missing": 0.01,
    "mask_outside": 0.01,
    "mask_stretch": 1.1,
    "voxel_mm": 1.0,
}


@pytest.fixture(scope="module")
def fitted(model_folder):
    """The reference of a small flow for twelve phantoms, and its predictor."""
    predictor = load_predictor(model_folder)
    training = PairDataset([phantom(index) for index in range(1, 13)])
    rng = np.random.default_rng(0)
    figures = [{name: value * (1 + 0.01 * rng.random()) for name, value in FIGURES.items()} for _ in range(12)]
    return Reference.fit(predictor, training, figures), predictor


@pytest.fixture
def saved(fitted, tmp_path):
    """A folder with the reference, and the card that goes with it."""
    reference, predictor = fitted
    digest, files = reference.save(tmp_path)
    assert all(file.is_file() for file in files)
    return tmp_path, predictor.card.model_copy(update={"reference_sha256": digest})


def test_a_reference_is_read_back(fitted, saved):
    """It gives a new scan the same scores, and its predictions the same distances."""
    reference, predictor = fitted
    again = load_reference(*saved)
    item = phantom(20)
    source, mask = item["source"][0].numpy(), item["mask"][0].numpy()
    scores = [one.typicality["T1w"].score(source, mask) for one in (reference, again)]
    assert scores[0].z == pytest.approx(scores[1].z, abs=1e-3)
    assert scores[0].threshold == scores[1].threshold
    assert again.output == reference.output
    assert again.registration == reference.registration
    assert again.voxel_mm == reference.voxel_mm == pytest.approx(1.0, rel=0.02)
    prediction = predictor.predict(item["source"], item["side"], item["mask"], samples=4, temperature=1, seed=0)
    assert set(again.output.distances(output_figures(prediction, mask))) == {"mean", "p01", "p99", "spread"}


def test_every_source_is_described_and_read_back(fitted, tmp_path, capsys):
    """Each has a typicality of its own and its share of the rate; an older model says that it has one."""
    one, predictor = fitted
    items = [phantom(index) for index in range(1, 13)]
    for item, other in zip(items, [phantom(index) for index in range(101, 113)], strict=True):
        item["source"] = torch.cat([item["source"], other["source"] * item["mask"]])
    card = predictor.card.model_copy(
        update={"study": predictor.card.study.model_copy(update={"extra_sources": ("FLAIR",)})}
    )
    prediction = Prediction(np.ones((16, 16, 16), np.float32), np.ones((16, 16, 16), np.float32))
    both = SimpleNamespace(card=card, predict=lambda *_, **__: prediction)
    reference = Reference.fit(both, PairDataset(items), [FIGURES] * 12)
    digest, _ = reference.save(tmp_path)
    again = load_reference(tmp_path, card.model_copy(update={"reference_sha256": digest}))
    assert list(again.typicality) == ["T1w", "FLAIR"]
    masks = [item["mask"][0].numpy() for item in items]
    flair = [item["source"][1].numpy() for item in items]
    spacing_mm, subjects = card.preprocess.spacing_mm, PairDataset(items).subjects
    expected = {
        "T1w": one.typicality["T1w"],
        "FLAIR": Typicality.fit(flair, masks, spacing_mm=spacing_mm, subjects=subjects, leave_out=("mask",)),
    }
    for channel, name in enumerate(expected):
        source = items[0]["source"][channel].numpy()
        score, alone = (each[name].score(source, masks[0]) for each in (again.typicality, expected))
        assert score.z == pytest.approx(alone.z, abs=1e-3)
        assert ("mask" in score.z) == (name == "T1w")
        assert score.lesion == pytest.approx(alone.lesion, abs=1e-3)
        assert score.lesion_threshold == expected[name].peak_law.threshold(RATE / 2) > alone.lesion_threshold
    assert not capsys.readouterr().err
    content = json.loads((tmp_path / "reference.json").read_text())
    del content["further_sources"]
    commit_text(tmp_path / "reference.json", json.dumps(content))
    older = card.model_copy(update={"reference_sha256": sha256(tmp_path / "reference.json")})
    assert list(load_reference(tmp_path, older).typicality) == ["T1w"]
    assert "judged by their T1w alone, not by FLAIR; train again" in capsys.readouterr().err


def test_a_model_without_a_reference_has_none(saved):
    """Its card has no digest."""
    folder, card = saved
    assert load_reference(folder, card.model_copy(update={"reference_sha256": ""})) is None


@pytest.mark.parametrize("name", ["reference.json", "reference.safetensors"])
def test_a_damaged_reference_is_refused(saved, name):
    """A changed or missing file is named."""
    folder, card = saved
    (folder / name).write_bytes((folder / name).read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=name):
        load_reference(folder, card)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_reference(folder, card)


def test_a_reference_of_another_training_is_refused(saved):
    """The card holds its hash."""
    folder, card = saved
    content = json.loads((folder / "reference.json").read_text())
    commit_text(folder / "reference.json", json.dumps(content | {"voxel_mm": 9.0}))
    with pytest.raises(CheckpointError, match="does not match the hash in the model card"):
        load_reference(folder, card)


@pytest.mark.parametrize("visits", [2, 6])
def test_the_threshold_counts_people_not_scans(visits):
    """The repeated visits of one unusual person do not raise it."""
    rows = [{"mean": value} for value in np.random.default_rng(0).normal(1, 0.05, 119)]
    subjects = list(map(str, range(119)))
    once = FigureRanges.fit([*rows, {"mean": 1.5}], {"mean": 0}, [*subjects, "odd"])
    often = FigureRanges.fit([*rows, *[{"mean": 1.5}] * visits], {"mean": 0}, [*subjects, *["odd"] * visits])
    assert often.threshold == pytest.approx(once.threshold, rel=0.1)


def test_an_unknown_figure_of_one_scan_disables_no_check():
    """A figure is left out only if too few scans have it."""
    rows = [{name: FIGURES[name] * (1 + 0.001 * number) for name in REGISTRATION} for number in range(40)]
    subjects = list(map(str, range(40)))
    known = FigureRanges.fit(rows, REGISTRATION, subjects)
    rows[17]["template_mi"] = np.nan
    for row in rows[9:]:
        row["coverage"] = np.nan
    ranges = FigureRanges.fit(rows, REGISTRATION, subjects)
    assert set(ranges.median) == set(REGISTRATION) - {"coverage"}
    assert ranges.median["template_mi"] == pytest.approx(known.median["template_mi"], rel=1e-3)
    assert ranges.distances(FIGURES | {"template_mi": 0.1})["template_mi"] > ranges.threshold
    assert np.isfinite(ranges.threshold)


@pytest.mark.parametrize(("people", "sessions", "enough"), [(6, 2, False), (9, 3, False), (10, 1, True)])
def test_sessions_of_one_person_count_once(people, sessions, enough):
    """A study of few people with many sessions trains without a reference, instead of failing at its end."""
    keys = [f"sub-{person}_ses-{session}" for person in range(people) for session in range(sessions)]
    assert has_enough_people(PairDataset([{"scan": key} for key in keys])) is enough
