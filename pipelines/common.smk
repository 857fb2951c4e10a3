"""What all rules share: the checked configuration, paths, and the sections a rule's result depends on."""

from shlex import quote

from snakemake.exceptions import WorkflowError

from dualflow import __version__
from dualflow.commit import listing_digest
from dualflow.config import parse_config, write_resolved
from dualflow.errors import ConfigError
from dualflow.flows.presets import preset

try:
    study = parse_config(config)
    for flow in study.flows.values():
        preset(flow.preset, **flow.options)
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
EMBEDDED = study.study.bids is None


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


def model_section(wildcards):
    """What the training of one model depends on."""
    if wildcards.model in study.flows:
        flow = study.flows[wildcards.model].model_dump(mode="json")
        return {"flow": flow, **section("train", without=("seeds",))}
    return section("train", "baselines", "model", without=("seeds", "models"))


def dataset(wildcards):
    """What the index reads: the cohort's manifest, or the study's own participants table."""
    if EMBEDDED:
        return [manifest("cohort")]
    table = study.bids / "participants.tsv"
    return [str(table)] if table.is_file() else []
