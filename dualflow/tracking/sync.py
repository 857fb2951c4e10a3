"""Upload of the records that trainings queued while the MLflow server was unreachable."""

from __future__ import annotations

import sys
from pathlib import Path

from dualflow.config import TrackingConfig
from dualflow.layout import Layout
from dualflow.tracking.mlflow_store import RunKey
from dualflow.tracking.queue import CONTINUES, GROUP, RecordQueue, unsent_records
from dualflow.tracking.tracked_run import Run


def sync(config: TrackingConfig, pending: Path) -> tuple[int, int]:
    """Send the queued records of all runs, until a run cannot be sent completely.

    Args:
        config: URI and artifact folder of the MLflow store.
        pending: folder of the queues.

    Returns:
        The number of runs sent completely, and of runs with records left.
    """
    complete = incomplete = unreadable = 0
    for folder in sorted(path for path in pending.glob("*") if path.is_dir()):
        queue = RecordQueue.load(folder)
        if queue is None:
            unreadable += unsent_records(folder) > 0
            continue
        if not len(queue):
            continue
        if not incomplete:
            continues = bool(queue.run.get(CONTINUES))
            key = RunKey(queue.run["experiment"], queue.run["name"], queue.run["tags"], continues)
            group = str(queue.run.get(GROUP, config.group))
            Run(config.model_copy(update={"group": group}), key, queue).flush()
        if len(queue):
            incomplete += 1
        else:
            complete += 1
    return complete, incomplete + unreadable


def sync_all(config: TrackingConfig, layout: Layout) -> tuple[int, int]:
    """Send the queued records of a study and of the folds of its comparisons; return the sums of `sync`."""
    results = [sync(config, folder) for folder in (layout.pending_records, *layout.fold_pending_records())]
    return sum(complete for complete, _ in results), sum(incomplete for _, incomplete in results)


def warn_unsent(pending: Path) -> None:
    """Print a warning if records are still queued below `pending`: how many, and the command that uploads them."""
    if count := sum(unsent_records(folder) for folder in pending.glob("*")):
        print(
            f"warning: MLflow: {count} tracking records are not uploaded, they are queued in {pending}; "
            "`dualflow sync` with the same --config uploads them",
            file=sys.stderr,
        )
