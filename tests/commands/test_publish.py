"""Publishing: the alias `champion` moves only to a version that is better on the same held-out people."""

import pytest
from evaluated_study import HELD_OUT, EvaluatedStudy

from dualflow.commands.export import export
from dualflow.commands.publish import publish
from dualflow.evaluation.held_out import HeldOutScores
from dualflow.tracking.model_registry import ModelRegistry, tracking_config
from dualflow.tracking.tracked_run import tracked

SCORES = [0.03 + 0.001 * index for index in range(len(HELD_OUT))]
BETTER, WORSE = ([factor * score for score in SCORES] for factor in (0.9, 1.1))

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("mlflow")]


@pytest.fixture
def uri(registry_uri):
    """The store of all tests; each uses a name of its own."""
    return registry_uri


@pytest.fixture
def study(tmp_path, card):
    """A study without models."""
    return EvaluatedStudy(tmp_path / "phantoms", card)


def champion(name, uri):
    """Number of the champion, or None."""
    version = ModelRegistry(name, uri).champion()
    return None if version is None else version.number


def test_a_better_model_becomes_the_champion(study, uri):
    """The first is the champion, a worse one is not, a better one is, and repetition changes nothing."""
    first, worse, better = (
        study.model(name, value, scores)
        for name, value, scores in (("first", 1.0, SCORES), ("worse", 2.0, WORSE), ("better", 3.0, BETTER))
    )
    expected = [
        (first, "1", "version 1 is the champion, as the first"),
        (worse, "1", "version 1 stays the champion: version 2 is worse, the difference of region_crps is +0.0034"),
        (better, "3", "version 3 is the champion instead of version 1: the difference of region_crps is -0.0034"),
        (better, "3", "version 3 is the champion"),
        (first, "3", "version 3 stays the champion: version 1 is worse"),
    ]
    for folder, number, sentence in expected:
        sentences = publish(folder, "best", uri)
        assert sentences[-1].startswith(sentence)
        assert champion("best", uri) == number
    assert sentences[0] == "first seed 0: models:/best/1 was registered before, with the same files"


def test_a_version_and_the_run_of_its_training_refer_to_each_other(study, uri):
    """MLflow shows the model on the run's page, and the run on the model's."""
    tags = {"model": "linked", "seed": "0", "training": "training of linked"}
    with tracked(tracking_config(uri), "phantoms", "linked seed 0", tags) as run:
        pass
    publish(study.model("linked", 4.0, SCORES), "linked", uri)
    client = ModelRegistry("linked", uri).client
    (output,) = client.get_run(run.run_id).outputs.model_outputs
    assert client.get_logged_model(output.model_id).source_run_id == run.run_id


def test_a_bundle_that_was_published_first_does_not_keep_its_model_from_becoming_champion(study, uri, tmp_path):
    """The same files with scores are a version of their own, which later models are compared with."""
    folder = study.model("first", 1.0, SCORES)
    export(folder, tmp_path / "bundle")
    assert "there is no champion yet: version 1 has no region_crps" in publish(tmp_path / "bundle", "bundled", uri)[-1]
    assert publish(folder, "bundled", uri)[-1].startswith("version 2 is the champion, as the first with scores")
    better = publish(study.model("better", 3.0, BETTER), "bundled", uri)[-1]
    assert better.startswith("version 3 is the champion instead of version 2")


def test_other_people_leave_the_alias(study, uri):
    """The message says how many people the two have in common."""
    publish(study.model("first", 1.0, SCORES), "other", uri)
    folder, card = study.train("second", 2.0)
    study.evaluate(card, BETTER[1:], HELD_OUT[1:])
    sentence = publish(folder, "other", uri)[-1]
    assert "version 1 stays the champion: the held-out people differ" in sentence
    assert "(8 of version 2, 9 of the champion, 8 in both" in sentence
    assert champion("other", uri) == "1"


def test_scores_of_other_options_leave_the_alias_until_the_champion_has_such_too(study, uri):
    """Fewer samples have another CRPS. The champion's weights with new scores follow themselves."""
    folder, card = study.train("first", 1.0)
    study.evaluate(card, SCORES)
    publish(folder, "options", uri)
    better, better_card = study.train("better", 2.0)
    study.evaluate(better_card, BETTER, samples=8)
    sentence = publish(better, "options", uri)[-1]
    assert "version 1 stays the champion: its scores are of 32 samples at temperature 1" in sentence
    assert "those of version 2 of 8 samples" in sentence
    study.evaluate(card, SCORES, samples=8)
    assert publish(folder, "options", uri)[-1] == (
        "version 3 is the champion: it has the weights of version 1 and new scores"
    )
    assert publish(better, "options", uri)[-1].startswith("version 2 is the champion instead of version 3")


def test_a_champion_with_scores_of_an_earlier_version_is_followed_by_its_own_weights(study, uri, monkeypatch):
    """Such scores do not read back, so no other model can be compared with them."""
    folder, card = study.train("first", 1.0)
    study.evaluate(card, WORSE)
    with monkeypatch.context() as earlier:
        earlier.setattr(HeldOutScores, "model_dump_json", lambda _: '{"metric": "region_crps"}')
        publish(folder, "earlier", uri)
    sentence = publish(study.model("better", 2.0, BETTER), "earlier", uri)[-1]
    assert sentence.startswith(
        "version 1 stays the champion: its held-out scores are not of this version of dualflow ("
    )
    assert sentence.endswith("evaluate it anew with `dualflow run` and publish it again")
    study.evaluate(card, SCORES)
    assert publish(folder, "earlier", uri)[-1] == (
        "version 3 is the champion: it has the weights of version 1 and new scores"
    )


def test_a_model_without_scores_is_no_champion(study, uri, tmp_path):
    """Neither as the first version nor as a later one; a bundle has no scores."""
    folder, card = study.train("first", 1.0)
    assert "there is no champion yet" in publish(folder, "unscored", uri)[-1]
    assert champion("unscored", uri) is None
    study.evaluate(card, SCORES)
    assert publish(folder, "unscored", uri)[-1].startswith("version 2 is the champion")
    export(study.model("better", 3.0, BETTER), tmp_path / "bundle")
    assert (
        "version 2 stays the champion: version 3 has no region_crps"
        in publish(tmp_path / "bundle", "unscored", uri)[-1]
    )
    assert champion("unscored", uri) == "2"
