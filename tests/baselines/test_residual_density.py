"""The closed-form densities: order of their scores, samples and calibration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from lesion_people import SHAPE as LESION_SHAPE
from lesion_people import people as lesion_people
from region_cohort import SHAPE, region_labels, region_people

from dualflow.baselines import region_law
from dualflow.baselines.registry import BASELINES
from dualflow.baselines.residual_density import ClosedFormDensity
from dualflow.data.dataset import PairDataset
from dualflow.evaluation.calibration import Normal, coverage, mean_crps
from dualflow.inference.ensemble import Ensemble

KINDS = ("spread", "person_scale", "mixture")


@pytest.fixture(scope="module")
def models() -> Iterator[dict[str, ClosedFormDensity]]:
    """The three densities, fitted to one cohort; the mixture from one starting point, which is faster."""
    people, result = region_people(120), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(region_law, "STARTS", 1)
        patch.setattr(region_law, "DIRECTIONS", (2,))
        for name in KINDS:
            result[name] = BASELINES[f"local_linear_{name}"](SHAPE, 2, regions=4)
            result[name].set_regions(region_labels())
            result[name].fit(people)
        yield result


@pytest.fixture(scope="module")
def scores(models) -> dict[str, dict[str, float]]:
    """Scores of the densities and of a constant spread on new people."""
    people = region_people(60, seed=1)
    law = models["spread"].law
    result = {name: _scores(model, people) for name, model in models.items()}
    errors = [_truth(law, p) - law.region_means(models["spread"].point_estimate(p["source"][None], p["side"][None])[0])
              for p in people]  # fmt: skip
    rms = float(torch.cat(errors).square().mean().sqrt())
    result["constant"] = {
        "region": np.mean([mean_crps(Normal(np.zeros(4), np.full(4, rms)), e[0].detach().numpy()) for e in errors])
    }
    return result


def _truth(law, person) -> torch.Tensor:
    return law.region_means(person["target"])


def _scores(model: ClosedFormDensity, people: list[dict[str, Any]]) -> dict[str, float]:
    rows: list[dict[str, float]] = []
    for seed, person in enumerate(people):
        generator, mask = torch.Generator().manual_seed(seed), person["mask"]
        samples = model.sample(person["source"][None], person["side"][None], 100, 1.0, generator)[:, 0]
        voxels = Ensemble(np.sort(samples[:, mask].numpy(), axis=0)), person["target"][mask].numpy()
        means, true = model.law.region_means(samples[:, 0]).numpy(), _truth(model.law, person)[0].numpy()
        regions = Ensemble(np.sort(means, axis=0)), true
        contrast = Ensemble(np.sort(means[:, :1] - means[:, 3:], axis=0)), true[:1] - true[3:]
        named = {"voxel": voxels, "region": regions, "contrast": contrast}
        row = {name: mean_crps(*values) for name, values in named.items()}
        row |= {f"{name}_coverage": coverage(*named[name], 0.8) for name in ("voxel", "region")}
        rows.append(row)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def test_each_density_is_better_than_the_simpler_one(scores):
    """On a law with unequal spreads and two subtypes, person scale and mixture each lower the scores."""
    constant, spread, scaled, mixture = (scores[name] for name in ("constant", *KINDS))
    assert spread["region"] < 1.03 * constant["region"]  # the constant is that of the new people themselves
    assert scaled["voxel"] < 0.97 * spread["voxel"]
    assert scaled["region"] < 0.97 * spread["region"]
    assert mixture["region"] < 0.995 * scaled["region"]
    assert mixture["contrast"] < 0.95 * scaled["contrast"]


def test_the_scaled_densities_are_calibrated(scores):
    """80 % intervals of voxels and regions contain about 80 % of new people's values."""
    for name in ("person_scale", "mixture"):
        assert scores[name]["voxel_coverage"] == pytest.approx(0.8, abs=0.06)
        assert scores[name]["region_coverage"] == pytest.approx(0.8, abs=0.1)


def test_samples_follow_seed_and_temperature(models):
    """Equal seeds give equal samples, temperature 0 the mean, and every source of a batch its samples."""
    model, people = models["mixture"], region_people(2, seed=2)
    batch = torch.stack([p["source"] for p in people]), torch.stack([p["side"] for p in people])
    first, second = (model.sample(*batch, 3, 1.0, torch.Generator().manual_seed(0)) for _ in range(2))
    assert first.shape == (3, 2, 1, *SHAPE)
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    cold = model.sample(*batch, 2, 0.0)
    assert torch.allclose(cold, model.point_estimate(*batch).expand_as(cold))
    half = model.sample(*batch, 3, 0.5, torch.Generator().manual_seed(0))
    assert torch.allclose(half - cold[0], 0.5 * (first - cold[0]), atol=1e-5)
    assert not first[:, 0, 0][:, ~people[0]["mask"][0]].any()


def test_samples_do_not_depend_on_how_many_are_drawn_at_once(models):
    """A stream yields the targets of `sample`, and more samples have the same first ones."""
    model, person = models["mixture"], region_people(1, seed=3)[0]
    batch = person["source"][None], person["side"][None]
    few, many = (model.sample(*batch, count, 1.0, torch.Generator().manual_seed(0)) for count in (3, 11))
    parts = list(model.stream(*batch, 11, 1.0, torch.Generator().manual_seed(0)))
    assert torch.allclose(few, many[:3], atol=1e-5)
    assert len(parts) > 1
    assert torch.equal(torch.cat(parts), many)


def test_a_saved_density_draws_the_same_samples(models):
    """The state dict is the whole model, regions included."""
    model = models["mixture"]
    copy = BASELINES["local_linear_mixture"](SHAPE, 2, regions=4)
    copy.load_state_dict(model.state_dict())
    person = region_people(1, seed=3)[0]
    samples = [m.sample(person["source"][None], None, 2, 1.0, torch.Generator().manual_seed(0)) for m in (model, copy)]
    assert torch.equal(*samples)


@pytest.fixture(scope="module")
def lesion_models():
    """The density and the one without the scale, fitted to the same people."""
    fitted = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(region_law, "STARTS", 1)
        for name in ("stacked_mixture", "stacked_source_scale"):
            fitted[name] = BASELINES[name](LESION_SHAPE, 1)
            fitted[name].fit(PairDataset(lesion_people(40)), [index % 4 for index in range(40)])
    return fitted


def test_samples_vary_more_in_a_lesion(lesion_models):
    """Errors are twice as large there; without the scale they are as large as elsewhere."""
    ratios = dict.fromkeys(lesion_models, 0.0)
    for name, model in lesion_models.items():
        for p in lesion_people(10, seed=1):
            generator = torch.Generator().manual_seed(0)
            std = model.sample(p["source"][None], p["side"][None], 64, generator=generator)[:, 0].std(0)
            ratios[name] += float(std[p["lesion"]].mean() / std[~p["lesion"]].mean()) / 10
    assert ratios["stacked_source_scale"] == pytest.approx(2.0, abs=0.4)
    assert ratios["stacked_mixture"] == pytest.approx(1.0, abs=0.2)


def test_new_people_are_likelier(lesion_models):
    """By more than a hundredth of a nat per voxel; the density counts the scale."""
    nats = {
        name: sum(model.log_prob(*(p[part][None] for part in ("target", "mask", "source", "side"))) for p in new)
        for name, model in lesion_models.items()
        for new in [lesion_people(3, seed=2)]
    }
    assert nats["stacked_source_scale"] > nats["stacked_mixture"] + 0.01 * 3 * 16**3
