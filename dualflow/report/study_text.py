"""Facts, methods and provenance of a study, as text of the report."""

from __future__ import annotations

from importlib.metadata import version

import pandas as pd

from dualflow import __version__
from dualflow.commit import digest_of
from dualflow.config import Config
from dualflow.modalities import modality
from dualflow.models.card import ModelCard
from dualflow.report.study_results import read_result

SPLITS = {
    "train": "training subjects",
    "validation": "validation subjects",
    "test": "test subjects",
    "convert": "subjects without a target",
}
"""Splits of pairs.tsv, and their labels in the facts."""
LIBRARIES = ("torch", "monai", "SimpleITK", "nibabel", "mlflow", "snakemake")


def study_title(config: Config) -> str:
    """Title of the report: study, sources and target."""
    return f"{config.study.name}: {_sources(config)} to {config.study.target}"


def study_facts(config: Config, pairs: pd.DataFrame, excluded: int) -> dict[str, object]:
    """Dataset, modalities, grid and numbers of subjects; `excluded` counts the excluded scans."""
    counts = {label: subject_count(pairs, split) for split, label in SPLITS.items()}
    return {
        "dataset": "embedded cohort, simulated" if config.embedded else config.study.name,
        "source to target": f"{_sources(config)} to {config.study.target}",
        "side information": ", ".join(config.study.side) or "none",
        "model grid": f"{' x '.join(map(str, config.preprocess.shape))} at {config.preprocess.spacing_mm:g} mm",
        **{name: count for name, count in counts.items() if count},
        "scans excluded": excluded,
        **_registration_error(config),
    }


def subject_count(pairs: pd.DataFrame, split: str) -> int:
    """Number of subjects in a split."""
    return int(pairs.loc[pairs["split"] == split, "subject"].nunique())


def method_text(config: Config) -> list[str]:
    """Paragraphs on preprocessing, scoring and the likelihood bound."""
    row = modality(config.study.target)
    low, high = row.window
    registered = "target and further source" if config.study.extra_sources else "target"
    alignment = "is assumed to be aligned with" if config.preprocess.aligned else "is registered rigidly to"
    return [
        f"Each source is corrected for its bias field, skull-stripped, and registered affinely to the template; each "
        f"{registered} {alignment} its source. A single interpolation resamples each image to the model grid of "
        f"{config.preprocess.spacing_mm:g} mm. Targets are in {row.unit}.",
        f"Scores are computed on the model grid, inside the brain mask of held-out subjects, who contribute neither to "
        f"training nor to model selection. PSNR and SSIM use the range {low:g} to {high:g} {row.unit}. Seeds and "
        f"visits of one subject are averaged first; intervals are 95 % bootstrap intervals over subjects.",
        f"The point estimate of a flow with a mean model is the output of that mean model; the flow adds the "
        f"distribution around it. Flows are scored on {config.evaluate.samples} joint samples per scan at temperature "
        f"{config.convert.temperature:g}. Models without a distribution receive a constant spread, estimated on the "
        f"validation subjects separately for voxels and region means. Part of a flow's gain in CRPS is therefore due "
        f"to the spatial variation of its spread.",
        f"NLL and bits refer to the density of the voxels inside the mask, per voxel of the mask. The background is "
        f"drawn from its training distribution {config.evaluate.background_draws} times. For the bits, annealed "
        f"importance sampling moves these draws in {config.evaluate.background_steps} steps to the background that the "
        f"model expects. The NLL under true and alternative sources are upper bounds without annealing, from the same "
        f"draws.",
        "The models 'attainable', 'oracle' and 'true_law' are upper bounds known only for a simulated cohort: the true "
        "anatomy with the expected uptake of the subject, the subject's own noise-free image, and samples of the "
        "distribution that the cohort was drawn from.",
    ]


def provenance(config: Config, cards: dict[str, ModelCard]) -> dict[str, object]:
    """Versions, digests, seeds and device behind the report."""
    first = next(iter(cards.values()))
    return {
        "dualflow": __version__,
        **{name: version(name) for name in LIBRARIES},
        "data digest": first.data_digest[:16],
        "configuration digest": digest_of(config.model_dump(mode="json"))[:16],
        "seeds": ", ".join(map(str, config.train.seeds)),
        "threads per training": config.train.threads,
        "device": first.device,
    }


def _sources(config: Config) -> str:
    return " + ".join(config.study.sources)


def _registration_error(config: Config) -> dict[str, object]:
    errors = read_result(config.layout.table("registration"))["mean_mm"]
    if errors.empty:
        return {}
    return {"target to source registration error": f"median {errors.median():.2f} mm, maximum {errors.max():.2f} mm"}
