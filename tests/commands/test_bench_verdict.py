"""`dualflow bench verdict` on synthetic brains: table, intervals and printed text."""

import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from dualflow.cli import main
from dualflow.commands import bench_verdict as module
from dualflow.commands.bench_verdict import COLUMNS, NATURAL, bench_verdict, first_visits, natural_lesions, summary
from dualflow.config import parse_config
from dualflow.data.dataset import PairDataset
from dualflow.errors import DataError
from dualflow.evaluation.corruptions import CORRUPTIONS
from tests.support.brains import SHAPE, SPACING_MM, brain


def dataset(labels):
    items = []
    for label in labels:
        source, mask = brain(label)
        volumes = {"source": torch.tensor(source)[None], "mask": torch.tensor(mask)[None]}
        items.append({**volumes, "scan": f"sub-C{label:04d}"})
    return PairDataset(items)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A study of 20 training, 3 validation and 2 test scans without targets."""
    monkeypatch.setattr(module, "learning_pairs", lambda _: (None, None, dataset(range(20)), dataset(range(20, 23))))
    monkeypatch.setattr(module, "load_split", lambda *_: dataset(range(23, 25)))
    return parse_config({
        "study": {"name": "x", "results": str(tmp_path)},
        "cohort": {"subjects": 25, "law": "hard"},
        "preprocess": {"spacing_mm": SPACING_MM, "shape": list(SHAPE)},
    })  # fmt: skip


def test_table_has_a_row_per_corruption(config, capsys):
    """Every corruption that applies has a row, all held-out scans count, and files and text agree."""
    bench_verdict(config)
    table = pd.read_csv(config.layout.table("verdict"), sep="\t").set_index("corruption")
    assert list(table.reset_index().columns) == list(COLUMNS)
    assert set(CORRUPTIONS) - set(table.index) == {"PET given as MR"}
    assert table.loc["clean", "n"] == 5
    assert table.loc["T2-like contrast", "refused"] == 100
    assert table.loc["clean", "refused"] < 50
    assert (table["flagged"] >= table["refused"]).all()
    printed = capsys.readouterr().out
    assert config.layout.page("verdict").read_text().strip() in printed
    assert "20 training and 5 held-out scans" in printed
    assert "4.8% expected" in printed


def test_a_person_counts_once_by_the_first_visit(config, monkeypatch):
    """Visits are neither counted in the intervals nor scored."""
    keys = ["C0020_ses-M12", "C0020_ses-M6", "C0021_ses-M6", "C0022", "C0021_ses-M12"]
    items = [{**item, "scan": f"sub-{key}"} for item, key in zip(dataset(range(20, 25)).items, keys, strict=True)]
    chosen = first_visits(PairDataset(items))
    assert chosen.scans == ["sub-C0020_ses-M6", "sub-C0021_ses-M6", "sub-C0022"]
    monkeypatch.setattr(module, "load_split", lambda *_: PairDataset(items))
    monkeypatch.setattr(module, "CORRUPTIONS", {"clean": CORRUPTIONS["clean"]})
    bench_verdict(config)
    table = pd.read_csv(config.layout.table("verdict"), sep="\t").set_index("corruption")
    assert table.loc["clean", "n"] == 3


def test_lesions_are_implanted_in_people_without_lesions(config):
    """People of the cohort with lesions form a row of their own, and no lesion is added to theirs."""
    lesions = natural_lesions(config)
    held_out = [f"C{label:04d}" for label in range(20, 25)]
    affected = sum(lesions[label] for label in held_out)
    assert 0 < affected < 5
    bench_verdict(config)
    table = pd.read_csv(config.layout.table("verdict"), sep="\t").set_index("corruption")
    assert table.loc[NATURAL[True], "n"] == affected
    assert (table[table["kind"] == "lesion"].drop(NATURAL[True])["n"] == 5 - affected).all()


def test_laws_without_lesions_have_no_extra_rows(config):
    """Nothing is known about lesions in a law without them."""
    regional = config.with_fields("cohort", law="regional")
    assert natural_lesions(regional) == {}


def test_no_held_out_scans(config, monkeypatch):
    """Without validation and test scans the command says what to do."""
    monkeypatch.setattr(module, "learning_pairs", lambda _: (None, None, dataset(range(20)), dataset([])))
    monkeypatch.setattr(module, "load_split", lambda *_: dataset([]))
    with pytest.raises(DataError, match="give split"):
        bench_verdict(config)


def test_percentages_have_wilson_intervals():
    """Two of ten refused: 20 % (5.7 to 51.0)."""
    rows = [{"corruption": "x", "kind": "gross", "refused": i < 2, "flagged": True, "located": None} for i in range(10)]
    row = summary(pd.DataFrame(rows)).round(1).iloc[0]
    assert (row["refused"], row["refused_low"], row["refused_high"]) == (20.0, 5.7, 51.0)
    assert row["flagged"] == 100
    assert pd.isna(row["located"])


def test_command_needs_a_preprocessed_study(tmp_path, monkeypatch):
    """The command names the missing step."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["bench", "verdict"])
    assert result.exit_code == 3
    assert "preprocess is not done" in result.output
