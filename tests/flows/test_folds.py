"""Cross-fitting folds: grouped by subject, balanced, and independent of the order of enrolment."""

from __future__ import annotations

import numpy as np
import torch

from dualflow.flows.folds import balanced_folds

LABELS = [f"C{index:04d}" for index in range(240)]


def spread(folds: list[int], level: torch.Tensor) -> int:
    """Return the largest difference between folds in the number of subjects of one level."""
    counts = np.bincount(np.array(folds)[level.numpy()], minlength=4)
    return int(counts.max() - counts.min())


def test_alternating_scanners_are_in_every_fold():
    """Scanners that alternate with the label, with a period of the number of folds, do not coincide with folds."""
    site = torch.arange(240) % 4
    for side in (None, torch.nn.functional.one_hot(site).float()):
        folds = balanced_folds(LABELS, side)
        assert np.bincount(folds).tolist() == [60] * 4
        assert all(spread(folds, site == level) <= (3 if side is not None else 14) for level in range(4))


def test_every_column_is_balanced():
    """Diagnosis, a rare level, age and unknown values are spread over the folds."""
    generator = torch.Generator().manual_seed(0)
    age, diagnosis = torch.randn(240, generator=generator), torch.rand(240, generator=generator)
    age[::9] = torch.nan
    side = torch.stack([age, (diagnosis < 0.5).float(), (diagnosis > 0.95).float()], dim=1)
    folds = balanced_folds(LABELS, side)
    assert max(np.bincount(folds)) - min(np.bincount(folds)) <= 1
    for level in (side[:, 1] == 1, side[:, 2] == 1, age > 0.7, age.isnan()):
        assert spread(folds, level) <= 3


def test_scans_of_a_subject_share_a_fold():
    """The fold is the subject's, whatever the side values of the scan."""
    labels = [label for label in LABELS[:40] for _ in range(2)]
    folds = balanced_folds(labels, torch.randn(80, 2))
    assert folds[::2] == folds[1::2]
    assert np.bincount(folds).tolist() == [20] * 4


def test_folds_do_not_depend_on_the_order_of_the_scans():
    """The same subjects get the same folds in any order."""
    side, order = torch.randn(240, 3), torch.randperm(240).tolist()
    folds = balanced_folds(LABELS, side)
    assert balanced_folds([LABELS[i] for i in order], side[order]) == [folds[i] for i in order]


def test_few_subjects_give_two_folds():
    """Two subjects are enough to cross-fit."""
    assert set(balanced_folds(["a", "b"])) == {0, 1}
    assert balanced_folds([]) == []
