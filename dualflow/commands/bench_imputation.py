"""`dualflow bench imputation`: whether statistics on imputed studies are valid, on simulated studies with known truth.

Each study draws people with replacement from the cohort, and for each of them a fresh PET from the true law. Some of
the PET is hidden, a model is trained on the rest, and the holes are filled in several ways. The population of the
studies is therefore the cohort, and the true effects are those of a regression of the expected values of its people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import dualflow
from dualflow.commands.imputation_pool import Pool, draw_pool, people_table
from dualflow.commands.simulated_study import FORMULA, NULL, NULL_TERM, SimulatedStudy
from dualflow.commit import commit_text
from dualflow.config import Config, public_values
from dualflow.data.tsv import read_typed_table, table_text
from dualflow.digests import digest_of, sha256
from dualflow.errors import ConfigError
from dualflow.imputation.formula import Formula
from dualflow.imputation.paired_models import compare_imputations, comparison_markdown
from dualflow.imputation.validity import summarise_regions, summarise_validity
from dualflow.imputation.validity_text import validity_markdown
from dualflow.layout import Layout
from dualflow.manifest import read_manifest, write_manifest
from dualflow.process import keep_freed_memory
from dualflow.progress import track
from dualflow.temporaries import scratch_folder

NAME = "imputation"
"""Name of the table's files."""


def bench_imputation(
    config: Config, *, models: Sequence[str], hidden: Sequence[str], studies: int, people: int, draws: int, seed: int
) -> None:
    """Simulate studies, impute and analyse each, and print and write the tables of their validity.

    Args:
        config: of the study.
        models: models to train in each study; each further one is compared with the first on the same studies.
        hidden: ways of hiding PET, rows of HIDING.
        studies: number of simulated studies.
        people: people of each study.
        draws: draws of each hidden PET.
        seed: of the studies.

    Raises:
        ConfigError: the study is not the embedded cohort, or a model cannot be trained.
    """
    if not config.embedded:
        raise ConfigError(f"study {config.study.name} has no known truth; bench imputation needs the embedded cohort")
    keep_freed_memory()
    cohort = people_table(config)
    members = np.random.default_rng(seed).integers(len(cohort), size=(studies, people))
    plan = {"studies": studies, "people": people, "draws": draws, "seed": seed, "study": public_values(config)}
    files = _StudyFiles(config.layout, {**plan, "program": _program_digest()})
    units = [(number, way) for number in range(studies) for way in hidden]
    tables = {(model, *unit): files.read(model, *unit) for model in models for unit in units}
    if unfinished := [unit for unit in units if any(tables[model, *unit] is None for model in models)]:
        counts = np.bincount(members.reshape(-1), minlength=len(cohort))
        most = max(np.bincount(member).max() for member in members)
        pool = draw_pool(config, cohort, np.maximum(counts, draws + most), seed)
        truth, places = _true_effects(pool), _places(members)
        for number, way in track(unfinished, "bench imputation"):
            study = SimulatedStudy.make(pool, members[number], places[number], way, draws, [seed, number])
            with scratch_folder() as folder:
                for model in models:
                    if tables[model, number, way] is not None:
                        continue
                    table = study.estimates(config, model, folder)
                    table = table.assign(study=number).merge(truth, on=["region", "term"])
                    tables[model, number, way] = table
                    files.write(model, number, way, table)
    results = {model: pd.concat([tables[model, *unit] for unit in units], ignore_index=True) for model in models}
    for model, table in results.items():
        _report(config.layout, model, table)
        print(f"{studies} studies of {people} people, {draws} draws, model {model}, {len(cohort)} people in the cohort")
    for model in models[1:]:
        _report_comparison(config.layout, models[0], model, results)


def _report(layout: Layout, model: str, table: pd.DataFrame) -> None:
    """Print and write the validity of a model's imputations."""
    stem = f"{NAME}_{model}"
    summary, by_region = summarise_validity(table, NULL_TERM), summarise_regions(table, NULL_TERM)
    text = validity_markdown(summary, by_region)
    commit_text(layout.table(stem), table_text(summary))
    commit_text(layout.table(f"{stem}_regions"), table_text(by_region))
    commit_text(layout.page(stem), text + "\n")
    print(text)


def _report_comparison(layout: Layout, first: str, model: str, results: Mapping[str, pd.DataFrame]) -> None:
    """Print and write how the imputations of a model differ from those of the first on the same studies."""
    stem = f"{NAME}_{model}_against_{first}"
    comparison = compare_imputations(results[first], results[model], NULL_TERM)
    text = comparison_markdown(comparison, model, first)
    commit_text(layout.table(stem), table_text(comparison))
    commit_text(layout.page(stem), text + "\n")
    print(f"\n{text}")


@dataclass(frozen=True)
class _StudyFiles:
    """Estimates of finished studies, so that an interrupted benchmark with the same plan goes on with the next."""

    layout: Layout
    plan: dict[str, Any]

    def read(self, model: str, number: int, way: str) -> pd.DataFrame | None:
        """Read the estimates of a study; None if it is not finished."""
        manifest, path = self._paths(model, number, way)
        return None if read_manifest(manifest, config=self.plan) is None else read_typed_table(path)

    def write(self, model: str, number: int, way: str, table: pd.DataFrame) -> None:
        """Write the estimates of a study."""
        manifest, path = self._paths(model, number, way)
        commit_text(path, table_text(table))
        write_manifest(manifest, step="bench imputation", outputs={"estimates": path}, inputs={}, config=self.plan)

    def _paths(self, model: str, number: int, way: str) -> tuple[Path, Path]:
        stem = f"{NAME}_{model}_{way}"
        return self.layout.manifest(f"bench/{stem}/{number:04d}"), self.layout.bench_study(stem, number)


def _program_digest() -> str:
    """Digest of dualflow's own code: numbers of another build are not mixed with this one's."""
    root = Path(dualflow.__file__).parent
    return digest_of({str(path.relative_to(root)): sha256(path) for path in sorted(root.rglob("*.py"))})


def _places(members: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of a person's targets each member of each study has: every target is used once."""
    used, places = np.zeros(members.max() + 1, np.int64), np.zeros_like(members)
    for index, person in np.ndenumerate(members):
        places[index] = used[person]
        used[person] += 1
    return places


def _true_effects(pool: Pool) -> pd.DataFrame:
    without_null = Formula(FORMULA.text.replace(f" + {NULL}", ""), FORMULA.references)
    effects = pool.true_effects(without_null)
    null = pd.DataFrame({"region": effects["region"].unique(), "term": NULL_TERM, "truth": 0.0})
    return pd.concat([effects, null], ignore_index=True)
