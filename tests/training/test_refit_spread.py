"""The refit of a trained flow's spread map."""

from __future__ import annotations

import pytest
import torch
from lesion_people import SHAPE, people

from dualflow.data.dataset import PairDataset, collate
from dualflow.flows.initialization import initialize_flow
from dualflow.flows.model import DualFlow
from dualflow.flows.presets import preset
from dualflow.training.fit_spread import fit_spread
from dualflow.training.refit_spread import (
    SAMPLED,
    WIDTHS,
    VoxelSums,
    held_out_nats,
    refit_spread,
    variance_ratio,
    voxel_sums,
)
from dualflow.training.trainer import to_batch

PEOPLE = 24
FOLDS = [index % 4 for index in range(PEOPLE)]
WRONG = 1.5


def fitted(spread: str = "source", wrong: float = 1.0) -> tuple[DualFlow, PairDataset]:
    """Return an initialised flow and its pairs; the spread of the front half is wrong by a factor."""
    spec = preset("dualflow", spread=spread, mean="local_linear", levels=2, steps=(1, 1), hidden=(4, 4), low_rank=0)
    torch.manual_seed(0)
    flow = DualFlow(spec, shape=SHAPE, side_features=1)
    pairs = fit_spread(flow, PairDataset(people(PEOPLE)), FOLDS)
    initialize_flow(flow, to_batch(collate(list(pairs.items)), torch.device("cpu")))
    factor = torch.ones(1, *SHAPE)
    factor[..., :8] = wrong
    if spread != "constant":
        flow.spread.rescale(factor)
    wrong_pairs = [{**p, "spread": p["spread"] * factor} if "spread" in p else p for p in pairs.items]
    return flow, PairDataset(wrong_pairs)


def halves(flow: DualFlow, pairs: PairDataset) -> tuple[float, float]:
    """Return squared residuals over variances of samples, of front and back, away from the border between them."""
    sums = voxel_sums(flow, pairs, FOLDS)
    squares, variances = sums.squares.sum(0) / PEOPLE, sums.variances / sums.sampled
    return tuple(float(squares[..., part].sum() / variances[..., part].sum()) for part in (slice(0, 6), slice(10, 16)))


@pytest.mark.parametrize("spread", ["voxel", "source"])
def test_a_map_that_is_wrong_in_one_half_is_mended(spread):
    """Residuals and samples vary alike in both halves, but for a common factor, and most of the level is kept."""
    flow, pairs = fitted(spread, WRONG)
    before, level = halves(flow, pairs), flow.spread.image.log().mean()
    assert before[1] / before[0] == pytest.approx(WRONG**2, rel=0.1)
    pairs, facts = refit_spread(flow, pairs, FOLDS)
    front, back = halves(flow, pairs)
    assert back / front == pytest.approx(1, abs=0.05)
    assert facts["width"] > 0
    assert facts["log_sd"] == pytest.approx(torch.tensor(WRONG).log() / 2, rel=0.3)
    assert float(flow.spread.image.log().mean() - level) == pytest.approx(0, abs=1e-3)


def test_the_likelihood_of_the_pairs_rises():
    """Exact density of the flow, with the spreads that the pairs are given."""
    flow, pairs = fitted("source", WRONG)

    @torch.no_grad()
    def nats(given: PairDataset) -> float:
        batch = collate(list(given.items))
        condition = flow.condition(batch["source"], batch["side"], batch["mean"], batch["spread"])
        return float(flow.density(batch["target"], condition)[0].mean()) / batch["target"][0].numel()

    before = nats(pairs)
    pairs, _ = refit_spread(flow, pairs, FOLDS)
    assert nats(pairs) > before + 0.01


def test_the_pairs_follow_the_map():
    """The spread of each training scan is multiplied by what the map is."""
    flow, pairs = fitted("source", WRONG)
    image = flow.spread.image.clone()
    refitted, _ = refit_spread(flow, pairs, FOLDS)
    for before, after in zip(pairs.items, refitted.items, strict=True):
        torch.testing.assert_close(after["spread"] / before["spread"], flow.spread.image / image)


def test_a_right_map_hardly_changes():
    """Held-out folds choose wide smoothing or none where the map is right."""
    flow, pairs = fitted("source")
    _, facts = refit_spread(flow, pairs, FOLDS)
    assert facts["log_sd"] < 0.03


def test_a_flow_without_a_map_is_left_alone():
    flow, pairs = fitted("constant")
    assert refit_spread(flow, pairs, FOLDS) == (pairs, {})


def test_voxels_of_no_mask_keep_their_spread():
    """Their factor is 1, and they do not move the level of the others."""
    flow, pairs = fitted("voxel", WRONG)
    mask = torch.ones(1, *SHAPE, dtype=torch.bool)
    mask[:, :3] = False
    hidden = [{**p, "mask": mask, "source": p["source"] * mask} for p in pairs.items]
    image = flow.spread.image.clone()
    refit_spread(flow, PairDataset(hidden), FOLDS)
    torch.testing.assert_close(flow.spread.image[:, :3], image[:, :3])
    assert not torch.allclose(flow.spread.image[:, 3:], image[:, 3:], rtol=0.01)


def test_voxels_without_any_error_have_a_bounded_factor():
    """No training PET may show a voxel of the brain; its residuals are 0 in everyone."""
    flow, pairs = fitted("voxel")
    for item in pairs.items:
        item["target"] = item["target"].clone()
        item["target"][:, :5] = item["mean"][:, :5]
    before = flow.spread.image.clone()
    refit_spread(flow, pairs, FOLDS)
    factor = flow.spread.image / before
    assert float(factor.min()) > 0.25
    assert float(factor.max()) < 4


def test_samples_are_drawn_of_few_scans(monkeypatch):
    """Their number is limited; the residuals of all scans count."""
    monkeypatch.setattr("dualflow.training.refit_spread.SAMPLED", 5)
    flow, pairs = fitted()
    sums = voxel_sums(flow, pairs, FOLDS)
    assert 1 < float(sums.sampled.max()) <= 5
    assert float(sums.counts.sum(0).max()) == PEOPLE
    assert SAMPLED > 5


def test_without_smoothing_every_voxel_has_the_ratio_of_all():
    """Width 0 is one number: all squared residuals over all variances."""
    flow, pairs = fitted()
    sums = voxel_sums(flow, pairs, FOLDS)
    ratio = variance_ratio(sums.squares.sum(0), sums.counts.sum(0), sums, 0.0)
    assert ratio.shape == SHAPE
    assert float(ratio.std()) == pytest.approx(0, abs=1e-5)
    expected = sums.squares.sum() / sums.counts.sum() / (sums.variances.sum() / sums.sampled.sum())
    assert float(ratio[0, 0, 0]) == pytest.approx(float(expected), rel=1e-5)


def test_a_fold_is_scored_by_the_others():
    """An error that one fold alone has does not help its own score."""
    flow, pairs = fitted()
    sums = voxel_sums(flow, pairs, FOLDS)
    sums.squares[0, :8] *= 4  # fold 0 alone errs more in one half
    everyone = variance_ratio(sums.squares.sum(0), sums.counts.sum(0), sums, 1.0)
    variance = sums.variances / sums.sampled
    seen = (sums.squares.sum(0) / (everyone * variance) + PEOPLE * everyone.log()).sum() / sums.counts.sum()
    assert held_out_nats(sums, 1.0) > float(seen) + 0.05


def test_few_people_suffice_for_what_the_flow_itself_does():
    """Samples tell where a flow's variances differ; the residuals of six people, which do not differ, tell nothing."""
    generator = torch.Generator().manual_seed(0)
    squares = torch.randn(6, *SHAPE, generator=generator).square()
    pattern = torch.ones(SHAPE)
    pattern[..., 4:8] = pattern[..., 12:] = 0.5
    sums = VoxelSums(squares, torch.ones(6, *SHAPE), 64 * pattern, torch.full(SHAPE, 64.0))
    width = min((0.0, *WIDTHS), key=lambda width: held_out_nats(sums, width))
    assert width >= 4
    ratio = variance_ratio(squares.sum(0), torch.full(SHAPE, 6.0), sums, width)
    assert float((ratio * pattern).log().std()) < 0.6 * float(pattern.log().std())
