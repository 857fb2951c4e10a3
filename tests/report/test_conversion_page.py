"""The conversion page is one complete file with the worst scans first, for any table."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from html_page import Page
from PIL import Image

import dualflow.report.conversion_page as conversion_page
from dualflow.errors import DataError
from dualflow.report.conversion_page import write_conversion_page

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&"


def conversion(*verdicts: str, **columns: list[object]) -> pd.DataFrame:
    """A table with one scan per verdict, and `columns` of further figures."""
    count = len(verdicts)
    scans = [f"sub-{index:02d}" for index in range(count)]
    reasons = ["" if verdict == "ok" else f"{verdict} for a reason" for verdict in verdicts]
    values = {"scan": scans, "verdict": verdicts, "reason": reasons, "seconds": np.arange(count) + 0.5}
    return pd.DataFrame(values | columns)


@pytest.fixture
def render(tmp_path):
    """Write a page with a picture of each scan, unless `figures` names others, and parse it."""

    def page(table, figures=None, **options) -> Page:
        if figures is None:
            figures = {}
            for scan in table["scan"]:
                file = tmp_path / f"{scan}" / "figures" / f"{scan}_synth.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (70, 60)).save(file)
                figures[scan] = file
        values = {"title": "study", "model": "dualflow seed 0", "figures": figures} | options
        write_conversion_page(tmp_path / "conversion.html", table, **values)
        return Page((tmp_path / "conversion.html").read_text())

    return page


def scans(page: Page) -> list[str | None]:
    """Keys of the cards in the order of the page."""
    return [card["id"] for card in page.cards]


def test_the_page_is_self_contained(render, tmp_path):
    """Pictures are embedded, the policy names the only script, links are relative, and no temporary file is left."""
    page = render(conversion("ok", "review", "failed", "review", "review"))
    assert page.policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; {page.script_source}"
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.all("img"))
    links = {link["href"] for link in page.all("a")}
    assert links == {"#scans", "#reasons", "conversion.tsv", *(f"sub-{index:02d}/" for index in range(5))}
    assert {link[1:] for link in links if link.startswith("#")} <= {tag.get("id") for _, tag in page.tags}
    assert not {"link", "iframe", "object", "form", "base"} & {tag for tag, _ in page.tags}
    assert len(page.all("script")) == 1
    text = re.sub(r"base64,[^\"]+", "", (tmp_path / "conversion.html").read_text())
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", text)
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("model", ["0b3f", "91ac"])
def test_cards_name_their_model_where_there_are_several(render, model):
    """With one model the heading is enough."""
    text = render(conversion("ok", "ok", model=["0b3f", model])).words
    assert (model in text) == (model != "0b3f")


def test_the_worst_scans_come_first(render):
    """Failed and refused scans come first, then the others by their relative distance beyond a threshold."""
    table = conversion(
        "ok", "review", "review", "refused", "failed", "review", "ok",
        lesion=[2.0, 6.0, 7.0, np.nan, np.nan, 4.0, 3.0],
        lesion_threshold=[5.0] * 7,
        typicality=[0.1, 0.1, 0.1, 9.0, np.nan, 0.3, 0.1],
        typicality_threshold=[0.1] * 7,
    )  # fmt: skip
    assert scans(render(table)) == [f"sub-{index:02d}" for index in (4, 3, 5, 2, 1, 0, 6)]
    assert scans(render(table.astype(str).replace("nan", "n/a"))) == scans(render(table))


def test_the_summary_counts_verdicts(render):
    """The lead has the counts, the model and the date; absent verdicts are not counted."""
    words = render(conversion("ok", "ok", "review", "failed"), date="2026-01-02").words
    assert "4 scans: 1 failed, 1 for review, 2 ok. Model dualflow seed 0. 2026-01-02." in words
    assert "1 scan: 1 ok. Model dualflow seed 0." in render(conversion("ok")).words
    assert "not for clinical use" in words


def test_cards_show_verdict_reasons_and_figures(render):
    """A card has its verdict, one line per reason, units, thresholds and the range of the training."""
    table = conversion(
        "review", "ok", lesion=[6.0, 2.0], lesion_threshold=[5.0, 5.0], brain_ml=[900.0, 1300.0],
        voxel_mm=[1.0, np.nan], sex=["F", None], made_up_score=[3.0, 4.0],
    )  # fmt: skip
    page = render(table.assign(reason=["lesion map 6; brain small", ""]), ranges={"brain_ml": (1100, 1500)})
    assert "sub-00\nreview\nlesion map 6\nbrain small\n" in page.words
    for text in (
        "lesion map\n6.00\nthreshold 5.00\n", "brain volume\n900 mL\ntraining 1100 to 1500 mL\n",
        "voxel edge\n1.00 mm\n", "sex\nF\n", "made up score\n3\n", "computing time\n0.5 s\n",
    ):  # fmt: skip
        assert text in page.words
    assert page.words.count("voxel edge\n1.00 mm\n") == 1
    assert [tag.get("class") for tag in page.all("div")].count("beyond") == 2
    assert [card["class"] for card in page.cards] == ["card flagged", "card"]
    assert "lesion_threshold" not in page.words


def test_pictures_are_described(render):
    """The alternative text says which scan, verdict, images and planes are seen."""
    (image,) = render(conversion("review")).all("img")
    for word in ("sub-00", "review", "source scan", "expected image", "standard deviation", "left on the left"):
        assert word in image["alt"]
    assert (image["width"], image["height"], image["loading"]) == ("70", "60", "lazy")


def test_scans_without_a_picture_take_one_line(render):
    """A scan without a picture has its reason on one line, as one message even with a semicolon, and no description."""
    table = conversion("failed", "refused", typicality=[np.nan, 9.0], typicality_threshold=[np.nan, 3.0])
    page = render(table.assign(reason=["no affine; write the scan again", "unlike the training"]), figures={})
    assert [card["class"] for card in page.cards] == ["card failed line"] * 2
    assert not page.all("img")
    assert "sub-00\nfailed\nno affine; write the scan again\nsub-01\nrefused\n" in page.words
    assert "unlike the training\ntypicality\n9.00\nthreshold 3.00\n" in page.words
    assert "computing time\n1.5 s" not in page.words


def test_missing_pictures_are_named(render, tmp_path):
    """A card names a picture that cannot be read."""
    page = render(conversion("ok"), figures={"sub-00": tmp_path / "sub-00_synth.jpg"})
    assert "The picture sub-00_synth.jpg is missing or cannot be read; convert this scan again." in page.words


def test_cards_can_be_sorted_and_filtered(render):
    """Each known number is a sort order, each verdict with scans a group, and each card holds its numbers."""
    table = conversion(
        "ok", "review", lesion=[2.0, np.nan], lesion_threshold=[5.0, 5.0], sex=["F", "M"], dice=[np.nan] * 2
    )
    page = render(table)
    options = page.all("option")
    assert [option["value"] for option in options if "value" in option] == ["lesion", "seconds"]
    groups = [option["data-group"] for option in options if "data-group" in option]
    assert groups == ["review", "ok"]
    assert [card["data-group"] for card in page.cards] == groups
    assert [json.loads(card["data-values"]) for card in page.cards] == [
        {"seconds": 1.5},
        {"lesion": 2.0, "seconds": 0.5},
    ]
    assert [attributes["id"] for _, attributes in page.tags if "hidden" in attributes] == ["controls"]


def test_reasons_of_several_scans_are_counted(render):
    """Reasons that differ in numbers and file names count as one; rare reasons are not listed."""
    table = conversion("failed", "failed", "failed", "review", "ok")
    page = render(
        table.assign(reason=[*(f"sub-0{i}_T1w.nii: has {i} voxels" for i in range(3)), "lesion map 7", ""]), figures={}
    )
    (body,) = re.findall(r"Scans\nVerdict\nReason\n(.*?)Numbers and names", page.words, re.DOTALL)
    assert body == "3\nfailed\nsub-00_T1w.nii: has 0 voxels\n"
    assert "Verdict\n" not in render(conversion("failed", "failed", "review")).words


def test_many_pictures_are_files_beside_the_page(render, tmp_path, monkeypatch):
    """Beyond a number of pictures, the page refers to their files by relative addresses that the policy allows."""
    monkeypatch.setattr(conversion_page, "MAX_EMBEDDED", 2)
    page = render(conversion("ok", "ok", "ok"))
    assert [image["src"] for image in page.all("img")] == [f"sub-0{i}/figures/sub-0{i}_synth.jpg" for i in range(3)]
    assert "img-src 'self' file: data:; style-src" in page.policy
    assert "The pictures are files beside this page." in page.words
    assert "self-contained" not in page.words
    odd = tmp_path / "a b#?.jpg"
    (tmp_path / "sub-00/figures/sub-00_synth.jpg").rename(odd)
    images = render(conversion("ok", "ok", "ok"), figures=dict.fromkeys(["sub-00", "sub-01", "sub-02"], odd)).all("img")
    assert {image["src"] for image in images} == {"a%20b%23%3F.jpg"}


def test_large_conversions_show_the_worst_scans(render, tmp_path):
    """A page of 3000 scans shows the worst 500 with and 100 without a picture, says so, and stays small."""
    verdicts = ["failed"] * 300 + ["review"] * 100 + ["ok"] * 2600
    table = conversion(*verdicts).assign(scan=[f"sub-{index:04d}" for index in range(3000)])
    picture = tmp_path / "any.jpg"
    Image.new("RGB", (70, 60)).save(picture)
    page = render(table, figures=dict.fromkeys(table["scan"][300:], picture))
    assert scans(page) == [f"sub-{index:04d}" for index in [*range(100), *range(300, 800)]]
    assert "This page shows the worst 600 of 3000 scans.\nconversion.tsv\n" in page.words
    assert "300 failed" in page.words
    assert (tmp_path / "conversion.html").stat().st_size < 1_500_000
    assert "This page shows" not in render(conversion("ok")).words


def test_hostile_text_is_escaped(render, tmp_path):
    """Hostile keys, reasons, cells, columns, titles and models create no tag and no attribute."""
    table = conversion("review", "failed", "failed", "failed").assign(reason=HOSTILE, sex=HOSTILE)
    table.loc[0, "scan"] = HOSTILE
    table[HOSTILE] = 1.0
    picture = tmp_path / "any.jpg"
    Image.new("RGB", (70, 60)).save(picture)
    page = render(table, {HOSTILE: picture}, title=HOSTILE, model=HOSTILE, date=HOSTILE)
    assert len(page.all("script")) == 1
    assert len(page.all("img")) == 1
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert HOSTILE in scans(page)
    assert page.words.count(HOSTILE) >= 8
    assert HOSTILE not in (tmp_path / "conversion.html").read_text()


def test_a_conversion_without_scans_has_a_page(render):
    """An empty table gives a page that says so."""
    page = render(conversion())
    assert "0 scans. Model dualflow seed 0." in page.words
    assert "No scan was converted." in page.words
    assert not page.cards


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.drop(columns="reason"), "has no column 'reason'"),
        (lambda table: table.assign(verdict="good"), "verdict 'good' is unknown, expected failed, refused, review, ok"),
        (lambda table: table.assign(verdict=None), "verdict 'None' is unknown"),
    ],
)
def test_damaged_tables_are_refused(render, change, words):
    """A missing column and an unknown verdict are errors that say what was expected."""
    with pytest.raises(DataError, match=words):
        render(change(conversion("ok")))


def test_equal_tables_give_equal_pages(render, tmp_path):
    """Equal input gives identical bytes."""
    table = conversion("ok", "review", "failed")
    render(table)
    first = (tmp_path / "conversion.html").read_bytes()
    render(table)
    assert (tmp_path / "conversion.html").read_bytes() == first
