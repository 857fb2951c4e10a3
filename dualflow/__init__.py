"""dualflow: PET from MR with an exact-likelihood hierarchical 3D flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["__version__", "convert"]
__version__ = "0.2.0"


def convert(
    inputs: str | Path | Sequence[str | Path],
    *,
    model: str | Path,
    out: str | Path,
    participants: str | Sequence[str] = (),
    sessions: str | Sequence[str] = (),
    side: Mapping[str, object] | None = None,
    samples: int = 32,
    keep_samples: int = 2,
    temperature: float = 1.0,
    seed: int = 0,
    quantiles: bool = False,
    force: bool = False,
    workers: int | None = None,
    cluster: str = "local",
    device: str = "auto",
    **values: object,
) -> pd.DataFrame:
    """Synthesise the target of scans with a trained model, as `dualflow convert` does.

    `dualflow.convert("t1.nii.gz", model="MODEL", out="out", age=71, sex="F")` converts one image. Libraries are
    imported in this call, so that `import dualflow` takes no time.

    Args:
        inputs: an image, a pattern, a BIDS dataset, a table of samples or a DICOM folder; or several images or folders.
        model: folder or bundle of the trained model, or models:/NAME@ALIAS of the MLflow registry.
        out: folder of the BIDS derivative dataset to write.
        participants: subjects of a dataset to convert; all by default.
        sessions: sessions of a dataset to convert; all by default.
        side: side information of images, for columns whose names are arguments of this function.
        samples: samples drawn per scan.
        keep_samples: samples written per scan.
        temperature: scale of the noise.
        seed: seed of the samples.
        quantiles: also write maps of the 5, 50 and 95 percentiles.
        force: convert refused scans too.
        workers: processes on this machine, one core each; by default as many as cores and memory allow.
        cluster: `local`, the address of a Dask scheduler, or `slurm:PROFILE.yaml`.
        device: `auto`, `cpu` or `cuda`.
        values: side information of images by column, such as `age=71`.

    Returns:
        The rows of these scans in conversion.tsv, the worst first: `scan`, such as `sub-t1`, `verdict`, `converted`,
        `reason`, `seconds`, and the figures behind the verdict.

    Raises:
        DualflowError: an argument or input cannot be used, or there is no usable scan.
    """
    from dualflow.commands.convert import convert as convert_scans
    from dualflow.config import ConvertConfig, TrackingConfig, checked
    from dualflow.inference.batch import Compute
    from dualflow.inference.model_location import locate_model
    from dualflow.inference.selection import Selection
    from dualflow.process import without_main_script

    sampling = {"samples": samples, "keep_samples": keep_samples, "temperature": temperature, "seed": seed}
    people, visits = ([label] if isinstance(label, str) else label for label in (participants, sessions))
    with without_main_script():
        return convert_scans(
            [inputs] if isinstance(inputs, str | Path) else inputs,
            locate_model(str(model), TrackingConfig().uri),
            Path(out).expanduser(),
            checked(ConvertConfig, sampling | {"quantiles": quantiles}, "convert"),
            Selection(people, visits, {**(side or {}), **values}),
            Compute(workers, cluster, device),
            force=force,
        )
