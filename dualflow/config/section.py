"""What all sections of the configuration are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of all sections: frozen, nothing unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def dump_sections(*sections: BaseModel, without: Sequence[str] = ()) -> dict[str, Any]:
    """Return sections as plain JSON values by class name, without the fields that change no result."""
    return {
        type(section).__name__.removesuffix("Config").lower(): section.model_dump(mode="json", exclude=set(without))
        for section in sections
    }
