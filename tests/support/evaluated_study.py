"""A study with trained and evaluated mean-image models, as `dualflow run` leaves it, without images."""

from __future__ import annotations

import hashlib

import pandas as pd
import torch

from dualflow.baselines import BASELINES
from dualflow.commit import commit_json, commit_text
from dualflow.data.index import read_pairs
from dualflow.data.study_pairs import scan_digests
from dualflow.evaluation.current_scores import score_inputs
from dualflow.layout import Layout, Scan
from dualflow.manifest import write_manifest
from dualflow.models.model_files import WEIGHTS
from dualflow.models.store import save_model

TRAINING = ("A1", "A2", "A3", "A4")
HELD_OUT = tuple(f"H{index}" for index in range(1, 10))


class EvaluatedStudy:
    """The study `phantoms`.

    Args:
        root: results folder of the study.
        card: model card to start from.
    """

    def __init__(self, root, card):
        self.layout = Layout(root)
        self.card = card.model_copy(update={"kind": "mean_image", "spec": None, "options": {}})
        self.index()
        for label in (*TRAINING, *HELD_OUT):
            self.preprocess(label)

    def preprocess(self, label, version=""):
        """Write the manifest of a preprocessed scan."""
        entries = {
            name: {"path": f"../{name}", "sha256": hashlib.sha256(f"{label}{name}{version}".encode()).hexdigest()}
            for name in ("source", "target", "mask")
        }
        commit_json(self.layout.scan_manifest(Scan(label)), {"outputs": entries, "inputs": {}, "facts": {}})

    def train(self, name, value, seed=0):
        """Write a model that predicts a constant, and return its folder."""
        model = BASELINES["mean_image"](self.card.shape, 1)
        torch.nn.init.constant_(model.image, value)
        card, files = save_model(
            self.layout.model(name, seed), model, self.card.model_copy(update={"name": name, "seed": seed})
        )
        write_manifest(
            self.layout.manifest(f"train/{name}_seed-{seed}"),
            step="train",
            outputs={file.name: file for file in files},
            inputs={f"sub-{label}": "0" for label in TRAINING},
            config={},
            facts={"training": f"training of {name}"},
        )
        assert WEIGHTS in {file.name for file in files}
        return self.layout.model(name, seed), card

    def index(self, ages=None):
        """Write the table of scans; people are 70 years old, or of the age in `ages`."""
        splits = {"train": TRAINING[:3], "validation": TRAINING[3:], "test": HELD_OUT}
        rows = [
            {"scan": f"sub-{label}", "subject": label, "session": "n/a", "source": f"sub-{label}/anat/x.nii.gz",
             "target": f"sub-{label}/pet/x.nii.gz", "split": split, "age": (ages or {}).get(label, 70)}
            for split, labels in splits.items() for label in labels
        ]  # fmt: skip
        commit_text(self.layout.pairs, pd.DataFrame(rows).to_csv(sep="\t", index=False))

    def evaluate(self, card, scores, people=HELD_OUT, samples=32):
        """Write the table of scores of a model: the region CRPS of each person."""
        stem = f"{card.name}_seed-{card.seed}"
        rows = [
            {"model": card.name, "seed": card.seed, "scan": f"sub-{label}", "mae": 2 * score, "region_crps": score}
            for label, score in zip(people, scores, strict=True)
        ]
        pairs = read_pairs(self.layout)
        test = pairs[pairs["subject"].isin(people)]
        table, table_scans = self.layout.table(f"scans_{stem}"), [row["scan"] for row in rows]
        commit_text(table, pd.DataFrame(rows).to_csv(sep="\t", index=False))
        write_manifest(
            self.layout.manifest(f"evaluate/{stem}"),
            step="evaluate",
            outputs={"scans": table},
            inputs=score_inputs(card.weights_sha256, scan_digests(self.layout, table_scans), card.side.encode(test)),
            config={
                "evaluate": {"bootstrap": 200, "seed": 0, "samples": samples},
                "convert": {"temperature": 1.0},
            },
        )

    def model(self, name, value, scores):
        """Write an evaluated model, and return its folder."""
        folder, card = self.train(name, value)
        self.evaluate(card, scores)
        return folder
