"""`dualflow doctor`: its findings and exit code."""

import socket
import sys
from pathlib import Path
from threading import Thread

import pytest
import yaml
from click.testing import CliRunner

from dualflow.cli import main
from dualflow.commands import doctor


@pytest.fixture
def diagnose(tmp_path, monkeypatch):
    """Run the command with `study.yaml` of the given sections; return exit code and findings by subject."""
    monkeypatch.chdir(tmp_path)
    for name in doctor.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def run(*arguments, **sections):
        Path("study.yaml").write_text(yaml.safe_dump({"study": {"name": "x"}} | sections))
        done = CliRunner().invoke(main, ["doctor", *arguments])
        *lines, empty, verdict = done.output.splitlines()
        assert not empty
        assert verdict.startswith("not ready: " if done.exit_code else "ready to run")
        return done.exit_code, {line[6:26].strip(): (line[:5].strip(), line[27:]) for line in lines}

    return run


def test_a_ready_machine_has_no_failures(diagnose):
    """Every check has a line."""
    code, findings = diagnose()
    assert code == 0
    assert {"Python", "dualflow", "Snakemake", "torch", "CPU", "memory", "MLflow"} <= set(findings)
    assert all(level in ("ok", "warn") for level, _ in findings.values())
    assert findings["dualflow"][1].endswith(str(Path(doctor.workflow_root())))


def test_a_configuration_is_checked(diagnose):
    """The checks are of keys, data and tracking server."""
    code, findings = diagnose("--config", "study.yaml")
    assert (code, findings["configuration"]) == (0, ("ok", "study.yaml is valid"))
    assert findings["data"] == ("ok", "40 subjects are simulated; set study.bids for your own")
    code, findings = diagnose("--config", "study.yaml", trian={})
    assert code == 1
    assert findings["configuration"] == ("fail", "study.yaml: unknown key 'trian'; did you mean 'train'?")
    code, findings = diagnose("--config", "study.yaml", tracking={"uri": "http://127.0.0.1:9"})
    assert code == 0
    assert findings["MLflow"][0] == "warn"
    assert "`dualflow sync`" in findings["MLflow"][1]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"validation": 0.6, "test": 0.5}, "split.test + split.validation = 1.1"),
        ({"folds": 50}, "40 subjects with a pair give no fold 0 of 50"),
        ({"test_subjects": ["nobody"]}, "no such subjects: nobody"),
    ],
)
def test_the_split_of_simulated_people_is_drawn(diagnose, split, message):
    """A split that the index would refuse is found before any person is simulated."""
    code, findings = diagnose("--config", "study.yaml", split=split)
    assert (code, findings["split"][0]) == (1, "fail")
    assert message in findings["split"][1]


@pytest.mark.parametrize(
    ("installed", "level", "text"),
    [
        ("9.20.1", "ok", "9.20.1"),
        ("7.32.4", "fail", "7.32.4; install snakemake>="),
        ("0+untagged.1.gabc", "warn", "0+untagged.1.gabc is no released version; expected snakemake>="),
    ],
)
def test_the_version_of_snakemake_is_checked(diagnose, monkeypatch, installed, level, text):
    """A build from its source may have none."""
    monkeypatch.setattr(doctor, "version", lambda _: installed)
    _, findings = diagnose()
    assert findings["Snakemake"][0] == level
    assert findings["Snakemake"][1].startswith(text)


def test_a_tracking_server_is_named_without_its_password(diagnose):
    """Also where something other than a web server answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            with server.accept()[0] as client:
                client.sendall(b"220 mail ready\r\n")

        other = Thread(target=answer, daemon=True)
        other.start()
        uri = f"http://person:secret@127.0.0.1:{server.getsockname()[1]}"
        code, findings = diagnose("--config", "study.yaml", tracking={"uri": uri})
        other.join(60)
    assert (code, findings["MLflow"][0]) == (0, "warn")
    assert findings["MLflow"][1].startswith(uri.replace("person:secret@", "") + " does not answer (")
    assert "secret" not in str(findings)


@pytest.mark.parametrize("uri", ["mlruns", "htp://127.0.0.1:5000", "sqlite://results/mlflow.db"])
def test_a_store_that_mlflow_cannot_open_is_a_failure(diagnose, uri):
    """A run would queue every record for good."""
    code, findings = diagnose("--config", "study.yaml", tracking={"uri": uri})
    assert (code, findings["configuration"][0]) == (1, "fail")
    assert f"tracking.uri = '{uri}': expected" in findings["configuration"][1]


def test_the_driver_of_a_database_is_checked(diagnose, monkeypatch):
    """A database whose driver is missing would end every training."""
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    uri = "postgresql://person:secret@127.0.0.1:9/mlflow"
    code, findings = diagnose("--config", "study.yaml", tracking={"uri": uri})
    assert (code, findings["MLflow"][0]) == (1, "fail")
    assert "pip install psycopg2-binary" in findings["MLflow"][1]
    assert "secret" not in str(findings)


def test_an_unreachable_database_is_named_without_its_password(diagnose, monkeypatch):
    """The runs are queued."""

    def refuse(uri):
        raise ConnectionError(f"{uri} refuses")

    monkeypatch.setattr(doctor, "check_connection", refuse)
    uri = "postgresql://person:secret@127.0.0.1:9/mlflow"
    code, findings = diagnose("--config", "study.yaml", tracking={"uri": uri})
    assert (code, findings["MLflow"][0]) == (0, "warn")
    assert "`dualflow sync`" in findings["MLflow"][1]
    assert "secret" not in str(findings)


def test_obstacles_of_a_run_are_failures(diagnose, monkeypatch, tmp_path):
    """Too few GPUs, an MLflow store that cannot be written, and a full disk."""
    monkeypatch.setattr(doctor, "NO_DISK_GIB", 1e9)
    monkeypatch.setattr(doctor, "LOW_DISK_GIB", 1e9)
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: Path(path) == tmp_path)
    train = {"device": "cuda", "processes": 99, "batch_size": 99}
    code, findings = diagnose("--config", "study.yaml", train=train, tracking={"uri": "sqlite:////proc/x.db"})
    assert code == 1
    assert {subject for subject, (level, _) in findings.items() if level == "fail"} == {"GPU", "disk", "MLflow"}
    assert "lower train.threads" in findings["CPU"][1]


def make_pairs(folder, count):
    """Empty files of subjects with T1w and FDG, and their table."""
    rows = ["participant_id\tage"]
    for number in range(count):
        name = f"sub-{number}"
        for path in (f"{name}/anat/{name}_T1w.nii.gz", f"{name}/pet/{name}_trc-FDG_pet.nii.gz"):
            (folder / path).parent.mkdir(parents=True)
            (folder / path).touch()
        rows.append(f"{name}\t7{number}")
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize(
    "sections",
    [
        {"study": {"labels": ["diagnosis"]}},
        {"split": {"stratify": ["diagnosis"]}},
        {"study": {"exclusions": "exclusions.tsv"}},
    ],
)
def test_what_the_index_would_refuse_is_a_failure(diagnose, tmp_path, sections):
    """Labels, columns to stratify by, and decisions on scans that the study does not have."""
    make_pairs(tmp_path / "bids", 7)
    Path("exclusions.tsv").write_text("subject\tdecision\treason\n9\texclude\tmotion\n")
    study = {"name": "x", "bids": "bids", **sections.get("study", {})}
    code, findings = diagnose("--config", "study.yaml", **(sections | {"study": study}))
    assert (code, findings["data"][0]) == (1, "fail")
    assert any(words in findings["data"][1] for words in ("no column 'diagnosis'", "the study has no scan sub-9"))


def test_labels_that_match_no_row_are_told(diagnose, tmp_path):
    """A table that pads the labels of subjects in another way leaves every scan without side information."""
    make_pairs(tmp_path / "bids", 8)
    table = tmp_path / "bids/participants.tsv"
    study = {"name": "x", "bids": "bids", "side": ["age"]}
    assert "side information" not in diagnose("--config", "study.yaml", study=study)[1]
    table.write_text(table.read_text().replace("sub-3\t", "sub-03\t"))
    text = "age is unknown in 1 of 8 scans"
    assert diagnose("--config", "study.yaml", study=study)[1]["side information"] == ("ok", text)
    table.write_text(table.read_text().replace("sub-", "sub-0"))
    level, text = diagnose("--config", "study.yaml", study=study)[1]["side information"]
    assert level == "warn"
    assert text.startswith(
        "age is unknown in 8 of 8 scans; is it filled in, and does participants.tsv spell the labels"
    )


def test_analyses_that_the_index_would_refuse_are_failures(diagnose, tmp_path):
    """A formula is checked before the run, not by its second step."""
    make_pairs(tmp_path / "bids", 8)
    study = {"name": "x", "bids": "bids", "side": ["age"]}
    for formula, failed in (("suvr ~ age", False), ("suvr ~ sex", True)):
        code, findings = diagnose("--config", "study.yaml", study=study, impute={"analyses": {"main": formula}})
        assert ("impute" in findings, code) == (failed, int(failed))
    assert "names sex, which is no column" in findings["impute"][1]


def test_a_study_whose_split_leaves_nobody_to_test_is_no_run(diagnose, tmp_path):
    """The only pair is for training."""
    make_pairs(tmp_path / "bids", 1)
    code, findings = diagnose("--config", "study.yaml", study={"name": "x", "bids": "bids"})
    assert (code, findings["split"][0]) == (1, "fail")
    assert findings["split"][1].startswith("1 people with a pair: nobody is in the split test")


def test_decisions_of_a_reviewer_count(diagnose, tmp_path):
    """They are no defect of the data."""
    make_pairs(tmp_path / "bids", 7)
    Path("exclusions.tsv").write_text("subject\tdecision\treason\n1\texclude\tmotion\n")
    study = {"name": "x", "bids": "bids", "exclusions": "exclusions.tsv"}
    assert diagnose("--config", "study.yaml", study=study)[1]["data"] == ("ok", "6 scans, 6 with FDG, 1 excluded")


def test_sessions_with_the_target_alone_are_counted(diagnose, tmp_path):
    """They are no defect of the data."""
    make_pairs(tmp_path / "bids", 8)
    (tmp_path / "bids/sub-3/anat/sub-3_T1w.nii.gz").unlink()
    level, text = diagnose("--config", "study.yaml", study={"name": "x", "bids": "bids"})[1]["data"]
    assert (level, text) == ("ok", "7 scans, 7 with FDG, 0 excluded, 1 with FDG alone")


def test_a_small_study_is_told_what_it_lacks(diagnose, tmp_path):
    """Seven pairs are ready to run; what their model and report will lack is known before the training."""
    make_pairs(tmp_path / "bids", 7)
    study = {"name": "x", "bids": "bids"}
    code, findings = diagnose("--config", "study.yaml", study=study)
    assert (code, findings["data"][0]) == (0, "ok")
    assert "targets" not in findings
    assert findings["people"] == ("warn", "2 test people, expected 6 or more: scores have no intervals and tests")
    (tmp_path / "bids/sub-3/pet/sub-3_trc-FDG_run-2_pet.nii.gz").touch()
    code, findings = diagnose("--config", "study.yaml", study=study, split={"test_subjects": ["9"]})
    assert findings["targets"][1].startswith("1 not used, their scans are to convert; the first, sub-3: 2 files")
    assert code == 1
    assert findings["split"][1].startswith("split.test_subjects: no such subjects: 9")
    Path("splits.tsv").write_text("subject\tsplit\n" + "".join(f"{number}\ttrain\n" for number in range(7)))
    code, findings = diagnose("--config", "study.yaml", study=study, split={"file": "splits.tsv"})
    assert (code, findings["split"][0]) == (1, "fail")
    assert "nobody is in the split test" in findings["split"][1]


def test_a_run_without_test_people_is_no_run(diagnose):
    """The run itself would refuse it."""
    code, findings = diagnose("--config", "study.yaml", split={"test": 0})
    assert (code, findings["split"][0]) == (1, "fail")
