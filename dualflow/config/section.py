"""The base class of all sections of the configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, WrapValidator

from dualflow.errors import ConfigError
from dualflow.layout import STUDY_NAME


def _in_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"'{path}' begins in a home folder that is not known; give the whole path") from error


UserPath = Annotated[Path, AfterValidator(_in_home)]
"""A path in which `~` is the home folder."""
NameOrPath = Annotated[str, AfterValidator(lambda text: str(_in_home(Path(text))) if text.startswith("~") else text)]
"""A name, or a path in which `~` is the home folder."""


def _once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if twice := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"'{twice[0]}' is given twice; name each once")
    return values


ONCE = AfterValidator(_once)
"""Of a list: its values differ."""


def expected(words: str) -> WrapValidator:
    """Of a value: the error of one that is not accepted says that `words` were expected, in place of pydantic's terms.

    Such terms are patterns, and one error for each member of a union.
    """

    def check(value: Any, accept: Callable[[Any], Any]) -> Any:
        try:
            return accept(value)
        except ValidationError:
            raise ValueError(f"expected {words}") from None

    return WrapValidator(check)


def require_folder_name(owner: str, name: str) -> None:
    """Check that a name can be that of a folder.

    Raises:
        ConfigError: it cannot; the error names the `owner`, an option or a command.
    """
    if not STUDY_NAME.fullmatch(name):
        raise ConfigError(f"{owner}: '{name}' cannot name a folder; use letters, digits, _ and - only")


class Section(BaseModel):
    """Base of all sections: frozen, without unknown keys and infinite or NaN numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def section_in(annotation: Any) -> type[Section] | None:
    """The section in a type such as `ImputeConfig`, `ImputeConfig | None` or `dict[str, ModelConfig]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(section_in, get_args(annotation))), None)


def path_fields(section: type[Section]) -> dict[str, Any]:
    """The fields of a section that are paths, nested as pydantic's `exclude` takes them."""
    fields = dict[str, Any]()
    for name, field in section.model_fields.items():
        inner = section_in(field.annotation)
        if inner is None and _holds_path(field.annotation):
            fields[name] = True
        elif inner is not None and (nested := path_fields(inner)):
            fields[name] = nested
    return fields


def _holds_path(annotation: Any) -> bool:
    return annotation is Path or any(map(_holds_path, get_args(annotation)))


def dump_sections(*sections: BaseModel, without: Sequence[str] = ()) -> dict[str, Any]:
    """Return sections as JSON values by section name, without the fields of `without`, which change no result."""
    return {
        type(section).__name__.removesuffix("Config").lower(): section.model_dump(mode="json", exclude=set(without))
        for section in sections
    }
