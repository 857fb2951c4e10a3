"""The commands of group studies with missing targets."""

from __future__ import annotations

import re
from pathlib import Path

import click

from dualflow.cli.options import CONFIG, OVERRIDES, THREADS
from dualflow.cli.workflow_steps import run_locked


@click.command()
@CONFIG
@OVERRIDES
@THREADS
@click.option("--model", "name", default="", metavar="NAME", help="Trained model.  [default: the main flow]")
def impute(config_path: Path, overrides: tuple[str, ...], threads: int, name: str) -> None:
    """Draw the region values of every scan without a target, for group statistics.

    \b
    dualflow impute --config my-study.yaml
                    20 completed tables in results/my-study/imputation/regions.tsv
    dualflow impute --config my-study.yaml --set impute.draws=100
                    more tables, smaller Monte-Carlo errors
    dualflow impute --config my-study.yaml --set 'impute.terms=diagnosis*age+sex'
                    keep an interaction that is to be analysed

    The study's main flow must be trained: `dualflow run` does that. Measured values are kept as they are. Those of
    scans without a target are drawn jointly over regions, and vary with the noise and with the parameters of the
    regression that links the model's predictions to the measured values (proper multiple imputation, Rubin 1987).

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
    a mixed model with a random intercept per subject). Rubin's rules pool them, with the degrees of freedom of Barnard
    and Rubin (1999). Beside it stand the same model on complete cases and on single imputation.

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
        name=name or analysis_name(formula),
        references=references,
        asymmetries=asymmetries,
        ratios=ratios,
    )


def analysis_name(formula: str) -> str:
    """Default name of an analysis: `suvr ~ age * sex` -> `age-x-sex`."""
    terms = formula.rpartition("~")[2].replace("*", " x ").replace(":", " by ")
    return re.sub(r"[^A-Za-z0-9_]+", "-", terms).strip("-")


GROUP_COMMANDS = (impute, analyse)
"""In the order of the help."""
