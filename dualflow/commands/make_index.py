"""The index of a study: usable scans, splits, and a summary. It imports no imaging library, so it takes seconds."""

from __future__ import annotations

from dualflow.commit import commit_text
from dualflow.config import Config, public_values
from dualflow.data.fingerprint import study_fingerprint
from dualflow.data.index import build_index
from dualflow.data.study_summary import study_summary
from dualflow.manifest import write_manifest


def make_index(config: Config) -> None:
    """List the usable scans, draw the splits, and write a summary."""
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
