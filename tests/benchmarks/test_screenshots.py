"""Pictures of a study's pages, with a stand-in for the browser."""

from contextlib import contextmanager

import pytest
import screenshots
from click.testing import CliRunner

from dualflow.errors import ConfigError, DataError

BROWSER = """#!/bin/sh
for word; do
    case "$word" in --screenshot=*|--print-to-pdf=*) echo "$@" > "${word#*=}" ;; esac
done
"""


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """A browser that writes its arguments in place of a picture."""
    path = tmp_path / "browser"
    path.write_text(BROWSER)
    path.chmod(0o755)
    monkeypatch.setattr(screenshots, "BROWSERS", ("no-such-browser", str(path)))
    return path


def test_every_page_has_its_pictures(stand_in, monkeypatch, tmp_path):
    """Each page is shown with its options, and the models of the study as charts and as a table."""

    @contextmanager
    def models_page(config):
        yield f"http://127.0.0.1/{config.study.name}?mode=TABLE"

    monkeypatch.setattr(screenshots, "models_page", models_page)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results/tiny").mkdir(parents=True)
    (tmp_path / "study.yaml").write_text("study: {name: tiny}\n")
    result = CliRunner().invoke(screenshots.main, ["--config", "study.yaml"])
    assert result.exit_code == 0, result.output
    shown = {path.name: path.read_text() for path in (tmp_path / "results/tiny/screenshots").iterdir()}
    assert set(shown) == {
        "report.png", "report_phone.png", "report_dark.png", "qc.png", "report.pdf", "qc.pdf", "mlflow_charts.png",
        "mlflow_table.png",
    }  # fmt: skip
    assert "--window-size=400,16000" in shown["report_phone.png"]
    assert shown["qc.pdf"].rstrip().endswith(f"file://{tmp_path}/results/tiny/qc.html")
    assert shown["mlflow_table.png"].rstrip().endswith("http://127.0.0.1/tiny?mode=TABLE")


def test_a_missing_picture_is_an_error(stand_in, monkeypatch, tmp_path):
    """A browser that fails says why, and without a browser the error names some."""
    stand_in.write_text("#!/bin/sh\necho no display >&2\n")
    with pytest.raises(DataError, match=r"(?s)wrote no picture.*no display"):
        screenshots.show("file:///page", tmp_path / "page.png")
    monkeypatch.setattr(screenshots, "BROWSERS", ("no-such-browser",))
    with pytest.raises(ConfigError, match="install one of: no-such-browser"):
        screenshots.show("file:///page", tmp_path / "page.png")
