"""Steps and levels: the order in which a flow composes its layers."""

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
"""Context of one step: a source feature map on the step's grid for each layer, by the layer's name."""


class Step(nn.Module):
    """One step of flow on `[N, C, D, H, W]`: actnorm, 1x1x1 mixing, optional injector, coupling.

    Forward and inverse are those of a Bijection, with one map per layer as context. A layer without a map gets None.

    Args:
        spec: the flow's choices.
        rotation: initial mixing matrix `[C, C]`.
        hidden: width of the coupling network.
        context_channels: channels of the maps, 0 without context.
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
        """Apply the layers first to last."""
        return run(self.bound_pieces(maps), x)

    def trace(self, x: Tensor, maps: StepMaps) -> tuple[Tensor, Tensor, StepMaps]:
        """Apply `forward`, and return each layer's output too, as context for a step of the target's flow."""
        log_det, activations = zero_log_det(x), dict[str, Tensor]()
        for name, piece in self.pieces.items():
            x, term = piece(x, maps.get(name))
            activations[name], log_det = x, log_det + term
        return x, log_det, activations

    def inverse(self, z: Tensor, maps: StepMaps) -> tuple[Tensor, Tensor]:
        """Undo the layers last to first."""
        return run(self.bound_pieces(maps, inverse=True), z)

    def bound_pieces(self, maps: StepMaps, *, inverse: bool = False) -> list[BoundPiece]:
        """Return the layers with their maps in order of application; a plain actnorm is fused with the mixing."""
        pieces: dict[str, Any] = dict(self.pieces.items())
        actnorm, mixing = pieces["actnorm"], pieces["mixing"]
        if type(actnorm) is ActNorm and isinstance(mixing, InvertibleMixing):
            pieces["mixing"] = NormalisedMixing(pieces.pop("actnorm"), mixing)
        bound = [BoundPiece(piece, maps.get(name), inverse) for name, piece in pieces.items()]
        return bound[::-1] if inverse else bound

    def initialize(self, x: Tensor, maps: StepMaps) -> Tensor:
        """Initialise each layer on the output of the layers before it."""
        for name, piece in self.pieces.items():
            assert isinstance(piece, Bijection)
            x = piece.initialize(x, maps.get(name))
        return x


class Level(nn.Module):
    """One resolution: squeeze, transition steps, steps of flow, attention (Kingma & Dhariwal 2018, figure 2).

    A transition step is an actnorm and a mixing without context. It mixes the squeezed neighbouring voxels before any
    conditioning (Lugmayr et al. 2020). Attention is the last layer and acts across the two halves of the next split.

    The context is a map for each layer of each step, or an empty mapping. Maps for couplings are first projected to the
    couplings' hidden width: once per level if the steps share a map, otherwise once per step.

    Args:
        spec: the flow's choices.
        index: index of the level, 0 the finest.
        in_channels: channels of the input.
        context_channels: channels of the maps, 0 without context.
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
        # Training chooses the activation memory; it does not change the results.
        self.memory: Memory = "stored"
        # With these patches every level has as many tokens as the coarsest level has voxels.
        patch = 2 ** (spec.levels - 1 - index)
        self.attention = ATTENTIONS[spec.attention](channels, context_channels, patch)

    def forward(self, x: Tensor, maps: Sequence[StepMaps]) -> tuple[Tensor, Tensor]:
        """Apply squeeze, transition steps, steps and attention."""
        x, transition_term = self.transitions(self.squeeze(x)[0])
        x, step_term = run_chain(self._bound_pieces(maps), x, self.memory)
        x, attention_term = self.attention(x, maps[-1].get("coupling"))
        return x, transition_term + step_term + attention_term

    def trace(self, x: Tensor, maps: Sequence[StepMaps]) -> tuple[Tensor, Tensor, list[StepMaps]]:
        """Apply `forward`, and return the activations of each step too."""
        activations: list[StepMaps] = []
        x, log_det = self.transitions(self.squeeze(x)[0])
        for step, step_maps in zip(self.steps, self._projected(maps), strict=True):
            assert isinstance(step, Step)
            x, term, outputs = step.trace(x, step_maps)
            log_det = log_det + term
            activations.append(outputs)
        x, term = self.attention(x, maps[-1].get("coupling"))
        return x, log_det + term, activations

    def inverse(self, z: Tensor, maps: Sequence[StepMaps]) -> tuple[Tensor, Tensor]:
        """Undo attention, steps, transition steps and squeeze."""
        z, attention_term = self.attention.inverse(z, maps[-1].get("coupling"))
        z, step_term = run_chain(self._bound_pieces(maps, inverse=True), z, self.memory)
        z, transition_term = self.transitions.inverse(z)
        return self.squeeze.inverse(z)[0], attention_term + step_term + transition_term

    def initialize(self, x: Tensor, maps: Sequence[StepMaps]) -> Tensor:
        """Initialise all layers on a batch, and return the batch mapped forward."""
        x = self.transitions.initialize(self.squeeze(x)[0])
        for step, step_maps in zip(self.steps, self._projected(maps), strict=True):
            assert isinstance(step, Step)
            x = step.initialize(x, step_maps)
        return self.attention.initialize(x, maps[-1].get("coupling"))

    def _bound_pieces(self, maps: Sequence[StepMaps], *, inverse: bool = False) -> list[list[BoundPiece]]:
        """Return the layers of each step with their maps, in order of application."""
        bound: list[list[BoundPiece]] = []
        for step, step_maps in zip(self.steps, self._projected(maps), strict=True):
            assert isinstance(step, Step)
            bound.append(step.bound_pieces(step_maps, inverse=inverse))
        return bound[::-1] if inverse else bound

    def _projected(self, maps: Sequence[StepMaps]) -> list[StepMaps]:
        """Project the couplings' maps to the couplings' hidden width."""
        if not self.projections:
            return list(maps)
        projected = [project(step["coupling"]) for project, step in zip(self.projections, maps, strict=False)]
        return [{**step, "coupling": projected[min(k, len(projected) - 1)]} for k, step in enumerate(maps)]


def no_maps(spec: FlowSpec) -> list[list[StepMaps]]:
    """Return the context of a flow without context: an empty mapping for each step of each level."""
    return [[{} for _ in range(count)] for count in spec.steps]
