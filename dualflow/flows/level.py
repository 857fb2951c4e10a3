"""Steps and levels: the one order in which every flow's pieces are composed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from dualflow.flows.actnorm import ACTNORMS, ActNorm
from dualflow.flows.attention import ATTENTIONS
from dualflow.flows.bijection import Bijection, Sequential, zero_log_det
from dualflow.flows.coupling import COUPLING_TRANSFORMS, Affine, Coupling, Injector
from dualflow.flows.memory import BoundPiece, Memory, run, run_chain
from dualflow.flows.mixing import MIXINGS, InvertibleMixing, NormalisedMixing, random_rotations
from dualflow.flows.network import Conditioner, Convolution
from dualflow.flows.spec import FlowSpec
from dualflow.flows.squeeze import SQUEEZES

StepMaps = Mapping[str, Tensor]
"""What one step may see of the source: a map on the step's grid for each of its pieces, by the piece's name."""


class Step(nn.Module):
    """Actnorm, 1x1x1 mixing, injector (where there is one), coupling: one step of flow on `[N, C, D, H, W]`.

    Forward and inverse are a Bijection's, with one map for each piece as context; a piece without a map gets None.
    """

    def __init__(self, spec: FlowSpec, rotation: Tensor, hidden: int, context_channels: int) -> None:
        super().__init__()
        channels = len(rotation)
        half = channels // 2
        transform = COUPLING_TRANSFORMS[spec.coupling](spec.log_scale_bound)
        pieces: dict[str, Bijection] = {
            "actnorm": ACTNORMS[spec.actnorm](channels, context_channels),
            "mixing": MIXINGS[spec.mixing](rotation, context_channels),
        }
        if spec.injector:
            network = Conditioner(context_channels, Affine.parameters_per_channel * channels, hidden)
            pieces["injector"] = Injector(network, Affine(spec.log_scale_bound))
        network = Conditioner(half, transform.parameters_per_channel * half, hidden)
        pieces["coupling"] = Coupling(network, transform)
        self.pieces = nn.ModuleDict(pieces)

    def forward(self, x: Tensor, maps: StepMaps) -> tuple[Tensor, Tensor]:
        """Apply the pieces first to last."""
        return run(self.links(maps), x)

    def trace(self, x: Tensor, maps: StepMaps) -> tuple[Tensor, Tensor, StepMaps]:
        """`forward`, and what each piece put out: what a source's step has to tell the target's."""
        log_det, activations = zero_log_det(x), dict[str, Tensor]()
        for name, piece in self.pieces.items():
            x, term = piece(x, maps.get(name))
            activations[name], log_det = x, log_det + term
        return x, log_det, activations

    def inverse(self, z: Tensor, maps: StepMaps) -> tuple[Tensor, Tensor]:
        """Undo the pieces last to first."""
        return run(self.links(maps, inverse=True), z)

    def links(self, maps: StepMaps, *, inverse: bool = False) -> list[BoundPiece]:
        """The pieces with their maps, in the order in which they are applied; a plain actnorm within the mixing."""
        pieces: dict[str, Any] = dict(self.pieces.items())
        actnorm, mixing = pieces["actnorm"], pieces["mixing"]
        if type(actnorm) is ActNorm and isinstance(mixing, InvertibleMixing):
            pieces["mixing"] = NormalisedMixing(pieces.pop("actnorm"), mixing)
        links = [BoundPiece(piece, maps.get(name), inverse) for name, piece in pieces.items()]
        return links[::-1] if inverse else links

    def initialize(self, x: Tensor, maps: StepMaps) -> Tensor:
        """Initialise each piece on what the pieces before it make of the batch."""
        for name, piece in self.pieces.items():
            assert isinstance(piece, Bijection)
            x = piece.initialize(x, maps.get(name))
        return x


class Level(nn.Module):
    """One resolution: squeeze, transition steps, steps of flow, attention (Kingma & Dhariwal 2018, figure 2).

    A transition step is an actnorm and a mixing without context: it blends the channels that the squeeze made of
    neighbouring voxels before any of them is conditioned (Lugmayr et al. 2020). Attention, where there is any, is the
    last layer, across the halves that the split behind it will part.

    The context is a map for each piece of each step, or an empty mapping. Maps for couplings are projected to the
    couplings' hidden width first: once for all steps where they share one map, else once per step.
    """

    def __init__(self, spec: FlowSpec, index: int, in_channels: int, context_channels: int = 0) -> None:
        super().__init__()
        channels, hidden, count = 8 * in_channels, spec.hidden[index], spec.steps[index]
        self.squeeze = SQUEEZES[spec.squeeze]()
        self.transitions = Sequential(
            Sequential([ActNorm(channels), InvertibleMixing(rotation)])
            for rotation in random_rotations(channels, spec.transition_steps, closing=spec.squeeze == "haar")
        )
        self.steps = nn.ModuleList(
            Step(spec, rotation, hidden, context_channels)
            for rotation in random_rotations(channels, count, closing=spec.squeeze == "haar")
        )
        shared = 1 if spec.context == "level" else count
        self.projections = nn.ModuleList(
            Convolution(context_channels, hidden, 1) for _ in range(shared if context_channels else 0)
        )
        # What is kept for the backward pass; a training chooses it, and it changes no result.
        self.memory: Memory = "stored"
        # Patches that make as many tokens at every level as the coarsest one has positions.
        patch = 2 ** (spec.levels - 1 - index)
        self.attention = ATTENTIONS[spec.attention](channels, context_channels, patch)

    def forward(self, x: Tensor, maps: Sequence[StepMaps]) -> tuple[Tensor, Tensor]:
        """Squeeze, transitions, steps, attention."""
        x, log_det = self.transitions(self.squeeze(x)[0])
        x, term = run_chain(self._links(maps), x, self.memory)
        x, last = self.attention(x, maps[-1].get("coupling"))
        return x, log_det + term + last

    def trace(self, x: Tensor, maps: Sequence[StepMaps]) -> tuple[Tensor, Tensor, list[StepMaps]]:
        """`forward`, and the activations of each step, which are all kept."""
        activations: list[StepMaps] = []
        x, log_det = self.transitions(self.squeeze(x)[0])
        for step, seen in zip(self.steps, self._projected(maps), strict=True):
            assert isinstance(step, Step)
            x, term, outputs = step.trace(x, seen)
            log_det = log_det + term
            activations.append(outputs)
        x, term = self.attention(x, maps[-1].get("coupling"))
        return x, log_det + term, activations

    def inverse(self, z: Tensor, maps: Sequence[StepMaps]) -> tuple[Tensor, Tensor]:
        """Undo attention, steps, transitions and squeeze."""
        z, log_det = self.attention.inverse(z, maps[-1].get("coupling"))
        z, term = run_chain(self._links(maps, inverse=True), z, self.memory)
        z, last = self.transitions.inverse(z)
        return self.squeeze.inverse(z)[0], log_det + term + last

    def initialize(self, x: Tensor, maps: Sequence[StepMaps]) -> Tensor:
        """Initialise everything on a batch, and return it mapped forward."""
        x = self.transitions.initialize(self.squeeze(x)[0])
        for step, seen in zip(self.steps, self._projected(maps), strict=True):
            assert isinstance(step, Step)
            x = step.initialize(x, seen)
        return self.attention.initialize(x, maps[-1].get("coupling"))

    def _links(self, maps: Sequence[StepMaps], *, inverse: bool = False) -> list[list[BoundPiece]]:
        """The pieces of each step with their maps, in the order in which they are applied."""
        steps = zip(self.steps, self._projected(maps), strict=True)
        links: list[list[BoundPiece]] = [step.links(seen, inverse=inverse) for step, seen in steps]  # type: ignore[operator]
        return links[::-1] if inverse else links

    def _projected(self, maps: Sequence[StepMaps]) -> list[StepMaps]:
        """The maps with those for couplings brought to their hidden width."""
        if not self.projections:
            return list(maps)
        projected = [project(seen["coupling"]) for project, seen in zip(self.projections, maps, strict=False)]
        return [{**seen, "coupling": projected[min(k, len(projected) - 1)]} for k, seen in enumerate(maps)]


def no_maps(spec: FlowSpec) -> list[list[StepMaps]]:
    """The context of a flow that has none: an empty mapping for each step of each level."""
    return [[{} for _ in range(count)] for count in spec.steps]
