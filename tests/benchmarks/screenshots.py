"""Pictures of the pages of a finished study, as a reader sees them: report, quality page, and the models in MLflow.

    python tests/benchmarks/screenshots.py --config configs/quickstart.yaml

They are written to the folder `screenshots` of the study, by Chromium or Chrome. Look at them before a release.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from urllib.request import urlopen

import click
from command import with_config

from dualflow.config import Config
from dualflow.errors import ConfigError, DataError
from dualflow.tracking.saved_view import TAG

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = ("--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--virtual-time-budget=60000")
"""The budget is simulated time, of which a busy machine's MLflow takes more than 20 s until its charts are drawn."""
DARK = "--blink-settings=preferredColorScheme=0"
# The tallest picture that Chromium draws without a GPU is some 16,000 pixels: the whole report on a desk.
PAGES = {
    "report": ("report.html", "--window-size=1200,16000"),
    "report_phone": ("report.html", "--window-size=400,16000"),
    "report_dark": ("report.html", "--window-size=1200,3000", DARK),
    "qc": ("qc.html", "--window-size=1200,3000"),
}
"""Page of the study and options of the browser, by the name of the picture."""
PRINTED = {"report": "report.html", "qc": "qc.html"}
"""Page of the study, by the name of its PDF."""
SERVER_S = 120.0
"""Seconds that MLflow's server may take to start."""


def find_browser() -> str | None:
    """Return the path of the browser, if there is one."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def browser() -> str:
    """Return the path of the browser.

    Raises:
        ConfigError: there is none.
    """
    path = find_browser()
    if path is None:
        raise ConfigError(f"no browser; install one of: {', '.join(BROWSERS)}")
    return path


def browse(address: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page in the browser without a window, with a profile of its own."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with TemporaryDirectory() as profile:
        command = [browser(), *OPTIONS, *sandbox, *options, f"--user-data-dir={profile}", address]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def show(address: str, output: Path, *options: str) -> None:
    """Write a picture (.png) or a print (.pdf) of a page.

    Raises:
        DataError: the browser wrote none.
    """
    kind = "--screenshot" if output.suffix == ".png" else "--print-to-pdf"
    output.unlink(missing_ok=True)
    finished = browse(address, *options, f"{kind}={output}")
    if not output.is_file():
        raise DataError(f"{output}: the browser wrote no picture; its last lines:\n{finished.stderr[-500:]}")
    print(output, flush=True)


@contextmanager
def models_page(config: Config) -> Iterator[str]:
    """Serve the tracked runs, and yield the link to the models of the study that `dualflow ui` prints."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    values = (f"study.name={config.study.name}", f"tracking.uri={config.tracking.uri}")
    command = [sys.executable, "-m", "dualflow.cli", "ui", "--port", str(port)]
    command += [word for value in values for word in ("--set", value)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    ) as server:
        try:
            assert server.stdout is not None
            link = re.search(r"http\S+runs\S+", server.stdout.readline())
            if link is None:
                raise DataError(f"the tracked experiment has no {TAG}; evaluate its models again")
            limit = monotonic() + SERVER_S
            while not _answers(f"http://127.0.0.1:{port}/health"):
                if server.poll() is not None or monotonic() > limit:
                    raise DataError("MLflow's server did not start")
                sleep(0.5)
            yield link.group()
        finally:
            with suppress(ProcessLookupError):  # it ended by itself
                os.killpg(server.pid, signal.SIGTERM)


def _answers(address: str) -> bool:
    try:
        with urlopen(address, timeout=5):
            return True
    except OSError:
        return False


@click.command(help=__doc__)
@with_config
def main(config: Config) -> None:
    """Write the pictures."""
    study = config.layout.root.resolve()
    folder = study / "screenshots"
    folder.mkdir(exist_ok=True)
    for name, (page, *options) in PAGES.items():
        show((study / page).as_uri(), folder / f"{name}.png", *options)
    for name, page in PRINTED.items():
        show((study / page).as_uri(), folder / f"{name}.pdf")
    with models_page(config) as link:
        show(link, folder / "mlflow_table.png", "--window-size=1900,900")
        show(link.replace("TABLE", "CHART"), folder / "mlflow_charts.png", "--window-size=1900,1600")


if __name__ == "__main__":
    main()
