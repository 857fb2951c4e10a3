"""The documentation names only commands, make targets, configuration keys, code and pages that exist."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from textwrap import dedent

import click
import pytest
import yaml

from dualflow.cli import main
from dualflow.config import load_config, parse_config
from dualflow.flows.presets import PRESETS

ROOT = Path(__file__).parents[2]
PAGES = {
    str(page.relative_to(ROOT)): page.read_text()
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    if page.name != "CHANGELOG.md"
}
SIDE_OPTIONS = {"--age", "--sex"}
"""Side columns in the examples of commands that take them as options."""
each_page = pytest.mark.parametrize("name", sorted(PAGES))


def test_readme_is_short():
    """The README has at most 900 words and shows the first command."""
    assert len(PAGES["README.md"].split()) <= 900
    assert "make run" in PAGES["README.md"]


@each_page
def test_commands_exist(name):
    """Every `dualflow ...` in a code block or in backticks is a command, and its options are the command's."""
    for line in _code_lines(PAGES[name]):
        match = re.search(r"(?:^|-m |\| )dualflow(?:\.cli)? (.*)", line)
        if match is None or not re.match(r"[a-z]", match[1]):
            continue
        first, *rest = shlex.split(match[1].split(" #")[0].split(" | ")[0])
        if first == "|":
            continue
        command = main.get_command(click.Context(main, **main.context_settings), first)
        assert command is not None, f"{line}: there is no command {first}"
        while isinstance(command, click.Group):
            command = command.commands[rest.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
        if command.context_settings.get("ignore_unknown_options"):  # side columns of the model are options
            known |= SIDE_OPTIONS
        if "--" in rest:
            rest = rest[: rest.index("--")]
        assert {word for word in rest if re.match(r"--?[a-z]", word)} <= known, line


@each_page
def test_make_targets_exist(name):
    """Every `make TARGET` is a target."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in _code_lines(PAGES[name]):
        for target in re.findall(r"(?:^|&& )make ([a-z-]+)", line):
            assert target in targets, f"{line}: there is no target {target}"


@each_page
def test_configurations_load(name, tmp_path, monkeypatch):
    """Every YAML block, and every `--set`, has keys and values that a configuration accepts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exclusions.tsv").touch()  # the export of the quality page
    blocks = re.findall(r"^( *)```yaml\n(.*?)^\1```", PAGES[name], re.DOTALL | re.MULTILINE)
    for _, block in blocks:
        if "--8<--" not in block:
            raw = yaml.safe_load(dedent(block))
            parse_config({**raw, "study": {"name": "page", **raw.get("study", {})}})
    file = tmp_path / "page.yaml"
    file.write_text("study: {name: page}")
    for line in _code_lines(PAGES[name]):
        words = shlex.split(line) if " --set " in f" {line}" else []
        overrides = [
            value for flag, value in pairwise(words) if flag == "--set" and not value.endswith(("=PATH", "=VALUE"))
        ]
        if "bent" not in line:  # the page itself adds this choice
            load_config(file, overrides)


@each_page
def test_links_and_files_exist(name):
    """Relative links lead somewhere, and files of the project that the text names exist."""
    folder, text = (ROOT / name).parent, re.sub(r"```.*?```", "", PAGES[name], flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert target.startswith("https://") or (folder / target).exists(), target
    for path in re.findall(r"`((?:dualflow|configs|tests|docker|docs)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path


@each_page
def test_named_code_exists(name):
    """A `Name` in `dualflow/...py` of a table of code is defined in that file."""
    for names, path in re.findall(r"\| ((?:`\w+`(?: and |, )?)+) in `(dualflow/[\w/]+\.py)`", PAGES[name]):
        source = (ROOT / path).read_text()
        for word in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(?:class |def |    def |){word}\b|\"{word}\"", source, re.MULTILINE), (
                f"{word} in {path}"
            )


def test_every_preset_has_a_page():
    """The flow family has one page per preset."""
    pages = {page.stem for page in (ROOT / "docs" / "flows").glob("*.md")} - {"index"}
    assert pages == set(PRESETS)


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"dualflow"}))
def test_pages_of_papers_list_their_deviations(name):
    """The page of a published flow has a list of what differs from the paper."""
    section = PAGES[f"docs/flows/{name}.md"].split("\n## Deviations from the paper\n")[1].split("\n## ")[0]
    assert len(re.findall(r"^- ", section, re.MULTILINE)) >= 4


def _code_lines(text: str) -> list[str]:
    """Lines of the fenced blocks, and the code spans of the rest."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    rest = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", rest)]
    return [line.strip() for block in blocks for line in block.splitlines()] + spans
