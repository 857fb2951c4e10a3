"""Configurations checked against the flows that they name."""

import subprocess
import sys

import pytest

from dualflow.commands.study_config import load_study_config, parse_study_config
from dualflow.errors import ConfigError

STUDY = {"study": {"name": "a"}}


@pytest.mark.parametrize(
    ("shape", "nearest"),
    [
        ([47, 56, 48], [48, 56, 48]),
        ([48, 60, 43], [48, 64, 40]),
        ([3, 8, 8], [8, 8, 8]),
    ],
)
def test_a_grid_that_a_flow_cannot_halve_is_refused(shape, nearest):
    """The error has the grid, the flow, its levels and the nearest valid sizes."""
    with pytest.raises(ConfigError) as caught:
        parse_study_config(STUDY | {"preprocess": {"shape": shape}}, "study.yaml")
    assert str(caught.value) == (
        f"study.yaml: preprocess.shape = {shape}: the flow dualflow has 3 levels, expected multiples of 8; the nearest "
        f"sizes are {nearest}"
    )
    assert parse_study_config(STUDY | {"preprocess": {"shape": nearest}}).preprocess.shape == tuple(nearest)


def test_the_grid_must_fit_the_deepest_flow():
    """All flows of a study share the grid."""
    deep = {"preset": "dual_glow", "options": {"levels": 4, "steps": [1] * 4, "hidden": [8] * 4}}
    values = STUDY | {"preprocess": {"shape": [48, 56, 48]}, "extra_models": {"deep": deep}}
    with pytest.raises(ConfigError, match=r"the flow deep has 4 levels, .* 16; the nearest sizes are \[48, 64, 48\]"):
        parse_study_config(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"preset": "dualfow"}}, "x: model: unknown preset 'dualfow'; choose from: attn_flow, "),
        ({"model": {"options": {"depth": 4}}}, "x: model: unknown flow option 'depth'"),
        ({"model": {"options": {"name": "x"}}}, "x: model: unknown flow option 'name'"),
        ({"model": {"options": {"self": "x"}}}, "x: model: unknown flow option 'self'"),
        ({"model": {"options": {"hidden": [8]}}}, r"x: model: hidden = \(8,\): expected one entry per level"),
        ({"extra_models": {"b": {"preset": "c_glow", "options": {"levls": 3}}}}, "extra_models.b: .* mean 'levels'"),
    ],
)
def test_an_invalid_flow_is_an_error(values, message):
    """The error names the section of an unknown preset or option, or of an invalid value."""
    with pytest.raises(ConfigError, match=message):
        parse_study_config(STUDY | values, "x")


def test_files_are_checked_with_their_overrides(tmp_path):
    """The error names the file."""
    path = tmp_path / "study.yaml"
    path.write_text("study: {name: a}")
    assert load_study_config(path, ["preprocess.shape=[16, 16, 16]"]).preprocess.shape == (16, 16, 16)
    with pytest.raises(ConfigError, match=r"study\.yaml: preprocess\.shape = \[47, 56, 48\]"):
        load_study_config(path, ["preprocess.shape=[47, 56, 48]"])


def test_checking_needs_no_numerical_library():
    """Slow imports would delay every error of a configuration."""
    code = "import sys, dualflow.commands.study_config; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "monai", "pandas", "numpy", "nibabel", "SimpleITK"} & set(modules)
