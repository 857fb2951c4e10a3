"""The pages of a finished study in a real browser, where one is installed."""

import re
from pathlib import Path

import pytest
import screenshots
from click.testing import CliRunner
from PIL import Image

from dualflow.config import load_config

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.slow,
    pytest.mark.xdist_group("workflow"),
    pytest.mark.skipif(screenshots.find_browser() is None, reason="no browser"),
]
# Scripts run in order, so this one sees the errors of all others.
PROBE = """<script>
const tell = text => parent.postMessage(text, "*")
addEventListener("error", event => tell(`error ${event.message}`))
addEventListener("securitypolicyviolation", event => tell(`blocked ${event.violatedDirective}`))
addEventListener("load", () => tell(`width ${document.documentElement.scrollWidth}`))
</script>"""
# A browser's window is at least 500 pixels wide; a frame may be narrower.
FRAME = """<!doctype html><title>frame</title>
<script>addEventListener("message", event => document.body.append(` [${event.data}]`))</script>
<iframe width="400" height="900" style="border: 0" src="page.html"></iframe>"""


@pytest.fixture
def finished(workspace, monkeypatch):
    """The working folder of the finished study, with the warnings of its servers as in use."""
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    monkeypatch.chdir(workspace)
    return workspace


@pytest.mark.parametrize("name", ["report.html", "qc.html"])
def test_a_page_fits_a_phone(finished, tmp_path, name):
    """At 400 pixels nothing of a page is cut off at the right, and all of its scripts run, without an error."""
    text = (finished / "results/tiny" / name).read_text()
    assert "<head>" in text
    (tmp_path / "page.html").write_text(text.replace("<head>", "<head>" + PROBE, 1))
    (tmp_path / "frame.html").write_text(FRAME)
    shown = screenshots.browse((tmp_path / "frame.html").as_uri(), "--dump-dom").stdout
    assert re.findall(r" \[(.*?)\]", shown.split("</iframe>")[1]) == ["width 400"]


def test_mlflow_draws_the_models(finished):
    """The link that `dualflow ui` prints shows every model and its scores in order; a click shows charts."""
    with screenshots.models_page(load_config(Path("tiny.yaml"))) as link:
        table, charts = (
            screenshots.browse(address, "--window-size=2400,1600", "--dump-dom").stdout
            for address in (link, link.replace("TABLE", "CHART"))
        )
    for model in ("dualflow", "mean_image", "unet"):
        assert f"{model} seed 0" in table
        assert f"{model} seed 0" in charts
    # The page lists its headers in another order than it shows them in.
    headers = re.findall(r'role="columnheader"[^>]*aria-colindex="(\d+)"[^>]*col-id="metrics\.`([^`]+)`"', table)
    columns = [name for _, name in sorted(headers, key=lambda header: int(header[0]))]
    assert columns[:2] == ["test/region_crps_SUVR", "test/mae_SUVR"]
    assert "test/region_crps_SUVR" in charts
    assert "main-svg" in charts, "no chart was drawn"


def test_pictures_show_something(finished):
    """`make screenshots` writes pictures that are not of one colour; pytest keeps them in its temporary folder."""
    result = CliRunner().invoke(screenshots.main, ["--config", "tiny.yaml"])
    assert result.exit_code == 0, result.output
    pictures = sorted((finished / "results/tiny/screenshots").glob("*.png"))
    assert len(pictures) == 6
    for path in pictures:
        with Image.open(path) as picture:
            colours = picture.convert("L").getcolors(256)
        assert len(colours) > 30, path
