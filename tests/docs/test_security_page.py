"""SECURITY.md promises what tests hold."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "SECURITY.md").read_text().split("\n## What dualflow promises\n")[1].split("\n## ")[0]
PROMISES = re.findall(r"^- (.*?)(?=\n- |\n\n|\Z)", SECTION, re.DOTALL | re.MULTILINE)
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


@pytest.mark.parametrize("promise", PROMISES, ids=lambda text: text.split("*")[1])
def test_each_promise_names_tests_that_exist(promise):
    """A promise has at least one test, defined in the named file."""
    named = TEST.findall(promise)
    assert named, promise
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path}::{name}"


def test_every_named_test_is_part_of_a_promise():
    """The promises were found, and no line of the section lies outside them."""
    assert len(PROMISES) >= 12
    assert sum(len(TEST.findall(promise)) for promise in PROMISES) == SECTION.count("::test_")
