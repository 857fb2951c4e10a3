"""The last step: a study with scans set aside does not end as if nothing had happened."""

from __future__ import annotations

from dualflow.config import Config
from dualflow.data.quarantine import read_quarantine
from dualflow.errors import DataError
from dualflow.manifest import write_manifest


def check(config: Config) -> None:
    """Write the final manifest if no scan was set aside.

    Raises:
        DataError: there are quarantined scans; everything else is finished.
    """
    rows = read_quarantine(config.layout.quarantine)
    if rows:
        first = rows[0]
        raise DataError(
            f"finished, but {len(rows)} of the scans were set aside: {config.layout.quarantine} has the reasons, "
            f"the first is {first.scan}: {first.reason}"
        )
    write_manifest(config.layout.manifest("check"), step="check", outputs={}, inputs={}, config={})
