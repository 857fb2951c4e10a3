"""FlowObjective: a flow's negative log-likelihood and the terms that papers add to it, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import log
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dualflow.flows.condition import Condition
from dualflow.flows.dequantization import prepare_target
from dualflow.flows.diagnostics import explained_variance, round_trip_error, source_round_trip_error
from dualflow.flows.missing_voxels import fill_missing, random_slabs
from dualflow.flows.model import DualFlow
from dualflow.flows.multiscale import Encoding, level_channels
from dualflow.flows.objective import Batch, Objective, masked_l1
from dualflow.flows.side_information import (
    SideDiscriminator,
    discriminator_accuracy,
    discriminator_error,
    reversal_strength,
    side_values,
)
from dualflow.flows.voxel_features import without_detail


class FlowObjective(Objective):
    """The weighted sum of TERMS for one flow.

        loss = sum_t weight_t term_t

    Noise is added first: to the target and its background as `prepare_target` does, and in training to the source if it
    has a density. Terms of weight 0 are left out, except `nll`. Monitored numbers have no weight.

    Args:
        flow: trained in place.
    """

    def __init__(self, flow: DualFlow) -> None:
        super().__init__()
        self.flow = flow
        self.discriminators = nn.ModuleList(
            SideDiscriminator(channels, flow.side_features)
            for channels in level_channels(flow.target_channels, flow.spec.levels)[:-1]
            if flow.side_features and flow.spec.discriminator_weight
        )
        self.progress = 1.0

    @property
    def uses_all_parameters(self) -> bool:
        """Whether every step trains all of the flow.

        False while the source is frozen, or if a part of a source that is not linked to the flow gets no gradient.
        """
        spec = self.flow.spec
        linked = spec.prior == "relation" or spec.context != "none"
        return spec.source_frozen == 0 and (linked or (spec.source_nll_weight > 0 and not spec.side_in_context))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, every term by its name, and monitored numbers, each a mean over the batch.

        Outside the mask the target is replaced by background noise.
        """
        result = self._forward_pass(batch)
        weights = {name: term.weight(self) for name, term in TERMS.items()}
        terms = {name: term.value(self, result) for name, term in TERMS.items() if weights[name] or name == "nll"}
        loss = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        return {"loss": loss, **terms, **self._monitored(result)}

    def point_estimate(self, source: Tensor, side: Tensor | None = None) -> Tensor:
        """Return the flow's point estimate `[N, C, D, H, W]`."""
        return self.flow.point_estimate(source, side)

    def sample(self, source: Tensor, side: Tensor | None, generator: torch.Generator) -> Tensor:
        """Draw one target per source, `[N, C, D, H, W]`."""
        return self.flow.sample(source, side, generator=generator)[0]

    def set_progress(self, share: float) -> None:
        """Set the share of the training that is done, 0 to 1: it schedules the reversal and a frozen source."""
        self.progress = share

    def selection_score(self, terms: Mapping[str, float]) -> float:
        """Return the weighted terms of the loss that score the target; lower is better.

        The discriminators' error is excluded because the flow ascends it, and the source's likelihood because it is
        auxiliary.
        """
        return sum(TERMS[name].weight(self) * terms[name] for name in TARGET_TERMS if name in terms)

    def diagnostics(self, batch: Batch, *, round_trip: bool) -> dict[str, float]:
        """Return `explained_level_1` .., finest first, and on request the errors of the flow's cycles.

        `round_trip` is in the target's unit; `source_round_trip`, of a Glow source, in the source's.
        """
        shares = explained_variance(self.flow, batch.target, batch.source, batch.side, batch.mask).tolist()
        numbers = {f"explained_level_{level}": share for level, share in enumerate(shares, 1)}
        if round_trip:
            numbers["round_trip"] = round_trip_error(self.flow, batch.target, batch.source, batch.side)
            if self.flow.source.glow is not None:
                images = without_detail(batch.source, self.flow.source_channels)
                numbers["source_round_trip"] = source_round_trip_error(self.flow.source.glow, images)
        return numbers

    def _forward_pass(self, batch: Batch) -> ForwardPass:
        flow, spec = self.flow, self.flow.spec
        side = side_values(batch.side, batch.source, flow.side_features)
        target = prepare_target(batch.target, batch.mask, spec, self.noise_generator(), training=self.training)
        frozen = self.training and self.progress < spec.source_frozen
        condition = flow.condition(
            batch.source, side, batch.mean, batch.spread, train_source=not frozen, noise=self.training
        )
        log_prob, code, level_log_probs = flow.density(target, condition)
        guesses = self._guesses(code.latents)
        return ForwardPass(target, side, batch.mask, condition, log_prob, code, level_log_probs, guesses)

    def _guesses(self, latents: list[Tensor]) -> list[Tensor]:
        strength = reversal_strength(self.progress)
        return [probe(z, strength) for probe, z in zip(self.discriminators, latents, strict=False)]

    @torch.no_grad()
    def _monitored(self, result: ForwardPass) -> dict[str, Tensor]:
        """Bits per dimension of each level, the coarsest with the law of regions, and the discriminators' state."""
        levels = enumerate(zip(result.level_log_probs, result.code.latents, strict=True), 1)
        numbers = {
            f"bits_per_dim_level_{level}": -log_prob.mean() / (z[0].numel() * log(2)) for level, (log_prob, z) in levels
        }
        if result.guesses:
            accuracies = [discriminator_accuracy(guess, result.side) for guess in result.guesses]
            numbers["discriminator_accuracy"] = torch.stack(accuracies).mean()
            if self.training:
                numbers["discriminator_strength"] = result.target.new_tensor(reversal_strength(self.progress))
        return numbers


class ForwardPass(NamedTuple):
    """One batch after its pass through the flow.

    Attributes:
        target: `[N, C, D, H, W]` with its noise.
        side: `[N, S]`.
        mask: `[N, C, D, H, W]`, bool, or None.
        condition: condition of the target's flow.
        log_prob: log p(target | condition), `[N]`.
        code: the latents.
        level_log_probs: the prior's part of each level, `[N]` each.
        guesses: the discriminators' guesses of the side values from the finer levels' latents, `[N, S]` each.
    """

    target: Tensor
    side: Tensor
    mask: Tensor | None
    condition: Condition
    log_prob: Tensor
    code: Encoding
    level_log_probs: list[Tensor]
    guesses: list[Tensor]


def nll(objective: FlowObjective, result: ForwardPass) -> Tensor:
    """Return `-log p(target | source, side)`, nats per voxel."""
    return -result.log_prob.mean() / result.target[0].numel()


def source_nll(objective: FlowObjective, result: ForwardPass) -> Tensor:
    """Return `-log p(source)` of a Glow source, nats per voxel: the joint objective of DUAL-GLOW and C-Flow."""
    log_prob = result.condition.source_log_prob
    assert log_prob is not None
    return -log_prob.mean() / (result.target[0, 0].numel() * objective.flow.source_channels)


def discriminator(objective: FlowObjective, result: ForwardPass) -> Tensor:
    """Return the discriminators' mean squared error; the flow ascends it (DUAL-GLOW, equation 8)."""
    return torch.stack([discriminator_error(guess, result.side) for guess in result.guesses]).mean()


def decode_l1(objective: FlowObjective, result: ForwardPass) -> Tensor:
    """Return `|decode(z) - target|` in the mask, z drawn at a temperature: the L1 term of C-Flow."""
    drawn = objective.flow.draw(result.condition, objective.flow.spec.decode_temperature, objective.noise_generator())
    return masked_l1(drawn, result.target, result.mask)


def interpolation_l1(objective: FlowObjective, result: ForwardPass) -> Tensor:
    """Return the L1 of hidden voxels filled by interpolated latents, in the mask: PU-Flow's supervised term.

    With probability 1/2 all voxels of a scan are hidden, and the term is the L1 of the decode at temperature 0.
    """
    hidden = random_slabs(result.target, objective.noise_generator())
    filled = fill_missing(objective.flow, result.target, ~hidden, result.condition)
    counted = (hidden if result.mask is None else hidden & result.mask).expand_as(filled)
    # Over all hidden voxels of the batch: as a mean over scans, in which thin slabs weigh as much as whole brains, the
    # term filled missing slices worse.
    return ((filled - result.target).abs() * counted).sum() / counted.sum().clamp_min(1)


class Term(NamedTuple):
    """One term of the objective.

    Attributes:
        value: the term, a mean over the batch.
        weight: its weight; 0 leaves it out.
    """

    value: Callable[[FlowObjective, ForwardPass], Tensor]
    weight: Callable[[FlowObjective], float]


TERMS: dict[str, Term] = {
    "nll": Term(nll, lambda objective: objective.flow.spec.nll_weight),
    "source_nll": Term(
        source_nll,
        lambda objective: objective.flow.spec.source_nll_weight * objective.flow.spec.has_source_density,
    ),
    "discriminator": Term(
        discriminator,
        lambda objective: objective.flow.spec.discriminator_weight * bool(len(objective.discriminators)),
    ),
    "decode_l1": Term(decode_l1, lambda objective: objective.flow.spec.decode_l1),
    "interpolation_l1": Term(interpolation_l1, lambda objective: objective.flow.spec.interpolation_l1),
}
TARGET_TERMS = ("nll", "decode_l1", "interpolation_l1")
"""Terms that score the target."""
