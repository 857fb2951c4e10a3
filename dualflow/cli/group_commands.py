"""The commands of group studies with missing targets, and of what-if edits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from dualflow.cli.options import CONFIG, OVERRIDES, THREADS
from dualflow.cli.workflow_steps import run_locked
from dualflow.digests import ascii_name, digest_of
from dualflow.process import set_threads

LONGEST_NAME = 100
"""Characters of an analysis's default name."""


@click.command()
@CONFIG
@OVERRIDES
@THREADS
@click.option("--model", "name", default="", metavar="NAME", help="Trained model.  [default: impute.model]")
def impute(config_path: Path, overrides: tuple[str, ...], threads: int, name: str) -> None:
    """Draw the region values of every scan without a target, for group statistics.

    \b
    dualflow impute --config my-study.yaml
                    20 completed tables in results/my-study/imputation/regions.tsv
    dualflow impute --config my-study.yaml --set impute.draws=100
                    more tables, smaller Monte-Carlo errors
    dualflow impute --config my-study.yaml --set 'impute.terms=diagnosis*age+sex'
                    keep an interaction that is to be analysed

    The model, by default the main flow, must be trained: `dualflow run` does that. Measured values are kept as
    they are. Those of scans without a target are drawn jointly over regions, and vary with the noise and with the
    parameters of the regression that links the model's predictions to the measured values (proper multiple
    imputation, Rubin 1987).

    The table has a row per scan, region and draw: subject, session, region, draw, suvr, observed. Analyse it with
    `dualflow analyse`, which pools the draws. Never average the draws and analyse the averages.
    """  # noqa: D301 - \b keeps click from rewrapping a paragraph
    run_locked("impute", "impute.impute", config_path, overrides, threads, name=name)


@click.command()
@CONFIG
@OVERRIDES
@THREADS
@click.option("--formula", default="", metavar="FORMULA", help="Such as 'suvr ~ diagnosis + age + sex'.")
@click.option(
    "--name", default="", help="Name of the analysis and its folder; without a formula, one of the configuration."
)
@click.option(
    "--reference",
    "references",
    multiple=True,
    metavar="COLUMN=LEVEL",
    help="Reference level of a category, such as diagnosis=CN; repeatable.",
)
@click.option("--asymmetries", is_flag=True, help="Also analyse 2 (left - right) / (left + right) of every region.")
@click.option(
    "--ratio", "ratios", multiple=True, metavar="A/B", help="Also analyse the ratio of two regions; repeatable."
)
def analyse(
    config_path: Path,
    overrides: tuple[str, ...],
    threads: int,
    formula: str,
    name: str,
    references: tuple[str, ...],
    asymmetries: bool,
    ratios: tuple[str, ...],
) -> None:
    """Fit a linear model to each region of the imputed tables, and pool the results.

    \b
    dualflow analyse --config my-study.yaml --formula 'suvr ~ diagnosis + age + sex' --reference diagnosis=CN
                    effects of every region with pooled intervals
    dualflow analyse --config my-study.yaml --formula 'suvr ~ age * sex' --asymmetries
                    an interaction, and differences between hemispheres
    dualflow analyse --config my-study.yaml --formula 'suvr ~ diagnosis' --ratio 'AD signature/frontal'
                    a contrast of two regions in each person

    Run `dualflow impute` first. Each completed table gets one model per region (least squares; with repeated sessions
    a mixed model with a random intercept per subject). The effects are means over the tables. Their intervals are those
    of a jackknife that leaves out each subject, in the imputation too; beside them stand those of Rubin's rules, and
    the same model on complete cases and on single imputation.

    Every term must be among those of the imputation. Results go to RESULTS/STUDY/analyses/NAME: a table, a forest plot,
    and a picture of the brain per term; in MLflow they are the run 'analysis NAME'.
    """  # noqa: D301 - \b keeps click from rewrapping a paragraph
    if not (formula or name):
        raise click.UsageError("give --formula, such as --formula 'suvr ~ diagnosis + age', or --name of an analysis")
    run_locked(
        "analyse",
        "analyse.analyse",
        config_path,
        overrides,
        threads,
        formula=formula,
        name=name or analysis_name(formula, asymmetries, ratios, references),
        references=references,
        asymmetries=asymmetries,
        ratios=ratios,
    )


@click.command()
@click.argument("scan")
@CONFIG
@OVERRIDES
@THREADS
@click.option("--column", required=True, help="Side column to change, such as age.")
@click.option("--values", required=True, metavar="A,B,C", help="Its new values, such as 60,70,80 or CN,AD.")
@click.option("--model", "name", default="", metavar="NAME", help="Trained flow.  [default: the main flow]")
def edit(
    scan: str, config_path: Path, overrides: tuple[str, ...], threads: int, column: str, values: str, name: str
) -> None:
    """Show a measured PET under another age, sex or diagnosis.

    \b
    dualflow edit C0006 --column age --values 55,65,75,85
                    a subject of the quickstart at four ages
    dualflow edit sub-07_ses-2 --config my-study.yaml --column diagnosis --values CN,MCI,AD
                    a scan of your own study

    The flow encodes the PET to latents, which hold what MR and side information do not explain, and decodes them under
    the new value: only what the model ascribes to the value changes. Images on the model grid, a table of regions and a
    picture go to RESULTS/STUDY/edits/SCAN/COLUMN.

    What is changed is an association among the training subjects, not a cause. It is no prediction of what would happen
    to a person.
    """  # noqa: D301 - \b keeps click from rewrapping a paragraph
    set_threads(threads)
    from dualflow.commands.edit import edit_scan
    from dualflow.commands.steps import require_inputs
    from dualflow.commands.study_config import load_study_config

    config = load_study_config(config_path, overrides)
    require_inputs(config, "edit")
    edit_scan(config, scan, column, [value.strip() for value in values.split(",") if value.strip()], name)


def analysis_name(
    formula: str, asymmetries: bool = False, ratios: Sequence[str] = (), references: Sequence[str] = ()
) -> str:
    """Default name of an analysis: `suvr ~ age * sex` -> `age-x-sex`; other outcomes and references have others.

    A long name is cut and ends in a digest, because it names a folder.
    """
    terms = formula.rpartition("~")[2].replace("+", " ").replace("*", " x ").replace(":", " by ")
    others = [ratio.replace("/", " ") for ratio in ratios]
    terms = " ".join([terms, *(["asymmetries"] if asymmetries else []), *others, *sorted(references)])
    name = "_".join(ascii_name(part, "-").strip("-") for part in terms.split("_"))
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}-{digest_of(name)[:8]}"


GROUP_COMMANDS = (impute, analyse, edit)
"""In the order of the help."""
