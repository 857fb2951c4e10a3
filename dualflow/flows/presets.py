"""PRESETS: published methods and our own default as rows of one table, made of the same pieces.

All are sized alike for a CPU, three levels of four steps, so that comparing them compares their mechanisms. Common
differences from the published code: the 1x1x1 is in LU form; scales are bounded by tanh and may expand (there mostly
sigmoid(h + 2), which only contracts); coupling networks use SiLU and RMS-norm, not ReLU and actnorm; what starts at
zero is the last layer only; noise is Gaussian in the target's unit.
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
        paper: where it comes from.
        idea: how the source enters, in one line.
        spec: its pieces.
    """

    paper: str
    idea: str
    spec: FlowSpec


def row(paper: str, idea: str, **pieces: Any) -> Preset:
    """A preset of the common size, but for what `pieces` say."""
    return Preset(paper, idea, FlowSpec(**{**SIZE, **pieces}))


PRESETS: dict[str, Preset] = {
    # p(z_target | z_source) = N(relation(z_source), 1) level by level, one 5^3 convolution as relation, lambda = 0.001
    # on the source's likelihood; side information in the coarsest prior. The paper's depth is levels 4, steps 16 each;
    # its code has steps [1, 4, 8, 4], hidden 512 and a LeakyReLU on the relation (prior_leaky).
    "dual_glow": row(
        "DUAL-GLOW (Sun et al. 2019)",
        "two Glows; the prior of each level's latents follows the source's; side information hunted by discriminators",
        source="glow",
        context="none",
        prior="relation",
        prior_scale=False,
        prior_kernel=5,
        side_in_context=False,
        source_nll_weight=0.001,
        discriminator_weight=0.01,
    ),
    # Predicts by the mean of ten samples. Its two pooled networks learn here; in the published code
    # stacked zero layers keep them from ever changing.
    "c_glow": row(
        "c-Glow (Lu & Huang 2020)",
        "actnorm, 1x1x1 and coupling of every step are conditioned on features of the source",
        source="encoder",
        context="level",
        actnorm="conditional",
        mixing="conditional_lu",
        prior="split",
        prediction="sample_mean",
    ),
    "full_glow": row(
        "Full-Glow (Sorkhei et al. 2021)",
        "as c-Glow, but each piece sees the activation of its twin in the source's own Glow",
        source="glow",
        context="step",
        actnorm="conditional",
        mixing="conditional_lu",
        prior="split",
        source_nll_weight=0.0001,
    ),
    # The joint likelihood of source and target with the source's part weighed down, for its entropy would rule; L1
    # between target and the decode of latents drawn at temperature 0.5, our reading of the cycle term.
    "c_flow": row(
        "C-Flow (Pumarola et al. 2020)",
        "couplings see the activation of the same step of the source's Glow; L1 on decoded samples",
        source="glow",
        context="step",
        prior="split",
        source_nll_weight=0.0001,
        decode_l1=1.0,
        decode_temperature=0.5,
    ),
    "srflow": row(
        "SRFlow (Lugmayr et al. 2020)",
        "an encoder, trained to predict the target and then frozen for half of the steps, feeds injector and coupling",
        source="encoder",
        context="level",
        injector=True,
        transition_steps=2,
        prior="split",
        source_pretrain=0.25,
        source_frozen=0.5,
    ),
    # There the injector comes behind the coupling. Samples with interpolated latents are not those of its density.
    # The published weights make it a supervised regressor (NLL 1e-4); weight 1 keeps its likelihood comparable.
    "puflow": row(
        "PU-Flow (Mao et al. 2022)",
        "one feature map per step feeds an additive coupling and an injector; latents interpolated between neighbours; "
        "L1 on the decode",
        source="encoder",
        context="step",
        injector=True,
        coupling="additive",
        prior="standard",
        decode_l1=1.0,
        latents="interpolate",
    ),
    "attn_flow": row(
        "AttnFlow (Sukthanker et al. 2022)",
        "invertible attention over the whole volume between splits, on top of SRFlow's injector and coupling",
        source="encoder",
        context="level",
        injector=True,
        transition_steps=2,
        attention="itrans",
        prior="split",
    ),
    # A closed-form mean takes the conditional expectation, and a small Haar flow models what is left. Couplings and
    # prior scales are conditioned on features of source, mean image and side information; the prior's mean is zero, for
    # the mean model has done that work; the coarsest level's low-rank covariance carries the errors of whole regions.
    "dualflow": row(
        "the default",
        "a closed-form mean, then a residual flow: conditional couplings, prior scales, low-rank coarsest level",
        steps=(2, 2, 4),
        hidden=(16, 24, 32),
        squeeze="haar",
        log_scale_bound=0.5,
        source="encoder",
        context="level",
        prior="relation",
        prior_mean=False,
        mean="local_linear",
        residual_scale=0.05,
        background_noise=0.05,
        context_channels=8,
        low_rank=24,
        prediction="mean",
    ),
}


def preset(name: str, **options: Any) -> FlowSpec:
    """Return the pieces of a row of PRESETS with fields replaced.

    Raises:
        ConfigError: the name has no row, or an option is not accepted.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset '{name}'; choose from: {', '.join(sorted(PRESETS))}")
    return PRESETS[name].spec.replace(**options)
