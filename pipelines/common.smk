"""Shared by all rules: the checked configuration, paths, and the sections that a rule's result depends on."""

from pathlib import Path
from shlex import quote

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from dualflow.commands.forced_steps import warn_unrecorded
from dualflow.commands.run_lock import join_run
from dualflow.commands.steps import (
    CHECK,
    closed_form_baselines,
    group_steps,
    require_test_people,
    step_names,
)
from dualflow.commands.study_config import parse_study_config
from dualflow.config import training_values, write_resolved
from dualflow.data.fingerprint import study_fingerprint
from dualflow.errors import ConfigError, DualflowError
from dualflow.lifetime import PARENTS, parents_of_steps
from dualflow.report.report_figure import FILED
from dualflow.revisions import REVISIONS

try:
    study = parse_study_config(config)
except ConfigError as error:
    raise WorkflowError(str(error))

LAYOUT = study.layout
if workflow.is_main_process and not workflow.output_settings.dryrun:
    IS_ALONE = join_run(LAYOUT.root, logger.warning)
else:
    IS_ALONE = True
if workflow.is_main_process:
    warn_unrecorded(study, logger.warning)


onstart:
    if not IS_ALONE:
        raise WorkflowError(
            "another run is active in this folder; wait for it to end"
        )


# The steps read the configuration's path from their environment. It is not a parameter of the rules: each rule's
# parameters are its own sections, and only their change reruns it.
shell.prefix(
    f"set -euo pipefail; export DUALFLOW_CONFIG={quote(str(write_resolved(study)))}"
    f" {PARENTS}={quote(parents_of_steps())}; "
)
SHARDS = list(range(study.preprocess.shards))
SEEDS = list(study.train.seeds)
MAIN = study.model.preset
EMBEDDED = study.embedded
# GPUs of a job that applies one model.
MODEL_GPU = 0 if study.train.device == "cpu" else 1
# Closed-form baselines take seconds, so one job fits them all and one job scores them all.
CLOSED_FORM = sorted(closed_form_baselines(study))
ANALYSES = list(study.impute.analyses) if study.impute else []
GRADIENT = sorted({name for name, _ in study.trainings} - set(CLOSED_FORM))


wildcard_constraints:
    shard=r"\d+",
    seed=r"\d+",
    model="|".join(GRADIENT),
    analysis="|".join(ANALYSES),


def manifest(step):
    """The manifest of a step; its existence tells Snakemake that the step is done."""
    return str(LAYOUT.manifest(step))


def log_of(step):
    """The log of a step."""
    return str(LAYOUT.log(step))


def benchmark_of(step):
    """Wall time and memory of a step."""
    return str(LAYOUT.benchmark(step))


def per_model(pattern):
    """One path per model and seed."""
    return [pattern.format(model=name, seed=seed) for name, seed in study.trainings]


def per_closed_form(pattern):
    """One path per closed-form baseline."""
    return [pattern.format(model=name, seed=SEEDS[0]) for name in CLOSED_FORM]


def section(*names, without=()):
    """Sections of the configuration, as the values whose change reruns a rule."""
    values = study.model_dump(mode="json", include=set(names))
    return {
        name: (
            {key: value for key, value in values[name].items() if key not in without}
            if isinstance(values[name], dict)
            else values[name]
        )
        for name in names
    }


def revision(step):
    """The revision of what a step computes, as a value whose change reruns its rule."""
    return {f"revision of {step}": REVISIONS[step]}


def model_section(wildcards):
    """The values that the training of one model depends on."""
    return training_values(study, wildcards.model)


def analysis_section(wildcards):
    """The formula of one analysis, under its key."""
    name = wildcards.analysis
    return {"impute": {"analyses": {name: study.impute.analyses[name]}}}


def reference_mask(wildcards):
    """The reference region, if it is a file of the user."""
    region = study.preprocess.reference_region
    return [region] if Path(region).is_file() else []


def test_people(wildcards):
    """No file; an error before the first step of a run that is to score models without test people."""
    try:
        require_test_people(study)
    except DualflowError as error:
        # Snakemake writes a traceback around errors of functions, so that the reason has a line of its own.
        logger.error(f"dualflow: {error}")
        raise WorkflowError(str(error))
    return []


def dataset(wildcards):
    """Input of the index: the cohort's manifest or the study's own table, kept splits and exclusions."""
    table = None if EMBEDDED else study.study.samples or study.bids / "participants.tsv"
    files = [
        str(file)
        for file in (table, study.split.file, study.study.exclusions)
        if file and file.is_file()
    ]
    return [manifest("cohort"), *files] if EMBEDDED else files


def dataset_fingerprint():
    """The state of the dataset's files, for the process that decides which steps run.

    It looks at every file. The jobs of a cluster read the Snakefile too, but neither decide nor record anything.
    """
    return study_fingerprint(study) if workflow.is_main_process and not EMBEDDED else ""
