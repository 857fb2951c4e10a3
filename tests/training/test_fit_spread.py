"""The closed-form fit of a flow's spread."""

from __future__ import annotations

import pytest
import torch
from lesion_people import SHAPE, people

from dualflow.baselines.scale_fit import fit_scale
from dualflow.config.learning import AugmentConfig
from dualflow.data.augment import Augment
from dualflow.data.dataset import PairDataset
from dualflow.flows.model import DualFlow
from dualflow.flows.presets import preset
from dualflow.flows.source_spread import SourceSpread
from dualflow.flows.voxel_features import foreground
from dualflow.training import fit_spread as module
from dualflow.training.fit_spread import fit_spread


def flow_with(spread: str, shape: tuple[int, int, int] = SHAPE) -> DualFlow:
    """Return a small flow with a spread of this name."""
    spec = preset("dualflow", spread=spread, mean="local_linear", levels=2, steps=(1, 1), hidden=(4, 4), low_rank=0)
    return DualFlow(spec, shape=shape, side_features=1)


@pytest.fixture(scope="module")
def fitted() -> DualFlow:
    """A flow whose spread follows the source."""
    flow = flow_with("source")
    items = people(40)
    fit_spread(flow, PairDataset(items), [index % 4 for index in range(len(items))])
    return flow


def unit(flow: DualFlow, item: dict, side: torch.Tensor | None = None) -> torch.Tensor:
    """Return the spread of one person, `[1, D, H, W]`."""
    source = item["source"][None]
    return flow.spread(foreground(source), source, item["side"][None] if side is None else side)[0]


def test_new_people_have_the_spread_of_their_lesion_and_side_value(fitted):
    """Inside the lesion the spread is about twice that outside, and it rises with the side value."""
    new = people(20, seed=1)
    ratios = [float(unit(fitted, p)[p["lesion"]].mean() / unit(fitted, p)[~p["lesion"]].mean()) for p in new]
    assert sum(ratios) / len(ratios) == pytest.approx(2.0, abs=0.35)
    high, low = (float(unit(fitted, new[0], torch.tensor([[value]])).mean()) for value in (1.0, -1.0))
    assert high / low == pytest.approx(torch.tensor(0.8).exp().item(), rel=0.2)


def test_errors_of_new_people_are_standardised(fitted):
    """Divided by the spread, their mean square is 1."""
    squares = [((p["target"] - p["mean"]) / unit(fitted, p)).square().mean() for p in people(20, seed=2)]
    assert float(torch.stack(squares).mean()) == pytest.approx(1.0, abs=0.15)


def test_the_likelihood_of_new_people_is_higher_than_with_the_map_alone(fitted):
    """Gaussian log-density of the residuals, in nats per voxel."""
    plain = flow_with("voxel")
    items = people(40)
    fit_spread(plain, PairDataset(items), [index % 4 for index in range(len(items))])

    def nats(flow: DualFlow) -> float:
        parts = []
        for p in people(20, seed=3):
            r = unit(flow, p)
            parts.append((0.5 * ((p["target"] - p["mean"]) / r).square() + r.log()).mean())
        return float(torch.stack(parts).mean())

    assert nats(fitted) < nats(plain) - 0.05


def test_an_unknown_side_value_and_extreme_intensities_are_safe(fitted):
    """The spread stays finite and within the range of the training people."""
    item = people(1, seed=4)[0]
    ranges = [unit(fitted, p) for p in people(40)]
    low, high = min(float(r.min()) for r in ranges), max(float(r.max()) for r in ranges)
    for source, side in ((item["source"], torch.full((1, 1), torch.nan)), (20 * item["source"], torch.ones(1, 1))):
        spread = unit(fitted, {**item, "source": source}, side)
        assert spread.isfinite().all()
        assert 0.5 * low < float(spread.min())
        assert float(spread.max()) < 2 * high


def test_with_few_people_new_ones_look_no_more_unusual_than_in_the_fit():
    """Training people are compared with the others, so that the errors of new people are standardised."""
    flow, items = flow_with("source"), people(6, seed=6)
    fit_spread(flow, PairDataset(items), [index % 3 for index in range(len(items))])
    squares = [((p["target"] - p["mean"]) / unit(flow, p)).square().mean() for p in people(20, seed=7)]
    assert float(torch.stack(squares).median()) == pytest.approx(1.0, abs=0.3)


def test_training_people_have_the_spread_that_they_would_have_as_new_ones():
    """Their sources are compared with the scans of the others, and not with any of their own.

    The scale of the person, one number, is that of a fit to the others as well.
    """
    flow, items = flow_with("source"), people(7, seed=6)
    keys = ["sub-0_ses-1", "sub-0_ses-2", *(f"sub-{index}_ses-1" for index in range(1, 6))]
    items = [{**item, "scan": key} for item, key in zip(items, keys, strict=True)]
    pairs = fit_spread(flow, PairDataset(items), [0, 0, 1, 1, 2, 2, 2])
    spread = flow.spread
    assert isinstance(spread, SourceSpread)
    spread.voxel.usual.fit([(item["source"], torch.ones(SHAPE, dtype=torch.bool)) for item in items[2:]])
    for pair in pairs.items[:2]:
        ratio = pair["spread"] / unit(flow, pair)
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=1e-4)
        assert float(ratio.mean()) == pytest.approx(1.0, abs=0.1)


def test_training_people_have_the_cross_fitted_scale_of_the_person(monkeypatch):
    """Twice the cross-fitted scales are twice the spreads of the pairs; the fit for new people is the same."""
    items, folds = people(7, seed=6), [0, 0, 1, 1, 2, 2, 2]
    flows = flow_with("source"), flow_with("source")
    plain = fit_spread(flows[0], PairDataset(items), folds)
    monkeypatch.setattr(module, "fit_scale", lambda *arguments: 2 * fit_scale(*arguments))
    doubled = fit_spread(flows[1], PairDataset(items), folds)
    torch.testing.assert_close(unit(flows[1], items[0]), unit(flows[0], items[0]))
    for one, two in zip(plain.items, doubled.items, strict=True):
        torch.testing.assert_close(two["spread"], 2 * one["spread"])


def test_a_mirrored_scan_has_a_mirrored_spread():
    """The map is the same for all people, but augmentation moves the scan, and the residuals with it."""
    flow = flow_with("voxel")
    pairs = fit_spread(flow, PairDataset(people(4)), [0, 0, 1, 1])
    torch.testing.assert_close(pairs[0]["spread"], flow.spread.image)
    mirrored = Augment(AugmentConfig(flip=1.0, translate=0))(pairs[0], (0,))
    torch.testing.assert_close(mirrored["spread"], flow.spread.image.flip(1))


def test_a_constant_spread_leaves_the_pairs_alone():
    """It is the same everywhere."""
    assert "spread" not in fit_spread(flow_with("constant"), PairDataset(people(4)), [0, 0, 1, 1])[0]


def test_the_state_is_finite(fitted):
    """Checkpoints refuse infinite numbers, also where no training person has brain."""
    flow, items = flow_with("source"), people(6)
    for item in items:
        item["source"][:, :2] = 0
        item["mask"][:, :2] = False
    fit_spread(flow, PairDataset(items), [index % 3 for index in range(len(items))])
    assert all(value.isfinite().all() for value in flow.spread.state_dict().values())
    assert unit(flow, people(1)[0]).isfinite().all()


def test_the_log_determinant_contains_the_spread():
    """It is that of the Jacobian of the latents with respect to the target, of a person with a spread of their own."""
    torch.manual_seed(0)
    flow = flow_with("source", (4, 4, 4)).double().eval()
    spread = flow.spread
    assert isinstance(spread, SourceSpread)
    for scale in (spread.person, spread.voxel.scale):
        scale.weight.normal_(std=0.1)
        scale.limits.copy_(torch.tensor([-1.0, 1.0]))
    source, side = torch.rand(1, 1, 4, 4, 4).double(), torch.ones(1, 1).double()
    assert unit(flow, {"source": source[0], "side": side[0]}).std() > 0

    def latents(target: torch.Tensor) -> torch.Tensor:
        return torch.cat([z.flatten() for z in flow.encode(target.view_as(source), source, side)[0]])

    target = torch.rand(64).double()
    jacobian = torch.autograd.functional.jacobian(latents, target)
    log_det = flow.encode(target.view_as(source), source, side)[1]
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, log_det[0])
