"""The report step: what the MLflow run of a workflow shows."""

from types import SimpleNamespace

import pytest
import torch

from dualflow.commands.report import _log, _mean_target
from dualflow.config import parse_config
from dualflow.report.report_figure import ReportFigure
from dualflow.report.subject_views import SubjectViews


class FakeRun:
    """Keeps the description and the names of the figures of a run."""

    def __init__(self):
        self.markdown, self.figures = "", []

    def text(self, text, name):
        pass

    def file(self, path):
        pass

    def figure(self, figure, name):
        self.figures.append(name)

    def describe(self, markdown):
        self.markdown = markdown


def drawn(name):
    """A figure without content."""
    return ReportFigure(name, None, "caption", "text")


def test_the_run_of_a_workflow_shows_the_median_person(tmp_path):
    """The picture of the description is that of the median test subject, and its text says so."""
    config = parse_config({"study": {"name": "x", "results": str(tmp_path), "side": ["age"]}})
    subjects = [drawn(f"subject-{role}") for role in ("best", "median", "worst")]
    views = SubjectViews(subjects, {}, "sub-3, the median test subject", subjects[1])
    run, figures = FakeRun(), {"comparison": [drawn("comparison")], "subjects": subjects}
    _log(run, config, SimpleNamespace(tables={}), ["One sentence."], figures, views)
    assert "![sub-3, the median test subject](get-artifact?path=figures/subject-median.png" in run.markdown
    assert "![Scores of all models](get-artifact?path=figures/comparison.png" in run.markdown
    assert "subject-best.png" not in run.markdown
    assert len(run.figures) == 4


def test_the_mean_target_weighs_people_equally():
    """Three visits of one person count as much as the single visit of another; voxels outside the mask do not count."""
    mask = torch.tensor([[True, True, False]])
    items = [{"target": torch.tensor([[value, value, 99.0]]), "mask": mask} for value in (1.0, 1.0, 1.0, 2.0)]
    assert _mean_target(SimpleNamespace(items=items, subjects=["1", "1", "1", "2"])) == pytest.approx(1.5)
