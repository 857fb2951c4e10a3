"""What the number of people in each split of a study allows: laws, verdicts, calibration, intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping


def size_warnings(people: Mapping[str, int]) -> Iterator[str]:
    """A line on each part of a model or report that needs more people than a split has."""
    # They import torch.
    from dualflow.evaluation.statistics import MIN_SUBJECTS
    from dualflow.inference.typicality import MIN_PEOPLE as MIN_REFERENCE
    from dualflow.training.calibrate import MIN_PEOPLE as MIN_CALIBRATION
    from dualflow.training.subspace_fit import MIN_PEOPLE as MIN_LAW

    needs = (
        ("train", MIN_LAW, "the law of regions is one Gaussian, the same for everyone"),
        ("train", MIN_REFERENCE, "verdicts on converted scans judge header and side information alone"),
        ("validation", MIN_CALIBRATION, "cross-fitted residuals of training people calibrate the spread instead"),
        ("test", MIN_SUBJECTS, "scores have no intervals and tests"),
    )
    names = {"train": "training"}
    for split, least, consequence in needs:
        if people[split] < least:
            yield f"{people[split]} {names.get(split, split)} people, expected {least} or more: {consequence}"
