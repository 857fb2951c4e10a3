"""Imputation keeps what was measured, draws the rest from what is known, and refuses what would mislead."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from dualflow.commands import impute as module
from dualflow.commands.impute import impute
from dualflow.config import parse_config
from dualflow.data.tsv import read_typed_table
from dualflow.errors import ConfigError, DataError
from dualflow.imputation import completion
from dualflow.imputation.imputed_table import ImputedTable
from dualflow.layout import sidecar_path
from tests.support.imputed_study import REGIONS, ImputedStudy


@pytest.fixture(scope="module")
def study():
    return ImputedStudy.make()


@pytest.fixture
def config(tmp_path, study, monkeypatch):
    config = parse_config({"study": {"name": "t", "results": str(tmp_path)}, "impute": {"draws": 30}})
    study.install(monkeypatch, module, config)
    return config


def order(table: ImputedTable, pairs: pd.DataFrame) -> np.ndarray:
    """Positions in `pairs` of the table's scans."""
    return pairs.reset_index().set_index("scan").loc[list(table.scans), "index"].to_numpy()


def test_measured_values_stay_and_missing_ones_are_drawn(study, config, capsys):
    impute(config)
    table = ImputedTable.read(config.layout.imputed_regions)
    assert table.values.shape == (30, 60, len(table.regions))
    assert list(table.regions[:4]) == list(REGIONS)
    truth = study.truth[order(table, study.pairs)]
    measured, drawn = table.values[:, table.observed, :4], table.values[:, ~table.observed, :4]
    assert np.abs(measured - truth[table.observed]).max() < 1e-5
    assert (drawn.std(axis=0) > 0.01).all()
    # The person's PET lies within the draws as often as one more draw would.
    ranks = (drawn < truth[~table.observed]).mean(axis=0)
    assert 0.05 < np.mean((ranks < 0.1) | (ranks > 0.9)) < 0.4
    assert "60 scans: 30 measured, 30 drawn 30 times" in capsys.readouterr().out


def test_the_table_has_a_row_per_scan_region_and_draw(config):
    impute(config)
    table = read_typed_table(config.layout.imputed_regions)
    assert list(table) == ["subject", "session", "region", "draw", "suvr", "observed"]
    assert table.groupby(["subject", "region"])["draw"].apply(lambda draws: sorted(draws) == list(range(1, 31))).all()
    facts = json.loads(sidecar_path(config.layout.imputed_regions).read_text())
    assert facts["Imputation"]["Terms"] == "age + group"
    assert facts["Imputation"]["Learnt"] == 30
    assert set(table) < set(facts)


def test_meta_regions_are_means_over_voxels(study, config):
    impute(config)
    table = ImputedTable.read(config.layout.imputed_regions)
    sizes = study.regions.sizes(study.splits["test"][0]["mask"][0].numpy())
    at = {name: position for position, name in enumerate(table.regions)}
    weights = sizes[:2] / sizes[:2].sum()
    assert table.values[:, :, at["occipital"]] == pytest.approx(table.values[:, :, :2] @ weights, abs=1e-5)


def meta_regions_of(config, tmp_path, *rows: str):
    """The configuration with a table of meta-regions."""
    path = tmp_path / "meta.tsv"
    path.write_text("\n".join(["meta_region\tregion", *rows]))
    return config.with_fields("impute", meta_regions=path)


def test_meta_regions_may_come_from_a_table(config, tmp_path):
    impute(meta_regions_of(config, tmp_path, "mine\tcuneus", "mine\tCaudate", "outside\tprecuneus"))
    table = ImputedTable.read(config.layout.imputed_regions)
    assert list(table.regions) == [*REGIONS, "mine"], "a meta-region without a voxel on the grid has no value"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("mine\tctx-lh-cuneus", "'ctx-lh-cuneus' is no region of the atlas; write its name without hemisphere"),
        ("Left-Caudate\tcuneus", "meta-region Left-Caudate has the name of a region"),
    ],
)
def test_a_table_of_meta_regions_is_checked(config, tmp_path, row, words):
    """A misspelt region would silently leave the mean of the others."""
    with pytest.raises(DataError) as caught:
        impute(meta_regions_of(config, tmp_path, "mine\tCaudate", row))
    assert words in str(caught.value)


@pytest.mark.parametrize("rows", [[], ["mine\tcuneus", "\tCaudate"], ["mine\tcuneus", "mine\tn/a"]])
def test_a_table_of_meta_regions_has_no_empty_cell(config, tmp_path, rows):
    """A name that stands in the first of its rows alone would silently leave the mean of the first region."""
    with pytest.raises(DataError, match="write the meta-region in the row of each of its regions"):
        impute(meta_regions_of(config, tmp_path, *rows))


def test_equal_seeds_give_equal_tables_and_others_give_others(config):
    texts = []
    for seed in (0, 0, 1):
        section = config.impute.model_copy(update={"seed": seed})
        impute(config.model_copy(update={"impute": section}))
        texts.append(config.layout.imputed_regions.read_text())
    assert texts[0] == texts[1] != texts[2]


def test_a_scan_with_unknown_side_information_is_drawn_as_an_average_one(study, config, monkeypatch):
    unknown = study.pairs.assign(age=study.pairs["age"].where(study.pairs["scan"] != "sub-001"))
    monkeypatch.setattr(study, "pairs", unknown)
    study.install(monkeypatch, module, config)
    impute(config)
    table = ImputedTable.read(config.layout.imputed_regions)
    assert np.isfinite(table.values[:, list(table.scans).index("sub-001"), :4]).all()


def test_terms_must_be_side_information_of_the_model(study, config, monkeypatch):
    """Terms are checked before samples are drawn, which takes minutes."""
    monkeypatch.setattr(study.model, "stream", None)
    section = config.impute.model_copy(update={"terms": "age + education"})
    with pytest.raises(ConfigError, match="education, which is no side information of the model"):
        impute(config.model_copy(update={"impute": section}))


def test_analyses_that_were_added_later_are_checked_first(study, config, monkeypatch):
    """The index, which checks them, may be older; draws and replicates take minutes."""
    monkeypatch.setattr(study.model, "stream", None)
    section = config.impute.model_copy(update={"analyses": {"main": "suvr ~ nosuch"}})
    with pytest.raises(ConfigError, match=r"impute\.analyses\.main: .*nosuch"):
        impute(config.model_copy(update={"impute": section}))


def test_a_study_without_holes_is_its_measured_values(study, config, monkeypatch):
    kept = study.pairs[study.pairs["split"] != "convert"].reset_index(drop=True)
    empty = type(study.splits["train"])([])
    monkeypatch.setattr(study, "pairs", kept)
    monkeypatch.setitem(study.splits, "convert", empty)
    monkeypatch.setattr(study.model, "stream", None)  # the model is not asked
    study.install(monkeypatch, module, config)
    impute(config)
    table = ImputedTable.read(config.layout.imputed_regions)
    assert table.observed.all()
    assert np.ptp(table.values, axis=0).max() == 0


def test_draws_are_written_as_volumes_on_request(study, config):
    config = config.with_fields("impute", draws=3, volumes=2)
    impute(config)
    files = sorted(config.layout.derivatives.rglob("*_pet.nii.gz"))
    assert len(files) == 2 * 30
    table = ImputedTable.read(config.layout.imputed_regions)
    first = next(path for path in files if "sub-001" in path.name and "desc-impute01" in path.name)
    image = nib.load(first)
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (4, 4), "not said to be in MNI space"
    volume = np.asarray(image.dataobj, np.float32)
    means = study.regions.means(volume, study.splits["convert"][0]["mask"][0].numpy())
    assert means == pytest.approx(table.values[0, list(table.scans).index("sub-001"), :4], abs=1e-4)
    impute(config.with_fields("impute", volumes=0))
    assert not list(config.layout.derivatives.rglob("*desc-impute*")), "volumes of another table stayed"


def test_volumes_of_an_earlier_run_of_the_workflow_go(study, config):
    """Snakemake removes the manifest before it runs the step again, also after a change of the target."""
    config = config.with_fields("impute", draws=2, volumes=1)
    impute(config.with_fields("study", target="AV45"))
    config.layout.manifest("impute").unlink()
    impute(config)
    files = config.layout.imputed_volumes()
    assert len(files) == 2 * 30, "volumes and sidecars of the drawn scans"
    assert all("trc-FDG" in file.name for file in files)


def test_a_model_of_other_scans_is_refused(study, config, monkeypatch):
    """Which scans it has learnt from is unknown, so no prediction is known to be held out."""
    monkeypatch.setattr(study.card, "data_digest", "another")
    with pytest.raises(DataError, match="learnt from other scans, splits or side values"):
        impute(config)


def test_without_a_cross_fit_only_held_out_scans_inform_the_draws(study, config, monkeypatch):
    """Six of them are too few, and the reason is named."""
    monkeypatch.setattr(module, "cross_fitted_images", lambda *_: None)
    with pytest.raises(DataError, match="learnt from 24 of the measured scans without a cross-fit, and 6 others"):
        impute(config)


def test_a_constant_column_is_no_term(study, config, monkeypatch):
    """Nor does its reference level stop the imputation."""
    monkeypatch.setattr(study, "pairs", study.pairs.assign(group="control"))
    study.install(monkeypatch, module, config)
    impute(config.with_fields("impute", references={"group": "control"}))
    assert ImputedTable.read(config.layout.imputed_regions).facts["Terms"] == "age"


def test_a_column_that_no_measured_scan_has_is_named(study, config, monkeypatch):
    """Such a column leaves no scan that informs the draws."""
    unmeasured = study.pairs["target"] == ""
    monkeypatch.setattr(study, "pairs", study.pairs.assign(age=study.pairs["age"].where(unmeasured)))
    study.install(monkeypatch, module, config)
    with pytest.raises(DataError, match=r"no measured scan has known values of all of age"):
        impute(config)


@pytest.mark.parametrize("reference", ["control", "unseen"])
def test_a_group_without_a_measured_target_is_named(study, config, monkeypatch, reference):
    """Also the reference group, whose absence would show as a collinear term."""
    groups = np.where(study.pairs["target"] == "", "unseen", study.pairs["group"])
    monkeypatch.setattr(study, "pairs", study.pairs.assign(group=groups))
    study.install(monkeypatch, module, config)
    section = config.impute.model_copy(update={"references": {"group": reference}})
    with pytest.raises(DataError, match="group = unseen: none of the 30 measured scans"):
        impute(config.model_copy(update={"impute": section}))


def test_repeated_sessions_are_noted(capsys):
    module.note_sessions(["1", "2", "1"])
    assert "1 scans are further sessions" in capsys.readouterr().out
    module.note_sessions(["1", "2"])
    assert capsys.readouterr().out == ""


def test_a_large_study_is_read_again(tmp_path):
    """The limits of a study's own tables do not hold for results; labels such as 001 and NA stay text."""
    rng = np.random.default_rng(0)
    scans = ["sub-NA", *(f"sub-{index:03d}" for index in range(1, 250))]
    values = rng.normal(1, 0.1, (20, 250, 90)).round(6)
    table = ImputedTable(
        scans, [f"region {index}" for index in range(90)], values, np.ones(250, bool), {"Terms": "age"}
    )
    path = tmp_path / "regions.tsv"
    path.write_text(table.text())
    sidecar_path(path).write_text(json.dumps(table.sidecar()))
    read = ImputedTable.read(path)
    assert read.scans == scans
    assert read.values == pytest.approx(values)
    path.write_text(table.text()[:-30])
    with pytest.raises(DataError, match="run `dualflow impute`"):
        ImputedTable.read(path)


def test_replicates_of_an_interrupted_imputation_do_not_stay(config, monkeypatch):
    config.layout.imputation_replicates.parent.mkdir(parents=True)
    config.layout.imputation_replicates.write_bytes(b"old")
    monkeypatch.setattr(completion, "replicate", lambda *_: None)
    impute(config)
    assert not config.layout.imputation_replicates.exists()
    assert ImputedTable.read(config.layout.imputed_regions).facts["Replicates"] is False
