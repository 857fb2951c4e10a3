"""The comparison table as Markdown."""

import datetime

import numpy as np
import pytest
from comparison import FakeTimer, study_values, train_and_score

from dualflow import __version__
from dualflow.config import parse_config
from dualflow.evaluation.comparison_table import gather_comparison
from dualflow.report.comparison_text import comparison_parts
from dualflow.training.budget import make_plan


@pytest.fixture
def config(tmp_path):
    return parse_config(study_values(tmp_path))


def test_columns_are_aligned_and_empty_ones_omitted(config):
    """All lines of a part have the same width, and a missing cell is n/a."""
    plan = make_plan(config, ["dualflow", "dual_glow"], 1, FakeTimer())
    train_and_score(config, "dualflow", 0, 10, voxel_crps=0.05, nll_true=1.0, nll_blurred=2.0)
    train_and_score(config, "dual_glow", 0, 2)
    text = "\n\n".join(comparison_parts(gather_comparison([config], plan), config, plan))
    parts = [part.splitlines() for part in text.strip().split("\n\n") if part.startswith("|")]
    assert all(len({len(line) for line in part}) == 1 for part in parts)
    assert [part[0].split()[1] for part in parts] == ["model"] * 4
    scores, differences, likelihood, cost = parts
    assert " 3 |     0.1000 | " in scores[2]  # three people are too few for an interval
    assert "With fewer than 6 people there is no interval, except of shares." in text
    assert scores[3].split(" | ")[-1].strip(" |") == "n/a"
    assert differences[2].split("|")[2].strip() == "equal by construction"
    assert "100 (44 to 100)" in likelihood[2]
    assert cost[0].startswith("| model     | parameters")
    for absent in ("bits per voxel", "another subject's", "SSIM", "pre-training", "s/sample"):
        assert absent not in text


def test_the_table_shows_what_calibration_changed(config):
    """NLL before and after it, means over seeds; a model without calibration is left out."""
    plan = make_plan(config, ["dualflow"], 1, FakeTimer())
    for seed, after in ((0, -1.25), (1, -1.75)):
        calibration = {"voxel_gain": 1.1, "nats_before": -1.0, "nats_after": after}
        train_and_score(config, "dualflow", seed, 10, calibration=calibration, voxel_crps=0.05)
    train_and_score(config, "mean_image", 0, 0, voxel_crps=0.06)
    parts = comparison_parts(gather_comparison([config], plan), config, plan)
    (part,) = [part for part in parts if "NLL before / after calibration (nats)" in part.splitlines()[0]]
    assert [line.split("|")[2].strip() for line in part.splitlines()[2:]] == ["-1.0000 / -1.5000"]


@pytest.mark.parametrize(("slack", "ending"), [(0.1, ", within the slack"), (0.0, "")])
def test_bits_that_differ_within_their_slack_say_so(config, slack, ending):
    """A difference with a small p-value decides nothing if the bounds may be off by more."""
    plan, bits = make_plan(config, ["dualflow", "dual_glow"], 1, FakeTimer()), np.linspace(-2.4, -2.0, 8)
    scans = [f"sub-{index}" for index in range(8)]
    for name, steps, values in (("dualflow", 10, bits), ("dual_glow", 2, bits + 0.01 + 0.001 * bits)):
        train_and_score(config, name, 0, steps, scans=scans, bits_in_mask=values, bits_slack=slack)
    text = "\n\n".join(comparison_parts(gather_comparison([config], plan), config, plan))
    assert f"+0.008 (+0.008 to +0.008), p = 0.008{ending} |" in text
    assert ("can explain the difference" in text) == bool(ending)


def test_the_head_says_how_the_comparison_was_made(config):
    """The first paragraph ends with date, command and version."""
    plan = make_plan(config, ["dualflow"], 1, FakeTimer())
    train_and_score(config, "dualflow", 0, 10)
    head = comparison_parts(gather_comparison([config], plan), config, plan, command="dualflow compare --seconds 1")[0]
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    assert f"Made on {today} by `dualflow compare --seconds 1` (dualflow {__version__}; trained at commit abc)." in head


def test_the_commits_of_different_trainings_are_named(config):
    """Trainings of an interrupted comparison may be older than its last command."""
    plan = make_plan(config, ["dualflow", "dual_glow"], 1, FakeTimer())
    train_and_score(config, "dualflow", 0, 10, commit="0123456789abcdef", voxel_crps=0.2)
    train_and_score(config, "dual_glow", 0, 2, commit="", voxel_crps=0.1)
    head, scores, *_ = comparison_parts(gather_comparison([config], plan), config, plan)
    assert head.endswith("trained at commits n/a (dual_glow); 0123456789ab (dualflow)).")
    assert [line.split()[1] for line in scores.splitlines()[2:]] == ["dual_glow", "dualflow"]
