"""MkDocs hook: generated reference tables, and equations as MathML, so that pages need no scripts from elsewhere."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert
from reference import GENERATORS

GENERATE = re.compile(r"<!-- generate: ([\w-]+)((?: [\w-]+)*) -->")
EQUATION = re.compile(r'<(div|span) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>', re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace `<!-- generate: NAME [ARGUMENT] -->` by what the generator of that name returns."""
    return GENERATE.sub(lambda match: GENERATORS[match[1]](*match[2].split()), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Replace the equations that arithmatex marked by MathML."""
    return EQUATION.sub(_mathml, html)


def _mathml(match: re.Match[str]) -> str:
    display = "block" if match[1] == "div" else "inline"
    mathml = convert(unescape(match[2]).strip(), display=display)
    # A named function and its argument need a space between them.
    return re.sub(r"(<mi>(?:log|exp|tanh|sinh|cosh|arsinh|cos)</mi>)", r'\1<mspace width="0.17em"/>', mathml)
