"""Scores of a trained model on the held-out people of its study, and the paired comparison of two models.

People are identified by digests of their preprocessed scans, so scores can leave the study without labels. Equal
digests mean the same people, preprocessed in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints, ValidationError

from dualflow.data.markdown import p_statement
from dualflow.data.tsv import read_typed_table
from dualflow.digests import digest_of
from dualflow.errors import CheckpointError, DataError
from dualflow.evaluation.current_scores import read_scores
from dualflow.evaluation.statistics import differences, subject_means, summarise
from dualflow.layout import Layout, Scan, training_key
from dualflow.manifest import manifest_outputs, read_manifest
from dualflow.models.card import ModelCard

METRIC: Literal["region_crps"] = "region_crps"
"""The score that decides between two models: proper, and in the target's unit."""
IDENTITY = ("target", "mask")
"""Preprocessed volumes whose digests identify a scan and the voxels that it is scored on."""

Digest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class Protocol(BaseModel):
    """How METRIC was computed; values of another protocol are another measure."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    samples: int
    """Samples per scan."""
    temperature: float
    """Temperature of the samples."""
    revision: int | None
    """Revision of the evaluation."""

    def __str__(self) -> str:
        return f"{self.samples} samples at temperature {self.temperature:g}, revision {self.revision}"


class HeldOutScores(BaseModel):
    """Scores of one model by person."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    metric: Literal["region_crps"] = METRIC
    """Name of the score."""
    weights: Digest
    """SHA-256 of the model's weights."""
    protocol: Protocol
    """How it was computed."""
    people: dict[Digest, FiniteFloat] = Field(min_length=1)
    """Score of each held-out person, by the digest of the person's scans."""

    @property
    def digest(self) -> str:
        """Digest of the held-out people and the protocol, whatever the scores."""
        return digest_of([self.protocol.model_dump(), sorted(self.people)])

    @property
    def mean(self) -> float:
        """Mean score over people."""
        return sum(self.people.values()) / len(self.people)

    @classmethod
    def parse(cls, text: str) -> HeldOutScores:
        """Read the JSON that `model_dump_json` writes.

        Raises:
            CheckpointError: it is something else.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            entry = error.errors()[0]
            field = ".".join(map(str, entry["loc"])) or "JSON"
            reason = f"{field}: {entry['msg']}"
            raise CheckpointError(f"held-out scores are not of this version of dualflow ({reason})") from None


class PairedComparison(BaseModel):
    """Paired comparison of a model with another one on the same people; positive gains favour the model."""

    model_config = ConfigDict(frozen=True)

    gain: float
    low: float
    high: float
    p: float
    people: int
    verdict: Literal["better", "worse", "undecided", "equal", "few"]

    @property
    def text(self) -> str:
        """Difference with interval and p-value, for people."""
        if self.verdict == "equal":
            basis = f"equal for each of {self.people} people"
        elif self.verdict == "few":
            basis = f"{self.people} people are too few for an interval"
        else:
            basis = (
                f"paired 95 % bootstrap interval {-self.high:+z.4f} to {-self.low:+z.4f}, Wilcoxon "
                f"{p_statement(self.p)}, {self.people} people"
            )
        return f"the difference of {METRIC} is {-self.gain:+z.4f} ({basis}; less is better)"


def compare_paired(model: HeldOutScores, other: HeldOutScores) -> PairedComparison | None:
    """Compare two models person by person; None if their held-out people or protocols differ."""
    if model.people.keys() != other.people.keys() or model.protocol != other.protocol:
        return None
    rows = [
        {"model": name, "seed": 0, "scan": f"sub-{person}", METRIC: value}
        for name, scores in (("other", other), ("model", model))
        for person, value in sorted(scores.people.items())
    ]
    (row,) = differences(pd.DataFrame(rows), "other").to_dict("records")
    low, high = row["gain_low"], row["gain_high"]
    return PairedComparison(
        gain=row["gain"], low=low, high=high, p=row["p_holm"], people=row["subjects"], verdict=row["verdict"]
    )


def study_of(model: Path, card: ModelCard) -> Layout | None:
    """The study that a model folder belongs to; None if it lies elsewhere, as a bundle does."""
    folder = model.resolve()
    if len(folder.parents) < 3:
        return None
    layout = Layout(folder.parents[2])
    return layout if layout.model(card.name, card.seed) == folder else None


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of one trained model on the held-out people.

    Attributes:
        scans: scores, one row per scan.
        summary: from `summarise`, with the bootstrap of the study.
        protocol: how the scores were computed.
    """

    scans: pd.DataFrame
    summary: pd.DataFrame
    protocol: Protocol

    @classmethod
    def read(cls, layout: Layout, card: ModelCard) -> Evaluation | None:
        """Read the scores; None if these weights were not evaluated, or the table or a test scan has changed since.

        Its side values count.
        """
        path = layout.manifest(f"evaluate/{training_key(card.name, card.seed)}")
        manifest = read_scores(layout, path, card)
        if manifest is None:
            return None
        scans = read_typed_table(manifest_outputs(path, manifest)["scans"].path)
        options, sampling = manifest["config"]["evaluate"], manifest["config"]["convert"]
        protocol = Protocol(
            samples=options["samples"], temperature=sampling["temperature"], revision=manifest.get("revision")
        )
        return cls(scans, summarise(scans, bootstrap=options["bootstrap"], seed=options["seed"]), protocol)


def held_out_scores(layout: Layout, card: ModelCard) -> HeldOutScores | None:
    """METRIC of every held-out person; None if the model was not evaluated, or has no distribution of region means.

    Raises:
        DataError: a held-out scan cannot be identified.
    """
    evaluation = Evaluation.read(layout, card)
    if evaluation is None or METRIC not in evaluation.scans or evaluation.scans[METRIC].isna().any():
        return None
    table = evaluation.scans
    means = subject_means(table, [METRIC])
    scans = table["scan"].drop_duplicates().map(Scan.parse)
    people = {
        subject: _person_digest(layout, [scan for scan in scans if scan.subject == subject])
        for subject in means["subject"]
    }
    scores = {people[row["subject"]]: float(row[METRIC]) for row in means.to_dict("records")}
    return HeldOutScores(weights=card.weights_sha256, protocol=evaluation.protocol, people=scores)


def _person_digest(layout: Layout, scans: Iterable[Scan]) -> str:
    digests = []
    for scan in scans:
        manifest = read_manifest(layout.scan_manifest(scan), verify=False) or {"outputs": {}}
        outputs = manifest_outputs(layout.scan_manifest(scan), manifest)
        if not outputs.keys() >= set(IDENTITY):
            raise DataError(f"{layout.scan_manifest(scan)}: does not identify a preprocessed pair; run the study again")
        digests.append([outputs[name].sha256 for name in IDENTITY])
    return digest_of(sorted(digests))
