"""Downstream classification: what a synthetic target tells about a label that its model never saw.

The people are those that no model learnt from, so model and classifier never share one. Visits of a person with one
label are averaged first, so that each person counts once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dualflow.arrays import Bools, Doubles
from dualflow.errors import ConfigError, DataError
from dualflow.evaluation.statistics import MIN_CORRELATED, bootstrap_interval

FOLDS, INNER_FOLDS, REPEATS = 5, 3, 5
"""Outer and inner folds of the nested cross-validation, and its repetitions with other folds."""
PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Candidate inverse strengths of the L2 penalty, which the inner folds choose among."""
LEAST_PROBABILITY = 1e-6
"""Smallest probability whose logarithm is taken."""
RESAMPLES = 1000
COLUMNS = ("features", "auc", "low", "high", "balanced_accuracy", "people", "classes")


def feature_sets(real: Doubles, source: Doubles, synthetic: Doubles) -> dict[str, Doubles]:
    """Region means `[N, F]` by the name of what a clinician would have, without regions that a scan lacks."""
    sets = {
        "real target": real,
        "source": source,
        "synthetic target": synthetic,
        "source + synthetic target": np.concatenate([source, synthetic], axis=1),
    }
    return {name: values[:, np.isfinite(values).all(axis=0)] for name, values in sets.items()}


def require_no_leakage(label: str, side: Sequence[str], pairs: pd.DataFrame) -> None:
    """Check that no column that models take tells the label, as a diagnosis under another name or code does.

    A column tells it if each of its values belongs to one label at all visits. A column of which most subjects have a
    value of their own, such as an age in days, does not count.

    Args:
        label: column to classify.
        side: columns that models take.
        pairs: rows of the index.

    Raises:
        ConfigError: a column tells the label.
    """
    for name in pairs.columns.intersection(list(side)):
        known = (
            pairs[["subject", name, label]].dropna().drop_duplicates()
        )  # not the first visits, which may lack either
        labels = known.groupby(name)[label].nunique()
        if known[label].nunique() > 1 and len(labels) <= len(known) / 2 and labels.max() == 1:
            raise ConfigError(
                f"each value of {name} belongs to one {label}, so a synthetic target that was drawn knowing {name} "
                f"gives the answer away; leave {name} out of study.side and train again, or set evaluate.classify to "
                "null"
            )


def require_classes(labels: Sequence[str], subjects: Sequence[str]) -> None:
    """Check that there are enough held-out people of each class to classify them.

    Args:
        labels: label of each scan.
        subjects: subject of each scan.

    Raises:
        DataError: a class has fewer people than there are folds, or there is only one class or none.
    """
    # A subject whose label changes between sessions counts in each of its classes.
    people = Counter(label for _, label in set(zip(subjects, labels, strict=True)))
    if not people:
        raise DataError("no held-out person has a known label; check evaluate.classify and the table of participants")
    smallest = min(people, key=lambda label: people[label])
    if len(people) < 2 or people[smallest] < FOLDS:
        raise DataError(
            f"{people[smallest]} held-out people are '{smallest}', expected at least {FOLDS} of each of two classes or "
            "more; give split.test a larger share, or set evaluate.classify to null"
        )


def classify(
    features: Mapping[str, Doubles], labels: Sequence[str], subjects: Sequence[str], seed: int = 0
) -> pd.DataFrame:
    """Predict labels from each set of features by a penalised logistic regression, nested cross-validation over people.

    Args:
        features: `[N, F]` by name.
        labels: label of each scan.
        subjects: subject of each scan; folds and resamples keep a subject together, also if its label changes.
        seed: of folds and resamples.

    Returns:
        A row per set, columns COLUMNS: area under the ROC curve (one class against the rest, pairs of people in the
        same fold, mean over classes) with its 95 % bootstrap interval over people, and balanced accuracy. The interval
        is NaN with fewer than MIN_CORRELATED people of a class, and where all resamples agree.

    Raises:
        DataError: a class has fewer people than there are folds, there is only one class, or no feature.
    """
    require_classes(labels, subjects)
    if empty := [name for name, values in features.items() if not values.shape[1]]:
        raise DataError(
            f"{empty[0]}: no region is known in all held-out scans; look for scans with a small brain mask, or set "
            "evaluate.classify to null"
        )
    rows = [_row(name, *_person_means(values, labels, subjects), seed) for name, values in features.items()]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _person_means(
    values: Doubles, labels: Sequence[str], subjects: Sequence[str]
) -> tuple[Doubles, NDArray[np.str_], NDArray[np.str_]]:
    """Mean features `[P, F]` of each subject and label over the visits, with labels and subjects `[P]`."""
    means = pd.DataFrame(values).groupby([np.array(subjects), np.array(labels)], sort=False).mean()
    people, classes = (np.array(means.index.get_level_values(level).tolist()) for level in (0, 1))
    return means.to_numpy(), classes, people


def _row(
    name: str, values: Doubles, labels: NDArray[np.str_], subjects: NDArray[np.str_], seed: int
) -> tuple[str, float, float, float, float, int, int]:
    from sklearn.metrics import balanced_accuracy_score

    classes = np.unique(labels)
    repeats = [_probabilities(values, labels, subjects, seed + repeat) for repeat in range(REPEATS)]
    mean = np.mean([probabilities for probabilities, _ in repeats], axis=0)
    accuracy = balanced_accuracy_score(labels, classes[mean.argmax(axis=1)])
    pairs = [_Pairs.of(labels == label, index, repeats) for index, label in enumerate(classes)]
    names, person = np.unique(subjects, return_inverse=True)
    chances = np.full(len(names), 1 / len(names))
    counts = np.random.default_rng(seed).multinomial(len(names), chances, size=RESAMPLES)
    low, high = bootstrap_interval(np.array([_area(pairs, drawn[person]) for drawn in counts]), len(names))
    # Few people, and a classifier that is right about all of them, do not tell how much the area may vary.
    if low == high or min(len(np.unique(subjects[labels == label])) for label in classes) < MIN_CORRELATED:
        low = high = np.array(np.nan)
    area = _area(pairs, np.ones(len(labels)))
    return name, area, float(low), float(high), float(accuracy), len(names), len(classes)


class _Pairs(NamedTuple):
    """Pairs of a row of a class and one of another class that the same classifier judged.

    Rows of different folds do not compare: a fold with more of a class than the others is judged by a classifier that
    saw fewer of it, so that the area over all rows is below 0.5 for features that tell nothing.

    Attributes:
        inside: rows of the class `[P]`.
        judged: how often each pair was judged by the same classifier `[I, O]`.
        right: how often the row of the class had the higher probability, ties by half `[I, O]`.
    """

    inside: Bools
    judged: Doubles
    right: Doubles

    @classmethod
    def of(cls, inside: Bools, column: int, repeats: Sequence[tuple[Doubles, NDArray[np.int64]]]) -> _Pairs:
        """Count the pairs over repeats, each with probabilities `[P, K]` and folds `[P]`."""
        judged = right = np.zeros((inside.sum(), (~inside).sum()))
        for probabilities, fold in repeats:
            same = np.equal.outer(fold[inside], fold[~inside])
            gap = np.subtract.outer(probabilities[inside, column], probabilities[~inside, column])
            judged, right = judged + same, right + same * (np.sign(gap) + 1) / 2
        return cls(inside, judged, right)


def _area(pairs: Sequence[_Pairs], weights: NDArray[Any]) -> float:
    """Area under the ROC curve over pairs of rows with weights `[P]`, mean over classes; NaN if one has no pairs."""
    areas = list[float]()
    for one in pairs:
        right, judged = (
            float(weights[one.inside] @ counts @ weights[~one.inside]) for counts in (one.right, one.judged)
        )
        areas.append(right / judged if judged else float("nan"))
    return float(np.mean(areas))


def _probabilities(
    values: Doubles, labels: NDArray[np.str_], subjects: NDArray[np.str_], seed: int
) -> tuple[Doubles, NDArray[np.int64]]:
    """Probability of each class `[P, K]` of each row from a classifier that saw no row of its subject, and its fold."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes = np.unique(labels)
    result, fold = np.zeros((len(labels), len(classes))), np.zeros(len(labels), dtype=np.int64)
    outer = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for number, (inside, outside) in enumerate(outer.split(values, labels, subjects)):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000, class_weight="balanced"))
        inner = StratifiedGroupKFold(INNER_FOLDS, shuffle=True, random_state=seed)
        grid = {"logisticregression__C": list(PENALTIES)}
        search = GridSearchCV(model, grid, cv=inner, scoring=_log_score, n_jobs=1)
        search.fit(values[inside], labels[inside], groups=subjects[inside])
        # A fold may lack a class of few subjects.
        seen = np.searchsorted(classes, search.classes_)
        result[np.ix_(outside, seen)] = search.predict_proba(values[outside])
        fold[outside] = number
    return result, fold


def _log_score(model: Any, values: Doubles, labels: NDArray[np.str_]) -> float:
    """Mean log-probability of the labels; a label that the model's training people lack has a probability of 0."""
    columns = labels[:, None] == model.classes_
    return float(np.log(np.maximum((model.predict_proba(values) * columns).sum(axis=1), LEAST_PROBABILITY)).mean())
