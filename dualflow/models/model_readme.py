"""The README of a bundle: a model card for people, in the usual form with YAML front matter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isinf, isnan

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from dualflow.data.markdown import markdown_table
from dualflow.data.side_encoder import Categorical, Continuous
from dualflow.errors import printable
from dualflow.layout import TEMPLATE_SPACE
from dualflow.modalities import modality
from dualflow.models.card import FLOW, ModelCard
from dualflow.models.model_files import MODEL_FILES

TEMPLATE = "model_readme.md"
NO_LICENCE = "not stated; ask the study that trained the model"


@dataclass(frozen=True)
class SplitCount:
    """Size of one split of the study.

    Attributes:
        scans: number of scans.
        people: number of subjects.
    """

    scans: int
    people: int


@dataclass(frozen=True)
class HeldOutScore:
    """One measured score, averaged over the held-out people.

    Attributes:
        label: name with unit, such as `MAE (SUVR)`.
        mean: mean over people.
        low: lower end of the 95 % interval; NaN for too few people or an infinite mean.
        high: upper end of the 95 % interval, as `low`.
        people: number of people.
        digits: printed decimals.
    """

    label: str
    mean: float
    low: float
    high: float
    people: int
    digits: int = 3


@dataclass(frozen=True)
class StudyFacts:
    """What the study of a model adds to its card: numbers of scans, and measured scores; no labels, no paths.

    Attributes:
        splits: sizes of the splits that the model was trained and scored on, by name.
        scores: means on the held-out people; empty if the model was not evaluated.
    """

    splits: Mapping[str, SplitCount]
    scores: Sequence[HeldOutScore] = ()


def model_readme(card: ModelCard, facts: StudyFacts, hashes: Mapping[str, str], licence: str = "") -> str:
    """Return the README of a bundle.

    Args:
        card: card of the model.
        facts: from its study.
        hashes: SHA-256 of the bundle's other files, by name.
        licence: licence of the weights; empty if the study states none.
    """
    environment = Environment(
        loader=PackageLoader("dualflow.models", "."),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = escape
    target = modality(card.study.target)
    return environment.get_template(TEMPLATE).render(
        front_matter=_front_matter(card, licence),
        card=card,
        facts=facts,
        is_flow=card.kind == FLOW,
        sources=" and ".join((card.study.source, *card.study.extra_sources)),
        target=target,
        side=[_side_row(column) for column in card.side.columns],
        scores=_scores(facts.scores),
        people=max((score.people for score in facts.scores), default=0),
        licence=licence or NO_LICENCE,
        template_space=TEMPLATE_SPACE,
        files=markdown_table(
            [["file", "content", "SHA-256"]]
            + [[f"`{name}`", MODEL_FILES[name].content, f"`{digest}`"] for name, digest in hashes.items()]
        ),
    )


def escape(value: object) -> str:
    """Text of a study on one line, with the characters escaped that Markdown or HTML would interpret."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", printable(" ".join(str(value).split())))


def _front_matter(card: ModelCard, licence: str) -> str:
    values = {
        "license": "other",
        "license_name": " ".join((licence or NO_LICENCE).split()),
        "library_name": "dualflow",
        "pipeline_tag": "image-to-image",
        "tags": ["medical", "mri", modality(card.study.target).datatype, "synthesis", "normalizing-flow"],
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000).rstrip()


def _side_row(column: Continuous | Categorical) -> str:
    name = escape(column.name)
    if isinstance(column, Categorical):
        return f"{name}: {', '.join(map(escape, column.levels)) or 'unknown for all training scans'}"
    if column.mean is None:
        return f"{name}: unknown for all training scans"
    low, high = column.mean - 2 * column.sd, column.mean + 2 * column.sd
    return f"{name}: mean {column.mean:.3g}, SD {column.sd:.3g}; about {low:.3g} to {high:.3g} (mean ± 2 SD)"


def _scores(scores: Sequence[HeldOutScore]) -> str:
    rows = [["score", "mean", "95 % interval"]]
    for score in scores:
        mean, low, high = (f"{value:z.{score.digits}f}" for value in (score.mean, score.low, score.high))
        unknown = "not finite" if isinf(score.mean) else "too few people"
        rows.append([score.label, mean, unknown if isnan(score.low) else f"{low} to {high}"])
    return markdown_table(rows)
