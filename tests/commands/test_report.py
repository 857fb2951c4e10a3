"""The report step: its figures as files, its mean target, and what the MLflow run of a workflow shows."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from jinja2 import Template
from matplotlib.figure import Figure

from dualflow.commands.report import _log, _mean_target, _write_figures
from dualflow.config import parse_config
from dualflow.layout import Layout
from dualflow.report.report_figure import FILED, ReportFigure
from dualflow.report.subject_views import SubjectViews


class FakeRun:
    """Keeps the description and the names of the figures of a run."""

    def __init__(self):
        self.markdown, self.pictures, self.files = "", [], []

    def text(self, text, name):
        self.files.append(name)

    def file(self, path):
        self.files.append(path.name)

    def picture(self, png, name):
        self.pictures.append(name)

    def members(self, names):
        assert "dualflow seed 0" in names

    def describe(self, markdown):
        self.markdown = markdown


def drawn(name):
    """A figure without content."""
    return ReportFigure(name, Figure((1, 1)), "caption", "text")


def test_the_run_of_a_workflow_shows_the_median_person(tmp_path):
    """The picture of the description is that of the median test subject, and its text says so."""
    config = parse_config({"study": {"name": "x", "results": str(tmp_path), "side": ["age"]}})
    subjects = [drawn(f"subject-{role}") for role in ("best", "median", "worst")]
    views = SubjectViews(subjects, {}, "sub-3, the median test subject", subjects[1])
    run, figures = FakeRun(), {"comparison": [drawn("comparison")], "subjects": subjects}
    results = SimpleNamespace(tables={"summary": pd.DataFrame({"model": ["flow"]})})
    _log(run, config, results, ["One sentence."], figures, views)
    assert run.files == ["config.yaml", "report.html", "qc.html", "metrics/summary.tsv"]
    assert "![sub-3, the median test subject](get-artifact?path=figures/subject-median.png" in run.markdown
    assert "![Scores of all models](get-artifact?path=figures/comparison.png" in run.markdown
    assert "subject-best.png" not in run.markdown
    assert len(run.pictures) == 4


def test_the_mean_target_weighs_people_equally():
    """Three visits of one person count as much as the single visit of another; voxels outside the mask do not count."""
    mask = torch.tensor([[True, True, False]])
    items = [{"target": torch.tensor([[value, value, 99.0]]), "mask": mask} for value in (1.0, 1.0, 1.0, 2.0)]
    assert _mean_target(SimpleNamespace(items=items, subjects=["1", "1", "1", "2"])) == pytest.approx(1.5)


def test_every_figure_is_a_file(tmp_path):
    """Figures of every study have fixed paths, others a folder, and those of an earlier configuration are removed."""
    layout, names = Layout(tmp_path), ["subject-best", "subject-median", "comparison", "agreement", "regions"]
    figures = [ReportFigure(name, Figure((1, 1)), "", "") for name in [*names, "calibration", "native"]]
    layout.other_figures.mkdir(parents=True)
    (layout.other_figures / "subject-worst.png").write_bytes(b"")
    paths = _write_figures(layout, figures[1], figures)
    written = {path.relative_to(layout.figures).as_posix() for path in layout.figures.rglob("*.png")}
    expected = {f"{name}.png" for name in FILED} | {"others/subject-best.png", "others/native.png"}
    assert written == {path.relative_to(layout.figures).as_posix() for path in paths.values()} == expected


def test_every_figure_has_a_caption_for_snakemake():
    """Each figure of every study has a file, and the caption of the others depends on their name."""
    folder = Path(__file__).parents[2] / "pipelines/captions"
    assert {f"{name}.rst" for name in FILED} <= {path.name for path in folder.iterdir()}
    captions = Template((folder / "others.rst").read_text())
    kinds = (
        "subject-worst", "mean-error", "native", "region-scatter", "side-effects", "training-unet-0", "analysis-a",
        "pit",
    )  # fmt: skip
    texts = [captions.render(snakemake={"wildcards": {"figure": kind}}).strip() for kind in kinds]
    assert len(set(texts)) == len(kinds)
    assert texts[0].startswith("The worst test subject")
    assert "Course of one training" in texts[5]


def test_captions_count_what_the_figures_draw():
    """Dots are scans, of which a subject may have several."""
    folder = Path(__file__).parents[2] / "pipelines/captions"
    assert "A dot is a test scan" in (folder / "regions.rst").read_text()
    assert "of each region of each test scan" in (folder / "agreement.rst").read_text()
