"""Parsing of Snakemake's log while it grows."""

from dualflow.commands.snakemake_log import LogFollower, failure_reasons, parse_jobs

PLAN = """host: machine
Building DAG of jobs...
Job stats:
job          count
---------  -------
all              1
preprocess_shard     2
train            1
total            4

"""
START = """[Thu Nov 26 02:17:04 2026]
rule preprocess_shard:
    output: results/x/manifests/preprocess/shard-0.json
    jobid: 1
    reason: Missing output files: results/x/manifests/preprocess/shard-0.json
    wildcards: shard=0
    resources: tmpdir=/tmp

[Thu Nov 26 02:17:04 2026]
rule train:
    jobid: 7
    reason: Params have changed since last execution: x
    wildcards: model=dualflow, seed=0

"""
END = """[Thu Nov 26 02:18:27 2026]
Finished jobid: 1 (Rule: preprocess_shard)
1 of 4 steps (25%) done
"""
ERROR = """[Thu Nov 26 02:18:30 2026]
Error in rule train:
    message: None
    jobid: 7
    output: results/x/manifests/train/dualflow_seed-0.json

"""
TARGET = """localrule all:
    input: results/x/manifests/check.json
    jobid: 0
    reason: Input files updated by another job: results/x/manifests/check.json

"""


def test_jobs_have_labels_and_reasons():
    """A label consists of rule and wildcards; the target rule is no job."""
    jobs = list(parse_jobs((PLAN + START + TARGET).splitlines()))
    assert [(job.jobid, job.label) for job in jobs] == [("1", "preprocess shard 0"), ("7", "train dualflow seed 0")]
    assert jobs[0].reason == "Missing output files: results/x/manifests/preprocess/shard-0.json"


def test_a_growing_log_is_followed(tmp_path):
    """Steps are counted and timed, failed steps do not run, and an incomplete line is read later."""
    log, clock = tmp_path / "snakemake.log", iter([10.0, 12.0, 95.0, 96.0])
    log.write_text("an earlier run\ntotal 9\n")
    follower = LogFollower(log, log.stat().st_size, lambda: next(clock))
    for text in (PLAN, START, END + ERROR[:10], ERROR[10:] + TARGET):
        with log.open("a") as stream:
            stream.write(text)
        follower.update()
    assert follower.total == 3
    assert follower.finished == [("preprocess shard 0", 83.0)]
    assert follower.running == {}
    assert not follower.nothing_to_do
    assert follower.text == PLAN + START + END + ERROR + TARGET


def test_a_run_without_work_is_recognised(tmp_path):
    """Snakemake logs that there is nothing to be done."""
    log = tmp_path / "snakemake.log"
    log.write_text("Building DAG of jobs...\nNothing to be done (all requested files are present and up to date).\n")
    follower = LogFollower(log, 0)
    follower.update()
    assert follower.nothing_to_do


def test_the_reason_of_a_failure_is_that_of_dualflow():
    """Each is shown once; without any, the last lines of Snakemake are."""
    assert failure_reasons("x\ndualflow: b\nTraceback:\ndualflow: a\ndualflow: b") == ["dualflow: a", "dualflow: b"]
    assert failure_reasons("\n".join("abcdefg")) == list("cdefg")


def test_an_unknown_step_is_told_where_the_steps_are():
    """Snakemake's own message is about rules and wildcards."""
    for line in ("No rule to produce qcc (if you use input functions", "Target rules may not contain wildcards."):
        *_, last = failure_reasons(f"MissingRuleException\n{line}")
        assert last == "no such step of this study; `dualflow run --help` lists the steps"
