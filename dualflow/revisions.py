"""Revisions of the steps: what was done at another one is done again.

The version names releases. It cannot tell whether a result is current: a checkout changes between two releases, and a
release that changes no training must not repeat any. A change of what a step computes, or of how it writes it, raises
the number of that step in the same commit; a study then repeats the step and those that follow from it.
"""

REVISIONS = {
    "cohort": 1,
    "index": 4,
    "preprocess": 2,
    "qc": 2,
    "train": 9,
    "evaluate": 6,
    "convert": 1,
    "impute": 2,
    "analyse": 4,
    "report": 4,
    "check": 1,
}
"""Revision by the step that a manifest names."""
