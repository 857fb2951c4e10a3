"""Reading a configuration: a YAML file with overrides becomes checked, frozen sections."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from dualflow.config.config import Config
from dualflow.config.section import Section, section_in
from dualflow.config.tracking_uri import public_uri
from dualflow.errors import ConfigError

S = TypeVar("S", bound=Section)
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_OTHER_BASE = re.compile(r"[-+]?(0[0-7_]+|.*:.*)")


class PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader without its surprises.

    A key that is given twice is refused; PyYAML keeps the last one. So are numbers that YAML 1.1 takes for octal or
    sexagesimal ones, such as 010 for 8 and 1:30 for 90.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return a mapping as it is written; a `<<` merge may repeat keys."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        keys = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in keys:
                    problem = f"'{key.value}' is given twice; join its entries under one key"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                keys.add(key.value)
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        """Return a scalar as it is written."""
        node: yaml.ScalarNode = super().compose_scalar_node(anchor)
        if node.tag in _NUMBERS and _OTHER_BASE.fullmatch(node.value):
            value = yaml.SafeLoader.yaml_constructors[node.tag](self, node)
            problem = f"'{node.value}' is {value:g} in YAML; write {value:g}, or '{node.value}' in quotes for text"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return node


_PLAIN = {
    **dict.fromkeys(("model_type", "dict_type"), "expected keys with values, such as {key: value}"),
    **dict.fromkeys(("tuple_type", "list_type"), "expected a list, such as [first, second]"),
}
"""Type of a pydantic error -> its message, where that names types of Python."""


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `section.key=value` overrides and check every key and value.

    Raises:
        ConfigError: the file cannot be read, or a key or value is not accepted.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        # A resolved configuration is JSON, whose escapes YAML reads otherwise.
        raw = json.loads(text) if path.suffix == ".json" else PlainLoader(text).get_single_data()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name an existing YAML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: is nested too deeply, expected sections such as 'study:'; correct it") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number or a date that Python does not have
        raise ConfigError(f"{path}: is not YAML ({' '.join(str(error).split())}); correct that line") from error
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path}: {'is empty' if raw is None else f'holds {raw!r:.40}'}, expected sections such as 'study:'; "
            "see configs/study.yaml"
        )
    return parse_config(_override(raw, overrides), f"{path} with --set" if overrides else str(path))


def parse_config(raw: Mapping[str, Any], name: str = "configuration") -> Config:
    """Check a mapping such as Snakemake's `config`.

    Raises:
        ConfigError: a key or value is not accepted.
    """
    return checked(Config, raw, name)


def checked(section: type[S], raw: Mapping[str, Any], name: str) -> S:
    """Check the values of one section; error messages begin with `name`.

    Raises:
        ConfigError: a key or value is not accepted.
    """
    try:
        values = section.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{name}: " + "; ".join(_explain(entry, section) for entry in error.errors())) from None
    if wrong := [*_booleans_as_numbers(raw, values)]:
        raise ConfigError(f"{name}: {wrong[0]}: expected a number, not yes or no")
    return values


def _booleans_as_numbers(raw: Any, value: Any, key: str = "") -> Iterator[str]:
    """Keys whose `yes` or `no` pydantic took for 1 or 0."""
    if isinstance(raw, bool) and not isinstance(value, bool):
        yield key
    elif isinstance(raw, Mapping):
        for name, inner in raw.items():
            checked_value = value[name] if isinstance(value, Mapping) else getattr(value, name)
            yield from _booleans_as_numbers(inner, checked_value, f"{key}.{name}" if key else str(name))
    elif isinstance(raw, list | tuple):
        for inner, checked_value in zip(raw, value, strict=False):
            yield from _booleans_as_numbers(inner, checked_value, key)


def _override(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"override '{override}' is not of the form section.key=value; add the key or the value")
        *sections, last = key.split(".")
        node = raw
        for section in sections:
            inner = node.get(section)
            if inner is not None and not isinstance(inner, dict):
                raise ConfigError(f"override '{override}': '{section}' is a value, expected a section; check the key")
            # A copy: sections that share an anchor of YAML are one object. None is left out, or left empty.
            node[section] = dict(inner or {})
            node = node[section]
        try:
            node[last] = PlainLoader(value).get_single_data()
        except yaml.constructor.ConstructorError as error:
            raise ConfigError(f"override '{override}': {error.problem}") from None
        except (yaml.YAMLError, ValueError, RecursionError):
            raise ConfigError(f"override '{override}': '{value}' is not a YAML value; quote it") from None
    return raw


def _explain(entry: Any, section: type[Section]) -> str:
    """One readable clause of a pydantic error."""
    key = ".".join(str(part) for part in entry["loc"])
    if entry["type"] != "extra_forbidden":
        text = _PLAIN.get(entry["type"], str(entry["msg"]).removeprefix("Value error, "))
        given = public_uri(entry["input"]) if isinstance(entry["input"], str) else entry["input"]
        value = "" if isinstance(given, dict) else f" = {given!r}"
        return f"{key}{value}: {text}" if key else text
    names = _fields_at(entry["loc"][:-1], section)
    close = get_close_matches(str(entry["loc"][-1]), names, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"choose from: {', '.join(names)}"
    return f"unknown key '{key}'; {hint}"


def _fields_at(location: Sequence[Any], section: type[Section]) -> list[str]:
    """Keys of the section at a location; names in a table of sections, such as `extra_models.NAME`, are skipped."""
    for part in location:
        if part in section.model_fields:
            section = section_in(section.model_fields[part].annotation) or section
    return sorted(section.model_fields)
