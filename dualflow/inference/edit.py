"""Edits of a measured target: another condition, another person's anatomy, other statistics of its latents.

A target is encoded to its standardised latents under its own source and side values, and decoded under others
(Lugmayr et al. 2020, SRFlow, "flexible image manipulation"). The latents hold what is this person's own; the condition
supplies the expectation. An edit shows what the model has learnt. It is not a causal statement about a person.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dualflow.errors import ConfigError, ShapeError
from dualflow.flows.dequantization import prepare_target
from dualflow.flows.latent_statistics import SETS, match_moments, standardise
from dualflow.flows.model import DualFlow
from dualflow.flows.rng import EVALUATION_SEED


class Subject(NamedTuple):
    """One or more subjects on the model grid, normalised as preprocessed scans are.

    Attributes:
        target: measured target `[N, C, D, H, W]`, in its unit (SUVR).
        source: `[N, C or 2C, D, H, W]`.
        side: `[N, S]`, NaN where unknown; None if all is.
        mask: brain `[N, C, D, H, W]`, bool. Outside of it the flow gets the background noise of its training, and so
            does the edited image; None keeps the target's background.
    """

    target: Tensor
    source: Tensor
    side: Tensor | None = None
    mask: Tensor | None = None


@torch.no_grad()
def encode_standardised(flow: DualFlow, subject: Subject, generator: torch.Generator | None = None) -> list[Tensor]:
    """Return a subject's standardised latents `[N, C_l, d_l, h_l, w_l]`, finest first.

    The background noise is drawn from `generator`; by default it is the same in every call.

    Raises:
        InputError: an input has the wrong shape, dtype or values.
    """
    generator = generator or torch.Generator().manual_seed(EVALUATION_SEED)
    target = prepare_target(subject.target, subject.mask, flow.spec, generator)
    flow.check_inputs(subject.source, subject.side, target=target)
    condition = flow.condition(subject.source, subject.side)
    return standardise(flow, flow.encoding(target, condition), condition)


@torch.no_grad()
def decode_under(flow: DualFlow, latents: Sequence[Tensor], source: Tensor, side: Tensor | None = None) -> Tensor:
    """Return the target `[N, C, D, H, W]` with these standardised latents under a source and side values.

    Raises:
        InputError: an input has the wrong shape, dtype or values.
    """
    flow.check_inputs(source, side, latents=latents)
    return flow.decode_standardised(latents, flow.condition(source, side))


def edit(
    flow: DualFlow,
    subject: Subject,
    *,
    source: Tensor | None = None,
    side: Tensor | None = None,
    sets: str | None = None,
    reference: Subject | None = None,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return a subject's target under another condition, `[N, C, D, H, W]`; without a change, the target itself.

    With `sets`, every set of latents first gets the moments of a reference: atypical latents, such as those of a
    retouched image, are moved to the distribution that the flow draws from. A target of integers comes back with its
    dequantisation noise.

    Args:
        flow: a trained flow.
        subject: the subject to edit.
        source: new source `[N, C or 2C, D, H, W]`; None keeps the subject's.
        side: new side values `[N, S]`; None keeps the subject's.
        sets: sets of latents to normalise: `global`, `local` (the channels of a voxel) or `spatial` (the voxels of a
            channel); None normalises nothing.
        reference: subject whose latents give the moments; None takes a fresh draw of the flow, as SRFlow does.
        temperature: temperature of the fresh draw.
        generator: source of the fresh draw; by default it is the same in every call.

    Raises:
        ConfigError: `sets` has no row in SETS, or a reference is given without `sets`.
        InputError: an input has the wrong shape, dtype or values.
    """
    if sets is not None and sets not in SETS:
        raise ConfigError(f"unknown sets '{sets}'; choose from: {', '.join(SETS)}")
    if sets is None and reference is not None:
        raise ConfigError(f"a reference was given without sets; choose sets from: {', '.join(SETS)}")
    source = subject.source if source is None else source
    side = subject.side if side is None else side
    latents = encode_standardised(flow, subject)
    if sets is not None:
        moments = _reference_latents(flow, source, side, reference, temperature, generator)
        if len(moments[0]) != len(latents[0]):
            raise ShapeError(f"{len(moments[0])} references for {len(latents[0])} subjects; match the batches")
        latents = [match_moments(e, new, sets) for e, new in zip(latents, moments, strict=True)]
    return decode_under(flow, latents, source, side)


def transfer(
    flow: DualFlow,
    subject: Subject,
    recipient: Subject,
    *,
    sets: str | None = "spatial",
    reference: Subject | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the recipient's anatomy with the subject's deviations from expectation, `[N, C, D, H, W]`.

    This is `edit` of the subject under the recipient's source and side values. The recipient's target is not used,
    unless it is the `reference` too.

    Raises:
        ConfigError: `sets` has no row in SETS, or a reference is given without `sets`.
        InputError: an input has the wrong shape, dtype or values.
    """
    return edit(
        flow,
        subject,
        source=recipient.source,
        side=recipient.side,
        sets=sets,
        reference=reference,
        generator=generator,
    )


@torch.no_grad()
def _reference_latents(
    flow: DualFlow,
    source: Tensor,
    side: Tensor | None,
    reference: Subject | None,
    temperature: float,
    generator: torch.Generator | None,
) -> list[Tensor]:
    if reference is not None:
        return encode_standardised(flow, reference)
    flow.check_inputs(source, side)
    generator = generator or torch.Generator().manual_seed(EVALUATION_SEED)
    return flow.draw_latents(flow.condition(source, side), temperature, generator)
