"""Verdicts on scans."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from dualflow.data.side_encoder import Categorical, Continuous, SideEncoder
from dualflow.inference.predict import Prediction
from dualflow.inference.training_reference import FigureRanges, Reference
from dualflow.inference.typicality import Score
from dualflow.inference.verdict import Finding, Outcome, Verdict, judge_input, judge_output

ENCODER = SideEncoder((Continuous("age", 70.0, 8.0, 55.0, 86.0), Categorical("sex", ("F", "M"))))
SHAPE = (4, 4, 4)
SOURCES, MASK = {name: np.zeros(SHAPE, np.float32) for name in ("T1w", "FLAIR")}, np.ones(SHAPE, bool)
USUAL = {"rotation_deg": 8.0, "voxel_mm": 1.1, "template_dice": 0.96}


def typicality_of(*, typicality=1.0, lesion=1.0, z=None):
    """A typicality that gives these scores."""
    score = Score(
        z={"quantiles": 0.5, "texture": 1.0} if z is None else z, typicality=typicality, threshold=3.0, lesion=lesion,
        lesion_threshold=2.0, lesion_voxel=(1, 2, 3), lesion_map=np.full(SHAPE, -lesion, np.float32),
    )  # fmt: skip
    return SimpleNamespace(score=lambda *_: score)


def reference(**scores):
    """A reference whose typicality gives these scores."""
    output = FigureRanges({"mean": 1.0, "spread": 0.1}, {"mean": 0.05, "spread": 0.05}, {"mean": 0, "spread": 0}, 3.0)
    registration = FigureRanges({"template_dice": 0.95}, {"template_dice": 0.01}, {"template_dice": -1}, 3.0)
    return Reference({"T1w": typicality_of(**scores)}, registration, 1.2, output, 40)


def judge(reference_=None, side=None, **figures):
    """The verdict on a usual scan but for these figures."""
    values = {"age": 71.0, "sex": "F"} if side is None else side
    return judge_input(reference_ or reference(), ENCODER, SOURCES, MASK, USUAL | figures, values)


def test_a_usual_scan_is_ok_and_all_figures_are_kept():
    """No reason, no map; the figures of registration, both scores and every detector."""
    verdict = judge()
    assert verdict.outcome is Outcome.OK
    assert verdict.reasons == []
    assert verdict.lesion_maps == {}
    expected = {
        "rotation_deg",
        "voxel_mm",
        "template_dice",
        "typicality",
        "typicality_threshold",
        "lesion",
        "lesion_threshold",
    }
    assert set(verdict.figures) == expected | {"z_quantiles", "z_texture"}


@pytest.mark.parametrize(
    ("change", "outcome", "words"),
    [
        ({"reference_": reference(typicality=5.0, z={"texture": 5.0, "mask": 1.0})}, "refused", "texture"),
        ({"reference_": reference(typicality=3.02, z={"mask": 3.02})}, "refused", "score 3.02, expected at most 3.00"),
        ({"reference_": reference(lesion=2.5)}, "review", "lesion score 2.5, expected at most 2.0"),
        ({"reference_": reference(lesion=2.001)}, "review", "lesion score 2.001, expected at most 2.000"),
        ({"template_dice": 0.91999}, "review", "is 0.91999, expected at least 0.92"),
        (
            {"template_dice": 0.9},
            "review",
            "registration with the template is 0.9, expected at least 0.92",
        ),
        ({"rotation_deg": 178.0}, "refused", "turned by 178 degrees"),
        ({"voxel_mm": 3.0}, "review", "up to 3.0 mm"),
        ({"voxel_mm": 10.0}, "refused", "up to 10.0 mm"),
        ({"side": {"age": 90.0}}, "review", "age is 90, in the training scans 55 to 86"),
        ({"side": {"age": 8.0}}, "refused", "age is 8"),
        ({"side": {"age": 300.0}}, "refused", "age is 300"),
        ({"side": {"sex": "X"}}, "review", "sex is 'X', in the training scans F, M"),
    ],
)
def test_an_unusual_figure_is_a_reason(change, outcome, words):
    """The reason names value and expectation."""
    verdict = judge(**change)
    assert verdict.outcome == outcome
    [reason] = verdict.reasons
    assert words in reason


def test_detectors_below_the_threshold_are_not_named():
    """A reason lists what is unusual, the worst first."""
    verdict = judge(reference(typicality=9.0, z={"texture": 4.0, "mask": 1.0, "quantiles": 9.0}))
    assert "histogram of its intensities, its texture" in verdict.reasons[0]
    assert "brain" not in verdict.reasons[0]


def test_a_lesion_shows_its_map():
    """Only a scan that is flagged for it."""
    maps = judge(reference(lesion=2.5)).lesion_maps
    assert list(maps) == ["T1w"]
    assert np.all(maps["T1w"] == -2.5)


def test_each_source_with_a_lesion_shows_its_map():
    """The reasons name the files."""
    scores = {"T1w": typicality_of(lesion=2.5), "FLAIR": typicality_of(lesion=9.0)}
    verdict = judge(replace(reference(), typicality=scores))
    assert {name: image.min() for name, image in verdict.lesion_maps.items()} == {"T1w": -2.5, "FLAIR": -9}
    assert [reason.split(", ")[-1] for reason in verdict.reasons] == [
        "shown by desc-deviation",
        "shown by desc-deviation_FLAIR",
    ]


@pytest.mark.parametrize(
    ("scores", "outcome", "words"),
    [
        ({"typicality": 5.0, "z": {"texture": 5.0}}, "refused", "its FLAIR is unlike the training scans in its"),
        ({"lesion": 2.5}, "review", "a part of the brain in its FLAIR is unlike the training scans"),
    ],
)
def test_a_further_source_is_judged_too(scores, outcome, words):
    """The reason names it, and so do its figures; those of the main source keep their names."""
    usual = reference()
    both = replace(usual, typicality=usual.typicality | {"FLAIR": typicality_of(**scores)})
    verdict = judge(both)
    assert verdict.outcome == outcome
    [reason] = verdict.reasons
    assert words in reason
    assert verdict.figures["typicality"] == verdict.figures["lesion"] == 1
    further = verdict.figures.keys() - judge().figures.keys()
    scored = {f"{figure}_FLAIR{end}" for figure in ("typicality", "lesion") for end in ("", "_threshold")}
    assert further == scored | {f"z_FLAIR_{name}" for name in scores.get("z", ("quantiles", "texture"))}
    assert list(verdict.lesion_maps) == ([] if outcome == "refused" else ["FLAIR"])


@pytest.mark.parametrize("side", [{}, {"age": None, "sex": None}, {"age": float("nan")}])
def test_unknown_side_information_is_no_reason(side):
    """The models take it."""
    assert judge(side=side).outcome is Outcome.OK


@pytest.mark.parametrize("value", ["F", 1.0])
def test_a_column_that_no_training_scan_knows_is_no_reason(value):
    """Its values may be numbers or levels; the model does not read them."""
    encoder = SideEncoder((Continuous("sex", None, 0.0),))
    assert judge_input(reference(), encoder, SOURCES, MASK, USUAL, {"sex": value}).outcome is Outcome.OK


def test_unknown_figures_are_no_reason():
    """Scans preprocessed by an older version lack some."""
    assert judge(rotation_deg=np.nan, voxel_mm=np.nan).outcome is Outcome.OK


def test_a_model_without_a_reference_still_has_the_checks_of_the_header():
    """A wrong orientation needs no training scans."""
    turned = judge_input(None, ENCODER, SOURCES, MASK, {"rotation_deg": 170.0}, {"age": 300.0})
    assert turned.outcome is Outcome.REFUSED
    assert len(turned.reasons) == 2


def test_an_unusual_prediction_is_to_be_reviewed():
    """The reason names the figure farthest out, and its expected range."""
    usual = Prediction(np.tile(np.linspace(0.3, 1.7, 4, dtype=np.float32), (4, 4, 1)), np.full(SHAPE, 0.1, np.float32))
    assert judge_output(reference(), usual, MASK, "SUVR").outcome is Outcome.OK
    wide = Prediction(usual.mean, np.full(SHAPE, 0.4, np.float32))
    verdict = judge_output(reference(), wide, MASK, "SUVR")
    assert verdict.outcome is Outcome.REVIEW
    assert verdict.reasons == ["mean standard deviation of the prediction is 0.4 SUVR, expected -0.05 to 0.25"]
    assert judge_output(None, wide, MASK, "SUVR").outcome is Outcome.OK


def test_the_spread_is_judged_as_that_of_the_training_scans():
    """Of few samples it is too small on average, and at another temperature than 1 it says nothing."""
    shape, rng = (20, 20, 20), np.random.default_rng(0)
    mask = np.ones(shape, bool)

    def verdict(samples, sd, **options):
        std = (sd * rng.standard_normal((samples, *shape))).std(axis=0, ddof=1).astype(np.float32)
        image = np.full(shape, 1.0, np.float32)
        ranges = FigureRanges({"spread": 0.1 * 0.965}, {"spread": 0.01}, {"spread": 0}, 1.0)
        usual = replace(reference(), output=ranges)
        return judge_output(usual, Prediction(image, std), mask, "SUVR", samples=samples, **options).outcome

    assert {verdict(samples, 0.1) for samples in (2, 8, 32)} == {Outcome.OK}
    assert {verdict(samples, 0.12) for samples in (2, 8, 32)} == {Outcome.REVIEW}
    assert verdict(8, 0.05) is Outcome.REVIEW
    assert verdict(8, 0.05, temperature=0.5) is Outcome.OK


def test_verdicts_add_up():
    """The gravest outcome counts, its reason comes first, and unknown figures are null in JSON."""
    both = Verdict((Finding(Outcome.REVIEW, "odd"),), {"a": 1.0}) | Verdict(
        (Finding(Outcome.REFUSED, "bad"),), {"b": np.nan}
    )
    expected = {"verdict": "refused", "reasons": ["bad", "odd"], "figures": {"a": 1.0, "b": None}}
    assert both.to_dict() == expected


def test_output_threshold_holds_the_training_scans():
    """Nearly all training predictions lie within it; a far one does not."""
    rng = np.random.default_rng(0)
    figures = [{"mean": value} for value in rng.normal(1.0, 0.1, 99)]
    law = FigureRanges.fit(figures, {"mean": 0}, list(map(str, range(99))))
    beyond = [max(law.distances(row).values()) > law.threshold for row in figures]
    assert sum(beyond) <= 1
    low, high = law.usual("mean")
    assert law.distances({"mean": high + 0.01})["mean"] > law.threshold
    assert law.distances({"mean": low - 0.01})["mean"] > law.threshold
    assert low < 0.8 < 1.2 < high


def test_a_figure_is_unusual_on_its_side_only():
    """A better fit than the training scans' is no reason, and an unknown figure has no distance."""
    ranges = FigureRanges(
        {"dice": 0.95, "stretch": 1.1},
        {"dice": 0.01, "stretch": 0.1},
        {"dice": -1, "stretch": 1},
        3,
    )
    assert ranges.distances({"dice": 0.99, "stretch": 1.0}) == pytest.approx({"dice": -4.0, "stretch": -1.0})
    assert ranges.distances({"dice": 0.90, "stretch": np.nan}) == pytest.approx({"dice": 5.0})
    assert ranges.usual("dice") == pytest.approx((0.92, np.inf))
