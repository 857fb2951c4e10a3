"""What a training leaves on disk: the card tells all of it, and its states go once the model is safe."""

from contextlib import nullcontext

import pandas as pd
import pytest

from dualflow.commands import common
from dualflow.commands import train as module
from dualflow.config import parse_config
from dualflow.tracking.tracked_run import Run
from dualflow.training.checkpoint import load_card, states
from dualflow.training.train_flow import source_folder


@pytest.fixture
def config(tmp_path):
    """A study whose flow pre-trains its source for two of four steps."""
    options = {
        "steps": [1, 1, 1], "hidden": [8, 8, 8], "context_channels": 8, "transition_steps": 1, "source_pretrain": 0.5,
    }  # fmt: skip
    return parse_config(
        {
            "study": {"name": "x", "results": str(tmp_path), "side": ["age"]},
            "preprocess": {"shape": [16, 16, 16], "spacing_mm": 12.0},
            "model": {"preset": "srflow", "options": options},
            "train": {"steps": 4, "validate_every": 2, "precision": "float32"},
        }
    )


def test_the_card_tells_of_pretraining_and_its_states_are_forgotten(config, phantoms, held_out, monkeypatch):
    """Steps and seconds are in the card; states of flow and source are there until the manifest is written."""
    splits = {"train": phantoms, "validation": held_out}
    pairs = pd.DataFrame({"scan": phantoms.scans, "split": "train", "age": range(len(phantoms))})
    monkeypatch.setattr(common, "usable_pairs", lambda config: pairs)
    monkeypatch.setattr(common, "load_split", lambda config, pairs, split, encoder: splits[split])
    monkeypatch.setattr(module, "_input_hash", lambda config, key: key)
    monkeypatch.setattr(module, "tracked", lambda *_: nullcontext(Run()))
    folder, write = config.layout.model("srflow", 0), module.write_manifest
    kept = []

    def watched(*args, **options):
        kept.extend(len(states(place)) for place in (folder, source_folder(folder)))
        write(*args, **options)

    monkeypatch.setattr(module, "write_manifest", watched)
    module.train(config, "srflow", 0)
    card = load_card(folder)
    assert card["pretrain_steps"] == 2
    assert card["pretrain_seconds"] > 0
    assert pd.read_csv(folder / "history.tsv", sep="\t")["step"].tolist() == [2]
    assert all(kept)
    assert not states(folder)
    assert not states(source_folder(folder))
