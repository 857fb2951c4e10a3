"""Parser of the project's HTML pages."""

from __future__ import annotations

import base64
import hashlib
from html.parser import HTMLParser


class Page(HTMLParser):
    """Collects tags with their attributes and the text, in the order of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script" and not self.scripts:
            self.scripts.append(data)
        elif data.strip():
            self.words += " ".join(data.split()) + "\n"

    def all(self, name: str) -> list[dict[str, str | None]]:
        """Attributes of every tag of one name."""
        return [attributes for tag, attributes in self.tags if tag == name]

    @property
    def cards(self) -> list[dict[str, str | None]]:
        """Attributes of the scans' cards."""
        return self.all("article")

    @property
    def policy(self) -> str | None:
        """Content security policy of the page."""
        return next(tag["content"] for tag in self.all("meta") if tag.get("http-equiv") == "Content-Security-Policy")

    @property
    def script_source(self) -> str:
        """Source of the policy that allows the page's only script."""
        (script,) = self.scripts
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        return f"script-src 'sha256-{digest}'"
