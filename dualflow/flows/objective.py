"""What a flow is trained on: the negative log-likelihood and the named terms that papers put beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import log
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dualflow.flows.dequantization import prepare_target
from dualflow.flows.mean_models import masked_l1
from dualflow.flows.multiscale import Encoding
from dualflow.flows.rng import standard_noise
from dualflow.flows.side_information import (
    SideDiscriminator,
    discriminator_accuracy,
    discriminator_error,
    reversal_strength,
)

if TYPE_CHECKING:
    from dualflow.flows.model import Condition, DualFlow


# Seed of what is drawn in evaluation, so that validations compare.
EVALUATION_SEED = 0


class ForwardPass(NamedTuple):
    """One batch on its way through the flow: what the terms are computed from."""

    flow: DualFlow
    target: Tensor
    side: Tensor
    mask: Tensor | None
    condition: Condition
    log_prob: Tensor
    code: Encoding
    level_log_probs: list[Tensor]


def objective(
    flow: DualFlow, target: Tensor, source: Tensor, side: Tensor, mask: Tensor | None, mean: Tensor | None
) -> dict[str, Tensor]:
    """Return `loss` and its terms, each a mean over the batch.

        loss = sum_t weight_t term_t

    In training, noise is added first: to the target by DEQUANTIZATIONS, to the source where it has a density of its own.
    Terms whose weight is 0 are left out, but for `nll`, which is always told; numbers that are only watched have weight 0.
    """
    spec = flow.spec
    if mean is None and spec.mean != "none":
        mean = flow.mean(source, side)  # of the source as it is, before noise
    if flow.training:
        target = prepare_target(target, mask, spec, training=True)
        if spec.source == "glow":
            source = source + spec.source_noise * standard_noise(tuple(source.shape), source)
    else:
        target = prepare_target(target, mask, spec, torch.Generator().manual_seed(EVALUATION_SEED))
    condition = flow.condition(source, side, mean)
    draft = ForwardPass(flow, target, side, mask, condition, *flow.density(target, condition))
    terms = {name: term(draft) for name, (term, weight) in TERMS.items() if weight(flow) or name == "nll"}
    loss = torch.stack([TERMS[name][1](flow) * value for name, value in terms.items()]).sum()
    return {"loss": loss, **terms, **_watched(draft)}


def selection(flow: DualFlow, terms: Mapping[str, float]) -> float:
    """What the weights of the best validation are chosen by: the part of the loss that is about the target alone.

    The flow ascends its discriminators' error, so a small one is no merit; the source's likelihood is a means.
    """
    return sum(TERMS[name][1](flow) * terms[name] for name in ("nll", "decode_l1") if name in terms)


def nll(draft: ForwardPass) -> Tensor:
    """`-log p(target | source, side)`, nats per voxel."""
    return -draft.log_prob.mean() / draft.target[0].numel()


def source_nll(draft: ForwardPass) -> Tensor:
    """`-log p(source)` of a source that is a flow, nats per voxel: the joint objective of DUAL-GLOW and C-Flow."""
    log_prob = draft.condition.source_log_prob
    assert log_prob is not None
    return -log_prob.mean() / (draft.target[0, 0].numel() * draft.flow.source_channels)


def discriminator(draft: ForwardPass) -> Tensor:
    """Mean squared error of side values guessed from the finer levels' latents; the flow ascends it (DUAL-GLOW)."""
    strength = reversal_strength(draft.flow.progress)
    guesses = _guesses(draft, strength)
    return torch.stack([discriminator_error(guess, draft.side) for guess in guesses]).mean()


def decode_l1(draft: ForwardPass) -> Tensor:
    """`|decode(z) - target|` in the mask and the target's unit, z drawn at a temperature (C-Flow; PU-Flow's L1)."""
    # In evaluation from a fixed seed, so that validations compare.
    generator = None if draft.flow.training else torch.Generator().manual_seed(EVALUATION_SEED)
    drawn = draft.flow.draw(draft.condition, draft.flow.spec.decode_temperature, generator)
    return masked_l1(drawn, draft.target, torch.ones_like(drawn) if draft.mask is None else draft.mask)


def _guesses(draft: ForwardPass, strength: float) -> list[Tensor]:
    hunters = [hunter for hunter in draft.flow.discriminators if isinstance(hunter, SideDiscriminator)]
    return [hunter(z, strength) for hunter, z in zip(hunters, draft.code.latents, strict=False)]


@torch.no_grad()
def _watched(draft: ForwardPass) -> dict[str, Tensor]:
    """Numbers that tell what the latents of each level cost, in bits per dimension, and how the adversaries stand."""
    levels = enumerate(zip(draft.level_log_probs, draft.code.latents, strict=True), 1)
    bits = {
        f"bits_per_dim_level_{level}": -log_prob.mean() / (z[0].numel() * log(2)) for level, (log_prob, z) in levels
    }
    return {**bits, **_adversaries(draft)}


def _adversaries(draft: ForwardPass) -> dict[str, Tensor]:
    if not len(draft.flow.discriminators):
        return {}
    accuracies = [discriminator_accuracy(guess, draft.side) for guess in _guesses(draft, 0.0)]
    watched = {"discriminator_accuracy": torch.stack(accuracies).mean()}
    if draft.flow.training:  # what is evaluated has no progress
        watched["discriminator_strength"] = draft.target.new_tensor(reversal_strength(draft.flow.progress))
    return watched


TERMS: dict[str, tuple[Callable[[ForwardPass], Tensor], Callable[[DualFlow], float]]] = {
    "nll": (nll, lambda flow: flow.spec.nll_weight),
    "source_nll": (source_nll, lambda flow: flow.spec.source_nll_weight * (flow.spec.source == "glow")),
    # Without side information there is nothing to hunt.
    "discriminator": (discriminator, lambda flow: flow.spec.discriminator_weight * bool(len(flow.discriminators))),
    "decode_l1": (decode_l1, lambda flow: flow.spec.decode_l1),
}
