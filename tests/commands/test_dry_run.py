"""Snakemake's reasons in plain English."""

import shutil
import subprocess
from pathlib import Path

import pytest

from dualflow.commands.dry_run import list_steps, plain_reason
from dualflow.commands.run import snakemake_command
from dualflow.commands.run_lock import STATE
from dualflow.commands.steps import step_names
from dualflow.commit import commit_text
from dualflow.config import parse_config
from dualflow.manifest import write_manifest

MANIFESTS = Path("results/x/manifests")
OLD = "{'flow': {'preset': 'dualflow'}, 'train': {'steps': 600, 'learning_rate': 0.002}}"
NEW = "{'flow': {'preset': 'dualflow'}, 'train': {'steps': 900, 'learning_rate': 0.002}}"


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (f"Missing output files: {MANIFESTS}/qc.json; Input files updated by another job: x", "not done yet"),
        (f"Input files updated by another job: {MANIFESTS}/train/a_seed-0.json, y.tsv", "after train/a_seed-0, y.tsv"),
        ("Updated input files: data/participants.tsv", "newer input: data/participants.tsv"),
        (
            "Params have changed since last execution: Union of exclusive params before and now across all output: "
            f"before: {OLD} now: {NEW} ",
            "configuration changed: train.steps 600 -> 900",
        ),
        (
            "Params have changed since last execution: Union of exclusive params before and now across all output: "
            "before: '0.1.0' now: <nothing exclusive> ",
            "configuration changed",
        ),
        (
            "Params have changed since last execution: Union of exclusive params before and now across all output: "
            f"before: {'a1' * 32!r} now: {'b2' * 32!r} ",
            "the dataset's files changed",
        ),
        ("Code has changed since last execution", "the workflow's code changed"),
        ("Something new", "Something new"),
    ],
)
def test_reasons_are_plain(reason, expected):
    """Configuration changes have the key with both values; a step that never ran has one reason."""
    assert plain_reason(reason, MANIFESTS) == expected


def test_forced_steps_have_the_causes_of_this_run():
    """Snakemake does not tell those of the user from damaged ones."""
    causes = "asked for, or its outputs were changed or removed"
    assert plain_reason("Forced execution", MANIFESTS, causes) == causes


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """Configuration values of a study whose manifests exist, and were touched by Snakemake, which records values."""
    monkeypatch.chdir(tmp_path)
    values = {
        "study": {"name": "x", "results": "results", "side": ["age", "sex"]},
        "baselines": {"models": ["mean_image"]},
        "impute": {"analyses": {"ageing": "suvr ~ age"}},
    }
    config = parse_config(values)
    manifests = [config.layout.manifest(step) for step in step_names(config)]
    for manifest in manifests:
        write_manifest(manifest, step=manifest.stem, outputs={}, inputs={}, config={})
    # The other outputs of quality page and report do not exist.
    targets = [str(path) for path in manifests if path.stem not in ("qc", "report", "check")]
    subprocess.run(
        [*snakemake_command(config), "--cores", "1", "--touch", "--forceall", *targets], check=True, capture_output=True
    )
    return values


@pytest.mark.parametrize(
    ("change", "step", "row"),
    [
        ({"convert": {"temperature": 0.9}}, "evaluate/dualflow_seed-0", "convert.temperature 1.0 -> 0.9"),
        ({"convert": {"temperature": 0.9}}, "evaluate/mean_image_seed-0", "convert.temperature 1.0 -> 0.9"),
        ({"train": {"batch_size": 4}}, "train/dualflow_seed-0", "train.batch_size 2 -> 4"),
        ({"model": {"preset": "c_glow"}}, "convert", "model.preset dualflow -> c_glow"),
        ({"preprocess": {"shards": 3}}, "cohort/shard-0", "preprocess.shards 2 -> 3"),
        (
            {"impute": {"analyses": {"ageing": "suvr ~ sex"}}},
            "analyse/ageing",
            "impute.analyses.ageing suvr ~ age -> suvr ~ sex",
        ),
    ],
)  # fmt: skip
def test_a_changed_value_has_its_key(finished, capfd, change, step, row):
    """Also one that a rule depends on beside its sections."""
    config = parse_config(finished | change)
    assert list_steps(config, [str(config.layout.manifest(step))]) == 0
    assert capfd.readouterr().out.splitlines()[-1].endswith(f"configuration changed: {row}")


def test_results_without_records_are_checked(finished, capfd):
    """After a move of the results, Snakemake would take them for those of any configuration."""
    shutil.rmtree(STATE / "metadata")
    assert list_steps(parse_config(finished)) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith(f"{STATE} has no record of the values of")
    rows = dict(line.strip().split("  ", 1) for line in lines[2:])
    assert rows["cohort shard 0"].strip().startswith(f"{STATE} has no record of its values: checked again")
    assert "train dualflow seed 0" in rows


def test_steps_that_the_user_forces_stay_beside_damaged_ones(finished, capfd):
    """Snakemake takes the last of several `--forcerun`."""
    config = parse_config(finished)
    config.layout.manifest("index").write_text("damaged")
    assert list_steps(config, ["--forcerun", str(config.layout.manifest("cohort"))]) == 0
    rows = capfd.readouterr().out.splitlines()
    assert {"cohort", "index"} <= {row.split()[0] for row in rows}
    assert any("asked for, or its outputs were changed or removed" in row for row in rows)


def test_a_run_without_test_people_is_refused_before_its_first_step(tmp_path, monkeypatch, capfd):
    """Its scores would fail after the trainings; a training alone is planned."""
    monkeypatch.chdir(tmp_path)
    config = parse_config({"study": {"name": "x", "results": "results"}, "split": {"test": 0}})
    assert list_steps(config) == 1
    assert "dualflow: split.test is 0, so nobody is left to score the models on" in capfd.readouterr().err
    assert list_steps(config, ["results/x/manifests/train/dualflow_seed-0.json"]) == 0
    assert "train dualflow seed 0" in capfd.readouterr().out


def test_a_damaged_output_of_one_scan_is_planned(tmp_path, monkeypatch, capfd):
    """No rule makes the manifest of a single scan; the step that lists it is made again."""
    monkeypatch.chdir(tmp_path)
    config = parse_config({"study": {"name": "x", "results": "results"}})
    scan, shard = (config.layout.manifest(f"cohort/{name}") for name in ("sub-C0001", "shard-0"))
    commit_text(tmp_path / "t1.nii", "scan")
    write_manifest(scan, step="cohort", outputs={"t1": tmp_path / "t1.nii"}, inputs={}, config={})
    write_manifest(shard, step="cohort", outputs={"sub-C0001": scan}, inputs={}, config={})
    (tmp_path / "t1.nii").unlink()
    assert list_steps(config, [str(shard)]) == 0
    assert "its outputs were changed or removed" in capfd.readouterr().out


def test_an_unreadable_table_of_splits_is_one_line(tmp_path, monkeypatch, capfd):
    """It is read before the first step."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "splits.tsv").write_text("")
    config = parse_config({"study": {"name": "x", "results": "results"}, "split": {"file": "splits.tsv"}})
    assert list_steps(config) == 1
    errors = capfd.readouterr().err
    assert "dualflow: splits.tsv: is not a table (it is empty)" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("options", [["-np"], ["-nq"], ["--quiet"]], ids=" ".join)
def test_options_of_the_output_do_not_hide_the_steps(tmp_path, monkeypatch, capfd, options):
    """Snakemake's `--quiet` would leave none to list."""
    monkeypatch.chdir(tmp_path)
    config = parse_config({"study": {"name": "x", "results": "results"}})
    assert list_steps(config, ["index", *options]) == 0
    assert capfd.readouterr().out.startswith("4 steps would run:\n")


def test_a_plan_says_that_the_dataset_is_not_checked(tmp_path, monkeypatch, capfd):
    """A column that no table has fails in the index; of a simulated study nothing can be wrong."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bids/sub-1/anat").mkdir(parents=True)
    (tmp_path / "bids/sub-1/anat/sub-1_T1w.nii.gz").touch()
    for study, told in (({"name": "x"}, False), ({"name": "x", "bids": "bids", "side": ["agee"]}, True)):
        assert list_steps(parse_config({"study": {"results": "results", **study}}), ["index"]) == 0
        assert ("not checked yet" in capfd.readouterr().out) == told
