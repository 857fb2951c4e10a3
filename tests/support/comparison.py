"""A study of three flows and two baselines, with the files of trainings and evaluations that never ran."""

from types import MappingProxyType

import pandas as pd
import torch

from dualflow.commit import commit_text
from dualflow.config import dump_sections, public_values, training_values
from dualflow.data.study_pairs import scan_digests
from dualflow.digests import sha256
from dualflow.evaluation.current_scores import CurrentScans, score_inputs
from dualflow.layout import Scan
from dualflow.manifest import write_manifest
from dualflow.models.card import FLOW, ModelCard, TrainingRecord
from dualflow.models.store import load_card, save_model
from dualflow.training.build_baseline import build_baseline
from dualflow.training.flow_spec import flow_spec

SHAPE = (16, 16, 16)
TIMES = {"dualflow": 0.1, "dual_glow": 0.4, "wide": 0.2, "unet": 0.05}


def study_values(folder):
    """Configuration values of a study of three flows and two baselines; `wide` is a variation of the default."""
    return {
        "study": {"name": "x", "results": str(folder / "results"), "side": ["age"]},
        "preprocess": {"shape": list(SHAPE)},
        "model": {"preset": "dualflow", "options": {"low_rank": 2}},
        "extra_models": {
            "dual_glow": {"preset": "dual_glow", "steps": 7},
            "wide": {"preset": "dualflow", "options": {"low_rank": 2, "hidden": [8, 8, 8]}},
        },
        "baselines": {"models": ["mean_image", "unet"]},
        "train": {"seeds": [0, 1], "precision": "float32"},
        "evaluate": {"bootstrap": 100},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db", "artifacts": str(folder / "artifacts")},
    }


class FakeTimer:
    """Stands in for the measurement of step times, and records the flows it measured."""

    def __init__(self):
        self.measured = []

    def __call__(self, config, name):
        self.measured.append(name)
        return TIMES[name]


def save_card(folder, name, seed, weight, record=None, commit="", learnt="", **built):
    """Write a model folder with a single weight, and a card that says what it `learnt` from and how it is `built`."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, weight)
    card = ModelCard(
        name=name,
        seed=seed,
        shape=SHAPE,
        side={"columns": [{"kind": "Continuous", "name": "age", "mean": 70.0, "sd": 10.0}]},
        study={"name": "x", "source": "T1w", "target": "FDG"},
        parameters=1000,
        commit=commit,
        data_digest=learnt,
        training=record or TrainingRecord(),
        **(built or {"kind": "mean_image"}),
    )
    save_model(folder, model, card)


def built(config, name):
    """Fields of the card of a model as the configuration builds it."""
    if name in config.flows:
        return {"kind": FLOW, "spec": flow_spec(config.flows[name])}
    return {"kind": name, "options": build_baseline(config, name, SHAPE, side_features=0, source_channels=1)[1]}


LEARNT = "sub-learnt"
SCANS = ("sub-1_ses-1", "sub-1_ses-2", "sub-2", "sub-3")


def train_and_score(
    config,
    name,
    seed,
    steps,
    *,
    mae=0.1,
    pretrain=0,
    memory="900.5",
    scans=SCANS,
    splits=None,
    stress=None,
    commit="abc",
    calibration=None,
    **columns,
):
    """Write the results of one model and seed with the workflow's own functions, for an index with these test scans."""
    layout, stem, folder = config.layout, f"{name}_seed-{seed}", config.layout.model(name, seed)
    digests = write_index(layout, splits or {LEARNT: "train", **dict.fromkeys(scans, "test")})
    record = TrainingRecord(
        seconds=6.0 + seed,
        mean_seconds=2.0,
        pretrain_steps=pretrain,
        pretrain_seconds=3.0 if pretrain else 0.0,
        calibration=calibration or {},
    )
    now = CurrentScans.of(config)
    save_card(folder, name, seed, float(len(name) + seed + steps), record, commit, now.learnt, **built(config, name))
    card = load_card(folder)
    if steps:
        commit_text(folder / "history.tsv", f"step\tloss\n1.0\t0.5\n{steps - pretrain}.0\t0.1\n")
    scores = pd.DataFrame({"model": name, "seed": seed, "scan": list(scans), "mae": mae, **columns})
    tables = {"scans": layout.table(f"scans_{stem}"), "stress": layout.stress(name, seed)}
    if stress is None:
        del tables["stress"]
    for path, table in zip(tables.values(), (scores, stress), strict=False):
        commit_text(path, table.to_csv(sep="\t", index=False))
    commit_text(layout.benchmark(f"train/{stem}"), f"s\tmax_rss\n10.0\t{memory}\n")
    inputs = {LEARNT: digests[LEARNT]}
    values = training_values(config.with_fields("train", patience=None), name)
    options = {"study": public_values(config)["study"], **values}
    write_manifest(layout.manifest(f"train/{stem}"), step="train", outputs={}, inputs=inputs, config=options)
    write_manifest(
        layout.manifest(f"evaluate/{stem}"),
        step="evaluate",
        outputs=tables,
        inputs=score_inputs(card.weights_sha256, now.digests, card.side.encode(now.test)),
        config=dump_sections(config.evaluate, config.convert),
    )


def score_ceilings(config, *, scans=SCANS, **columns):
    """Write the scores of the limits of a simulated study as the workflow does."""
    rows = [pd.DataFrame({"model": name, "seed": 0, "scan": list(scans), **columns}) for name in ("oracle", "true_law")]
    files = {"scans": config.layout.table("scans_ceilings")}
    commit_text(files["scans"], pd.concat(rows).to_csv(sep="\t", index=False))
    write_manifest(
        config.layout.manifest("evaluate/ceilings"),
        step="evaluate",
        outputs=files,
        inputs=scan_digests(config.layout, scans),
        config=dump_sections(config.evaluate, config.cohort),
    )


def write_index(layout, splits, ages=MappingProxyType({})):
    """Write an index of preprocessed scans by split, whose ages differ; return their manifests' hashes."""
    rows = [
        {"scan": key, "subject": Scan.parse(key).subject, "session": Scan.parse(key).session or "n/a",
         "source": "t1.nii", "target": "pet.nii", "split": split, "age": ages.get(key, 70 + position)}
        for position, (key, split) in enumerate(splits.items())
    ]  # fmt: skip
    commit_text(layout.pairs, pd.DataFrame(rows).to_csv(sep="\t", index=False))
    manifests = {key: layout.scan_manifest(Scan.parse(key)) for key in splits}
    for path in manifests.values():
        write_manifest(path, step="preprocess", outputs={}, inputs={}, config={})
    return {key: sha256(path) for key, path in manifests.items()}
