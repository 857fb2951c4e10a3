"""dualflow: PET from MR with an exact-likelihood hierarchical 3D flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["__version__", "convert"]
__version__ = "0.1.0"


def convert(
    inputs: str | Path | Sequence[str | Path],
    *,
    model: str | Path,
    out: str | Path,
    participants: str | Sequence[str] = (),
    sessions: str | Sequence[str] = (),
    side: Mapping[str, object] | None = None,
    samples: int = 16,
    keep_samples: int = 2,
    temperature: float = 1.0,
    seed: int = 0,
    workers: int = 1,
    device: str = "auto",
    **values: object,
) -> list[str]:
    """Synthesise the target of scans with a trained model, as `dualflow convert` does.

    `dualflow.convert("t1.nii.gz", model="MODEL", out="out", age=71, sex="F")` converts one image. Libraries are
    imported in this call, so that `import dualflow` takes no time.

    Args:
        inputs: an image, a pattern, a BIDS dataset, a table of samples or a DICOM folder; or several images or folders.
        model: folder of the trained model.
        out: folder of the BIDS derivative dataset to write.
        participants: subjects of a dataset to convert; all by default.
        sessions: sessions of a dataset to convert; all by default.
        side: side information of images, for columns whose names are arguments of this function.
        samples: samples drawn per scan.
        keep_samples: samples written per scan.
        temperature: scale of the noise.
        seed: seed of the samples.
        workers: processes, one core each.
        device: `auto`, `cpu` or `cuda`.
        values: side information of images by column, such as `age=71`.

    Returns:
        The keys of the converted scans, such as `sub-t1`.

    Raises:
        DualflowError: an argument or input cannot be used, or scans were excluded; then all others are converted.
    """
    from dualflow.config import ConvertConfig, checked
    from dualflow.inference.conversion import convert_inputs
    from dualflow.inference.inputs import Selection
    from dualflow.process import without_main_script

    numbers = {"samples": samples, "keep_samples": keep_samples, "temperature": temperature, "seed": seed}
    people, visits = ([label] if isinstance(label, str) else label for label in (participants, sessions))
    with without_main_script():
        return convert_inputs(
            [inputs] if isinstance(inputs, str | Path) else inputs,
            str(model),
            Path(out).expanduser(),
            checked(ConvertConfig, numbers, "convert"),
            Selection(people, visits, {**(side or {}), **values}),
            workers,
            device,
        )
