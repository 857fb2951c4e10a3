"""PRESETS: published methods and our own default as rows of one table."""

from __future__ import annotations

from typing import Any

from dualflow.errors import ConfigError
from dualflow.flows.spec import FlowSpec

DUAL_GLOW = FlowSpec(
    levels=3,
    steps=(4, 4, 4),
    hidden=(32, 48, 64),
    squeeze="plain",
    coupling="affine",
    coupling_context="none",
    log_scale_bound=1.0,
    source="glow",
    source_nll_weight=0.001,
    prior="relation",
    prior_mean=True,
    prior_scale=False,
    prior_kernel=5,
    side_in_context=False,
    discriminator_weight=0.01,
)
"""DUAL-GLOW (Sun et al., ICCV 2019), sized for a CPU: two Glows without shared weights, and at each level
`p(z_target | z_source) = N(relation(z_source), 1)` with one 5^3 convolution as relation; side information in the
coarsest level's prior, discriminators with gradient reversal on the others, lambda = 0.001 on the source's likelihood.

The paper's depth is `levels: 4, steps: [16, 16, 16, 16]`; its public code has `steps: [1, 4, 8, 4]`,
`hidden: [512, 512, 512, 512]` and `prior_leaky: true`. Deliberate differences: the 1x1x1 is in LU form; scales are
bounded by tanh and may expand (there: sigmoid(h + 2), which only contracts); coupling networks use SiLU and RMS-norm,
not ReLU and actnorm; relations start at zero; noise is Gaussian in the target's unit; no border-mask channel.
"""

DUALFLOW = FlowSpec(
    levels=3,
    steps=(2, 2, 4),
    hidden=(16, 24, 32),
    squeeze="haar",
    coupling="affine",
    coupling_context="level",
    log_scale_bound=0.5,
    source="encoder",
    context_channels=12,
    prior="relation",
    prior_mean=False,
    prior_scale=True,
    prior_kernel=3,
    side_in_context=True,
    mean="local_linear",
    residual_scale=0.05,
    noise=0.01,
    low_rank=24,
)
"""The default: a closed-form mean takes the conditional expectation, and a small Haar flow models what is left.

Couplings and prior scales are conditioned on features of source, mean image and side information. The prior's mean is
zero, for the mean model has done that work, and the coarsest level has low-rank covariance, which carries the
correlated errors of whole regions.
"""

PRESETS: dict[str, FlowSpec] = {"dual_glow": DUAL_GLOW, "dualflow": DUALFLOW}


def preset(name: str, **options: Any) -> FlowSpec:
    """Return a row of PRESETS with fields replaced.

    Raises:
        ConfigError: the name has no row, or an option is not accepted.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset '{name}'; choose from: {', '.join(sorted(PRESETS))}")
    return PRESETS[name].replace(**options)
