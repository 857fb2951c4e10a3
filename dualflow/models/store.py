"""Saving and loading of trained models: a folder with `model.safetensors` and `model.json`, the card.

The card is written last and holds the hash of the weights; weights that do not match it are refused. A bundle also has
`bundle.json`, and all its files are verified. None of these formats can execute code.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from pydantic import ValidationError

from dualflow import __version__
from dualflow.baselines import BASELINES
from dualflow.commit import commit_text
from dualflow.digests import sha256
from dualflow.errors import CheckpointError, DualflowError, printable
from dualflow.flows.interface import ConditionalModel
from dualflow.flows.model import DualFlow
from dualflow.models.bundle import is_bundle, verify_bundle
from dualflow.models.card import FLOW, ModelCard
from dualflow.models.element_budget import ElementBudget
from dualflow.models.model_files import CARD, MODEL_FILES, WEIGHTS, check_size, read_limited
from dualflow.models.tensors import Shapes, check_shapes, load_tensors, read_shapes, save_tensors


@dataclass(frozen=True)
class TrainedModel:
    """A trained model with its card.

    Attributes:
        model: a flow or a baseline, in evaluation mode.
        card: its card.
    """

    model: ConditionalModel
    card: ModelCard

    @property
    def flow(self) -> DualFlow | None:
        """The model if it is a flow, else None."""
        return self.model if isinstance(self.model, DualFlow) else None


def save_model(folder: Path, model: torch.nn.Module, card: ModelCard) -> tuple[ModelCard, list[Path]]:
    """Write a model folder; return the card with the hash of the weights, and the files."""
    weights, path = folder / WEIGHTS, folder / CARD
    save_tensors(weights, model.state_dict())
    card = card.model_copy(update={"weights_sha256": sha256(weights)})
    commit_text(path, card.model_dump_json(indent=2) + "\n")
    return card, [weights, path]


def load_card(folder: Path) -> ModelCard:
    """Read a model's card.

    Raises:
        CheckpointError: the card is missing, or not a card of this version.
    """
    path = folder / CARD
    try:
        text = read_limited(path, MODEL_FILES[CARD].limit)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        remedy = "name the folder of a trained model, such as results/STUDY/models/MODEL/seed-0"
        if below := sorted(card.parent for card in folder.glob(f"*/{CARD}")):
            remedy = f"name one of its folders: {', '.join(map(str, below))}"
        raise CheckpointError(f"{folder}: no {CARD} ({reason}); {remedy}") from error
    try:
        return ModelCard.model_validate_json(text, strict=True)
    except ValidationError as error:
        entry = error.errors()[0]
        field = ".".join(map(str, entry["loc"]))
        remedy = "train the model again"
        if (version := _version(text)) not in (None, __version__):
            remedy = f"it is of dualflow {version}, and this is {__version__}: use that version, or {remedy}"
        raise CheckpointError(
            f"{path}: is not a model card of this version ({f'{field}: ' if field else ''}{entry['msg']}); {remedy}"
        ) from None
    except DualflowError as error:
        raise CheckpointError(f"{path}: {error}; train the model again") from error


def _version(text: str) -> str | None:
    """The version of dualflow that a card names; None without one."""
    with suppress(ValueError, AttributeError, RecursionError):
        version = json.loads(text).get("dualflow")
        return printable(version)[:40] if isinstance(version, str) else None
    return None


def load_model(folder: Path, device: torch.device | str = "cpu") -> TrainedModel:
    """Load a trained model onto a device; all files of a bundle are verified first.

    Raises:
        CheckpointError: the folder holds no model, a broken one, or one of another version.
    """
    if is_bundle(folder):
        verify_bundle(folder)
    card = load_card(folder)
    path = _verified_weights(folder, card)
    shapes = read_shapes(path)
    try:
        _require_tensors(card, shapes)
        with ElementBudget(sum(map(prod, shapes.values()))):
            model = build_model(card)
        expected = model.state_dict()
        check_shapes(path, shapes, expected)
        model.load_state_dict(load_tensors(path, expected))
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, DualflowError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(f"{folder}: card and weights do not fit this version ({first}); train again") from error
    return TrainedModel(model.to(device).eval(), card)


def build_model(card: ModelCard) -> ConditionalModel:
    """Build the untrained model that a card describes."""
    features, channels = len(card.side.names), card.source_channels
    if card.kind == FLOW:
        assert card.spec is not None
        return DualFlow(card.spec, shape=card.shape, side_features=features, source_channels=channels)
    return BASELINES[card.kind](card.shape, features, channels, **card.options)


def _require_tensors(card: ModelCard, shapes: Shapes) -> None:
    """Check that the file has a tensor for each step of the flow, because building steps takes time."""
    steps = sum(card.spec.steps) + card.spec.levels * card.spec.transition_steps if card.spec else 0
    if steps > len(shapes):
        raise CheckpointError(f"{CARD} claims {steps} steps, but {WEIGHTS} has {len(shapes)} tensors; train again")


def _verified_weights(folder: Path, card: ModelCard) -> Path:
    """The path of the weights, which have the hash in the card."""
    path = folder / WEIGHTS
    if path.is_file():
        check_size(path, MODEL_FILES[WEIGHTS].limit)
    if not path.is_file() or sha256(path) != card.weights_sha256:
        raise CheckpointError(f"{path}: does not match the hash in {CARD}; copy the folder again, or train again")
    return path
