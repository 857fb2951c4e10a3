"""The README of a bundle: scores with their people, training data, limits, and escaped text of the study."""

from math import inf, nan

import pytest
import yaml

from dualflow.data.side_encoder import Categorical, Continuous, SideEncoder
from dualflow.models.bundle import MARK
from dualflow.models.model_readme import HeldOutScore, SplitCount, StudyFacts, escape, model_readme

FACTS = StudyFacts(
    {"training": SplitCount(25, 22), "held out": SplitCount(9, 8)},
    (HeldOutScore("MAE (SUVR)", 0.07441, 0.06699, 0.0797, people=8, digits=4),),
)
HASHES = {"model.safetensors": "a" * 64, "model.json": "b" * 64}


def test_it_has_what_a_reader_needs(card):
    """Scores with interval and people, scans, grid, tracer, reference region, use, limits, licence and hashes."""
    text = model_readme(card, FACTS, HASHES, "CC-BY-4.0")
    assert MARK in text
    for part in (
        "phantoms: FDG from T1w",
        "dualflow convert STUDY --model THIS_FOLDER --out DERIVATIVES",
        "| MAE (SUVR) | 0.0744 | 0.0670 to 0.0797 |",
        "own 8 held-out people",
        "Training: 25 scans of 22 people",
        "Tracer: FDG",
        "Reference region: brain",
        "age: mean 70, SD 8; about 54 to 86 (mean ± 2 SD)",
        "16 x 16 x 16 voxels of 4 mm",
        "not a medical device",
        "The weights: CC-BY-4.0.",
        "a" * 64,
    ):
        assert part in text, part
    assert "Simulated" not in text
    assert "\n\n\n" not in text


def test_what_is_unknown_is_said(card):
    """Without a study there are no scores and no numbers of scans, and the licence is not stated."""
    text = model_readme(card, StudyFacts({}), HASHES)
    assert "None: the study's scores on held-out people were not available" in text
    assert "scans of" not in text
    assert "The weights: not stated; ask the study that trained the model." in text
    study = card.study.model_copy(update={"simulated": True})
    assert "**not real scans**" in model_readme(card.model_copy(update={"study": study}), StudyFacts({}), HASHES)


def test_a_score_without_an_interval_has_the_reason(card):
    """Few people, or an infinite mean, as of the bits of a model that gives some of many people no density."""
    few, infinite = HeldOutScore("MAE", 0.1, nan, nan, people=5), HeldOutScore("Bits", inf, nan, nan, people=36)
    text = model_readme(card, StudyFacts({}, (few, infinite)), HASHES)
    assert "| MAE   | 0.100 | too few people |" in text
    assert "| Bits  |   inf |     not finite |" in text


def test_the_python_example_is_three_lines(card):
    """It compiles, and loads the model from the folder."""
    code = model_readme(card, FACTS, HASHES).split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line]) == 3
    compile(code, "README.md", "exec")


@pytest.mark.parametrize("licence", ["x\n---\ninjected: true", "A: 'b' # c", "[link](http://x) <b>|"])
def test_text_of_the_study_cannot_break_the_page(card, licence):
    """Licence, columns and levels stay on their line, in the front matter and in the text."""
    side = SideEncoder((Categorical("a|b", ("<script>", "x\n# y")), Continuous("c", None, 0.0)))
    text = model_readme(card.model_copy(update={"side": side}), FACTS, HASHES, licence)
    matter = yaml.safe_load(text.split("---\n")[1])
    assert matter["license_name"] == " ".join(licence.split())
    assert set(matter) == {"license", "license_name", "library_name", "pipeline_tag", "tags"}
    body = text.split("\n---\n", 1)[1]
    assert "\\<script\\>, x \\# y" in body
    assert "c: unknown for all training scans" in body
    assert "<script>" not in body
    assert escape("a\x1b[0m") == "a\\\\x1b\\[0m"
