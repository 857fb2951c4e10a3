"""The complete workflow on six simulated subjects and an 8 mm grid, and its repeated runs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
import zlib
from base64 import b64decode
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import psutil
import pytest
from tiny_study import ROOT, TINY, run, snakemake, tool, write_config, write_samples

from dualflow.report.report_figure import FILED

pytestmark = [pytest.mark.workflow, pytest.mark.slow, pytest.mark.xdist_group("workflow")]


def planned(folder):
    """Return the names of the jobs that a dry run plans."""
    dry = snakemake(folder, "-n")
    assert dry.returncode == 0, dry.stderr
    return {line.split()[1].rstrip(":") for line in dry.stdout.splitlines() if line.startswith(("rule ", "localrule "))}


def test_synthetic_volumes_have_the_native_grid(workspace):
    """Test subjects have point estimate, standard deviation and sample with the T1w's affine and shape, in SUVR."""
    pairs = pd.read_csv(workspace / "results/tiny/index/pairs.tsv", sep="\t")
    held_out = pairs[pairs["split"] == "test"]
    assert len(held_out)
    for key, source in zip(held_out["scan"], held_out["source"], strict=True):
        t1 = nib.load(workspace / "results/tiny/bids" / source)
        folder = workspace / "results/tiny/derivatives/dualflow" / key / "pet"
        for desc in ("synth", "synthmean", "synthstd", "synth01"):
            image = nib.load(folder / f"{key}_trc-FDG_space-T1w_desc-{desc}_pet.nii.gz")
            assert image.shape == t1.shape
            np.testing.assert_allclose(image.affine, t1.affine, atol=1e-4)
            assert image.header["sform_code"] == image.header["qform_code"] > 0
        sidecar = json.loads((folder / f"{key}_trc-FDG_space-T1w_desc-synth_pet.json").read_text())
        assert sidecar["Synthetic"] is True
        assert sidecar["Units"] == "SUVR"


def test_tables_have_every_model_and_the_ceilings(workspace):
    """The summary has rows of each model and all ceilings."""
    summary = pd.read_csv(workspace / "results/tiny/metrics/summary.tsv", sep="\t")
    assert set(summary["model"]) == {"dualflow", "mean_image", "unet", "attainable", "oracle", "true_law"}
    mae = summary[summary["metric"] == "mae"].set_index("model")["mean"]
    assert mae["oracle"] < mae["attainable"] < mae["mean_image"]
    assert "<h2" in (workspace / "results/tiny/report.html").read_text()
    assert {"bits_in_mask"} <= set(summary.loc[summary["model"] == "dualflow", "metric"])
    assert pd.read_csv(workspace / "results/tiny/metrics/stress_dualflow_seed-0.tsv", sep="\t")["samples"].sum() == 9


def test_runs_are_tracked_with_model_curves_and_data(workspace):
    """MLflow has a run per training with its parameters, curves, scores, data and model, and no account name."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{workspace}/results/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    models = ("dualflow", "mean_image", "unet")
    assert set(runs) == {*(f"{name} seed 0" for name in models), "workflow"}
    flow, network, closed_form = (runs[f"{name} seed 0"] for name in ("dualflow", "unet", "mean_image"))
    workflow = runs["workflow"]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in (flow, network, closed_form)} == {workflow.info.run_id}
    assert (flow.data.params["steps"], flow.data.params["flow.low_rank"]) == ("4", "2")
    assert not any(key.startswith("flow.") for key in network.data.params)
    assert not {"steps", "learning_rate", "source", "side"} & set(closed_form.data.params)
    assert int(network.data.params["width"]) >= 6
    assert len(client.get_metric_history(flow.info.run_id, "validation/loss_nats_per_voxel")) == 2
    assert len(client.get_metric_history(flow.info.run_id, "train/loss_nats_per_voxel")) == 4
    assert 0.5 <= flow.data.metrics["train/discriminator_chance_fraction"] <= 1
    assert flow.data.metrics["train/best_step"] in (2, 4)
    assert "validation/best_score_nats_per_voxel" in flow.data.metrics
    # The flow's prediction is its closed-form mean, which training does not change.
    assert "validation/mae_SUVR" not in flow.data.metrics
    assert "validation/mae_SUVR" in network.data.metrics
    assert all(run.data.metrics["test/mae_SUVR"] > 0 for run in (flow, network, closed_form))
    contexts = {tag.value for entry in flow.inputs.dataset_inputs for tag in entry.tags}
    assert contexts == {"training", "validation", "testing"}
    text = " ".join(str(entry.dataset.to_dictionary()) for entry in flow.inputs.dataset_inputs)
    assert "dualflow cohort --subjects 6" in text
    assert "sub-" not in text
    assert "get-artifact?path=pictures/test.png" in flow.data.tags["mlflow.note.content"]
    assert {"report.html", "qc.html", "config.yaml", "metrics", "figures"} <= {
        file.path for file in client.list_artifacts(workflow.info.run_id)
    }
    assert {"model/model.safetensors", "model/model.json"} <= {
        f.path for f in client.list_artifacts(flow.info.run_id, "model")
    }
    assert all(run.data.tags["mlflow.user"] == "dualflow" for run in runs.values())
    view = json.loads(experiment.tags["mlflow.sharedViewState.models"])["state"].removeprefix("deflate;")
    charts = json.loads(zlib.decompress(b64decode(view)))["compareRunCharts"]
    shown = {chart["metricKey"] for chart in charts} - {"train/loss"}  # of networks that this study does not have
    assert shown <= set().union(*(run.data.metrics for run in runs.values()))


def test_a_finished_study_has_nothing_to_do(workspace):
    """A second run says so, and prints where the results are."""
    assert planned(workspace) == set()
    repeated = run(workspace)
    assert repeated.returncode == 0, repeated.stderr
    assert repeated.stdout.startswith("nothing to do: all steps are done\n")
    assert "report               results/tiny/report.html" in repeated.stdout
    assert run(workspace, "--dry-run").stdout == "nothing to do: all steps are done\n"


def test_a_dry_run_lists_steps_with_reasons(workspace):
    """Reasons are changed values, removed outputs and earlier steps; nothing runs and no file changes."""

    def listed():
        shown = run(workspace, "--dry-run")
        assert shown.returncode == 0, shown.stderr
        return [re.split("  +", line.strip()) for line in shown.stdout.splitlines()]

    page = workspace / "results/tiny/qc.html"
    text = page.read_text()
    try:
        write_config(workspace, TINY | {"evaluate": TINY["evaluate"] | {"bootstrap": 200}})
        assert listed() == [
            ["2 steps would run:"],
            ["report", "configuration changed: evaluate.bootstrap 100 -> 200"],
            ["check", "after report"],
        ]
        write_config(workspace, TINY)
        page.unlink()
        assert listed() == [
            ["3 steps would run:"],
            ["qc", "its outputs were changed or removed"],
            ["report", "after qc"],
            ["check", "after qc, report"],
        ]
        assert (workspace / "results/tiny/manifests/qc.json").is_file()
    finally:
        write_config(workspace, TINY)
        page.write_text(text)


def test_a_comparison_is_made_on_request_alone(workspace):
    """It is a target of the workflow, and no step of a study."""
    assert "compare" not in planned(workspace)
    dry = snakemake(workspace, "-n", "-p", "compare")
    assert "dualflow compare --config" in dry.stdout, dry.stderr


def test_snakemake_packs_figures_and_tables_with_captions(workspace, tmp_path):
    """`snakemake --report` has the figures of every study, its tables and pages, each with its caption."""
    done = snakemake(workspace, "--cores", "1", "--report", str(tmp_path / "report.zip"))
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / "report.zip") as archive:
        files = {Path(name).name for name in archive.namelist()}
        text = " ".join(archive.read(name).decode() for name in archive.namelist() if name.endswith((".js", ".html")))
    assert {f"{name}.png" for name in FILED} <= files
    assert {"report.html", "qc.html", "quality.tsv", "summary.tsv", "differences.tsv"} <= files
    assert "Paired differences to the main model on the same test subjects" in text


def test_a_failed_run_stays_failed_until_it_is_repaired(workspace, tmp_path):
    """A failed step fails again, although the report of an earlier run exists."""
    for folder in ("results", ".snakemake"):
        shutil.copytree(workspace / folder, tmp_path / folder)
    write_config(tmp_path, TINY)
    results, model = tmp_path / "results/tiny", "models/mean_image/seed-0"
    manifest = "results/tiny/manifests/train/mean_image_seed-0.json"
    shutil.rmtree(results / model)
    (results / model).touch()
    for _ in range(2):
        failed = run(tmp_path)
        assert failed.returncode == 1
        assert "report.html" not in failed.stdout
        assert "failed with exit code 1 after 0 of 4 steps" in failed.stderr
        assert any(line.startswith("  dualflow: ") and model in line for line in failed.stderr.splitlines())
        assert not (tmp_path / manifest).exists()
    (results / model).unlink()
    repaired = run(tmp_path, "--", manifest)
    assert repaired.returncode == 0, repaired.stderr
    assert (tmp_path / manifest).is_file()


def test_a_changed_value_reruns_only_dependent_steps(workspace):
    """Bootstrap resamples rerun the report, and the learning rate reruns trainings and later steps.

    Review thresholds rerun the quality page, but neither preprocessing nor trainings.
    """
    try:
        write_config(workspace, TINY | {"evaluate": TINY["evaluate"] | {"bootstrap": 200}})
        assert planned(workspace) == {"report", "check", "all"}
        write_config(workspace, TINY | {"review": {"max_displacement_mm": 5.0}})
        assert planned(workspace) == {"qc", "report", "check", "all"}
        write_config(workspace, TINY | {"train": TINY["train"] | {"learning_rate": 1e-3}})
        assert planned(workspace) == {"train", "evaluate", "convert", "report", "check", "all"}
        write_config(workspace, TINY | {"split": TINY["split"] | {"seed": 1}})
        assert planned(workspace) >= {"index", "train"}
        assert not planned(workspace) & {"cohort_shard", "cohort"}
    finally:
        write_config(workspace, TINY)


def test_steps_that_read_other_scans_follow_a_new_index(workspace, tmp_path):
    """They are run although the trainings, run before with the new index on their own, are the same as before."""
    for folder in ("results", ".snakemake"):
        shutil.copytree(workspace / folder, tmp_path / folder)
    write_config(tmp_path, TINY)
    index = tmp_path / "results/tiny/manifests/index.json"
    index.write_text(index.read_text() + "\n")
    trained = snakemake(tmp_path, "--cores", "2", "--until", "train", "fit_closed_form")
    assert trained.returncode == 0, trained.stderr
    assert {"qc", "convert", "evaluate", "evaluate_closed_form", "evaluate_ceilings"} <= planned(tmp_path)


def test_an_invalid_configuration_is_an_error(workspace):
    """The error names the unknown key and suggests the closest one."""
    try:
        write_config(workspace, TINY | {"trian": {}})
        refused = run(workspace)
        assert refused.returncode == 2
        assert refused.stderr.strip().splitlines() == [
            "dualflow: tiny.yaml: unknown key 'trian'; did you mean 'train'?"
        ]
        plain = snakemake(workspace, "-n")
        assert plain.returncode != 0
        assert "unknown key 'trian'" in plain.stdout + plain.stderr
    finally:
        write_config(workspace, TINY)


def test_bad_scans_are_excluded_and_the_rest_converted(workspace, tmp_path):
    """A conversion of a truncated, an empty, a NaN and a valid scan lists the reasons and exits with 3."""
    study, out = tmp_path / "study", tmp_path / "out"
    subjects = sorted((workspace / "results/tiny/bids").glob("sub-*"))[:4]
    for subject in subjects:
        shutil.copytree(subject / "anat", study / subject.name / "anat")
    (study / "dataset_description.json").write_text('{"Name": "batch", "BIDSVersion": "1.10.0"}')
    t1 = [next((study / subject.name / "anat").glob("*_T1w.nii.gz")) for subject in subjects]
    t1[1].write_bytes(t1[1].read_bytes()[:5000])
    t1[2].write_bytes(b"")
    image = nib.load(t1[3])
    nib.save(nib.Nifti1Image(np.full(image.shape, np.nan, np.float32), image.affine), t1[3])
    model = workspace / "results/tiny/models/dualflow/seed-0"
    command = ["dualflow.cli", "convert", str(study), "--model", str(model), "--out", str(out), "--samples", "2"]
    done = tool(*command, folder=tmp_path)
    assert done.returncode == 3
    assert "3 failed; volumes, conversion.tsv and conversion.html are in" in done.stdout
    verdicts = pd.read_csv(out / "conversion.tsv", sep="\t").set_index("scan")["verdict"]
    assert verdicts[subjects[0].name] in ("ok", "review")
    assert (verdicts[[subject.name for subject in subjects[1:]]] == "failed").all()
    table = pd.read_csv(out / "quarantine.tsv", sep="\t")
    assert list(table["scan"]) == [subject.name for subject in subjects[1:]]
    assert all(name in reason for name, reason in zip([path.name for path in t1[1:]], table["reason"], strict=True))
    good = out / subjects[0].name / "pet" / f"{subjects[0].name}_trc-FDG_space-T1w_desc-synth_pet.nii.gz"
    before = good.stat().st_mtime_ns
    assert np.isfinite(nib.load(good).get_fdata()).all()
    assert tool(*command, "--workers", "2", folder=tmp_path).returncode == 3
    assert good.stat().st_mtime_ns == before, "a finished scan was converted again"


def snakemake_of(run):
    return next(child for child in run.children() if "snakemake" in child.cmdline())


KILLS = {
    "the group": lambda run: os.killpg(run.pid, signal.SIGKILL),
    "SIGTERM to the run": lambda run: run.terminate(),
    "Snakemake alone": lambda run: snakemake_of(run).kill(),
}
"""How a run is ended; no process of it may stay."""


def run_and_kill(folder, results, pattern, kill):
    """Start a run in `folder`; end it once a file in `results` matches the pattern. Return exit code and output."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dualflow.cli", "run", "--config", "tiny.yaml"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    run, deadline = psutil.Process(process.pid), time.monotonic() + 300
    try:
        while not any(results.glob(pattern)):
            assert process.poll() is None, f"the run ended without {pattern}"
            assert time.monotonic() < deadline, f"no {pattern} within 300 s"
            time.sleep(0.02)
        assert process.poll() is None, "the run ended before it was killed"
        family = run.children(recursive=True)
        KILLS[kill](run)
        output, _ = process.communicate(timeout=900)
        _, alive = psutil.wait_procs(family, timeout=600)
        assert not alive, f"after {kill}, processes stay: {[child.cmdline() for child in alive]}"
    finally:
        process.kill()
    return process.returncode, output


def test_a_killed_run_ends_with_its_steps_and_resumes(workspace, tmp_path):
    """However a run ends during a training, its steps end too, and the last run has the same weights."""
    for folder in ("results", ".snakemake"):
        shutil.copytree(workspace / folder, tmp_path / folder)
    write_config(tmp_path, TINY)
    results = tmp_path / "results/tiny"
    model, manifest = results / "models/dualflow", results / "manifests/train/dualflow_seed-0.json"
    expected = (model / "seed-0/model.safetensors").read_bytes()
    states = "models/dualflow/seed-0/state-*"

    def forget_training():
        shutil.rmtree(model, ignore_errors=True)
        manifest.unlink(missing_ok=True)

    forget_training()
    run_and_kill(tmp_path, results, states, "Snakemake alone")
    forget_training()  # it may have ended before its parent's end was noticed
    stopped, output = run_and_kill(tmp_path, results, states, "SIGTERM to the run")
    assert stopped == 130, output
    assert "unlocked: the run of process" in output
    run_and_kill(tmp_path, results, "manifests/train/dualflow_seed-0.json", "the group")
    done = run(tmp_path, "--", "--until", "train")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (model / "seed-0/model.safetensors").read_bytes() == expected
    assert not list(results.rglob(".tmp-*"))


def test_finished_steps_are_checked_again_without_snakemakes_record(workspace, tmp_path):
    """A copy of the results alone keeps its volumes, and its index is the same."""
    shutil.copytree(workspace / "results", tmp_path / "results")
    write_config(tmp_path, TINY)
    results = tmp_path / "results/tiny"
    kept = list((results / "bids").rglob("*.nii.gz"))
    written = [file.stat().st_mtime_ns for file in kept]
    table = (results / "index/pairs.tsv").read_bytes()
    done = run(tmp_path, "--", "--until", "index")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ".snakemake has no record of the values of" in done.stdout
    assert "index: " in done.stdout
    assert written == [file.stat().st_mtime_ns for file in kept]
    assert (results / "index/pairs.tsv").read_bytes() == table


def test_damage_is_repaired_by_the_same_command(workspace, tmp_path):
    """Outputs that were emptied, changed or removed are made again, with what depends on them.

    A plain `snakemake` does it too; meanwhile, `dualflow run` waits.
    """
    shutil.copytree(workspace / "results", tmp_path / "results")
    shutil.copytree(workspace / ".snakemake", tmp_path / ".snakemake")
    write_config(tmp_path, TINY)
    results = tmp_path / "results/tiny"
    weights = results / "models/mean_image/seed-0/model.safetensors"
    sidecar = next((results / "derivatives").rglob("*_desc-synth_pet.json"))
    table, readme = results / "metrics/summary.tsv", results / "derivatives/dualflow/README"
    expected = {file: file.read_bytes() for file in (weights, sidecar, readme)}
    weights.write_bytes(b"")
    sidecar.write_text(sidecar.read_text().replace('"Synthetic": true', '"Synthetic": false'))
    table.unlink()
    readme.write_text("damaged")
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--configfile", "tiny.yaml"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with subprocess.Popen(
        [*command, "--cores", "2"], cwd=tmp_path, text=True, env=os.environ | {"PATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as plain:  # fmt: skip
        while "rule fit_closed_form" not in (line := plain.stdout.readline()):
            assert plain.poll() is None, line
        waited = subprocess.Popen(
            [sys.executable, "-m", "dualflow.cli", "run", "--config", "tiny.yaml"], cwd=tmp_path, text=True,
            env=os.environ | {"PATH": path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        output = plain.communicate(timeout=1200)[0]
        assert plain.returncode == 0, output
    done, errors = waited.communicate(timeout=1200)
    assert "another run is active in this folder; waiting for it to end" in errors
    assert done.startswith("nothing to do: all steps are done\n"), done + errors
    assert {file: file.read_bytes() for file in expected} == expected
    assert table.is_file()


def test_a_table_of_samples_is_a_study(tmp_path):
    """A samples.tsv in a folder with a space is indexed, and again when one of its files changes."""
    data = tmp_path / "my data"
    data.mkdir()
    names = write_samples(data)
    split = {"folds": 3, "fold": 2}
    write_config(tmp_path, {"study": {"name": "tiny", "samples": "my data/samples.tsv"}, "split": split})
    done = snakemake(tmp_path, "--cores", "1", "--until", "index")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results/tiny/index"
    assert pd.read_csv(folder / "splits.tsv", sep="\t")["split"].value_counts()["test"] == 2
    assert "| pairs, with FDG" in (folder / "summary.md").read_text()
    os.utime(data / names[0])
    assert "index" in planned(tmp_path)
    assert re.search(r"index +the dataset's files changed\n", run(tmp_path, "--dry-run").stdout)


FINGERPRINTED = """
import sys
import dualflow.data.fingerprint as module
from snakemake.cli import main

fingerprint = module.study_fingerprint
module.study_fingerprint = lambda config: print("reads the dataset") or fingerprint(config)
main(sys.argv[1:])
"""


def test_the_jobs_of_a_cluster_do_not_read_the_dataset(tmp_path):
    """Each reads the Snakefile, and would look at every image; a run still plans the index for a changed file alone."""
    names = write_samples(tmp_path)
    write_config(tmp_path, {"study": {"name": "tiny", "samples": "samples.tsv"}, "split": {"folds": 3, "fold": 2}})
    index = "results/tiny/manifests/index.json"
    job = ["--mode", "remote", "--allowed-rules", "index", "--force", "--nolock", "--ignore-incomplete"]

    def reads(*options):
        command = [sys.executable, "-c", FINGERPRINTED, "--snakefile", str(ROOT / "Snakefile")]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [*command, "--configfile", "tiny.yaml", "--cores", "1", *options, "--", index], cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"PATH": path}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout.count("reads the dataset")

    assert reads() == 1
    assert "index" not in planned(tmp_path)
    assert reads(*job) == 0
    assert "index" not in planned(tmp_path)
    os.utime(tmp_path / names[0])
    assert "index" in planned(tmp_path)
