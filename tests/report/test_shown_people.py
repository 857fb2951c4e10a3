"""The people that the report shows."""

import pandas as pd

from dualflow.report.shown_people import shown_people


def scores(values, model="flow", seed=0):
    return pd.DataFrame({"model": model, "seed": seed, "scan": list(values), "mae": list(values.values())})


def test_best_median_and_worst_are_shown_by_error_not_by_label():
    """Ranks follow the errors of the model and seed that are drawn, and labels carry the error of the scan."""
    table = pd.concat(
        [
            scores({"sub-1": 0.3, "sub-2": 0.1, "sub-3": 0.5, "sub-4": 0.2, "sub-5": 0.4}),
            scores({"sub-1": 0.0, "sub-2": 9.0}, seed=1),
            scores({"sub-3": 0.0}, model="unet"),
        ]
    )
    people = shown_people(table, "flow", 0)
    assert [(person.role, person.scan, person.mae, person.rank) for person in people] == [
        ("best", "sub-2", 0.1, 1),
        ("median", "sub-1", 0.3, 3),
        ("worst", "sub-3", 0.5, 5),
    ]


def test_visits_count_as_one_person():
    """A person is ranked by the mean of the visits, and shown by the visit nearest to it."""
    visits = {"sub-1_ses-a": 0.1, "sub-1_ses-b": 0.3, "sub-1_ses-c": 0.9, "sub-2": 0.2, "sub-3": 0.6}
    people = shown_people(scores(visits), "flow", 0)
    assert [person.scan for person in people] == ["sub-2", "sub-1_ses-b", "sub-3"]


def test_few_people_are_shown_once():
    """One person is the best one, and two are the best and the worst."""
    assert [person.role for person in shown_people(scores({"sub-1": 1.0}), "flow", 0)] == ["best"]
    two = shown_people(scores({"sub-1": 1.0, "sub-2": 0.5}), "flow", 0)
    assert [(person.role, person.scan) for person in two] == [("best", "sub-2"), ("worst", "sub-1")]
    assert shown_people(scores({}), "flow", 0) == []
