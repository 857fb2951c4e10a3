"""Score one trained model, or the ceilings, on the held-out scans."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from dualflow.commit import commit_text, write_manifest
from dualflow.config import Config
from dualflow.data.dataset import Item, PairDataset
from dualflow.errors import DataError
from dualflow.evaluation.calibration import reliability
from dualflow.evaluation.metrics import score
from dualflow.flows.model import DualFlow
from dualflow.inference.convert import fill_outside, seed_of
from dualflow.inference.predict import Prediction, Predictor, load_predictor
from dualflow.layout import Scan
from dualflow.modalities import modality
from dualflow.progress import track
from dualflow.steps.common import dump, load_split, regions_of, usable_pairs
from dualflow.training.validation import round_trip_error


def evaluate(config: Config, name: str, seed: int) -> None:
    """Write the scores of model `name` on the test scans.

    Raises:
        DataError: there are none.
    """
    layout = config.layout
    predictor = load_predictor(layout.model(name, seed))
    pairs = usable_pairs(config)
    test = load_split(config, pairs, "test", predictor.side)
    if not len(test):
        raise DataError(f"{config.study.name}: no test scan to score; give split.test a share or name test_subjects")
    regions, row = regions_of(config), modality(config.study.target)
    rows, curves, regional = [], [], []
    likelihood = _likelihoods(predictor, test) if isinstance(predictor.model, DualFlow) else [{}] * len(test)
    for index, item in enumerate(track(test.items, f"evaluate {name}, seed {seed}")):
        mask, target = item["mask"][0].numpy(), item["target"][0].numpy()
        prediction = predictor.predict(
            item["source"],
            item["side"],
            item["mask"],
            samples=config.evaluate.samples,
            temperature=config.convert.temperature,
            seed=seed_of(config.evaluate.seed, Scan.parse(item["scan"])),
        )
        scores = score(prediction, target, mask, regions, row) | _sample_scores(prediction, target, mask)
        rows.append({"model": name, "seed": seed, "scan": item["scan"], **scores, **likelihood[index]})
        curves.append(reliability(prediction, target, mask, regions).assign(model=name))
        regional.append(np.stack([regions.means(target, mask), regions.means(prediction.mean, mask)]))
    table = pd.DataFrame(rows)
    curve = pd.concat(curves).groupby(["model", "kind", "level"], as_index=False)["coverage"].mean()
    stem = f"{name}_seed-{seed}"
    files = {
        "scans": layout.table(f"scans_{stem}"),
        "reliability": layout.table(f"reliability_{stem}"),
        "regions": layout.table(f"regions_{stem}"),
    }
    commit_text(files["scans"], table.to_csv(sep="\t", index=False))
    commit_text(files["reliability"], curve.to_csv(sep="\t", index=False))
    commit_text(files["regions"], _region_table(test.scans, regions.names, regional).to_csv(sep="\t", index=False))
    write_manifest(
        layout.manifest(f"evaluate/{stem}"),
        step="evaluate",
        outputs=files,
        inputs={"model": predictor.card["weights_sha256"]},
        config=dump(config.evaluate, config.convert),
    )


def _sample_scores(prediction: Prediction, target: NDArray[np.float32], mask: NDArray[np.bool_]) -> dict[str, float]:
    """MAE of one sample and of the samples' mean, beside the point estimate's: three predictions with three names."""
    if prediction.samples is None:
        return {}
    one, mean = prediction.samples[0], prediction.samples.mean(axis=0)
    return {
        "mae_one_sample": float(np.abs(one - target)[mask].mean()),
        "mae_sample_mean": float(np.abs(mean - target)[mask].mean()),
    }


@torch.no_grad()
def _likelihoods(predictor: Predictor, test: PairDataset) -> list[dict[str, float]]:
    """NLL of each target (nats per voxel) under its own and under the next person's source, and round-trip errors.

    Only the anatomy inside the brain is exchanged: brain mask and side information stay the target's own, so that
    neither can give the answer away.
    """
    model = predictor.model
    assert isinstance(model, DualFlow)
    people = [Scan.parse(key).subject for key in test.scans]
    rows = []
    for index in range(len(test)):
        item = test[index]
        target, side = item["target"][None], item["side"][None]
        others = [(index + shift) % len(test) for shift in range(1, len(test))]
        other = next((place for place in others if people[place] != people[index]), index)
        own, wrong = item["source"][None], in_brain_of(item, test[other])[None]
        sources = torch.cat([own, wrong])
        log_prob = model.log_prob(target.repeat(2, 1, 1, 1, 1), sources, side.repeat(2, 1)) / target.numel()
        row = {"nll_true": -float(log_prob[0]), "nll_wrong": -float(log_prob[1])}
        row["round_trip_float32"] = round_trip_error(model, target, own, side)
        if index == 0:
            wide = model.double()
            row["round_trip_float64"] = round_trip_error(wide, target.double(), own.double(), side.double())
            model.float()
        rows.append(row)
    return rows


def in_brain_of(item: Item, other: Item) -> torch.Tensor:
    """The source `[1, D, H, W]` of `other` in the brain mask of `item`; the nearest voxel fills what is missing."""
    filled = fill_outside(other["source"][0].numpy(), other["mask"][0].numpy())
    exchanged: torch.Tensor = torch.from_numpy(filled)[None] * item["mask"]
    return exchanged


def _region_table(scans: list[str], names: tuple[str, ...], means: list[NDArray[np.float64]]) -> pd.DataFrame:
    """Real and estimated mean of each region of each scan."""
    return pd.DataFrame(
        [
            (scan, region, real, estimate)
            for scan, pair in zip(scans, means, strict=True)
            for region, real, estimate in zip(names, pair[0], pair[1], strict=True)
        ],
        columns=["scan", "region", "real", "estimate"],
    )
