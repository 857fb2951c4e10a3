"""The description of a tracked run."""

from dualflow.report import run_description as module
from dualflow.report.run_description import run_description


def test_a_description_ends_between_parts(monkeypatch):
    """Parts that do not fit are left out whole, and the padding of tables is not counted."""
    monkeypatch.setattr(module, "MAX_CHARACTERS", 100)
    parts = ["head", "| a    |\n| ---- |\n| 1    |", "Sentence.\n\n| " + "b" * 100 + " |", "| c |"]
    note = "The file comparison.md of this run has all results.\n"
    assert run_description(parts, "comparison.md") == f"head\n\n| a |\n| --- |\n| 1 |\n\n{note}"
    monkeypatch.setattr(module, "MAX_CHARACTERS", 1000)
    assert run_description(parts, "comparison.md").endswith(f"| c |\n\n{note}")
