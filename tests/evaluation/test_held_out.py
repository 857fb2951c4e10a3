"""Scores on held-out people: identity without labels, and the paired comparison of two models."""

import pandas as pd
import pytest
from evaluated_study import HELD_OUT, EvaluatedStudy

from dualflow.errors import CheckpointError, DataError
from dualflow.evaluation.held_out import Evaluation, HeldOutScores, Protocol, compare_paired, held_out_scores, study_of
from dualflow.evaluation.statistics import summarise
from dualflow.layout import Scan

SCORES = [0.03 + 0.001 * index for index in range(len(HELD_OUT))]


@pytest.fixture
def study(tmp_path, card):
    """A study without models."""
    return EvaluatedStudy(tmp_path / "phantoms", card)


def scores_of(study, name, values, people=HELD_OUT):
    """Scores of a new model of the study."""
    _, card = study.train(name, 1.0)
    study.evaluate(card, values, people)
    return held_out_scores(study.layout, card)


def test_the_study_of_a_model_is_its_results_folder(study, tmp_path):
    """A model folder elsewhere, such as a bundle, belongs to no study."""
    folder, card = study.train("first", 1.0)
    assert study_of(folder, card) == study.layout
    assert study_of(tmp_path / "a" / "b" / "c" / "bundle", card) is None
    assert study_of(folder.parent / "seed-1", card) is None


def test_scores_have_no_labels(study):
    """People are digests of their scans; values are those of the table."""
    scores = scores_of(study, "first", SCORES)
    assert sorted(scores.people.values()) == pytest.approx(SCORES)
    text = scores.model_dump_json()
    assert not any(label in text for label in HELD_OUT)
    assert HeldOutScores.parse(text) == scores
    assert scores.mean == pytest.approx(sum(SCORES) / len(SCORES))


def test_the_summary_is_that_of_the_study(study):
    """Means and intervals equal those of the report's table."""
    _, card = study.train("first", 1.0)
    study.evaluate(card, SCORES)
    evaluation = Evaluation.read(study.layout, card)
    pd.testing.assert_frame_equal(evaluation.summary, summarise(evaluation.scans, bootstrap=200, seed=0))


def test_scores_of_other_weights_do_not_count(study):
    """A model that was trained again after its evaluation has no scores, nor has one whose table was edited."""
    _, card = study.train("first", 1.0)
    study.evaluate(card, SCORES)
    assert held_out_scores(study.layout, card.model_copy(update={"weights_sha256": "0" * 64})) is None
    path = study.layout.table("scans_first_seed-0")
    path.write_text(path.read_text().replace("0.03\n", "0.01\n"))
    assert held_out_scores(study.layout, card) is None


def test_better_in_every_person_is_better(study):
    """The verdict is symmetric, and a small mixed difference is undecided."""
    first = scores_of(study, "first", SCORES)
    better = scores_of(study, "second", [0.9 * score for score in SCORES])
    mixed = scores_of(study, "third", [score + 0.001 * (-1) ** index for index, score in enumerate(SCORES)])
    comparison = compare_paired(better, first)
    assert (comparison.verdict, comparison.people) == ("better", len(HELD_OUT))
    assert comparison.gain == pytest.approx(0.1 * first.mean)
    assert comparison.low > 0
    assert f"{-comparison.gain:+.4f}" in comparison.text
    assert compare_paired(first, better).verdict == "worse"
    assert compare_paired(mixed, first).verdict == "undecided"
    assert compare_paired(first, first).verdict == "equal"


def test_a_small_p_value_is_not_0():
    """The text of a comparison of many people."""
    people = [f"{number:064x}" for number in range(14)]
    protocol = Protocol(samples=32, temperature=1.0, revision=5)
    first, second = (
        HeldOutScores(weights=64 * "0", protocol=protocol, people=dict.fromkeys(people, value))
        for value in (0.03, 0.02)
    )
    assert "Wilcoxon p < 0.001, 14 people" in compare_paired(second, first).text


def test_pairs_are_people_not_rows(study):
    """The order of the tables does not matter."""
    first = scores_of(study, "first", SCORES)
    reordered = scores_of(study, "second", SCORES[::-1], HELD_OUT[::-1])
    assert first.people == reordered.people
    assert first.digest == reordered.digest


def test_few_people_decide_nothing(study):
    """With three people no p-value is below 0.05, however large the difference is."""
    first, better = (scores_of(study, name, [value] * 3, HELD_OUT[:3]) for name, value in (("a", 0.9), ("b", 0.1)))
    comparison = compare_paired(better, first)
    assert comparison.verdict == "few"
    assert "3 people are too few for an interval" in comparison.text


@pytest.mark.parametrize("change", ["fewer people", "other preprocessing"])
def test_other_people_cannot_be_compared(study, change):
    """One person less, or one whose scan was preprocessed in another way."""
    first = scores_of(study, "first", SCORES)
    people = HELD_OUT[1:] if change == "fewer people" else HELD_OUT
    if change == "other preprocessing":
        study.preprocess(HELD_OUT[0], version="2")
    second = scores_of(study, "second", SCORES[-len(people) :], people)
    assert compare_paired(second, first) is None
    assert first.digest != second.digest


@pytest.mark.parametrize("change", [{"samples": 8}, {"temperature": 0.5}, {"revision": 1}])
def test_other_protocols_cannot_be_compared(study, change):
    """The CRPS of fewer samples, or of samples at another temperature, is another measure."""
    first = scores_of(study, "first", SCORES)
    other = first.model_copy(update={"protocol": first.protocol.model_copy(update=change)})
    assert compare_paired(first, first) is not None
    assert compare_paired(other, first) is None


def test_scores_of_people_whose_age_was_corrected_do_not_count(study):
    """The prediction that was scored is that of another condition; a person who left the study is none."""
    scores_of(study, "first", SCORES)
    _, card = study.train("first", 1.0)
    study.index({HELD_OUT[0]: 50})
    assert held_out_scores(study.layout, card) is None
    study.index()
    assert held_out_scores(study.layout, card) is not None


def test_a_person_without_a_manifest_is_an_error(study):
    """The message names the manifest."""
    _, card = study.train("first", 1.0)
    study.evaluate(card, SCORES)
    study.layout.scan_manifest(Scan(HELD_OUT[0])).unlink()
    with pytest.raises(DataError, match=r"sub-H1\.json: does not identify a preprocessed pair"):
        held_out_scores(study.layout, card)


def test_a_person_who_was_preprocessed_again_has_no_scores(study):
    """They would be taken for those of the new images."""
    _, card = study.train("first", 1.0)
    study.evaluate(card, SCORES)
    assert held_out_scores(study.layout, card) is not None
    study.preprocess(HELD_OUT[0], version="2")
    assert held_out_scores(study.layout, card) is None


def test_a_model_without_region_scores_has_none(study):
    """A table without the metric, and one with an empty cell."""
    _, card = study.train("first", 1.0)
    study.evaluate(card, [float("nan"), *SCORES[1:]])
    assert held_out_scores(study.layout, card) is None


@pytest.mark.parametrize("text", ["", "{}", '{"people": {}}', '{"people": {"sub-01": 1.0}}', '{"metric": "mae"}'])
def test_scores_that_are_none_are_refused(text):
    """Not JSON, nobody, a label instead of a digest, another metric."""
    with pytest.raises(CheckpointError, match="held-out scores are not of this version of dualflow"):
        HeldOutScores.parse(text)
