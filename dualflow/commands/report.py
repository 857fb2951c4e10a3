"""Bring all scores together: summary, paired differences, the HTML report, and one MLflow run to compare by."""

from __future__ import annotations

from importlib.metadata import version

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dualflow import __version__
from dualflow.commands.ceilings import CEILINGS
from dualflow.commit import commit_text, digest_of
from dualflow.config import Config, dump_sections, public_values
from dualflow.data.dataset import PairDataset
from dualflow.data.quarantine import read_quarantine
from dualflow.data.study_pairs import load_split, usable_pairs
from dualflow.errors import DataError
from dualflow.evaluation.statistics import differences, summarise
from dualflow.inference.convert import seed_of
from dualflow.inference.predict import Predictor, load_predictor
from dualflow.layout import Scan
from dualflow.manifest import write_manifest
from dualflow.modalities import modality
from dualflow.models.card import ModelCard
from dualflow.models.store import load_card
from dualflow.report.figures import metric_comparison, region_scatter, reliability_curve, subject_panel, training_curves
from dualflow.report.likelihood_tables import (
    check_against,
    explained_table,
    image_table,
    learnt,
    safety_table,
    source_table,
    stress_totals,
)
from dualflow.report.study_page import ReportData, render
from dualflow.report.style import palette
from dualflow.report.summary_text import findings, limits
from dualflow.report.tables import Table, comparison_table, difference_table, plain_table
from dualflow.tracking.sync import sync
from dualflow.tracking.tracked_run import tracked

IMAGE_METRICS = ("mae", "psnr", "ssim", "pearson_r", "region_r", "region_mae", "region_bias")
DOTS = IMAGE_METRICS[:6]
SPREAD_METRICS = (
    "voxel_crps", "region_crps", "voxel_coverage_50", "voxel_coverage_80", "voxel_coverage_95",
    "region_coverage_50", "region_coverage_80", "region_coverage_95", "spread_error_r",
)  # fmt: skip
BITS = ("bits_in_mask",)
CURVES = {"loss": "training loss", "validation/loss": "validation loss", "validation/mae": "validation MAE"}
PANELS = 3


def report(config: Config) -> None:
    """Write the summary tables and the HTML report of a study."""
    matplotlib.use("Agg")
    layout, row = config.layout, modality(config.study.target)
    main, models = config.model.preset, config.trainings
    scores = pd.concat(
        [pd.read_csv(layout.table(f"scans_{name}_seed-{seed}"), sep="\t") for name, seed in models]
        + [pd.read_csv(layout.table("scans_ceilings"), sep="\t")]
    )
    if scores.empty:
        raise DataError(f"{config.study.name}: no test scan was scored; give split.test a share or name test_subjects")
    bootstrap, seed = config.evaluate.bootstrap, config.evaluate.seed
    summary = summarise(scores, bootstrap=bootstrap, seed=seed)
    paired = differences(scores[~scores["model"].isin(CEILINGS)], main, bootstrap=bootstrap, seed=seed)
    numbers, totals = learnt(scores, list(config.flows)), _stress(config)
    cards = {f"{name} seed {seed}": load_card(layout.model(name, seed)) for name, seed in models}
    tables = {
        "comparison": [
            comparison_table(summary, row, IMAGE_METRICS, "Images, on the model grid", without=tuple(CEILINGS)),
            difference_table(paired, row, ("mae", "pearson_r", "region_mae"), f"Against {main}, same subjects"),
        ],
        "uncertainty": [
            comparison_table(summary, row, SPREAD_METRICS, "Spread", without=tuple(CEILINGS)),
            difference_table(paired, row, ("voxel_crps", "region_crps"), f"Against {main}, same subjects"),
        ],
        "learnt": _learnt_tables(summary, paired, numbers, totals, config),
        "training": [plain_table(_budgets(cards), "What each training took")],
    }
    pairs = usable_pairs(config)
    predictor = load_predictor(layout.model(main, config.train.seeds[0]))
    test = load_split(config, pairs, "test", predictor.card.side)
    figures = _figures(config, summary, main) | {"subjects": _panels(config, predictor, test)}
    quarantine = read_quarantine(layout.quarantine)
    data = ReportData(
        title=f"{config.study.name}: {_sources(config)} to {config.study.target}",
        facts=_facts(config, pairs, len(quarantine)),
        findings=findings(
            summary,
            paired,
            check_against(scores, main),
            model=main,
            row=row,
            mean_target=_mean_target(test),
            blurred=check_against(scores, main, "nll_blurred"),
            stress=totals,
        ),
        quarantine=pd.DataFrame([vars(entry) for entry in quarantine], columns=["scan", "step", "reason"]),
        method=_method(config),
        limits=limits(simulated=config.embedded, subjects=_people(pairs, "test")),
        versions=_versions(config, cards),
        tables=tables,
        figures=figures,
    )
    files = {name: layout.table(name) for name in ("summary", "differences", "learnt")}
    commit_text(files["summary"], summary.to_csv(sep="\t", index=False))
    commit_text(files["differences"], paired.to_csv(sep="\t", index=False))
    commit_text(files["learnt"], numbers.to_csv(sep="\t", index=False))
    render(data, layout.report)
    _track(config, summary, numbers, scores, figures)
    write_manifest(
        layout.manifest("report"),
        step="report",
        outputs={**files, "report": layout.report},
        inputs={name: card.weights_sha256 for name, card in cards.items()},
        config=dump_sections(config.evaluate),
    )


def _stress(config: Config) -> pd.DataFrame | None:
    """Totals of the flows' stress tests, where the configuration asks for them."""
    if not config.evaluate.stress:
        return None
    flows = [(name, seed) for name in config.flows for seed in config.train.seeds]
    tables = [pd.read_csv(config.layout.stress(name, seed), sep="\t").assign(model=name) for name, seed in flows]
    return stress_totals(pd.concat(tables))


def _learnt_tables(
    summary: pd.DataFrame, paired: pd.DataFrame, numbers: pd.DataFrame, totals: pd.DataFrame | None, config: Config
) -> list[Table]:
    row, main = modality(config.study.target), config.model.preset
    bits = [
        comparison_table(
            summary, row, BITS, f"Upper bound of the bits per voxel of the mask, for intensities in {row.unit}"
        ),
        difference_table(paired, row, BITS, f"Against {main}, same subjects"),
    ]
    return [
        *bits[: 2 if len(config.flows) > 1 else 1],
        source_table(numbers),
        image_table(numbers, row),
        explained_table(numbers),
        safety_table(numbers, totals, row),
    ]


def _budgets(cards: dict[str, ModelCard]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "Model": name,
                "Trained parameters": card.parameters,
                "Gradient training (s)": round(card.training.seconds + card.training.pretrain_seconds, 1),
                "Closed-form mean (s)": round(card.training.mean_seconds, 1),
                "Best step": card.training.best_step,
                "Skipped steps": card.training.skipped_steps,
            }
            for name, card in cards.items()
        ]
    )


def _figures(config: Config, summary: pd.DataFrame, main: str) -> dict[str, list[tuple[str, Figure]]]:
    layout, row = config.layout, modality(config.study.target)
    seed = config.train.seeds[0]
    spread = [(name, number) for name, number in config.trainings if number == seed]
    curves = pd.concat([pd.read_csv(layout.table(f"reliability_{n}_seed-{s}"), sep="\t") for n, s in spread])
    regional = pd.read_csv(layout.table(f"regions_{main}_seed-{seed}"), sep="\t")
    real, estimate = (
        regional.pivot(index="scan", columns="region", values=value).to_numpy() for value in ("real", "estimate")
    )
    histories = {
        f"{name}, seed {number}": pd.read_csv(path, sep="\t")
        for name, number in config.trainings
        if (path := layout.model(name, number) / "history.tsv").is_file()
    }
    # One colour per model through the whole page.
    colours = palette(list(dict.fromkeys(summary["model"])))
    figures = {
        "comparison": [
            (
                "Means with 95 % intervals over subjects.",
                metric_comparison(summary, IMAGE_METRICS[:6], row, colours=colours),
            ),
            ("Region means, real against synthetic.", region_scatter(real, estimate, row, model=main)),
        ],
        "uncertainty": [
            ("Share of true values inside the stated intervals.", reliability_curve(curves, colours=colours))
        ],
    }
    for name, history in histories.items():
        figures.setdefault("training", []).append((name, training_curves({name: history}, CURVES)))
    return figures


def _panels(config: Config, predictor: Predictor, test: PairDataset) -> list[tuple[str, Figure]]:
    """The first held-out subjects as pictures, drawn as conversion drew them."""
    source_row, row = modality(config.study.source), modality(config.study.target)
    panels = []
    for item in test.items[:PANELS]:
        prediction = predictor.predict(
            item["source"], item["side"], item["mask"],
            samples=config.convert.samples, temperature=config.convert.temperature,
            seed=seed_of(config.convert.seed, Scan.parse(item["scan"])),
        )  # fmt: skip
        panel = subject_panel(
            item["source"][0].numpy(), prediction.mean, prediction.std, item["mask"][0].numpy(), row,
            source_row=source_row, target=item["target"][0].numpy(),
            sample=None if prediction.samples is None else prediction.samples[0], title=item["scan"],
        )  # fmt: skip
        panels.append((f"{item['scan']}, held out; left is left.", panel))
    return panels


def _facts(config: Config, pairs: pd.DataFrame, quarantined: int) -> dict[str, object]:
    counts = {f"people, {split}": _people(pairs, split) for split in ("train", "validation", "test", "convert")}
    return {
        "dataset": "embedded cohort, simulated" if config.embedded else config.bids.resolve().name,
        "source to target": f"{_sources(config)} to {config.study.target}",
        "side information": ", ".join(config.study.side) or "none",
        "model grid": f"{' x '.join(map(str, config.preprocess.shape))} at {config.preprocess.spacing_mm:g} mm",
        **{name: count for name, count in counts.items() if count},
        "scans set aside": quarantined,
        **_registration(config),
    }


def _sources(config: Config) -> str:
    return " + ".join(config.study.sources)


def _registration(config: Config) -> dict[str, object]:
    errors = pd.read_csv(config.layout.table("registration"), sep="\t")["mean_mm"]
    if errors.empty:
        return {}
    return {"target to source error": f"median {errors.median():.2f} mm, worst {errors.max():.2f} mm"}


def _people(pairs: pd.DataFrame, split: str) -> int:
    return int(pairs.loc[pairs["split"] == split, "subject"].nunique())


def _mean_target(test: PairDataset) -> float:
    return float(np.mean([item["target"][item["mask"]].mean() for item in test.items]))


def _method(config: Config) -> list[str]:
    row = modality(config.study.target)
    low, high = row.window
    moved = "target and further source" if config.study.extra_sources else "target"
    placed = "is taken to lie on" if config.preprocess.aligned else "is registered rigidly to"
    return [
        f"Each source is corrected for its bias field, its brain is masked, and it is registered affinely to the "
        f"template; each {moved} {placed} its source. One interpolation brings each onto the model grid of "
        f"{config.preprocess.spacing_mm:g} mm. Targets are in {row.unit}.",
        f"All scores are taken on the model grid inside the brain mask of people on whom nothing was fitted or chosen; "
        f"PSNR and SSIM use the range {low:g} to {high:g} {row.unit}. Intervals are 95 % bootstrap intervals over "
        f"subjects; seeds and visits of one person are averaged first.",
        f"The point estimate of a flow with a mean model is that mean: its accuracy is the mean's, and what the flow "
        f"adds is the distribution around it. Flows are scored on {config.evaluate.samples} joint samples per scan at "
        f"temperature {config.convert.temperature:g}. Models without a distribution get a constant spread from the "
        f"validation people, one for voxels and one for region means, so part of a flow's gain in CRPS is that its "
        f"spread differs from place to place.",
        "NLL and bits are those of the density of the mask's voxels alone, per voxel of the mask, as the upper bound "
        f"that comes of drawing the background from the law it has in training, {config.evaluate.background_draws} "
        "times. The draws are the same for every source of a scan.",
        "'attainable' is the true anatomy with the uptake expected for the person, 'oracle' the person's own "
        "noise-free image: bounds that are known only for a simulated cohort.",
    ]


def _versions(config: Config, cards: dict[str, ModelCard]) -> dict[str, object]:
    libraries = {name: version(name) for name in ("torch", "monai", "SimpleITK", "nibabel", "mlflow", "snakemake")}
    first = next(iter(cards.values()))
    return {
        "dualflow": __version__,
        **libraries,
        "data digest": first.data_digest[:16],
        "configuration digest": digest_of(config.model_dump(mode="json"))[:16],
        "seeds": ", ".join(map(str, config.train.seeds)),
        "threads per training": config.train.threads,
        "device": first.device,
    }


def _track(
    config: Config,
    summary: pd.DataFrame,
    numbers: pd.DataFrame,
    scores: pd.DataFrame,
    figures: dict[str, list[tuple[str, Figure]]],
) -> None:
    sync(config.tracking, config.layout.pending_records)
    with tracked(
        config.tracking, config.study.name, "evaluation", {"model": "all"}, config.layout.pending_records
    ) as run:
        run.parameters(public_values(config))
        names = summary["model"] + "/" + summary["metric"]
        run.metrics(dict(zip(names, summary["mean"].astype(float), strict=True)))
        for entry in numbers.to_dict("records"):
            run.metrics({f"{entry['model']}/{key}": value for key, value in entry.items() if key != "model"})
        run.table(summary, "summary.json")
        run.table(scores, "scores_per_scan.json")
        for section, entries in figures.items():
            for index, (_, figure) in enumerate(entries):
                run.figure(figure, f"figures/{section}_{index}.png")
        for page in (config.layout.report, config.layout.qc):
            run.file(page)
