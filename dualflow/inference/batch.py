"""Many raw scans to synthetic volumes: each independent, several at once by Dask, done ones skipped."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pandas as pd

from dualflow.commit import sweep_temporaries
from dualflow.config import ConvertConfig, PreprocessConfig, StudyConfig
from dualflow.data.dataset import load_pairs
from dualflow.data.index import pair_scans
from dualflow.data.participants import known_columns
from dualflow.data.prepare import describe_derivatives, prepare_scan
from dualflow.data.quarantine import Quarantine, write_quarantine
from dualflow.errors import CommitError, DataError, DualflowError
from dualflow.inference.convert import STEP, convert_once
from dualflow.inference.predict import Predictor, load_predictor
from dualflow.layout import Layout, Scan
from dualflow.modalities import modality
from dualflow.progress import track

WORKER_MEMORY = "4GiB"


def convert_study(bids: Path, model: Path, out: Path, config: ConvertConfig, workers: int = 1) -> None:
    """Convert every scan of a BIDS dataset that has the model's source modality.

    Args:
        bids: the dataset, raw.
        model: folder of a trained model; its card says how scans are preprocessed.
        out: becomes a BIDS derivative dataset.
        config: how samples are drawn.
        workers: processes, one core each.

    Raises:
        DataError: the dataset cannot be read; or, after everything else is done, some scans were set aside.
    """
    card = load_predictor(model).card
    columns = known_columns(bids)
    side = tuple(name for name in card["study"]["side"] if name in columns)
    study = StudyConfig(name="convert", source=card["study"]["source"], target=card["study"]["target"], side=side)
    layout = Layout(out, ".")
    sweep_temporaries(out)
    index = pair_scans(bids, study)
    describe_derivatives(layout, bids.resolve().name)
    rows = [row for _, row in index.pairs.iterrows()]
    tasks = [(row.to_frame().T, bids, model, layout, study, config) for row in rows]
    outcomes = list(track(_outcomes(tasks, workers), f"convert {bids.name}", len(tasks)))
    set_aside = sorted([*index.quarantined, *(outcome for outcome in outcomes if outcome is not None)])
    write_quarantine(layout.quarantine, set_aside)
    if set_aside:
        raise DataError(
            f"{len(set_aside)} scans were set aside, the others are done; {layout.quarantine} has the reasons, the "
            f"first is {set_aside[0].scan}: {set_aside[0].reason}"
        )


Task = tuple[pd.DataFrame, Path, Path, Layout, StudyConfig, ConvertConfig]


def _outcomes(tasks: list[Task], workers: int) -> Iterator[Quarantine | None]:
    """Do the tasks, here or in worker processes, in the order in which they end."""
    if workers == 1 or len(tasks) < 2:
        for task in tasks:
            yield _convert(*task)
        return
    from distributed import Client, LocalCluster, as_completed

    with (
        LocalCluster(
            n_workers=min(workers, len(tasks)),
            threads_per_worker=1,
            memory_limit=WORKER_MEMORY,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # any free port, so that two conversions can run at once
        ) as cluster,
        Client(cluster) as client,
    ):
        futures = {client.submit(_convert, *task, pure=False): task for task in tasks}
        for future in as_completed(futures):
            # A worker that dies again and again on the same scan costs that scan, not the batch.
            scan = str(futures[future][0]["scan"].iloc[0])
            error = future.exception()
            if isinstance(error, CommitError):
                raise error
            yield future.result() if error is None else Quarantine(scan, STEP, f"{type(error).__name__}: {error}")


@cache
def _predictor(model: Path) -> Predictor:
    import torch

    torch.set_num_threads(1)
    return load_predictor(model)


def _convert(
    row: pd.DataFrame, bids: Path, model: Path, layout: Layout, study: StudyConfig, config: ConvertConfig
) -> Quarantine | None:
    """Preprocess and convert one scan unless that is done; return why it was set aside, or None."""
    predictor = _predictor(model)
    scan, source_row, target_row = Scan.parse(row["scan"].iloc[0]), modality(study.source), modality(study.target)
    preprocess = PreprocessConfig.model_validate(predictor.card["preprocess"])
    refused = prepare_scan(layout, scan, bids / row["source"].iloc[0], None, study, preprocess)
    if refused is not None:
        return refused
    try:
        item = load_pairs(layout, row.assign(target=""), study, predictor.side).items[0]
        convert_once(predictor, item, layout, source_row, target_row, config)
    except CommitError:  # a full disk is no fault of the scan
        raise
    except Exception as error:  # one bad scan must not take the others down, whatever is wrong with it
        reason = str(error) if isinstance(error, DualflowError) else f"{type(error).__name__}: {error}"
        return Quarantine(scan.key, STEP, reason)
    return None
