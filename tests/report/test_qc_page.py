"""The quality control page is one complete, self-contained file, for any scans."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from html_page import Page
from PIL import Image

from dualflow.commands.qc import qc
from dualflow.config import parse_config
from dualflow.data.exclusions import COLUMNS, DECISIONS, Decision
from dualflow.data.quarantine import Quarantine, write_quarantine
from dualflow.data.tsv import read_table, table_text
from dualflow.layout import Scan
from dualflow.manifest import read_manifest, write_manifest
from dualflow.modalities import MODALITIES
from dualflow.report.qc_page import render_sheet

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&"


def quality(count: int, flags: dict[int, str] | None = None) -> pd.DataFrame:
    """A quality table as it is read from its file: text cells, None for what is missing."""
    rng = np.random.default_rng(0)
    figures = {
        "brain_ml": 1400 + 100 * rng.normal(size=count),
        "template_mi": rng.random(count),
        "template_dice": 0.9 + 0.1 * rng.random(count),
        "target_mi": rng.random(count),
        "seconds": 20 + rng.random(count),
    }
    table = pd.DataFrame({name: [f"{value:.4f}" for value in values] for name, values in figures.items()}, dtype=object)
    table.insert(0, "scan", [f"sub-{index:02d}" for index in range(count)])
    table.insert(1, "subject", [f"{index:02d}" for index in range(count)])
    return table.assign(flags=[(flags or {}).get(index) for index in range(count)])


@pytest.fixture
def picture(tmp_path):
    """A picture that every scan shares, but for a missing one and one that is no picture."""
    Image.new("RGB", (60, 40)).save(tmp_path / "any.jpg")
    (tmp_path / "sub-03_qc.jpg").write_bytes(b"no picture")
    special = {scan: tmp_path / f"{scan}_qc.jpg" for scan in ("sub-02", "sub-03")}
    return lambda scan: special.get(scan, tmp_path / "any.jpg")


@pytest.fixture
def render(tmp_path, picture):
    """Write a page and parse it."""

    def page(table, quarantine=(), title="study", **options) -> Page:
        render_sheet(tmp_path / "qc.html", title, table, quarantine, picture, **options)
        return Page((tmp_path / "qc.html").read_text())

    return page


def test_the_page_is_self_contained(render, tmp_path):
    """Pictures are embedded, links are internal, the policy names the only script, and no temporary file is left."""
    page = render(quality(5, {1: "a"}), [Quarantine("sub-9", "pairing", "no target")])
    addresses = [
        value for _, attributes in page.tags for name, value in attributes.items() if name in {"src", "href", "srcset"}
    ]
    assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in addresses)
    assert {link[1:] for link in addresses if link.startswith("#")} <= {tag.get("id") for _, tag in page.tags}
    assert not {"link", "iframe", "object", "form", "base"} & {tag for tag, _ in page.tags}
    assert page.policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; {page.script_source}"
    assert len(page.all("script")) == 1
    text = re.sub(r"base64,[^\"]+", "", (tmp_path / "qc.html").read_text())
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", text)
    assert not list(tmp_path.glob(".tmp-*"))


def test_flagged_scans_come_first_with_reasons(render):
    """Cards are sorted by number of flags, then by key; each flag is a separate line."""
    page = render(quality(5, {1: "too small", 4: "too large; too far"}))
    assert [card["id"] for card in page.cards] == ["sub-04", "sub-01", "sub-00", "sub-02", "sub-03"]
    assert [card["class"] for card in page.cards] == ["card flagged"] * 2 + ["card"] * 3
    assert [tag.get("class") for tag in page.all("ul")] == ["flags", "flags"]
    assert "too large\ntoo far\n" in page.words
    assert "5 scans on the model grid, 2 flagged for review, 0 excluded." in page.words
    assert "No scan was excluded." in page.words


def test_excluded_scans_are_listed_at_the_top(render):
    """Step and reason of each excluded scan precede the first card; the lead counts them."""
    rows = [Quarantine("sub-8", "pairing", "two T1w files"), Quarantine("sub-9", "preprocess", "cut short")]
    words = render(quality(2), rows).words
    assert "2 scans on the model grid, 0 flagged for review, 2 excluded." in words
    for text in ("sub-8\npairing\ntwo T1w files", "sub-9\npreprocess\ncut short"):
        assert words.index(text) < words.index("sub-00")


def test_the_page_is_complete_without_the_script(render, tmp_path):
    """All cards are in the page; only the controls need the script, and each has a label."""
    page = render(quality(3))
    hidden = [attributes["id"] for _, attributes in page.tags if "hidden" in attributes]
    assert hidden == ["controls"]
    assert len(page.cards) == 3
    # Without the script there is nothing to decide with.
    assert ".decision, #decisions { display: none; }" in (tmp_path / "qc.html").read_text()
    assert len(page.all("label")) == len(page.all("input")) + len(page.all("select"))


def test_cards_can_be_sorted_by_every_metric(render):
    """Each metric is a sort order, and each card holds its known metrics."""
    table = quality(3)
    table.loc[1, "target_mi"] = None
    page = render(table.assign(note="text", reference_value=None))
    orders = [tag["value"] for tag in page.all("option") if "value" in tag]
    assert orders == ["brain_ml", "template_mi", "template_dice", "target_mi", "seconds"]
    values = [json.loads(card["data-values"]) for card in page.cards]
    assert [set(orders) - set(known) for known in values] == [set(), {"target_mi"}, set()]
    assert values[2]["brain_ml"] == float(table["brain_ml"][2])
    assert f"brain volume\n{float(table['brain_ml'][2]):.0f} mL\n" in page.words
    assert page.words.count("target MI\n–\n") == 1  # noqa: RUF001 - the dash of a value that is not known


def test_each_metric_has_a_strip_of_dots_linked_to_the_cards(render):
    """There is one dot per known value, flagged ones last and on top; a single scan has no strip."""
    table = quality(4, {0: "a"})
    table.loc[1, "seconds"] = None
    page = render(table.assign(template_dice="0.9"))
    dots = page.all("circle")
    assert len(page.all("svg")) == 5
    assert len(dots) == 4 * 5 - 1
    assert all(0 < float(dot["cx"]) < 240 and 0 < float(dot["cy"]) < 36 for dot in dots)
    assert [index for index, dot in enumerate(dots) if dot.get("class") == "flagged"] == [3, 7, 11, 15, 18]
    assert not render(quality(1)).all("svg")


def test_cards_show_the_person_and_the_split(render):
    """Facts of the person come first, and unknown ones are a dash."""
    people = pd.DataFrame({"scan": ["sub-00", "sub-01"], "split": ["train", "test"], "age": [71.5, np.nan]})
    words = render(quality(2), people=people).words
    assert "split\ntrain\nage\n71.5\nbrain volume\n" in words
    assert "split\ntest\nage\n–\nbrain volume\n" in words  # noqa: RUF001


def test_decisions_are_saved_as_the_table_that_the_index_reads(render, tmp_path):
    """Each card has keep, exclude and a reason; the page holds earlier decisions, and its script writes the columns."""
    page = render(quality(2), decisions={"sub-9": Decision("exclude", HOSTILE)})
    radios = [tag for tag in page.all("input") if tag.get("type") == "radio"]
    assert [(tag["name"], tag["value"]) for tag in radios] == [
        (f"decision sub-0{index}", value) for index in range(2) for value in DECISIONS
    ]
    (earlier,) = [tag["data-earlier"] for tag in page.all("div") if tag.get("id") == "decisions"]
    assert json.loads(earlier) == {"sub-9": {"decision": "exclude", "reason": HOSTILE}}
    assert f"const columns = {json.dumps(list(COLUMNS))};" in page.scripts[0]


def test_what_a_browser_keeps_belongs_to_a_list_of_scans_and_its_decisions(render):
    """Decisions of another study of the same name, or from before the table was edited, do not come back."""

    def key(count, decision):
        page = render(quality(count), decisions={"sub-9": Decision(decision, "motion")})
        return next(tag["data-key"] for tag in page.all("div") if tag.get("id") == "decisions")

    assert key(2, "exclude") == key(2, "exclude")
    assert len({key(2, "exclude"), key(2, "keep"), key(3, "exclude")}) == 3


def test_pictures_are_described(render):
    """The alternative text says what is seen, and why the scan is flagged."""
    first, second = render(quality(2, {1: "too small; too far"})).all("img")
    assert first["alt"].startswith("Sagittal, coronal and axial planes of sub-01: the source with the outline")
    assert first["alt"].endswith("Flagged: too small, too far.")
    assert second["alt"].endswith("Not flagged.")


def test_hostile_names_are_escaped(render, tmp_path):
    """Hostile keys, flags, reasons, titles and column names create no tag and no attribute."""
    table = quality(2, {0: HOSTILE}).rename(columns={"brain_ml": HOSTILE})
    table.loc[1, "scan"] = HOSTILE
    page = render(table, [Quarantine(HOSTILE, HOSTILE, HOSTILE)], title=HOSTILE)
    assert len(page.all("script")) == 1
    assert len(page.all("img")) == 2
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.cards[1]["id"] == page.cards[1]["data-scan"] == HOSTILE
    assert HOSTILE in json.loads(page.cards[0]["data-values"])
    assert page.words.count(HOSTILE) >= 6
    assert HOSTILE not in (tmp_path / "qc.html").read_text()


def test_missing_pictures_are_named(render):
    """Cards name a picture that is missing or unreadable; all other cards show theirs."""
    page = render(quality(5))
    assert len(page.all("img")) == 3
    assert all((image["width"], image["height"], image["loading"]) == ("60", "40", "lazy") for image in page.all("img"))
    for scan in ("sub-02", "sub-03"):
        assert f"The picture {scan}_qc.jpg is missing or cannot be read; preprocess this scan again." in page.words


def test_a_study_without_usable_scans_has_a_page(render):
    """Without a usable scan, the page says so and lists the excluded scans."""
    page = render(quality(0), [Quarantine("sub-9", "pairing", "no source")])
    assert "0 scans on the model grid" in page.words
    assert "No scan was preprocessed." in page.words
    assert "no source" in page.words
    assert not page.cards
    assert "1 scan on the model grid" in render(quality(1)).words


def test_the_page_is_little_larger_than_its_pictures(render, tmp_path, picture):
    """Each of hundreds of scans adds its picture and a few kilobytes; equal inputs give identical bytes."""
    table = quality(300, dict.fromkeys(range(0, 300, 7), "target shares 0.09 nats with the source, expected 0.15"))
    render(table)
    first = (tmp_path / "qc.html").read_bytes()
    assert len(first) < 300 * (4 * picture("sub-00").stat().st_size / 3 + 4000)
    render(table)
    assert (tmp_path / "qc.html").read_bytes() == first


@pytest.fixture
def study(tmp_path):
    """A study of two scans on the model grid, one with a brain too small, and one excluded scan."""
    values = {"study": {"name": "x", "results": str(tmp_path), "extra_sources": ["FLAIR"]}}
    layout = parse_config(values).layout
    rows = [(f"sub-{label}", label, None, "t1w", "fdg", "train", "flair") for label in ("00", "01", "9")]
    columns = ["scan", "subject", "session", "source", "target", "split", "source_FLAIR"]
    layout.pairs.parent.mkdir(parents=True)
    layout.pairs.write_text(table_text(pd.DataFrame(rows, columns=columns)))
    write_quarantine(layout.quarantine, [Quarantine("sub-9", "preprocess", "no brain")])
    write_manifest(layout.manifest("preprocess"), step="preprocess", outputs={}, inputs={}, config={})
    fit = {"mutual_information_nats": 0.5, "overlap": 0.99, "displacement_mm": 3.0, "before": None}
    for label, size in (("00", 1400.0), ("01", 700.0)):
        quality = {"brain_ml": size, "brain_mask": {}, "source_to_template": fit, "FLAIR_to_source": fit}
        record = {"quality": quality, "source": {}, "target": None, "extra_sources": {"FLAIR": {}}, "brain_mask": {}}
        path = layout.record(Scan(label), MODALITIES["T1w"])
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(record))
    file = layout.figure(Scan("00"), "qc")
    file.parent.mkdir(parents=True)
    Image.new("RGB", (6, 4)).save(file)
    return values


def test_the_step_writes_table_page_and_manifest(study):
    """The step reads records and pictures, and writes the table, the page and a manifest that verifies."""
    config = parse_config(study)
    qc(config)
    page = Page(config.layout.qc.read_text())
    assert "x: T1w + FLAIR to FDG, quality control" in page.words
    assert [card["id"] for card in page.cards] == ["sub-01", "sub-00"]
    assert "brain volume 700 mL, expected at least 900 mL" in page.words
    assert "sub-9\npreprocess\nno brain" in page.words
    assert "The picture sub-01_qc.jpg is missing" in page.words
    assert list(read_table(config.layout.quality)["scan"]) == ["sub-00", "sub-01"]
    manifest = read_manifest(config.layout.manifest("qc"))
    assert list(manifest["outputs"]) == [".bidsignore", "README", "dataset_description.json", "page", "quality"]


def test_another_threshold_changes_only_the_page(study):
    """A changed review threshold changes the flags and leaves the scans untouched."""
    qc(parse_config(study))
    config = parse_config(study | {"review": {"brain_ml": [600, 1000]}})
    before = {file: file.read_bytes() for file in config.layout.derivatives.rglob("*") if file.is_file()}
    qc(config)
    assert [card["id"] for card in Page(config.layout.qc.read_text()).cards] == ["sub-00", "sub-01"]
    assert read_table(config.layout.quality)["flags"][1] is None
    assert before == {file: file.read_bytes() for file in config.layout.derivatives.rglob("*") if file.is_file()}
