"""Tasks in Dask worker processes, on this machine or on a cluster: a crashed worker fails its task, not the job.

Native code may end its process: a reader aborts on a damaged file, or the system kills a process that takes too much
memory. Such work therefore runs in worker processes, even if there is only one.
"""

from dualflow.workers.cluster_choice import check_cluster
from dualflow.workers.local_cluster import MEMORY_GIB, default_workers
from dualflow.workers.tasks import run_in_workers
from dualflow.workers.time_limit import call_within
from dualflow.workers.worker_pool import CrashedTask

__all__ = ["MEMORY_GIB", "CrashedTask", "call_within", "check_cluster", "default_workers", "run_in_workers"]
