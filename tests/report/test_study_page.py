"""The report is one complete, self-contained, reproducible file."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import html_page
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from dualflow.errors import ConfigError
from dualflow.evaluation.statistics import differences, summarise
from dualflow.imaging.intensity import INSIDE
from dualflow.modalities import MODALITIES
from dualflow.report.figures import (
    metric_comparison,
    model_comparison,
    pit_histograms,
    region_scatter,
    reliability_curve,
    training_curves,
)
from dualflow.report.report_figure import ReportFigure
from dualflow.report.study_page import SECTIONS, ReportData, render
from dualflow.report.style import DPI, PAGE_PIXELS, palette, to_page_png, to_png, write_figure
from dualflow.report.subject_figure import limits, subject_figure
from dualflow.report.tables import difference_table, metric_table, plain_table

ROW = MODALITIES["FDG"]


class Page(HTMLParser):
    """Collects tags, ids, links and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.opened: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.opened.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name in {"href", "src", "srcset", "action", "data"}]

    def handle_data(self, data):
        self.words += data


@pytest.fixture(scope="module")
def scores() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        {"model": model, "seed": 0, "scan": f"sub-{i}", "mae": error + 0.001 * rng.normal(), "ssim": 1 - error}
        | ({"region_coverage_80": 0.8} if model == "flow" else {})
        for model, error in (("flow", 0.05), ("unet", 0.04))
        for i in range(8)
    ]
    return pd.DataFrame(rows)


def report(scores: pd.DataFrame) -> ReportData:
    """A small report with one table and one figure in each of two sections."""
    summary = summarise(scores, bootstrap=200)
    return ReportData(
        title="study <one>",
        facts={"Subjects": 12},
        summary=["The flow is worse."],
        excluded=pd.DataFrame({"scan": ["sub-9"], "step": ["header"], "reason": ["voxel size 0 mm"]}),
        method=["Trained & scored."],
        limitations=["Not clinical."],
        provenance={"dualflow": "0"},
        tables={"comparison": [metric_table(summary, ROW, ["mae", "ssim"], "All models.")]},
        figures={
            "comparison": [
                ReportFigure(
                    "dots",
                    metric_comparison(summary, ["mae", "ssim", "region_coverage_80"], ROW),
                    "Dots.",
                    "Dot plot: unet 0.04.",
                    metric_comparison(summary, ["mae"], ROW, columns=1),
                )
            ]
        },
        references=["Bland & Altman (1986)."],
        files={"qc.html": "quality <control>", "metrics/summary.tsv": "means"},
        viewers={"Real": "<html><script>let a = '&<';</script></html>"},
        viewer_note="sub-1",
    )


def test_the_page_is_self_contained_and_complete(tmp_path, scores):
    """The page has every section, only internal links, and no address of another host."""
    render(report(scores), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert {"summary", *(SECTIONS.keys() - {"analyses"}), "excluded", "method", "provenance"} <= set(page.ids)
    others = [link for link in page.links if not link.startswith(("#", "data:image/png;base64,"))]
    assert others == ["qc.html", "metrics/summary.tsv"]
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"base64,[^\"]+", "", text))
    assert "script" not in page.opened  # those of the views lie in sandboxed frames
    assert page.opened.count("img") == 1
    for words in (
        "study <one>",
        "The flow is worse.",
        "sub-9",
        "Trained & scored.",
        "Not clinical.",
        "No results for this section",
        "quality <control>",
        "Bland & Altman (1986).",
    ):
        assert words in page.words
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_equal_reports_give_equal_bytes(tmp_path, scores):
    """The bytes depend on the content alone, not on a clock or random ids."""
    for name in ("a.html", "b.html"):
        render(report(scores), tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_figure_has_a_phone_version_and_a_text_of_its_own(tmp_path, scores):
    """Narrow screens get the narrow figure; the alternative text says what is seen, the caption how to read it."""
    render(report(scores), tmp_path / "report.html")
    page = html_page.Page((tmp_path / "report.html").read_text())
    (image,), (source,) = page.all("img"), page.all("source")
    assert image["alt"] == "Dot plot: unet 0.04."
    assert source["media"] == "screen and (max-width: 40rem)"
    assert source["srcset"] != image["src"]
    assert [tag["id"] for tag in page.all("figure") if "id" in tag] == ["figure-dots"]


def test_a_figure_without_a_phone_version_scrolls_in_its_full_size(tmp_path, scores):
    """Shrunk to the width of a phone its text would be illegible."""
    alone = [dataclasses.replace(figure, narrow=None) for figure in report(scores).figures["comparison"]]
    for name, figures in (("both", report(scores).figures["comparison"]), ("alone", alone)):
        render(dataclasses.replace(report(scores), figures={"comparison": figures}), tmp_path / f"{name}.html")
    classes = {
        name: [
            tag.get("class")
            for tag in html_page.Page((tmp_path / f"{name}.html").read_text()).all("figure")
            if "id" in tag
        ]
        for name in ("both", "alone")
    }
    assert classes == {"both": [None], "alone": ["wide"]}
    style = re.search(
        r"@media screen and \(max-width: 40rem\) \{(.*?)\n\}", (tmp_path / "alone.html").read_text(), re.DOTALL
    )
    assert "figure.wide picture { display: block; overflow-x: auto; }" in style[1]


def test_the_policy_allows_the_scripts_of_the_views_alone(tmp_path, scores):
    """Views are sandboxed frames within the page, and each of their scripts is named by its digest."""
    render(report(scores), tmp_path / "report.html")
    page = html_page.Page((tmp_path / "report.html").read_text())
    (frame,) = page.all("iframe")
    assert frame["sandbox"] == "allow-scripts"
    assert frame["srcdoc"] == "<html><script>let a = '&<';</script></html>"
    digest = base64.b64encode(hashlib.sha256(b"let a = '&<';").digest()).decode()
    assert page.policy.endswith(f"; script-src 'sha256-{digest}'")
    render(dataclasses.replace(report(scores), viewers={}), tmp_path / "plain.html")
    assert "script-src" not in (tmp_path / "plain.html").read_text()


def test_nothing_is_wider_than_a_printed_page(tmp_path, scores):
    """In print, pictures are limited to the page, tables wrap and do not scroll, and headings stay with their text."""
    render(report(scores), tmp_path / "report.html")
    style = re.search(r"@media print \{(.*?)\n\}", (tmp_path / "report.html").read_text(), re.DOTALL)[1]
    for rule in ("size: A4", ".scroll { overflow: visible; }", "white-space: normal", "overflow-wrap: anywhere"):
        assert rule in style
    assert "h2, h3, .lead { break-after: avoid" in style
    assert "figure img { display: block; max-width: 100%" in (tmp_path / "report.html").read_text()
    assert "prefers-color-scheme: dark" in (tmp_path / "report.html").read_text()


def test_few_subjects_have_no_intervals(scores):
    """Tables and figures of five subjects show means alone, and the caption says why."""
    few = scores[scores["scan"] < "sub-5"]
    summary, paired = summarise(few, bootstrap=50), differences(few, "unet", bootstrap=50)
    for table in (metric_table(summary, ROW, ["mae"], "c"), difference_table(paired, ROW, ["mae"], "c")):
        assert "[" not in table.frame.to_string()
        assert table.caption == "c Means of fewer than 6 subjects have no interval."
    assert len(metric_comparison(summary, ["mae"], ROW).axes[0].lines) == 2
    assert len(metric_comparison(summarise(scores, bootstrap=50), ["mae"], ROW).axes[0].lines) == 4


def test_a_clear_difference_has_enough_digits():
    """The table prints no end of a better or worse model's interval as 0, and no more digits than that takes."""
    row = {"model": "unet", "reference": "flow", "metric": "mae", "subjects": 9, "p_holm": 0.004, "verdict": "better"}
    rows = pd.DataFrame([
        row | {"difference": -6e-5, "low": -1.5e-4, "high": -2.1e-5},
        row | {"difference": -0.006, "low": -0.015, "high": -0.0021},
        row | {"difference": -6e-5, "low": -1.6e-4, "high": 2.1e-5, "gain_low": 0.0, "gain_high": 0.0,
               "verdict": "undecided"},
    ])  # fmt: skip
    assert list(difference_table(rows, ROW, ["mae"], "c").frame["Difference"]) == [
        "-0.000060 [-0.000150, -0.000021]",
        "-0.0060 [-0.0150, -0.0021]",
        "-0.0001 [-0.0002, +0.0000]",
    ]


def test_the_best_step_is_marked():
    """A vertical line lies at the step whose weights were kept."""
    history = pd.DataFrame({"step": [0, 10, 20], "loss": [3.0, 2.0, 2.5]})
    axes = training_curves({"flow": history}, {"loss": "Loss"}, best={"flow": 10}).axes[0]
    assert list(axes.lines[1].get_xdata()) == [10, 10]
    assert axes.texts[0].get_text() == "best step 10"


def test_what_training_does_not_change_has_no_panel():
    """The error of a fixed mean is a flat line; a single validation is drawn."""
    history = pd.DataFrame({"step": [0, 10], "loss": [3.0, 2.0], "mae": [0.07, 0.07 + 1e-9], "score": [np.nan, 1.0]})
    columns = {"loss": "Loss", "mae": "MAE", "score": "Score"}
    assert [axes.get_title(loc="left") for axes in training_curves({"flow": history}, columns).axes] == [
        "Loss",
        "Score",
    ]


def test_upper_bounds_are_rings(scores):
    """What only a simulation knows does not look like a model."""
    axes = metric_comparison(summarise(scores, bootstrap=50), ["mae"], ROW, bounds=["unet"]).axes[0]
    dots = {line.get_ydata()[0]: line.get_markerfacecolor() for line in axes.lines if line.get_marker() == "o"}
    assert [colour == "none" for _, colour in sorted(dots.items())] == [False, True]


def test_people_share_one_scale_of_errors():
    """The scale holds the errors of the worst person, and every figure uses it."""
    volume, mask = brain()
    scale = limits([np.array([0.1, -0.2]), np.array([0.55])], [np.array([0.1])])
    assert scale == pytest.approx((0.6, 0.1))
    for narrow in (False, True):
        figure = subject_figure(
            volume, volume, 0.1 * volume, mask, ROW, source_row=MODALITIES["T1w"], target=volume + 0.1, scale=scale,
            narrow=narrow,
        )  # fmt: skip
        images = {axes.get_title(loc="left"): axes.images[0] for axes in figure.axes if axes.get_title(loc="left")}
        assert images["Mean - real"].get_clim() == pytest.approx((-0.6, 0.6))


def test_what_a_pet_does_not_show_is_no_error():
    """Beyond the field of view the picture of the difference is blank, as the scores leave these voxels out."""
    volume, mask = brain()
    target = (volume + 0.09).astype(np.float32)
    target[:, :, 5:] = INSIDE
    figure = subject_figure(volume, volume, 0.1 * volume, mask, ROW, source_row=MODALITIES["T1w"], target=target)
    images = {axes.get_title(loc="left"): axes.images[0] for axes in figure.axes if axes.get_title(loc="left")}
    assert images["Mean - real"].get_clim() == pytest.approx((-0.1, 0.1))


def test_an_unknown_section_is_refused(tmp_path, scores):
    """A table of an unknown section is an error and not silently lost."""
    data = ReportData("t", {}, [], pd.DataFrame(), [], [], {}, tables={"metrics": []})
    with pytest.raises(ConfigError, match="'metrics' does not exist"):
        render(data, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_the_best_value_of_each_column_is_bold(scores):
    """Lower MAE and higher SSIM are bold, upper bounds never, and ties as printed both."""
    summary = summarise(scores, bootstrap=200)
    table = metric_table(summary, ROW, ["mae", "ssim", "region_coverage_80"], "c")
    assert list(table.frame.columns) == ["Model", "MAE (SUVR)", "SSIM", "Region coverage, 80 % interval"]
    assert table.best == {(1, 1), (1, 2), (0, 3)}
    without = metric_table(summary, ROW, ["mae"], "c", without=["unet"])
    assert without.best == {(0, 1)}
    tied = summary.assign(mean=0.5)
    assert metric_table(tied, ROW, ["mae"], "c").best == {(0, 1), (1, 1)}
    assert metric_table(summary, ROW, ["region_coverage_80"], "c").frame["Model"].tolist() == ["flow"]


def test_a_score_over_few_people_has_neither_interval_nor_bold(scores):
    """Its table says so, and another table of the same summary does not."""
    summary = summarise(scores.assign(contrast_pit=np.linspace(0, 1, len(scores))), bootstrap=50)
    over_people = metric_table(summary, ROW, ["contrast_pit_distance"], "c")
    assert over_people.caption == "c Scores over fewer than 20 people have no interval."
    assert not over_people.best
    assert "[" not in over_people.frame["Contrast PIT distance"].iloc[0]
    assert metric_table(summary, ROW, ["mae"], "c").caption == "c"


def test_differences_are_printed_with_sign_and_verdict(scores):
    """A model with a larger error has a positive difference and the verdict worse."""
    table = difference_table(differences(scores, "unet", bootstrap=200), ROW, ["mae"], "c").frame.iloc[0]
    assert table["Difference"].startswith("+0.0")
    assert table["Verdict"] == "worse"
    frame = pd.DataFrame({"a": [1.23456, np.nan, -0.0004]})
    assert plain_table(frame, "c").frame["a"].tolist() == ["1.235", "–", "0.000"]  # noqa: RUF001
    few = differences(scores[scores["scan"].isin(scores["scan"].unique()[:5])], "unet")
    assert difference_table(few, ROW, ["mae"], "c").frame["Verdict"].tolist() == ["too few subjects"]
    many = scores[scores["scan"].isin(scores["scan"].unique()[:6])]
    third = many[many["model"] == "unet"].assign(model="third", mae=many["mae"] + 0.1)
    table = difference_table(differences(pd.concat([many, third]), "unet"), ROW, ["mae"], "c")
    assert table.frame["Verdict"].tolist() == ["too few subjects"] * 2
    assert table.caption == "c Too few subjects: after Holm's adjustment over so many models, no p could be below 0.05."
    bits = scores.rename(columns={"mae": "bits_in_mask"})
    for slack, verdict in ((0.0, "worse"), (0.1, "within the slack")):
        paired = differences(bits.assign(bits_slack=slack), "unet", bootstrap=200)
        assert difference_table(paired, ROW, ["bits_in_mask"], "c").frame["Verdict"].tolist() == [verdict]


def brain() -> tuple[np.ndarray, np.ndarray]:
    """A box with a bright spot at its front right top, and its mask."""
    mask = np.zeros((12, 14, 10), bool)
    mask[2:-2, 2:-2, 2:-2] = True
    volume = np.where(mask, 0.5, 0.0).astype(np.float32)
    volume[8:10, 10:12, :] = 1.5
    return volume, mask


def test_panel_shows_left_on_the_left_and_front_on_top():
    """In the axial plane a spot at the subject's front right lies in the upper right of the picture."""
    volume, mask = brain()
    figure = subject_figure(volume, volume, 0.1 * volume, mask, ROW, source_row=MODALITIES["T1w"])
    axial = figure.axes[0]
    picture = np.nan_to_num(axial.images[0].get_array().filled(np.nan))
    assert axial.images[0].origin == "lower"
    row, column = np.unravel_index(np.argmax(picture), picture.shape)
    assert row > picture.shape[0] / 2
    assert column > picture.shape[1] / 2
    assert [text.get_text() for text in axial.texts] == ["L", "R"]


def test_panel_has_one_window_and_no_column_without_data():
    """Target images share the modality's window; error and sample columns need their data."""
    volume, mask = brain()
    common = {"source_row": MODALITIES["T1w"]}
    full = subject_figure(volume, volume, 0.1 * volume, mask, ROW, target=volume + 0.1, sample=volume, **common)
    titles = {axes.get_title(loc="left"): axes.images[0].get_clim() for axes in full.axes if axes.get_title(loc="left")}
    assert list(titles) == ["T1w MR", "Real", "Synthetic mean", "One sample", "Mean - real", "Uncertainty (SD)"]
    assert titles["Real"] == titles["Synthetic mean"] == titles["One sample"] == ROW.window
    assert titles["Mean - real"][0] == -titles["Mean - real"][1]
    short = subject_figure(volume, volume, 0.1 * volume, mask, ROW, **common)
    assert [a.get_title(loc="left") for a in short.axes if a.get_title(loc="left")] == [
        "T1w MR",
        "Synthetic mean",
        "Uncertainty (SD)",
    ]


def test_every_figure_renders_and_leaves_settings_unchanged(tmp_path: Path, scores):
    """Curves and scatters are drawn to PNG without a warning and leave matplotlib's settings unchanged."""
    before = dict(mpl.rcParams)
    rng = np.random.default_rng(0)
    curves = pd.DataFrame({"model": "flow", "kind": ["voxel", "region"] * 2, "level": [0.5, 0.5, 0.8, 0.8]})
    history = pd.DataFrame({"step": [0, 10, 20], "loss": [3.0, 2.0, np.nan]})
    figures = [
        reliability_curve(curves.assign(coverage=[0.5, 0.4, 0.8, 0.7]), colours=palette(["unet", "flow"])),
        training_curves({"flow": history, "unet": history}, {"loss": "Loss", "missing": "Not there"}),
        region_scatter(rng.random((4, 5)), rng.random((4, 5)), ROW, model="flow"),
        pit_histograms(curves.rename(columns={"level": "pit"}).assign(share=0.5)),
    ]
    for number, figure in enumerate(figures):
        write_figure(tmp_path / f"{number}.png", figure)
        assert (tmp_path / f"{number}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert io.BytesIO(to_png(figure)).getvalue() == (tmp_path / f"{number}.png").read_bytes()
        shown = mpl.image.imread(io.BytesIO(to_page_png(figure))).shape[1]
        assert 0.98 * min(PAGE_PIXELS, figure.get_figwidth() * DPI) <= shown <= PAGE_PIXELS
    assert len(figures[1].axes) == 1
    assert dict(mpl.rcParams) == before


def test_the_names_of_many_models_cover_no_panel():
    """They stand below the panels, once each, and make room for themselves."""
    models = [f"model_{number}" for number in range(12)]
    curves = pd.DataFrame({"model": models, "kind": "voxel", "level": 0.5, "coverage": 0.5})
    histories = {model: pd.DataFrame({"step": [1, 2], "nll": [2.0, 1.0]}) for model in models}
    for names, figure in (
        (models[:1], reliability_curve(curves[:1])),
        (models, reliability_curve(curves)),
        (models, training_curves(histories, {"nll": "NLL"}, narrow=True)),
    ):
        assert all(axes.get_legend() is None for axes in figure.axes)
        assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    few, many = (reliability_curve(curves[:count]).get_figheight() for count in (1, 12))
    assert many > few


def test_a_comparison_draws_the_true_law_as_a_limit():
    """It is no model: a ring in place of a dot."""
    rows = [{"model": model, "mae": 0.1, "mae_low": 0.09, "mae_high": 0.11, "people": 9} for model in ("a", "true_law")]
    figure = model_comparison(pd.DataFrame(rows), ["mae"], ROW, "a")
    fills = [line.get_markerfacecolor() for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [fill == "none" for fill in fills] == [False, True]
