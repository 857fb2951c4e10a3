"""The base class of all sections of the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of all sections: frozen, without unknown keys and infinite or NaN numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def dump_sections(*sections: BaseModel, without: Sequence[str] = ()) -> dict[str, Any]:
    """Return sections as JSON values by section name, without the fields of `without`, which change no result."""
    return {
        type(section).__name__.removesuffix("Config").lower(): section.model_dump(mode="json", exclude=set(without))
        for section in sections
    }
