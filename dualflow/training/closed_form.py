"""Cache of closed-form fits, shared by the trainings of a study.

The local linear mean of a flow and the baseline of that name are the same regression on the same scans.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from dualflow.data.dataset import PairDataset
from dualflow.digests import digest_of
from dualflow.errors import CheckpointError
from dualflow.flows.closed_form_fits import Model, Solver, fit_closed_form, fit_options
from dualflow.flows.folds import balanced_folds
from dualflow.flows.regression_scans import RegressionScan
from dualflow.models.tensors import read_verified, save_tensors
from dualflow.revisions import REVISIONS

KEPT = 4
"""Fits kept in a cache folder; the oldest are removed."""
_CHOSEN, _SECONDS, _IMAGE, _MODEL = "chosen", "seconds", "image.", "model."


def subject_folds(pairs: PairDataset) -> list[int]:
    """Return a fold for each scan, balanced over the side information; all scans of a subject share it."""
    return balanced_folds(pairs.subjects, torch.stack([item["side"] for item in pairs.items]) if pairs.items else None)


class ClosedFormCache(Solver):
    """`fit_closed_form` with a cache folder.

    Args:
        folder: cache folder; None disables the cache.
        data: digest of the scans and their side values.

    Attributes:
        seconds: time that the last fit took when it was computed.
        elapsed: time that the last call took; shorter for a fit from the cache.
    """

    def __init__(self, folder: Path | None = None, data: str = "") -> None:
        self.folder, self.data, self.seconds, self.elapsed = folder, data, 0.0, 0.0

    def __call__(
        self, scans: Iterable[RegressionScan], model: Model, **options: Any
    ) -> tuple[Model, list[Tensor], dict[str, Any]]:
        """Fit `model` in place, or load the same fit from the cache; concurrent processes wait for the first."""
        begin = perf_counter()
        result = self._load_or_fit(scans, model, options)
        self.elapsed = perf_counter() - begin
        return result

    def _load_or_fit(
        self, scans: Iterable[RegressionScan], model: Model, options: dict[str, Any]
    ) -> tuple[Model, list[Tensor], dict[str, Any]]:
        if self.folder is None:
            return self._fit(scans, model, options)
        sizes = {name: list(value.shape) for name, value in model.state_dict().items()}
        design = type(getattr(model, "design", None)).__name__
        identity = [
            REVISIONS["train"],
            self.data,
            type(model).__name__,
            design,
            sizes,
            fit_options(model, **options),
        ]
        path = self.folder / f"{digest_of(identity)[:16]}.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            cached = self._load(path, model)
            if cached is not None:
                return cached
            fitted, images, chosen = self._fit(scans, model, options)
            tensors = {f"{_MODEL}{name}": value for name, value in fitted.state_dict().items()}
            tensors |= {f"{_IMAGE}{index:06d}": image for index, image in enumerate(images)}
            save_tensors(path, tensors, {_CHOSEN: json.dumps(chosen), _SECONDS: str(self.seconds)})
            for old in sorted(self.folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)[:-KEPT]:
                old.unlink(missing_ok=True)
        return fitted, images, chosen

    def _fit(
        self, scans: Iterable[RegressionScan], model: Model, options: dict[str, Any]
    ) -> tuple[Model, list[Tensor], dict[str, Any]]:
        begin = perf_counter()
        result = fit_closed_form(scans, model, **options)
        self.seconds = perf_counter() - begin
        return result

    def _load(self, path: Path, model: Model) -> tuple[Model, list[Tensor], dict[str, Any]] | None:
        """Load a cached fit into `model`; return None if the file is missing or damaged."""
        if not path.is_file():
            return None
        try:
            tensors, metadata = read_verified(path)
            chosen, seconds = json.loads(metadata[_CHOSEN]), float(metadata[_SECONDS])
            images = [tensors[name] for name in tensors if name.startswith(_IMAGE)]
            model.load_state_dict({n.removeprefix(_MODEL): t for n, t in tensors.items() if n.startswith(_MODEL)})
        except (CheckpointError, ValueError, KeyError, TypeError, RuntimeError) as error:
            print(f"warning: {path}: damaged fit skipped ({error}); computing it again", file=sys.stderr)
            return None
        self.seconds = seconds
        return model, images, chosen
