"""Publications behind a study's models."""

from dualflow.baselines import BASELINES
from dualflow.config import parse_config
from dualflow.config.learning import SEEDED
from dualflow.flows.presets import PRESETS
from dualflow.report.references import MODELS, study_references


def test_every_flow_and_network_has_a_publication():
    """Models of the literature are cited; rows of other names would be cited nowhere."""
    assert {*PRESETS, *SEEDED} <= set(MODELS) <= {*PRESETS, *BASELINES}


def test_a_study_cites_the_models_that_it_has(tmp_path):
    """A flow is cited by its preset, whatever its name; each publication stands once."""
    config = parse_config(
        {
            "study": {"name": "x", "results": str(tmp_path)},
            "model": {"preset": "srflow"},
            "extra_models": {"mine": {"preset": "attn_flow"}},
            "baselines": {"models": ["mean_image", "unet", "unet_half"]},
        }
    )
    references = study_references(config)
    assert len(references) == len(set(references))
    cited = [name for name in MODELS if any(text in references for text in MODELS[name])]
    assert cited == ["srflow", "attn_flow", "unet", "unet_half", "unet_heteroscedastic"]
    assert MODELS["attn_flow"][-1] in references
    assert MODELS["unet_heteroscedastic"][-1] not in references
