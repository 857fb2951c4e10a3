"""Whether a study's table of draws, and the analyses of it, were made as the configuration says."""

from __future__ import annotations

from typing import Any

from dualflow.config import Config, ImputeConfig, dump_sections
from dualflow.digests import sha256
from dualflow.imputation.formula import Formula, references_of
from dualflow.manifest import read_manifest
from dualflow.models.model_files import WEIGHTS

STEP = "impute"


def imputation_options(options: ImputeConfig) -> dict[str, Any]:
    """The options that a table of draws depends on; a table of meta-regions counts by its content."""
    regions = None if options.meta_regions is None else sha256(options.meta_regions)
    return {**dump_sections(options, without=("analyses", "meta_regions"))[STEP], "meta_regions": regions}


def imputing_weights(config: Config, name: str) -> str:
    """Path of the weights of the model that imputes, relative to the study's results."""
    return str((config.layout.model(name, config.train.seeds[0]) / WEIGHTS).relative_to(config.layout.root))


def is_other_imputation(config: Config) -> bool:
    """Whether the study's table was drawn by another model or with other options than the configuration's.

    `dualflow impute --set impute.draws=100` makes one. Snakemake does not notice, and the analyses of the report would
    be those of that table.
    """
    manifest = read_manifest(config.layout.manifest(STEP), verify=False)
    if manifest is None or config.impute is None:
        return False
    if manifest["facts"].get("weights") != imputing_weights(config, config.imputing_model):
        return True
    made = manifest["config"][STEP]  # that of an earlier build may lack an option, which is then unknown
    return any(key in made and made[key] != value for key, value in imputation_options(config.impute).items())


def other_analyses(config: Config) -> list[str]:
    """Names of the configuration's analyses that were made with another formula or other reference levels.

    `dualflow analyse --name main --set 'impute.analyses.main=suvr ~ age'` makes one, as `is_other_imputation` says.
    """
    options, others = config.impute or ImputeConfig(), list[str]()
    for name, text in options.analyses.items():
        manifest = read_manifest(config.layout.manifest(f"analyse/{name}"), verify=False)
        if manifest is not None and manifest["config"] != analysis_options(
            Formula.parse(text, references_of(text, options.references))
        ):
            others.append(name)
    return others


def analysis_options(formula: Formula) -> dict[str, Any]:
    """The options that an analysis in the configuration depends on, as its manifest has them."""
    return {"formula": formula.text, "references": dict(formula.references)}
