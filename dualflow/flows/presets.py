"""PRESETS: published methods and the default flow as rows of one table, built from the same layers.

The published methods have the same size, three levels of four steps for a CPU, so a comparison compares their
mechanisms. Common differences from the published code: the 1x1x1 convolution is in LU form; scales are bounded by tanh
and may expand (most published code uses sigmoid(h + 2), which only contracts); coupling networks use SiLU and RMS-norm,
not ReLU and actnorm; only the last layer is initialised to zero; noise is Gaussian in the target's unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dualflow.errors import ConfigError
from dualflow.flows.spec import FlowSpec

SIZE: dict[str, Any] = {"levels": 3, "steps": (4, 4, 4), "hidden": (32, 48, 64)}


@dataclass(frozen=True)
class Preset:
    """A named flow.

    Attributes:
        paper: publication of the method.
        idea: how the method uses the source, in one line.
        spec: options of the flow.
    """

    paper: str
    idea: str
    spec: FlowSpec


def _row(paper: str, idea: str, **options: Any) -> Preset:
    """Build a preset of the common size, with these options."""
    return Preset(paper, idea, FlowSpec(**{**SIZE, **options}))


PRESETS: dict[str, Preset] = {
    # p(z_target | z_source) = N(relation(z_source), 1) for each level, with a 5^3 convolution as relation network and
    # lambda = 0.001 on the source's likelihood. Side information enters the coarsest prior. The paper has 4 levels of
    # 16 steps; its code has steps [1, 4, 8, 4], hidden 512 and a LeakyReLU on the relation (prior_leaky).
    "dual_glow": _row(
        "DUAL-GLOW (Sun et al. 2019)",
        "two Glows; a conditional Gaussian prior links the latents of each level; discriminators penalise side "
        "information in the finer levels",
        source="glow",
        context="none",
        prior="relation",
        prior_scale=False,
        prior_kernel=5,
        side_in_context=False,
        source_nll_weight=0.001,
        discriminator_weight=0.01,
    ),
    # The prediction is the mean of ten samples. The pooled networks learn here; in the published code stacked zero
    # layers pass them no gradient.
    "c_glow": _row(
        "c-Glow (Lu & Huang 2020)",
        "actnorm, 1x1x1 and coupling of every step are conditioned on features of the source",
        source="encoder",
        context="level",
        actnorm="conditional",
        mixing="conditional",
        prior="split",
        prediction="sample_mean",
    ),
    "full_glow": _row(
        "Full-Glow (Sorkhei et al. 2021)",
        "as c-Glow, but each layer sees the activation of the same layer in a Glow of the source",
        source="glow",
        context="step",
        actnorm="conditional",
        mixing="conditional",
        prior="split",
        source_nll_weight=0.0001,
    ),
    # The source's part of the joint likelihood has a small weight, because its entropy would dominate. The L1 is that
    # of a sample at temperature 0.5. The cycles of both flows close by construction and are monitored.
    "c_flow": _row(
        "C-Flow (Pumarola et al. 2020)",
        "couplings see the activations of the same step in a Glow of the source; L1 loss on samples",
        source="glow",
        context="step",
        prior="split",
        source_nll_weight=0.0001,
        decode_l1=1.0,
        decode_temperature=0.5,
    ),
    "srflow": _row(
        "SRFlow (Lugmayr et al. 2020)",
        "a pre-trained encoder, frozen for half of the training, conditions injectors and couplings",
        source="encoder",
        context="level",
        injector=True,
        transition_steps=2,
        prior="split",
        source_pretrain=0.25,
        source_frozen=0.5,
    ),
    # In the paper the injector follows the coupling. The published weights make a supervised regressor (NLL weight
    # 1e-4); weight 1 keeps the likelihood comparable.
    "puflow": _row(
        "PU-Flow (Mao et al. 2022)",
        "a feature map per step conditions an additive coupling and an injector; latents of hidden voxels are "
        "interpolated between encoded neighbours; L1 loss on their decode",
        source="encoder",
        context="step",
        injector=True,
        coupling="additive",
        prior="standard",
        interpolation_l1=1.0,
    ),
    "attn_flow": _row(
        "AttnFlow (Sukthanker et al. 2022)",
        "SRFlow's injectors and couplings, with invertible attention over the whole volume before each split",
        source="encoder",
        context="level",
        injector=True,
        transition_steps=2,
        attention="itrans",
        prior="split",
    ),
    # A pair of flows under a closed-form mean, the spread of its residuals, which follows the source, and a whitening
    # of neighbouring voxels. At every level the source's features reach the couplings and the prior's scales. The
    # prior's means are zero, because what the mean model leaves cannot be predicted from these numbers of people.
    "dualflow": _row(
        "the default",
        "a flow of the source and a flow of the whitened residual of a closed-form mean, linked by prior and couplings "
        "of each level; whole regions have a law of their own",
        steps=(2, 2, 4),
        hidden=(16, 24, 32),
        squeeze="haar",
        log_scale_bound=0.5,
        source="glow_pyramid",
        context="level",
        prior="relation",
        prior_mean=False,
        side_in_context=False,
        source_nll_weight=0.001,
        discriminator_weight=0.01,
        mean="stacked",
        residual_scale=0.05,
        spread="source",
        whitening=True,
        background_noise=0.05,
        context_channels=8,
        low_rank=96,
        prediction="mean",
    ),
}


def preset(name: str, /, **options: Any) -> FlowSpec:
    """Return the spec of a preset with options replaced.

    Raises:
        ConfigError: the preset is unknown, or an option is not accepted.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset '{name}'; choose from: {', '.join(sorted(PRESETS))}")
    return PRESETS[name].spec.replace(**options)
