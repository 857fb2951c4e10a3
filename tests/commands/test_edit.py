"""What-if edits: rows of side values, images under them, and what is refused."""

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import torch

from dualflow.commands import edit as module
from dualflow.commands.bench_edit import leverage, marginal_effect, summarise_effects
from dualflow.commands.edit import _region_series, edit_label, edited_images, edited_rows
from dualflow.config import parse_config
from dualflow.data.raw_scans import preprocess_section
from dualflow.data.side_encoder import Categorical, Continuous, SideEncoder
from dualflow.errors import ConfigError, DataError
from dualflow.flows.model import DualFlow
from dualflow.flows.presets import preset
from dualflow.imaging.intensity import INSIDE
from dualflow.imaging.meta_regions import meta_regions
from dualflow.imaging.regions import from_labels
from dualflow.layout import LABEL, Scan
from dualflow.manifest import write_manifest
from dualflow.models.card import StudyRecord

ENCODER = SideEncoder((Continuous("age", 70.0, 8.0, 55.0, 86.0), Categorical("diagnosis", ("AD", "CN"))))
SCAN = pd.DataFrame({"scan": ["sub-1"], "age": [71.0], "diagnosis": ["CN"]})


def test_a_row_per_value_keeps_all_other_columns():
    rows = edited_rows(SCAN, ENCODER, "age", ["60", "80"])
    assert rows["age"].tolist() == [60.0, 80.0]
    assert rows["diagnosis"].tolist() == ["CN", "CN"]
    assert edited_rows(SCAN, ENCODER, "diagnosis", ["AD"])["age"].tolist() == [71.0]


def test_a_level_may_be_given_by_its_code():
    encoder = SideEncoder((Categorical("group", ("group-0", "group-1")),))
    assert edited_rows(SCAN, encoder, "group", ["1", "group-0"])["group"].tolist() == ["group-1", "group-0"]


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("weight", "60", "no side column 'weight'; choose from: age, diagnosis"),
        ("age", "old", "age = old is no number"),
        ("diagnosis", "MCI", "diagnosis = MCI is unknown to the model; choose from: AD, CN"),
    ],
)
def test_what_the_model_does_not_know_is_refused(column, value, words):
    with pytest.raises(ConfigError, match=words):
        edited_rows(SCAN, ENCODER, column, [value])


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (Continuous("age", None, 0.0), "saw no values of 'age'"),
        (Continuous("age", 70.0, 0.0, 70.0, 70.0), "saw one value alone"),
    ],
)
def test_a_column_of_which_nothing_was_learnt_is_refused(column, words):
    """All images would be equal."""
    with pytest.raises(ConfigError, match=words):
        edited_rows(SCAN, SideEncoder((column,)), "age", ["60", "80"])


@pytest.mark.parametrize("name", ["region", "suvr", "measured"])
def test_a_column_with_the_name_of_one_of_the_table_is_refused(name):
    with pytest.raises(ConfigError, match=f"'{name}' have a column of that name in regions.tsv"):
        edited_rows(SCAN, SideEncoder((Continuous(name, 70.0, 8.0),)), name, ["60"])


@pytest.mark.parametrize("values", [[], ["60", "60"]])
def test_values_are_given_and_different(values):
    with pytest.raises(ConfigError, match="give one or more different values"):
        edited_rows(SCAN, ENCODER, "age", values)


@pytest.mark.parametrize("value", ["nan", "inf", "seventy"])
def test_a_value_that_is_no_number_is_refused(value):
    with pytest.raises(ConfigError, match=f"age = {value} is no number"):
        edited_rows(SCAN, ENCODER, "age", [value])


def test_labels_of_different_values_differ():
    labels = [edit_label("z", value) for value in ("1", "-1", "0.1", "01", "65", "6.5", "男", "女", "ä", "ö")]
    assert len(set(labels)) == len(labels)
    assert all(LABEL.match(label) for label in labels)


def test_a_value_beyond_the_training_range_is_a_warning(capsys):
    edited_rows(SCAN, ENCODER, "age", ["60", "95"])
    assert "age = 95 lies outside of the training range 55 to 86" in capsys.readouterr().out


@pytest.mark.parametrize("cell", [None, "MCI"])
def test_a_scan_whose_own_value_is_unknown_is_a_warning(capsys, cell):
    """The images then also hold the step from unknown to each value."""
    edited_rows(SCAN, ENCODER, "diagnosis", ["AD"])
    assert not capsys.readouterr().out
    edited_rows(SCAN.assign(diagnosis=cell), ENCODER, "diagnosis", ["AD"])
    assert "diagnosis of this scan is unknown" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["dualflow", "dual_glow"])
def test_an_unchanged_value_returns_the_measured_image(name, phantoms):
    """Also where side information enters the prior alone; outside the mask all is 0."""
    torch.manual_seed(0)
    options = {"steps": [1, 1, 1], "hidden": [8, 8, 8]} | ({"low_rank": 2} if name == "dualflow" else {})
    flow = DualFlow(preset(name, **options), shape=(16, 16, 16), side_features=1).eval()
    item = phantoms[0]
    images, error = edited_images(flow, item, torch.stack([item["side"], item["side"] + 1]))
    mask = item["mask"][0].numpy()
    assert error < 1e-3
    assert abs(images[0] - item["target"][0].numpy())[mask].max() < 1e-3
    assert (images[1][~mask] == 0).all()


def test_what_was_not_measured_is_neither_edited_nor_averaged(phantoms):
    """Voxels out of view hold the flow's mean; a region of which a quarter is in view has none."""
    torch.manual_seed(0)
    options = {"steps": [1, 1, 1], "hidden": [8, 8, 8], "low_rank": 2}
    flow = DualFlow(preset("dualflow", **options), shape=(16, 16, 16), side_features=1).eval()
    flow.mean_model.plain.coefficients[0] = 0.5
    item = phantoms[0]
    mask, top = item["mask"][0], torch.zeros(16, 16, 16, dtype=torch.bool)
    top[:, :, 8:] = True
    cut = {**item, "target": torch.where(top & mask, float(INSIDE), item["target"])}
    images, error = edited_images(flow, cut, item["side"][None])
    assert error < 1e-3
    assert images[0][(mask & top).numpy()] == pytest.approx(0.5, abs=1e-3)
    labels = torch.where(top, 2, 1) + torch.where(torch.arange(16)[:, None, None] < 8, 0, 2)
    labels[:, :, 6:8] = 2  # a quarter of this region's voxels are in view
    regions = from_labels(labels.numpy().astype(np.int32), {n: f"ctx-lh-{n}" for n in range(1, 5)}, (4.0,) * 3)
    table = _region_series(images, cut, mask.numpy(), regions, "age", ["60"]).iloc[:4]
    shown = regions.means(item["target"][0].numpy(), mask.numpy() & ~top.numpy())
    assert table["measured"].isna().tolist() == [False, True, False, True]
    np.testing.assert_allclose(table["measured"][[0, 2]], shown[[0, 2]], rtol=1e-5)
    np.testing.assert_allclose(table["suvr"], table["measured"], rtol=1e-3)


def test_images_lie_in_the_space_of_the_template(tmp_path, monkeypatch, phantoms):
    """Viewers take an affine of the codes 4 for that of the MNI template, and one of the codes 1 for the scanner's."""
    study = {"name": "t", "bids": str(tmp_path), "results": str(tmp_path / "results")}
    config = parse_config({"study": study, "preprocess": {"spacing_mm": 8, "shape": [16, 16, 16]}})
    card = SimpleNamespace(
        side=ENCODER, label="a flow", study=StudyRecord.of(config.study), preprocess=config.preprocess
    )
    image = phantoms[0]["target"][0].numpy()
    table = pd.DataFrame({"region": list(meta_regions())[:1], "age": ["60"], "suvr": [1.0], "measured": [1.0]})
    stand_ins = {
        "load_predictor": SimpleNamespace(flow="a flow", card=card),
        "usable_pairs": SCAN.assign(target="pet.nii"),
        "load_pairs": [phantoms[0]],
        "edited_images": ([image], 0.0),
        "_region_series": table,
        "edit_figure": None,
        "write_figure": None,
    }
    for name, result in stand_ins.items():
        monkeypatch.setattr(module, name, lambda *_, result=result: result)
    module.edit_scan(config, "1", "age", ["60"])
    [path] = config.layout.root.rglob("*_desc-editage60_pet.nii.gz")
    header = nib.load(path).header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (4, 4)


@pytest.mark.parametrize(
    ("section", "change"), [("preprocess", {"reference_region": "pons"}), ("study", {"target": "AV45"})]
)
def test_a_scan_of_another_unit_is_refused(tmp_path, section, change):
    """Its numbers would be edited without a sign of it; workers and a mask's digest do not matter."""
    study = {"name": "t", "bids": str(tmp_path), "results": str(tmp_path / "results")}
    config = parse_config({"study": study})
    facts = preprocess_section(config.study, config.preprocess) | {"reference_mask": "0"}
    write_manifest(config.layout.scan_manifest(Scan("1")), step="preprocess", outputs={}, inputs={}, config=facts)
    preprocess = config.preprocess.model_copy(update={"workers": 7})
    card = SimpleNamespace(label="a flow", study=StudyRecord.of(config.study), preprocess=preprocess)
    module._require_same_preprocessing(config, card, Scan("1"))
    setattr(card, section, getattr(card, section).model_copy(update=change))
    [name] = change
    with pytest.raises(
        DataError, match=f"sub-1: {name} of its preprocessing or of the study differs from that of a flow"
    ):
        module._require_same_preprocessing(config, card, Scan("1"))


def test_effects_are_compared_inside_and_outside_the_affected_regions():
    true = torch.tensor([[-0.2, -0.1, 0.0, 0.0], [-0.4, -0.2, 0.0, 0.0]]).numpy()
    errors = torch.tensor([0.01, 0.01, 9.0, 9.0]).numpy()
    marginal = torch.tensor([-0.6, -0.3, 1.0, 1.0]).numpy()
    summary = summarise_effects(0.8 * true + torch.tensor([0.0, 0.0, 0.03, -0.03]).numpy(), true, errors, marginal)
    assert summary["affected"] == 2
    assert summary["slope"] == pytest.approx(0.8)
    assert summary["size"] == pytest.approx(0.225)
    assert summary["marginal"] == pytest.approx(2)
    assert summary["leak"] == pytest.approx(0.03 / 0.225)
    assert summary["r_people"] == pytest.approx(1.0)
    assert summary["varies"] == pytest.approx(0.075 / 0.225)
    assert summary["error"] == pytest.approx(0.01)


def test_a_leak_of_the_truth_itself_is_not_beyond_it():
    true = np.array([[0.4, 0.05], [0.4, 0.05]])
    alike, reversed_outside = (
        summarise_effects(np.array([[0.4, outside]] * 2), true, np.ones(2), np.ones(2)) for outside in (0.05, -0.05)
    )
    assert alike["leak"] == reversed_outside["leak"] == alike["leak_true"] == pytest.approx(0.125)
    assert alike["leak_beyond"] == 0
    assert reversed_outside["leak_beyond"] == pytest.approx(0.25)


def test_the_marginal_effect_contains_what_goes_through_the_anatomy():
    """The group changes the outcome by 1, and by 2 through a mediator that a regression on the group does not have."""
    group = np.repeat([0.0, 1.0], 10)
    design = np.column_stack([group == 0, group == 1, np.tile([0.0, 1.0], 10)]).astype(float)
    expected = (group + 2 * group + 0.5 * design[:, 2])[:, None]
    design[0] = np.nan
    assert marginal_effect(design, expected, np.array([-1.0, 1.0, np.nan])) == pytest.approx(3)
    assert marginal_effect(design, expected, np.array([0.0, 0.0, 1.0])) == pytest.approx(0.5)


def test_the_standard_error_of_an_effect_is_that_of_a_regression():
    """As statsmodels computes it; one-hot columns may sum to 1, and unknown rows do not count."""
    rng = np.random.default_rng(0)
    age, group = rng.normal(size=30), rng.integers(2, size=30)
    design = np.column_stack([age, group == 0, group == 1]).astype(float)
    fit = sm.OLS(rng.normal(size=30), sm.add_constant(np.column_stack([age, group]))).fit()
    expected = fit.bse[1:] / np.sqrt(fit.mse_resid)
    design = np.vstack([design, [np.nan, 1, 0]])
    assert leverage(design, np.array([2.0, 0, 0])) == pytest.approx(2 * expected[0])
    assert leverage(design, np.array([0.0, -1, 1])) == pytest.approx(expected[1])
    assert leverage(design, np.array([np.nan, -1, 1])) == pytest.approx(expected[1])
