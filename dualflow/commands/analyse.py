"""`dualflow analyse`: one linear model per region on the completed tables of a study, pooled over the draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd

from dualflow.commands.imputation_plan import analysis_options
from dualflow.commands.imputation_terms import analysis_formula, require_congenial
from dualflow.commit import commit_text
from dualflow.config import Config, ImputeConfig
from dualflow.config.section import require_folder_name
from dualflow.data.index import read_pairs
from dualflow.data.markdown import Column
from dualflow.data.markdown import table as markdown
from dualflow.data.tsv import table_text
from dualflow.digests import ascii_name, digest_of, sha256
from dualflow.errors import ConfigError, DataError
from dualflow.evaluation.statistics import SIGNIFICANT
from dualflow.imaging.model_grid import model_grid
from dualflow.imaging.regions import region_map
from dualflow.imputation.formula import Formula, references_of
from dualflow.imputation.group_models import ANALYSIS_TABLE, LEAST_CARRIERS, MULTIPLE, RUBIN, analyse_regions
from dualflow.imputation.imputed_table import ImputedTable
from dualflow.imputation.outcomes import add_outcomes
from dualflow.imputation.replicates import Replicates
from dualflow.layout import Layout
from dualflow.manifest import read_manifest, write_manifest
from dualflow.modalities import modality
from dualflow.report.group_figures import forest, write_brain_map
from dualflow.report.style import write_figure
from dualflow.tracking.tracked_run import tracked

FOREST = "forest.png"
SHOWN = 10
"""Outcomes of a term in the text."""
COLUMNS = (
    Column("effect (95 % interval)", ["estimate"], 3, interval=True, significant=True),
    Column("p", ["p"], 4, probability=True),
    Column("p, Holm", ["p_holm"], 4, probability=True),
    Column("FDR", ["q_fdr"], 4, probability=True),
    Column("missing information", ["fmi"], 2),
    Column("gain over complete cases, %", ["gain"], 0, scale=100),
)


def analyse(
    config: Config,
    *,
    name: str,
    formula: str = "",
    references: Sequence[str] = (),
    asymmetries: bool = False,
    ratios: Sequence[str] = (),
) -> None:
    """Analyse the imputed regions of a study; write the table and figures, and track them.

    Args:
        config: of the study.
        name: of the analysis.
        formula: such as `suvr ~ diagnosis + age`; empty takes the one of that name in the configuration.
        references: `COLUMN=LEVEL`, in addition to those of the configuration.
        asymmetries: whether to add asymmetries.
        ratios: further outcomes `A/B`.

    Raises:
        ConfigError: the formula cannot be used, or its terms are not among those of the imputation.
        DataError: the imputed table is missing or of an earlier index or model, or a coefficient cannot be estimated.
    """
    options, layout = config.impute or ImputeConfig(), config.layout
    _require_name(options, name, configured=not (formula or references or asymmetries or ratios))
    text = formula or _formula_of(options, name)
    parsed = analysis_formula(text, _references(options, text, references))
    imputed = ImputedTable.read(layout.imputed_regions)
    _require_current(layout)
    people = read_pairs(layout).set_index("scan").reindex(list(imputed.scans)).reset_index()
    design = parsed.design(people)
    complete = design.notna().all(axis=1).to_numpy()
    if not imputed.observed.all():
        require_congenial(parsed, design, Formula(imputed.facts["Terms"], imputed.facts["References"]), people)
    derive = partial(add_outcomes, regions=imputed.regions, asymmetries=asymmetries, ratios=ratios)
    values, outcomes = derive(imputed.values)
    replicates = Replicates.read(layout.imputation_replicates, ~imputed.observed, sha256(layout.imputed_regions))
    if replicates is None and imputed.facts.get("Replicates"):
        raise DataError(f"{layout.imputation_replicates}: missing; run `dualflow impute` again")
    if replicates is not None:
        replicates = replicates.outcomes(imputed.values, lambda tables: derive(tables)[0]).chosen(complete)
    subjects = [one for one, is_known in zip(imputed.subjects, complete, strict=True) if is_known]
    table = analyse_regions(
        values[:, complete],
        imputed.observed[complete],
        design[complete].reset_index(drop=True),
        subjects,
        outcomes,
        replicates,
        derived=len(outcomes) - len(imputed.regions),
    )
    # A repetition after a failure continues its run; another formula, other outcomes or another table start a new one.
    inputs = [analysis_options(parsed), asymmetries, list(ratios), sha256(layout.imputed_regions), sha256(layout.pairs)]
    tags = {"model": "all", "analysis": name, "inputs": digest_of(inputs)[:16]}
    left_out, unitless = int((~complete).sum()), bool(asymmetries or ratios)
    levels = parsed.reference_levels(people)
    _write(config, name, parsed, levels, table, left_out, imputed.facts, tags, unitless=unitless)


def _require_name(options: ImputeConfig, name: str, *, configured: bool) -> None:
    """Check that a name is one of a folder, and that only the workflow's own analyses have the name of one."""
    require_folder_name("analyse --name", name)
    if name in options.analyses and not configured:
        raise ConfigError(f"analysis '{name}' is one of the configuration, which the report shows; give another --name")


def _formula_of(options: ImputeConfig, name: str) -> str:
    if name in options.analyses:
        return options.analyses[name]
    names = ", ".join(options.analyses) or "none"
    raise ConfigError(f"no analysis '{name}' in impute.analyses ({names}); give --formula 'suvr ~ diagnosis + age'")


def _references(options: ImputeConfig, text: str, given: Sequence[str]) -> dict[str, str]:
    """Reference levels of the configuration whose columns the formula names, replaced by the given ones."""
    pairs = dict(one.partition("=")[::2] for one in given)
    if bad := [one for one in given if "=" not in one]:
        raise ConfigError(f"reference '{bad[0]}' is not of the form COLUMN=LEVEL, such as diagnosis=CN")
    return references_of(text, options.references) | pairs


def _require_current(layout: Layout) -> None:
    """Check that the values are as drawn, from the present index and weights; a removed model cannot have changed.

    Raises:
        DataError: one has changed, so that draws of one table would meet the side information or the scans of another.
    """
    manifest = read_manifest(layout.manifest("impute"), verify=False)
    if manifest is None:
        raise DataError(f"{layout.imputed_regions}: its imputation was not finished; run `dualflow impute` again")
    weights = layout.root / manifest["facts"].get("weights", "")  # imputations of earlier builds do not name them
    files = {"pairs": layout.pairs, "model": weights, "regions": layout.imputed_regions}
    recorded = manifest["inputs"] | {"regions": manifest["outputs"]["regions"]["sha256"]}
    if changed := [str(path) for name, path in files.items() if path.is_file() and sha256(path) != recorded[name]]:
        raise DataError(
            f"{layout.imputed_regions}: {' and '.join(changed)} changed since its values were drawn; "
            "run `dualflow impute` again"
        )


def _write(
    config: Config,
    name: str,
    formula: Formula,
    references: Mapping[str, str],
    table: pd.DataFrame,
    left_out: int,
    facts: Mapping[str, Any],
    tags: Mapping[str, str],
    *,
    unitless: bool,
) -> None:
    layout, unit = config.layout, modality(config.study.target).unit
    folder, regions = layout.analysis(name), region_map(config.preprocess)
    terms = list(dict.fromkeys(table["term"]))
    figure = forest(table, regions.names, f"{unit}; ratios have none" if unitless else unit)
    files = {"table": folder / ANALYSIS_TABLE, "forest": folder / FOREST}
    commit_text(files["table"], table_text(table, significant=6))
    write_figure(files["forest"], figure)
    for term in terms:
        files[f"brain {term}"] = path = folder / f"brain_{ascii_name(term.replace(':', ' by '), '-')}.png"
        write_brain_map(path, table, term, regions, model_grid(config.preprocess)[0], unit)
    for earlier in set(folder.glob("brain_*.png")) - set(files.values()):
        earlier.unlink()
    text = analysis_text(formula, references, table, left_out, facts)
    files["text"] = folder / "analysis.md"
    commit_text(files["text"], text + "\n")
    print(text)
    with tracked(config.tracking, config.study.name, f"analysis {name}", tags, layout.pending_records) as run:
        run.parameters({"formula": f"suvr ~ {formula.text}", "references": str(references)})
        for term in terms:
            rows = table[(table["term"] == term) & (table["method"] == MULTIPLE)]
            run.metrics({f"{_metric(term)}/outcomes_fdr_below_0.05_count": float((rows["q_fdr"] < SIGNIFICANT).sum())})
            if rows["gain"].notna().any():
                run.metrics({f"{_metric(term)}/gain_over_complete_cases": float(rows["gain"].median())})
        run.table(table, f"{name}.json")
        run.text(text, f"{name}.md")
        for path in files.values():
            run.file(path, "analysis")
        run.finish()
        write_manifest(
            layout.manifest(f"analyse/{name}"),
            step="analyse",
            outputs=files,
            inputs={"regions": sha256(layout.imputed_regions)},
            config=analysis_options(formula),
        )
    print(f"\ntable     {files['table']}\nfigures   {folder}")


def _intervals(table: pd.DataFrame) -> str:
    """How the intervals of the drawn tables were made."""
    if (table["method"] == RUBIN).any():
        return "Intervals are those of a jackknife over subjects; `regions.tsv` also has those of Rubin's rules."
    return "Intervals are those of Rubin's rules: a term could not be estimated without one of the subjects."


def _carriers(rows: pd.DataFrame) -> str:
    """A warning if few subjects carry the term of these rows."""
    number = float(rows["carriers"].iloc[0])
    if not number < LEAST_CARRIERS:
        return ""
    return (
        f"Few subjects carry this effect (in effect {number:.1f}), of whom a jackknife tells little: its intervals are "
        "at least as wide as those of Rubin's rules. "
    )


def _metric(term: str) -> str:
    """A term as a name that MLflow accepts."""
    return "".join(char if char.isalnum() or char in "_-./ " else "_" for char in term)


def analysis_text(
    formula: Formula, references: Mapping[str, str], table: pd.DataFrame, left_out: int, facts: Mapping[str, Any]
) -> str:
    """The result as Markdown: per term, the regions with the smallest p-values."""
    multiple = table[table["method"] == MULTIPLE].rename(columns={"low": "estimate_low", "high": "estimate_high"})
    if multiple.empty:
        raise DataError(f"suvr ~ {formula.text}: no region can be analysed; use fewer terms")
    scans, measured = int(multiple["scans"].max()), int(multiple["measured"].max())
    parts = [f"# suvr ~ {formula.text}", f"{scans} scans, {measured} of them with a measured target."]
    if references:
        levels = ", ".join(f"{name} {level}" for name, level in references.items())
        parts.append(f"Reference levels, which the others are compared with: {levels}.")
    if measured < scans:
        parts.append(f"The others were drawn {facts['Draws']} times by {facts['Model']}.")
        parts.append(_intervals(table))
    outcomes = multiple.drop_duplicates("region")
    if fewer := int((outcomes["scans"] < scans).sum()):
        parts.append(
            f"{fewer} of {len(outcomes)} outcomes are of fewer scans, because a region is out of view in the others; "
            f"the columns scans and measured of {ANALYSIS_TABLE} have the numbers."
        )
    if left_out:
        parts.append(f"Scans left out because one of these columns is unknown: {left_out}.")
    for term, rows in multiple.groupby("term", sort=False):
        shown = rows.nsmallest(SHOWN, "p")
        count = int((rows["q_fdr"] < SIGNIFICANT).sum())
        chosen = f" The {SHOWN} with the smallest p are:" if len(rows) > SHOWN else ""
        parts.append(
            f"## {term}\n\n{_carriers(rows)}{count} of {len(rows)} outcomes have a false discovery rate below 5 %."
            f"{chosen}"
        )
        parts.append(markdown(shown, COLUMNS, label="region", heading="region"))
    return "\n\n".join(parts)
