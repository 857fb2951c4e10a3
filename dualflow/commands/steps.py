"""The steps of a study's workflow, by the names of their manifests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dualflow.config import Config
from dualflow.config.learning import SEEDED
from dualflow.config.section import require_folder_name
from dualflow.errors import ConfigError, DataError
from dualflow.layout import training_key

CHECK = "check"
"""The last step."""


def closed_form_baselines(config: Config) -> list[str]:
    """Names of the baselines that are fitted in closed form, without gradient steps."""
    return [name for name in config.baselines.models if name not in SEEDED]


def step_names(config: Config) -> list[str]:
    """Steps of a finished study, in the order of the workflow."""
    models = [training_key(name, seed) for name, seed in config.trainings]
    return [
        *_preparation(config),
        "qc",
        *(f"train/{model}" for model in models),
        "convert",
        *(f"evaluate/{model}" for model in models),
        "evaluate/ceilings",
        *group_steps(config),
        "report",
        CHECK,
    ]


def scoring_steps(config: Config, names: Sequence[str]) -> list[str]:
    """Steps that train and score the models `names` with their seeds, without conversion and report.

    A simulated study also scores the limits that its law knows.
    """
    models = [training_key(name, seed) for name, seed in config.trainings if name in names]
    return [
        *_preparation(config),
        *(f"train/{model}" for model in models),
        *(f"evaluate/{model}" for model in models),
        *(["evaluate/ceilings"] if config.embedded else []),
    ]


def require_inputs(config: Config, command: str) -> None:
    """Check that the steps that a command depends on are done.

    Raises:
        DataError: a manifest is missing.
    """
    inputs = INPUTS.get(command)
    missing = [step for step in inputs(config) if not config.layout.manifest(step).is_file()] if inputs else []
    if missing:
        steps = f"step {missing[0]} is" if len(missing) == 1 else f"steps {missing[0]} and {len(missing) - 1} more are"
        remedy = "`dualflow run` runs all steps in order"
        if not config.layout.root.is_dir():
            remedy = f"there is no such folder: check study.name and --config, or start with it: {remedy}"
        elif missing == ["impute"]:
            remedy = "run `dualflow impute` first"
        raise DataError(f"{command}: {steps} not done in {config.layout.root}; {remedy}")


def with_manifests(config: Config, options: Sequence[str]) -> list[str]:
    """Options of Snakemake in which a step with a `/` in its name, such as a training, is the file that it makes."""
    steps = {step for step in step_names(config) if "/" in step}
    return [str(config.layout.manifest(option)) if option in steps else option for option in options]


def require_test_people(config: Config) -> None:
    """Check that the configuration names or draws test people, because all scores are theirs.

    Raises:
        ConfigError: there are none.
        DataError: the table of splits cannot be read.
    """
    split, nobody = config.split, ""
    if split.file and not split.folds:
        if not _has_test_people(split.file):
            nobody, remedy = f"column 'split' of {split.file} has no test", "write it beside some subjects"
    elif not (split.test or split.test_subjects or split.folds):
        nobody, remedy = "split.test is 0", "give it a share, such as 0.25"
    if nobody:
        training = config.layout.training_manifest(*config.trainings[0])
        raise ConfigError(
            f"{nobody}, so nobody is left to score the models on; {remedy}, or train only: "
            f"`dualflow run ... -- {training}`"
        )


def _has_test_people(path: Path) -> bool:
    """Whether a table of splits names test people; the index refuses a table without such a column."""
    from dualflow.data.tsv import read_table  # takes a second, and few studies have such a table

    return "test" in set(read_table(path).get("split", ["test"]))


def _cohort(config: Config) -> list[str]:
    return [f"cohort/shard-{shard}" for shard in range(config.preprocess.shards)]


def group_steps(config: Config) -> list[str]:
    """Imputation and analyses, if the configuration has them."""
    return ["impute", *(f"analyse/{name}" for name in config.impute.analyses)] if config.impute else []


def _shards(config: Config) -> list[str]:
    return [f"preprocess/shard-{shard}" for shard in range(config.preprocess.shards)]


def _preparation(config: Config) -> list[str]:
    """Steps up to the preprocessed pairs."""
    cohort = [*_cohort(config), "cohort"] if config.embedded else []
    return [*cohort, "index", *_shards(config), "preprocess"]


MANIFESTS = {
    "cohort-shard": "cohort/shard-{shard}",
    "cohort-finish": "cohort",
    "preprocess": "preprocess/shard-{shard}",
    "preprocess-finish": "preprocess",
    "train": "train/{model}_seed-{seed}",
    "convert-study": "convert",
    "evaluate": "evaluate/{model}_seed-{seed}",
    "evaluate-ceilings": "evaluate/ceilings",
    "analyse": "analyse/{name}",
}
"""Command -> manifests that it writes; the other commands write one of their name."""


def manifests_of(command: str, names: Sequence[str] = ("",), **arguments: Any) -> list[str]:
    """The manifests that a command of the workflow writes with its `arguments`, sorted.

    Raises:
        ConfigError: a name of a model or an analysis cannot be part of a path.
    """
    for name in filter(None, (*names, arguments.get("name"))):
        require_folder_name(command, name)
    template = MANIFESTS.get(command, command)
    return sorted({template.format(model=model, **arguments) for model in names})


INPUTS: dict[str, Callable[[Config], list[str]]] = {
    "cohort-finish": _cohort,
    "index": lambda config: ["cohort"] if config.embedded else [],
    "preprocess-finish": _shards,
    "qc": lambda _: ["preprocess"],
    "impute": lambda _: ["preprocess"],
    "analyse": lambda _: ["impute"],
    "edit": lambda _: ["preprocess"],
    "lr-find": lambda _: ["preprocess"],
    "bench verdict": lambda _: ["preprocess"],
    "bench rates": lambda _: ["preprocess"],
    "bench edit": lambda config: ["preprocess", f"train/{training_key(config.model.preset, config.train.seeds[0])}"],
    "bench imputation": lambda _: ["preprocess"],
    "evaluate-ceilings": lambda _: ["preprocess"],
    "report": lambda config: [step for step in step_names(config) if step not in ("report", CHECK)],
    CHECK: lambda _: ["preprocess"],
}
"""Command -> manifests that it needs. The other commands name a missing input themselves."""
