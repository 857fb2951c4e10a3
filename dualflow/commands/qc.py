"""The quality table and the page made of it, once the scans are on the model grid and before models are trained.

They are a step of their own, for a changed threshold of review must not make the trainings run again.
"""

from __future__ import annotations

from dualflow.commit import commit_text, sha256
from dualflow.config import Config, dump_sections
from dualflow.data.index import read_pairs
from dualflow.data.quality_metrics import quality_table
from dualflow.data.quarantine import read_quarantine, usable
from dualflow.data.tsv import read_table, table_text
from dualflow.layout import Scan
from dualflow.manifest import write_manifest
from dualflow.report.qc_page import render_sheet


def qc(config: Config) -> None:
    """Write the quality table and the quality control page of a study."""
    layout, study = config.layout, config.study
    aside = read_quarantine(layout.quarantine)
    scans = list(usable(read_pairs(layout), aside)["scan"])
    commit_text(layout.quality, table_text(quality_table(layout, scans, study, config.review)))
    render_sheet(
        layout.qc,
        f"{study.name}: {' + '.join(study.sources)} to {study.target}, quality control",
        read_table(layout.quality),
        aside,
        lambda scan: layout.figure(Scan.parse(scan), "qc"),
    )
    write_manifest(
        layout.manifest("qc"),
        step="qc",
        outputs={"quality": layout.quality, "page": layout.qc},
        inputs={"quarantine": sha256(layout.quarantine), "preprocess": sha256(layout.manifest("preprocess"))},
        config=dump_sections(config.review),
    )
