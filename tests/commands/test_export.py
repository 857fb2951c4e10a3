"""Export of a model of a study: its README has the study's scores, and no file names a person."""

import json
import shutil

import pytest
from evaluated_study import HELD_OUT, TRAINING, EvaluatedStudy

from dualflow.commands.export import export
from dualflow.commit import commit_text
from dualflow.data.index import read_pairs
from dualflow.data.side_encoder import Categorical, SideEncoder
from dualflow.data.tsv import table_text
from dualflow.errors import CheckpointError, ConfigError, DataError
from dualflow.models.store import load_card, load_model, save_model

SCORES = [0.03 + 0.001 * index for index in range(len(HELD_OUT))]


@pytest.fixture
def study(tmp_path, card):
    """A study without models."""
    return EvaluatedStudy(tmp_path / "phantoms", card)


def test_the_readme_has_the_scores_of_the_study(study, tmp_path):
    """Scores with intervals, and numbers of scans of each split."""
    export(study.model("first", 1.0, SCORES), tmp_path / "bundle", "CC-BY-4.0")
    text = (tmp_path / "bundle" / "README.md").read_text()
    assert f"| Region CRPS (SUVR) | {sum(SCORES) / len(SCORES):.4f} |" in text
    assert "own 9 held-out people" in text
    for line in ("Training: 3 scans of 3 people", "Validation: 1 scans of 1 people", "Held out: 9 scans of 9 people"):
        assert line in text
    assert "CC-BY-4.0" in text


def test_no_file_names_a_person_or_a_path(study, tmp_path):
    """No label of the study and no folder of this machine is in any file."""
    export(study.model("first", 1.0, SCORES), tmp_path / "bundle")
    content = b"".join(path.read_bytes() for path in (tmp_path / "bundle").iterdir())
    for word in (*TRAINING, *HELD_OUT):
        assert f"sub-{word}".encode() not in content
        assert f'"{word}"'.encode() not in content
    assert str(tmp_path).encode() not in content


@pytest.mark.parametrize("others", [(), ("none",)], ids=["labels", "labels and none"])
def test_labels_as_levels_are_refused(study, tmp_path, others):
    """A side column of labels, such as that of a matched subject, would name the training people in the card."""
    folder, card = study.train("first", 1.0)
    side = SideEncoder((Categorical("participant", (*TRAINING[:3], *others)),))
    model = load_model(folder).model
    labelled = card.model_copy(update={"side": side})
    save_model(folder, type(model)(card.shape, 3), labelled)
    path = study.layout.manifest("train/first_seed-0")
    manifest = json.loads(path.read_text())
    manifest["outputs"]["model.safetensors"]["sha256"] = load_card(folder).weights_sha256
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="side column 'participant' has the labels of subjects as its levels"):
        export(folder, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_model_away_from_its_study_is_exported_with_a_warning(study, tmp_path, capsys):
    """Nothing tells the labels of its subjects."""
    folder, card = study.train("first", 1.0)
    model = load_model(folder).model
    side = SideEncoder((Categorical("group", ("a", "b")),))
    save_model(folder, type(model)(card.shape, 2), card.model_copy(update={"side": side}))
    shutil.copytree(folder, tmp_path / "away")
    export(tmp_path / "away", tmp_path / "bundle")
    assert "labels of subjects was not checked" in capsys.readouterr().err


def test_scores_of_other_weights_are_not_shown(study, tmp_path):
    """A model that was trained again after its evaluation has no scores."""
    study.model("first", 1.0, SCORES)
    folder, _ = study.train("first", 2.0)
    export(folder, tmp_path / "bundle")
    assert "None: the study's scores" in (tmp_path / "bundle" / "README.md").read_text()


@pytest.mark.parametrize("split", ["test", None])
def test_splits_of_another_index_are_not_counted(study, tmp_path, split):
    """A scan has moved to the test split, or left the study, since the model learnt from it."""
    folder, _ = study.train("first", 1.0)
    pairs = read_pairs(study.layout)
    pairs.loc[0, "split"] = split
    commit_text(study.layout.pairs, table_text(pairs.dropna(subset="split")))
    export(folder, tmp_path / "bundle")
    assert "Training: " not in (tmp_path / "bundle" / "README.md").read_text()


def test_a_bundle_is_copied_unchanged(study, tmp_path):
    """The scores stay although the study is elsewhere; its licence cannot change, and it is not its own target."""
    bundle, copy = tmp_path / "elsewhere" / "bundle", tmp_path / "copy"
    export(study.model("first", 1.0, SCORES), bundle)
    export(bundle, copy)
    export(bundle, copy)
    for path in bundle.iterdir():
        assert (copy / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(ConfigError, match="is a bundle already"):
        export(bundle, copy, "MIT")
    for target in (bundle, bundle.parent):
        with pytest.raises(ConfigError, match="contains MODEL"):
            export(bundle, target)


def test_only_a_model_is_exported(tmp_path):
    """A folder without a model leaves no bundle."""
    with pytest.raises(CheckpointError, match=r"no model\.json"):
        export(tmp_path, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_its_reference_is_refused(study, tmp_path):
    """Its bundle would load, and convert nothing; an earlier bundle stays."""
    folder = study.model("first", 1.0, SCORES)
    export(folder, tmp_path / "bundle")
    before = (tmp_path / "bundle" / "bundle.json").read_bytes()
    trained = load_model(folder)
    save_model(folder, trained.model, trained.card.model_copy(update={"reference_sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match=r"reference\.json"):
        export(folder, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "bundle.json").read_bytes() == before
