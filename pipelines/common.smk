"""What all rules share: the checked configuration, paths, and the sections a rule's result depends on."""

from pathlib import Path
from shlex import quote

from snakemake.exceptions import WorkflowError

from dualflow import __version__
from dualflow.commands.study_config import parse_study_config
from dualflow.config import write_resolved
from dualflow.data.fingerprint import study_fingerprint
from dualflow.errors import ConfigError

try:
    study = parse_study_config(config)
except ConfigError as error:
    raise WorkflowError(str(error))

LAYOUT = study.layout
# The steps find the configuration in their environment. It is no parameter of the rules: each rule has its own sections
# as parameters, and only their change reruns it.
shell.prefix(
    f"set -euo pipefail; export DUALFLOW_CONFIG={quote(str(write_resolved(study)))}; "
)
SHARDS = list(range(study.preprocess.shards))
SEEDS = list(study.train.seeds)
MAIN = study.model.preset
EMBEDDED = study.embedded


wildcard_constraints:
    shard=r"\d+",
    seed=r"\d+",
    model="|".join([*study.flows, *study.baselines.models]),


def manifest(step):
    """The file that says a step is done."""
    return str(LAYOUT.manifest(step))


def log_of(step):
    """A step's log."""
    return str(LAYOUT.log(step))


def benchmark_of(step):
    """A step's wall time and memory."""
    return str(LAYOUT.benchmark(step))


def trained(pattern):
    """One path per model and seed."""
    return [pattern.format(model=name, seed=seed) for name, seed in study.trainings]


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


# Values of train that do not change what comes out of one training.
ELSEWHERE = ("seeds", "processes", "device")


def model_section(wildcards):
    """What the training of one model depends on."""
    if wildcards.model in study.flows:
        flow = study.flows[wildcards.model].model_dump(mode="json")
        return {"flow": flow, **section("train", without=ELSEWHERE)}
    return section("train", "baselines", "model", without=(*ELSEWHERE, "models"))


def reference_mask(wildcards):
    """The reference region where it is a file of the user's."""
    region = study.preprocess.reference_region
    return [region] if Path(region).is_file() else []


def dataset(wildcards):
    """What the index reads: the cohort's manifest or the study's own table, and the splits that were kept."""
    own = None if EMBEDDED else study.study.samples or study.bids / "participants.tsv"
    tables = [str(file) for file in (own, study.split.file) if file and file.is_file()]
    return [manifest("cohort"), *tables] if EMBEDDED else tables
