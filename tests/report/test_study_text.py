"""Facts, methods and provenance of a study."""

import pandas as pd
import pytest

from dualflow.commit import commit_text
from dualflow.config import parse_config
from dualflow.report.study_text import method_text, study_facts, study_title, subject_count

PAIRS = pd.DataFrame(
    {
        "scan": ["sub-1_ses-M0", "sub-1_ses-M12", "sub-2", "sub-3"],
        "subject": ["1", "1", "2", "3"],
        "split": ["train", "train", "test", "convert"],
    },
)


def study(tmp_path, **preprocess):
    """A study of two sources."""
    values = {"name": "x", "results": str(tmp_path), "extra_sources": ["FLAIR"], "side": ["age"]}
    return parse_config({"study": values, "preprocess": preprocess})


def test_facts_count_subjects_and_excluded_scans(tmp_path):
    """Subjects are counted once per split; an empty split has no line."""
    config = study(tmp_path)
    commit_text(config.layout.table("registration"), "scan\tmean_mm\tmax_mm\nsub-1\t0.5\t1.0\nsub-2\t1.5\t2.0\n")
    facts = study_facts(config, PAIRS, 4, {"sub-2": "refused", "sub-3": "ok"})
    assert facts["training subjects"] == facts["test subjects"] == facts["subjects without a target"] == 1
    assert "validation subjects" not in facts
    assert facts["scans excluded"] == 4
    assert facts["verdicts on converted scans"] == "1 ok, 1 refused"
    assert facts["source to target"] == "T1w + FLAIR to FDG"
    assert facts["target to source registration error"] == ("median over scans 1.00 mm, largest of any voxel 2.00 mm")
    assert subject_count(PAIRS, "train") == 1
    assert study_title(config) == "x: T1w + FLAIR to FDG"


def test_only_a_person_without_any_target_counts_as_one_without():
    """A person who has a target at one of two sessions counts in the split alone."""
    pairs = pd.DataFrame(
        {
            "scan": ["sub-1_ses-M0", "sub-1_ses-M12", "sub-2"],
            "subject": ["1", "1", "2"],
            "split": ["convert", "train", "convert"],
        }
    )
    assert [subject_count(pairs, split) for split in ("train", "test", "convert")] == [1, 0, 1]


@pytest.mark.parametrize(
    ("aligned", "words"),
    [
        (False, "each target and further source is registered rigidly to its source"),
        (True, "each target and further source is assumed to be aligned with its source"),
    ],
)
def test_the_method_states_the_registration(tmp_path, aligned, words):
    """The text follows the configuration."""
    text = " ".join(method_text(study(tmp_path, aligned=aligned)))
    assert words in text
    assert "temperature 1" in text


def test_the_method_says_what_every_model_is(tmp_path):
    """A reader of the comparison need not know the names of flows and baselines."""
    config = study(tmp_path)
    config = config.with_fields("baselines", models=("unet", "stacked_mixture"))
    [text] = [paragraph for paragraph in method_text(config) if paragraph.startswith("Models.")]
    assert "dualflow: a flow of the source and a flow of the whitened residual of a closed-form mean" in text
    assert "unet: nnU-Net's network (Isensee et al. 2021) as a correction of the stacked mean." in text
    assert "stacked_mixture: The law of local_linear_mixture around the stacked mean." in text
