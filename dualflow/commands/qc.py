"""Quality control: the table of quality metrics and its page.

It is a separate step, so that a changed threshold or a damaged page does not rerun the trainings.
"""

from __future__ import annotations

from dualflow.commit import commit_text
from dualflow.config import Config, dump_sections
from dualflow.data.derivative_dataset import describe_derivatives
from dualflow.data.exclusions import read_decisions
from dualflow.data.index import read_pairs, side_columns
from dualflow.data.quality_metrics import quality_table
from dualflow.data.quarantine import read_quarantine, usable
from dualflow.data.tsv import read_table, table_text
from dualflow.digests import sha256
from dualflow.layout import Scan
from dualflow.manifest import write_manifest
from dualflow.report.qc_page import render_sheet


def qc(config: Config) -> None:
    """Write the quality table and page of a study, and the description of its derivative dataset."""
    layout, study = config.layout, config.study
    excluded = read_quarantine(layout.quarantine)
    pairs = usable(read_pairs(layout), excluded)
    scans = list(pairs["scan"])
    commit_text(layout.quality, table_text(quality_table(layout, scans, study, config.review)))
    render_sheet(
        layout.qc,
        f"{study.name}: {' + '.join(study.sources)} to {study.target}, quality control",
        read_table(layout.quality),
        excluded,
        lambda scan: layout.figure(Scan.parse(scan), "qc"),
        people=pairs[["scan", "split", *side_columns(pairs)]],
        decisions=read_decisions(study.exclusions),
    )
    description = describe_derivatives(layout, study.name, study)
    write_manifest(
        layout.manifest("qc"),
        step="qc",
        outputs={"quality": layout.quality, "page": layout.qc} | description,
        inputs={"quarantine": sha256(layout.quarantine), "preprocess": sha256(layout.manifest("preprocess"))},
        config=dump_sections(config.review),
    )
