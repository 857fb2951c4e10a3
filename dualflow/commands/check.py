"""The last step of the workflow: it verifies all outputs, and fails if one was changed or scans need attention.

Scans need it that were excluded or could not be converted. The step also fails if the draws of missing targets, or the
analyses of them, are not those of the configuration.
"""

from __future__ import annotations

from collections.abc import Iterator

from dualflow.commands.imputation_plan import is_other_imputation, other_analyses
from dualflow.commands.steps import CHECK, step_names
from dualflow.config import Config
from dualflow.data.exclusions import STEP as REVIEW
from dualflow.data.quarantine import count_excluded, read_quarantine
from dualflow.data.tsv import read_table, summarise_names
from dualflow.errors import DataError
from dualflow.inference.conversion_table import FAILED
from dualflow.layout import Layout
from dualflow.manifest import verify_manifests, write_manifest


def check(config: Config) -> None:
    """Write the final manifest, which lists those of all other steps.

    Raises:
        DataError: an output has changed since it was written, the imputation or an analysis is that of other options,
            or scans were excluded or could not be converted; everything else is finished.
    """
    layout = config.layout
    manifests = {step: layout.manifest(step) for step in step_names(config) if step != CHECK}
    # Other manifests may belong to an earlier configuration.
    if broken := [step for step in verify_manifests(layout.root / "manifests") if step in manifests]:
        raise DataError(
            f"{layout.root}: outputs of {summarise_names(broken)} were changed after they were written; "
            "the same command makes them again"
        )
    if is_other_imputation(config):
        raise DataError(
            f"{layout.imputed_regions}: was drawn by another model or with other options than those of the "
            "configuration, and the report's analyses with it; run `dualflow impute` with this configuration, then the "
            "same command again"
        )
    if others := other_analyses(config):
        raise DataError(
            f"{layout.analysis(others[0])}: was made with another formula or other reference levels than those of the "
            f"configuration, under which the report shows it; run `dualflow analyse --name {others[0]}` with this "
            "configuration, then the same command again"
        )
    if reasons := [*_excluded(layout), *_unconverted(layout)]:
        raise DataError(f"finished, but {'; '.join(reasons)}")
    write_manifest(layout.manifest(CHECK), step=CHECK, outputs=manifests, inputs={}, config={})


def _excluded(layout: Layout) -> Iterator[str]:
    """How many scans were excluded, without those of a reviewer, which need no attention."""
    rows = [row for row in read_quarantine(layout.quarantine) if row.step != REVIEW]
    if rows:
        first = rows[0]
        yield f"{count_excluded(rows)}: {layout.quarantine} has the reasons, the first is {first.scan}: {first.reason}"


def _unconverted(layout: Layout) -> Iterator[str]:
    """How many scans could not be converted; a study whose conversion was not asked for has no table."""
    if not layout.conversions.is_file():
        return
    table = read_table(layout.conversions)
    failed = table[table["verdict"] == FAILED]
    if len(failed):
        scan, reason = failed[["scan", "reason"]].iloc[0]
        yield (
            f"{len(failed)} scan{'' if len(failed) == 1 else 's'} could not be converted: {layout.conversions} has the "
            f"reasons, the first is {scan}: {reason}; the same command tries again"
        )
