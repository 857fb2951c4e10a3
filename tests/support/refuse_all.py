"""Read the whole corpus of broken files under a memory limit: `python tests/support/refuse_all.py OUT`.

Prints each error and the peak memory as JSON. The limit holds for the process, so this is a script.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from pathlib import Path

from bad_files import DEFECTS, SIDECARS, write_corpus

from dualflow.imaging.sidecar import read_sidecar
from dualflow.imaging.volume import read_volume

LIMIT = 512 << 20


def refuse(name, path, read):
    """Read a file; return its defect, path, error type, error message, and the CPU seconds it took."""
    error, start = None, time.process_time()
    try:
        read(path)
    except Exception as caught:
        error = caught
    seconds = time.process_time() - start
    return {"name": name, "path": str(path), "error": type(error).__name__, "reason": str(error), "seconds": seconds}


def main(out):
    """Read all files, with `LIMIT` bytes of address space beyond the use of the imported libraries."""
    corpus = list(write_corpus(out, [*DEFECTS, *SIDECARS]))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, resource.RLIM_INFINITY))
    refusals = [
        refuse(defect.name, path, read_sidecar if defect in SIDECARS else read_volume) for defect, path in corpus
    ]
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(json.dumps({"refusals": refusals, "peak_mib": int(peak[1]) / 1024}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
