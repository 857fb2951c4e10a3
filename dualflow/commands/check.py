"""The last step of the workflow: it fails if a scan was excluded, after everything else is done."""

from __future__ import annotations

from dualflow.config import Config
from dualflow.data.quarantine import count_excluded, read_quarantine
from dualflow.errors import DataError
from dualflow.manifest import write_manifest


def check(config: Config) -> None:
    """Write the final manifest if no scan was excluded.

    Raises:
        DataError: scans were excluded; everything else is finished.
    """
    rows = read_quarantine(config.layout.quarantine)
    if rows:
        first = rows[0]
        raise DataError(
            f"finished, but {count_excluded(rows)}: {config.layout.quarantine} has the reasons, the first is "
            f"{first.scan}: {first.reason}"
        )
    write_manifest(config.layout.manifest("check"), step="check", outputs={}, inputs={}, config={})
