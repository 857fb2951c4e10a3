"""A flow whose prior has a mean."""

import pytest
import torch

from dualflow.data.dataset import collate
from dualflow.flows.initialization import initialize_flow
from dualflow.flows.model import DualFlow
from dualflow.flows.objective import Batch
from dualflow.flows.presets import preset


@pytest.fixture(scope="session")
def flow(phantoms):
    """A small DUAL-GLOW, initialised on the phantoms, its zero layers moved off zero."""
    torch.manual_seed(0)
    spec = preset("dual_glow", steps=[1, 1, 1], hidden=[8, 8, 8])
    model = DualFlow(spec, shape=tuple(phantoms[0]["source"].shape[1:]), side_features=1)
    batch = collate(phantoms.items)
    initialize_flow(model, Batch(batch["target"], batch["source"], batch["side"], batch["mask"]))
    with torch.no_grad():
        for parameter in model.priors.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return model.eval()
