"""`dualflow bench imputation`: whether statistics on imputed studies are valid, on simulated studies with known truth.

Each study draws people with replacement from the cohort, and for each of them a fresh PET from the true law. Some of
the PET is hidden, a model is trained on the rest, and the holes are filled in several ways. The population of the
studies is therefore the cohort, and the true effects are those of a regression of the expected values of its people.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import dualflow
from dualflow.commands.imputation_pool import Pool, draw_pool, people_table
from dualflow.commands.simulated_study import FORMULA, NULL, NULL_TERM, study_estimates
from dualflow.commit import commit_text, digest_of, sha256
from dualflow.config import Config, public_values
from dualflow.data.tsv import read_typed_table, table_text
from dualflow.errors import ConfigError
from dualflow.imputation.formula import Formula
from dualflow.imputation.validity import summarise_regions, summarise_validity
from dualflow.imputation.validity_text import validity_markdown
from dualflow.manifest import read_manifest, write_manifest
from dualflow.process import keep_freed_memory
from dualflow.progress import track

NAME = "imputation"
"""Name of the table's files."""


def bench_imputation(config: Config, *, studies: int, people: int, draws: int, model: str, seed: int) -> None:
    """Simulate studies, impute and analyse each, and print and write the table of their validity.

    Raises:
        ConfigError: the study is not the embedded cohort, or the model cannot be trained.
    """
    if not config.embedded:
        raise ConfigError(f"study {config.study.name} has no known truth; bench imputation needs the embedded cohort")
    keep_freed_memory()
    rng = np.random.default_rng(seed)
    cohort = people_table(config)
    members = rng.integers(len(cohort), size=(studies, people))
    stem = f"{NAME}_{model}"
    plan = {"studies": studies, "people": people, "draws": draws, "seed": seed, "study": public_values(config)}
    plan["program"] = _program_digest()
    records = [config.layout.manifest(f"bench/{stem}/{number:04d}") for number in range(studies)]
    files = [config.layout.bench_study(stem, number) for number in range(studies)]
    tables = [_finished(*paths, plan) for paths in zip(records, files, strict=True)]
    if any(table is None for table in tables):
        counts = np.bincount(members.reshape(-1), minlength=len(cohort))
        most = max(np.bincount(member).max() for member in members)
        pool = draw_pool(config, cohort, np.maximum(counts, draws + most), seed)
        truth = _true_effects(pool)
        places = _places(members)
        for number, member in enumerate(track(members, "bench imputation")):
            if tables[number] is None:
                table = study_estimates(config, pool, member, places[number], model, draws, [seed, number])
                tables[number] = table = table.assign(study=number).merge(truth, on=["region", "term"])
                _finish(records[number], files[number], plan, table)
    table = pd.concat(tables, ignore_index=True)
    summary, by_region = summarise_validity(table, NULL_TERM), summarise_regions(table, NULL_TERM)
    text = validity_markdown(summary, by_region)
    commit_text(config.layout.table(stem), table_text(summary))
    commit_text(config.layout.table(f"{stem}_regions"), table_text(by_region))
    commit_text(config.layout.page(stem), text + "\n")
    print(text)
    print(f"{studies} studies of {people} people, {draws} draws, model {model}, {len(cohort)} people in the cohort")


def _finished(manifest: Path, path: Path, plan: dict[str, Any]) -> pd.DataFrame | None:
    """Estimates of a study of an earlier, interrupted benchmark with the same plan."""
    return None if read_manifest(manifest, config=plan) is None else read_typed_table(path)


def _program_digest() -> str:
    """Digest of dualflow's own code: numbers of another build are not mixed with this one's."""
    root = Path(dualflow.__file__).parent
    return digest_of({str(path.relative_to(root)): sha256(path) for path in sorted(root.rglob("*.py"))})


def _finish(manifest: Path, path: Path, plan: dict[str, Any], table: pd.DataFrame) -> None:
    """Write the estimates of a study, so that an interrupted benchmark goes on with the next."""
    commit_text(path, table_text(table))
    write_manifest(manifest, step="bench imputation", outputs={"estimates": path}, inputs={}, config=plan)


def _places(members: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of a person's targets each member of each study has: every target is used once."""
    used, places = np.zeros(members.max() + 1, np.int64), np.zeros_like(members)
    for index, person in np.ndenumerate(members):
        places[index] = used[person]
        used[person] += 1
    return places


def _true_effects(pool: Pool) -> pd.DataFrame:
    without_null = Formula(FORMULA.text.replace(f" + {NULL}", ""), FORMULA.references)
    null = pd.DataFrame({"region": pool.regions.names, "term": NULL_TERM, "truth": 0.0})
    return pd.concat([pool.true_effects(without_null), null], ignore_index=True)
