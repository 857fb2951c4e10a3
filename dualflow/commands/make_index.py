"""The index of a study: usable scans, splits, and a summary. It imports no imaging library, so it takes seconds."""

from __future__ import annotations

from dualflow.commit import commit_text
from dualflow.config import Config, public_values
from dualflow.data.fingerprint import study_fingerprint
from dualflow.data.index import build_index
from dualflow.data.study_summary import study_summary
from dualflow.imputation.formula import Formula
from dualflow.manifest import write_manifest


def make_index(config: Config) -> None:
    """List the usable scans, draw the splits, and write a summary."""
    if config.impute is not None:  # a formula that cannot be used ends the run here, before any training
        for formula in filter(None, [config.impute.terms, *config.impute.analyses.values()]):
            Formula.parse(formula)
    layout, digest = config.layout, study_fingerprint(config)
    index = build_index(config.bids, config.study, config.split, layout.digests, layout.index_quarantine, layout.root)
    index.write(layout)
    text = study_summary(index, config.study, config.split)
    commit_text(layout.study_summary, text)
    print(text)
    write_manifest(
        layout.manifest("index"),
        step="index",
        outputs={
            "pairs": layout.pairs,
            "splits": layout.splits,
            "quarantine": layout.index_quarantine,
            "study_summary": layout.study_summary,
        },
        inputs={"files": digest},
        config={name: values for name, values in public_values(config).items() if name in ("study", "split")},
        facts={"scans": len(index.pairs), "quarantined": len(index.quarantined)},
    )
