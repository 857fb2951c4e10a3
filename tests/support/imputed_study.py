"""A study of people with a known law, of whom half have no target, with a fitted closed-form density."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from dualflow.baselines.residual_density import ClosedFormDensity
from dualflow.commit import commit_text
from dualflow.data.dataset import PairDataset
from dualflow.data.side_encoder import Categorical, Continuous, SideEncoder
from dualflow.data.tsv import table_text
from dualflow.imaging.regions import RegionMap
from dualflow.training.closed_form import ClosedFormCache, subject_folds
from tests.support.region_cohort import SHAPE, region_labels, region_people

REGIONS = ("ctx-lh-cuneus", "ctx-rh-cuneus", "Left-Caudate", "Right-Caudate")
PEOPLE = 60


@dataclass
class ImputedStudy:
    """People, a model that learnt from those in the split `train`, and the table of pairs.

    Attributes:
        pairs: rows of the index.
        splits: preprocessed scans by split.
        model: a density in closed form.
        card: the parts of a model card that imputation reads.
        regions: four slabs.
        truth: region means of every person `[N, 4]`, in the order of `pairs`.
    """

    pairs: pd.DataFrame
    splits: dict[str, PairDataset]
    model: ClosedFormDensity
    card: SimpleNamespace
    regions: RegionMap
    truth: np.ndarray

    @classmethod
    def make(cls, count: int = PEOPLE) -> ImputedStudy:
        """Fit the model; every second person has no target."""
        people = region_people(count)
        regions = RegionMap(region_labels().numpy(), REGIONS, (4.0, 4.0, 4.0))
        truth = np.stack([regions.means(one["target"][0].numpy(), one["mask"][0].numpy()) for one in people])
        split = np.where(np.arange(count) % 2, "convert", np.where(np.arange(count) % 10 == 0, "test", "train"))
        sides = torch.stack([one["side"] for one in people]).numpy()
        pairs = pd.DataFrame(
            {
                "scan": [one["scan"] for one in people],
                "subject": [one["scan"].removeprefix("sub-") for one in people],
                "session": None,
                "source": "x",
                "target": np.where(split == "convert", "", "y"),
                "split": split,
                "age": 70 + 8 * sides[:, 0],
                "group": np.where(sides[:, 1] > 0, "patient", "control"),
            }
        )
        encoder = SideEncoder((Continuous("age", 70.0, 8.0), Categorical("group", ("control", "patient"))))
        for one, side in zip(people, encoder.encode(pairs), strict=True):
            one["side"] = side
        hidden = {key for key, part in zip(pairs["scan"], split, strict=True) if part == "convert"}
        for one in people:
            if one["scan"] in hidden:
                del one["target"]
        splits = {
            name: PairDataset([one for one, part in zip(people, split, strict=True) if part == name])
            for name in ("train", "validation", "test", "convert")
        }
        model = ClosedFormDensity(SHAPE, 3, 1, regions=len(REGIONS)).eval()
        model.set_regions(region_labels())
        model.fit(splits["train"], subject_folds(splits["train"]))
        card = SimpleNamespace(side=encoder, label="spread, seed 0", weights_sha256="0" * 64, data_digest="data")
        return cls(pairs, splits, model, card, regions, truth)

    def install(self, monkeypatch, module, config) -> None:
        """Let `module`, the command impute, work on this study without files of images."""
        cache = ClosedFormCache(config.layout.closed_form_cache)
        training = self.splits["train"]
        data = SimpleNamespace(
            pairs=self.pairs,
            training=training,
            filled=(training, None),
            digest="data",
            closed_form_cache=lambda _: cache,
        )
        monkeypatch.setattr(module, "LearningData", SimpleNamespace(load=lambda _: data))
        monkeypatch.setattr(module, "iterate_split", lambda _, __, split, ___: iter(self.splits[split].items))
        monkeypatch.setattr(module, "region_map", lambda _: self.regions)
        monkeypatch.setattr(module, "load_predictor", lambda *_: SimpleNamespace(model=self.model, card=self.card))
        commit_text(config.layout.pairs, table_text(self.pairs.assign(target=self.pairs["target"].replace("", None))))
