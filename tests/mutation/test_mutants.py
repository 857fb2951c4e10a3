"""Mutants are reproducible, leave annotations alone, and those that are known to be equivalent still exist."""

import pytest

pytest.importorskip("cosmic_ray")
from mutants import MODULES, PACKAGE, equivalents, files_for, sample_of


def test_a_sample_is_the_same_for_the_same_seed():
    """Each mutant is a change of one place of its module."""
    first = sample_of(["imaging/affines"], 5, 1)
    assert first == sample_of(["imaging/affines"], 5, 1)
    assert len({mutant.change for mutant in first}) == 5
    original = (PACKAGE / "imaging" / "affines.py").read_text()
    assert all(compile(mutant.source, "mutant", "exec") and mutant.source != original for mutant in first)


def test_annotations_are_no_places_of_mutants():
    """`X | None` in a signature changes nothing."""
    assert not any(" | None" in mutant.change and "def " in mutant.change for mutant in sample_of(["layout"], 40, 0))


def test_every_module_has_tests():
    """Each module is judged by at least one test file."""
    assert all(files_for(module) for module in MODULES)


def test_equivalent_mutants_change_lines_that_exist():
    """A line of `survivors.md` that has changed since is judged again."""
    for module, change in equivalents():
        text = " ".join((PACKAGE / f"{module}.py").read_text().split())
        assert change.split(" => ")[0] in text, (module, change)
