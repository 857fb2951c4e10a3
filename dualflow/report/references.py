"""Publications behind the models, the scores and the statistics of a study's report."""

from __future__ import annotations

from dualflow.config import Config

METHOD = (
    "Gneiting T, Raftery AE (2007). Strictly proper scoring rules, prediction, and estimation. Journal of the American "
    "Statistical Association 102, 359-378.",
    "Bland JM, Altman DG (1986). Statistical methods for assessing agreement between two methods of clinical "
    "measurement. The Lancet 327, 307-310.",
    "Wilcoxon F (1945). Individual comparisons by ranking methods. Biometrics Bulletin 1, 80-83.",
    "Holm S (1979). A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 6, "
    "65-70.",
    "Efron B, Tibshirani RJ (1993). An introduction to the bootstrap. Chapman and Hall.",
    "Hesterberg TC (2015). What teachers should know about the bootstrap: resampling in the undergraduate statistics "
    "curriculum. The American Statistician 69, 371-386.",
    "Neal RM (2001). Annealed importance sampling. Statistics and Computing 11, 125-139.",
    "Desikan RS et al. (2006). An automated labeling system for subdividing the human cerebral cortex on MRI scans "
    "into gyral based regions of interest. NeuroImage 31, 968-980.",
)
"""Of scores, statistics and regions."""
FLOWS = (
    "Dinh L, Sohl-Dickstein J, Bengio S (2017). Density estimation using Real NVP. ICLR.",
    "Kingma DP, Dhariwal P (2018). Glow: generative flow with invertible 1x1 convolutions. NeurIPS 31.",
)
"""Of every flow."""
DUAL_GLOW = (
    "Sun H, Mehta R, Zhou HH, Huang Z, Johnson SC, Prabhakaran V, Singh V (2019). DUAL-GLOW: conditional flow-based "
    "generative model for modality transfer. ICCV, 10611-10620."
)
COVARIANCE = (
    "Ledoit O, Wolf M (2004). A well-conditioned estimator for large-dimensional covariance matrices. Journal of "
    "Multivariate Analysis 88, 365-411."
)
SRFLOW = (
    "Lugmayr A, Danelljan M, Van Gool L, Timofte R (2020). SRFlow: learning the super-resolution space with "
    "normalizing flow. ECCV, 715-732."
)
UNET = (
    "Isensee F, Jaeger PF, Kohl SAA, Petersen J, Maier-Hein KH (2021). nnU-Net: a self-configuring method for deep "
    "learning-based biomedical image segmentation. Nature Methods 18, 203-211."
)
MODELS: dict[str, tuple[str, ...]] = {
    "dualflow": (
        DUAL_GLOW,
        "Vecchia AV (1988). Estimation and model identification for continuous spatial processes. Journal of the "
        "Royal Statistical Society B 50, 297-312.",
    ),
    "dual_glow": (DUAL_GLOW,),
    "c_glow": ("Lu Y, Huang B (2020). Structured output learning with conditional generative flows. AAAI, 5005-5012.",),
    "full_glow": (
        "Sorkhei M, Henter GE, Kjellström H (2021). Full-Glow: fully conditional Glow for more realistic image "
        "generation. DAGM German Conference on Pattern Recognition, 697-711.",
    ),
    "c_flow": (
        "Pumarola A, Popov S, Moreno-Noguer F, Ferrari V (2020). C-Flow: conditional generative flow models for "
        "images and 3D point clouds. CVPR, 7949-7958.",
    ),
    "srflow": (SRFLOW,),
    "puflow": (
        "Mao A, Du Z, Hou J, Duan Y, Liu YJ, He Y (2023). PU-Flow: a point cloud upsampling network with normalizing "
        "flows. IEEE Transactions on Visualization and Computer Graphics 29, 4964-4977.",
    ),
    "attn_flow": (
        SRFLOW,
        "Sukthanker RS, Huang Z, Kumar S, Timofte R, Van Gool L (2022). Generative flows with invertible "
        "attentions. CVPR, 11234-11243.",
    ),
    "local_linear_spread": (COVARIANCE,),
    "local_linear_person_scale": (COVARIANCE,),
    "local_linear_mixture": (COVARIANCE,),
    "stacked_mixture": (COVARIANCE,),
    "stacked_source_scale": (COVARIANCE,),
    "unet": (UNET,),
    "unet_half": (UNET,),
    "unet_heteroscedastic": (
        UNET,
        "Seitzer M, Tavakoli A, Antic D, Martius G (2022). On the pitfalls of heteroscedastic uncertainty estimation "
        "with probabilistic neural networks. ICLR.",
    ),
    "pix2pix": (
        "Isola P, Zhu JY, Zhou T, Efros AA (2017). Image-to-image translation with conditional adversarial networks. "
        "CVPR, 5967-5976.",
    ),
    "cvae": (
        "Sohn K, Lee H, Yan X (2015). Learning structured output representation using deep conditional generative "
        "models. NeurIPS 28.",
    ),
    "rectified_flow": (
        "Liu X, Gong C, Liu Q (2023). Flow straight and fast: learning to generate and transfer data with rectified "
        "flow. ICLR.",
    ),
    "latent_diffusion": (
        "Rombach R, Blattmann A, Lorenz D, Esser P, Ommer B (2022). High-resolution image synthesis with latent "
        "diffusion models. CVPR, 10684-10695.",
        "Zhang L, Rao A, Agrawala M (2023). Adding conditional control to text-to-image diffusion models. ICCV, "
        "3836-3847.",
    ),
}
"""Of single presets and baselines."""


def study_references(config: Config) -> list[str]:
    """Publications behind every flow, the study's models in their order, and the scores and statistics."""
    names = [*(choice.preset for choice in config.flows.values()), *config.baselines.models]
    models = [reference for name in names for reference in MODELS.get(name, ())]
    return list(dict.fromkeys([*FLOWS, *models, *METHOD]))
