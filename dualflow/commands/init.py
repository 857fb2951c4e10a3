"""`dualflow init`: a commented study configuration for a BIDS dataset."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import yaml

from dualflow.commands.study_config import load_study_config
from dualflow.commit import commit_text
from dualflow.config import StudyConfig
from dualflow.data.dataset_overview import DatasetOverview, describe_dataset, is_pet
from dualflow.data.index import pair_scans
from dualflow.errors import ConfigError, DualflowError
from dualflow.modalities import MODALITIES

GROUP_COLUMNS = re.compile(r"diagnosis|dx|group", re.IGNORECASE)
"""Columns that the written configuration balances over the splits."""
SIDE_COLUMNS = re.compile(rf"age|sex|gender|{GROUP_COLUMNS.pattern}", re.IGNORECASE)
"""Columns that the written configuration gives to the model."""

TEMPLATE = """\
# Study configuration for {bids}, written by `dualflow init`.
# Keys that are left out keep their defaults. The template configs/study.yaml in dualflow's repository lists all keys.

study:
  name: {name}
  bids: {bids_value}
  source: {source}    # every scan needs it; {sources} scans have it
  target: {target}    # {pairs} {have_both}
{sessions}{more_modalities}\
  # Columns of participants.tsv that the model sees; n/a is supported. To test a group by imputation, its column must be
  # here. To predict it from synthetic images, it must not: put it into `labels`.
  side: [{side}]
{more_columns}{choices}\

split:    # subjects are divided, so all scans of a subject are in one split
  validation: 0.15    # models are chosen on these
  test: 0.25    # nothing is chosen on these
{stratify}\

preprocess:
  spacing_mm: 4.0    # voxel size of the model grid
{pet}\
  shards: 2    # parallel preprocessing jobs

train:
  seeds: [0]    # one training per seed
  steps: 600    # optimiser steps of the flow
  device: auto    # a GPU if there is one
{groups}\
"""
GROUP_LINES = """
# Group analyses with the missing {target} imputed: remove the # signs.
# impute:
#   analyses:
#     main: suvr ~ {terms}
"""
JOIN_LINE = "  join_sessions: true    # pairs the only two of a subject; check the time between their sessions\n"
PET_LINES = """\
  reference_region: {region}    # its mean uptake is 1 SUVR
  # pet_window_s: [3000, 4200]    # part of a dynamic series to average, in seconds after injection
"""


def write_study_config(bids: Path, out: Path | None = None, *, force: bool = False) -> str:
    """Write a configuration for the dataset `bids`; return a summary that ends with the next command.

    Args:
        bids: root of a BIDS dataset.
        out: file to write; None writes NAME.yaml to the current folder.
        force: overwrite an existing file.

    Raises:
        ConfigError: the file exists, or no subject has two modalities.
        DataError: `bids` is not a BIDS dataset.
    """
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", bids.resolve().name).strip("-") or "study"
    out = out or Path(f"{name}.yaml")
    if out.exists() and not force:
        raise ConfigError(f"{out} exists; choose another file with --out, or overwrite it with --force")
    overview = describe_dataset(bids)
    commit_text(out, study_yaml(bids, name, overview))
    study = load_study_config(out).study
    pairs = overview.pairs(study.source, study.target)
    notes = "".join(f"  {line}\n" for line in _notes(bids, study, pairs))
    return (
        f"{overview.summary()}\n\n"
        f"wrote {out}: {study.source} to {study.target} ({pairs} {_have_both(study.join_sessions)}), side information: "
        f"{', '.join(study.side) or 'none'}\n{notes}"
        "read and edit the file, then check it and list the steps:\n"
        f"  dualflow doctor --config {out}\n  dualflow run --config {out} --dry-run"
    )


def _have_both(joined: bool) -> str:
    return "subjects have both, in different sessions" if joined else "scans have both"


def _notes(bids: Path, study: StudyConfig, pairs: int) -> Sequence[str]:
    """Lines on pairs that `where` leaves out of `pairs`, and on side columns whose type is a guess.

    There are none if the study has errors, which `dualflow doctor` lists.
    """
    with suppress(DualflowError):
        index = pair_scans(bids, study)
        usable = int((index.pairs["target"] != "").sum())
        left_out = [f"study.where keeps {usable} of the {pairs} pairs"] if study.where and usable < pairs else []
        return [*left_out, *index.guesses.values()]
    return ()


def study_yaml(bids: Path, name: str, overview: DatasetOverview) -> str:
    """The configuration of a dataset as YAML with comments.

    Raises:
        ConfigError: no subject has two modalities.
    """
    source, target = overview.choose_pair()
    extra = [f"{other} ({overview.pairs(source, other)})" for other in overview.scans if other not in (source, target)]
    side = [column for column in overview.columns if SIDE_COLUMNS.fullmatch(column)]
    groups = [column for column in side if GROUP_COLUMNS.fullmatch(column)]
    other_columns = [column for column in overview.columns if column not in side]
    region, joined = MODALITIES[target].reference, not overview.in_one_session(source, target)
    return TEMPLATE.format(
        bids=bids,
        name=_quote(name),
        bids_value=_quote(str(bids)),
        source=source,
        target=target,
        sources=len(overview.scans[source]),
        pairs=overview.pairs(source, target),
        have_both=_have_both(joined),
        sessions=JOIN_LINE if joined else "",
        more_modalities=_comment("scans that have {} and", source, extra),
        side=", ".join(map(_quote, side)),
        stratify=f"  stratify: [{', '.join(map(_quote, groups))}]    # balanced over the splits\n" if groups else "",
        groups=GROUP_LINES.format(target=target, terms=" + ".join(side)) if side and is_pet(target) else "",
        more_columns=_comment("other columns{}", "", other_columns),
        choices=_choices(overview, (source, target)),
        pet=PET_LINES.format(region=region) if is_pet(target) else "",
    )


def _choices(overview: DatasetOverview, modalities: tuple[str, str]) -> str:
    """Lines of `where` and `runs`, where scans have several files of a modality: the most frequent label of each."""
    where, comments, runs = {}, [], ""
    for name in modalities:
        labels = {entity: counts for entity, counts in overview.entities[name].items() if entity != "run"}
        if labels:
            where[name] = {entity: counts.most_common(1)[0][0] for entity, counts in labels.items()}
            comments += [f"{name} {entity}: {_counts(counts)}" for entity, counts in labels.items()]
        if "run" in overview.entities[name]:
            runs = "  runs: last    # of several runs: first, last, or refuse to exclude the scan\n"
    if not where:
        return runs
    return f"  # several files per scan; labels are {'; '.join(comments)}\n  where: {json.dumps(where)}\n{runs}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{label or 'none'} ({count} scans)" for label, count in counts.items())


def _comment(text: str, value: str, items: list[str]) -> str:
    return f"  # {text.format(value)}: {', '.join(items)}\n" if items else ""


def _quote(text: str) -> str:
    """Text as a YAML scalar, in quotes where it needs them: YAML takes `no` and `null` for other types."""
    is_plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_/.-]*", text) and yaml.safe_load(text) == text
    return text if is_plain else json.dumps(text)
