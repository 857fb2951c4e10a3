"""Finished steps without a record of Snakemake, and its option to run steps."""

from pathlib import Path

import pytest

from dualflow.commands.forced_steps import forcerun, split_forcerun, steps_to_check, unrecorded_steps, warn_unrecorded
from dualflow.commands.run_lock import RUN, STATE
from dualflow.config import parse_config
from dualflow.manifest import write_manifest


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study in which `index` and `qc` are finished."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(RUN, raising=False)
    config = parse_config({"study": {"name": "x", "results": "results"}})
    for step in ("index", "qc"):
        write_manifest(config.layout.manifest(step), step=step, outputs={}, inputs={}, config={})
    return config


def record(target, seconds=0.0):
    """Write a record as Snakemake does, of an output that was written `seconds` before its file."""
    from snakemake.persistence.file import FilePersistence

    persistence = FilePersistence.__new__(FilePersistence)
    persistence._max_len = 255
    persistence._io_write(STATE / "metadata", {"endtime": target.stat().st_mtime - seconds}, str(target))


def test_a_finished_step_without_a_record_is_named(study):
    """Those that are not finished run anyway."""
    record(study.layout.manifest("index"))
    assert unrecorded_steps(study) == ["qc"]
    assert unrecorded_steps(study, ["index", "convert"]) == []
    record(study.layout.manifest("qc"))
    assert unrecorded_steps(study) == []


def test_records_of_other_files_do_not_count(study):
    """Such as that of an earlier run where results were copied in, or one that a full disk left empty."""
    index, qc = map(study.layout.manifest, ("index", "qc"))
    record(index, seconds=60)
    record(qc)
    assert unrecorded_steps(study) == ["index"]
    for file in (STATE / "metadata").iterdir():
        file.write_text("")
    assert unrecorded_steps(study) == ["index", "qc"]


def test_long_paths_have_records_over_several_folders(study):
    """Snakemake splits names that are too long for the file system."""
    deep = study.with_fields("study", results=study.layout.root / ("long" * 60) / ("long" * 60))
    path = deep.layout.manifest("index")
    write_manifest(path, step="index", outputs={}, inputs={}, config={})
    assert unrecorded_steps(deep) == ["index"]
    record(path)
    assert unrecorded_steps(deep) == []


def test_another_spelling_of_the_folder_has_no_record(study, tmp_path):
    """Snakemake knows outputs by their paths as spelled."""
    record(study.layout.manifest("index"))
    absolute = study.with_fields("study", results=tmp_path / "results")
    assert unrecorded_steps(absolute) == ["index", "qc"]


def test_files_that_are_no_records_are_passed_over(study):
    """Such as those of an editor."""
    (STATE / "metadata").mkdir(parents=True)
    for name in ("a", "notes.txt", "_w=="):
        (STATE / "metadata" / name).touch()
    assert unrecorded_steps(study) == ["index", "qc"]


@pytest.mark.parametrize("options", [["--persistence-backend", "db"], ["--drop-metadata", "--keep-going"]])
def test_other_ways_of_keeping_records_are_left_to_snakemake(study, options):
    """Otherwise every run would check all steps."""
    assert steps_to_check(study, options, pytest.fail) == []


def test_a_plain_snakemake_warns(study, monkeypatch):
    """Under `dualflow run`, which runs these steps, it does not."""
    lines = []
    warn_unrecorded(study, lines.append)
    assert len(lines) == 1
    assert lines[0].startswith("2 finished steps have no record in .snakemake")
    monkeypatch.setenv(RUN, "1")
    warn_unrecorded(study, lines.append)
    assert len(lines) == 1


def test_targets_of_the_user_are_made_alone(study):
    """Snakemake would make the outputs of forced steps beside them."""
    lines = []
    assert steps_to_check(study, ["--until", "qc", "--keep-going"], lines.append) == ["index", "qc"]
    assert steps_to_check(study, ["--keep-going", "results/x/manifests/train/dualflow_seed-0.json"], lines.append) == []
    assert "of 2 finished steps; those of this run are checked again" in lines[0]
    assert "`dualflow run` without targets checks them" in lines[1]


def test_forced_targets_of_the_user_are_told_from_other_options():
    """The option takes all words after it, up to the next option."""
    assert split_forcerun(["--until", "qc", "-R", "index", "qc", "--quiet"]) == (
        ["index", "qc"],
        ["--until", "qc", "--quiet"],
    )
    assert split_forcerun(["a.json"]) == ([], ["a.json"])
    assert forcerun(["index"], [Path("results/qc.json")]) == ["--forcerun", "index", "results/qc.json"]
    assert forcerun([], []) == []
