"""Facts, methods and provenance of a study, as text of the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import version

import pandas as pd

from dualflow import __version__
from dualflow.baselines import BASELINES
from dualflow.config import Config
from dualflow.data.index import split_people
from dualflow.digests import digest_of
from dualflow.evaluation.statistics import MIN_CORRELATED, MIN_SUBJECTS
from dualflow.flows.presets import PRESETS
from dualflow.inference.conversion_table import count_verdicts
from dualflow.layout import training_key
from dualflow.modalities import modality
from dualflow.models.card import ModelCard, short_commit
from dualflow.report.study_results import read_result
from dualflow.tracking.source_version import COMMIT, source_version

SPLITS = {
    "train": "training subjects",
    "validation": "validation subjects",
    "test": "test subjects",
    "convert": "subjects without a target",
}
"""Splits of pairs.tsv, and their labels in the facts."""
LIBRARIES = ("torch", "monai", "SimpleITK", "nibabel", "mlflow", "snakemake")


PAGES = {
    "qc.html": "quality control of every scan",
    "quality.tsv": "quality metrics of every scan",
    "quarantine.tsv": "excluded scans with the reasons",
    "conversion.tsv": "verdicts on the converted scans",
}
"""Pages and tables beside the report."""
TABLES = {
    "summary": "means with intervals, by model and metric",
    "differences": "paired differences between models, with tests",
    "likelihood": "likelihood scores of the flows",
    "groups": "scores by group of the test subjects",
    "native": "scores of the main model in native space, by scan",
    "region_agreement": "agreement over people of the main model, by region",
    "registration": "registration errors of a simulated cohort",
    "scans_ceilings": "scores of the limits that a simulation knows, by scan",
    "scans": "scores by scan",
    "regions": "real and synthetic mean of every region, by scan",
    "reliability": "coverage by level",
    "pit": "histogram of the probability integral transform",
    "stress": "stress test of the samples",
    "downstream": "classification of a label by real, source and synthetic regions",
}
"""Tables of results by the start of their names."""
CEILINGS = (
    "The rows 'attainable', 'oracle' and 'true_law' are limits that only a simulation knows: the true "
    "anatomy with the expected uptake of the subject, the subject's own noise-free image, and samples of the "
    "distribution that the cohort was drawn from."
)


def linked_files(config: Config) -> dict[str, str]:
    """Addresses relative to the report of the pages and tables beside it, and what they hold."""
    root = config.layout.root
    files = {name: text for name, text in PAGES.items() if (root / name).is_file()}
    stems = {training_key(name, seed) for name, seed in config.trainings}
    for path in sorted(config.layout.tables.glob("*.tsv")):
        kind = next((kind for kind in TABLES if path.stem == kind or path.stem.removeprefix(f"{kind}_") in stems), None)
        # Other tables may belong to an earlier configuration.
        if kind is not None:
            model = path.stem.removeprefix(kind).removeprefix("_").replace("_seed-", ", seed ")
            files[path.relative_to(root).as_posix()] = TABLES[kind] + (f" of {model}" if model else "")
    return files


def study_title(config: Config) -> str:
    """Title of the report: study, sources and target."""
    return f"{config.study.name}: {_sources(config)} to {config.study.target}"


def study_facts(config: Config, pairs: pd.DataFrame, excluded: int, verdicts: Mapping[str, str]) -> dict[str, object]:
    """Dataset, modalities, grid, numbers of subjects, excluded scans, and the verdicts by converted scan."""
    counts = {label: subject_count(pairs, split) for split, label in SPLITS.items()}
    return {
        "dataset": "embedded cohort, simulated" if config.embedded else config.study.name,
        "source to target": f"{_sources(config)} to {config.study.target}",
        "side information": ", ".join(config.study.side) or "none",
        "model grid": f"{' x '.join(map(str, config.preprocess.shape))} at {config.preprocess.spacing_mm:g} mm",
        **{name: count for name, count in counts.items() if count},
        "scans excluded": excluded,
        "verdicts on converted scans": count_verdicts(Counter(verdicts.values())) or "none converted",
        **_registration_error(config),
    }


def subject_count(pairs: pd.DataFrame, split: str) -> int:
    """Number of subjects in a split."""
    return len(split_people(pairs, split))


def method_text(config: Config) -> list[str]:
    """Paragraphs on preprocessing, scoring and the likelihood bound."""
    row = modality(config.study.target)
    low, high = row.window
    corrected = [name for name in config.study.sources if config.preprocess.bias_field and modality(name).bias_field]
    bias = f"{' and '.join(corrected)} {'are' if len(corrected) > 1 else 'is'} corrected for the bias field. "
    registered = "target and further source" if config.study.extra_sources else "target"
    alignment = "is assumed to be aligned with" if config.preprocess.aligned else "is registered rigidly to"
    return [
        f"{bias if corrected else ''}Each source is skull-stripped and registered affinely to the template; each "
        f"{registered} {alignment} its source. A single interpolation resamples each image to the model grid of "
        f"{config.preprocess.spacing_mm:g} mm. Targets are in {row.unit}.",
        f"Scores are computed on the model grid unless they are said to be in native space, inside the brain mask of "
        f"held-out subjects, who contribute neither to training nor to model selection. PSNR and SSIM use the "
        f"range {low:g} to {high:g} {row.unit}. Scores of seeds and visits of one subject are averaged first, and "
        f"scores over people, such as correlations, over seeds. Intervals are 95 % expanded percentile "
        f"intervals (Hesterberg 2015) of {config.evaluate.bootstrap} bootstrap resamples of the subjects, shown from "
        f"{MIN_SUBJECTS} subjects on; those of scores over people are shown from {MIN_CORRELATED} subjects on, shifted "
        f"by their bias and cut at the score's range. Models are compared on the same subjects by Wilcoxon's "
        f"signed-rank test, with Holm's adjustment over the models of a metric.",
        f"The point estimate of a flow with a mean model is the output of that mean model; the flow adds the "
        f"distribution around it. Flows are scored on {config.evaluate.samples} joint samples per scan at temperature "
        f"{config.convert.temperature:g}. Models without a distribution receive a constant spread, estimated on the "
        f"validation subjects, if there are any, separately for voxels and region means. Part of a flow's gain in CRPS "
        f"is therefore due to the spatial variation of its spread.",
        f"NLL and bits refer to the density of the voxels inside the mask and the target's field of view, per such "
        f"voxel. The background is drawn {config.evaluate.background_draws} times from its training distribution, and "
        f"voxels out of view from a normal distribution of the flow's mean and spread. For the bits, annealed "
        f"importance sampling moves these draws in {config.evaluate.background_steps} steps to the background that the "
        f"model expects. The NLL under true and alternative sources are upper bounds without annealing, from the same "
        f"draws.",
        " ".join(["Models.", *_model_texts(config)]),
        *([CEILINGS] if config.embedded else []),
    ]


def _model_texts(config: Config) -> Iterator[str]:
    """A sentence on every model of the study."""
    for name, choice in config.flows.items():
        options = ", ".join(f"{key} = {value}" for key, value in choice.options.items())
        yield f"{name}: {PRESETS[choice.preset].idea}{f', with {options}' if options else ''}."
    for name in config.baselines.models:
        yield f"{name}: {BASELINES[name].text.replace('`', '')}"


def provenance(config: Config, cards: dict[str, ModelCard], date: str) -> dict[str, object]:
    """Date of the report, and versions, digests, seeds and device behind it."""
    first, commit = next(iter(cards.values())), short_commit(source_version().get(COMMIT, ""))
    trained = ", ".join(dict.fromkeys(card.short_commit for card in cards.values() if card.short_commit))
    return {
        "date": date,
        "dualflow": __version__,
        **({"git commit": commit} if commit else {}),
        **({"trained at commit": trained} if trained not in ("", commit) else {}),
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
    errors = read_result(config.layout.table("registration"))
    if errors.empty:
        return {}
    typical, largest = errors["mean_mm"].median(), errors["max_mm"].max()
    text = f"median over scans {typical:.2f} mm, largest of any voxel {largest:.2f} mm"
    return {"target to source registration error": text}
