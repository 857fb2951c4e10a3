"""Reference tables as Markdown, from the code itself: commands, configuration, flow options, presets, exit codes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import click
import yaml
from griffe import Docstring, DocstringSectionKind
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from dualflow import errors
from dualflow.baselines import BASELINES
from dualflow.cli import main
from dualflow.cli.group import EXIT_CODES
from dualflow.config import Config
from dualflow.evaluation.measures import Measure
from dualflow.evaluation.metrics import METRICS
from dualflow.evaluation.study_metrics import STUDY_METRICS
from dualflow.flows.presets import PRESETS
from dualflow.flows.spec import FlowSpec
from dualflow.modalities import MODALITIES, REFERENCES
from dualflow.report.conversion_page import FIGURES
from dualflow.report.study_text import TABLES


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def code(value: Any) -> str:
    """A value as inline code, written as YAML."""
    text = yaml.safe_dump(plain(value), default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")
    return f"`{text}`"


def plain(value: Any) -> Any:
    """A value as YAML types: tuples become lists, paths become strings."""
    if isinstance(value, tuple | list):
        return [plain(entry) for entry in value]
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def one_line(text: str | None) -> str:
    """Text without line breaks."""
    return " ".join((text or "").split())


def type_name(annotation: Any) -> str:
    """A type as a reader writes it: `int`, `'a' or 'b'`, `list of str`."""
    return f"`{_type_text(annotation)}`"


def _type_text(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_text(inner[0])
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (Union, UnionType):
        return " or ".join(map(_type_text, inner))
    if origin is tuple:
        count = "" if inner[-1] is Ellipsis else f"{len(inner)} "
        return f"list of {count}{_type_text(inner[0])}"
    if origin is dict:
        return f"mapping of {_type_text(inner[1])}"
    names = {NoneType: "null", Path: "path", bool: "true or false"}
    return names.get(annotation) or str(annotation.__name__)


# --- commands ----------------------------------------------------------------------------------------------------


def commands() -> str:
    """Every command of the click tree, in the sections and the order of its help."""
    # With the command's own settings: click keeps the help option of the first context it sees.
    context = click.Context(main, info_name="dualflow", **main.context_settings)
    parts = [_command(main, context, 2)]
    for heading, section in main.sections.items():
        parts.append(f"## {heading}")
        for name, command in section.items():
            inner = click.Context(command, info_name=name, parent=context)
            parts.append(_command(command, inner, 3))
            if isinstance(command, click.Group):
                subcommands = [click.Context(sub, info_name=key, parent=inner) for key, sub in command.commands.items()]
                parts += [_command(sub.command, sub, 4) for sub in subcommands]
    return "\n\n".join(parts)


def _command(command: click.Command, context: click.Context, depth: int) -> str:
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [f"{'#' * depth} {context.command_path}", f"```\n{context.command_path} {usage}\n```", *_help(command)]
    options = [option for option in command.params if isinstance(option, click.Option) and not option.hidden]
    if options:
        parts.append(table(["option", "default", "description"], [_option(option, context) for option in options]))
    return "\n\n".join(parts)


def _help(command: click.Command) -> Iterator[str]:
    """Paragraphs of a command's help; those that click is told not to wrap keep their lines."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(command.help or "")):
        if paragraph.startswith("\b"):
            yield "```\n" + paragraph.removeprefix("\b").strip("\n") + "\n```"
        elif paragraph:
            yield one_line(paragraph)


def _option(option: click.Option, context: click.Context) -> list[str]:
    names = " ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    metavar = "" if option.is_flag else f" `{option.make_metavar(context)}`"
    repeat = " Repeatable." if option.multiple and "epeat" not in (option.help or "") else ""
    variable = f" Environment variable: `{option.envvar}`." if option.envvar else ""
    required = "required" if option.required else ""
    missing = option.default is None or option.multiple or "UNSET" in repr(option.default)
    default = required if missing or option.is_flag else f"`{option.default}`"
    return [names + metavar, default, (one_line(option.help) + repeat + variable).replace("<", "&lt;")]


# --- configuration -----------------------------------------------------------------------------------------------


def configuration() -> str:
    """Every section and key, with type, default and description."""
    parts = []
    for name, field in Config.model_fields.items():
        section = section_of(field.annotation)
        if section is None:
            continue
        parts.append(f"## {name}{_of_name(field.annotation)}\n\n{one_line(field.description)}")
        parts.append(table(["key", "type", "default", "description"], list(_keys(section))))
    return "\n\n".join(parts)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model of a field: the annotation itself, or the values of a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in getattr(annotation, "__args__", ()) if (found := section_of(inner))), None)


def _of_name(annotation: Any) -> str:
    """What follows the key of a table of sections: the name of an entry."""
    return ".NAME" if get_origin(annotation) in (dict, Mapping) else ""


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[list[str]]:
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        if inner is not None:
            yield from _keys(inner, f"{prefix}{name}{_of_name(field.annotation)}.")
            continue
        default = field.get_default(call_default_factory=True)
        shown = "required" if default is PydanticUndefined else code(default)
        limits = ", ".join(text for entry in field.metadata if (text := _limit(entry)))
        kind = type_name(field.annotation) + (f" ({limits})" if limits else "")
        yield [f"`{prefix}{name}`", kind, shown, one_line(field.description)]


def _limit(entry: Any) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return ", ".join(f"{sign} {getattr(entry, name):g}" for name, sign in signs.items() if hasattr(entry, name))


def flow_options() -> str:
    """Every field of FlowSpec, which `model.options` sets."""
    descriptions = _attributes(FlowSpec)
    hints = get_type_hints(FlowSpec)
    rows = []
    for field in fields(FlowSpec):
        default = "set by the preset" if field.default is MISSING else code(field.default)
        rows.append([f"`{field.name}`", type_name(hints[field.name]), default, descriptions.get(field.name, "")])
    return table(["option", "type", "default", "description"], rows)


def _attributes(cls: type) -> dict[str, str]:
    """Descriptions in a docstring's section `Attributes`."""
    sections = Docstring(inspect.getdoc(cls) or "").parse("google", warnings=False)
    attributes = (section.value for section in sections if section.kind is DocstringSectionKind.attributes)
    return {entry.name: one_line(entry.description) for value in attributes for entry in value}


# --- tables of the code ------------------------------------------------------------------------------------------


def presets() -> str:
    """The rows of PRESETS."""
    rows = [[f"[`{name}`]({name}.md)", row.paper, one_line(row.idea)] for name, row in PRESETS.items()]
    return table(["preset", "paper", "how the source enters"], rows)


def preset_pieces() -> str:
    """Which pieces of each preset see the source, and what its objective adds to the likelihood."""
    rows = []
    for name, row in PRESETS.items():
        spec = row.spec
        sees = {
            "actnorm": spec.actnorm == "conditional",
            "mixing": spec.mixing != "lu",
            "injector": spec.injector,
            "coupling": spec.context != "none",
            "attention": spec.attention != "none" and spec.context != "none",
            "prior": spec.prior == "relation",
            "mean": spec.mean != "none",
        }
        weights = {
            "L1 of a decode": spec.decode_l1,
            "L1 of filled voxels": spec.interpolation_l1,
            "discriminators": spec.discriminator_weight,
        }
        if spec.has_source_density:
            weights = {"NLL of the source": spec.source_nll_weight, **weights}
        terms = [f"{weight:g} {term}" for term, weight in weights.items() if weight]
        marks = ["yes" if value else "" for value in sees.values()]
        rows.append([f"`{name}`", f"{spec.source}, {spec.context}", *marks, "; ".join(terms)])
    pieces = ["actnorm", "mixing", "injector", "coupling", "attention", "prior", "mean"]
    return table(["preset", "source, context", *pieces, "beside the likelihood"], rows)


def preset(name: str) -> str:
    """The YAML that chooses a preset, and every piece of it that differs from FlowSpec's defaults."""
    spec, defaults = PRESETS[name].spec, {field.name: field.default for field in fields(FlowSpec)}
    pieces = {key: plain(value) for key, value in spec.to_dict().items() if value != defaults[key]}
    lines = "\n".join(f"    {key}: {code(value).strip('`')}" for key, value in pieces.items())
    note = "the preset's own values; write only those that you change"
    return f"```yaml\nmodel:\n  preset: {name}\n  options:  # {note}\n{lines}\n```"


def modalities() -> str:
    """The rows of MODALITIES."""
    rows = [
        [
            f"`{name}`",
            f"`{row.datatype}/*{f'_trc-{row.tracer}' if row.tracer else ''}_{row.suffix}`",
            "; ".join(dict.fromkeys((row.normaliser, row.as_target().normaliser))),
            row.unit,
            f"`{row.reference}`" if row.normaliser == "suvr" else "",
            f"{row.window[0]:g} to {row.window[1]:g}",
        ]
        for name, row in MODALITIES.items()
    ]
    return table(["name", "BIDS file", "normaliser; as a target", "unit", "reference region", "window"], rows)


def references() -> str:
    """The names in REFERENCES."""
    return ", ".join(f"`{name}`" for name in REFERENCES)


def metrics() -> str:
    """The rows of METRICS."""
    return _measures(METRICS)


def study_metrics() -> str:
    """The rows of STUDY_METRICS."""
    return _measures(STUDY_METRICS)


def _measures(rows: Mapping[str, Measure[Any]]) -> str:
    units = {"target": "unit of the target", "": "none"}
    cells = [
        [
            f"`{name}`",
            row.label,
            one_line(row.definition),
            row.kind,
            row.over,
            units.get(row.unit, row.unit),
            row.values,
            f"closer to {row.ideal:g}" if row.better == "ideal" else row.better,
        ]
        for name, row in rows.items()
    ]
    return table(["name", "label", "what it is", "scores the", "over", "unit", "range", "better"], cells)


def baselines() -> str:
    """The rows of BASELINES."""
    rows = [[f"`{name}`", row.text] for name, row in BASELINES.items()]
    return table(["name", "what it is"], rows)


def conversion_figures() -> str:
    """The rows of FIGURES."""
    rows = [
        [f"`{name}`", row.metric.label, row.metric.unit, row.meaning] for name, row in FIGURES.items() if row.meaning
    ]
    return table(["column", "on the page", "unit", "meaning"], rows)


def result_tables() -> str:
    """The rows of TABLES."""
    return table(["table", "content"], [[f"`{name}`", text] for name, text in TABLES.items()])


def exit_codes() -> str:
    """Every exit code, its meaning, and the error classes that have it."""
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.DualflowError)]
    rows = []
    for number, meaning in EXIT_CODES.items():
        names = [f"`{kind.__name__}`" for kind in kinds if kind.exit_code == number]
        rows.append([str(number), f"{meaning[0].upper()}{meaning[1:]}.", ", ".join(names)])
    return table(["exit code", "meaning", "error classes"], rows)


GENERATORS: dict[str, Callable[..., str]] = {
    "commands": commands,
    "configuration": configuration,
    "flow-options": flow_options,
    "presets": presets,
    "preset": preset,
    "preset-pieces": preset_pieces,
    "modalities": modalities,
    "references": references,
    "metrics": metrics,
    "study-metrics": study_metrics,
    "baselines": baselines,
    "conversion-figures": conversion_figures,
    "result-tables": result_tables,
    "exit-codes": exit_codes,
}
"""What a page includes by the line `<!-- generate: NAME [ARGUMENT] -->`."""
